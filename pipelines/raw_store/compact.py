"""Compaction of the raw store: packs the runs of past days.

Compaction may be killed at any line, and may run concurrently. A pack's name is derived from its bytes, and the
folder's manifest references it. A run's own object is removed only after the grace, when the pack was read back.
`CompactionCursor` stores only the progress.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ciml.pipelines.raw_store.collect_garbage import Collected, collect_packs, collect_runs, collect_swept, pack_folders
from ciml.pipelines.raw_store.compact_folder import Packing, merge_packs, pack_folder
from ciml.pipelines.raw_store.compaction_cursor import load_cursor, mark_compacted, save_cursor, windows
from ciml.raw.packs import PACKS, RUNS, SWEPT, day_ends_s
from ciml.storage.open import Store

DAY_S = 86_400.0
#: Time for which unreferenced objects stay in ``swept/``: a commit cannot be later, since the broker has expired the
#: offsets of an older savepoint.
ASIDE_S = 30 * DAY_S
PACK_BYTES = 32 << 20
MIN_RUNS = 2
_WINDOW_RUNS = 100_000

#: Called with (activity, number done, total or None).
Progress = Callable[[str, int, int | None], None]


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
    result, now_s = Compaction(), clock()
    report = progress or (lambda what, done, total: None)

    def ripe(folder: str) -> bool:
        return day_ends_s(folder) + older_than_s <= now_s

    compaction = load_cursor(raw)
    done = 0
    for window in windows(raw, compaction, ripe, window_runs):
        total = done + window.runs
        for folder in sorted(window.named):
            named = window.named[folder]
            before = result.packing.packs
            pack_folder(raw, folder, named, min_runs=min_runs, pack_bytes=pack_bytes, clock=clock, done=result.packing)
            if result.packing.packs > before:
                merge_packs(raw, folder, pack_bytes=pack_bytes, clock=clock, done=result.packing)
            compaction.tidy[folder] = int(clock() * 1e6)
            done += len(named)
            report("packing runs", done, total)
        mark_compacted(compaction, window, ripe)
        save_cursor(raw, compaction)
    for folder in pack_folders(raw) if everything else ():
        before = result.packing.packs
        merge_packs(raw, folder, pack_bytes=pack_bytes, clock=clock, done=result.packing, renew=True)
        if result.packing.packs > before:
            compaction.tidy[folder] = int(clock() * 1e6)
    result.to_version, result.waiting = compaction.cursor, len(compaction.pending)
    before_s, listed = clock() - grace_s, 0

    def on_listed(count: int) -> None:
        nonlocal listed
        listed += count
        report("collecting garbage", listed, None)

    forgotten_s = clock() - max(aside_s, grace_s)
    collect_swept(raw, compaction, before_s, result.swept, forgotten_s=forgotten_s)  # before anything is moved there
    collect_runs(raw, compaction, ripe, before_s, result.swept, on_listed)
    collect_packs(raw, compaction, before_s, result.swept, everything=everything)
    for prefix in (RUNS, SWEPT, *([PACKS] if everything else [])):
        raw.delete_leftovers(prefix, before_s)
    save_cursor(raw, compaction)
    return result
