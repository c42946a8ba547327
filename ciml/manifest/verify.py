"""Verification of a manifest: checkpoints are compared with a recomputation from the deltas, ids in files.

`seal_older` repairs the one fault that has a repair here: deltas of an older version without a digest.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple

from ciml.digest import canonical_json
from ciml.errors import IntegrityError
from ciml.manifest.checkpoints import Checkpoint, Checkpointed, Checkpoints, S
from ciml.manifest.id_index import IdTable, IndexFileMissingError, PartFiles, run_steps
from ciml.manifest.log import ManifestLog, apply_delta
from ciml.manifest.segments import Link, Segment, UnsealedDeltaError, line_of
from ciml.progress import Progress, no_progress
from ciml.storage import LocalStore
from ciml.storage.json_files import seal

#: Number of records after which a replay moves its ids from memory to tables.
_FLUSH_RECORDS = 50_000
_MOST_FINDINGS = 100
_COVERED_BY = "the next commit adds one for all of them, and the next checkpoint keeps it"

FaultKind = Literal["delta", "segment", "checkpoint", "index", "older", "unsealed"]


class Fault(NamedTuple):
    """A fault of a manifest: the kind of object that is broken, and a line that names it.

    ``older`` and ``unsealed`` are not damage: a checkpoint of an older version, which
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


def verify_log(log: ManifestLog, kind: Checkpointed[Any], progress: Progress = no_progress) -> Iterator[Fault]:
    """Yield the faults of a manifest with checkpoints.

    Versions must follow each other without a gap. Segments must be undamaged, each must name the previous one, and they
    must equal the single deltas that still exist. Each checkpoint must be the sum of all deltas up to it, and its index
    must hold exactly their ids. Verification needs as much temporary space as the index.

    Args:
      log: the manifest. It may be written to meanwhile; later deltas are left out.
      kind: its kind of state.
      progress: called with each delta.

    Raises:
      EngineError: the store does not answer.
    """
    singles = log.single_deltas()
    archive, segment_digests = _verify_segments(log, singles)
    yield from archive.faults
    tail = _verify_tail(log, archive.link, singles)
    yield from tail.faults
    if archive.is_readable and tail.is_readable:
        yield from _verify_checkpoints(log, kind, segment_digests, tail.link.version, progress)


class _Verified(NamedTuple):
    """The result of the verification of successive deltas.

    Attributes:
      faults: of the deltas, and of the segments that hold them.
      link: the position in the chain of digests after the last delta without a gap before it.
      is_readable: whether each delta up to there can be read, and no segment after it exists.
    """

    faults: Sequence[Fault]
    link: Link
    is_readable: bool


def _verify_segments(log: ManifestLog, singles: Collection[int]) -> tuple[_Verified, Mapping[int, str]]:
    """Verify the segments in order, until one cannot be read or a version before one is missing.

    Returns:
      The result, and the digest of each verified segment, by its last version.
    """
    faults: list[Fault] = []
    digests: dict[int, str] = {}
    link = Link()
    is_readable = True
    for last in log.archive.lasts():
        where = log.store.url(log.archive.path(last))
        next_version = link.version + 1
        try:
            segment = log.archive.read(last)
        except (FileNotFoundError, IntegrityError) as error:
            return _Verified([*faults, Fault("segment", str(error))], link, is_readable=False), digests
        if segment.first > next_version:
            gap = f"{where} begins with version {segment.first}, but version {next_version} is in no segment"
            return _Verified([*faults, Fault("segment", gap)], link, is_readable=False), digests
        if segment.first != next_version or segment.previous != digests.get(link.version, ""):
            faults.append(Fault("segment", f"{where} does not follow from the previous segment"))
        delta_faults = list(_verify_segment(log, segment, where, singles))
        faults += delta_faults
        is_readable = is_readable and all(fault.kind != "segment" for fault in delta_faults)
        link = Link.unread(last - 1).after(segment.line(last), where) if is_readable else Link.unread(last)
        digests[last] = segment.digest
    return _Verified(faults, link, is_readable), digests


