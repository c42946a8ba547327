"""Garbage collection in the raw store: objects of packed runs, replaced packs, and unreferenced objects.

A manifest may still reference an object later: a worker reuses an existing object, and a suspended process or a job
from an old savepoint commits late. So unreferenced objects are kept in ``swept/`` for a month, where readers find them,
and are restored when a manifest references them. No object that was written within the *grace* is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

from ciml.errors import IntegrityError
from ciml.manifest.log import ManifestLog
from ciml.progress import Progress
from ciml.runs.pack_index import PACKS, RUNS, SWEPT, PackState, named_runs, pack_state, split_pack, split_path
from ciml.runs.packs import prove_pack
from ciml.runs.reader import default_threads, load_packs
from ciml.runs.tables.delta_log import DeltaLog, DeltaState
from ciml.storage import Entry, Store

_CHUNK = 50_000


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


def pack_folders(raw: Store) -> list[str]:
    """Return the folders that have packs, sorted."""
    return sorted({parts[0] for entry in raw.entries(PACKS) if (parts := split_pack(entry.path)) is not None})


class GarbageCollector:
    """Removes the objects of a raw store that nothing needs any more.

    Args:
      raw: the raw store.
      packed_version: the raw manifest's version up to which runs were packed. Later runs are read from the manifest.
      pending: folders that may hold runs that are neither packed nor alone; their objects are kept.
      before_s: objects that were written, committed or moved later are kept, epoch seconds.
      report: called with the progress.

    Attributes:
      collected: the result so far.
      incomplete_folders: folders that lack a pack, which packing repairs.
      clean_folders: folders whose unneeded packs are all removed.
    """

    def __init__(
        self, raw: Store, packed_version: int, pending: Container[str], before_s: float, report: Progress
    ) -> None:
        self.collected = Collected()
        self.incomplete_folders: set[str] = set()
        self.clean_folders: list[str] = []
        self._raw = raw
        self._packed_version = packed_version
        self._pending = pending
        self._before_s = before_s
        self._before_us = int(before_s * 1e6)
        self._report = report
        self._listed_objects = 0

    def collect_swept(self, forgotten_s: float) -> None:
        """Restore referenced objects from ``swept/``, and remove old unreferenced ones.

        Args:
          forgotten_s: unreferenced objects moved there before this time are removed, epoch seconds.
        """
        for chunk in self._listed(SWEPT):
            for folder in self._folders(chunk):
                for entry in folder.entries:
                    self._collect_swept_object(entry, folder, forgotten_s)

    def _collect_swept_object(self, entry: Entry, folder: _Folder, forgotten_s: float) -> None:
        path = entry.path.removeprefix(f"{SWEPT}/")
        name = _file_name(path)
        if folder.is_packed(name):
            if not folder.is_safe(name):
                return
        elif folder.is_named(name):
            try:
                self._raw.create(path, self._raw.read(entry.path))
            except FileNotFoundError:
                return  # restored by another process
            self.collected.restored += 1
        elif entry.modified_s > forgotten_s:
            return
        self._raw.delete(entry.path)
        self.collected.gone += 1

    def collect_runs(self, is_due: Callable[[str], bool]) -> None:
        """Remove the objects of packed runs, and move unreferenced ones to ``swept/``.

        Args:
          is_due: returns whether a folder's day is over.
        """
        for chunk in self._listed(RUNS):
            self._listed_objects += len(chunk)
            self._report("collecting garbage", self._listed_objects, None)
            for folder in self._folders(chunk, is_due):
                self._collect_folder(folder)

    def _collect_folder(self, folder: _Folder) -> None:
        packed: list[Entry] = []
        unnamed: list[Entry] = []
        for entry in folder.entries:
            name = _file_name(entry.path)
            if folder.is_packed(name):
                if folder.is_safe(name):
                    packed.append(entry)
            elif not folder.is_named(name):
                unnamed.append(entry)
        if faults := folder.faults():
            self.collected.faults += faults
            if folder.packs.missing:
                self.incomplete_folders.add(folder.name)
            return
        self._each(self._raw.delete, packed)
        self.collected.objects += len(packed)
        self.collected.objects_bytes += sum(entry.size for entry in packed)
        self._each(self._move_aside, unnamed)
        self.collected.unnamed += len(unnamed)

    def _move_aside(self, path: str) -> None:
        try:
            data = self._raw.read(path)
        except FileNotFoundError:
            return  # removed by another process
        self._raw.replace(f"{SWEPT}/{path}", data)  # its time there begins now, even if an older copy exists
        self._raw.delete(path)

    def _each(self, work: Callable[[str], None], entries: list[Entry]) -> None:
        with ThreadPoolExecutor(default_threads(self._raw)) as pool:
            for _ in pool.map(work, [entry.path for entry in entries]):
                pass

    def _listed(self, prefix: str) -> Iterator[list[Entry]]:
        """Yield the objects under a prefix, at most `_CHUNK` at a time."""
        entries = self._raw.entries(prefix)
        while chunk := list(islice(entries, _CHUNK)):
            yield chunk

    def _folders(self, chunk: Iterable[Entry], is_due: Callable[[str], bool] | None = None) -> Iterator[_Folder]:
        """Yield the folders of runs in a chunk of a listing that may be collected; with ``is_due`` only due ones."""
        by_folder: dict[str, list[Entry]] = {}
        for entry in chunk:
            parts = split_path(entry.path.removeprefix(f"{SWEPT}/"))
            if parts is None or entry.modified_s > self._before_s:
                continue
            folder, _ = parts
            if folder in self._pending or folder in self.incomplete_folders:
                continue
            if is_due is None or is_due(folder):
                by_folder.setdefault(folder, []).append(entry)
        if by_folder:
            # Read after the listing, so that later commits are included.
            recent_names = self._recent_names()
            for folder, entries in by_folder.items():
                yield _Folder(self._raw, folder, entries, recent_names.get(folder, ()), self._before_us)

    def _recent_names(self) -> dict[str, set[str]]:
        """Return the file names of the runs after the packed version, by folder."""
        names: dict[str, set[str]] = {}
        for _, delta in ManifestLog(self._raw).since(self._packed_version):
            for run in named_runs(delta):
                names.setdefault(run.folder, set()).add(run.name)
        return names

    def collect_packs(self, folders: Iterable[str]) -> None:
        """Remove replaced and unreferenced packs of folders.

        A pack that is in the table of telemetry, or left it after ``before_s``, is kept: other engines may be reading
        it.
        """
        table = _TelemetryTable(self._raw, self._before_s)
        for folder in folders:
            entries = list(self._raw.entries(f"{PACKS}/{folder}"))
            state = pack_state(self._raw, folder)
            old = [entry for entry in entries if split_pack(entry.path) is not None and entry.path not in state.packs]
            recent = {path for path in state.replaced if state.since_us[path] > self._before_us}
            removable = [entry for entry in old if entry.modified_s <= self._before_s and entry.path not in recent]
            if removable and self._find_faults(folder, state):
                continue  # the replaced packs are kept until their replacement has been read back
            unread = [entry for entry in removable if not table.holds(entry.path)]
            for entry in unread:
                self._raw.delete(entry.path)
            self.collected.packs += len(unread)
            self.collected.held += len(removable) - len(unread)
            if len(unread) == len(old):
                self.clean_folders.append(folder)
        self.collected.faults += table.faults

    def _find_faults(self, folder: str, state: PackState) -> bool:
        """Read the present packs of a folder back; return whether one is damaged or missing."""
        faults = [fault for file in state.packs.values() if (fault := prove_pack(self._raw, file))]
        self.collected.faults += faults
        if faults and not all(self._raw.exists(path) for path in state.packs):
            self.incomplete_folders.add(folder)
        return bool(faults)


def _file_name(path: str) -> str:
    return path.rpartition("/")[2]


class _Folder:
    """A folder of runs: its objects, and the references to them.

    Args:
      raw: the raw store.
      name: of the folder.
      entries: its objects that are older than the grace.
      recent: names of its runs that the raw manifest has after the packed version.
      before_us: the time before which a pack is older than the grace, epoch microseconds.
    """

    def __init__(self, raw: Store, name: str, entries: list[Entry], recent: Container[str], before_us: int) -> None:
        self.name = name
        self.entries = entries
        self.packs = load_packs(raw, name)
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
        file = self.packs.runs[name].pack.file
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


class _TelemetryTable:
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
