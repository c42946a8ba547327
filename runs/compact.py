"""Compaction of the raw store: packs the runs of past days, merges small packs, and collects garbage.

A folder of runs, which has a job and a day, is *due* some time after the end of its day. Compaction may be killed at
any line, and may run concurrently: `ciml.runs.packing` commits packs, and `ciml.runs.collect_garbage` removes an object
only after the grace, when the pack of its run was read back. `CompactionCursor` stores only the progress.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache

import msgspec

from ciml.digest import canonical_json, sha256_json
from ciml.errors import IntegrityError
from ciml.manifest.log import Delta, ManifestLog
from ciml.progress import Progress, no_progress
from ciml.runs.collect_garbage import Collected, GarbageCollector, pack_folders
from ciml.runs.outputs import OUTPUTS, TEXTS, expire_before
from ciml.runs.pack_index import PACKS, RUNS, SWEPT, NamedRun, day_ends_s, named_runs
from ciml.runs.packing import FolderPacker, PackCounts
from ciml.storage import Store
from ciml.storage.json_files import read_object, seal

DAY_S = 86_400.0
#: Time for which unreferenced objects are kept in ``swept/``. No later commit can reference them, because the broker
#: has expired the offsets of an older savepoint.
ASIDE_S = 30 * DAY_S
PACK_BYTES = 32 << 20
MIN_RUNS = 2
CURSOR_PATH = f"{PACKS}/compaction.json"
_WINDOW_RUNS = 100_000


@dataclass(slots=True)
class Compaction:
    """The result of a compaction.

    Attributes:
      packing: written runs and packs.
      swept: removed objects.
      to_version: the raw manifest's version up to which all runs of past days were examined.
      waiting: folders with runs that are too young.
    """

    packing: PackCounts = field(default_factory=PackCounts)
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
    keep_outputs_s: float | None = None,
    everything: bool = False,
    clock: Callable[[], float] = time.time,
    progress: Progress = no_progress,
) -> Compaction:
    """Pack the runs of past days and collect garbage, from the end of the previous compaction.

    Args:
      raw: the raw store.
      older_than_s: age of a folder to pack, from the end of its day (UTC), seconds.
      grace_s: time for which objects are kept after they were written, packed or replaced, seconds.
      aside_s: time for which unreferenced objects are kept in ``swept/``, seconds.
      min_runs: runs of a folder with fewer are not packed.
      pack_bytes: approximate largest size of a pack.
      window_runs: number of runs planned together.
      keep_outputs_s: time for which texts of outputs are kept after the end of their day, seconds; None for ever.
      everything: examine the packs of every folder, not only of changed ones, and write packs of older versions again.
      clock: epoch seconds.
      progress: called with the progress.

    Raises:
      EngineError: if the store does not answer.
      IntegrityError: if the raw manifest is inconsistent. The result lists broken runs, packs and manifests of packs.
    """
    started_s = clock()

    @cache  # the same few folders are asked for with each run
    def is_due(folder: str) -> bool:
        return day_ends_s(folder) + older_than_s <= started_s

    cursor = load_cursor(raw)
    packer = FolderPacker(raw, min_runs, pack_bytes, clock)
    planned_runs = 0
    packed_runs = 0
    unpacked: dict[str, int] = {}
    for window in windows(raw, cursor, is_due, window_runs):
        planned_runs += window.runs
        for folder, folder_runs in sorted(window.named.items()):
            try:
                if packer.pack(folder, folder_runs):
                    packer.merge(folder)
                cursor.tidy[folder] = int(clock() * 1e6)
            except IntegrityError as error:  # other folders are packed nevertheless
                packer.counts.faults.append(str(error))
                unpacked.setdefault(folder, window.first[folder])
            packed_runs += len(folder_runs)
            progress("packing runs", packed_runs, planned_runs)
        cursor.advance(window, is_due)
        cursor.pending |= unpacked
        save_cursor(raw, cursor)
    if everything:
        for folder in pack_folders(raw):
            if packer.merge(folder, renew=True):
                cursor.tidy[folder] = int(clock() * 1e6)
    result = Compaction(packer.counts, to_version=cursor.version, waiting=len(cursor.pending))
    before_s = clock() - grace_s
    forgotten_s = clock() - max(aside_s, grace_s)
    result.swept = _collect_garbage(raw, cursor, is_due, before_s, forgotten_s, progress, everything=everything)
    before = "" if keep_outputs_s is None else _expire_outputs(raw, clock() - keep_outputs_s)
    if before or everything:
        collector = GarbageCollector(raw, cursor.version, cursor.pending, before_s, progress)
        collector.collect_outputs(before, forgotten_s, everything=everything)
        result.swept.outputs = collector.collected.outputs
        raw.delete_leftovers(OUTPUTS, before_s)
    save_cursor(raw, cursor)
    return result


def _expire_outputs(raw: Store, before_s: float) -> str:
    """Record the day before which texts are removed, and return it; "" without any text."""
    if next(iter(raw.entries(TEXTS)), None) is None:
        return ""
    return expire_before(raw, datetime.fromtimestamp(before_s, UTC).date())


def _collect_garbage(
    raw: Store,
    cursor: CompactionCursor,
    is_due: Callable[[str], bool],
    before_s: float,
    forgotten_s: float,
    progress: Progress,
    *,
    everything: bool,
) -> Collected:
    """Collect the garbage that was left before a time, and update the cursor; see `compact`."""
    collector = GarbageCollector(raw, cursor.version, cursor.pending, before_s, progress)
    collector.collect_swept(forgotten_s)  # before anything is moved there
    collector.collect_runs(is_due)
    collector.collect_packs(pack_folders(raw) if everything else cursor.tidy_before(before_s))
    for prefix in (RUNS, SWEPT, PACKS) if everything else (RUNS, SWEPT):
        raw.delete_leftovers(prefix, before_s)
    cursor.pending |= dict.fromkeys(collector.incomplete_folders, 1)  # all of their runs are packed again
    for folder in collector.clean_folders:
        cursor.tidy.pop(folder, None)
    return collector.collected


@dataclass(slots=True)
class Window:
    """The raw objects in due folders, from one range of the raw manifest.

    Attributes:
      named: the objects to pack, by folder, then by file name.
      first: the first version with an object to pack, by folder.
      waiting: folders that are not due, and the first version with an object there.
      to_version: the last version of the range.
      digest: the digest of that delta.
      runs: number of runs to pack.
    """

    named: dict[str, dict[str, NamedRun]] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    to_version: int = 0
    digest: str = ""
    runs: int = 0


class CompactionCursor(msgspec.Struct, rename={"version": "cursor"}):
    """The progress that one compaction leaves for the next.

    It is a starting point, not a record. Every state that was ever written is valid, so the last writer may win, and
    without it everything is examined again.

    Attributes:
      version: each raw object in the raw manifest up to this version is in a pack, or is "alone" in its folder's pack
        manifest, or its folder is pending.
      digest: the digest of the delta of that version. If it differs, the cursor belongs to another manifest.
      pending: folders that may hold runs that are neither packed nor alone, with the first version of such a run.
      tidy: folders with writes that may have left objects to remove, and the time, epoch microseconds.
    """

    version: int = 0
    digest: str = ""
    pending: dict[str, int] = msgspec.field(default_factory=dict)
    tidy: dict[str, int] = msgspec.field(default_factory=dict)

    def advance(self, window: Window, is_due: Callable[[str], bool]) -> None:
        """Record that the runs of a window are packed. The pending folders that are due were packed up to its end."""
        for folder in [folder for folder in self.pending if is_due(folder)]:
            if window.to_version >= self.version:
                del self.pending[folder]
            else:
                self.pending[folder] = max(self.pending[folder], window.to_version + 1)
        if window.to_version > self.version:
            self.version = window.to_version
            self.digest = window.digest
        for folder, version in window.waiting.items():
            self.pending.setdefault(folder, version)

    def tidy_before(self, before_s: float) -> list[str]:
        """Return the folders whose last writes were before a time, epoch seconds."""
        return [folder for folder, since_us in self.tidy.items() if since_us <= int(before_s * 1e6)]


def load_cursor(raw: Store) -> CompactionCursor:
    """Return the cursor of a raw store; a new one if it is missing, damaged, or of another manifest."""
    try:
        cursor = msgspec.convert(read_object(raw.read(CURSOR_PATH), raw.url(CURSOR_PATH)), CompactionCursor)
    except (FileNotFoundError, IntegrityError, msgspec.ValidationError):
        return CompactionCursor()
    if cursor.version:
        version, delta = next(ManifestLog(raw).since(cursor.version - 1), (0, {}))
        if version != cursor.version or sha256_json(delta) != cursor.digest:
            return CompactionCursor(tidy=cursor.tidy)
    return cursor


def save_cursor(raw: Store, cursor: CompactionCursor) -> None:
    raw.replace(CURSOR_PATH, seal(canonical_json(msgspec.to_builtins(cursor))))


def windows(raw: Store, cursor: CompactionCursor, is_due: Callable[[str], bool], size: int) -> Iterator[Window]:
    """Yield the runs to pack, range by range: those after the cursor, and pending ones that are due by now.

    Args:
      raw: the raw store.
      cursor: the cursor at the start; it may change between windows.
      is_due: returns whether a folder is to be packed now.
      size: number of runs; a window ends with the delta that reaches it.
    """
    first_new = cursor.version + 1
    due_since = {folder: version for folder, version in cursor.pending.items() if is_due(folder)}
    window = Window()
    delta = Delta()
    for version, delta in ManifestLog(raw).since(min([first_new, *due_since.values()]) - 1):
        for run in named_runs(delta):
            folder = run.folder
            if version >= first_new:
                is_packed_now = is_due(folder)
                if not is_packed_now:
                    window.waiting.setdefault(folder, version)
            else:
                is_packed_now = version >= due_since.get(folder, first_new)
            if is_packed_now:
                window.named.setdefault(folder, {})[run.name] = run
                window.first.setdefault(folder, version)
                window.runs += 1
        window.to_version = version
        if window.runs >= size:
            window.digest = sha256_json(delta)
            yield window
            window = Window()
    if window.to_version:
        window.digest = sha256_json(delta)
        yield window
