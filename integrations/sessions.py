"""The sessions of receivers that connect to their sources: one thread each, which reconnects after each loss.

An `Inbox` has the deliveries of a source that Kafka has not acknowledged.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from ciml.errors import EngineError
from ciml.events.redaction import shown
from ciml.integrations.producer import DeliveryProducer, Headers, ReceiverMetrics

ANSWER_S = 8.0  # time limit for Kafka's acknowledgement
_PAUSES_S = (1.0, 60.0)  # first and longest one before a source is connected again
_STEADY_S = 60.0  # a connection of this age was no failure: the next pause is the first again
_AGAIN_S = 1.0  # before a delivery is produced again
_log = logging.getLogger(__name__)


class Lost(Exception):
    """The connection to a source is lost, or was refused; the message says why."""


class Session(ABC):
    """The connection to a source.

    Attributes:
      name: of the source.
      shown: where it connects, for people.
      problem: why it does not receive at present; "" while it does.
    """

    def __init__(self, name: str, shown: str) -> None:
        self.name = name
        self.shown = shown
        self.problem = "is not connected yet"
        self._end_s: float | None = None

    @abstractmethod
    def serve(self, inbox: Inbox, stop: threading.Event) -> None:
        """Connect, and receive until ``stop`` is set. Raises `Lost`."""

    def may_end(self, inbox: Inbox, stop: threading.Event) -> bool:
        """Return whether to end now: it is to stop, and nothing waits for Kafka, or Kafka does not answer in time."""
        if not stop.is_set():
            return False
        if self._end_s is None:
            self._end_s = time.monotonic() + ANSWER_S
        return not inbox or time.monotonic() > self._end_s

    def run(self, inbox: Inbox, stop: threading.Event) -> None:
        """Serve, and connect again after each loss, until ``stop`` is set."""
        pauses = 0
        reported = ""
        while not stop.is_set():
            began_s = time.monotonic()
            try:
                self.serve(inbox, stop)
            except Lost as error:
                self.problem = str(error)
            except Exception as error:  # noqa: BLE001 - what a source sends costs no other source
                self.problem = f"{self.shown}: {type(error).__name__}: {shown(str(error))}"
                if reported != self.problem:
                    _log.warning("source %s: an unexpected error", self.name, exc_info=True)
            inbox.set_connected(False)
            if stop.is_set():
                return
            if time.monotonic() - began_s > _STEADY_S:
                pauses = 0
                reported = ""
            if reported != self.problem:
                reported = self.problem
                _log.warning("source %s: %s; connecting again", self.name, reported)
            first, longest = _PAUSES_S
            stop.wait(min(longest, first * 2.0**pauses) * random.uniform(0.5, 1.0))  # noqa: S311
            pauses = min(pauses + 1, 16)


@dataclass
class _Waiting:
    """A delivery that Kafka has not acknowledged, or a rejected one that waits for its turn.

    Attributes:
      value, headers: the message.
      settled: called when it is settled.
      began_s: when it was put.
      sent: its acknowledgement; None before it is produced again.
      again_s: when it is produced again.
      is_rejected: whether it is never produced.
    """

    value: bytes
    headers: Headers
    settled: Callable[[], object]
    began_s: float
    sent: Future[None] | None = None
    again_s: float = 0.0
    is_rejected: bool = False


@dataclass
class Inbox:
    """The deliveries of a source that Kafka has not acknowledged, in order. Of one thread.

    Args:
      source: its name.
      producer: to the topic of deliveries.
      metrics: of deliveries.
      capacity: number of deliveries that may wait.
    """

    source: str
    producer: DeliveryProducer
    metrics: ReceiverMetrics
    capacity: int
    _waiting: deque[_Waiting] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether no further delivery may be put now."""
        return len(self._waiting) >= self.capacity

    def put(self, value: bytes, headers: Headers, settled: Callable[[], object]) -> None:
        """Produce a delivery; ``settled`` is called by `settle`, in the order of puts, when Kafka has it."""
        delivery = _Waiting(value, headers, settled, time.monotonic())
        delivery.sent = self.producer.send(value, headers)
        self._waiting.append(delivery)

    def settle(self) -> None:
        """Acknowledge what Kafka has, and produce again what it did not acknowledge in time."""
        now_s = time.monotonic()
        for delivery in self._waiting:
            self._retry(delivery, now_s)
        while self._waiting:
            delivery = self._waiting[0]
            if delivery.sent is None or not delivery.sent.done():
                return
            error = delivery.sent.exception()
            if isinstance(error, EngineError):  # since the loop above
                return
            self._waiting.popleft()
            if error is not None:
                self.metrics.count_rejected(self.source, "too_large", str(error))
            elif not delivery.is_rejected:
                self.metrics.acknowledged(self.source, now_s - delivery.began_s)
            delivery.settled()

    def _retry(self, delivery: _Waiting, now_s: float) -> None:
        """Produce a delivery again a while after Kafka did not acknowledge it."""
        if delivery.sent is None:
            if now_s >= delivery.again_s:
                delivery.sent = self.producer.send(delivery.value, delivery.headers)
        elif delivery.sent.done() and isinstance(delivery.sent.exception(), EngineError):
            self.metrics.count(self.source, "unavailable")
            delivery.sent = None
            delivery.again_s = now_s + _AGAIN_S

    def reject(self, outcome: str, why: str, settled: Callable[[], object] = lambda: None) -> None:
        """Count a delivery that is not produced; ``settled`` is called in the order of puts."""
        self.metrics.count_rejected(self.source, outcome, why)
        done: Future[None] = Future()
        done.set_result(None)
        self._waiting.append(_Waiting(b"", (), settled, 0.0, done, is_rejected=True))

    def drop(self) -> None:
        """Forget all waiting deliveries, because their sender repeats them after a loss of the connection."""
        self._waiting.clear()

    def set_connected(self, is_connected: bool) -> None:
        """Set the metric of the connection."""
        self.metrics.set_connected(self.source, is_connected)
