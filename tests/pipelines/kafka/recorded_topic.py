"""A topic in memory, and the steps of those that publish to it: see `tests.durable`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

from confluent_kafka import KafkaError, KafkaException

from ciml.events.records import Message
from ciml.pipelines.kafka import publish
from ciml.pipelines.kafka.broker import Listing
from tests.durable import Died, Recorder


class Topic(Recorder):
    """A topic of one partition with transactions, and the steps of those that publish to it.

    The steps are a fence (a producer with a transactional id takes over from the earlier one), each message, and each
    commit. A commit takes one more offset, for its marker.

    Attributes:
      messages: the committed ones, without what a dead or fenced producer left.
    """

    def __init__(self, before: int | None = None, event: Callable[[], object] | None = None) -> None:
        super().__init__(before, event)
        self.messages: list[Message] = []
        self.end = 0
        self._owners: dict[str, _Producer] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[Topic]:
        """Let `ciml.pipelines.kafka.publish` publish to this topic. If the block ends with `Died`, it ends there."""
        replaced: dict[str, Any] = {
            "Producer": lambda options: _Producer(self, str(options["transactional.id"])),
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

    def take_over(self, name: str, producer: _Producer) -> None:
        self.step(f"fence {name}")
        self._owners[name] = producer

    def check_owner(self, name: str, producer: _Producer) -> None:
        if self._owners.get(name) is not producer:
            raise KafkaException(KafkaError(KafkaError._FENCED))

    def append(self, messages: list[tuple[bytes, bytes, Any]]) -> None:
        for value, key, headers in messages:
            self.messages.append(Message(self.end, value, tuple(headers), key))
            self.end += 1
        self.end += 1


class _Producer:
    """A producer of a `Topic`, with the part of confluent-kafka's interface that publications use."""

    def __init__(self, topic: Topic, name: str) -> None:
        self._topic = topic
        self._name = name
        self._open: list[tuple[bytes, bytes, Any]] = []

    def init_transactions(self, _: float) -> None:
        self._topic.take_over(self._name, self)

    def begin_transaction(self) -> None:
        self._open = []

    def produce(self, _: str, value: bytes, key: bytes, *, headers: Any, **__: Any) -> None:
        self._topic.step(f"produce {key.decode()}")
        self._topic.check_owner(self._name, self)
        self._open.append((value, key, headers))

    def commit_transaction(self, _: float) -> None:
        self._topic.step(f"commit {len(self._open)}")
        self._topic.check_owner(self._name, self)
        self._topic.append(self._open)

    def purge(self) -> None:
        self._open = []


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
