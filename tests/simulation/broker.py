"""A broker in memory: one topic, its messages, and readers of its partitions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ciml.errors import EngineError, IntegrityError
from ciml.events.records import Message
from ciml.kafka import KafkaOptions
from ciml.manifest.coverage import check_topic_id
from ciml.pipelines.kafka.broker import Ends, Listing
from tests.simulation.chaos import Chaos
from tests.simulation.scheduler import Scheduler

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
