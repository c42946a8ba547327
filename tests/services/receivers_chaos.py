"""Kills receivers, Kafka, mosquitto and Gerrit at random: python -m tests.services.receivers_chaos --events 10000

For each receiver: every event that was acknowledged to its sender is in the topic, and once in the raw store.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from ciml import engines
from ciml.data_root import DataRoot
from ciml.engines.processes import python_environment
from ciml.events.reviews import PARTLY_APPROVED
from ciml.integrations.gerrit.session import keys_of
from ciml.integrations.registry import read_event
from ciml.kafka import KafkaOptions
from ciml.pipelines.ingest.committer import IngestConfig
from ciml.services.driver import drive
from ciml.services.ingest import IngestService
from tests.faults.broker import Broker, own_broker
from tests.faults.children import Program
from tests.integrations.gerrit.real import REVIEWER, Gerrit, NoAnswer
from tests.integrations.mqtt.mosquitto import USERS, Certificates, Mosquitto
from tests.integrations.receivers.probe import install, installed
from tests.integrations.webhooks.killing import Killed, deliver_and_ingest, ingest_and_compare, run_bodies
from tests.messages import published
from tests.pipelines.ingest.ingesting import account

_PATIENCE_S = 300.0
_UNSAVED_S = 3.0  # mosquitto saves its messages each second: a publisher repeats what a kill may have cost
_Kill = tuple[str, Callable[[], None]]


@dataclass
class Receiving:
    """``ciml receive KIND`` in a process of its own, which may be killed and started again."""

    kind: str
    folder: Path
    config: str
    kafka: str
    topic: str
    probe: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "receivers.toml").write_text(self.config)
        self.start()

    def start(self) -> None:
        environment = python_environment()
        environment["PYTHONPATH"] = os.pathsep.join([str(self.probe), environment.get("PYTHONPATH", "")])
        self.program = Program(
            [sys.executable, "-m", "ciml.cli.main", "receive", self.kind, "--config",
             str(self.folder / "receivers.toml"), "--kafka", self.kafka, "--topic", self.topic],
            self.folder / "receiver.log", environment,
        )  # fmt: skip

    def kill(self) -> None:
        self.program.kill()
        self.start()

    def wait_until_ready(self) -> None:
        wait(
            lambda: f"receiving {self.kind}" in self.program.said(10**6), f"it does not receive: {self.program.said()}"
        )


def wait(condition: Callable[[], object], what: str, most_s: float = _PATIENCE_S) -> None:
    deadline = time.monotonic() + most_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def restarted(server: Broker | Gerrit) -> Callable[[], None]:
    """Return the kill of a server, which is started again."""

    def kill() -> None:
        server.kill()
        server.start()

    return kill


def kill_at_random(
    choices: Sequence[_Kill],
    chance: random.Random,
    kills: int,
    events: int,
    done: Callable[[], int],
    counts: Counter[str],
) -> None:
    """Kill in this thread, with which the kernel ends what it has started, at random numbers of done events."""
    for threshold in sorted(chance.sample(range(events - 5), kills)):
        wait(lambda threshold=threshold: done() >= threshold, "nothing is done")
        what, kill = chance.choice(choices)
        counts[what] += 1
        kill()


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


def mqtt_trial(folder: Path, broker: Broker, events: int, kills: int, rate: float, seed: int) -> None:
    """Publish events to mosquitto while it, the receiver and Kafka are killed."""
    chance, topic = random.Random(seed), f"mqtt-{seed}"
    engines.create_topics(broker.address, {topic: 2})
    certificates = folder / "certificates"
    certificates.mkdir(parents=True)
    mosquitto = Mosquitto(folder / "mosquitto", Certificates.made(certificates))
    mosquitto.start()
    (folder / "password").write_text(USERS["ciml"])
    config = (
        f'[[source]]\nreceiver = "mqtt"\nname = "hub"\nadapter = "probe"\nbroker = "mqtts://127.0.0.1:{mosquitto.tls}"\n'
        f'topics = ["zuul/#"]\nuser = "ciml"\nsecret_file = "{folder}/password"\nca_file = "{certificates}/ca.pem"\n'
    )
    receiver = Receiving("mqtt", folder / "receiver", config, broker.address, topic, install(folder / "probe"))
    receiver.wait_until_ready()
    time.sleep(_UNSAVED_S)  # the session is saved
    publisher, counts = Publisher(mosquitto, run_bodies(events)), Counter[str]()

    def kill_mosquitto() -> None:
        killed_s = time.monotonic()
        mosquitto.kill()
        mosquitto.start()
        publisher.repeat_unsaved(killed_s)

    def restart_mosquitto() -> None:
        mosquitto.stop()
        mosquitto.start()

    began = time.monotonic()

    def publish() -> None:
        for number in range(events):
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
            publisher.publish(number)

    publishing = threading.Thread(target=publish)
    publishing.start()
    choices: list[_Kill] = [
        ("receiver", receiver.kill), ("mosquitto killed", kill_mosquitto), ("mosquitto restarted", restart_mosquitto),
        ("Kafka", restarted(broker)),
    ]  # fmt: skip
    kill_at_random(choices, chance, kills, events, lambda: len(publisher.acknowledged), counts)
    publishing.join()
    wait(lambda: len(publisher.acknowledged) == events, f"mosquitto acknowledged {len(publisher.acknowledged)} events")
    publisher.close()
    print(
        f"mqtt: {events} events acknowledged after {time.monotonic() - began:.0f} s; kills: {dict(counts)}", flush=True
    )
    wait(
        lambda: len({each.value for each in published(broker.address, topic, "ci-events")}) == events,
        "events are missing in Kafka",
    )
    time.sleep(5.0)  # late repeats
    receiver.program.kill()
    mosquitto.kill()
    found = ingest_and_compare(broker.address, topic, folder / "data", events, "hub")
    print(f"mqtt: set(acknowledged) = set(ingested) = {events}; {dict(found)}", flush=True)


def webhook_trial(folder: Path, broker: Broker, events: int, kills: int, seed: int) -> None:
    """Send webhooks while the receiver and Kafka are killed."""
    topic, counts = f"hooked-{seed}", Counter[str]()
    engines.create_topics(broker.address, {topic: 2})
    receiver = Killed(folder / "hooks", broker.address, topic, install(folder / "probe"))

    def kill(chance: random.Random) -> None:
        if chance.random() < 0.3:
            counts["Kafka"] += 1
            broker.kill()
            broker.start()
        else:
            counts["receiver"] += 1
            receiver.program.kill()
            receiver.start()

    try:
        found = deliver_and_ingest(receiver, folder / "data", events, kills, kill, seed)
    finally:
        receiver.program.kill()
    print(f"webhooks: set(acknowledged) = set(ingested) = {events}; {dict(found)}; kills: {dict(counts)}", flush=True)


def gerrit_trial(folder: Path, broker: Broker, events: int, kills: int, seed: int) -> None:
    """Create, approve and merge changes while Gerrit, the receiver and Kafka are killed."""
    chance, topic = random.Random(seed), f"gerrit-{seed}"
    engines.create_topics(broker.address, {topic: 1})
    gerrit = Gerrit(folder / "gerrit")
    receiver = Receiving("gerrit", folder / "receiver", gerrit.source + "check_s = 20\n", broker.address, topic, folder)
    receiver.wait_until_ready()
    wait((folder / "receiver" / "state" / "gerrit-zuul.json").exists, "no position is stored")
    acknowledged, unsure = set[tuple[str, ...]](), Counter[str]()

    def review() -> None:
        while len(acknowledged) < events:
            try:
                change = gerrit.change(f"change {len(acknowledged)}")
                number = change.partition("~")[2]
                acknowledged.add(("patchset-created", "demo", number, "1"))
                gerrit.vote(change, 2)
                acknowledged.add(("comment-added", "demo", number, "1", REVIEWER[0], "Code-Review", "2"))
                gerrit.submit(change)
                acknowledged.add(("change-merged", "demo", number, "1"))
            except NoAnswer:
                unsure["requests"] += 1
                time.sleep(0.5)

    reviewer = threading.Thread(target=review)
    reviewer.start()
    choices: list[_Kill] = [
        ("receiver", receiver.kill), ("receiver", receiver.kill), ("Gerrit", restarted(gerrit)),
        ("Kafka", restarted(broker)),
    ]  # fmt: skip
    kill_at_random(choices, chance, kills, events, lambda: len(acknowledged), counts := Counter[str]())
    reviewer.join()

    def received() -> set[tuple[str, ...]]:
        found = (json.loads(each.value or b"") for each in published(broker.address, topic, "ci-events"))
        return {key for event in found for key in keys_of(event)}

    wait(lambda: acknowledged <= received(), "events are missing in Kafka")
    receiver.program.kill()
    gerrit.kill()
    ids = Counter(read_event(each).id for each in published(broker.address, topic, "ci-events"))
    print(
        f"gerrit: set(acknowledged), {len(acknowledged)} events, is within set(received); {ids.total()} messages of "
        f"{len(ids)} ids; kills: {dict(counts)}; {unsure['requests']} requests without an answer", flush=True
    )  # fmt: skip
    said, settled = ingest_reviews(broker.address, topic, folder / "data")
    meant = {"patchset-created": ("owner", "admin"), "comment-added": ("review", PARTLY_APPROVED),
             "change-merged": ("review", "merged")}  # fmt: skip
    missing = {(f"change:demo/{key[2]}/{key[3]}", *meant[key[0]]) for key in acknowledged} - said
    assert not missing, f"not ingested: {missing}"
    assert settled.total() == ids.total(), f"{settled} of {ids.total()} messages"
    assert settled["repeat", "event"] == ids.total() - len(ids)
    assert not any(kind == "dead_letter" for kind, _ in settled), f"{settled}"
    print(f"gerrit: set(acknowledged) is within set(ingested); {dict(settled)}", flush=True)


def ingest_reviews(kafka: str, topic: str, data: Path) -> tuple[set[tuple[str, str, str]], Counter[tuple[str, str]]]:
    """Return (subject, fact, value) of all updates that ingest commits, and what it counts."""
    config = IngestConfig(DataRoot.open(str(data)).raw, topic, f"{topic}-runs", kafka=KafkaOptions(kafka))
    drive(IngestService(config), until="end")
    state, deltas = account(config.raw)
    records = (update for delta in deltas for record in delta.get("updates", ()) for update in record["updates"])
    said = {(each["subject"], fact, value) for each in records for fact, value in each["facts"].items()}
    return said, Counter(state.counts)


def main() -> None:
    """Run the trials that the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000, help="MQTT messages")
    parser.add_argument("--webhooks", type=int, default=0, help="webhooks")
    parser.add_argument("--gerrit", type=int, default=0, help="events of Gerrit")
    parser.add_argument("--kills", type=int, default=20, help="kills in each trial")
    parser.add_argument("--rate", type=float, default=150.0, help="MQTT messages a second")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="receivers-chaos-") as name:
        folder = Path(name)
        broker = own_broker(folder)
        with installed(folder / "probe-here"):
            if given.events:
                mqtt_trial(folder / "m", broker, given.events, given.kills, given.rate, given.seed)
            if given.webhooks:
                webhook_trial(folder / "w", broker, given.webhooks, given.kills, given.seed)
            if given.gerrit:
                gerrit_trial(folder / "g", broker, given.gerrit, given.kills, given.seed)
        broker.kill()


if __name__ == "__main__":
    main()
