"""Verification of a raw manifest: its content is compared with a recomputation from the deltas, in bounded memory."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field

from ciml.errors import IntegrityError
from ciml.manifest.checkpoints import Checkpoint, Checkpoints
from ciml.manifest.id_index import IdTable
from ciml.manifest.index_files import IndexFileMissingError, PartFiles
from ciml.manifest.log import ManifestLog
from ciml.raw.known_ids import TABLES
from ciml.raw.state import RAW, RawState
from ciml.storage.open import LocalStore, Store

_FLUSH_RECORDS = 50_000


def verify_manifest(raw: Store, progress: Callable[[int, int], None] | None = None) -> Iterator[str]:
    """Yield the faults of a raw manifest, one line each.

    Versions must follow each other without a gap. Segments must be undamaged, each must name the previous one, and they
    must equal the single deltas that still exist. Each checkpoint must be the sum of all deltas up to it, and its index
    must hold exactly their ids. Verification needs as much temporary space as the index.

    Args:
      raw: the raw store. It may be written to meanwhile; later deltas are left out.
      progress: called with (deltas done, deltas in all).

    Raises:
      EngineError: the store does not answer.
    """
    log = ManifestLog(raw)
    name = re.compile(re.escape(log.folder) + r"/([0-9]{12})\.json")
    singles = {int(match[1]) for entry in raw.entries(log.folder) if (match := name.fullmatch(entry.path))}
    archive = yield from _verify_segments(log, singles)
    yield from _verify_deltas(log, archive, singles)
    if not archive.broken:
        yield from _verify_checkpoints(log, archive, progress)


@dataclass
class _Archive:
    """The findings about the segments.

    Attributes:
      last: the last version in a segment.
      end: the last version.
      digests: digest of each segment, by its last version.
      broken: whether the deltas cannot be read from the first to the last.
    """

    last: int = 0
    end: int = 0
    digests: dict[int, str] = field(default_factory=dict)
    broken: bool = False


def _verify_segments(log: ManifestLog, singles: Collection[int]) -> Generator[str, None, _Archive]:
    found = _Archive()
    previous = ""
    for last in log.archive.lasts():
        where = log.store.url(log.archive.path(last))
        try:
            segment = log.archive.read(last)
        except (FileNotFoundError, IntegrityError) as error:
            yield str(error)
            found.broken = True
            return found
        if segment.first > found.last + 1:
            yield f"{where} begins with version {segment.first}, but version {found.last + 1} is in no segment"
            found.broken = True
            return found
        if segment.first != found.last + 1 or segment.previous != previous:
            yield f"{where} does not follow from the previous segment"
        for version in range(segment.first, segment.last + 1):
            try:
                line = log.parse(version, segment.line(version))
            except IntegrityError as error:
                yield f"{where}: {error}"
                found.broken = True
                continue
            if version in singles and (single := _single(log, version)) is not None and single != line:
                yield f"{log.store.url(log.path(version))} differs from its segment"
        found.last, previous = segment.last, segment.digest
        found.digests[last] = previous
    return found


def _single(log: ManifestLog, version: int) -> object:
    try:
        return log.parse(version, log.store.read(log.path(version)))
    except FileNotFoundError:
        return None
    except IntegrityError as error:
        return error


def _verify_deltas(log: ManifestLog, archive: _Archive, singles: Collection[int]) -> Iterator[str]:
    archive.end = archive.last
    for version in sorted(version for version in singles if version > archive.last):
        if version != archive.end + 1:
            yield f"{log.store.url(log.path(version))} exists, but version {archive.end + 1} is missing"
            return
        if isinstance(found := _single(log, version), IntegrityError):
            yield str(found)
            archive.broken = True
            return
        archive.end = version


def _verify_checkpoints(
    log: ManifestLog, archive: _Archive, progress: Callable[[int, int], None] | None
) -> Iterator[str]:
    checkpoints = Checkpoints(log, RAW)
    wanted: dict[int, Checkpoint] = {}
    for version in log.checkpoints():
        try:
            wanted[version] = checkpoints.read(version)
        except FileNotFoundError:
            continue  # removed meanwhile, as intended
        except IntegrityError as error:
            yield str(error)
    for version, checkpoint in wanted.items():
        if version > archive.end or archive.digests.get(version) != checkpoint.segment:
            yield f"{log.store.url(log.checkpoint_path(version))} was made from different deltas"
    with tempfile.TemporaryDirectory(prefix="ciml-verify-") as folder:
        replay = _Replay(PartFiles(LocalStore(folder), "index"))
        for version, data in log.raw_since(0):
            if version > archive.end:
                break
            try:
                replay.state.apply(version, log.parse(version, data))
            except IntegrityError as error:
                yield str(error)
                return
            if version in wanted:
                replay.flush()
                where = log.store.url(log.checkpoint_path(version))
                for fault in _compare(wanted[version], checkpoints, replay):
                    yield f"{where}: {fault}"
            elif replay.state.records >= _FLUSH_RECORDS:
                replay.flush()
            if progress is not None:
                progress(version, archive.end)


class _Replay:
    """The sum of deltas, with the ids in tables of its own."""

    def __init__(self, files: PartFiles) -> None:
        self._files = files
        self.tables: dict[str, IdTable] = {name: IdTable(kind, (), files) for name, kind in TABLES.items()}
        self.state = RawState.restored_from(0, {}, self.tables)

    def flush(self) -> None:
        """Move the ids from memory to the tables."""
        recent = self.state.recent()
        for name, table in self.tables.items():
            steps = table.with_rows(recent[name]).merged()
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    self.tables[name] = end.value
                    break
        self.state = RawState.restored_from(self.state.version, self.state.snapshot(), self.tables)


def _compare(checkpoint: Checkpoint, checkpoints: Checkpoints[RawState], replay: _Replay) -> Iterator[str]:
    facts = replay.state.snapshot()
    for name in sorted(facts.keys() | checkpoint.state.keys()):
        if facts.get(name) != checkpoint.state.get(name):
            yield f"{name} differs from the sum of the deltas"
    faults = [
        checkpoints.files.check(part) for runs in checkpoint.tables.values() for run in runs for part in run.parts
    ]
    yield from (fault for fault in faults if fault)
    tables = checkpoints.tables(checkpoint)
    for name, table in replay.tables.items():
        try:
            same = _digest(tables[name]) == _digest(table)
        except (IndexFileMissingError, IntegrityError):
            continue  # reported above
        if not same:
            yield f"the index of {name} differs from that of the deltas"


def _digest(table: IdTable) -> Mapping[str, str]:
    """Return a digest of each column over all rows, in the order of the ids."""
    digests = {name: hashlib.sha256() for name in ("high", "low", *table.kind.columns)}
    for rows in table.scan():
        digests["high"].update(rows.high.tobytes())
        digests["low"].update(rows.low.tobytes())
        for name, column in rows.values.items():
            for value in column.to_pylist():
                digests[name].update(repr(value).encode() + b"\n")
    return {name: digest.hexdigest() for name, digest in digests.items()}
