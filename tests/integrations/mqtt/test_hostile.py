"""A hostile or broken MQTT broker costs its own source alone, and no more memory or time than a good one."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.integrations import mqtt as client_module
from ciml.integrations import sessions
from ciml.integrations.config import MqttSource, load_receivers
from ciml.integrations.mqtt import HostileBroker, MqttSession
from ciml.limits import MIB
from tests.integrations.receivers.kept import allocating, running, wait
from tests.tier import tries

pytestmark = pytest.mark.timeout(120)

CONNACK = {"5": b"\x20\x03\x00\x00\x00", "3.1.1": b"\x20\x02\x00\x00"}
SUBACK = {"5": b"\x90\x04\x00\x01\x00\x01", "3.1.1": b"\x90\x03\x00\x01\x01"}


def length(size: int) -> bytes:
    """The remaining length of a packet."""
    made = bytearray()
    while True:
        size, byte = size >> 7, size & 0x7F
        made.append(byte | (0x80 if size else 0))
        if not size:
            return bytes(made)


def publish(body: bytes, qos: int = 1, topic: bytes = b"zuul/x", version: str = "5", flags: int = 0) -> bytes:
    rest = len(topic).to_bytes(2) + topic + (b"\x00\x07" if qos else b"") + (b"\x00" if version == "5" else b"") + body
    return bytes([0x30 | qos << 1 | flags]) + length(len(rest)) + rest


class Broker:
    """Accepts, answers CONNECT and SUBSCRIBE, then sends ``packets``; it keeps what it reads.

    Args:
      packets: of all that follows, in the first connection; later ones are only answered.
      connack, suback: answers.
    """

    def __init__(self, packets: Callable[[socket.socket], None], connack: bytes, suback: bytes) -> None:
        self._packets, self._connack, self._suback = packets, connack, suback
        self.connections, self.read = 0, bytearray()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                link, _ = self._socket.accept()
                self.connections += 1
                self._open.append(link)
                threading.Thread(target=self._serve, args=(link, self.connections), daemon=True).start()

    def _serve(self, link: socket.socket, number: int) -> None:
        with suppress(OSError):
            link.recv(4096)
            link.sendall(self._connack)
            link.recv(4096)
            link.sendall(self._suback)
            if number == 1:
                self._packets(link)
            while data := link.recv(65536):
                self.read += data

    def close(self) -> None:
        for one in (self._socket, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.fixture
def broker() -> Iterator[Callable[..., Broker]]:
    made: list[Broker] = []

    def start(packets: Callable[[socket.socket], None] | bytes, version: str = "5", **answers: bytes) -> Broker:
        send = packets if callable(packets) else lambda link: link.sendall(packets)
        made.append(Broker(send, answers.get("connack", CONNACK[version]), answers.get("suback", SUBACK[version])))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_PAUSES_S", (0.05, 0.1))


def session_of(folder: Path, broker: Broker, **changes: object) -> MqttSession:
    keys = {"receiver": "mqtt", "name": "zuul", "adapter": "zuul", "broker": f"mqtt://127.0.0.1:{broker.port}",
            "topics": ["zuul/#"], **changes}  # fmt: skip
    text = "\n".join(["[[source]]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())])
    (folder / "receivers.toml").write_text(text)
    receivers = load_receivers(folder / "receivers.toml")
    return MqttSession(receivers, receivers.of(MqttSource)[0])


GOOD = b'{"n": 1}'


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("qos", [0, 1])
def test_a_huge_message_costs_only_itself(
    tmp_path: Path, broker: Callable[..., Broker], version: str, qos: int
) -> None:
    """A broker of version 3.1.1 passes on what a publisher sends, up to 256 MB."""
    body = b"x" * (100 * MIB)
    sent = publish(body, qos, version=version) + publish(GOOD, version=version)
    one = broker(sent, version)
    with allocating(8 * MIB), running(session_of(tmp_path, one, version=version)) as kept:
        wait(lambda: kept.values, f"{kept.outcomes}")
        assert kept.values == [GOOD]
        wait(lambda: kept.outcomes.get("too_large") == 1, f"{kept.outcomes}")
        wait(lambda: one.read.count(b"\x40\x02\x00\x07") == 1 + qos, "it is not acknowledged")  # PUBACK 7
    assert one.connections == 1


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (publish(GOOD, qos=2), "a message of QoS 2, though QoS 1 was subscribed to"),
        (b"\xa0" + length(200 * MIB), f"a packet of {200 * MIB} bytes that is no message"),
        (b"\xe0\x02\x03\x00", "ended the connection"),  # a reason that MQTT does not have
        (b"\xf0\x02\x99\x00", ""),
        (b"\x30\xff\xff\xff\xff\xff", ""),
        (b"\x32\x02\xff\xff", ""),
        (b"\x00" * 100, ""),
    ],
)
def test_what_is_not_mqtt_ends_the_connection_alone(
    tmp_path: Path, broker: Callable[..., Broker], sent: bytes, said: str
) -> None:
    one = broker(sent)
    session = session_of(tmp_path, one)
    problems = list[str]()
    with running(session) as kept:
        wait(lambda: problems.append(session.problem) or one.connections > 1, "the connection stays")
        wait(lambda: not session.problem, "it does not connect again")
        assert kept.thread is not None
        assert kept.thread.is_alive()
    assert any(said in each for each in problems), problems
    assert all(each.isprintable() for each in problems)


@settings(max_examples=tries(40))
@given(st.binary(min_size=1, max_size=60), st.booleans())
def test_no_bytes_end_a_session(tmp_path_factory: pytest.TempPathFactory, sent: bytes, begun: bool) -> None:
    """Anything, before or after the answers of a broker, is a lost connection or nothing."""
    from unittest.mock import patch

    one = Broker(
        lambda link: (link.sendall(sent), link.close()), *((CONNACK["5"], SUBACK["5"]) if begun else (sent, b""))
    )  # type: ignore[arg-type, return-value]
    try:
        with (
            patch.object(sessions, "_PAUSES_S", (0.001, 0.001)),
            running(session_of(tmp_path_factory.mktemp("s"), one)) as kept,
        ):
            wait(lambda: one.connections > 1 or not begun, "the connection stays")
            time.sleep(0.01)
            assert kept.thread is not None
            assert kept.thread.is_alive()
    finally:
        one.close()


def test_topics_with_control_characters_are_kept_and_not_printed(
    tmp_path: Path, broker: Callable[..., Broker], caplog: pytest.LogCaptureFixture
) -> None:
    topic = "zuul/\x1b[2J\n\x00é".encode()
    one = broker(publish(GOOD, 0, topic) + publish(GOOD, 1, b"zuul/\xff") + publish(GOOD, 1, b""))
    with running(session_of(tmp_path, one)) as kept, caplog.at_level(logging.WARNING):
        wait(lambda: kept.outcomes.get("rejected") == 2, f"{kept.outcomes}")
    assert [each["ciml_header_topic"] for each in kept.headers] == [topic]
    assert "QoS 0" in caplog.text
    assert "\x1b" not in caplog.text


def test_retained_and_repeated_messages(tmp_path: Path, broker: Callable[..., Broker]) -> None:
    sent = publish(b"old", flags=1) + publish(GOOD) + publish(GOOD, flags=8)  # retain, and duplicate
    with running(session_of(tmp_path, broker(sent))) as kept:
        wait(lambda: kept.outcomes == {"retained": 1, "accepted": 2}, f"{kept.outcomes}")
    assert kept.values == [GOOD, GOOD]  # which ingest recognises


def test_a_downgrade_of_qos_is_a_problem(tmp_path: Path, broker: Callable[..., Broker]) -> None:
    session = session_of(tmp_path, broker(b"", suback=b"\x90\x04\x00\x01\x00\x00"))
    with running(session):
        wait(lambda: "grants QoS 0 only for zuul/#, which loses messages" in session.problem, session.problem)


def test_a_session_that_the_broker_forgets_sooner_is_warned_of(
    tmp_path: Path, broker: Callable[..., Broker], caplog: pytest.LogCaptureFixture
) -> None:
    one = broker(b"", connack=b"\x20\x08\x00\x00\x05\x11" + (60).to_bytes(4))
    with caplog.at_level(logging.WARNING), running(session_of(tmp_path, one)):
        wait(lambda: "keeps messages for 60 s, not session_s = 604800" in caplog.text, caplog.text)


def test_answers_that_the_broker_does_not_read_are_bounded(
    tmp_path: Path, broker: Callable[..., Broker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_MAX_ANSWERS", 5)
    session = session_of(tmp_path, broker(b""))
    client = session.made_client()
    for _ in range(6):
        client.check_answers()
        client._packet_queue(0xD0, b"", 0, 0)
    with pytest.raises(HostileBroker, match="more packets than it reads answers"):
        client.check_answers()
    with running(session):
        wait(lambda: not session.problem, session.problem)


def test_a_connection_is_acknowledged_once(tmp_path: Path, broker: Callable[..., Broker]) -> None:
    """Each acknowledgement makes the client subscribe."""
    one = broker(CONNACK["5"])
    session, problems = session_of(tmp_path, one), list[str]()
    with running(session):
        wait(lambda: problems.append(session.problem) or one.connections > 1, "the connection stays")
    assert any("acknowledges the connection twice" in each for each in problems), problems


def test_a_flood_of_messages_waits_for_kafka(tmp_path: Path, broker: Callable[..., Broker]) -> None:
    one = broker(publish(b"x" * 100_000, 0) * 1000)
    with allocating(24 * MIB), running(session_of(tmp_path, one), acknowledges=False) as kept:
        wait(lambda: len(kept.values) >= 64, "messages are missing")
        time.sleep(0.5)
        assert len(kept.values) < 80
        kept.acknowledge()


def test_a_message_up_to_the_limit_is_acknowledged_after_kafka_has_it(
    tmp_path: Path, broker: Callable[..., Broker]
) -> None:
    made = broker(publish(b"x" * 10) + publish(b"y" * 11))
    with running(session_of(tmp_path, made, max_bytes=10), acknowledges=False) as kept:
        wait(lambda: kept.outcomes.get("too_large"), "the second message is missing")
        time.sleep(0.2)  # some turns of the loop
        assert b"\x40\x02\x00\x07" not in made.read
        kept.acknowledge()
        wait(lambda: made.read.count(b"\x40\x02\x00\x07") == 2, "they are not acknowledged")
    assert kept.values == [b"x" * 10]
