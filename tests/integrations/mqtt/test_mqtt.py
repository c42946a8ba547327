"""Sessions of MQTT with a real mosquitto: its users, access list, retained messages and kept sessions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ciml.integrations import sessions
from ciml.integrations.config import load_receivers
from ciml.kafka import KafkaOptions
from ciml.services.receivers import MqttService
from tests.integrations.mqtt.mosquitto import Mosquitto, session_of, write_source
from tests.integrations.receivers.kept import Kept, connected, not_ready, running, stored, wait

pytestmark = [pytest.mark.engines, pytest.mark.timeout(120)]

VERSIONS = pytest.mark.parametrize("version", ["5", "3.1.1"])


@VERSIONS
@pytest.mark.parametrize("retained", ["ignore", "accept"])
def test_a_message_becomes_a_delivery_with_topic_and_proof(
    tmp_path: Path, mosquitto: Mosquitto, caplog: pytest.LogCaptureFixture, version: str, retained: str
) -> None:
    mosquitto.publish(b"old", topic="zuul/old", retain=True)
    session = session_of(tmp_path, **mosquitto.user, version=version, retained=retained, max_bytes=1000)
    old = [b"old"] if retained == "accept" else []
    with connected(session) as kept:
        wait(lambda: kept.values == old, "the retained message is missing")
        mosquitto.publish(b"1", topic="zuul/tenant/check/result")
        mosquitto.publish(b"", b"x" * 1001, b"x" * 1000, b"y" * 200_000, b"2")
        mosquitto.publish(b"3", b"4", qos=0)
        wait(lambda: b"4" in kept.values, f"{kept.values}")
        assert kept.values == [*old, b"1", b"x" * 1000, b"2", b"3", b"4"]
        assert kept.headers[len(old)] == {
            "ciml_adapter": b"zuul", "ciml_source": b"zuul", "ciml_auth": b"mqtt-user",
            "ciml_header_topic": b"zuul/tenant/check/result",
        }  # fmt: skip
        assert kept.outcomes["accepted"] == 5 + len(old)
        assert kept.outcomes["rejected"] == 1
    assert caplog.text.count("is published with QoS 0, which loses messages; use QoS 1") == 1


@VERSIONS
def test_the_broker_keeps_messages_while_the_receiver_is_away(
    tmp_path: Path, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(sessions, "ANSWER_S", 0.1)

    def connect(*, acknowledges: bool = True) -> AbstractContextManager[Kept]:
        session = session_of(tmp_path, **mosquitto.user, version=version, in_flight=4)
        return connected(session, acknowledges=acknowledges)

    sent = [f"{number}".encode() for number in range(2000)]
    with connect():
        pass
    mosquitto.publish(*sent)
    with connect(acknowledges=False) as kept:  # Kafka does not answer
        wait(lambda: kept.values, "no message is sent")
    with connect() as kept:
        wait(lambda: len(kept.values) >= len(sent), "messages are missing")
        assert kept.values == sent
    with connect() as kept:
        mosquitto.publish(b"new")
        wait(lambda: kept.values == [b"new"], f"messages are sent again: {kept.values}")


def test_the_reason_of_a_refused_connection_is_reported(tmp_path: Path, mosquitto: Mosquitto) -> None:
    (tmp_path / "wrong").write_text("a wrong password")
    refused = "refuses user ciml: Not authorized; check user and password"
    for changes, said in (
        ({"secret_file": "wrong"}, refused),
        (
            {"ca_file": str(mosquitto.certificates.folder / "client.pem")},
            "TLS: self-signed certificate in certificate chain",
        ),
        ({"broker": "mqtts://127.0.0.1:1"}, "mqtts://127.0.0.1:1 does not answer: Connection refused"),
        ({"broker": "mqtts://nowhere.invalid"}, "mqtts://nowhere.invalid does not answer: "),
    ):
        session = session_of(tmp_path, **{**mosquitto.user, **changes})
        with running(session):
            wait(lambda session=session, said=said: said in session.problem, session.problem)
            assert "a wrong password" not in session.problem


def test_a_client_certificate_is_a_proof_and_no_tls_is_none(tmp_path: Path, mosquitto: Mosquitto) -> None:
    folder = mosquitto.certificates.folder
    files = {"ca_file": "ca.pem", "certificate_file": "client.pem", "key_file": "client.key"}
    certificate = {key: str(folder / name) for key, name in files.items()}
    for settings, proof in (
        ({"broker": f"mqtts://localhost:{mosquitto.mutual}", **certificate}, b"mqtt-certificate"),
        ({"broker": f"mqtt://127.0.0.1:{mosquitto.plain}"}, None),
    ):
        with connected(session_of(tmp_path, **settings)) as kept:
            mosquitto.publish(b"1")
            wait(lambda kept=kept: kept.values == [b"1"], f"{kept.values}")
            assert kept.headers[0].get("ciml_auth") == proof


def test_a_source_that_is_refused_holds_up_no_other(
    kafka: str, topic: Callable[..., str], tmp_path: Path, mosquitto: Mosquitto
) -> None:
    (tmp_path / "wrong").write_text("a wrong password")
    changes = {"name": "other", "secret_file": "wrong", "client_id": "ciml-2"}
    text = write_source(tmp_path, **{**mosquitto.user, **changes}).read_text()
    config = write_source(tmp_path, **mosquitto.user)
    config.write_text(config.read_text() + text)
    name = topic()
    service = MqttService(load_receivers(config), KafkaOptions(kafka), name)
    service.open()
    try:
        wait(lambda: not service.sessions[0][0].problem, "it does not connect")
        mosquitto.publish(b"1")
        assert [one.value for one in stored(kafka, name, 1)] == [b"1"]
        wait(lambda: "refuses" in service.sessions[1][0].problem, "nothing is said")
        assert not_ready(service).startswith("source other: ")
    finally:
        service.close()
    assert not {"zuul", "other", "deliveries"} & {one.name for one in threading.enumerate()}
