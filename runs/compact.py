"""Packs the runs of one folder (a job and a day), and merges small packs.

Compaction of the raw store: packs the runs of past days.

Compaction may be killed at any line, and may run concurrently. A pack's name is derived from its bytes, and the
folder's manifest references it. A run's own object is removed only after the grace, when the pack was read back.
`CompactionCursor` stores only the progress.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from ciml.digest import telemetry_digest
from ciml.errors import IntegrityError
from ciml.events.records import RawFile
from ciml.manifest.log import Delta, commit
from ciml.progress import Progress, no_progress
from ciml.runs.collect_garbage import (
    Collected,
    GarbageCollector,
    load_cursor,
    mark_compacted,
    pack_folders,
    save_cursor,
    windows,
)
from ciml.runs.pack_index import PACKS, RUNS, SWEPT, Alone, NamedRun, PackFile, PackState, day_ends_s, pack_log
from ciml.runs.packs import PACK_RUNS, OpenPack, PackWriter, batches, columns_digest
from ciml.runs.reader import FolderPacks, load_packs, read_run
from ciml.storage import LocalStore, Store

_THREADS = 16
_OPEN_PACKS = 4
# Small packs are merged if none is larger than this many times the smaller ones together. So a run is rewritten only
# when its folder has grown by about this factor.
_GROWTH = 2

Clock = Callable[[], float]
DAY_S = 86_400.0
PACK_BYTES = 32 << 20
MIN_RUNS = 2
_WINDOW_RUNS = 100_000


@dataclass(slots=True)
class Packing:
    """The result of packing.

    Attributes:
      runs, rows: packed runs and their rows.
      packs, packs_bytes: written and committed packs.
      merged: packs merged into larger ones.
      alone: runs that are not packed because their folder has too few.
      faults: runs that cannot be packed and the reason, a line each. They keep their objects.
    """

    runs: int = 0
    rows: int = 0
    packs: int = 0
    packs_bytes: int = 0
    merged: int = 0
    alone: int = 0
    faults: list[str] = field(default_factory=list)


class Packer:
    """Packs the runs of folders, and merges their packs.

    Args:
      raw: the raw store.
      min_runs: fewer runs of a folder are not packed.
      pack_bytes: a pack ends with the run that brings it to this size.
      clock: epoch seconds.
      done: the counts, updated in place.
    """

    def __init__(self, raw: Store, min_runs: int, pack_bytes: int, clock: Clock, done: Packing) -> None:
        self._raw = raw
        self._min_runs = min_runs
        self._pack_bytes = pack_bytes
        self._clock = clock
        self._done = done

    def pack(self, folder: str, named: dict[str, NamedRun]) -> bool:
        """Pack the named runs that are not in a pack of a folder, and commit the packs; return whether there are any.

        Args:
          folder: ``job=…/date=…``.
          named: the runs that the raw manifest names there, by file name.
        """
        done = self._done
        while True:
            packs = load_packs(self._raw, folder)
            if packs.missing:
                self._restore_replaced(folder, packs)
                continue
            alone = packs.state.alone
            todo = {name: run for name, run in named.items() if name not in packs.runs and name not in alone}
            if not todo:
                return False
            # With the new runs, those that were left alone may be enough.
            todo |= {name: NamedRun(folder, name, run.digest, run.rows) for name, run in alone.items()}
            writing = _Writing(self._raw, folder, self._pack_bytes)
            if len(todo) < self._min_runs:
                writing.alone = {name: Alone(run.digest, run.rows) for name, run in todo.items()}
            else:
                for run, table, why in _tables(self._raw, list(todo.values())):
                    if table is None:
                        writing.alone[run.name] = Alone(run.digest, run.rows, why)
                    else:
                        writing.add(run.name, run.digest, table)
                writing.finish()
            if self._commit(folder, packs.state, writing.packs, (), writing.alone):
                break
        writing.count(done)
        done.runs += sum(pack.runs for pack in writing.packs)
        done.rows += sum(pack.rows for pack in writing.packs)
        done.alone += sum(1 for run in writing.alone.values() if not run.why)
        done.faults += [f"runs/{folder}/{name}: {run.why}" for name, run in writing.alone.items() if run.why]
        return bool(writing.packs)

    def merge(self, folder: str, *, renew: bool = False) -> bool:
        """Merge small packs with the same columns; with ``renew`` also write those of older versions again.

        Returns:
          Whether a pack was written.
        """
        packs = load_packs(self._raw, folder)
        chosen = self._small(packs)
        if renew:
            chosen += [pack for pack in packs.packs if pack.renewable and pack not in chosen]
        if not chosen or packs.missing:
            return False
        writing = _Writing(self._raw, folder, self._pack_bytes)
        merged_names: set[str] = set()
        for pack in chosen:
            for numbers in pack.batches():
                try:
                    tables = pack.read(self._raw, numbers, None)
                except FileNotFoundError:
                    return False  # merged by another process
                for number in numbers:
                    run = pack.runs[number]
                    if run.name not in merged_names:
                        merged_names.add(run.name)
                        writing.add(run.name, run.digest, tables[number])
        writing.finish()
        if writing.alone:
            return False  # the packs are kept; a verification reports the faults
        replaces = [pack.file.path for pack in chosen]
        if not self._commit(folder, packs.state, writing.packs, replaces, packs.state.alone):
            return False
        writing.count(self._done)
        self._done.merged += len(chosen)
        return True

    def _small(self, packs: FolderPacks) -> list[OpenPack]:
        """Return the packs to merge: for each set of columns, the smallest ones within the growth factor."""
        groups: dict[str, list[OpenPack]] = {}
        for pack in packs.packs:
            if pack.file.size < self._pack_bytes // 2 and pack.file.runs < PACK_RUNS // 2:
                groups.setdefault(pack.file.columns, []).append(pack)
        chosen: list[OpenPack] = []
        for group in groups.values():
            group.sort(key=lambda pack: (pack.file.size, pack.file.path))
            total = group[0].file.size
            count = 1
            while count < len(group) and group[count].file.size <= _GROWTH * total:
                total += group[count].file.size
                count += 1
            if count > 1:
                chosen += group[:count]
        return chosen

    def _restore_replaced(self, folder: str, packs: FolderPacks) -> None:
        """Remove missing packs from the manifest, and restore those that they replaced.

        A pack is missing if its compactor was suspended for longer than the grace before the commit: another one has
        collected it. Nothing is lost, since replaced packs are kept until their replacement has been read back.
        """
        old = [pack.file for pack in packs.packs if pack.file.path in packs.state.replaced]
        self._commit(folder, packs.state, old, packs.missing, packs.state.alone)

    def _commit(
        self,
        folder: str,
        planned_on: PackState,
        packs: Sequence[PackFile],
        replaces: Sequence[str],
        alone: Mapping[str, Alone],
    ) -> bool:
        """Commit packs, unless another process has committed since this was planned."""
        delta: Delta = {
            "time_us": int(self._clock() * 1e6),
            "packs": [pack.to_json() for pack in packs],
            "replaces": list(replaces),
            "alone": {name: run.to_json() for name, run in sorted(alone.items())},
        }
        state = PackState()
        base = planned_on.version
        return commit(pack_log(self._raw, folder), state, lambda: delta if state.version == base else None) is not None


class _Writing:
    """Open packs, one for each set of columns; each is written to the store when it is full.

    Attributes:
      packs: the written ones.
      alone: runs that stay objects of their own, by name.
    """

    def __init__(self, raw: Store, folder: str, pack_bytes: int) -> None:
        self.packs: list[PackFile] = []
        self.alone: dict[str, Alone] = {}
        self._raw = raw
        self._folder = folder
        self._pack_bytes = pack_bytes
        self._open: dict[str, PackWriter] = {}

    def add(self, name: str, digest: str, table: pa.Table) -> None:
        key = columns_digest(table.schema)
        if key not in self._open:
            if len(self._open) >= _OPEN_PACKS:  # bounds the memory; small packs are merged later
                self._end(max(self._open, key=lambda columns: self._open[columns].size))
            self._open[key] = PackWriter(self._folder, table.schema)
        writer = self._open[key]
        writer.add(name, digest, table)
        if writer.size >= self._pack_bytes or len(writer.runs) >= PACK_RUNS:
            self._end(key)

    def finish(self) -> None:
        """Write the open packs."""
        for key in list(self._open):
            self._end(key)

    def count(self, done: Packing) -> None:
        """Count the written packs, once they are committed."""
        done.packs += len(self.packs)
        done.packs_bytes += sum(pack.size for pack in self.packs)

    def _end(self, key: str) -> None:
        writer = self._open.pop(key)
        try:
            pack, data = writer.finish()
        except IntegrityError as error:
            self.alone.update({run.name: Alone(run.digest, run.rows, str(error)) for run in writer.runs})
            return
        self._raw.create(pack.path, data)  # an existing one has the same bytes, since the name is their digest
        self.packs.append(pack)


def _tables(raw: Store, runs: Sequence[NamedRun]) -> Iterator[tuple[NamedRun, pa.Table | None, str]]:
    """Yield (run, its table, "") or (run, None, fault), read in batches; each table has the run's digest."""

    def read(run: NamedRun) -> tuple[NamedRun, pa.Table | None, str]:
        try:
            table = read_run(raw, RawFile(run.path, run.digest, run.rows, 0))
            actual = telemetry_digest(run.run_id, table)
        except (IntegrityError, TypeError) as error:
            return run, None, str(error)
        return (run, table, "") if actual == run.digest else (run, None, f"has the digest {actual}, not {run.digest}")

    threads = 1 if isinstance(raw, LocalStore) else _THREADS
    with ThreadPoolExecutor(threads) as pool:
        for batch in batches(sorted(runs, key=lambda run: run.name), lambda run: run.rows):
            yield from pool.map(read, batch)


