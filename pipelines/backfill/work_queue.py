"""Processes the work items of a backfill in threads, and commits the results in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from ciml.events.listing import Listing
from ciml.events.records import Batch, OffsetRange
from ciml.pipelines.backfill.plan import BackfillConfig, Work
from ciml.pipelines.ingest.committer import committer
from ciml.transforms.ingest.decode import decode_lines
from ciml.transforms.ingest.run_stages import settle
from ciml.trust import evaluate

_IN_PROGRESS = 3  # work items: while one waits for files, another is parsed


def process_work(config: BackfillConfig, listing: Listing, work: Work) -> list[Batch]:
    """Decode, fetch, parse and store the lines of a work item; return a batch to commit for each of its ranges."""
    lines = listing.read(work.block)
    completions = dict(work.completions)
    batches = [
        decode_lines(OffsetRange(listing.topic, "", 0, start, end), lines, config.reading, work.known, completions)
        for start, end in work.parts
    ]
    return settle(batches, config.trust, config.fetch, config.raw)


class WorkQueue:
    """Processes work items concurrently in threads, and commits them in the order in which they were added.

    Args:
      config: of the backfill.
      listing: the listing of the work.
      after_commit: called after each commit.
    """

    def __init__(
        self, config: BackfillConfig, listing: Listing, after_commit: Callable[[], None] | None = None
    ) -> None:
        self._config = config
        self._listing = listing
        self._after_commit = after_commit
        self._pool = ThreadPoolExecutor(_IN_PROGRESS, "backfill")
        self._in_progress: deque[tuple[Work, Future[list[Batch]]]] = deque()
        self._uncommitted: list[Batch] = []
        self._uncommitted_lines = 0
        self._committed_s = time.monotonic()

    def put(self, work: Work) -> int:
        """Add a work item; block while enough are in progress. Return the number of lines processed meanwhile."""
        self._in_progress.append((work, self._pool.submit(process_work, self._config, self._listing, work)))
        return self._take() if len(self._in_progress) > _IN_PROGRESS else 0

    def end(self) -> int:
        """Process and commit the remaining work. Return the number of its lines."""
        lines = 0
        while self._in_progress:
            lines += self._take()
        self._commit()
        self._pool.shutdown()
        return lines

    def abandon(self) -> None:
        """Commit the processed work that `put` has taken from the threads, and drop the rest."""
        for _, future in self._in_progress:
            future.cancel()
        self._pool.shutdown()
        self._commit()

    def _take(self) -> int:
        """Wait for the oldest work item, and commit if enough lines or time have passed. Return its number of lines."""
        work, future = self._in_progress.popleft()
        self._uncommitted += future.result()
        self._uncommitted_lines += work.lines
        waited_s = time.monotonic() - self._committed_s
        if self._uncommitted_lines >= self._config.commit_lines or waited_s > self._config.commit_s:
            self._commit()
        return work.lines

    def _commit(self) -> None:
        batches = self._uncommitted
        self._uncommitted = []  # before the commit: if it fails, `abandon` must not try it again
        self._uncommitted_lines = 0
        if batches:
            committer(self._config.raw).commit(batches, partial(evaluate, self._config.trust.current()))
            if self._after_commit is not None:
                self._after_commit()
        self._committed_s = time.monotonic()
