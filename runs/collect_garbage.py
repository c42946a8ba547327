"""Garbage collection in the raw store: objects of packed runs, replaced packs, and unreferenced objects.

A manifest may still reference an object later: a worker reuses an existing object, and a suspended process or a job
from an old savepoint commits late. So unreferenced objects are kept in ``swept/`` for a month, where readers find them,
and are restored when a manifest references them. No object that was written within the *grace* is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

from ciml.errors import IntegrityError
from ciml.manifest.log import ManifestLog
from ciml.progress import Progress
from ciml.runs.outputs import TEXTS, day_of, split_output, templates_path, unnamed_outputs
from ciml.runs.pack_index import PACKS, RUNS, SWEPT, PackState, named_runs, pack_state, run_of, split_pack, split_path
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
      outputs: removed texts of outputs, expired or unreferenced.
      held: packs that would be removed, but are kept for readers of the table of telemetry.
      faults: packs that differ from their manifest, and damaged manifests of packs, a line each. The objects of their
        folders are kept.
    """

    objects: int = 0
    objects_bytes: int = 0
    unnamed: int = 0
    gone: int = 0
    restored: int = 0
    packs: int = 0
    held: int = 0
    outputs: int = 0
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
                for entry in folder.unneeded:
                    self._remove_swept(entry)
                for entry in folder.referenced:
                    self._restore(entry)
                for entry in folder.unreferenced:
                    if entry.modified_s <= forgotten_s:
                        self._remove_swept(entry)

    def _restore(self, entry: Entry) -> None:
        path = entry.path.removeprefix(f"{SWEPT}/")
        try:
            self._raw.create(path, self._raw.read(entry.path))
        except FileNotFoundError:
            return  # restored by another process
        self.collected.restored += 1
        self._remove_swept(entry)

    def _remove_swept(self, entry: Entry) -> None:
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
        self._each(self._raw.delete, folder.unneeded)
        self.collected.objects += len(folder.unneeded)
        self.collected.objects_bytes += sum(entry.size for entry in folder.unneeded)
        self._each(self._move_aside, folder.unreferenced)
        self.collected.unnamed += len(folder.unreferenced)

    def _move_aside(self, path: str) -> None:
        try:
            data = self._raw.read(path)
        except FileNotFoundError:
            return  # removed by another process
        self._raw.replace(f"{SWEPT}/{path}", data)  # its time there begins now, even if an older copy exists
        self._raw.delete(path)

    def _each(self, work: Callable[[str], None], entries: list[Entry]) -> None:
        with ThreadPoolExecutor(default_threads(self._raw)) as pool:
            list(pool.map(work, [entry.path for entry in entries]))  # raises the first error

    def _listed(self, prefix: str) -> Iterator[list[Entry]]:
        """Yield the objects under a prefix, at most `_CHUNK` at a time."""
        entries = self._raw.entries(prefix)
        while chunk := list(islice(entries, _CHUNK)):
            yield chunk

    def _folders(self, chunk: Iterable[Entry], is_due: Callable[[str], bool] | None = None) -> Iterator[_Folder]:
        """Yield the folders of runs in a chunk of a listing that may be collected; with ``is_due`` only due ones.

        Nothing of a folder with faults may be: its objects may be the last copies of runs in a damaged pack.
        """
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
            for name, entries in by_folder.items():
                examined = _examine(self._raw, name, entries, recent_names.get(name, frozenset()), self._before_us)
                if not examined.faults:
                    yield examined
                    continue
                self._add_faults(*examined.faults)
                if examined.lacks_pack:
                    self.incomplete_folders.add(name)

    def _add_faults(self, *faults: str) -> None:
        """Add faults to the result, each once: several steps examine the same folder."""
        self.collected.faults += [fault for fault in faults if fault not in self.collected.faults]

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
            # Listed before the manifest is read, so that every pack of the listing that is present is in its state.
            entries = [entry for entry in self._raw.entries(f"{PACKS}/{folder}") if split_pack(entry.path) is not None]
            try:
                state = pack_state(self._raw, folder)
            except IntegrityError as error:
                self._add_faults(str(error))
                continue
            old = [entry for entry in entries if entry.path not in state.packs]
            removable = [entry for entry in old if self._is_removable(entry, state)]
            if removable and self._find_faults(folder, state):
                continue  # the replaced packs are kept until their replacement has been read back
            unread = [entry for entry in removable if not table.may_be_read(entry.path)]
            for entry in unread:
                self._raw.delete(entry.path)
            self.collected.packs += len(unread)
            self.collected.held += len(removable) - len(unread)
            if len(unread) == len(old):
                self.clean_folders.append(folder)
        self._add_faults(*table.faults)

    def collect_outputs(self, before: str, forgotten_s: float, *, everything: bool = False) -> None:
        """Remove the texts of outputs of earlier days, and outputs of runs that are not stored.

        The second needs the packs of a folder, so it is done once for each: when its texts expire. With ``everything``
        all rows are read instead, so that what is left of other outputs of a stored run is removed, too.

        Args:
          before: texts of earlier days are removed, as YYYY-MM-DD; "" keeps all.
          forgotten_s: outputs of unknown runs are removed if they were written before this time, epoch seconds.
          everything: look for outputs that no row names in all folders.
        """
        if everything:
            unnamed = [entry for entry in unnamed_outputs(self._raw) if entry.modified_s <= forgotten_s]
            self._each(self._raw.delete, unnamed)
            self.collected.outputs += sum(entry.path.startswith(f"{TEXTS}/") for entry in unnamed)
        for chunk in self._listed(TEXTS):
            by_folder: dict[str, list[tuple[Entry, str]]] = {}
            for entry in chunk:
                parts = split_output(entry.path)
                if parts is not None and entry.modified_s <= self._before_s:
                    by_folder.setdefault(parts[0], []).append((entry, parts[1]))
            for folder, outputs in by_folder.items():
                if day_of(folder) >= before:
                    continue
                stored_runs = self._stored_runs(folder)
                unknown = [
                    entry
                    for entry, run_id in outputs
                    if stored_runs is not None and run_id not in stored_runs and entry.modified_s <= forgotten_s
                ]
                self._each(lambda path: self._raw.delete(templates_path(path)), unknown)
                self._each(self._raw.delete, [entry for entry, _ in outputs])
                self.collected.outputs += len(outputs)

    def _stored_runs(self, folder: str) -> set[str] | None:
        """Return the ids of the runs of a folder; None if they are not known for certain."""
        try:
            packs = load_packs(self._raw, folder)
        except IntegrityError:  # reported by `collect_packs`
            return None
        if folder in self._pending or packs.missing or packs.broken:
            return None
        names = {*packs.runs, *packs.state.alone, *self._recent_names().get(folder, ())}
        return {run_of(name) for name in names}

    def _is_removable(self, entry: Entry, state: PackState) -> bool:
        """Return whether an old pack was written and, if others replaced it, replaced before the grace."""
        is_recent = entry.path in state.replaced and state.since_us[entry.path] > self._before_us
        return entry.modified_s <= self._before_s and not is_recent

    def _find_faults(self, folder: str, state: PackState) -> bool:
        """Read the present packs of a folder back; return whether one is damaged or missing."""
        faults = [fault for file in state.packs.values() if (fault := prove_pack(self._raw, file))]
        self._add_faults(*faults)
        if faults and not all(self._raw.exists(path) for path in state.packs):
            self.incomplete_folders.add(folder)
        return bool(faults)


