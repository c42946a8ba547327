"""A broker in memory, with one topic; and the real readers of partitions, driven as a runner drives them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from apache_beam.io.watermark_estimators import ManualWatermarkEstimator

from ciml.errors import EngineError, IntegrityError
from ciml.events.records import Batch, Message
from ciml.kafka import KafkaOptions, ReadOptions
from ciml.kafka.connect import admin, make_client
from ciml.manifest.coverage import check_topic_id
from ciml.pipelines.kafka import source as kafka
from ciml.pipelines.kafka.broker import Ends, Listing, check_topic, end_of
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.pipelines.kafka.reader import borrow
from ciml.pipelines.kafka.source import FOREVER, FindPartitions, OffsetTracker, Restriction
from tests.simulation.fakes import substituted
from tests.simulation.scheduler import Chaos, Scheduler, Violation

TOPIC = "ci-events"


@dataclass
class Partition:
    """Messages by offset. Some offsets have no message: transaction markers, aborted messages."""

    first: int = 0
    end: int = 0
    messages: dict[int, Message] = field(default_factory=dict)


class Broker:
    """The present topic.

    Attributes:
      topic_id: its UUID.
      partitions: by number.
      born: number of earlier topics of that name.
    """

    def __init__(self, scheduler: Scheduler, partitions: int) -> None:
        self.scheduler = scheduler
        self.born = 0
        self.topic_id = "topic-0"
        self.partitions = [Partition() for _ in range(partitions)]

    def append(self, number: int, message: Message, gap: int) -> int:
        """Append a message after ``gap`` offsets without one; return its offset."""
        partition = self.partitions[number]
        offset = partition.end + gap
        partition.messages[offset] = Message(offset, message.value, message.headers, message.key, message.timestamp_ms)
        partition.end = offset + 1
        return offset

    def forget(self, number: int, first: int) -> None:
        """Remove the messages before ``first``, as retention does."""
        partition = self.partitions[number]
        partition.first = max(partition.first, min(first, partition.end))
        partition.messages = {at: each for at, each in partition.messages.items() if at >= partition.first}

    def recreate(self, partitions: int) -> None:
        """Replace the topic by a new one of the same name."""
        self.born += 1
        self.topic_id = f"topic-{self.born}"
        self.partitions = [Partition() for _ in range(partitions)]


class Client:
    """One process's connection to the broker."""

    def __init__(self, broker: Broker, chaos: Chaos | None) -> None:
        self.broker, self.chaos = broker, chaos

    def list_topic(self) -> Listing:
        """As `ciml.pipelines.kafka.broker.list_topic`: with one request after the other."""
        self.call("describe")
        broker = self.broker
        topic_id, count = broker.topic_id, len(broker.partitions)
        self.call("first offsets")
        first = [part.first for part in broker.partitions[:count]]
        self.call("last offsets")
        last = [part.end for part in broker.partitions[:count]]
        if not len(first) == len(last) == count:
            raise EngineError(f"Kafka has no topic {TOPIC}")
        listing = Listing(TOPIC, topic_id, {number: (first[number], last[number]) for number in range(count)})
        broker.scheduler.trace(f"{topic_id} {dict(listing.bounds)}")
        return listing

    def call(self, verb: str) -> None:
        """Make a request to the broker, which may not answer."""
        self.broker.scheduler.step()
        fault = self.chaos.fault() if self.chaos else None
        if fault == "slow":
            self.broker.scheduler.now_us += 10_000_000
        elif fault is not None:
            self.broker.scheduler.trace(f"Kafka: {verb} -> fails")
            raise EngineError(f"Kafka does not answer: {verb}")

    @contextmanager
    def borrow(self, options: KafkaOptions, topic: str, partition: int) -> Iterator[FakeReader]:
        """As `ciml.pipelines.kafka.reader.borrow`."""
        yield FakeReader(self, partition)

    def end_of(self, options: KafkaOptions, topic: str, partition: int, age_s: float) -> Ends | None:
        """As `ciml.pipelines.kafka.broker.end_of`."""
        asked_s = self.broker.scheduler.now_us / 1e6
        try:
            self.call(f"end of {partition}")
        except EngineError:
            return None
        return Ends(asked_s, self.broker.partitions[partition].end)

    def check_topic(self, options: KafkaOptions, topic: str, topic_id: str) -> list[int]:
        """As `ciml.pipelines.kafka.broker.check_topic`."""
        self.call("describe")
        check_topic_id(topic, topic_id, self.broker.topic_id)
        return list(range(len(self.broker.partitions)))


