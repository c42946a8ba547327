"""The progress of compaction in a raw store, and the raw objects that the raw manifest names after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ciml.digest import canonical_json, sha256_json
from ciml.errors import IntegrityError
from ciml.manifest.log import Delta, ManifestLog
from ciml.raw.packs import PACKS, NamedRun, named_runs
from ciml.storage.json_seal import read_object, seal
from ciml.storage.open import Store

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
        at, delta = next(ManifestLog(raw).since(compaction.cursor - 1), (0, {}))
        if at != compaction.cursor or sha256_json(delta) != compaction.digest:
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
    cursor, due = compaction.cursor, {folder: version for folder, version in compaction.pending.items() if ripe(folder)}
    window, delta = Window(), Delta()
    known: dict[str, bool] = {}
    for version, delta in ManifestLog(raw).since(min([cursor + 1, *due.values()]) - 1):
        for run in named_runs(delta):
            folder = run.folder
            if version <= cursor:
                if version < due.get(folder, cursor + 1):
                    continue
            elif not known.setdefault(folder, ripe(folder)):
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
        compaction.cursor, compaction.digest = window.to_version, window.digest
    for folder, version in window.waiting.items():
        compaction.pending.setdefault(folder, version)


def names_since(raw: Store, version: int) -> dict[str, set[str]]:
    """Return the file names, by folder, of all raw objects in the raw manifest after a version."""
    names: dict[str, set[str]] = {}
    for _, delta in ManifestLog(raw).since(version):
        for run in named_runs(delta):
            names.setdefault(run.folder, set()).add(run.name)
    return names
