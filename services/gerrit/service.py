"""The service `gerrit`."""

from __future__ import annotations

from typing import Any, Self

from ciml.kafka.options import KafkaOptions
from services.gerrit.session import GerritSession
from services.receivers.config import GerritSource, Receivers
from services.receivers.receiver import configured
from services.receivers.sessions import SessionReceiver


class GerritService(SessionReceiver):
    """Receives Gerrit's events.

    Args:
      receivers: the configuration.
      kafka, topic: see `Receiver`.

    Raises:
      CimlError: the configuration of a source is invalid.
    """

    def __init__(self, receivers: Receivers, kafka: KafkaOptions, topic: str) -> None:
        sources = receivers.of(GerritSource)
        super().__init__("gerrit", kafka, topic, [(GerritSession(receivers, each), each.in_flight) for each in sources])

    @classmethod
    def of(cls, **arguments: Any) -> Self:
        return cls(*configured(**arguments))
