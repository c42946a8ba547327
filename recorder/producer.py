"""A producer whose queue is short, since what is to be sent is on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ciml.kafka.options import KafkaOptions

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

_QUEUE_KIB = 4096


class Sender:
    """Messages to one broker. Nothing here waits; a broker that is away is waited for by librdkafka.

    Args:
      options: how to reach it.

    Attributes:
      refused: why the broker does not let us in, or is not there; "" where nothing is known against it.
    """

    def __init__(self, options: KafkaOptions) -> None:
        self.refused = ""
        self._options = options
        self._producer: Producer | None = None

    def send(
        self, topic: str, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes]] | None,
        done: Callable[[str], None],
    ) -> bool:  # fmt: skip
        """Take a message to be sent; ``done`` is told by `poll` of its end: "" or what went wrong.

        Returns:
          False where no more can be taken now.

        Raises:
          CimlError: a property cannot be used.
        """

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is None:
                self.refused = ""
            done(self._describe(error, topic) if error is not None else "")

        if self._producer is None:
            self._producer = self._make()
        try:
            self._producer.produce(topic, value, key=key, headers=list(headers or ()), on_delivery=delivered)
        except BufferError:
            return False
        except Exception as error:  # KafkaException, whose import costs what this module saves
            if type(error).__name__ != "KafkaException":
                raise
            self._producer.purge()  # a fatal error of this producer: the next one begins anew
            self._producer.poll(0)
            self._producer = None
            return False
        return True

    def poll(self, wait_s: float = 0.0) -> None:
        """Tells of messages that have arrived or failed, for at most so long until there is one."""
        if self._producer is not None:
            self._producer.poll(wait_s)

    def _describe(self, error: KafkaError, topic: str) -> str:
        return f"Kafka at {self._options.bootstrap}, topic {topic}: {self._options.hide(error.str())}"

    def _make(self) -> Producer:
        from confluent_kafka import Producer

        from ciml.kafka.connect import make_client

        def refused(error: KafkaError) -> None:
            self.refused = f"Kafka at {self._options.bootstrap}: {self._options.hide(error.str())}"

        properties: dict[str, Any] = {
            "linger.ms": 5,
            "compression.type": "zstd",
            "queue.buffering.max.kbytes": _QUEUE_KIB,
            "message.timeout.ms": 0,  # a broker may be away for long, and the log keeps what is not sent
            "enable.idempotence": True,
            "socket.keepalive.enable": True,
            **self._options.common(),
        }
        return make_client(Producer, self._options, properties, refused)
