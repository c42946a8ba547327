"""Garbage collection in the raw store: objects of packed runs, replaced packs, and unreferenced objects.

A manifest may still reference an object later: a worker reuses an existing object, and a suspended process or a job
from an old savepoint commits late. So unreferenced objects stay for a month under ``swept/``, where readers find them
too, and are restored when they are referenced.

The progress of compaction in a raw store, and the raw objects that the raw manifest names after it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import msgspec

from ciml.digest import canonical_json, sha256_json
from ciml.errors import IntegrityError
from ciml.manifest.log import Delta, ManifestLog
from ciml.runs.pack_index import PACKS, RUNS, SWEPT, NamedRun, named_runs, pack_state, split_pack, split_path
from ciml.runs.packs import prove_pack
from ciml.runs.reader import load_packs
from ciml.runs.tables.delta_log import DeltaLog, DeltaState
from ciml.storage import Entry, LocalStore, Store
from ciml.storage.json_files import read_object, seal

CURSOR_PATH = f"{PACKS}/compaction.json"

#: Named runs by folder, then by file name.
Named = dict[str, dict[str, NamedRun]]
_CHUNK = 50_000
_THREADS = 16


class CompactionCursor(msgspec.Struct):
    """The progress that one compaction leaves for the next.

    It is a starting point, not a record. Every version that was ever written is valid, so the last writer may win, and
    without it everything is examined again.

    Attributes:
      cursor: each raw object in the raw manifest up to this version is in a pack, or is "alone" in its folder's pack
        manifest, or its folder is pending.
      digest: of the delta at the cursor. Another digest there means that the cursor belongs to another manifest.
      pending: folders that may hold runs neither packed nor alone, and the first version with one.
      tidy: folders with writes that may have left objects to remove, and the time, epoch microseconds.
    """

    cursor: int = 0
    digest: str = ""
    pending: dict[str, int] = msgspec.field(default_factory=dict)
    tidy: dict[str, int] = msgspec.field(default_factory=dict)


def load_cursor(raw: Store) -> CompactionCursor:
    """Return the cursor of a raw store; a new one where there is none, or where it belongs to another manifest."""
    try:
        compaction = msgspec.convert(read_object(raw.read(CURSOR_PATH), raw.url(CURSOR_PATH)), CompactionCursor)
    except (FileNotFoundError, IntegrityError, msgspec.ValidationError):
        return CompactionCursor()
    if compaction.cursor:
        version, delta = next(ManifestLog(raw).since(compaction.cursor - 1), (0, {}))
        if version != compaction.cursor or sha256_json(delta) != compaction.digest:
            return CompactionCursor(tidy=compaction.tidy)
    return compaction


def save_cursor(raw: Store, compaction: CompactionCursor) -> None:
    raw.replace(CURSOR_PATH, seal(canonical_json(msgspec.to_builtins(compaction))))


@dataclass(slots=True)
class Window:
    """The raw objects in ripe folders, from one range of the raw manifest.

    Attributes:
      named: the objects to pack.
      waiting: folders that are not ripe, and the first version with an object there.
      to_version: the last version of the range.
      digest: the digest of that delta.
      runs: number of runs to pack.
    """

    named: Named = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    to_version: int = 0
    digest: str = ""
    runs: int = 0


def windows(raw: Store, compaction: CompactionCursor, ripe: Callable[[str], bool], size: int) -> Iterator[Window]:
    """Yield the runs to pack, range by range: those after the cursor, and pending ones that are ripe by now.

    Args:
      raw: the raw store.
      compaction: the cursor at the start; it may change between windows.
      ripe: returns whether a folder is to be packed now.
      size: number of runs; a window ends with the delta that reaches it.
    """
    cursor = compaction.cursor
    due = {folder: version for folder, version in compaction.pending.items() if ripe(folder)}
    window = Window()
    delta = Delta()
    ripeness: dict[str, bool] = {}
    for version, delta in ManifestLog(raw).since(min([cursor + 1, *due.values()]) - 1):
        for run in named_runs(delta):
            folder = run.folder
            if version <= cursor:
                if version < due.get(folder, cursor + 1):
                    continue
            elif not ripeness.setdefault(folder, ripe(folder)):
                window.waiting.setdefault(folder, version)
                continue
            window.named.setdefault(folder, {})[run.name] = run
            window.runs += 1
        window.to_version = version
        if window.runs >= size:
            window.digest = sha256_json(delta)
            yield window
            window = Window()
    if window.to_version:
        window.digest = sha256_json(delta)
        yield window


def mark_compacted(compaction: CompactionCursor, window: Window, ripe: Callable[[str], bool]) -> None:
    """Record in the cursor that the runs of a window are packed."""
    for folder in [folder for folder in compaction.pending if ripe(folder)]:
        if window.to_version >= compaction.cursor:
            del compaction.pending[folder]
        else:
            compaction.pending[folder] = max(compaction.pending[folder], window.to_version + 1)
    if window.to_version > compaction.cursor:
        compaction.cursor = window.to_version
        compaction.digest = window.digest
    for folder, version in window.waiting.items():
        compaction.pending.setdefault(folder, version)


@dataclass(slots=True)
class Collected:
    """The result of a garbage collection.

    Attributes:
      objects, objects_bytes: removed objects of packed runs.
      unnamed: unreferenced objects moved to ``swept/``.
      gone: objects removed from ``swept/``.
      restored: referenced objects moved back from ``swept/``.
      packs: removed packs, replaced or unreferenced.
      held: packs that would be removed, but are kept for readers of the table of telemetry.
      faults: packs that differ from their manifest, a line each. Objects that they replace are kept.
    """

    objects: int = 0
    objects_bytes: int = 0
    unnamed: int = 0
    gone: int = 0
    restored: int = 0
    packs: int = 0
    held: int = 0
    faults: list[str] = field(default_factory=list)


class _References:
    """The references to the raw objects of a folder. Read after their listing, so that later commits are included.

    Args:
      raw: the raw store.
      folder: of the objects.
      recent: names that the raw manifest has there after the cursor of compaction.
      before_us: the time before which a pack is older than the grace, epoch microseconds.
    """

    def __init__(self, raw: Store, folder: str, recent: Container[str], before_us: int) -> None:
        self.packs = load_packs(raw, folder)
        self._raw = raw
        self._recent = recent
        self._before_us = before_us
        self._faults: dict[str, str] = {}

    def is_packed(self, name: str) -> bool:
        return name in self.packs.runs

    def is_named(self, name: str) -> bool:
        """Return whether a manifest names a run that is in no pack."""
        return name in self.packs.state.alone or name in self._recent

    def is_safe(self, name: str) -> bool:
        """Return whether the pack of a run is older than the grace and intact."""
        file = self.packs.runs[name][0].file
        state = self.packs.state
        if file.path not in state.packs or state.since_us[file.path] > self._before_us:
            return False
        if file.path not in self._faults:
            self._faults[file.path] = prove_pack(self._raw, file)
        return not self._faults[file.path]

    def faults(self) -> list[str]:
        """Return the faults of the packs that were examined, a line each."""
        missing = [f"{self._raw.url(path)} is in its manifest but does not exist" for path in self.packs.missing]
        return [*missing, *self.packs.broken, *filter(None, self._faults.values())]


class GarbageCollector:
    """Removes the objects of a raw store that nothing needs any more.

    Args:
      raw: the raw store.
      compaction: the progress of compaction. The objects of pending folders stay; a folder that lacks a pack becomes
        pending.
      before_s: objects that were written, committed or moved later are kept, epoch seconds.
      done: the counts, updated in place.
    """

    def __init__(self, raw: Store, compaction: CompactionCursor, before_s: float, done: Collected) -> None:
        self._raw = raw
        self._compaction = compaction
        self._before_s = before_s
        self._before_us = int(before_s * 1e6)
        self._done = done

    def collect_runs(self, ripe: Callable[[str], bool], progress: Callable[[int], None]) -> None:
        """Remove the objects of packed runs, and move unreferenced ones to ``swept/``.

        Args:
          ripe: returns whether a folder's day is over.
          progress: called with the number of objects listed since the last call.
        """
        for folder, references, entries in self._listed(RUNS, ripe, progress):
            packed: list[Entry] = []
            unnamed: list[Entry] = []
            for entry in entries:
                name = entry.path.rpartition("/")[2]
                if references.is_packed(name):
                    if references.is_safe(name):
                        packed.append(entry)
                elif not references.is_named(name):
                    unnamed.append(entry)
            if faults := references.faults():
                self._done.faults += faults
                if references.packs.missing:
                    self._compaction.pending[folder] = 1  # pack all of its runs again
                continue
            self._each(self._raw.delete, packed)
            self._done.objects += len(packed)
            self._done.objects_bytes += sum(entry.size for entry in packed)
            self._each(self._move_aside, unnamed)
            self._done.unnamed += len(unnamed)

    def collect_swept(self, forgotten_s: float) -> None:
        """Restore referenced objects from ``swept/``, and remove old unreferenced ones.

        Args:
          forgotten_s: unreferenced objects moved there before this time are removed, epoch seconds.
        """
        for _, references, entries in self._listed(SWEPT):
            for entry in entries:
                path = entry.path.removeprefix(f"{SWEPT}/")
                name = path.rpartition("/")[2]
                if references.is_packed(name):
                    if not references.is_safe(name):
                        continue
                elif references.is_named(name):
                    try:
                        self._raw.create(path, self._raw.read(entry.path))
                    except FileNotFoundError:
                        continue  # restored by another process
                    self._done.restored += 1
                elif entry.modified_s > forgotten_s:
                    continue
                self._raw.delete(entry.path)
                self._done.gone += 1

    def _listed(
        self, prefix: str, take: Callable[[str], bool] | None = None, progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[str, _References, list[Entry]]]:
        """Yield the folders below ``prefix`` with their references and those objects of runs that are old enough."""
        listed = self._raw.entries(prefix)
        while chunk := list(islice(listed, _CHUNK)):
            if progress is not None:
                progress(len(chunk))
            folders: dict[str, list[Entry]] = {}
            for entry in chunk:
                parts = split_path(entry.path.removeprefix(f"{SWEPT}/"))
                if parts is None or entry.modified_s > self._before_s or parts[0] in self._compaction.pending:
                    continue
                if take is None or take(parts[0]):
                    folders.setdefault(parts[0], []).append(entry)
            recent: dict[str, set[str]] = {}
            for _, delta in ManifestLog(self._raw).since(self._compaction.cursor) if folders else ():
                for run in named_runs(delta):
                    recent.setdefault(run.folder, set()).add(run.name)
            for folder, entries in folders.items():
                yield folder, _References(self._raw, folder, recent.get(folder, ()), self._before_us), entries

    def _move_aside(self, path: str) -> None:
        try:
            data = self._raw.read(path)
        except FileNotFoundError:
            return  # removed by another process
        self._raw.replace(f"{SWEPT}/{path}", data)  # its time there begins now, even if an older copy exists
        self._raw.delete(path)

    def _each(self, work: Callable[[str], None], entries: list[Entry]) -> None:
        with ThreadPoolExecutor(1 if isinstance(self._raw, LocalStore) else _THREADS) as pool:
            for _ in pool.map(work, [entry.path for entry in entries]):
                pass

    def collect_packs(self, *, everything: bool = False) -> None:
        """Remove replaced and unreferenced packs.

        A pack that is in the table of telemetry, or left it after ``before_s``, is kept: other engines may be reading
        it.

        Args:
          everything: examine all folders, not only those that the compaction names.
        """
        raw = self._raw
        table = _Table(raw, self._before_s)
        tidy = self._compaction.tidy
        ripe_folders = [folder for folder, since_us in tidy.items() if since_us <= self._before_us]
        for folder in pack_folders(raw) if everything else ripe_folders:
            entries = list(raw.entries(f"{PACKS}/{folder}"))
            state = pack_state(raw, folder)
            old = [entry for entry in entries if split_pack(entry.path) is not None and entry.path not in state.packs]
            ripe = [
                entry
                for entry in old
                if entry.modified_s <= self._before_s
                and (entry.path not in state.replaced or state.since_us[entry.path] <= self._before_us)
            ]
            # The replaced packs are kept until their replacement has been read back.
            if ripe and (faults := [fault for file in state.packs.values() if (fault := prove_pack(raw, file))]):
                self._done.faults += faults
                if not all(raw.exists(path) for path in state.packs):
                    self._compaction.pending[folder] = 1  # packing repairs it
                continue
            unread = [entry for entry in ripe if not table.holds(entry.path)]
            for entry in unread:
                raw.delete(entry.path)
            self._done.packs += len(unread)
            self._done.held += len(ripe) - len(unread)
            if len(unread) == len(old):
                tidy.pop(folder, None)
        self._done.faults += table.faults


def pack_folders(raw: Store) -> list[str]:
    """Return the folders that have packs, sorted."""
    return sorted({parts[0] for entry in raw.entries(PACKS) if (parts := split_pack(entry.path)) is not None})


class _Table:
    """The table of telemetry, as far as it holds packs. Its log is read when the first pack would be removed."""

    def __init__(self, raw: Store, before_s: float) -> None:
        self.faults: list[str] = []
        self._log = DeltaLog(raw.child(PACKS))
        self._before_ms = before_s * 1000

    def holds(self, path: str) -> bool:
        """Return whether readers may still read a pack; all are held while the log cannot be read."""
        name = path.removeprefix(f"{PACKS}/")
        state = self._state
        return state is None or name in state.files or state.removed.get(name, 0) > self._before_ms

    @cached_property
    def _state(self) -> DeltaState | None:
        try:
            return self._log.read()
        except IntegrityError as error:
            self.faults.append(f"replaced packs are kept: {error}")
            return None
