"""Sending of messages to Kafka without blocking, with a short queue: unsent messages are on disk, not in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ciml.kafka import KafkaOptions

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

_QUEUE_KIB = 4096
Headers = Sequence[tuple[str, bytes]]


class Sender:
    """Sends messages to one broker, without blocking; librdkafka reconnects to a broker that is unavailable.

    Args:
      options: connection options.

    Attributes:
      connection_error: why the broker is unavailable or rejects the connection; "" without a known error.
    """

    def __init__(self, options: KafkaOptions) -> None:
        self.connection_error = ""
        self._options = options
        self._producer: Producer | None = None

    def send(
        self,
        topic: str,
        key: bytes,
        value: bytes,
        headers: Headers,
        done: Callable[[str], None],
    ) -> bool:
        """Queue a message; `poll` calls ``done`` with "" after delivery, else with the error.

        Returns:
          False if the message was not queued: the queue is full, or the producer failed. Try again later.

        Raises:
          CimlError: a Kafka property is invalid.
        """

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is None:
                self.connection_error = ""
            done(self._describe(error, topic) if error is not None else "")

        if self._producer is None:
            self._producer = self._make_producer()
        from confluent_kafka import KafkaException  # already imported by `_make_producer`

        try:
            self._producer.produce(topic, value, key=key, headers=list(headers), on_delivery=delivered)
        except BufferError:
            return False
        except KafkaException:  # a fatal error of this producer: the next call makes another one
            self._producer.purge()
            self._producer.poll(0)
            self._producer = None
            return False
        return True

    def poll(self, wait_s: float = 0.0) -> None:
        """Call ``done`` of delivered and failed messages; wait for one at most ``wait_s`` seconds."""
        if self._producer is not None:
            self._producer.poll(wait_s)

    def _describe(self, error: KafkaError, topic: str) -> str:
        return f"Kafka at {self._options.bootstrap}, topic {topic}: {self._options.hide(error.str())}"

    def _make_producer(self) -> Producer:
        from confluent_kafka import Producer

        from ciml.kafka.connect import make_client

        def on_error(error: KafkaError) -> None:
            self.connection_error = f"Kafka at {self._options.bootstrap}: {self._options.hide(error.str())}"

        properties: dict[str, Any] = {
            "linger.ms": 5,
            "compression.type": "zstd",
            "queue.buffering.max.kbytes": _QUEUE_KIB,
            "message.timeout.ms": 0,  # no limit: the log keeps unsent samples
            "enable.idempotence": True,
            **self._options.common(),
        }
        return make_client(Producer, self._options, properties, on_error)
