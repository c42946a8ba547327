"""Settles work items in threads and commits them in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from ciml.events.listing_files import Listing
from ciml.events.records import Batch, OffsetRange
from ciml.pipelines.backfill.plan import BackfillConfig, Work, size_of
from ciml.pipelines.ingest.committer import committer
from ciml.transforms.ingest.decode_listing import decode_lines
from ciml.transforms.ingest.run_stages import settle
from ciml.transforms.ingest.trust import evaluate

_AHEAD = 3  # blocks in progress: while one waits for files, another is parsed


def settle_work(config: BackfillConfig, listing: Listing, work: Work) -> list[Batch]:
    """Return the settled batches of a work item, one for each of its ranges."""
    lines, completed = listing.read(work.block), dict(work.completed)
    batches = [
        decode_lines(OffsetRange(listing.topic, "", 0, start, end), lines, config.reading, work.known, completed)
        for start, end in work.parts
    ]
    return settle(batches, config.trust, config.fetch, config.raw)


class OrderedCommitter:
    """Settles several work items concurrently in threads, and commits them in order of arrival.

    Args:
      config: of the backfill.
      listing: the listing of the work.
      committed: called after each commit.
    """

    def __init__(self, config: BackfillConfig, listing: Listing, committed: Callable[[], None] = lambda: None) -> None:
        self._config, self._listing, self._committed = config, listing, committed
        self._pool = ThreadPoolExecutor(_AHEAD, "backfill")
        self._in_progress: deque[tuple[Work, Future[list[Batch]]]] = deque()
        self._settled: list[Batch] = []
        self._lines, self._since = 0, time.monotonic()

    def put(self, work: Work) -> int:
        """Add a work item; block while enough are in progress. Return the number of lines settled meanwhile."""
        self._in_progress.append((work, self._pool.submit(settle_work, self._config, self._listing, work)))
        return self._take() if len(self._in_progress) > _AHEAD else 0

    def end(self) -> int:
        """Settle and commit the rest. Return the number of its lines."""
        lines = 0
        while self._in_progress:
            lines += self._take()
        self._commit()
        self._pool.shutdown()
        return lines

    def abandon(self) -> None:
        """Commit settled work, and drop work that has not begun."""
        for _, future in self._in_progress:
            future.cancel()
        self._pool.shutdown()
        self._commit()

    def _take(self) -> int:
        work, future = self._in_progress.popleft()
        self._settled += future.result()
        self._lines += (lines := size_of(work))
        waited_s = time.monotonic() - self._since
        if self._lines >= self._config.commit_lines or waited_s > self._config.commit_s:
            self._commit()
        return lines

    def _commit(self) -> None:
        settled, self._settled, self._lines = self._settled, [], 0
        if settled:
            committer(self._config.raw).commit(settled, partial(evaluate, self._config.trust))
            self._committed()
        self._since = time.monotonic()
