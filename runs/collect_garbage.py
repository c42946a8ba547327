"""Garbage collection in the raw store: objects of packed runs, replaced packs, and unreferenced objects.

A manifest may still reference an object later: a worker reuses an existing object, and a suspended process or a job
from an old savepoint commits late. So unreferenced objects stay for a month under ``swept/``, where readers find them
too, and are restored when they are referenced.

The progress of compaction in a raw store, and the raw objects that the raw manifest names after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

from ciml.digest import canonical_json, sha256_json
from ciml.errors import IntegrityError
from ciml.manifest.log import Delta, ManifestLog
from ciml.runs.pack_index import PACKS, RUNS, SWEPT, NamedRun, named_runs, pack_state, split_pack, split_path
from ciml.runs.packs import prove_pack
from ciml.runs.reader import FolderPacks, load_packs
from ciml.runs.tables.delta_log import DeltaLog, DeltaState
from ciml.storage import Entry, LocalStore, Store
from ciml.storage.json_files import read_object, seal

CURSOR_PATH = f"{PACKS}/compaction.json"

#: Named runs by folder, then by file name.
Named = dict[str, dict[str, NamedRun]]


@dataclass(slots=True)
class CompactionCursor:
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
    pending: dict[str, int] = field(default_factory=dict)
    tidy: dict[str, int] = field(default_factory=dict)


def load_cursor(raw: Store) -> CompactionCursor:
    """Return the cursor of a raw store; a new one where there is none, or where it belongs to another manifest."""
    try:
        value = read_object(raw.read(CURSOR_PATH), raw.url(CURSOR_PATH))
        compaction = CompactionCursor(value["cursor"], value["digest"], value["pending"], value["tidy"])
    except (FileNotFoundError, IntegrityError, LookupError, TypeError):
        return CompactionCursor()
    if compaction.cursor:
        version, delta = next(ManifestLog(raw).since(compaction.cursor - 1), (0, {}))
        if version != compaction.cursor or sha256_json(delta) != compaction.digest:
            return CompactionCursor(tidy=compaction.tidy)
    return compaction


def save_cursor(raw: Store, compaction: CompactionCursor) -> None:
    raw.replace(
        CURSOR_PATH,
        seal(
            canonical_json(
                {
                    "cursor": compaction.cursor,
                    "digest": compaction.digest,
                    "pending": compaction.pending,
                    "tidy": compaction.tidy,
                }
            )
        ),
    )


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


def names_since(raw: Store, version: int) -> dict[str, set[str]]:
    """Return the file names, by folder, of all raw objects in the raw manifest after a version."""
    names: dict[str, set[str]] = {}
    for _, delta in ManifestLog(raw).since(version):
        for run in named_runs(delta):
            names.setdefault(run.folder, set()).add(run.name)
    return names


_CHUNK = 50_000
_THREADS = 16


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


class _Names:
    """The references to the objects of one listing. Read after the listing, so that later commits are included."""

    def __init__(self, raw: Store, compaction: CompactionCursor, before_us: int) -> None:
        self._raw = raw
        self._since = names_since(raw, compaction.cursor)
        self._before_us = before_us
        self._packs: dict[str, FolderPacks] = {}
        self._proved: dict[str, str] = {}

    def load(self, folder: str) -> None:
        """Load a folder's packs, in place of the previous folder's."""
        self._packs = {folder: load_packs(self._raw, folder)}

    def packed(self, folder: str, name: str) -> bool:
        return self._packs[folder].find(name) is not None

    def named_alone(self, folder: str, name: str) -> bool:
        return name in self._packs[folder].state.alone or name in self._since.get(folder, ())

    def safe(self, folder: str, name: str) -> bool:
        """Return whether the pack of a run is older than the grace and intact."""
        packed = self._packs[folder].find(name)
        if packed is None:
            return False
        file = packed[0].file
        state = self._packs[folder].state
        if file.path not in state.packs or state.since_us[file.path] > self._before_us:
            return False
        if file.path not in self._proved:
            self._proved[file.path] = prove_pack(self._raw, file)
        return not self._proved[file.path]

    def lacks_packs(self, folder: str) -> bool:
        return bool(self._packs[folder].missing)

    def faults(self, folder: str) -> list[str]:
        packs = self._packs[folder]
        lines = [f"{self._raw.url(path)} is in its manifest but does not exist" for path in packs.missing]
        lines += packs.broken
        return lines + [self._proved[pack.file.path] for pack in packs.packs if self._proved.get(pack.file.path)]


def collect_runs(
    raw: Store,
    compaction: CompactionCursor,
    ripe: Callable[[str], bool],
    before_s: float,
    done: Collected,
    progress: Callable[[int], None],
) -> None:
    """Remove the objects of packed runs, and move unreferenced ones to ``swept/``.

    Args:
      raw: the raw store.
      compaction: the progress of compaction. Pending folders are skipped; a folder that lacks a pack becomes pending.
      ripe: returns whether a folder's day is over.
      before_s: objects written or committed later are kept, epoch seconds.
      done: the counts, updated in place.
      progress: called with the number of objects listed since the last call.
    """
    before_us = int(before_s * 1e6)
    for folders in _listed(
        raw, RUNS, lambda folder: folder not in compaction.pending and ripe(folder), before_s, progress
    ):
        names = _Names(raw, compaction, before_us)
        for folder, entries in folders.items():
            names.load(folder)
            packed: list[Entry] = []
            unnamed: list[Entry] = []
            for entry in entries:
                name = entry.path.rpartition("/")[2]
                if names.packed(folder, name):
                    if names.safe(folder, name):
                        packed.append(entry)
                elif not names.named_alone(folder, name):
                    unnamed.append(entry)
            faults = names.faults(folder)
            if faults:
                done.faults += faults
                if names.lacks_packs(folder):
                    compaction.pending[folder] = 1  # pack all of its runs again
                continue
            _each(raw, lambda entry: raw.delete(entry.path), packed)
            done.objects += len(packed)
            done.objects_bytes += sum(entry.size for entry in packed)
            _each(raw, lambda entry: _move_aside(raw, entry.path), unnamed)
            done.unnamed += len(unnamed)


def _listed(
    raw: Store, prefix: str, take: Callable[[str], bool], before_s: float, progress: Callable[[int], None]
) -> Iterator[dict[str, list[Entry]]]:
    """Yield the objects of runs below ``prefix`` that are old enough, by folder, in chunks."""
    entries = raw.entries(prefix)
    while chunk := list(islice(entries, _CHUNK)):
        progress(len(chunk))
        folders: dict[str, list[Entry]] = {}
        for entry in chunk:
            parts = split_path(entry.path.removeprefix(f"{SWEPT}/"))
            if parts is not None and entry.modified_s <= before_s and take(parts[0]):
                folders.setdefault(parts[0], []).append(entry)
        if folders:
            yield folders


def _move_aside(raw: Store, path: str) -> None:
    try:
        data = raw.read(path)
    except FileNotFoundError:
        return  # removed by another process
    raw.replace(f"{SWEPT}/{path}", data)  # its time there begins now, even if an older copy exists
    raw.delete(path)


def _each(raw: Store, work: Callable[[Entry], None], entries: list[Entry]) -> None:
    if isinstance(raw, LocalStore) or len(entries) < 2:
        for entry in entries:
            work(entry)
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(work, entries))


def collect_swept(
    raw: Store, compaction: CompactionCursor, before_s: float, done: Collected, *, forgotten_s: float
) -> None:
    """Restore referenced objects from ``swept/``, and remove old unreferenced ones.

    Args:
      raw: the raw store.
      compaction: the progress of compaction. Pending folders are skipped.
      before_s: objects moved there later are kept, epoch seconds.
      done: the counts, updated in place.
      forgotten_s: unreferenced objects moved there before this time are removed, epoch seconds.
    """
    chunks = _listed(raw, SWEPT, lambda folder: folder not in compaction.pending, before_s, lambda count: None)
    for folders in chunks:
        names = _Names(raw, compaction, int(before_s * 1e6))
        for folder, entries in folders.items():
            names.load(folder)
            for entry in entries:
                path = entry.path.removeprefix(f"{SWEPT}/")
                name = path.rpartition("/")[2]
                if names.packed(folder, name):
                    if not names.safe(folder, name):
                        continue
                elif names.named_alone(folder, name):
                    try:
                        raw.create(path, raw.read(entry.path))
                    except FileNotFoundError:
                        continue  # restored by another process
                    done.restored += 1
                elif entry.modified_s > forgotten_s:
                    continue
                raw.delete(entry.path)
                done.gone += 1


def collect_packs(
    raw: Store, compaction: CompactionCursor, before_s: float, done: Collected, *, everything: bool = False
) -> None:
    """Remove replaced and unreferenced packs.

    A pack that is in the table of telemetry, or left it after ``before_s``, is kept: other engines may be reading it.

    Args:
      raw: the raw store.
      compaction: names the folders to examine, and forgets those without further garbage.
      before_s: packs written or replaced later are kept, epoch seconds.
      done: the counts, updated in place.
      everything: examine all folders.
    """
    before_us = int(before_s * 1e6)
    table = _Table(raw, before_s)
    folders = [folder for folder, since_us in compaction.tidy.items() if since_us <= before_us]
    if everything:
        folders = pack_folders(raw)
    for folder in folders:
        entries = list(raw.entries(f"{PACKS}/{folder}"))
        state = pack_state(raw, folder)
        old = [entry for entry in entries if split_pack(entry.path) is not None and entry.path not in state.packs]
        ripe = [
            entry
            for entry in old
            if entry.modified_s <= before_s
            and (entry.path not in state.replaced or state.since_us[entry.path] <= before_us)
        ]
        # The replaced packs are kept until their replacement has been read back.
        if ripe and (faults := [fault for file in state.packs.values() if (fault := prove_pack(raw, file))]):
            done.faults += faults
            if not all(raw.exists(path) for path in state.packs):
                compaction.pending[folder] = 1  # packing repairs it
            continue
        unread = [entry for entry in ripe if not table.holds(entry.path)] if ripe else []
        for entry in unread:
            raw.delete(entry.path)
        done.packs += len(unread)
        done.held += len(ripe) - len(unread)
        if len(unread) == len(old):
            compaction.tidy.pop(folder, None)
    done.faults += table.faults


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
