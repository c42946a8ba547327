"""Packing the runs of one folder (a job and a day), and making one pack of several small ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from ciml.digest import telemetry_digest
from ciml.errors import IntegrityError
from ciml.events.records import RawFile
from ciml.manifest.log import Delta, commit
from ciml.raw.packs import Alone, NamedRun, PackFile, PackState, pack_log
from ciml.storage.open import LocalStore, Store
from transforms.raw.packs import PACK_RUNS, OpenPack, PackWriter, columns_digest
from transforms.raw.reader import FolderPacks, load_packs, read_run

_THREADS = 16
# What is read at a time: what is in memory, beside the packs in the making.
_BATCH_RUNS = 256
_BATCH_ROWS = 200_000
_OPEN_PACKS = 4
# Several small packs become one when none is larger than this many times those before it together: then a run is
# written anew only as often as a folder grows by such a factor.
_GROWTH = 2

Clock = Callable[[], float]


@dataclass(slots=True)
class Packing:
    """What packing wrote.

    Attributes:
      runs: that were packed; objects_bytes: of their own objects, as they were stored.
      packs: that were written and committed; packs_bytes: of those.
      merged: packs that became part of larger ones.
      alone: runs that were left as objects of their own, because they are too few.
      faults: runs that cannot be packed, and why, a line each. They stay as they are.
    """

    runs: int = 0
    rows: int = 0
    packs: int = 0
    packs_bytes: int = 0
    merged: int = 0
    alone: int = 0
    faults: list[str] = field(default_factory=list)


def pack_folder(
    raw: Store,
    folder: str,
    named: dict[str, NamedRun],
    *,
    min_runs: int,
    pack_bytes: int,
    clock: Clock,
    done: Packing,
    told: Callable[[int], None] = lambda runs: None,
) -> None:
    """Pack those of the named runs that are in no pack of the folder yet, and commit the packs.

    Args:
      raw: the raw store.
      folder: ``job=…/date=…``.
      named: the runs that the raw manifest names there, by file name.
      min_runs: fewer than this stay objects of their own.
      pack_bytes: a pack ends with the run that brings it to this size.
      clock: epoch seconds.
      done: counts what was done.
      told: called with the number of runs that were read so far.
    """
    while True:
        packs = load_packs(raw, folder)
        state = packs.state
        if packs.missing:
            _mend(raw, folder, packs, clock)
            continue
        todo = {name: run for name, run in named.items() if name not in packs.runs and name not in state.alone}
        if not todo:
            return
        for name, alone in state.alone.items():  # more have come: perhaps they are enough now
            todo[name] = NamedRun(folder, name, alone.digest, alone.rows)
        writing = _Writing(raw, folder, pack_bytes)
        if len(todo) < min_runs:
            left = {name: Alone(run.digest, run.rows) for name, run in todo.items()}
        else:
            for number, (run, table, why) in enumerate(_tables(raw, list(todo.values())), 1):
                if table is None:
                    writing.faults[run.name] = Alone(run.digest, run.rows, why)
                else:
                    writing.add(run.name, run.digest, table)
                told(number)
            left = writing.finish()
        delta = _delta(clock, writing.packs, (), left)
        if _append(raw, folder, state, delta):
            break
    done.runs += sum(pack.runs for pack in writing.packs)
    done.rows += sum(pack.rows for pack in writing.packs)
    done.packs += len(writing.packs)
    done.packs_bytes += sum(pack.size for pack in writing.packs)
    done.alone += sum(1 for alone in left.values() if not alone.why)
    done.faults += [f"runs/{folder}/{name}: {alone.why}" for name, alone in left.items() if alone.why]


def _delta(clock: Clock, packs: Sequence[PackFile], replaces: Sequence[str], alone: dict[str, Alone]) -> Delta:
    return {
        "time_us": int(clock() * 1e6),
        "packs": [pack.to_json() for pack in packs],
        "replaces": list(replaces),
        "alone": {name: one.to_json() for name, one in sorted(alone.items())},
    }


def _mend(raw: Store, folder: str, packs: FolderPacks, clock: Clock) -> None:
    """Take packs that are not there out of the manifest, and bring back those that they replaced.

    So it ends when a compactor slept for longer than the grace between writing a pack and committing it, and another
    has swept it meanwhile. Nothing is lost: what a pack replaces is kept until that has been read back.
    """
    old = [pack.file for pack in packs.packs if pack.file.path in packs.state.replaced]
    _append(raw, folder, packs.state, _delta(clock, old, packs.missing, packs.state.alone))


def _append(raw: Store, folder: str, planned_on: PackState, delta: Delta) -> bool:
    """Commit a delta, unless another has committed one since it was planned."""
    state, base = PackState(), planned_on.version
    return commit(pack_log(raw, folder), state, lambda: delta if state.version == base else None) is not None


class _Writing:
    """Packs in the making, one for each set of columns; each is written to the store as soon as it is full."""

    def __init__(self, raw: Store, folder: str, pack_bytes: int) -> None:
        self.packs: list[PackFile] = []
        self.faults: dict[str, Alone] = {}
        self._raw = raw
        self._folder = folder
        self._pack_bytes = pack_bytes
        self._open: dict[str, PackWriter] = {}

    def add(self, name: str, digest: str, table: pa.Table) -> None:
        key = columns_digest(table.schema)
        if key not in self._open:
            if len(self._open) >= _OPEN_PACKS:  # memory has a bound, and packs of few runs are merged some day
                self._end(max(self._open, key=lambda each: self._open[each].size))
            self._open[key] = PackWriter(self._folder, table.schema)
        writer = self._open[key]
        writer.add(name, digest, table)
        if writer.size >= self._pack_bytes or writer.full:
            self._end(key)

    def finish(self) -> dict[str, Alone]:
        """Write what is left. Return the runs that cannot be packed."""
        for key in list(self._open):
            self._end(key)
        return self.faults

    def _end(self, key: str) -> None:
        writer = self._open.pop(key)
        try:
            pack, data = writer.finish()
        except IntegrityError as error:
            self.faults.update({run.name: Alone(run.digest, run.rows, str(error)) for run in writer.places})
            return
        self._raw.create(pack.path, data)  # one that is there has the same bytes: its name says so
        self.packs.append(pack)


def _tables(raw: Store, runs: Sequence[NamedRun]) -> Iterator[tuple[NamedRun, pa.Table | None, str]]:
    """Yield (run, its table, what is wrong with it), some at a time; the digest of each table is the named one."""

    def read(run: NamedRun) -> tuple[NamedRun, pa.Table | None, str]:
        try:
            table = read_run(raw, RawFile(run.path, run.digest, run.rows, 0))
            found = telemetry_digest(run.run_id, table)
        except (IntegrityError, TypeError) as error:
            return run, None, str(error)
        return (run, table, "") if found == run.digest else (run, None, f"has the digest {found}, not {run.digest}")

    threads = 1 if isinstance(raw, LocalStore) else _THREADS
    with ThreadPoolExecutor(threads) as pool:
        batch: list[NamedRun] = []
        rows = 0
        for run in sorted(runs, key=lambda run: run.name):
            batch.append(run)
            rows += run.rows
            if len(batch) >= _BATCH_RUNS or rows >= _BATCH_ROWS:
                yield from pool.map(read, batch)
                batch, rows = [], 0
        yield from pool.map(read, batch)


def merge_packs(raw: Store, folder: str, *, pack_bytes: int, clock: Clock, done: Packing) -> None:
    """Make one pack of several small ones with the same columns, where there are such."""
    packs = load_packs(raw, folder)
    chosen = _small(packs, pack_bytes)
    if not chosen or packs.missing:
        return
    writing = _Writing(raw, folder, pack_bytes)
    seen: set[str] = set()
    for pack in chosen:
        for numbers in _parts(pack):
            try:
                tables = pack.read(raw, numbers, None)
            except FileNotFoundError:
                return  # another was faster
            for number in numbers:
                place = pack.places[number]
                if place.name not in seen:
                    seen.add(place.name)
                    writing.add(place.name, place.digest, tables[number])
    if writing.finish():
        return  # they stay as they are; whoever verifies is told
    delta = _delta(clock, writing.packs, [pack.file.path for pack in chosen], packs.state.alone)
    if _append(raw, folder, packs.state, delta):
        done.merged += len(chosen)
        done.packs += len(writing.packs)
        done.packs_bytes += sum(pack.size for pack in writing.packs)


def _small(packs: FolderPacks, pack_bytes: int) -> list[OpenPack]:
    """Return the packs to merge: of each set of columns the smallest, as many as are no more than so much larger."""
    groups: dict[str, list[OpenPack]] = {}
    for pack in packs.packs:
        if pack.file.size < pack_bytes // 2 and pack.file.runs < PACK_RUNS // 2:
            groups.setdefault(pack.file.columns, []).append(pack)
    chosen: list[OpenPack] = []
    for group in groups.values():
        group.sort(key=lambda pack: (pack.file.size, pack.file.path))
        total, taken = group[0].file.size, 1
        while taken < len(group) and group[taken].file.size <= _GROWTH * total:
            total += group[taken].file.size
            taken += 1
        if taken > 1:
            chosen += group[:taken]
    return chosen


def _parts(pack: OpenPack) -> Iterator[list[int]]:
    part: list[int] = []
    rows = 0
    for number, place in enumerate(pack.places):
        part.append(number)
        rows += place.rows
        if rows >= _BATCH_ROWS:
            yield part
            part, rows = [], 0
    if part:
        yield part
