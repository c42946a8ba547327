"""What was acknowledged is in the topic and once in the raw store, while receiver, mosquitto and Kafka are killed.

Of webhooks: `tests/integrations/webhooks/test_kills.py`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from ciml import engines
from tests.faults.broker import own_broker
from tests.integrations.mqtt.mosquitto import USERS, Certificates, Mosquitto
from tests.integrations.receivers.conftest import probe
from tests.integrations.receivers.kept import wait
from tests.integrations.webhooks.killing import Receiving, ingest_and_compare, run_bodies
from tests.messages import published

__all__ = ["probe"]

_UNSAVED_S = 3.0  # mosquitto saves its messages each second: a publisher repeats what a kill may have cost


@dataclass
class Publisher:
    """Publishes with QoS 1, again after each loss, until the broker has acknowledged all.

    Attributes:
      acknowledged: time of the acknowledgement, by number.
    """

    broker: Mosquitto
    bodies: Sequence[bytes]
    acknowledged: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._numbers, self._early = dict[int, int](), set[int]()
        self._lock = threading.Lock()
        self._client = made = mqtt.Client(CallbackAPIVersion.VERSION2, "publisher", clean_session=False)
        made.username_pw_set("zuul", USERS["zuul"])
        made.tls_set(str(self.broker.certificates.folder / "ca.pem"))
        made.reconnect_delay_set(1, 2)
        made.on_publish = self._published
        made.connect("127.0.0.1", self.broker.tls)
        made.loop_start()

    def publish(self, number: int) -> None:
        # Without the lock: paho calls `_published` with a lock of its own.
        mid = self._client.publish("zuul/tenant/check/result", self.bodies[number], 1).mid
        with self._lock:
            if mid in self._early:
                self._early.remove(mid)
                self.acknowledged[number] = time.monotonic()
            else:
                self._numbers[mid] = number

    def repeat_unsaved(self, killed_s: float) -> None:
        """Publish what mosquitto may have lost by a kill."""
        for number, when in list(self.acknowledged.items()):
            if when > killed_s - _UNSAVED_S:
                self.publish(number)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _published(self, _: object, __: object, mid: int, *___: object) -> None:
        with self._lock:
            if mid in self._numbers:
                self.acknowledged[self._numbers.pop(mid)] = time.monotonic()
            else:
                self._early.add(mid)


@pytest.mark.engines
@pytest.mark.interop
@pytest.mark.timeout(1800)
def test_2000_mqtt_messages_while_receiver_mosquitto_and_kafka_are_killed(tmp_path: Path, probe: Path) -> None:
    events = 2000
    chance = random.Random(1)
    broker = own_broker(tmp_path)
    engines.create_topics(broker.address, {"mqtt": 2})
    certificates = tmp_path / "certificates"
    certificates.mkdir()
    mosquitto = Mosquitto(tmp_path / "mosquitto", Certificates.made(certificates))
    mosquitto.start()
    (tmp_path / "password").write_text(USERS["ciml"])
    config = (
        f'[[source]]\nreceiver = "mqtt"\nname = "hub"\nadapter = "probe"\nbroker = "mqtts://127.0.0.1:{mosquitto.tls}"\n'
        f'topics = ["zuul/#"]\nuser = "ciml"\nsecret_file = "{tmp_path}/password"\nca_file = "{certificates}/ca.pem"\n'
    )
    receiver = Receiving("mqtt", tmp_path / "receiver", config, broker.address, "mqtt", probe)
    wait(lambda: "receiving mqtt" in receiver.program.said(10**6), "it does not receive")
    time.sleep(_UNSAVED_S)  # the session is saved
    publisher = Publisher(mosquitto, run_bodies(events))

    def kill_mosquitto() -> None:
        killed_s = time.monotonic()
        mosquitto.kill()
        mosquitto.start()
        publisher.repeat_unsaved(killed_s)

    def restart_mosquitto() -> None:
        mosquitto.stop()
        mosquitto.start()

    def kill_kafka() -> None:
        broker.kill()
        broker.start()

    def publish() -> None:
        for number in range(events):
            time.sleep(0.01)
            publisher.publish(number)

    publishing = threading.Thread(target=publish)
    publishing.start()
    kills: list[Callable[[], None]] = [receiver.kill, kill_mosquitto, restart_mosquitto, kill_kafka]
    for threshold in sorted(chance.sample(range(events - 5), 10)):
        # in this thread, with which the kernel ends what it has started
        wait(lambda threshold=threshold: len(publisher.acknowledged) >= threshold, "nothing is acknowledged", 300)
        chance.choice(kills)()
    publishing.join()
    wait(lambda: len(publisher.acknowledged) == events, "not all is acknowledged", 300)
    publisher.close()
    wait(
        lambda: len({each.value for each in published(broker.address, "mqtt", "ci-events")}) == events,
        "events are missing in Kafka", 300,
    )  # fmt: skip
    time.sleep(5.0)  # late repeats
    receiver.program.kill()
    mosquitto.kill()
    ingest_and_compare(broker.address, "mqtt", tmp_path / "data", events, "hub")
    broker.kill()
