"""The service `mqtt`."""

from __future__ import annotations

from collections.abc import Sequence

from ciml.services.mqtt.session import MqttSession
from ciml.services.receivers.config import MqttSource
from ciml.services.receivers.sessions import Session, SessionReceiver


class MqttService(SessionReceiver):
    """Receives MQTT messages."""

    receiver = MqttSource.receiver

    def connections(self) -> Sequence[tuple[Session, int]]:
        # A broker of version 5 keeps to in_flight by itself; the rest is for messages of QoS 0. One of 3.1.1 does not
        # know it: it is not read beyond, at the cost of a new connection if Kafka is away for keepalive_s.
        return [
            (MqttSession(self.receivers, each), each.in_flight * (2 if each.version == "5" else 1))
            for each in self.receivers.of(MqttSource)
        ]
