"""The service of a receiver: it works between `open` and `close` instead of running planned work items."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ciml.errors import EngineError
from ciml.kafka.options import KafkaOptions
from ciml.pairs import pairs
from ciml.pipelines.kafka.broker import topic_of
from ciml.services.receivers.config import Receivers, load_receivers
from ciml.services.receivers.metrics import ReceiverMetrics
from ciml.services.service import Progress, Service

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

_BROKER_S = 5.0


class Receiver(Service):
    """Receives deliveries in threads of its own. A receiver starts without its broker, and asks senders to try again.

    Args:
      receivers: the configuration.
      kafka: connection to the broker.
      topic: where deliveries go.

    Raises:
      CimlError: the configuration of a source is invalid.

    Attributes:
      receiver: its kind, as in `ciml.services.service.KINDS` and in the configuration.
      metrics: of its deliveries.
      broker_error: why the broker cannot be used at present; "" if it can.
    """

    receiver: ClassVar[str]
    poll_s = 2.0
    retry_s = (1.0, 5.0)

    def __init__(self, receivers: Receivers, kafka: KafkaOptions, topic: str) -> None:
        super().__init__(f"ciml-{self.receiver}-{topic}")
        self.receivers, self.topic = receivers, topic
        self.kafka = replace(kafka, timeout_s=min(kafka.timeout_s, _BROKER_S))
        self.metrics = ReceiverMetrics(self.receiver)
        self.broker_error = "it was not asked yet"

    @classmethod
    def of(cls, **arguments: Any) -> Self:
        return cls(*configured(**arguments))

    @abstractmethod
    def open(self) -> None:
        """Begin to receive. Raises `CimlError` where that is impossible."""

    @abstractmethod
    def close(self) -> None:
        """Finish what has been received, and end. Nothing is done before `open`, as in a supervisor."""

    def timings(self) -> Sequence[Collector]:
        return self.metrics.collectors

    def check_alive(self) -> None:
        """Raise the error that ended the threads."""

    def observe(self) -> Progress:
        """Check that it still receives, and that the broker has the topic."""
        self.check_alive()
        try:
            topic_of(self.kafka, self.topic)
        except EngineError as error:
            self.broker_error = str(error)
            raise
        self.broker_error = ""
        self.board.observed(())
        return Progress(0)


def configured(*, config: str, topic: str = "ci-events", **broker: Any) -> tuple[Receivers, KafkaOptions, str]:
    """Return the arguments of a receiver for a command's options. Raises `CimlError` for invalid ones."""
    return load_receivers(config), connection(**broker), topic


def connection(*, kafka: str, kafka_options: tuple[str, ...] = (), kafka_config: str | None = None) -> KafkaOptions:
    """Return the connection for a command's options. Raises `CimlError` for invalid ones."""
    return KafkaOptions.of(kafka, pairs("-X", kafka_options), kafka_config)
