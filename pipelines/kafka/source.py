"""The Kafka source: a splittable DoFn with one restriction for each partition, which emits batches of messages.

A batch names the offsets that it covers, beginning at the end of the one before: so the committer detects gaps. The
manifest alone decides where reading starts (`plan`); Kafka stores no offsets for ciml. A bounded read ends at the
topic's end when the pipeline was built, and works on every runner. An unbounded read needs Flink or Dataflow (the
FnApiRunner emits no output, Prism lost rows), finds new partitions, and checks that the topic is still the same.
See docs/kafka.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from ciml.errors import EngineError
from ciml.events.records import Batch, Message, OffsetRange
from ciml.kafka.options import KafkaOptions, ReadOptions
from ciml.manifest.offsets import RangeSet
from ciml.pipelines.kafka.bounded import read_range
from ciml.pipelines.kafka.end_offsets import end_of
from ciml.pipelines.kafka.new_partitions import FindPartitions, KnownTopic
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.pipelines.kafka.reader import borrow
from ciml.pipelines.kafka.tracker import (
    FOREVER,
    WATERMARK,
    Claim,
    OffsetTracker,
    Restriction,
    is_drained,
    left,
    observe,
    put_off,
)
from ciml.pipelines.kafka.watermark import Observation
from ciml.transforms.ingest.errors import keep_error

#: The namespace of the source's metrics: the gauge ``backlog.<topic>.<partition>``, in messages.
METRICS = "ciml.kafka"


class _Read(beam.DoFn, RestrictionProvider):
    """The common part of the bounded and the unbounded reader, each of which provides its own restrictions."""

    def __init__(self, kafka: KafkaOptions, options: ReadOptions) -> None:
        self._kafka, self._options = kafka, options

    def initial_restriction(self, element: PartitionRead) -> Restriction:
        return Restriction(element.start, FOREVER if element.end is None else element.end)

    def create_tracker(self, restriction: Restriction) -> OffsetTracker:
        return OffsetTracker(restriction)

    def restriction_size(self, element: PartitionRead, restriction: Restriction) -> int:
        """Return the number of messages to read, by the broker's last answer."""
        if restriction.stop < FOREVER:
            return left(restriction, None)
        ends = end_of(self._kafka, element.topic, element.partition, self._options.ends_s)
        return left(restriction, ends.end if ends else None)

    def truncate(self, element: PartitionRead, restriction: Restriction) -> Restriction | None:
        """Return the rest to read when a runner drains: all of a bounded read, nothing of an unbounded one.

        Claimed messages are in progress already; the next job starts at the first uncovered offset.
        """
        return restriction if restriction.stop < FOREVER else None

    def _batch(self, element: PartitionRead, covered: RangeSet, start: int, end: int, found: list[Message]) -> Batch:
        if covered:
            found = [message for message in found if message.offset not in covered]
        if found and found[-1].offset >= end:
            found = [message for message in found if message.offset < end]
        return Batch(OffsetRange(element.topic, element.topic_id, element.partition, start, end), messages=found)


class ReadBounded(_Read):
    """`PartitionRead` -> `Batch`, up to its end."""

    def process(
        self,
        element: PartitionRead,
        tracker: Any = beam.DoFn.RestrictionParam(),  # noqa: B008  # Beam's way
    ) -> Iterator[Batch]:
        with keep_error():
            yield from self._read(element, tracker)

    def _read(self, element: PartitionRead, tracker: Any) -> Iterator[Batch]:
        covered = RangeSet(element.covered)
        begin = tracker.current_restriction().start

        def stop() -> int:
            return int(tracker.current_restriction().stop)

        for part in read_range(self._kafka, element, begin, stop, self._options):
            if not tracker.try_claim(Claim(part.start, part.end)):
                return
            yield self._batch(element, covered, part.start, min(part.end, stop()), part.messages)


