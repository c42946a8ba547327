"""Removing what the raw store no longer needs: objects of packed runs, replaced packs, and objects that nobody names.

An object that nobody names may be named a moment later: by a worker that found it there and went on to commit. Or much
later: by a process that slept, or a job that goes on from a savepoint of last week. So it waits for a month under
``swept/``, where readers find it too, and comes back when it was named after all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from ciml.raw.compaction_cursor import CompactionCursor, names_since
from ciml.raw.packs import PACKS, RUNS, SWEPT, pack_state, split_path
from ciml.storage.open import Entry, LocalStore, Store
from transforms.raw.packs import prove_pack
from transforms.raw.reader import FolderPacks, load_packs

_CHUNK = 50_000
_THREADS = 16

Ripe = Callable[[str], bool]


@dataclass(slots=True)
class Swept:
    """What sweeping removed.

    Attributes:
      objects: of runs that are in a pack; objects_bytes: theirs.
      unnamed: objects that no manifest names, moved aside.
      gone: of those that were moved aside earlier, removed for good.
      restored: moved aside earlier, and named since: brought back.
      packs: replaced by others, or never named.
      faults: packs that are not what their manifest says, a line each. What they replace stays.
    """

    objects: int = 0
    objects_bytes: int = 0
    unnamed: int = 0
    gone: int = 0
    restored: int = 0
    packs: int = 0
    faults: list[str] = field(default_factory=list)


class _Names:
    """Who names what, of the folders of one listing. It is made after the listing: what is committed is seen."""

    def __init__(self, raw: Store, book: CompactionCursor, before_us: int) -> None:
        self._raw = raw
        self._since = names_since(raw, book.cursor)
        self._before_us = before_us
        self._packs: dict[str, FolderPacks] = {}
        self._proved: dict[str, str] = {}

    def load(self, folder: str) -> None:
        """Look at a folder's packs; only one at a time is kept."""
        self._packs = {folder: load_packs(self._raw, folder)}

    def packed(self, folder: str, name: str) -> bool:
        return self._packs[folder].find(name) is not None

    def named_alone(self, folder: str, name: str) -> bool:
        return name in self._packs[folder].state.alone or name in self._since.get(folder, ())

    def safe(self, folder: str, name: str) -> bool:
        """Return whether the pack that holds a run was known for the grace, and was read back whole."""
        found = self._packs[folder].find(name)
        if found is None:
            return False
        file, state = found[0].file, self._packs[folder].state
        if file.path not in state.packs or state.since_us[file.path] > self._before_us:
            return False
        if file.path not in self._proved:
            self._proved[file.path] = prove_pack(self._raw, file)
        return not self._proved[file.path]

    def gone(self, folder: str) -> bool:
        return bool(self._packs[folder].missing)

    def faults(self, folder: str) -> list[str]:
        packs = self._packs[folder]
        lines = [f"{self._raw.url(path)} is in its manifest but does not exist" for path in packs.missing]
        lines += packs.broken
        return lines + [self._proved[pack.file.path] for pack in packs.packs if self._proved.get(pack.file.path)]


def sweep_runs(
    raw: Store, book: CompactionCursor, ripe: Ripe, before_s: float, swept: Swept, told: Callable[[int], None]
) -> None:
    """Remove the objects of packed runs, and move aside those that nobody names, of folders that are ripe.

    Args:
      raw: the raw store.
      book: of compaction; a folder that is pending is left alone. A folder whose pack has vanished becomes pending.
      ripe: says whether a folder's day is over.
      before_s: what was written or committed later is left alone, epoch seconds.
      swept: counts what was done.
      told: called with the number of objects that were looked at since.
    """
    before_us = int(before_s * 1e6)
    for folders in _listed(raw, RUNS, lambda folder: folder not in book.pending and ripe(folder), before_s, told):
        names = _Names(raw, book, before_us)
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
                swept.faults += faults
                if names.gone(folder):
                    book.pending[folder] = 1  # its runs are packed anew: those that are named from version 1 on
                continue
            _each(raw, lambda entry: raw.delete(entry.path), packed)
            swept.objects += len(packed)
            swept.objects_bytes += sum(entry.size for entry in packed)
            _each(raw, lambda entry: _move_aside(raw, entry.path), unnamed)
            swept.unnamed += len(unnamed)


