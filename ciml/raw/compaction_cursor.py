"""How far compaction of a raw store has looked, and which raw objects the raw manifest names beyond that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ciml.digest import canonical_json, sha256_json
from ciml.manifest.log import Delta, ManifestLog
from ciml.raw.packs import PACKS, NamedRun, named_runs
from ciml.storage.open import Store

CURSOR_PATH = f"{PACKS}/compaction.json"

#: Named runs by folder, then by file name.
Named = dict[str, dict[str, NamedRun]]


@dataclass(slots=True)
class CompactionCursor:
    """What one compaction leaves for the next.

    It is no record but a place to go on from: each version of it that was ever written says something true, so the
    last writer may win, and without it everything is looked at again.

    Attributes:
      cursor: each raw object that the raw manifest names up to this version is in a pack, or its folder's pack
        manifest has it as alone, or its folder is pending.
      digest: of the delta at the cursor. With another one there, this is another manifest's book.
      pending: folders in which named runs may be neither, and the first version that names one.
      tidy: folders in which something was written that may have left objects to remove, and when, epoch microseconds.
    """

    cursor: int = 0
    digest: str = ""
    pending: dict[str, int] = field(default_factory=dict)
    tidy: dict[str, int] = field(default_factory=dict)


def load_cursor(raw: Store) -> CompactionCursor:
    """Return the book of a raw store; an empty one where there is none, or one that does not fit the manifest."""
    try:
        value = json.loads(raw.read(CURSOR_PATH))
        compaction = CompactionCursor(value["cursor"], value["digest"], value["pending"], value["tidy"])
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return CompactionCursor()
    if compaction.cursor:
        at, delta = next(ManifestLog(raw).since(compaction.cursor - 1), (0, {}))
        if at != compaction.cursor or sha256_json(delta) != compaction.digest:
            return CompactionCursor(tidy=compaction.tidy)
    return compaction


def save_cursor(raw: Store, compaction: CompactionCursor) -> None:
    raw.replace(
        CURSOR_PATH,
        canonical_json(
            {
                "cursor": compaction.cursor,
                "digest": compaction.digest,
                "pending": compaction.pending,
                "tidy": compaction.tidy,
            }
        ),
    )


@dataclass(slots=True)
class Window:
    """The raw objects that a part of the raw manifest names in folders that are ripe.

    Attributes:
      named: those that are to be packed.
      waiting: folders that are not ripe, and the first version that names something there.
      to_version: the last version of the part.
      digest: of that delta.
      runs: how many are to be packed.
    """

    named: Named = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    to_version: int = 0
    digest: str = ""
    runs: int = 0


def windows(raw: Store, compaction: CompactionCursor, ripe: Callable[[str], bool], size: int) -> Iterator[Window]:
    """What is to be packed, in parts: what is beyond the book's cursor, and what was pending and is ripe by now.

    Args:
      raw: the raw store.
      compaction: as it is when the iteration begins; it may be changed between the parts.
      ripe: says whether a folder is to be packed now.
      size: a part ends with the delta that brings it to so many runs.
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
    """Note in the book that what a window names is packed."""
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
    """Return the file names, by folder, of all raw objects that the raw manifest names after a version."""
    names: dict[str, set[str]] = {}
    for _, delta in ManifestLog(raw).since(version):
        for run in named_runs(delta):
            names.setdefault(run.folder, set()).add(run.name)
    return names
