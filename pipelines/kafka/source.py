"""The Kafka source: a splittable DoFn with one restriction for each partition, which emits batches of messages.

A batch names the offsets that it covers, beginning at the end of the one before, so that the committer detects gaps.
The manifest alone decides where reading starts (`plan`); Kafka stores no offsets for ciml. A bounded read ends at the
topic's end when the pipeline was built, and works on every runner. An unbounded read needs Flink or Dataflow: the
FnApiRunner emits no output, and Prism lost rows. It finds new partitions, and checks that the topic is still the same.

After the transform come the readers, the search for new partitions, the tracker of a partition's offsets and of the
time to resume reading, and the watermark of a partition, a pure function of observations. See docs/kafka.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.metrics import Metrics
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Duration, Timestamp

from ciml.errors import EngineError
from ciml.events.records import Batch, Message, OffsetRange
from ciml.kafka import KafkaOptions, ReadOptions
from ciml.manifest.coverage import RangeSet
from ciml.pipelines.kafka.broker import check_topic, end_of
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.pipelines.kafka.reader import Reader, borrow, read_range
from ciml.transforms.guard import keep_error

_DRAINED = 3  # early resumes in a row
_MARGIN_S = 0.1  # added to a pause, since Flink's runner truncates it to whole seconds
_END_S = 5.0  # maximum age of a known partition end
#: How long the watermark waits for messages between their timestamp and the broker, seconds.
SLACK_S = 120.0
#: The namespace of the source's metrics: the gauge ``backlog.<topic>.<partition>``, in messages.
METRICS = "ciml.kafka"
FOREVER = sys.maxsize
#: Parameters of `OffsetDoFn.process`.
TRACKER = beam.DoFn.RestrictionParam()
WATERMARK = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider())
_stamp = itemgetter(Message._fields.index("timestamp_ms"))
_partition = attrgetter("partition")


class ReadFromKafka(beam.PTransform):
    """Reads batches of messages from the partitions in a `plan`; an unbounded read includes partitions added later.

    Raises:
      EngineError: without partitions, since an empty pipeline would look like an idle topic.
    """

    def __init__(self, kafka: KafkaOptions, reads: Iterable[PartitionRead], options: ReadOptions | None = None) -> None:
        super().__init__()
        self._kafka = kafka
        self._reads = list(reads)
        self._options = options or ReadOptions()
        if not self._reads:
            raise EngineError("no partition to read")
        self._bounded = all(read.end is not None for read in self._reads)

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[Batch]:
        reader = (ReadBounded if self._bounded else ReadUnbounded)(self._kafka, self._options)
        partitions = begin | "Partitions" >> beam.Create(self._reads, reshuffle=False)
        if not self._bounded:
            last = {(read.topic, read.topic_id): read.partition for read in sorted(self._reads, key=_partition)}
            topics_read = [KnownTopic(topic, topic_id, number + 1) for (topic, topic_id), number in last.items()]
            added = (
                begin
                | "Topics" >> beam.Create(topics_read, reshuffle=False)
                | "Find" >> beam.ParDo(FindPartitions(self._kafka, self._options)).with_output_types(PartitionRead)
            )
            partitions = (partitions, added) | "All" >> beam.Flatten()
        return partitions | "Read" >> beam.ParDo(reader).with_output_types(Batch)


class OffsetDoFn(beam.DoFn, RestrictionProvider):
    """A splittable DoFn whose restrictions are ranges of offsets, or of other numbers."""

    def setup(self) -> None:
        accept_earlier_modules()

    def create_tracker(self, restriction: Restriction) -> OffsetTracker:
        return OffsetTracker(restriction)


class _Read(OffsetDoFn):
    """The common part of the bounded and the unbounded reader, each of which provides its own restrictions."""

    def __init__(self, kafka: KafkaOptions, options: ReadOptions) -> None:
        self._kafka = kafka
        self._options = options

    def initial_restriction(self, element: PartitionRead) -> Restriction:
        return Restriction(element.start, FOREVER if element.end is None else element.end)

    def restriction_size(self, element: PartitionRead, restriction: Restriction) -> int:
        """Return the number of offsets to read, by the broker's last answer."""
        if restriction.stop < FOREVER:
            return count_remaining(restriction, None)
        ends = end_of(self._kafka, element.topic, element.partition, _END_S)
        return count_remaining(restriction, ends.end if ends else None)

    def truncate(self, element: PartitionRead, restriction: Restriction) -> Restriction | None:
        """Return the rest to read when a runner drains: all of a bounded read, nothing of an unbounded one.

        Claimed messages are in progress already; the next job starts at the first uncovered offset.
        """
        return restriction if restriction.stop < FOREVER else None

    def _batch(self, element: PartitionRead, covered: RangeSet, start: int, end: int, messages: list[Message]) -> Batch:
        """Return the batch of [start, end), without messages that are covered or at ``end`` and later."""
        if covered:
            messages = [message for message in messages if message.offset not in covered]
        if messages and messages[-1].offset >= end:
            messages = [message for message in messages if message.offset < end]
        return Batch(OffsetRange(element.topic, element.topic_id, element.partition, start, end), messages=messages)