def _verify_segment(log: ManifestLog, segment: Segment, where: str, singles: Collection[int]) -> Iterator[Fault]:
    """Yield the deltas of a segment that cannot be read, and the single deltas that differ from it."""
    for version in range(segment.first, segment.last + 1):
        line = segment.line(version)
        try:
            log.parse(version, line)
        except IntegrityError as error:
            yield Fault("segment", f"{where}: {error}")
            continue
        if version in singles and _read_single(log, version) not in (None, line):
            yield Fault("delta", f"{log.store.url(log.path(version))} differs from its segment")


def _read_single(log: ManifestLog, version: int) -> bytes | None:
    """Return a single delta as the line of a segment; None if it was removed meanwhile."""
    try:
        return line_of(log.store.read(log.path(version)))
    except FileNotFoundError:
        return None


def _verify_tail(log: ManifestLog, link: Link, singles: Collection[int]) -> _Verified:
    """Verify the single deltas after the segments in order, until one is damaged or a version before one is missing.

    Args:
      log: the manifest.
      link: the position after the segments.
      singles: the versions of all single deltas.
    """
    unsealed = 0
    for version in sorted(version for version in singles if version > link.version):
        where = log.store.url(log.path(version))
        if version != link.version + 1:
            gap = f"{where} exists, but version {link.version + 1} is missing"
            return _Verified([Fault("delta", gap)], link, is_readable=True)
        data = _read_single(log, version)
        if data is None:
            link = Link.unread(version)  # removed meanwhile, so it is in a segment that was made meanwhile
            continue
        try:
            link = link.after(data, where)
            log.parse(version, data)
        except IntegrityError as error:
            return _Verified([Fault("delta", str(error))], link, is_readable=False)
        unsealed = unsealed + 1 if link.unsealed else 0
    text = f"{unsealed:,} deltas written by an older version carry no digest; {_COVERED_BY}"
    return _Verified([Fault("unsealed", text)] if unsealed else [], link, is_readable=True)


def _verify_checkpoints(
    log: ManifestLog, kind: Checkpointed[S], segment_digests: Mapping[int, str], end: int, progress: Progress
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
            continue
        if version > end or segment_digests.get(version) != stored[version].segment:
            where = log.store.url(log.checkpoint_path(version))
            yield Fault("checkpoint", f"{where} was made from different deltas")
    with tempfile.TemporaryDirectory(prefix="ciml-verify-") as folder:
        replay = _Replay(kind, PartFiles(LocalStore(folder), "index"))
        for version, data in log.raw_since(0):
            if version > end:
                break
            try:
                apply_delta(log, replay.state, version, log.parse(version, data))
            except IntegrityError as error:
                yield Fault("delta", str(error))
                return
            if version in stored or replay.state.records >= _FLUSH_RECORDS:
                replay.flush()
            if version in stored:
                where = log.store.url(log.checkpoint_path(version))
                faults = _compare(stored[version], checkpoints, replay)
                yield from (Fault(fault.kind, f"{where}: {fault.text}") for fault in faults)
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
    """Yield the differences between a checkpoint and a replay of the same deltas: its state, its files, its index."""
    kind = checkpoints.kind
    is_older = kind.marker not in checkpoint.state
    yield from _compare_states(checkpoint.state, replay.state.snapshot(), kind.marker if is_older else "")
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
        if is_older and differing and differing <= kind.older.get(name, frozenset()):
            columns = ", ".join(sorted(differing))
            yield Fault("older", f"the index of {name} lacks {columns} as this version stores it")
        elif differing:
            yield Fault("index", f"the index of {name} differs from that of the deltas")


def _compare_states(stored: Mapping[str, Any], replayed: Mapping[str, Any], ignored: str) -> Iterator[Fault]:
    """Yield the entries of a checkpoint's state that differ from a replay, other than ``ignored``."""
    for name in sorted((stored.keys() | replayed.keys()) - {ignored}):
        # A checkpoint of an older version may lack an entry that it did not count, as long as the entry is empty.
        is_absent = name not in stored and not replayed[name]
        # As JSON: in a replay, some lists are tuples still.
        if canonical_json(stored.get(name)) != canonical_json(replayed.get(name)) and not is_absent:
            yield Fault("checkpoint", f"{name} differs from the sum of the deltas")


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
