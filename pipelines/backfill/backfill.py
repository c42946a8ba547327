"""Backfill: the runs of a listing to the raw store and its manifest, as ingest does it for events.

blocks of lines ─► decode ─► judge ─► fetch ─► parse ─► store ─► commit

What is committed are the numbers of the lines, as a topic's offsets are. So the manifest alone says where to go on.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from ciml.events.listing_files import Listing
from ciml.events.records import Batch, OffsetRange
from pipelines.backfill.plan import BackfillConfig, Following, Report, Tally, Work, plan, probe_logs, size_of
from pipelines.ingest.committer import committer
from transforms.ingest.decode_listing import decode_lines
from transforms.ingest.run_stages import settle

__all__ = ["BackfillConfig", "Flow", "Following", "Tally", "backfill", "settle_work"]

_AHEAD = 3  # blocks under way at once: while one waits for files, another is parsed


def backfill(
    config: BackfillConfig,
    listing: Listing,
    *,
    runner: str | None = None,
    job_endpoint: str = "",
    extra: tuple[str, ...] = (),
    stop: threading.Event | None = None,
    report: Report | None = None,
) -> Tally:
    """Brings the runs of a listing into the raw store, from its first line that is not settled.

    Args:
      config: what to take, and how.
      listing: an open one.
      runner: None calls the functions in this process; ``fnapi`` and ``flink`` run them in Beam.
      job_endpoint: ``host:port`` of Beam's job server, for ``flink``.
      extra: further options of Beam.
      stop: ends it, when set, after what is under way is committed.
      report: told how far it is, a few times a second at most.

    Raises:
      CimlError: no log is where the listing says, or the listing was changed meanwhile; or another runner is named.
      EngineError: a store, Flink or the place of the logs does not answer. What was settled is committed.
      IntegrityError: see `ciml.raw.accounting.reconcile`.
    """
    following = Following(config.raw, listing, report)
    probe_logs(config, listing, following.tally)
    stop = stop or threading.Event()
    works = plan(config, listing, following, stop)
    if runner is None:
        _direct(config, listing, works, following)
    else:
        from pipelines.backfill.beam import in_beam

        in_beam(config, listing, works, following, stop, runner=runner, job_endpoint=job_endpoint, extra=extra)
    following.look()
    following.tally.whole = not stop.is_set()
    return following.tally


def settle_work(config: BackfillConfig, listing: Listing, work: Work) -> list[Batch]:
    """The settled batches of a piece of work, one for each of its ranges."""
    lines = listing.read(work.block)
    batches = [
        decode_lines(OffsetRange(listing.topic, "", 0, start, end), lines, config.reading, work.known)
        for start, end in work.parts
    ]
    return settle(batches, config.trust, config.fetch, config.raw)


class Flow:
    """Settles several pieces of work at once, in threads, and commits them in the order in which they came.

    Args:
      config: what to use.
      listing: that the work is of.
      committed: called after each commit.
    """

    def __init__(self, config: BackfillConfig, listing: Listing, committed: Callable[[], None] = lambda: None) -> None:
        self._config, self._listing, self._committed = config, listing, committed
        self._pool = ThreadPoolExecutor(_AHEAD, "backfill")
        self._under_way: deque[tuple[Work, Future[list[Batch]]]] = deque()
        self._settled: list[Batch] = []
        self._lines, self._since = 0, time.monotonic()

    def put(self, work: Work) -> int:
        """Takes on a piece of work, and waits while there is enough under way. Returns how many lines were settled."""
        self._under_way.append((work, self._pool.submit(settle_work, self._config, self._listing, work)))
        return self._take() if len(self._under_way) > _AHEAD else 0

    def end(self) -> int:
        """Settles and commits the rest. Returns how many lines that were."""
        lines = 0
        while self._under_way:
            lines += self._take()
        self._commit()
        self._pool.shutdown()
        return lines

    def abandon(self) -> None:
        """Commits what is settled, and drops what is not begun."""
        for _, future in self._under_way:
            future.cancel()
        self._pool.shutdown()
        self._commit()

    def _take(self) -> int:
        work, future = self._under_way.popleft()
        self._settled += future.result()
        self._lines += (lines := size_of(work))
        waited_s = time.monotonic() - self._since
        if self._lines >= self._config.commit_lines or waited_s > self._config.commit_s:
            self._commit()
        return lines

    def _commit(self) -> None:
        settled, self._settled, self._lines = self._settled, [], 0
        if settled:
            committer(self._config.raw).commit(settled)
            self._committed()
        self._since = time.monotonic()


def _direct(config: BackfillConfig, listing: Listing, works: Iterator[Work], following: Following) -> None:
    flow = Flow(config, listing, following.look)
    try:
        for work in works:
            following.tally.passed += flow.put(work)
            following.tell()
        following.tally.passed += flow.end()
    except BaseException:
        flow.abandon()
        raise