class ReadBounded(_Read):
    """`PartitionRead` -> `Batch`, up to its end."""

    def process(self, element: PartitionRead, tracker: Any = TRACKER) -> Iterator[Batch]:
        def stop() -> int:
            return int(tracker.current_restriction().stop)

        covered = RangeSet(element.covered)
        with keep_error():
            for part in read_range(self._kafka, element, tracker.current_restriction().start, stop, self._options):
                if not tracker.try_claim(Claim(part.start, part.end)):
                    return
                yield self._batch(element, covered, part.start, min(part.end, stop()), part.messages)


class ReadUnbounded(_Read):
    """`PartitionRead` -> `Batch`, unbounded: a time slice, then a pause, which grows while nothing is new."""

    @beam.DoFn.unbounded_per_element()
    def process(
        self, element: PartitionRead, tracker: Any = TRACKER, watermark: Any = WATERMARK
    ) -> Iterator[TimestampedValue]:
        with keep_error():
            yield from self._read(element, tracker, watermark)

    def _read(self, element: PartitionRead, tracker: Any, watermark: Any) -> Iterator[TimestampedValue]:
        if detect_drain(tracker):
            return
        options = self._options
        covered = RangeSet(element.covered)
        position = tracker.current_restriction().start
        until_s = time.monotonic() + options.slice_s
        with borrow(self._kafka, element.topic, element.partition) as reader:
            reader.seek(position)
            while True:
                asked_s = time.time()
                messages = reader.read(options.batch_messages, 0.1)
                if reader.position > position:
                    if not tracker.try_claim(Claim(position, reader.position, reader.reaches())):
                        return
                    end = min(reader.position, tracker.current_restriction().stop)
                    batch = self._batch(element, covered, position, end, messages)
                    # A message without a usable timestamp does not affect the watermark.
                    oldest_s = min((stamp / 1000 for stamp in map(_stamp, messages) if stamp), default=None)
                    yield TimestampedValue(batch, Timestamp.of(asked_s if oldest_s is None else oldest_s))
                    position = end
                    advance_watermark(watermark, Observation(asked_s, oldest_s))
                if not messages:
                    defer(tracker, self._idle_pause_s(element, reader, position, watermark))
                    return
                reader.idle = 0
                is_at_end = options.pause_at_end and position >= reader.reaches() >= 0
                if is_at_end or time.monotonic() > until_s:
                    _backlog_of(element).set(max(reader.reaches() - position, 0))
                    defer(tracker, options.rest_s if is_at_end else 0)
                    return

    def _idle_pause_s(self, element: PartitionRead, reader: Reader, position: int, watermark: Any) -> float:
        """Observe that a partition has nothing new; return the pause, which grows each time."""
        options = self._options
        ends = end_of(self._kafka, element.topic, element.partition, min(_END_S, options.idle_s))
        if ends is not None:
            _backlog_of(element).set(max(ends.end - position, 0))
            advance_watermark(watermark, Observation(ends.asked_s, None, position >= ends.end))
        pause_s = min(options.rest_s * 2 ** min(reader.idle, 20), options.idle_s)
        reader.idle += 1
        return float(pause_s)


def _backlog_of(element: PartitionRead) -> Any:
    return Metrics.gauge(METRICS, f"backlog.{element.topic}.{element.partition}")


@dataclass(frozen=True, slots=True)
class KnownTopic:
    """A topic whose partitions 0 to ``partitions`` - 1 are read already. Kafka never removes partitions."""

    topic: str
    topic_id: str
    partitions: int


