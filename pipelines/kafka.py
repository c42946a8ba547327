"""The Kafka source: a splittable DoFn with one restriction a partition, whose elements are batches of messages.

A batch says which offsets it covers, from where the one before it ended: so the committer can tell what is settled, and
a hole shows. Where reading starts is decided by the manifest alone (`plan`); Kafka keeps no offsets for ciml.

Bounded, it ends where the topic ended when the pipeline was made: that runs on every runner. Unbounded needs Flink or
Dataflow (the FnApiRunner gives no output, Prism lost rows).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.io.restriction_trackers import OffsetRange as Restriction
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Duration, Timestamp

from ciml.accounting import check_topic_id
from ciml.errors import EngineError, IntegrityError
from ciml.offsets import RangeSet
from ciml.records import Batch, Message, OffsetRange
from pipelines.kafka_client import KafkaOptions, Listing, borrow
from transforms.beam import keep_error

FOREVER = sys.maxsize


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a partition is read.

    Attributes:
      batch_messages: the most messages of a batch. 500 make the cost of a batch small beside that of its messages, and
        16 fetching threads busy.
      slice_s: how long one partition is read before the next has its turn: a runner takes them in turn.
      idle_s: the longest pause after looks that found nothing; it doubles up to here. Each pause costs the runner's
        state a little, for good, so it is not shorter than a reader of the results would notice.
      stall_s: how long a bounded read waits for a broker that does not answer.
      slack_s: how much later than another a message may come for the watermark to have waited for it.
    """

    batch_messages: int = 500
    slice_s: float = 1.0
    idle_s: float = 1.0
    stall_s: float = 60.0
    slack_s: float = 120.0


@dataclass(frozen=True, slots=True)
class PartitionRead:
    """What is to be read of a partition: [start, end) (``end`` None: for ever) without what is covered within it."""

    topic: str
    topic_id: str
    partition: int
    start: int
    end: int | None
    covered: tuple[tuple[int, int], ...] = ()


class Coverage(Protocol):
    """What a manifest's state says of offsets. See `ciml.accounting.RawState`."""

    topic_ids: dict[str, str]

    def covered(self, topic: str, partition: int) -> RangeSet: ...


def plan(state: Coverage, listing: Listing, *, bounded: bool, most: int | None = None) -> list[PartitionRead]:
    """What of a topic is not covered yet, partition by partition.

    Args:
      state: of the manifest that commits what is read.
      listing: what the broker has.
      bounded: whether to end at the topic's present end. Partitions with nothing new are then left out.
      most: with ``bounded``, the most offsets of a partition to take at once.

    Raises:
      IntegrityError: the topic was made anew, is shorter than what is covered, or no longer holds an offset that was
        never read. Nothing is skipped.
      EngineError: the listing is empty.
    """
    if not listing.bounds:
        raise EngineError(f"Kafka lists no partitions of the topic {listing.topic}")
    check_topic_id(listing.topic, state.topic_ids.get(listing.topic, ""), listing.topic_id)
    reads: list[PartitionRead] = []
    for partition, (first, end) in sorted(listing.bounds.items()):
        covered = state.covered(listing.topic, partition)
        start = covered.first_missing(0)
        where = f"{listing.topic}[{partition}]"
        if start < first and not (start == 0 and not covered):
            raise IntegrityError(
                f"{where}: offsets {start} to {first} were never read, and the topic does not hold them any more"
            )
        start = max(start, first)
        last = max((stop for _, stop in covered), default=0)
        if last > end:
            raise IntegrityError(
                f"{where} ends at {end}, and is covered up to {last}: it is not the topic that was read"
            )
        if bounded:
            stop = end if most is None else min(end, start + most)
            if start >= stop:
                continue
        inside = tuple(part for part in covered if part[0] > start)
        reads.append(
            PartitionRead(listing.topic, listing.topic_id, partition, start, stop if bounded else None, inside)
        )
    return reads


def bases(state: Coverage, listing: Listing) -> list[Batch]:
    """Empty batches that cover what was gone from a topic before it was first read. To be committed before reading."""
    return [
        Batch(OffsetRange(listing.topic, listing.topic_id, partition, 0, first))
        for partition, (first, _) in sorted(listing.bounds.items())
        if first > 0 and not state.covered(listing.topic, partition)
    ]


class OffsetTracker(RestrictionTracker):
    """Claims ranges of offsets. A restriction is only ever cut where it was claimed to: a partition has one reader."""

    def __init__(self, restriction: Restriction) -> None:
        self._start, self._stop = restriction.start, restriction.stop
        self._claimed = restriction.start
        self._refused = False

    def current_restriction(self) -> Restriction:
        return Restriction(self._start, self._stop)

    def try_claim(self, position: tuple[int, int]) -> bool:
        """Claims [first, end), or what of it lies in the restriction: at most up to ``current_restriction().stop``."""
        first, end = position
        if first >= self._stop:
            self._refused = True
            return False
        self._claimed = min(max(end, self._claimed), self._stop)
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[Restriction, Restriction] | None:
        if fraction_of_remainder != 0 or self._claimed >= self._stop:
            return None
        rest = Restriction(self._claimed, self._stop)
        self._stop = self._claimed
        return Restriction(self._start, self._stop), rest

    def check_done(self) -> None:
        if self._claimed < self._stop and not self._refused:
            raise ValueError(f"offsets {self._claimed} to {self._stop} were neither claimed nor put off")

    def current_progress(self) -> RestrictionProgress:
        return RestrictionProgress(completed=self._claimed - self._start, remaining=self._stop - self._claimed)

    def is_bounded(self) -> bool:
        return bool(self._stop < FOREVER)


