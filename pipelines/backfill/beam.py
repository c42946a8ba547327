"""Backfill in Beam: work items in bounded pipelines, settled by the same function as without Beam."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from itertools import islice
from typing import Any

import apache_beam as beam

from ciml.errors import CimlError, EngineError
from ciml.events.listing import Listing, shared_listing
from ciml.pipelines.backfill.plan import BackfillConfig, BackfillProgress, OrderedCommitter, Work, size_of
from ciml.pipelines.flink.submit import FlinkJob, flink_options, run_here
from ciml.transforms.ingest.run_stages import keep_error

_POLL_S = 0.5
#: Work items of one pipeline. On Flink a job costs seconds, but can be cancelled at any time; in process it costs a
#: fifth of a second, but a signal has to wait for its end.
_A_PIPELINE = {"fnapi": 20, "flink": 2000}


class Settle(beam.DoFn):
    """Settles and commits work items. Each process opens the listing, which must be the same everywhere."""

    def __init__(self, config: BackfillConfig, url: str, digest: str) -> None:
        self._config = config
        self._url = url
        self._digest = digest
        self._committer: OrderedCommitter | None = None

    def start_bundle(self) -> None:
        self.teardown()  # clean up after a failed bundle

    def process(self, work: Work) -> None:
        with keep_error():
            if self._committer is None:
                self._committer = OrderedCommitter(self._config, shared_listing(self._url, self._digest))
            self._committer.put(work)

    def finish_bundle(self) -> None:
        with keep_error():
            if self._committer is not None:
                self._committer.end()
                self._committer = None

    def teardown(self) -> None:
        if self._committer is not None:
            self._committer.abandon()
            self._committer = None


def build_backfill(
    pipeline: beam.Pipeline, config: BackfillConfig, url: str, digest: str, works: list[Work], *, spread: bool
) -> None:
    """Wire a bounded backfill. Without a shuffle between them, settled work is committed soon.

    Args:
      pipeline: the pipeline to build in.
      config: of the backfill.
      url, digest: of the listing.
      works: the work items.
      spread: distribute the work over workers.
    """
    work = pipeline | "Work" >> beam.Create(works, reshuffle=spread).with_output_types(Any)
    _ = work | "Settle" >> beam.ParDo(Settle(config, url, digest))


def in_beam(
    config: BackfillConfig,
    listing: Listing,
    works: Iterator[Work],
    progress: BackfillProgress,
    stop: threading.Event,
    *,
    runner: str,
    job_endpoint: str,
    extra: tuple[str, ...],
) -> None:
    """Run one pipeline after another until all work is done.

    Raises:
      CimlError: for an unknown runner, or flink without an endpoint; or the error of a stage.
      EngineError: if a pipeline fails.
    """
    if runner not in _A_PIPELINE:
        raise CimlError(f"unknown runner {runner!r}; choose from fnapi, flink")
    if runner == "flink" and not job_endpoint:
        raise CimlError("runner flink needs the job server's host:port; start one with ciml up flink")
    while todo := list(islice(works, _A_PIPELINE[runner])):
        build = partial(
            build_backfill, config=config, url=listing.url, digest=listing.digest, works=todo, spread=runner == "flink"
        )
        if runner == "fnapi":
            with ThreadPoolExecutor(1) as pool:
                running = pool.submit(run_here, build)
                while not wait([running], _POLL_S).done:
                    progress.update()
                running.result()
        else:
            job = FlinkJob(build, flink_options(job_endpoint, "ciml-backfill", streaming=False, extra=extra))
            try:
                while not job.over and not stop.is_set():
                    job.check()
                    progress.update()
                    time.sleep(_POLL_S)
            finally:
                job.cancel()
            if stop.is_set():
                return
            job.check()
            if job.state != "DONE":
                raise EngineError(f"the backfill on Flink ended with state {job.state}")
        progress.tally.passed += sum(map(size_of, todo))
        progress.update()