class FindPartitions(OffsetDoFn):
    """`KnownTopic` -> `PartitionRead` of each partition added later, from its beginning; unbounded.

    Its restriction is the range of future partition numbers. It also detects a deleted or recreated topic while no
    message arrives.
    """

    def __init__(self, kafka: KafkaOptions, options: ReadOptions) -> None:
        self._kafka = kafka
        self._options = options

    def initial_restriction(self, element: KnownTopic) -> Restriction:
        return Restriction(element.partitions, FOREVER)

    def restriction_size(self, element: KnownTopic, restriction: Restriction) -> int:
        return count_remaining(restriction, None)

    @beam.DoFn.unbounded_per_element()
    def process(
        self, element: KnownTopic, tracker: Any = TRACKER, watermark: Any = WATERMARK
    ) -> Iterator[TimestampedValue]:
        with keep_error():
            yield from self._find(element, tracker, watermark)

    def _find(self, element: KnownTopic, tracker: Any, watermark: Any) -> Iterator[TimestampedValue]:
        if detect_drain(tracker):
            return
        first_new = tracker.current_restriction().start
        asked_s = time.time()
        try:
            count = max(check_topic(self._kafka, element.topic, element.topic_id), default=-1) + 1
        except EngineError:  # the broker is unreachable: the readers wait for it too
            defer(tracker, self._options.find_s)
            return
        if count > first_new:
            if not tracker.try_claim(Claim(first_new, count)):
                return
            # Messages of a new partition are no older than the last listing without it, less the slack, which is the
            # present watermark.
            since = watermark.current_watermark() or Timestamp.of(asked_s - SLACK_S)
            for number in range(first_new, count):
                yield TimestampedValue(PartitionRead(element.topic, element.topic_id, number, 0, None), since)
        advance_watermark(watermark, Observation(asked_s, None, True))
        defer(tracker, self._options.find_s)


class Restriction(NamedTuple):
    """Offsets [start, stop) to read.

    Attributes:
      not_before_s: epoch seconds before which a runner that respects the requested pause does not resume.
      early: number of consecutive earlier resumes; see `detect_drain`.
    """

    start: int
    stop: int
    not_before_s: float = 0.0
    early: int = 0


class Claim(NamedTuple):
    """Offsets [first, end), and the partition's known end, which gives the backlog; -1 if it is unknown."""

    first: int
    end: int
    reaches: int = -1


class Pause(NamedTuple):
    """A claim of no offsets that sets two fields of the `Restriction`. Beam's view of a tracker passes only claims."""

    not_before_s: float
    early: int


class OffsetTracker(RestrictionTracker):
    """Claims ranges of offsets. A restriction is split only at its claimed end: a partition has one reader.

    Messages may correct earlier ones, so parts of a partition must not overtake one another. A split at a fraction is
    rejected, which a runner takes as "not now"; a split at 0, a checkpoint, is granted.
    """

    def __init__(self, restriction: Restriction) -> None:
        self._start = restriction.start
        self._stop = restriction.stop
        self._claimed = restriction.start
        self._reaches = restriction.start
        self._rejected = False
        self._pause = Pause(restriction.not_before_s, restriction.early)

    def current_restriction(self) -> Restriction:
        return Restriction(self._start, self._stop, *self._pause)

    def try_claim(self, position: Claim | Pause | tuple[int, int]) -> bool:
        """Claim [first, end), up to ``current_restriction().stop``.

        Raises:
          ValueError: if the claim skips or repeats offsets.
        """
        if isinstance(position, Pause):
            self._pause = position
            return True
        first, end, reaches = Claim(*position)
        if first >= self._stop:
            self._rejected = True
            return False
        if first != self._claimed or end < first:
            raise ValueError(f"the offsets {first} to {end} are claimed where {self._claimed} is the next")
        self._claimed = min(end, self._stop)
        self._reaches = max(self._reaches, reaches, end)
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[Restriction, Restriction] | None:
        if fraction_of_remainder != 0 or self._claimed >= self._stop:
            return None
        remainder = Restriction(self._claimed, self._stop, *self._pause)
        self._stop = self._claimed
        return Restriction(self._start, self._stop), remainder

    def check_done(self) -> None:
        if self._claimed < self._stop and not self._rejected:
            raise ValueError(f"offsets {self._claimed} to {self._stop} were neither claimed nor put off")

    def current_progress(self) -> RestrictionProgress:
        """Return the progress in offsets; an unbounded restriction ends at the partition's last known end."""
        stop = self._stop if self._stop < FOREVER else max(self._reaches, self._claimed)
        return RestrictionProgress(completed=self._claimed - self._start, remaining=stop - self._claimed)

    def is_bounded(self) -> bool:
        return bool(self._stop < FOREVER)