class FakeReader:
    """As `ciml.pipelines.kafka.reader.Reader`: lost connections show as reads that find nothing."""

    def __init__(self, client: Client, partition: int) -> None:
        self._client, self._number = client, partition
        self.position, self.idle = -1, 0

    def seek(self, position: int) -> None:
        if position != self.position:
            self.position, self.idle = position, 0

    def reaches(self) -> int:
        return self._client.broker.partitions[self._number].end

    def read(self, most: int, timeout_s: float) -> list[Message]:
        try:
            self._client.call(f"read {self._number} {self.position}")
        except EngineError:
            return []
        broker = self._client.broker
        if self._number >= len(broker.partitions):
            raise EngineError(f"{TOPIC}[{self._number}] {self.position}: unknown partition")
        partition = broker.partitions[self._number]
        if not partition.first <= self.position <= partition.end:
            raise IntegrityError(f"{TOPIC}[{self._number}] {self.position}: the topic does not hold this offset")
        there = sorted(offset for offset in partition.messages if offset >= self.position)
        found = there[: broker.scheduler.random.randint(1, most)]
        if found:
            self.position = found[-1] + 1
        if len(found) == len(there):
            self.position = partition.end
        broker.scheduler.trace(f"read {TOPIC}[{self._number}] {found} -> {self.position}")
        return [partition.messages[offset] for offset in found]


_KAFKA = KafkaOptions("simulated:9092")
_OPTIONS = ReadOptions(batch_messages=3, stall_s=30.0)
_REQUESTS = (borrow, end_of, check_topic)


class Tracker:
    """A restriction as Beam shows it to a DoFn.

    Attributes:
      rest: the deferred remainder if a pause was requested, else None.
    """

    def __init__(self, start: int, stop: int = FOREVER) -> None:
        self._tracker = OffsetTracker(Restriction(start, stop))
        self.current_restriction = self._tracker.current_restriction
        self.try_claim = self._tracker.try_claim
        self.check_done = self._tracker.check_done
        self.rest: Restriction | None = None

    def defer_remainder(self, *_: Any) -> None:
        split = self._tracker.try_split(0)
        self.rest = split[1] if split else None


def read_bounded(read: PartitionRead) -> Iterator[Batch]:
    """Yield all batches of a bounded read."""
    tracker = Tracker(read.start, FOREVER if read.end is None else read.end)
    yield from kafka.ReadBounded(_KAFKA, _OPTIONS).process(read, tracker)
    tracker.check_done()


def read_slice(read: PartitionRead, position: int) -> tuple[list[Batch], int]:
    """Return the batches of a slice of an unbounded read from a position on, and the position after it."""
    tracker, watermark = Tracker(position), ManualWatermarkEstimator(None)
    found = [each.value for each in kafka.ReadUnbounded(_KAFKA, _OPTIONS).process(read, tracker, watermark)]
    tracker.check_done()
    return found, tracker.rest.start if tracker.rest else tracker.current_restriction().stop


def find_partitions(topic_id: str, known: int) -> list[PartitionRead]:
    """Return the partitions of a topic beyond the known ones."""
    tracker, watermark = Tracker(known), ManualWatermarkEstimator(None)
    topic = kafka.KnownTopic(TOPIC, topic_id, known)
    return [each.value for each in FindPartitions(_KAFKA, _OPTIONS).process(topic, tracker, watermark)]


@contextmanager
def reading_by(client: Any) -> Iterator[None]:
    """Send requests to the broker to the result of ``client()``; a connection to a real broker is a violation."""

    def ask(name: str) -> Any:
        return lambda *rest: getattr(client(), name)(*rest)

    def reject(*_: Any) -> Any:
        raise Violation("a request to a real broker")

    requests = {real.__name__: (real, ask(real.__name__)) for real in _REQUESTS}
    with substituted({**requests, "make_client": (make_client, reject), "admin": (admin, reject)}):
        yield
