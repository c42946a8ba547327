"""The receiver of webhooks under a supervisor, and as a command in the foreground."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ciml.engines.processes import lasting_ports
from tests.integrations.receivers.kept import wait
from tests.integrations.webhooks.hooking import SOURCE, Hooks, delivery, write_config
from tests.integrations.webhooks.killing import receiving_webhooks, send_until_accepted
from tests.scraping import scrape
from tests.services.supervising import supervised

pytestmark = [pytest.mark.engines, pytest.mark.timeout(240)]


def test_a_supervised_receiver_is_started_replaced_and_stopped(
    kafka: str, topic: Callable[..., str], tmp_path: Path, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(probe), prepend=":")
    (port,), name = lasting_ports(1), topic()
    config = write_config(tmp_path, f"[webhooks]\nport = {port}\n{SOURCE}")
    hooks = Hooks(port, kafka, name)
    with supervised(tmp_path / "home") as one:
        wrong = one.begin("webhooks", "--config", str(config), "--kafka", kafka, "--topic", f"{name}-none")
        assert f"has no topic {name}-none" in str(wrong.exception)
        done = one.begin(
            "webhooks", "--config", str(config), "--kafka", kafka, "--topic", name, "--metrics-port", "0"
        )  # fmt: skip
        assert done.exception is None, done.exception
        assert hooks.post(delivery(1)).status == 202
        assert hooks.post(delivery(1)).status == 202
        seen = one.status()
        assert (seen["kind"], seen["health"], seen["topic"]) == ("webhooks", "running", name)
        counted = scrape(seen["metrics"])
        assert counted["ciml_deliveries_total"] == {
            ("accepted", "webhooks", "hub"): 1, ("repeat", "webhooks", "hub"): 1,
        }  # fmt: skip
        assert counted["ciml_delivery_seconds_count"] == {("webhooks", "hub"): 1}
        assert counted["ciml_service_health"][("running", "webhooks")] == 1
        one.kill_worker()
        send_until_accepted(hooks, delivery(2))
        assert one.ask("stop").exception is None
        assert (one.status()["health"], one.code()) == ("stopped", 1)
        with pytest.raises(ConnectionRefusedError):
            hooks.post(delivery(3))
    assert Counter(each.value for each in hooks.stored()) == Counter([delivery(1), delivery(2)])


def test_the_command_prints_its_address_and_ends_by_a_signal(
    kafka: str, topic: Callable[..., str], tmp_path: Path, probe: Path
) -> None:
    receiver = receiving_webhooks(tmp_path, kafka, topic(), probe)
    log = tmp_path / "receiver.log"
    wait(lambda: "receiving" in log.read_text(), "it does not receive")
    assert log.read_text() == f"receiving webhooks at http://127.0.0.1:{receiver.port}\n"
    assert Hooks(receiver.port, kafka, receiver.topic).post(delivery(1)).status == 202
    receiver.program.send(signal.SIGTERM)
    assert receiver.program.process.wait(30) == 0
    assert log.read_text().count("\n") == 1
