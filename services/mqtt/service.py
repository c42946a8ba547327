"""The service `mqtt`."""

from __future__ import annotations

from typing import Any, Self

from ciml.kafka.options import KafkaOptions
from services.mqtt.session import MqttSession
from services.receivers.config import MqttSource, Receivers
from services.receivers.receiver import configured
from services.receivers.sessions import SessionReceiver


class MqttService(SessionReceiver):
    """Receives MQTT messages.

    Args:
      receivers: the configuration.
      kafka, topic: see `Receiver`.

    Raises:
      CimlError: the configuration of a source is invalid.
    """

    def __init__(self, receivers: Receivers, kafka: KafkaOptions, topic: str) -> None:
        sources = receivers.of(MqttSource)
        # A broker of version 5 keeps to in_flight by itself; the rest is for messages of QoS 0. One of 3.1.1 does not
        # know it: it is not read beyond, at the cost of a new connection if Kafka is away for keepalive_s.
        super().__init__(
            "mqtt", kafka, topic,
            [(MqttSession(receivers, each), each.in_flight * (2 if each.version == "5" else 1)) for each in sources],
        )  # fmt: skip

    @classmethod
    def of(cls, **arguments: Any) -> Self:
        return cls(*configured(**arguments))
