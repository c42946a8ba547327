"""Backfill: writes the runs of a listing to the raw store and its manifest, as ingest does for events.

blocks of lines ─► decode ─► judge ─► fetch ─► parse ─► store ─► commit

Line numbers are committed like a topic's offsets, so the manifest alone decides where to continue.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from ciml.events.listing import Listing
from ciml.pipelines.backfill.plan import (
    BackfillConfig,
    BackfillProgress,
    Report,
    Tally,
    Work,
    probe_logs,
    take_work,
)
from ciml.pipelines.backfill.work_queue import WorkQueue

if TYPE_CHECKING:
    import apache_beam as beam

#: Work items of one pipeline, by runner. A job on Flink costs seconds, but can be cancelled at any time. A pipeline in
#: this process costs a fifth of a second, but a stop has to wait for it to end.
_PIPELINE_ITEMS = {"fnapi": 20, "flink": 2000}


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
    """Write the runs of a listing to the raw store, from its first unsettled line.

    Args:
      config: what to take, and how.
      listing: an open listing.
      runner: None calls the functions in this process; ``fnapi`` and ``flink`` run them in Beam.
      job_endpoint: ``host:port`` of Beam's job server, for ``flink``.
      extra: further options of Beam.
      stop: when set, ends the backfill after the work in progress is committed.
      report: called with the progress, a few times a second at most.

    Raises:
      CimlError: if no log exists where the listing says, the listing changed meanwhile, or the runner is unknown.
      EngineError: if a store, Flink or the log host does not answer. Settled lines stay committed.
      IntegrityError: see `ciml.runs.accounting.reconcile`.
    """
    progress = BackfillProgress(config.raw, listing, report)
    probe_logs(config, listing, progress.tally)
    stop = stop or threading.Event()
    works = take_work(config, listing, progress, stop)
    if runner is None:
        _backfill_here(config, listing, works, progress)
    else:
        from ciml.pipelines.flink.submit import check_runner, run_bounded

        check_runner(runner, job_endpoint)
        while items := tuple(islice(works, _PIPELINE_ITEMS[runner])):
            part = PlannedBackfill(config, listing, items, spread=runner == "flink")
            run_bounded(part.build, runner, job_endpoint, "ciml-backfill", extra=extra, poll=progress.update, stop=stop)
            if runner == "flink" and stop.is_set():  # the job was cancelled
                break
            progress.tally.handled += part.lines
            progress.update()
    progress.update()
    progress.tally.complete = not stop.is_set()
    return progress.tally


def _backfill_here(config: BackfillConfig, listing: Listing, works: Iterator[Work], progress: BackfillProgress) -> None:
    """Process and commit the work in threads of this process."""
    queue = WorkQueue(config, listing, progress.update)
    try:
        for work in works:
            progress.tally.handled += queue.put(work)
            progress.report()
        progress.tally.handled += queue.end()
    except BaseException:
        queue.abandon()
        raise


@dataclass(frozen=True)
class PlannedBackfill:
    """Work of a backfill for one pipeline. Each worker opens the listing.

    Attributes:
      config: of the backfill.
      listing: the listing.
      works: the work items.
      spread: distribute them over workers, before the first commit.
    """

    config: BackfillConfig
    listing: Listing
    works: tuple[Work, ...]
    spread: bool = True

    @property
    def lines(self) -> int:
        """The number of lines to settle."""
        return sum(work.lines for work in self.works)

    def build(self, pipeline: beam.Pipeline) -> object:
        """Wire the bounded pipeline."""
        from ciml.pipelines.backfill.beam import build_backfill

        url = self.listing.url
        build_backfill(pipeline, self.config, url, self.listing.digest, self.works, spread=self.spread)
        return pipeline


def plan_backfill(config: BackfillConfig, listing: Listing) -> PlannedBackfill:
    """Return the remaining work of a backfill, as `backfill` would do it now. Raises as `backfill`."""
    progress = BackfillProgress(config.raw, listing)
    probe_logs(config, listing, progress.tally)
    return PlannedBackfill(config, listing, tuple(take_work(config, listing, progress, threading.Event())))
