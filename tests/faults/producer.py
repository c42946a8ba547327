"""The producer: sends messages, and keeps what the broker acknowledged."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from tests.faults.plan import Send

#: Number of the message, partition, offset, time.
Ack = tuple[int, int, int, float]


class Producer(threading.Thread):
    """Sends messages in a thread of its own, however long the broker is away.

    Args:
      broker, topic: where to.
      sends: the messages.
      rate: messages a second at most; 0: as fast as possible.
      first: the number of the first message.

    Attributes:
      acks: what was acknowledged; others take from it.
      lost: messages that were not acknowledged in the end, and why.
    """

    def __init__(self, broker: str, topic: str, sends: Sequence[Send], rate: float, first: int) -> None:
        super().__init__(daemon=True)
        self._broker, self._topic, self._sends, self._rate, self._first = broker, topic, sends, rate, first
        self.acks: list[Ack] = []
        self.lost: list[str] = []
        self.start()

    def run(self) -> None:
        from confluent_kafka import Producer

        producer = Producer({
            "bootstrap.servers": self._broker, "enable.idempotence": True, "acks": "all", "linger.ms": 5,
            "message.timeout.ms": 600_000, "delivery.timeout.ms": 600_000, "reconnect.backoff.max.ms": 1000,
            "queue.buffering.max.messages": 1_000_000, "log_level": 0,
        })  # fmt: skip
        began = time.monotonic()
        for number, send in enumerate(self._sends):
            producer.poll(0)
            while self._rate and (wait_s := began + number / self._rate - time.monotonic()) > 0:
                producer.poll(wait_s)  # a poll ends with the first acknowledgement
            stamp = {} if send.timestamp_s is None else {"timestamp": int((time.time() + send.timestamp_s) * 1000)}
            producer.produce(
                self._topic, send.value, send.key.encode(), partition=send.partition, headers=list(send.headers),
                on_delivery=lambda error, message, number=number: self._done(number, error, message), **stamp,
            )  # fmt: skip
        if left := producer.flush(600):
            self.lost.append(f"{left} messages without an answer")

    def _done(self, number: int, error: Any, message: Any) -> None:
        if error is not None:
            self.lost.append(f"{number}: {error}")
        else:
            self.acks.append((self._first + number, message.partition(), message.offset(), time.time()))
