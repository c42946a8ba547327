"""Produces the deliveries of receivers to Kafka, and counts them.

All in-sync replicas acknowledge a delivery, or it is an error within a time limit.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from prometheus_client import Counter, Gauge, Histogram

from ciml.errors import CimlError, EngineError
from ciml.kafka import KafkaOptions
from ciml.kafka.connect import as_engine_error, make_client
from ciml.limits import MAX_MESSAGE_BYTES, MAX_WAITING_DELIVERIES_BYTES
from ciml.metrics import metric

_LINGER_MS = 5  # what comes within is one request: 200 deliveries a second are few requests
_POLL_S = 0.1
_QUIET_S = 60.0  # between two warnings about a source and an outcome
_FRAME_BYTES = 4096  # of a message's own fields
_log = logging.getLogger(__name__)

Headers = Sequence[tuple[str, bytes]]
#: The source of deliveries that belong to none.
UNKNOWN = "_unknown"


class DeliveryProducer:
    """A producer whose every message is awaited. Idempotent: its own retries store no message twice.

    A message that was not acknowledged in time may be stored all the same; its sender sends it again, and ingest
    recognises the repeat by the event's id. Safe to use from threads.

    Args:
      kafka: connection to the broker.
      topic: where deliveries go.
      answer_s: time limit for an acknowledgement, seconds.
    """

    def __init__(self, kafka: KafkaOptions, topic: str, answer_s: float) -> None:
        self._kafka = kafka
        self._topic = topic
        self._answer_s = answer_s
        self._producer = self._make()
        self._is_broken = False
        self._closing = threading.Event()
        self._failing_since_s: float | None = None
        self._thread = threading.Thread(target=self._poll, name="deliveries", daemon=True)
        self._thread.start()

    def send(self, value: bytes, headers: Headers) -> Future[None]:
        """Produce a message without waiting.

        Returns:
          A future that ends when the broker has acknowledged the message. Its exception is `EngineError` where the
          broker does not answer, and another `CimlError` where it rejects the message as too large.
        """
        acknowledged: Future[None] = Future()
        acknowledged.set_running_or_notify_cancel()  # a caller that gives up cannot cancel it
        try:
            self._producer.produce(
                self._topic, value, headers=list(headers), on_delivery=partial(self._settle, acknowledged)
            )
        except BufferError:
            self._settle(acknowledged, KafkaError(KafkaError._QUEUE_FULL), None)
        except KafkaException as error:
            self._settle(acknowledged, error.args[0], None)
        return acknowledged

    async def deliver(self, value: bytes, headers: Headers) -> None:
        """Produce a message, and wait until the broker has acknowledged it, in an event loop.

        Raises:
          EngineError: the broker did not acknowledge it within ``answer_s``; it may have it all the same.
          CimlError: the broker rejects it as too large.
        """
        try:
            async with asyncio.timeout(self._answer_s + 1.0):  # librdkafka's own limit comes first
                await asyncio.wrap_future(self.send(value, headers))
        except TimeoutError:
            raise self._error(KafkaError(KafkaError._MSG_TIMED_OUT)) from None

    def close(self) -> None:
        """Wait for messages that were sent, and end."""
        self._closing.set()
        self._thread.join()

    def _make(self) -> Producer:
        settings: dict[str, Any] = {
            "linger.ms": _LINGER_MS,
            "compression.type": "lz4",
            "queue.buffering.max.kbytes": MAX_WAITING_DELIVERIES_BYTES >> 10,
            **self._kafka.common(),
            "message.max.bytes": MAX_MESSAGE_BYTES + _FRAME_BYTES,
            "message.timeout.ms": int(self._answer_s * 1000),
            "acks": "all",
            "enable.idempotence": True,
        }
        return make_client(Producer, self._kafka, settings)

    def _poll(self) -> None:
        while not self._closing.is_set():
            self._producer.poll(_POLL_S)
            if self._is_broken:
                try:
                    self._renew()
                except CimlError as error:  # such as a certificate that is being replaced: the next turn tries again
                    _log.warning("the producer is not renewed: %s", error)
        self._producer.flush(self._answer_s + 1.0)

    def _renew(self) -> None:
        """Replace a producer after an error that it does not survive; its messages end with that error."""
        old = self._producer
        self._producer = self._make()
        self._is_broken = False
        old.purge()
        old.flush(1.0)

    def _settle(self, acknowledged: Future[None], error: KafkaError | None, _: object) -> None:
        if error is None:
            if self._failing_since_s is not None:
                _log.warning("Kafka acknowledges again after %.0f s", time.monotonic() - self._failing_since_s)
                self._failing_since_s = None
            acknowledged.set_result(None)
            return
        self._is_broken |= error.fatal()
        failure = self._error(error)
        if isinstance(failure, EngineError) and self._failing_since_s is None:
            self._failing_since_s = time.monotonic()
            _log.warning("%s; senders are asked to try again", failure)
        acknowledged.set_exception(failure)

    def _error(self, error: KafkaError) -> CimlError:
        code = error.code()
        if code == KafkaError.MSG_SIZE_TOO_LARGE:
            return CimlError(f"topic {self._topic} rejects a message as too large; raise its max.message.bytes")
        if code == KafkaError._QUEUE_FULL:
            return EngineError(
                f"Kafka at {self._kafka.bootstrap}: more than {MAX_WAITING_DELIVERIES_BYTES} bytes wait for it "
                "(MAX_WAITING_DELIVERIES_BYTES)"
            )
        if code in (KafkaError._MSG_TIMED_OUT, KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT):
            return EngineError(
                f"Kafka at {self._kafka.bootstrap} did not acknowledge a message for {self._topic} within "
                f"{self._answer_s:g} s"
            )
        return as_engine_error(self._kafka, self._topic, KafkaException(error))


class ReceiverMetrics:
    """The metrics of a receiver. Sources are those of its configuration, and outcomes a closed set.

    Attributes:
      collectors: for the metrics endpoint of this process.
    """

    def __init__(self, receiver: str) -> None:
        self._receiver = receiver
        self._deliveries: Counter = metric("ciml_deliveries_total").counter()
        self._seconds: Histogram = metric("ciml_delivery_seconds").histogram()
        self._connected: Gauge = metric("ciml_source_connected").gauge()
        self.collectors = (self._deliveries, self._seconds, self._connected)
        self._warned_s: dict[tuple[str, str], float] = {}

    def count(self, source: str, outcome: str) -> None:
        """Count a delivery."""
        self._deliveries.labels(self._receiver, source, outcome).inc()

    def count_rejected(self, source: str, outcome: str, reason: str) -> None:
        """Count a delivery that is not stored, and log a warning once a minute."""
        self.count(source, outcome)
        now_s = time.monotonic()
        if now_s - self._warned_s.get((source, outcome), -_QUIET_S) >= _QUIET_S:
            self._warned_s[source, outcome] = now_s
            _log.warning("source %s: a delivery is not stored: %s (no more of it for a minute)", source, reason)

    def acknowledged(self, source: str, seconds: float) -> None:
        """Count a delivery that Kafka has acknowledged, with its time."""
        self.count(source, "accepted")
        self._seconds.labels(self._receiver, source).observe(seconds)

    def set_connected(self, source: str, is_connected: bool) -> None:
        """Set whether a source that the receiver connects to is connected."""
        self._connected.labels(self._receiver, source).set(float(is_connected))
