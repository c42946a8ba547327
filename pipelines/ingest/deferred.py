"""The second source of an unbounded ingest: deferred runs of the manifest that are due."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from ciml.events.records import Batch, PendingRun
from ciml.pipelines.ingest.committer import committer
from ciml.pipelines.kafka.tracker import FOREVER, OffsetTracker, Restriction, is_drained, put_off
from ciml.storage.open import Store
from ciml.transforms.ingest.errors import keep_error

# Each poll adds some KiB to the state of a Flink job permanently, so polls are rare.
_PAUSE_S = 5.0
_IDLE_S = 10.0
_REPEAT_S = 300.0  # a retry that was not committed, since its worker died, is repeated after this
_MOST = 200


class RetriesInProgress:
    """The retries in progress in this process, so that a slow one is not repeated (which would be harmless)."""

    def __init__(self) -> None:
        self._since: dict[tuple[Any, ...], float] = {}
        self._lock = threading.Lock()

    def fresh(self, due: list[PendingRun], now_s: float) -> list[PendingRun]:
        """Return those of ``due`` that are not in progress, and mark them as such."""
        with self._lock:
            self._since = {key: since for key, since in self._since.items() if now_s - since < _REPEAT_S}
            found = []
            for pending in due:
                key = (pending.origin, pending.mention.run_id, pending.attempts)
                if key not in self._since:
                    self._since[key] = now_s
                    found.append(pending)
            return found


_in_progress: dict[str, RetriesInProgress] = {}
_WATERMARK = ManualWatermarkEstimator.default_provider()


class _Ticks(RestrictionProvider):
    def initial_restriction(self, element: Store) -> Restriction:
        return Restriction(0, FOREVER)

    def create_tracker(self, restriction: Restriction) -> OffsetTracker:
        return OffsetTracker(restriction)

    def restriction_size(self, element: Store, restriction: Restriction) -> int:
        return 1


class _PollDue(beam.DoFn):
    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: Store,
        tracker: Any = beam.DoFn.RestrictionParam(_Ticks()),  # noqa: B008
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(_WATERMARK),  # noqa: B008
    ) -> Iterator[TimestampedValue]:
        if is_drained(tracker):
            return
        tick = tracker.current_restriction().start
        if not tracker.try_claim((tick, tick + 1)):
            return
        now_s = time.time()
        with keep_error(), committer(element).state() as state:
            due, next_us = state.due(int(now_s * 1e6)), state.next_due_us()
        fresh = _in_progress.setdefault(element.root, RetriesInProgress()).fresh(due, now_s)
        for at in range(0, len(fresh), _MOST):
            yield TimestampedValue(Batch(None, pending_runs=fresh[at : at + _MOST]), Timestamp.of(now_s))
        watermark.set_watermark(Timestamp.of(now_s))
        wait_s = _IDLE_S if next_us is None else next_us / 1e6 - now_s
        put_off(tracker, min(max(wait_s, _PAUSE_S), _IDLE_S))


class ReadDue(beam.PTransform):
    """Batches of deferred runs of a raw store when they are due; unbounded."""

    def __init__(self, raw: Store) -> None:
        super().__init__()
        self._raw = raw

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[Batch]:
        return (
            begin
            | beam.Create([self._raw], reshuffle=False)
            | "Look" >> beam.ParDo(_PollDue()).with_output_types(Batch)
        )