def _file_name(path: str) -> str:
    return path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder of runs: its objects that are older than the grace, by the references to them.

    Objects of runs whose pack is damaged or younger than the grace are in no list.

    Attributes:
      name: of the folder.
      unneeded: objects of runs in an intact pack that is older than the grace.
      referenced: objects of runs that are in no pack, but in a manifest.
      unreferenced: objects that no manifest names.
      faults: its missing and damaged packs, or the damage of their manifest, a line each.
      lacks_pack: whether a pack is missing.
    """

    name: str
    unneeded: list[Entry]
    referenced: list[Entry]
    unreferenced: list[Entry]
    faults: list[str]
    lacks_pack: bool


def _examine(raw: Store, name: str, entries: Iterable[Entry], recent: AbstractSet[str], before_us: int) -> _Folder:
    """Sort the objects of a folder. The packs of their runs are read back first.

    Args:
      raw: the raw store.
      name: of the folder.
      entries: its objects that are older than the grace.
      recent: names of its runs that the raw manifest has after the packed version.
      before_us: the time before which a pack is older than the grace, epoch microseconds.
    """
    try:
        packs = load_packs(raw, name)
    except IntegrityError as error:  # of the manifest of its packs
        return _Folder(name, [], [], [], [str(error)], lacks_pack=False)
    state = packs.state
    names = {entry: _file_name(entry.path) for entry in entries}
    pack_of = {entry: packs.runs[run].pack.file for entry, run in names.items() if run in packs.runs}
    files = {file.path: file for file in pack_of.values()}
    old = [file for path, file in files.items() if path in state.packs and state.since_us[path] <= before_us]
    proofs = {file.path: prove_pack(raw, file) for file in old}
    intact = {path for path, fault in proofs.items() if not fault}
    referenced_names = state.alone.keys() | recent
    unpacked = [entry for entry in names if entry not in pack_of]
    missing = [f"{raw.url(path)} is in its manifest but does not exist" for path in packs.missing]
    return _Folder(
        name,
        unneeded=[entry for entry, file in pack_of.items() if file.path in intact],
        referenced=[entry for entry in unpacked if names[entry] in referenced_names],
        unreferenced=[entry for entry in unpacked if names[entry] not in referenced_names],
        faults=[*missing, *packs.broken, *filter(None, proofs.values())],
        lacks_pack=bool(packs.missing),
    )


class _TelemetryTable:
    """The table of telemetry, as far as it holds packs. Its log is read when the first pack would be removed.

    Attributes:
      faults: why the log cannot be read; empty before it was read.
    """

    def __init__(self, raw: Store, before_s: float) -> None:
        self.faults: list[str] = []
        self._log = DeltaLog(raw.child(PACKS))
        self._before_ms = before_s * 1000

    def may_be_read(self, path: str) -> bool:
        """Return whether other engines may still read a pack: any of them while the log cannot be read."""
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
