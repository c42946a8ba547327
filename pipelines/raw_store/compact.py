"""Compaction of the raw store: the runs of days that are over move from objects of their own into packs.

Everything here may be killed at any line, and may run twice at once. A pack is a copy under a name that follows from
its bytes; the folder's manifest makes it known; a run's own object goes only when the pack has been read back and has
been known for the grace. `CompactionCursor` stores only how far compaction has looked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ciml.raw.compaction_cursor import load_cursor, mark_compacted, save_cursor, windows
from ciml.raw.packs import PACKS, RUNS, SWEPT, day_ends_s
from ciml.storage.open import Store
from pipelines.raw_store.collect_garbage import Swept, sweep_packs, sweep_runs, sweep_swept
from pipelines.raw_store.compact_folder import Packing, merge_packs, pack_folder

DAY_S = 86_400.0
#: How long what nobody names is kept aside. Longer than anything that is on its way to a commit can wait: a savepoint's
#: offsets are long gone from the broker by then.
ASIDE_S = 30 * DAY_S
PACK_BYTES = 32 << 20
MIN_RUNS = 2
_WINDOW_RUNS = 100_000

#: (what is being done, so many done, of how many or None).
Progress = Callable[[str, int, int | None], None]


@dataclass(slots=True)
class Compaction:
    """What a compaction did.

    Attributes:
      packing: runs and packs that were written.
      swept: objects that were removed.
      to_version: the raw manifest's version up to which all runs of days that are over were looked at.
      waiting: folders with runs whose day is not over for long enough.
    """

    packing: Packing = field(default_factory=Packing)
    swept: Swept = field(default_factory=Swept)
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
    """Pack the runs of days that are over, and remove what the store no longer needs.

    It goes on where the last one stopped, however that ended.

    Args:
      raw: the raw store.
      older_than_s: a folder is ripe so many seconds after the end of its day (UTC).
      grace_s: objects stay so long after they were written, packed or replaced.
      aside_s: what nobody names stays so long after it was moved aside.
      min_runs: runs of a folder that are fewer stay objects of their own.
      pack_bytes: a pack is about so large at most.
      window_runs: so many runs are planned at a time.
      everything: look for packs to remove in every folder, not only where something was written.
      clock: epoch seconds.
      progress: told what is being done.

    Raises:
      EngineError: the store does not answer.
      IntegrityError: a manifest contradicts itself. Single runs that are broken are told in the result.
    """
    result, now_s = Compaction(), clock()
    tell = progress or (lambda what, done, total: None)

    def ripe(folder: str) -> bool:
        return day_ends_s(folder) + older_than_s <= now_s

    book = load_cursor(raw)
    done = 0
    for window in windows(raw, book, ripe, window_runs):
        total = done + window.runs
        for folder in sorted(window.named):
            named = window.named[folder]
            before = result.packing.packs
            pack_folder(raw, folder, named, min_runs=min_runs, pack_bytes=pack_bytes, clock=clock, done=result.packing)
            if result.packing.packs > before:
                merge_packs(raw, folder, pack_bytes=pack_bytes, clock=clock, done=result.packing)
            book.tidy[folder] = int(clock() * 1e6)
            done += len(named)
            tell("packing runs", done, total)
        mark_compacted(book, window, ripe)
        save_cursor(raw, book)
    result.to_version, result.waiting = book.cursor, len(book.pending)
    before_s, looked = clock() - grace_s, 0

    def told(more: int) -> None:
        nonlocal looked
        looked += more
        tell("looking at objects", looked, None)

    forgotten_s = clock() - max(aside_s, grace_s)
    sweep_swept(raw, book, before_s, result.swept, forgotten_s=forgotten_s)  # before anything is moved there
    sweep_runs(raw, book, ripe, before_s, result.swept, told)
    sweep_packs(raw, book, before_s, result.swept, everything=everything)
    for prefix in (RUNS, SWEPT, *([PACKS] if everything else [])):
        raw.delete_leftovers(prefix, before_s)
    save_cursor(raw, book)
    return result
