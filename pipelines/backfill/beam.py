"""Backfill in Beam: pieces of work in bounded pipelines, settled by the same function as without Beam."""

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
from ciml.events.listing_files import Listing, shared_listing
from pipelines.backfill.ordered_committer import OrderedCommitter
from pipelines.backfill.plan import BackfillConfig, BackfillProgress, Work, size_of
from pipelines.flink.submit import FlinkJob, flink_options, run_here
from transforms.ingest.errors import keep_error

_POLL_S = 0.5
#: How many pieces of work one pipeline has. On Flink a job costs seconds, and can be cancelled at any time; here it
#: costs a fifth of a second, and a signal has to wait for its end.
_A_PIPELINE = {"fnapi": 20, "flink": 2000}


class Settle(beam.DoFn):
    """Settles and commits pieces of work. The listing is opened once in each process, and has to be the same there."""

    def __init__(self, config: BackfillConfig, url: str, digest: str) -> None:
        self._config, self._url, self._digest = config, url, digest
        self._committer: OrderedCommitter | None = None

    def start_bundle(self) -> None:
        self.teardown()  # what an earlier bundle left when it failed

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
    """Wire a bounded backfill. No shuffle lies between settling and committing, so what is settled is committed soon.

    Args:
      pipeline: to build in.
      config: what to take.
      url, digest: of the listing.
      works: what is to be done.
      spread: whether workers share the work.
    """
    work = pipeline | "Work" >> beam.Create(works, reshuffle=spread).with_output_types(Any)
    _ = work | "Settle" >> beam.ParDo(Settle(config, url, digest))


def in_beam(
    config: BackfillConfig,
    listing: Listing,
    works: Iterator[Work],
    following: BackfillProgress,
    stop: threading.Event,
    *,
    runner: str,
    job_endpoint: str,
    extra: tuple[str, ...],
) -> None:
    """Run one pipeline after the other until there is no more work.

    Raises:
      CimlError: for another runner, or flink without an endpoint; or what a stage raised.
      EngineError: when a pipeline does not end well.
    """
    if runner not in _A_PIPELINE:
        raise CimlError(f"runner {runner!r}: want fnapi or flink, or none")
    if runner == "flink" and not job_endpoint:
        raise CimlError("runner flink: want the job server's host:port; ciml up flink starts one")
    while todo := list(islice(works, _A_PIPELINE[runner])):
        build = partial(
            build_backfill, config=config, url=listing.url, digest=listing.digest, works=todo, spread=runner == "flink"
        )
        if runner == "fnapi":
            with ThreadPoolExecutor(1) as pool:
                running = pool.submit(run_here, build)
                while not wait([running], _POLL_S).done:
                    following.look()
                running.result()
        else:
            job = FlinkJob(build, flink_options(job_endpoint, "ciml-backfill", streaming=False, extra=extra))
            try:
                while not job.over and not stop.is_set():
                    job.check()
                    following.look()
                    time.sleep(_POLL_S)
            finally:
                job.cancel()
            if stop.is_set():
                return
            job.check()
            if job.state != "DONE":
                raise EngineError(f"the backfill on Flink ended as {job.state}")
        following.tally.passed += sum(map(size_of, todo))
        following.look()