def count_remaining(restriction: Restriction, reaches: int | None) -> int:
    """Return the number of remaining offsets; at least 1 if unbounded or if the end is unknown."""
    if restriction.stop < FOREVER:
        return int(max(restriction.stop - restriction.start, 0))
    return int(max((reaches or 0) - restriction.start, 1))


def defer(tracker: Any, pause_s: float) -> None:
    """Return the unclaimed offsets to the runner, to be resumed after a pause of whole seconds (Flink truncates it).

    Args:
      tracker: Beam's view of an `OffsetTracker`.
      pause_s: least pause, seconds; 0 resumes immediately.
    """
    if pause_s <= 0:
        tracker.try_claim(Pause(0.0, 0))
        tracker.defer_remainder()
        return
    whole_s = max(round(pause_s), 1)
    tracker.try_claim(Pause(time.time() + whole_s / 2, tracker.current_restriction().early))
    tracker.defer_remainder(Duration.of(whole_s + _MARGIN_S))


def detect_drain(tracker: Any) -> bool:
    """Find out whether the runner drains the pipeline. If so, claim all offsets and return True: the reader must end.

    An unbounded reader calls it before any claim, since it records each early resume in the restriction.

    Flink's runner does not signal a stop with savepoint and drain. It ignores the requested pause and resumes deferred
    restrictions until none is deferred, which would never happen. So a reader that is resumed early several times in a
    row is being drained. The count is in the restriction: neither a restart nor a second job affects it, and a clock
    that is set back counts once.
    """
    now = time.time()
    restriction = tracker.current_restriction()
    early = restriction.early + 1 if now < restriction.not_before_s else 0
    if early >= _DRAINED:
        tracker.try_claim(Claim(FOREVER, FOREVER))
        return True
    tracker.try_claim(Pause(restriction.not_before_s, early))
    return False


class Observation(NamedTuple):
    """One observation of a partition. Times are epoch seconds.

    Attributes:
      asked_s: just before the broker was queried.
      oldest_s: lowest timestamp of the received messages; None without messages.
      nothing_unread: whether the broker confirmed that nothing is unread. An empty read alone does not show that: the
        broker may be slow, unreachable, or hold an open transaction.
    """

    asked_s: float
    oldest_s: float | None = None
    nothing_unread: bool = False


def next_watermark(watermark_s: float | None, observation: Observation, slack_s: float = SLACK_S) -> float | None:
    """Return the watermark after an observation: no unread message is older.

    This holds for messages whose timestamp is at most ``slack_s`` before the broker received them, and not after. A
    timestamp in the future cannot advance it beyond the time of the observation less the slack, nor beyond a good
    message next to it.

    Args:
      watermark_s: the previous one; None at first.
      observation: the present one.
      slack_s: largest delay from a message's timestamp to the broker, seconds.

    Returns:
      The new watermark, never lower than before.
    """
    if observation.nothing_unread:
        reached = observation.asked_s - slack_s  # later messages are received after the query
    elif observation.oldest_s is not None:
        reached = min(observation.oldest_s, observation.asked_s) - slack_s  # later messages are received after these
    else:
        return watermark_s
    if reached <= 0:
        return watermark_s
    return reached if watermark_s is None else max(watermark_s, reached)


def advance_watermark(watermark: Any, observation: Observation) -> None:
    """Advance Beam's manual watermark by an observation."""
    now = watermark.current_watermark()
    before = None if now is None else now.micros / 1e6
    after = next_watermark(before, observation)
    if after is not None and after != before:
        watermark.set_watermark(Timestamp.of(after))


#: Modules that savepoints of 0.2 name. To be removed in 0.4.
_EARLIER_MODULES = {
    "pipelines.kafka.plan": sys.modules[PartitionRead.__module__],
    "pipelines.kafka.new_partitions": sys.modules[__name__],
    "pipelines.kafka.tracker": sys.modules[__name__],
}


def accept_earlier_modules() -> None:
    """Let this worker process read the pickled elements and restrictions in savepoints of 0.2.

    Only the complete names are added, so that another package named ``pipelines`` can be imported.
    """
    for name, module in _EARLIER_MODULES.items():
        sys.modules.setdefault(name, module)