class _Partitions(RestrictionProvider):
    def initial_restriction(self, element: PartitionRead) -> Restriction:
        return Restriction(element.start, FOREVER if element.end is None else element.end)

    def create_tracker(self, restriction: Restriction) -> OffsetTracker:
        return OffsetTracker(restriction)

    def restriction_size(self, element: PartitionRead, restriction: Restriction) -> int:
        return 1 if restriction.stop == FOREVER else max(restriction.stop - restriction.start, 0)


_WATERMARK = ManualWatermarkEstimator.default_provider()


class _Read(beam.DoFn):
    """The common part of the bounded and the unbounded reader."""

    def __init__(self, kafka: KafkaOptions, options: ReadOptions) -> None:
        self._kafka, self._options = kafka, options

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
        tracker: Any = beam.DoFn.RestrictionParam(_Partitions()),  # noqa: B008  # Beam's way
    ) -> Iterator[Batch]:
        with keep_error():
            yield from self._read(element, tracker)

    def _read(self, element: PartitionRead, tracker: Any) -> Iterator[Batch]:
        options, covered = self._options, RangeSet(element.covered)
        position = tracker.current_restriction().start
        with borrow(self._kafka, element.topic, element.partition) as reader:
            reader.seek(position)
            moved = time.monotonic()
            while position < (stop := tracker.current_restriction().stop):
                found = reader.read(min(options.batch_messages, stop - position), 0.5)
                if reader.position > position:
                    moved = time.monotonic()
                    if not tracker.try_claim((position, reader.position)):
                        return
                    end = min(reader.position, tracker.current_restriction().stop)
                    yield self._batch(element, covered, position, end, found)
                    position = end
                elif time.monotonic() - moved > options.stall_s:
                    raise EngineError(
                        f"{element.topic}[{element.partition}] {position}: no message within {options.stall_s:.0f} s, "
                        f"though the topic reaches to {stop}"
                    )


class ReadUnbounded(_Read):
    """`PartitionRead` -> `Batch`, for ever: a slice of time, then a rest, which grows while there is nothing new."""

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: PartitionRead,
        tracker: Any = beam.DoFn.RestrictionParam(_Partitions()),  # noqa: B008
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(_WATERMARK),  # noqa: B008
    ) -> Iterator[TimestampedValue]:
        with keep_error():
            yield from self._read(element, tracker, watermark)

    def _read(self, element: PartitionRead, tracker: Any, watermark: Any) -> Iterator[TimestampedValue]:
        options, covered = self._options, RangeSet(element.covered)
        position = tracker.current_restriction().start
        until = time.monotonic() + options.slice_s
        with borrow(self._kafka, element.topic, element.partition) as reader:
            reader.seek(position)
            while True:
                asked = time.time()
                found = reader.read(options.batch_messages, 0.1)
                if reader.position > position:
                    if not tracker.try_claim((position, reader.position)):
                        return
                    end = min(reader.position, tracker.current_restriction().stop)
                    batch = self._batch(element, covered, position, end, found)
                    yield TimestampedValue(batch, _event_time(found, asked))
                    position = end
                    _advance(watermark, _latest(found) - options.slack_s)
                if found:
                    reader.idle = 0
                    if time.monotonic() > until:
                        tracker.defer_remainder()
                        return
                    continue
                # Only here is it known that nothing unread is older: the broker was asked, and had nothing more.
                if reader.at_end:
                    _advance(watermark, asked - options.slack_s)
                reader.idle += 1
                pause_s = min(0.05 * 2 ** min(reader.idle, 12), options.idle_s)
                tracker.defer_remainder(Duration.of(pause_s))
                return


def _event_time(found: Sequence[Message], asked: float) -> Timestamp:
    return Timestamp.of(min(message.timestamp_ms for message in found) / 1000 if found else asked)


def _latest(found: Sequence[Message]) -> float:
    return max((message.timestamp_ms for message in found), default=0) / 1000


def _advance(watermark: Any, to_s: float) -> None:
    now = watermark.current_watermark()
    if to_s > 0 and (now is None or Timestamp.of(to_s) > now):
        watermark.set_watermark(Timestamp.of(to_s))


class ReadFromKafka(beam.PTransform):
    """Batches of messages of the partitions of `plan`.

    Raises:
      EngineError: when made with no partitions: a pipeline that reads nothing would look as if there were no events.
    """

    def __init__(self, kafka: KafkaOptions, reads: Iterable[PartitionRead], options: ReadOptions | None = None) -> None:
        super().__init__()
        self._kafka, self._reads, self._options = kafka, list(reads), options or ReadOptions()
        if not self._reads:
            raise EngineError("there is no partition to read")
        self._bounded = all(read.end is not None for read in self._reads)

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[Batch]:
        read = (ReadBounded if self._bounded else ReadUnbounded)(self._kafka, self._options)
        return (
            begin
            | "Partitions" >> beam.Create(self._reads, reshuffle=False)
            | "Read" >> beam.ParDo(read).with_output_types(Batch)
        )