#: Time for which unreferenced objects stay in ``swept/``: a commit cannot be later, since the broker has expired the
#: offsets of an older savepoint.
ASIDE_S = 30 * DAY_S


@dataclass(slots=True)
class Compaction:
    """The result of a compaction.

    Attributes:
      packing: written runs and packs.
      swept: removed objects.
      to_version: the raw manifest's version up to which all runs of past days were examined.
      waiting: folders with runs that are too young.
    """

    packing: Packing = field(default_factory=Packing)
    swept: Collected = field(default_factory=Collected)
    to_version: int = 0
    waiting: int = 0


def compact(
    raw: Store,
    *,
    older_than_s: float = DAY_S,
    grace_s: float = DAY_S,
    aside_s: float = ASIDE_S,
    min_runs: int = MIN_RUNS,
    pack_bytes: int = PACK_BYTES,
    window_runs: int = _WINDOW_RUNS,
    everything: bool = False,
    clock: Callable[[], float] = time.time,
    progress: Progress | None = None,
) -> Compaction:
    """Pack the runs of past days and collect garbage, from the end of the previous compaction.

    Args:
      raw: the raw store.
      older_than_s: age of a folder to pack, from the end of its day (UTC), seconds.
      grace_s: time for which objects are kept after they were written, packed or replaced, seconds.
      aside_s: time for which unreferenced objects stay in ``swept/``, seconds.
      min_runs: runs of a folder with fewer are not packed.
      pack_bytes: approximate largest size of a pack.
      window_runs: number of runs planned together.
      everything: examine the packs of every folder, not only of changed ones, and renew those of older versions.
      clock: epoch seconds.
      progress: called with the progress.

    Raises:
      EngineError: if the store does not answer.
      IntegrityError: if a manifest is inconsistent. The result lists broken runs.
    """
    result = Compaction()
    now_s = clock()
    report = progress or no_progress

    def ripe(folder: str) -> bool:
        return day_ends_s(folder) + older_than_s <= now_s

    compaction = load_cursor(raw)
    packer = Packer(raw, min_runs, pack_bytes, clock, result.packing)
    packed_runs = 0
    for window in windows(raw, compaction, ripe, window_runs):
        total = packed_runs + window.runs
        for folder, named in sorted(window.named.items()):
            if packer.pack(folder, named):
                packer.merge(folder)
            compaction.tidy[folder] = int(clock() * 1e6)
            packed_runs += len(named)
            report("packing runs", packed_runs, total)
        mark_compacted(compaction, window, ripe)
        save_cursor(raw, compaction)
    for folder in pack_folders(raw) if everything else ():
        if packer.merge(folder, renew=True):
            compaction.tidy[folder] = int(clock() * 1e6)
    result.to_version = compaction.cursor
    result.waiting = len(compaction.pending)
    before_s = clock() - grace_s
    listed_objects = 0

    def on_listed(count: int) -> None:
        nonlocal listed_objects
        listed_objects += count
        report("collecting garbage", listed_objects, None)

    collector = GarbageCollector(raw, compaction, before_s, result.swept)
    collector.collect_swept(clock() - max(aside_s, grace_s))  # before anything is moved there
    collector.collect_runs(ripe, on_listed)
    collector.collect_packs(everything=everything)
    for prefix in (RUNS, SWEPT, *([PACKS] if everything else [])):
        raw.delete_leftovers(prefix, before_s)
    save_cursor(raw, compaction)
    return result
