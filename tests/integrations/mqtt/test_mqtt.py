"""The receiver of MQTT messages, with a real mosquitto and a real Kafka."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode
from prometheus_client import CollectorRegistry, generate_latest

from ciml.errors import EngineError
from ciml.events.records import Message
from ciml.integrations import sessions
from ciml.integrations.config import load_receivers
from ciml.integrations.mqtt import MqttSession
from ciml.integrations.producer import DeliveryProducer, ReceiverMetrics
from ciml.integrations.sessions import Inbox, Lost
from ciml.kafka import KafkaOptions
from ciml.services.receivers import MqttService, SessionReceiver
from ciml.services.service import NotReadyError
from tests.integrations.mqtt.mosquitto import USERS, Mosquitto
from tests.messages import published
from tests.scraping import Samples, parsed

pytestmark = [pytest.mark.engines, pytest.mark.timeout(120), pytest.mark.usefixtures("probe")]


def wait(condition: Callable[[], object], what: str, most_s: float = 60.0) -> None:
    deadline = time.monotonic() + most_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def values(metrics: ReceiverMetrics) -> Samples:
    registry = CollectorRegistry()
    for collector in metrics.collectors:
        registry.register(collector)
    return parsed(generate_latest(registry).decode())


def source(broker: Mosquitto, /, **changes: object) -> str:
    keys = {
        "receiver": "mqtt", "name": "zuul", "adapter": "zuul", "broker": f"mqtts://127.0.0.1:{broker.tls}",
        "topics": ["zuul/#"], "user": "ciml", "secret_file": "password",
        "ca_file": str(broker.certificates.folder / "ca.pem"), **changes,
    }  # fmt: skip
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items() if value is not None]
    return "\n".join(["[[source]]", *lines, ""])


def service_of(folder: Path, kafka: str, topic: str, text: str) -> MqttService:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "password").write_text(USERS["ciml"] + "\n")
    (folder / "password").chmod(0o600)
    (folder / "receivers.toml").write_text(text)
    return MqttService(load_receivers(folder / "receivers.toml"), KafkaOptions(kafka), topic)


@contextmanager
def receiving(folder: Path, kafka: str, topic: str, text: str, *, ready: bool = True) -> Iterator[MqttService]:
    service = service_of(folder, kafka, topic, text)
    service.open()
    try:
        if ready:
            wait(lambda: not any(one.problem for one, _ in service.sessions), "it does not connect")
        yield service
    finally:
        service.close()


def stored(kafka: str, topic: str, least: int = 0) -> list[Message]:
    found: list[Message] = []

    def enough() -> bool:
        found[:] = published(kafka, topic, "ci-events")
        return len(found) >= least

    wait(enough, f"there are {len(found)} messages, not {least}")
    return found


def problem(service: SessionReceiver) -> str:
    with pytest.raises(NotReadyError) as caught:
        service.observe()
    return str(caught.value)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_message_becomes_a_delivery_with_topic_source_and_proof(
    kafka: str, topic: Callable[..., str], tmp_path: Path, mosquitto: Mosquitto, version: str
) -> None:
    name = topic()
    with receiving(tmp_path, kafka, name, source(mosquitto, version=version)) as service:
        mosquitto.publish(b'{"n": 1}', topic="zuul/tenant/check/result")
        (message,) = stored(kafka, name, 1)
        assert message.value == b'{"n": 1}'
        assert dict(message.headers) == {
            "ciml_adapter": b"zuul", "ciml_source": b"zuul", "ciml_auth": b"mqtt-user",
            "ciml_header_topic": b"zuul/tenant/check/result",
        }  # fmt: skip
        service.observe()
        wait(lambda: values(service.metrics)["ciml_deliveries_total"], "it is not acknowledged")
        counted = values(service.metrics)
        assert counted["ciml_deliveries_total"] == {("accepted", "mqtt", "zuul"): 1}
        assert counted["ciml_source_connected"] == {("mqtt", "zuul"): 1}


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_the_broker_keeps_messages_while_the_receiver_is_away(
    kafka: str, topic: Callable[..., str], tmp_path: Path, mosquitto: Mosquitto, version: str
) -> None:
    name = topic()
    with receiving(tmp_path, kafka, name, source(mosquitto, version=version)):
        pass
    mosquitto.publish(*(f"{n}".encode() for n in range(300)))
    with receiving(tmp_path, kafka, name, source(mosquitto, version=version)):
        assert [int(one.value or b"") for one in stored(kafka, name, 300)] == list(range(300))
    with receiving(tmp_path, kafka, name, source(mosquitto, version=version)):
        mosquitto.publish(b"300")
        assert len(stored(kafka, name, 301)) == 301  # what was acknowledged is not sent again


def test_a_message_that_kafka_has_not_acknowledged_is_not_acknowledged(
    kafka: str, topic: Callable[..., str], tmp_path: Path, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "ANSWER_S", 1.0)
    text = source(mosquitto, in_flight=4)
    with receiving(tmp_path, "127.0.0.1:1", "away", text) as service:
        mosquitto.publish(*(f"{n}".encode() for n in range(20)))
        with pytest.raises(EngineError, match="does not answer"):
            service.observe()
        assert "accepted" not in str(values(service.metrics))
    name = topic()
    with receiving(tmp_path, kafka, name, text):
        assert [int(one.value or b"") for one in stored(kafka, name, 20)] == list(range(20))


def test_a_lost_broker_is_connected_again(
    kafka: str, topic: Callable[..., str], tmp_path: Path, mosquitto: Mosquitto
) -> None:
    name = topic()
    with receiving(tmp_path, kafka, name, source(mosquitto)) as service:
        mosquitto.publish(b"1")
        stored(kafka, name, 1)
        mosquitto.stop()
        wait(lambda: service.sessions[0][0].problem, "the loss is not noticed")
        assert f"source zuul: mqtts://127.0.0.1:{mosquitto.tls}" in problem(service)
        assert values(service.metrics)["ciml_source_connected"] == {("mqtt", "zuul"): 0}
        mosquitto.start()
        wait(lambda: not service.sessions[0][0].problem, "it does not connect again")
        mosquitto.publish(b"2")
        assert {one.value for one in stored(kafka, name, 2)} == {b"1", b"2"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"secret_file": "wrong"}, "refuses user ciml: Not authorized; check user and password"),
        ({"ca_file": None}, "TLS: self-signed certificate in certificate chain"),
        ({"broker": "mqtts://127.0.0.1:1"}, "mqtts://127.0.0.1:1 does not answer: Connection refused"),
        ({"broker": "mqtts://nowhere.invalid"}, "mqtts://nowhere.invalid does not answer: "),
    ],
)
def test_what_a_broker_refuses_is_reported(
    kafka: str, topic: Callable[..., str], tmp_path: Path, mosquitto: Mosquitto, changes: dict[str, object], said: str
) -> None:
    (tmp_path / "wrong").write_text("a wrong password")
    with receiving(tmp_path, kafka, topic(), source(mosquitto, **changes), ready=False) as service:
        session = service.sessions[0][0]
        wait(lambda: session.problem != "is not connected yet", "nothing is said")
        assert said in session.problem
        assert said in problem(service)
        assert "a wrong password" not in session.problem


def test_a_subscription_that_is_refused_or_unsafe_is_reported(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """Mosquitto itself grants every subscription, and delivers nothing where it is not allowed."""
    ((session, _),) = service_of(tmp_path, "127.0.0.1:1", "events", source(mosquitto, topics=["a/#", "b/#"])).sessions
    assert isinstance(session, MqttSession)
    good, unsafe, refused = (ReasonCode(PacketTypes.SUBACK, identifier=code) for code in (1, 0, 135))
    assert session.subscribed([good, good]) == ""
    assert session.subscribed([good, refused]).endswith(
        " refuses the subscription to b/#: Not authorized; grant read access in the broker's access list"
    )
    assert session.subscribed([unsafe, good]).endswith(" grants QoS 0 only for a/#, which loses messages; allow QoS 1")


def test_a_source_that_is_refused_holds_up_no_other(
    kafka: str, topic: Callable[..., str], tmp_path: Path, mosquitto: Mosquitto
) -> None:
    (tmp_path / "wrong").write_text("a wrong password")
    text = source(mosquitto) + source(mosquitto, name="other", secret_file="wrong", client_id="ciml-2")
    name = topic()
    with receiving(tmp_path, kafka, name, text, ready=False) as service:
        wait(lambda: not service.sessions[0][0].problem, "it does not connect")
        mosquitto.publish(b"1")
        assert [one.value for one in stored(kafka, name, 1)] == [b"1"]
        wait(lambda: "refuses" in service.sessions[1][0].problem, "nothing is said")
        assert problem(service).startswith("source other: ")


def test_the_other_password_is_tried_while_one_replaces_the_other(
    kafka: str, topic: Callable[..., str], tmp_path: Path, mosquitto: Mosquitto
) -> None:
    (tmp_path / "old").write_text("the one before")
    (tmp_path / "old").chmod(0o600)
    with receiving(tmp_path, kafka, topic(), source(mosquitto, secret_file=["old", "password"])) as service:
        assert service.sessions[0][0].problem == ""


def test_a_client_certificate_is_a_proof_and_no_tls_is_none(
    kafka: str, topic: Callable[..., str], tmp_path: Path, mosquitto: Mosquitto
) -> None:
    folder, name = mosquitto.certificates.folder, topic()
    anyone = {"user": None, "secret_file": None}
    text = source(
        mosquitto, broker=f"mqtts://localhost:{mosquitto.mutual}", certificate_file=str(folder / "client.pem"),
        key_file=str(folder / "client.key"), **anyone,
    )  # fmt: skip
    text += source(mosquitto, name="plain", broker=f"mqtt://127.0.0.1:{mosquitto.plain}", ca_file=None, **anyone)
    with receiving(tmp_path, kafka, name, text):
        mosquitto.publish(b"1")
        found = [dict(one.headers) for one in stored(kafka, name, 2)]
    assert {(one["ciml_source"], one.get("ciml_auth")) for one in found} == {
        (b"zuul", b"mqtt-certificate"), (b"plain", None)
    }  # fmt: skip


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("retained", ["ignore", "accept"])
def test_retained_messages_are_deliveries_only_where_the_source_says_so(
    kafka: str, topic: Callable[..., str], tmp_path: Path, mosquitto: Mosquitto, version: str, retained: str
) -> None:
    mosquitto.publish(b"old", retain=True)
    name = topic()
    with receiving(tmp_path, kafka, name, source(mosquitto, version=version, retained=retained)):
        mosquitto.publish(b"new")
        found = {one.value for one in stored(kafka, name, 2 if retained == "accept" else 1)}
    assert found == ({b"old", b"new"} if retained == "accept" else {b"new"})


def test_what_is_no_delivery_costs_only_itself(
    kafka: str, topic: Callable[..., str], tmp_path: Path, mosquitto: Mosquitto
) -> None:
    name = topic()
    with receiving(tmp_path, kafka, name, source(mosquitto, max_bytes=1000)) as service:
        mosquitto.publish(b"1", b"", b"x" * 1001, b"x" * 1000, b"y" * 200_000, b"2")
        assert [one.value for one in stored(kafka, name, 3)] == [b"1", b"x" * 1000, b"2"]
        wait(lambda: values(service.metrics)["ciml_deliveries_total"][("accepted", "mqtt", "zuul")] == 3, "not counted")
        # The broker itself keeps back what is far over the limit.
        assert values(service.metrics)["ciml_deliveries_total"] == {
            ("accepted", "mqtt", "zuul"): 3, ("rejected", "mqtt", "zuul"): 1, ("too_large", "mqtt", "zuul"): 1,
        }  # fmt: skip
    with receiving(tmp_path, kafka, name, source(mosquitto, max_bytes=1000)):
        mosquitto.publish(b"3")
        assert len(stored(kafka, name, 4)) == 4


def test_a_server_that_speaks_no_mqtt_is_lost(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """Each answer to CONNECT is nonsense: the thread goes on, and says what is wrong."""
    answers = [b"HTTP/1.1 400\r\n\r\n", b"\x20\x03\x00\x00\x05", b"\x30\x02\x00\xff", b"\x20\x00", b"\xff" * 50]
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"mqtt://127.0.0.1:{server.getsockname()[1]}"
        text = source(mosquitto, broker=address, ca_file=None, keepalive_s=1)
        ((session, _),) = service_of(tmp_path, "127.0.0.1:1", "events", text).sessions
        producer = DeliveryProducer(KafkaOptions("127.0.0.1:1"), "events", 1.0)
        for answer in answers:
            inbox = Inbox("zuul", producer, ReceiverMetrics("mqtt"), 8)
            with ThreadPoolExecutor(1) as pool:
                served = pool.submit(session.serve, inbox, threading.Event())
                peer, _ = server.accept()
                with peer:
                    peer.recv(1000)
                    peer.sendall(answer)
                    with pytest.raises(Lost, match=address):
                        served.result(20)
        producer.close()


def test_messages_of_qos_0_are_stored_too(
    kafka: str, topic: Callable[..., str], tmp_path: Path, mosquitto: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    name = topic()
    with receiving(tmp_path, kafka, name, source(mosquitto)):
        mosquitto.publish(b"1", b"2", qos=0)
        assert [one.value for one in stored(kafka, name, 2)] == [b"1", b"2"]
    assert caplog.text.count("is published with QoS 0, which loses messages; use QoS 1") == 1


def test_ten_thousand_messages_at_once(
    kafka: str, topic: Callable[..., str], tmp_path: Path, mosquitto: Mosquitto
) -> None:
    name, number = topic(2), 10_000
    with receiving(tmp_path, kafka, name, source(mosquitto)):
        began = time.monotonic()
        mosquitto.publish(*(f"{n}".encode() for n in range(number)))
        counted = Counter(one.value for one in stored(kafka, name, number))
        took = time.monotonic() - began
    assert counted == Counter(f"{n}".encode() for n in range(number))
    print(f"{number / took:.0f} messages/s")


def test_all_threads_end(kafka: str, topic: Callable[..., str], tmp_path: Path, mosquitto: Mosquitto) -> None:
    with receiving(tmp_path, kafka, topic(), source(mosquitto)):
        assert "zuul" in {one.name for one in threading.enumerate()}
    assert not {"zuul", "deliveries"} & {one.name for one in threading.enumerate()}
