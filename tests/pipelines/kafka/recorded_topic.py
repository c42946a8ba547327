"""A topic in memory for clients of confluent-kafka, and the steps of those that publish to it: see `tests.durable`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from confluent_kafka import KafkaError, KafkaException

from ciml.events.records import Message
from ciml.pipelines.kafka import publish
from ciml.pipelines.kafka.broker import Listing
from tests.durable import Died, Messages


class Topic(Messages):
    """A topic of one partition with transactions.

    The steps are a fence (a producer with a transactional id takes over from the earlier one), each message, and each
    commit or flush. A commit takes one more offset, for its marker.

    Attributes:
      end: the offset after the last message or marker.
      fault: what the broker reports for each message.
      unsent: how many of the last messages a flush leaves behind.
    """

    def __init__(self, before: int | None = None, event: Callable[[], object] | None = None) -> None:
        super().__init__(None, before, event)
        self.end = 0
        self.fault: KafkaError | None = None
        self.unsent = 0
        self._owners: dict[str, RecordedProducer] = {}

    @property
    def messages(self) -> list[Message]:
        """The committed messages, without those of a dead or fenced producer."""
        return [message for _, message in self.stored]

    @contextlib.contextmanager
    def recording(self) -> Iterator[Topic]:
        """Let `ciml.pipelines.kafka.publish` publish to this topic. If the block ends with `Died`, it ends there."""
        replaced: dict[str, Any] = {
            "Producer": lambda settings: RecordedProducer(self, settings),
            "Reader": lambda *_: _Reader(self),
            "make_topic": lambda *_: None,
            "is_mock": lambda _: False,
            "topic_of": lambda *_: ("T", [0]),
            "list_topic": lambda _, name: Listing(name, "T", {0: (0, self.end)}),
        }
        with contextlib.ExitStack() as stack:
            for name, value in replaced.items():
                stack.enter_context(patch.object(publish, name, value))
            with contextlib.suppress(Died):
                yield self

    def fence(self, name: str, producer: RecordedProducer) -> None:
        self.step(f"fence {name}")
        self.waiting = []
        self._owners[name] = producer

    def check_owner(self, name: str, producer: RecordedProducer) -> None:
        if name and self._owners.get(name) is not producer:
            raise KafkaException(KafkaError(KafkaError._FENCED))

    def acknowledge(self) -> None:
        count = len(self.waiting) - self.unsent
        acknowledged = self.waiting[:count]
        self.waiting = self.waiting[count:]
        for name, (value, key, headers), done in acknowledged:
            if self.fault is None:
                self.stored.append((name, Message(self.end, value, tuple(headers), key)))
                self.end += 1
            done(str(self.fault or ""))
        self.end += 1


class RecordedProducer:
    """A producer of a `Topic`, with the part of confluent-kafka's interface that the product uses."""

    def __init__(self, topic: Topic, settings: dict[str, Any]) -> None:
        self.settings = settings
        self._topic = topic
        self._name = settings.get("transactional.id", "")

    def init_transactions(self, _: float) -> None:
        self._topic.fence(self._name, self)

    def begin_transaction(self) -> None:
        pass

    def produce(self, topic: str, value: bytes, key: bytes, *, headers: Any, on_delivery: Callable[..., None]) -> None:
        self._topic.step(f"produce {key.decode()}")
        self._topic.check_owner(self._name, self)
        record = SimpleNamespace(topic=lambda: topic)
        self._topic.waiting.append((topic, (value, key, headers), lambda _: on_delivery(self._topic.fault, record)))

    def commit_transaction(self, _: float) -> None:
        self.flush(0)

    def poll(self, _: float) -> None:
        pass

    def flush(self, _: float) -> int:
        self._topic.step(f"commit {len(self._topic.waiting) - self._topic.unsent}")
        self._topic.check_owner(self._name, self)
        self._topic.acknowledge()
        return len(self._topic.waiting)

    def purge(self) -> None:
        pass


class _Reader:
    """A reader of a `Topic`."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic
        self.position = 0

    def seek(self, position: int) -> None:
        self.position = position

    def read(self, most: int, _: float) -> list[Message]:
        start = self.position
        self.position = min(start + most, self._topic.end)
        return [message for message in self._topic.messages if start <= message.offset < self.position]

    def close(self) -> None:
        pass
