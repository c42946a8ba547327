"""Ingest: CI events from Kafka to the raw store, its manifest and the topic `runs`.

events ─► decode ─► judge ─► known events ─┐
                                           ├─► fetch ─► parse ─► store ─► commit ─► publish
                deferred logs that are due ┘

An unbounded ingest has a second source: the deferred runs of the manifest that are due.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from ciml.events.records import Batch, Outcome, PendingRun
from ciml.integrations.registry import read_event
from ciml.pipelines.ingest.committer import IngestConfig, IngestProcessor, committer, seal_guarded
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.pipelines.kafka.source import (
    FOREVER,
    TRACKER,
    WATERMARK,
    OffsetDoFn,
    ReadFromKafka,
    Restriction,
    defer,
    detect_drain,
)
from ciml.pipelines.processor_beam import commit_and_publish
from ciml.runs.known_ids import Index, ids_of_repeats
from ciml.runs.run_log import TRUSTED
from ciml.storage import Store
from ciml.transforms.guard import guarded_runs, keep_error
from ciml.transforms.ingest.beam import Decode, Judge, TakeLogs

# Each poll adds some KiB to the state of a Flink job permanently, so polls are rare.
_SHORTEST_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 10.0
_REPEAT_S = 300.0  # after which a retry that was not committed is repeated: its worker may have died
_BATCH_RUNS = 200


class RetriesInProgress:
    """The retries in progress in this process, so that a slow one is not started again, which would waste work."""

    def __init__(self) -> None:
        self._started_s: dict[tuple[Any, ...], float] = {}
        self._lock = threading.Lock()

    def start(self, due: list[PendingRun], now_s: float) -> list[PendingRun]:
        """Mark due runs as in progress; return those that were not."""
        retries = {(pending.origin, pending.mention.run_id, pending.attempts): pending for pending in due}
        with self._lock:
            recent = {key: start_s for key, start_s in self._started_s.items() if now_s - start_s < _REPEAT_S}
            started = [pending for key, pending in retries.items() if key not in recent]
            self._started_s = {**dict.fromkeys(retries, now_s), **recent}  # a retry in progress keeps its time
        return started


_in_progress: defaultdict[str, RetriesInProgress] = defaultdict(RetriesInProgress)


class _PollDue(OffsetDoFn):
    """Raw store -> batches of its deferred runs that are due. Its restriction counts polls."""

    def initial_restriction(self, element: Store) -> Restriction:
        return Restriction(0, FOREVER)

    def restriction_size(self, element: Store, restriction: Restriction) -> int:
        return 1

    @beam.DoFn.unbounded_per_element()
    def process(self, element: Store, tracker: Any = TRACKER, watermark: Any = WATERMARK) -> Iterator[TimestampedValue]:
        if detect_drain(tracker):
            return
        tick = tracker.current_restriction().start
        if not tracker.try_claim((tick, tick + 1)):
            return
        now_s = time.time()
        with keep_error(), committer(element).state() as state:
            due = state.due(int(now_s * 1e6))
            next_us = state.next_due_us()
        for batch in batches_to_retry(_in_progress[element.root].start(due, now_s)):
            yield TimestampedValue(batch, Timestamp.of(now_s))
        watermark.set_watermark(Timestamp.of(now_s))
        wait_s = _LONGEST_PAUSE_S if next_us is None else next_us / 1e6 - now_s
        defer(tracker, min(max(wait_s, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S))


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


def build_ingest(
    pipeline: beam.Pipeline, config: IngestConfig, reads: Sequence[PartitionRead], due: Sequence[PendingRun] = ()
) -> beam.PCollection[int]:
    """Wire an ingest: bounded if the ``reads`` are, else unbounded.

    Args:
      pipeline: the pipeline to build in.
      config: of the ingest.
      reads: the partitions and their first offsets; may be empty with ``due`` runs.
      due: deferred runs to retry if bounded; an unbounded ingest reads them from the manifest.

    Returns:
      The committed versions.
    """
    bounded = all(read.end is not None for read in reads)
    settled = []
    if reads:
        events = pipeline | "Events" >> ReadFromKafka(config.kafka, reads, config.read)
        pending_runs = events | Decode(config.selection, dict(config.names), read_event) | Judge(config.trust)
        unknown = pending_runs | "KnownEvents" >> beam.Map(_settle_known, config.raw).with_output_types(Batch)
        settled.append(unknown | "NewLogs" >> _Settle(config))
    if not bounded:
        settled.append(pipeline | ReadDue(config.raw) | "DueLogs" >> _Settle(config))
    elif due:
        retries = beam.Create(batches_to_retry(due), reshuffle=False).with_output_types(Batch)
        settled.append(pipeline | "Due" >> retries | "DueLogs" >> _Settle(config))
    together = settled[0] if len(settled) == 1 else settled | beam.Flatten()
    return commit_and_publish(together, IngestProcessor(config), bounded=bounded)


def batches_to_retry(pending_runs: Sequence[PendingRun], most: int = _BATCH_RUNS) -> list[Batch]:
    """Return pending runs to retry as batches that cover no offsets."""
    starts = range(0, len(pending_runs), most)
    return [Batch(None, pending_runs=list(pending_runs[start : start + most])) for start in starts]


def settle_known(batch: Batch, index: Index) -> Batch:
    """Settle pending runs that the same event has already named, as repeats that need no log.

    This only saves work: the commit classifies everything by its own state. The same run in *another* event remains
    pending, since a different log must be noticed, and so does a run whose trust an update may have raised.

    Args:
      batch: new pending runs. Deferred runs must not be passed: their events are known, and they would be repeats.
      index: of the committed state.
    """
    unknown = []
    settled = list(batch.settled)
    for pending in batch.pending_runs:
        facts = pending.mention
        ids = ids_of_repeats(pending.event_key, facts.run_id, facts.to_json(), TRUSTED) if pending.event_key else ()
        if any(index.has_event(*event) for event in ids):
            settled.append(Outcome("repeat", pending.origin, pending.event_key, facts, "event", trust=pending.trust))
        else:
            unknown.append(pending)
    return Batch(batch.covers, batch.messages, unknown, settled)


def _settle_known(batch: Batch, raw: Store) -> Batch:
    """Apply `settle_known` by the state committed when the batch arrives."""
    if not batch.pending_runs:
        return batch
    with keep_error(), committer(raw).state() as state:
        return guarded_runs("known", partial(settle_known, index=state.index), batch)


class _Settle(beam.PTransform):
    """Pending runs to sealed batches: fetch, parse, store."""

    def __init__(self, config: IngestConfig) -> None:
        super().__init__()
        self._config = config

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[tuple[str, bytes]]:
        stored = batches | TakeLogs(self._config.fetch, self._config.raw)
        return stored | "Seal" >> beam.Map(_seal).with_output_types(tuple[str, bytes])


def _seal(batch: Batch) -> tuple[str, bytes]:
    with keep_error():
        return IngestProcessor.name, seal_guarded(batch)
