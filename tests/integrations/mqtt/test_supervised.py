"""The receiver of MQTT messages under a supervisor, and as a command in the foreground."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integrations.mqtt.mosquitto import Mosquitto, write_source
from tests.integrations.receivers.kept import stored, wait
from tests.integrations.webhooks.killing import Receiving
from tests.scraping import scrape
from tests.services.supervising import supervised

pytestmark = [pytest.mark.engines, pytest.mark.timeout(240)]


def test_a_supervised_receiver_is_started_replaced_and_stopped(
    kafka: str, topic: Callable[..., str], tmp_path: Path, mosquitto: Mosquitto
) -> None:
    name = topic()
    with supervised(tmp_path / "home") as one:
        file = str(write_source(tmp_path, **mosquitto.user))
        done = one.begin("mqtt", "--config", file, "--kafka", kafka, "--topic", name, "--metrics-port", "0")
        assert done.exception is None, done.exception
        wait(lambda: one.status()["health"] == "running", "it does not work")
        mosquitto.publish(b"1")
        stored(kafka, name, 1)
        counted = scrape(one.status()["metrics"])
        assert counted["ciml_source_connected"] == {("mqtt", "zuul"): 1}
        assert counted["ciml_deliveries_total"] == {("accepted", "mqtt", "zuul"): 1}
        mosquitto.stop()
        wait(lambda: one.status()["health"] == "waiting", "the loss is not shown")
        assert one.status()["why"].startswith(f"source zuul: mqtts://127.0.0.1:{mosquitto.tls}")
        mosquitto.start()
        wait(lambda: one.status()["health"] == "running", "it does not connect again")
        one.kill_worker()
        mosquitto.publish(b"2")
        assert [each.value for each in stored(kafka, name, 2)] == [b"1", b"2"]
        assert one.ask("stop").exception is None
        assert one.status()["health"] == "stopped"


def test_the_command_prints_why_it_waits_and_ends_by_a_signal(
    kafka: str, topic: Callable[..., str], tmp_path: Path, mosquitto: Mosquitto, probe: Path
) -> None:
    mosquitto.stop()
    text = write_source(tmp_path, **mosquitto.user).read_text()
    receiver = Receiving("mqtt", tmp_path, text, kafka, topic(), probe)
    address = f"mqtts://127.0.0.1:{mosquitto.tls}"
    refused = f"waits: source zuul: {address} does not answer: Connection refused"
    wait(lambda: refused in receiver.program.said(), "it does not say why")
    mosquitto.start()
    wait(lambda: f"receiving mqtt: zuul at {address}" in receiver.program.said(), "it does not connect")
    began = time.monotonic()
    receiver.program.send(signal.SIGTERM)
    assert receiver.program.wait(30) == 0
    assert time.monotonic() - began < 10
