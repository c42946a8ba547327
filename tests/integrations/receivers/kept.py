"""A session in a thread whose deliveries are kept here, and what a receiver stored in Kafka."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from ciml.events.records import Message
from ciml.integrations.producer import Headers, ReceiverMetrics
from ciml.integrations.sessions import Inbox, Session
from ciml.services.receivers import SessionReceiver
from ciml.services.service import NotReadyError
from tests.messages import published


def wait(condition: Callable[[], object], what: str, most_s: float = 60.0) -> None:
    deadline = time.monotonic() + most_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@dataclass
class Kept:
    """Stands for Kafka: acknowledges a delivery at once, or when it is asked to.

    Attributes:
      values, headers: of the deliveries, in their order.
      outcomes: the number of deliveries by outcome.
    """

    values: list[bytes] = field(default_factory=list)
    headers: list[dict[str, bytes]] = field(default_factory=list)
    acknowledges: bool = True
    thread: threading.Thread = field(init=False)
    waiting: list[Future[None]] = field(default_factory=list)
    metrics: ReceiverMetrics = field(default_factory=lambda: ReceiverMetrics("test"))

    def send(self, value: bytes, headers: Headers) -> Future[None]:
        self.values.append(value)
        self.headers.append(dict(headers))
        done: Future[None] = Future()
        self.waiting.append(done)
        if self.acknowledges:
            self.acknowledge()
        return done

    def acknowledge(self) -> None:
        """Acknowledge all that wait, and what follows."""
        self.acknowledges = True
        while self.waiting:
            self.waiting.pop().set_result(None)

    @property
    def messages(self) -> list[Message]:
        """The deliveries as Kafka would hold them."""
        pairs = zip(self.values, self.headers, strict=False)  # the session's thread may just add a delivery
        return [Message(offset, value, tuple(headers.items())) for offset, (value, headers) in enumerate(pairs)]

    @property
    def outcomes(self) -> dict[str, int]:
        samples = self.metrics.collectors[0].collect()[0].samples
        return {one.labels["outcome"]: int(one.value) for one in samples if one.name.endswith("_total")}


@contextmanager
def running(session: Session, most: int = 64, *, acknowledges: bool = True) -> Iterator[Kept]:
    """Run a session, and end it within 30 s."""
    kept, stop = Kept(acknowledges=acknowledges), threading.Event()
    producer: Any = kept
    inbox = Inbox(session.name, producer, kept.metrics, most)
    kept.thread = threading.Thread(target=session.run, args=(inbox, stop), daemon=True)
    kept.thread.start()
    try:
        yield kept
    finally:
        stop.set()
        kept.thread.join(30)
        assert not kept.thread.is_alive(), "the session does not end"


@contextmanager
def connected(session: Session, *, acknowledges: bool = True) -> Iterator[Kept]:
    """Run a session that connects."""
    with running(session, acknowledges=acknowledges) as kept:
        wait(lambda: not session.problem, "it does not connect")
        yield kept


def stored(kafka: str, topic: str, least: int) -> list[Message]:
    """Return the deliveries of a topic once there are so many."""
    messages: list[Message] = []

    def are_enough() -> bool:
        messages[:] = published(kafka, topic, "ci-events")
        return len(messages) >= least

    wait(are_enough, f"there are not {least} messages in {topic}")
    return messages


def not_ready(service: SessionReceiver) -> str:
    """Return why a service is not ready."""
    with pytest.raises(NotReadyError) as caught:
        service.observe()
    return str(caught.value)


@contextmanager
def allocating(most: int) -> Iterator[None]:
    """Assert that no more than ``most`` bytes are allocated at once."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak} bytes"
