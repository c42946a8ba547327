"""Receivers: the order of their end, an error of a thread, and what they say of the broker."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from ciml.errors import EngineError
from ciml.integrations.config import load_receivers
from ciml.kafka import KafkaOptions
from ciml.services import receivers
from ciml.services.receivers import MqttService, SessionReceiver

MQTT = """
[[source]]
receiver = "mqtt"
name = "one"
adapter = "cloudevents"
broker = "mqtt://127.0.0.1:1"
topics = ["ci/#"]
in_flight = 5
version = "{version}"
"""


class Sessions(SessionReceiver):
    """A receiver with one session, which ends when it is asked to, or by an error.

    Attributes:
      steps: of the end.
    """

    receiver = "mqtt"
    error: Exception | None = None
    name = shown = "one"
    problem = ""

    def connections(self) -> Sequence[tuple[Any, int]]:
        self.steps: list[str] = []
        return [(self, 3)]

    def run(self, inbox: Any, stop: threading.Event) -> None:
        if self.error is not None:
            raise self.error
        stop.wait(60)
        self.steps.append("the session ends")


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Sessions:
    made = Sessions(SimpleNamespace(), KafkaOptions("none:1"), "t")  # type: ignore[arg-type]
    producer = SimpleNamespace(close=lambda: made.steps.append("the producer closes"))
    monkeypatch.setattr(receivers, "DeliveryProducer", lambda *_: producer)
    monkeypatch.setattr(receivers, "topic_of", lambda *_: ("", [0]))
    return made


def test_what_was_received_is_finished_before_the_producer_closes(sessions: Sessions) -> None:
    sessions.open()
    sessions.close()
    assert sessions.steps == ["the session ends", "the producer closes"]


def test_an_error_of_a_thread_ends_the_service(sessions: Sessions) -> None:
    sessions.error = ValueError("a bug")
    sessions.open()
    for thread in sessions._threads:
        thread.join()
    with pytest.raises(RuntimeError, match="a thread of the receiver mqtt ended by itself") as raised:
        sessions.observe()
    assert raised.value.__cause__ is sessions.error
    sessions.close()


def test_the_broker_is_usable_once_it_has_answered(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sessions.broker_error == "it was not asked yet"
    sessions.observe()
    assert sessions.broker_error == ""
    away = EngineError("Kafka does not answer")
    monkeypatch.setattr(receivers, "topic_of", Mock(side_effect=away))
    with pytest.raises(EngineError):
        sessions.observe()
    assert sessions.broker_error == "Kafka does not answer"


@pytest.mark.parametrize(("version", "waiting"), [("5", 10), ("3.1.1", 5)])
def test_messages_that_an_mqtt_broker_does_not_limit_may_wait_too(version: str, waiting: int, tmp_path: Path) -> None:
    (tmp_path / "receivers.toml").write_text(MQTT.format(version=version))
    service = MqttService(load_receivers(tmp_path / "receivers.toml"), KafkaOptions("none:1"), "t")
    assert [number for _, number in service.sessions] == [waiting]
