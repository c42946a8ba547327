"""A producer with a short queue: the unsent messages stay on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ciml.kafka.options import KafkaOptions

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

_QUEUE_KIB = 4096


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
        self, topic: str, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes]] | None,
        done: Callable[[str], None],
    ) -> bool:  # fmt: skip
        """Queue a message; `poll` calls ``done`` with "" after delivery, else with the error.

        Returns:
          False where the queue is full.

        Raises:
          CimlError: a Kafka property is invalid.
        """

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is None:
                self.connection_error = ""
            done(self._describe(error, topic) if error is not None else "")

        if self._producer is None:
            self._producer = self._make()
        try:
            self._producer.produce(topic, value, key=key, headers=list(headers or ()), on_delivery=delivered)
        except BufferError:
            return False
        except Exception as error:  # KafkaException: importing it costs what this module saves
            if type(error).__name__ != "KafkaException":
                raise
            self._producer.purge()  # a fatal error of this producer: the next one starts over
            self._producer.poll(0)
            self._producer = None
            return False
        return True

    def poll(self, wait_s: float = 0.0) -> None:
        """Report delivered and failed messages; wait for one at most ``wait_s`` seconds."""
        if self._producer is not None:
            self._producer.poll(wait_s)

    def _describe(self, error: KafkaError, topic: str) -> str:
        return f"Kafka at {self._options.bootstrap}, topic {topic}: {self._options.hide(error.str())}"

    def _make(self) -> Producer:
        from confluent_kafka import Producer

        from ciml.kafka.connect import make_client

        def failed(error: KafkaError) -> None:
            self.connection_error = f"Kafka at {self._options.bootstrap}: {self._options.hide(error.str())}"

        properties: dict[str, Any] = {
            "linger.ms": 5,
            "compression.type": "zstd",
            "queue.buffering.max.kbytes": _QUEUE_KIB,
            "message.timeout.ms": 0,  # no limit: the log keeps unsent samples
            "enable.idempotence": True,
            "socket.keepalive.enable": True,
            **self._options.common(),
        }
        return make_client(Producer, self._options, properties, failed)
