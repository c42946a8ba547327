"""Verification of a manifest: checkpoints are compared with a recomputation from the deltas, ids in files.

`seal_older` repairs the one fault that has a repair here: deltas of an older version without a digest.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple

from ciml.errors import IntegrityError
from ciml.manifest.checkpoints import Checkpoint, Checkpointed, Checkpoints, S
from ciml.manifest.id_index import IdTable, IndexFileMissingError, PartFiles, run_steps
from ciml.manifest.log import ManifestLog
from ciml.manifest.segments import Link, UnsealedDeltaError, line_of
from ciml.progress import Progress
from ciml.storage import LocalStore
from ciml.storage.json_files import seal

#: Number of records after which a replay moves its ids from memory to tables.
_FLUSH_RECORDS = 50_000
_MOST_FINDINGS = 100
_COVERED_BY = "the next commit adds one for all of them, and the next checkpoint keeps it"

FaultKind = Literal["delta", "segment", "checkpoint", "index", "older", "unsealed"]


class Fault(NamedTuple):
    """A fault of a manifest: the kind of object that is broken, and a line that names it.

    ``older`` and ``unsealed`` are no damage: a checkpoint of an older version, which
    `ciml.manifest.checkpoints.Checkpoints.rebuild` replaces by one with more in it; and deltas of an older version
    that no digest protects yet.
    """

    kind: FaultKind
    text: str


@dataclass(slots=True)
class Findings:
    """The results of a verification of stored objects.

    Attributes:
      findings: the first hundred faults, a line each.
      number: number of all faults.
      broken: number of faults by kind of object.
      formats: number of undamaged objects by kind and format (docs/compatibility.md), of kinds with several formats.
      notes: oddities that are not faults, a line each.
    """

    findings: list[str] = field(default_factory=list)
    number: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    formats: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    notes: list[str] = field(default_factory=list)

    def add_fault(self, kind: str, text: str) -> None:
        """Add a fault of an object: its kind, and a line that names it."""
        self.number += 1
        self.broken[kind] += 1
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(" ".join(text.split()))

    def add(self, other: Findings, kinds: Mapping[str, str]) -> None:
        """Add other findings, with the names that this verification has for their kinds."""
        self.number += other.number
        self.findings = (self.findings + other.findings)[:_MOST_FINDINGS]
        self.notes += other.notes
        for kind, number in other.broken.items():
            self.broken[kinds[kind]] += number
        for kind, formats in other.formats.items():
            self.formats[kinds[kind]].update(formats)

    def lines(self) -> Iterator[str]:
        """Yield the lines of a report."""
        yield from (f"BROKEN {line}" for line in self.findings)
        if self.number > len(self.findings):
            yield f"BROKEN and {self.number - len(self.findings):,} more"
        yield from (f"note: {line}" for line in self.notes)


def verify_log(log: ManifestLog, kind: Checkpointed[Any], progress: Progress | None = None) -> Iterator[Fault]:
    """Yield the faults of a manifest with checkpoints.

    Versions must follow each other without a gap. Segments must be undamaged, each must name the previous one, and they
    must equal the single deltas that still exist. Each checkpoint must be the sum of all deltas up to it, and its index
    must hold exactly their ids. Verification needs as much temporary space as the index.

    Args:
      log: the manifest. It may be written to meanwhile; later deltas are left out.
      kind: its kind of state.
      progress: called with (deltas done, deltas in all).

    Raises:
      EngineError: the store does not answer.
    """
    singles = log.single_deltas()
    archive = yield from _verify_segments(log, singles)
    end = yield from _verify_deltas(log, archive, singles)
    if archive.is_readable and end is not None:
        yield from _verify_checkpoints(log, kind, archive.digests, end, progress)


@dataclass
class _Archive:
    """The undamaged segments from the first on.

    Attributes:
      last: the last version in a segment.
      digests: digest of each segment, by its last version.
      link: the position in the chain of digests after ``last``.
      is_readable: whether all segments, and all deltas in them, can be read.
    """

    last: int = 0
    digests: dict[int, str] = field(default_factory=dict)
    link: Link = field(default_factory=Link)
    is_readable: bool = True


def _verify_segments(log: ManifestLog, singles: Collection[int]) -> Generator[Fault, None, _Archive]:
    archive = _Archive()
    previous = ""
    for last in log.archive.lasts():
        where = log.store.url(log.archive.path(last))
        try:
            segment = log.archive.read(last)
        except (FileNotFoundError, IntegrityError) as error:
            yield Fault("segment", str(error))
            archive.is_readable = False
            return archive
        if segment.first > archive.last + 1:
            archive.is_readable = False
            gap = f"{where} begins with version {segment.first}, but version {archive.last + 1} is in no segment"
            yield Fault("segment", gap)
            return archive
        if segment.first != archive.last + 1 or segment.previous != previous:
            yield Fault("segment", f"{where} does not follow from the previous segment")
        for version in range(segment.first, segment.last + 1):
            try:
                log.parse(version, segment.line(version))
            except IntegrityError as error:
                yield Fault("segment", f"{where}: {error}")
                archive.is_readable = False
                continue
            if version in singles and _read_single(log, version) not in (None, segment.line(version)):
                yield Fault("delta", f"{log.store.url(log.path(version))} differs from its segment")
        archive.last = segment.last
        previous = segment.digest
        if archive.is_readable:
            archive.link = Link.unread(last - 1).after(segment.line(last), where)
        archive.digests[last] = previous
    return archive


def _read_single(log: ManifestLog, version: int) -> bytes | None:
    """Return a single delta as the line of a segment; None if it was removed meanwhile."""
    try:
        return line_of(log.store.read(log.path(version)))
    except FileNotFoundError:
        return None


def _verify_deltas(log: ManifestLog, archive: _Archive, singles: Collection[int]) -> Generator[Fault, None, int | None]:
    """Verify the single deltas after the segments; return the last version without a gap, None for a damaged delta."""
    end = archive.last
    link = archive.link if archive.link.version == archive.last else Link.unread(archive.last)
    unsealed = 0
    for version in sorted(version for version in singles if version > archive.last):
        where = log.store.url(log.path(version))
        if version != end + 1:
            yield Fault("delta", f"{where} exists, but version {end + 1} is missing")
            return end
        data = _read_single(log, version)
        if data is not None:
            try:
                link = link.after(data, where)
                log.parse(version, data)
            except IntegrityError as error:
                yield Fault("delta", str(error))
                return None
            unsealed = unsealed + 1 if link.unsealed else 0
        end = version
    if unsealed:
        yield Fault("unsealed", f"{unsealed:,} deltas written by an older version carry no digest; {_COVERED_BY}")
    return end


def _verify_checkpoints(
    log: ManifestLog, kind: Checkpointed[S], segment_digests: Mapping[int, str], end: int, progress: Progress | None
) -> Iterator[Fault]:
    """Compare each checkpoint with the sum of the deltas up to it, until version ``end``."""
    checkpoints = Checkpoints(log, kind)
    stored: dict[int, Checkpoint] = {}
    for version in log.checkpoints():
        try:
            stored[version] = checkpoints.read(version)
        except FileNotFoundError:
            continue  # removed meanwhile, as intended
        except IntegrityError as error:
            yield Fault("checkpoint", str(error))
    for version, checkpoint in stored.items():
        if version > end or segment_digests.get(version) != checkpoint.segment:
            where = log.store.url(log.checkpoint_path(version))
            yield Fault("checkpoint", f"{where} was made from different deltas")
    with tempfile.TemporaryDirectory(prefix="ciml-verify-") as folder:
        replay = _Replay(kind, PartFiles(LocalStore(folder), "index"))
        for version, data in log.raw_since(0):
            if version > end:
                break
            try:
                replay.state.apply(version, log.parse(version, data))
            except IntegrityError as error:
                yield Fault("delta", str(error))
                return
            if version in stored:
                replay.flush()
                where = log.store.url(log.checkpoint_path(version))
                for fault in _compare(stored[version], checkpoints, replay):
                    yield Fault(fault.kind, f"{where}: {fault.text}")
            elif replay.state.records >= _FLUSH_RECORDS:
                replay.flush()
            if progress is not None:
                progress("manifest", version, end)


class _Replay(Generic[S]):
    """The sum of deltas, with the ids in tables of its own."""

    def __init__(self, kind: Checkpointed[S], files: PartFiles) -> None:
        self._kind = kind
        self.tables: dict[str, IdTable] = {name: IdTable(table, (), files) for name, table in kind.tables.items()}
        self.state = kind.restore(0, {}, self.tables)

    def flush(self) -> None:
        """Move the ids from memory to the tables."""
        recent = self.state.recent()
        for name, table in self.tables.items():
            self.tables[name] = run_steps(table.with_rows(recent[name]).merged())
        self.state = self._kind.restore(self.state.version, self.state.snapshot(), self.tables)


def _compare(checkpoint: Checkpoint, checkpoints: Checkpoints[S], replay: _Replay[S]) -> Iterator[Fault]:
    """Yield the differences between a checkpoint and a replay of the same deltas."""
    kind = checkpoints.kind
    state = replay.state.snapshot()
    older: Mapping[str, frozenset[str]] = {}
    if kind.marker not in checkpoint.state:
        older = kind.older
        state.pop(kind.marker, None)
    for name in sorted(state.keys() | checkpoint.state.keys()):
        # A checkpoint of an older version may lack an entry that it did not count, as long as the entry is empty.
        if state.get(name) != checkpoint.state.get(name) and (state.get(name) or name in checkpoint.state):
            yield Fault("checkpoint", f"{name} differs from the sum of the deltas")
    for part in checkpoint.parts():
        problem = checkpoints.files.check(part)
        if problem is not None:
            yield Fault("index", problem)
    tables = checkpoints.tables(checkpoint)
    for name, table in replay.tables.items():
        try:
            stored = _digest(tables[name])
            replayed = _digest(table)
        except (IndexFileMissingError, IntegrityError):
            continue  # reported above
        differing = {column for column, digest in replayed.items() if stored[column] != digest}
        if differing and differing <= older.get(name, frozenset()):
            columns = ", ".join(sorted(differing))
            yield Fault("older", f"the index of {name} lacks {columns} as this version stores it")
        elif differing:
            yield Fault("index", f"the index of {name} differs from that of the deltas")


def _digest(table: IdTable) -> Mapping[str, str]:
    """Return a digest of each column over all rows, in the order of the ids."""
    digests = {name: hashlib.sha256() for name in ("high", "low", *table.kind.columns)}
    for rows in table.scan():
        digests["high"].update(rows.high.tobytes())
        digests["low"].update(rows.low.tobytes())
        for name in table.kind.columns:
            for value in rows.batch.column(name).to_pylist():
                digests[name].update(repr(value).encode() + b"\n")
    return {name: digest.hexdigest() for name, digest in digests.items()}


def seal_older(log: ManifestLog) -> int:
    """Add digests to the deltas that an older version appended after deltas with digests; return their number.

    No process may write to the log meanwhile. A call that is killed can be repeated.

    Raises:
      IntegrityError: if a delta is damaged; then nothing is changed.
    """
    number = sum(1 for _ in _newly_sealed(log))  # reads all deltas before the first is replaced
    for path, data in _newly_sealed(log):
        log.store.replace(path, data)
    return number


def _newly_sealed(log: ManifestLog) -> Iterator[tuple[str, bytes]]:
    """Yield the path of each delta that lacks a digest after one that has it, and its bytes with a digest."""
    last = max(log.archive.lasts(), default=0)
    link = Link.unread(last)
    if last:
        link = Link.unread(last - 1).after(log.archive.read(last).line(last), log.store.url(log.path(last)))
    while True:
        version = link.version + 1
        path = log.path(version)
        where = log.store.url(path)
        try:
            data = log.store.read(path)
        except FileNotFoundError:
            return
        log.parse(version, data)
        try:
            link = link.after(data, where)
        except UnsealedDeltaError:
            data = seal(data, link.next_seal())
            link = link.after(data, where)
            yield path, data