def _listed(
    raw: Store, prefix: str, take: Callable[[str], bool], before_s: float, told: Callable[[int], None]
) -> Iterator[dict[str, list[Entry]]]:
    """Yield the objects of runs below ``prefix`` that are old enough, by folder, so many at a time."""
    entries = raw.entries(prefix)
    while chunk := list(islice(entries, _CHUNK)):
        told(len(chunk))
        folders: dict[str, list[Entry]] = {}
        for entry in chunk:
            place = split_path(entry.path.removeprefix(f"{SWEPT}/"))
            if place is not None and entry.modified_s <= before_s and take(place[0]):
                folders.setdefault(place[0], []).append(entry)
        if folders:
            yield folders


def _move_aside(raw: Store, path: str) -> None:
    try:
        data = raw.read(path)
    except FileNotFoundError:
        return  # another was faster
    raw.replace(f"{SWEPT}/{path}", data)  # its time there begins now, even where an older copy is
    raw.delete(path)


def _each(raw: Store, work: Callable[[Entry], None], entries: list[Entry]) -> None:
    if isinstance(raw, LocalStore) or len(entries) < 2:
        for entry in entries:
            work(entry)
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(work, entries))


def sweep_swept(raw: Store, book: CompactionCursor, before_s: float, swept: Swept, *, forgotten_s: float) -> None:
    """Bring back what has been named since it was moved aside, and remove for good what nobody will name any more.

    Args:
      raw: the raw store.
      book: of compaction; a folder that is pending is left alone.
      before_s: what was moved aside later is left alone, epoch seconds.
      swept: counts what was done.
      forgotten_s: what nobody names goes when it was moved aside before this, epoch seconds.
    """
    listed = _listed(raw, SWEPT, lambda folder: folder not in book.pending, before_s, lambda looked: None)
    for folders in listed:
        names = _Names(raw, book, int(before_s * 1e6))
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
                        continue  # another brought it back
                    swept.restored += 1
                elif entry.modified_s > forgotten_s:
                    continue
                raw.delete(entry.path)
                swept.gone += 1


def sweep_packs(raw: Store, book: CompactionCursor, before_s: float, swept: Swept, *, everything: bool = False) -> None:
    """Remove replaced packs, and packs that no manifest names, of the folders that the book says are to be tidied.

    Args:
      raw: the raw store.
      book: its folders are taken off the list when nothing is left to remove.
      before_s: what was written or replaced later is left alone, epoch seconds.
      swept: counts what was done.
      everything: look at all folders.
    """
    before_us = int(before_s * 1e6)
    folders = [folder for folder, since_us in book.tidy.items() if since_us <= before_us]
    if everything:
        folders = sorted({place[0] for entry in raw.entries(PACKS) if (place := _pack_place(entry.path)) is not None})
    for folder in folders:
        listed = list(raw.entries(f"{PACKS}/{folder}"))
        state = pack_state(raw, folder)
        old = [entry for entry in listed if _pack_place(entry.path) is not None and entry.path not in state.packs]
        ripe = [
            entry
            for entry in old
            if entry.modified_s <= before_s
            and (entry.path not in state.replaced or state.since_us[entry.path] <= before_us)
        ]
        # What a pack replaces goes when that has been read back, and not before.
        if ripe and (faults := [fault for file in state.packs.values() if (fault := prove_pack(raw, file))]):
            swept.faults += faults
            if not all(raw.exists(path) for path in state.packs):
                book.pending[folder] = 1  # packing mends that
            continue
        for entry in ripe:
            raw.delete(entry.path)
        swept.packs += len(ripe)
        if len(ripe) == len(old):
            book.tidy.pop(folder, None)


def _pack_place(path: str) -> tuple[str, str] | None:
    """Return (folder, file name) of a pack's path; None for what is none."""
    if not path.startswith(f"{PACKS}/") or not path.endswith(".parquet"):
        return None
    return split_path(f"{RUNS}/{path.removeprefix(f'{PACKS}/')}")