class ReadUnbounded(_Read):
    """`PartitionRead` -> `Batch`, unbounded: a time slice, then a pause, which grows while nothing is new."""

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: PartitionRead,
        tracker: Any = beam.DoFn.RestrictionParam(),  # noqa: B008
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(WATERMARK),  # noqa: B008
    ) -> Iterator[TimestampedValue]:
        with keep_error():
            yield from self._read(element, tracker, watermark)

    def _read(self, element: PartitionRead, tracker: Any, watermark: Any) -> Iterator[TimestampedValue]:
        if is_drained(tracker):
            return
        options, covered = self._options, RangeSet(element.covered)
        position = tracker.current_restriction().start
        until = time.monotonic() + options.slice_s
        with borrow(self._kafka, element.topic, element.partition) as reader:
            reader.seek(position)
            while True:
                asked = time.time()
                found = reader.read(options.batch_messages, 0.1)
                if reader.position > position:
                    if not tracker.try_claim(Claim(position, reader.position, reader.reaches())):
                        return
                    end = min(reader.position, tracker.current_restriction().stop)
                    batch = self._batch(element, covered, position, end, found)
                    # A message without a usable timestamp does not affect the watermark.
                    oldest = min((stamp / 1000 for stamp in map(_stamp, found) if stamp), default=None)
                    yield TimestampedValue(batch, Timestamp.of(asked if oldest is None else oldest))
                    position = end
                    observe(watermark, Observation(asked, oldest), options.slack_s)
                if found:
                    reader.idle = 0
                    at_end = options.pause_at_end and position >= reader.reaches() >= 0
                    if at_end or time.monotonic() > until:
                        self._report_backlog(element, reader.reaches() - position)
                        put_off(tracker, options.rest_s if at_end else 0)
                        return
                    continue
                ends = end_of(self._kafka, element.topic, element.partition, min(options.ends_s, options.idle_s))
                if ends is not None:
                    self._report_backlog(element, ends.end - position)
                    observe(watermark, Observation(ends.asked_s, None, position >= ends.end), options.slack_s)
                pause_s = min(options.rest_s * 2 ** min(reader.idle, 20), options.idle_s)
                reader.idle += 1
                put_off(tracker, pause_s)
                return

    @staticmethod
    def _report_backlog(element: PartitionRead, messages: int) -> None:
        Metrics.gauge(METRICS, f"backlog.{element.topic}.{element.partition}").set(max(messages, 0))


_stamp = itemgetter(Message._fields.index("timestamp_ms"))


class ReadFromKafka(beam.PTransform):
    """Batches of messages of the partitions of `plan`; an unbounded read includes partitions added later.

    Raises:
      EngineError: without partitions, since an empty pipeline would look like an idle topic.
    """

    def __init__(self, kafka: KafkaOptions, reads: Iterable[PartitionRead], options: ReadOptions | None = None) -> None:
        super().__init__()
        self._kafka, self._reads, self._options = kafka, list(reads), options or ReadOptions()
        if not self._reads:
            raise EngineError("no partition to read")
        self._bounded = all(read.end is not None for read in self._reads)

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[Batch]:
        read = (ReadBounded if self._bounded else ReadUnbounded)(self._kafka, self._options)
        partitions = begin | "Partitions" >> beam.Create(self._reads, reshuffle=False)
        if not self._bounded:
            topics: dict[tuple[str, str], int] = {}
            for each in self._reads:
                key = (each.topic, each.topic_id)
                topics[key] = max(topics.get(key, 0), each.partition + 1)
            known = [KnownTopic(topic, topic_id, count) for (topic, topic_id), count in topics.items()]
            found = (
                begin
                | "Topics" >> beam.Create(known, reshuffle=False)
                | "Find" >> beam.ParDo(FindPartitions(self._kafka, self._options)).with_output_types(PartitionRead)
            )
            partitions = (partitions, found) | "All" >> beam.Flatten()
        return partitions | "Read" >> beam.ParDo(read).with_output_types(Batch)
