"""Backfill in Beam: work items in a bounded pipeline, settled by the same function as without Beam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from ciml.events.listing import shared_listing
from ciml.pipelines.backfill.plan import BackfillConfig, Work
from ciml.pipelines.backfill.work_queue import WorkQueue
from ciml.transforms.guard import keep_error


class Settle(beam.DoFn):
    """Settles and commits work items. Each process opens the listing, which must be the same everywhere."""

    def __init__(self, config: BackfillConfig, url: str, digest: str) -> None:
        self._config = config
        self._url = url
        self._digest = digest
        self._queue: WorkQueue | None = None

    def start_bundle(self) -> None:
        self.teardown()  # clean up after a failed bundle

    def process(self, work: Work) -> None:
        with keep_error():
            if self._queue is None:
                self._queue = WorkQueue(self._config, shared_listing(self._url, self._digest))
            self._queue.put(work)

    def finish_bundle(self) -> None:
        with keep_error():
            if self._queue is not None:
                self._queue.end()
                self._queue = None

    def teardown(self) -> None:
        if self._queue is not None:
            self._queue.abandon()
            self._queue = None


def build_backfill(
    pipeline: beam.Pipeline, config: BackfillConfig, url: str, digest: str, works: Sequence[Work], *, spread: bool
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
