"""A hostile or broken MQTT broker costs its own source alone, and no more memory or time than a good one."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
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
from ciml.integrations.mqtt import HostileBroker
from ciml.limits import MIB
from tests.integrations.mqtt.mosquitto import USERS, session_of
from tests.integrations.receivers.kept import allocating, connected, running, wait
from tests.tier import tries

pytestmark = pytest.mark.timeout(120)

CONNACK = {"5": b"\x20\x03\x00\x00\x00", "3.1.1": b"\x20\x02\x00\x00"}
SUBACK = {"5": b"\x90\x04\x00\x01\x00\x01", "3.1.1": b"\x90\x03\x00\x01\x01"}
PUBACK = b"\x40\x02\x00\x07"
GOOD = b'{"n": 1}'


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
    """Answers the packets of the first connection with ``answers``, and later connections as a good broker does.

    Args:
      answers: to CONNECT, to SUBSCRIBE, and so on.
      ends: whether it ends the first connection after its answers.
    """

    def __init__(self, answers: list[bytes], version: str = "5", *, ends: bool = False) -> None:
        self._answers = answers
        self._good = [CONNACK[version], SUBACK[version]]
        self._ends = ends
        self.connections = 0
        self.read = bytearray()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"mqtt://127.0.0.1:{self._socket.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                link, _ = self._socket.accept()
                self.connections += 1
                self._open.append(link)
                threading.Thread(target=self._serve, args=(link, self.connections == 1), daemon=True).start()

    def _serve(self, link: socket.socket, is_first: bool) -> None:
        with suppress(OSError):
            for answer in self._answers if is_first else self._good:
                self.read += link.recv(4096)
                link.sendall(answer)
            if is_first and self._ends:
                link.close()
            while data := link.recv(65536):
                self.read += data

    def close(self) -> None:
        for one in (self._socket, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.fixture
def broker() -> Iterator[Callable[..., Broker]]:
    """Start a broker that sends packets after its good answers, or other answers."""
    made: list[Broker] = []

    def start(packets: bytes = b"", version: str = "5", answers: list[bytes] | None = None) -> Broker:
        made.append(Broker(answers or [CONNACK[version], SUBACK[version] + packets], version))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_PAUSES_S", (0.01, 0.02))
    monkeypatch.setattr(client_module, "_IDLE_S", 0.05)
    monkeypatch.setattr(client_module, "_QUIET_S", 0.01)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("qos", [0, 1])
def test_a_huge_message_costs_only_itself(
    tmp_path: Path, broker: Callable[..., Broker], version: str, qos: int
) -> None:
    """A broker of version 3.1.1 passes on what a publisher sends, up to 256 MB."""
    sent = publish(b"x" * (24 * MIB), qos, version=version) + publish(GOOD, version=version)
    one = broker(sent, version)
    with allocating(8 * MIB), running(session_of(tmp_path, broker=one.address, version=version)) as kept:
        wait(lambda: one.read.count(PUBACK) == 1 + qos, "it is not acknowledged")
        assert kept.values == [GOOD]
        assert kept.outcomes == {"too_large": 1, "accepted": 1}
    assert one.connections == 1


@pytest.fixture
def open_files() -> Iterator[int]:
    """Open so many files that the next one has a larger number than select(2) knows; yield its number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(2000, hard)), hard))
    with open(os.devnull) as file, contextlib.ExitStack() as stack:
        number = 0
        while number <= 1100:
            number = os.dup(file.fileno())
            stack.callback(os.close, number)
        yield number
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


BROKEN = {
    "QoS 2": (SUBACK["5"] + publish(GOOD, qos=2), "a message of QoS 2, though QoS 1 was subscribed to"),
    "a huge packet": (
        SUBACK["5"] + b"\xa0" + length(200 * MIB),
        f"a packet of {200 * MIB} bytes that is not a message",
    ),
    "an unknown reason": (SUBACK["5"] + b"\xe0\x02\x03\x00", "ended the connection"),
    "an unknown method": (SUBACK["5"] + b"\xf0\x02\x99\x00", ""),
    "an endless length": (SUBACK["5"] + b"\x30\xff\xff\xff\xff\xff", ""),
    "a topic without an end": (SUBACK["5"] + b"\x32\x02\xff\xff", ""),
    "zeros": (SUBACK["5"] + b"\x00" * 100, ""),
    "CONNACK twice": (SUBACK["5"] + CONNACK["5"], "acknowledges the connection twice"),
    "a granted QoS 0": (
        b"\x90\x05\x00\x01\x00\x01\x00",
        "grants QoS 0 only for zuul/#, which loses messages; allow QoS 1",
    ),
    "a refusal": (
        b"\x90\x05\x00\x01\x00\x01\x87",
        "refuses the subscription to zuul/#: Not authorized; grant read access in the broker's access list",
    ),
}
NO_CONNACK = [b"HTTP/1.1 400\r\n\r\n", b"\x20\x03\x00\x00\x05", b"\x30\x02\x00\xff", b"\x20\x00", b"\xff" * 50]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        *(pytest.param([CONNACK["5"], sent], said, id=name) for name, (sent, said) in BROKEN.items()),
        *(pytest.param([sent], "", id=repr(sent[:8])) for sent in NO_CONNACK),
    ],
)
def test_what_is_not_mqtt_ends_the_connection_alone(
    tmp_path: Path, broker: Callable[..., Broker], caplog: pytest.LogCaptureFixture, answers: list[bytes], said: str
) -> None:
    one = broker(answers=answers)
    topics = ["a/#", "zuul/#"]
    session = session_of(tmp_path, broker=one.address, topics=topics, keepalive_s=1)
    with running(session) as kept:
        wait(lambda: one.connections > 1, "the connection stays")
        wait(lambda: not session.problem, "it does not connect again")
        assert kept.thread.is_alive()
    first = caplog.records[0].getMessage()
    assert one.address in first
    assert said in first
    assert first.isprintable()


def test_a_process_with_many_open_files_keeps_its_connection(
    tmp_path: Path, broker: Callable[..., Broker], open_files: int
) -> None:
    """select(2) knows descriptors up to 1,023 only."""
    assert open_files > 1100
    one = broker(publish(GOOD))
    with running(session_of(tmp_path, broker=one.address)) as kept:
        wait(lambda: one.read.count(PUBACK) == 1, "it is not acknowledged")
        assert kept.values == [GOOD]
    assert one.connections == 1


@settings(max_examples=tries(40))
@given(st.binary(min_size=1, max_size=60), st.booleans())
def test_no_bytes_end_a_session(tmp_path_factory: pytest.TempPathFactory, sent: bytes, begun: bool) -> None:
    """Anything, before or after the answers of a broker, is a lost connection or nothing."""
    one = Broker([CONNACK["5"], SUBACK["5"] + sent] if begun else [sent], ends=True)
    session = session_of(tmp_path_factory.mktemp("s"), broker=one.address)
    try:
        # Between its last answer and its end, the first connection may count as a good one.
        with running(session):
            wait(lambda: one.connections > 1 and not session.problem, "it does not connect again")
    finally:
        one.close()


def test_the_other_password_is_tried_after_a_refusal(tmp_path: Path, broker: Callable[..., Broker]) -> None:
    (tmp_path / "old").write_text("the password before")
    one = broker(answers=[b"\x20\x03\x00\x87\x00"])  # not authorized
    session = session_of(tmp_path, broker=one.address, user="ciml", secret_file=["old", "password"])
    with connected(session):
        assert one.connections == 2
        assert b"the password before" in one.read
        assert USERS["ciml"].encode() in one.read


def test_topics_with_control_characters_are_kept_and_not_printed(
    tmp_path: Path, broker: Callable[..., Broker], caplog: pytest.LogCaptureFixture
) -> None:
    topic = "zuul/\x1b[2J\n\x00é".encode()
    one = broker(publish(GOOD, 0, topic) + publish(GOOD, 1, b"zuul/\xff") + publish(GOOD, 1, b""))
    with running(session_of(tmp_path, broker=one.address)) as kept, caplog.at_level(logging.WARNING):
        wait(lambda: kept.outcomes.get("rejected") == 2, f"{kept.outcomes}")
    assert [each["ciml_header_topic"] for each in kept.headers] == [topic]
    assert "QoS 0" in caplog.text
    assert "\x1b" not in caplog.text


def test_retained_and_repeated_messages(tmp_path: Path, broker: Callable[..., Broker]) -> None:
    one = broker(publish(b"old", flags=1) + publish(GOOD) + publish(GOOD, flags=8))  # retain, and duplicate
    with running(session_of(tmp_path, broker=one.address)) as kept:
        wait(lambda: kept.outcomes == {"retained": 1, "accepted": 2}, f"{kept.outcomes}")
    assert kept.values == [GOOD, GOOD]  # which ingest recognises


def test_a_session_that_the_broker_forgets_sooner_is_warned_of(
    tmp_path: Path, broker: Callable[..., Broker], caplog: pytest.LogCaptureFixture
) -> None:
    one = broker(answers=[b"\x20\x08\x00\x00\x05\x11" + (60).to_bytes(4), SUBACK["5"]])
    with running(session_of(tmp_path, broker=one.address)):
        wait(lambda: "keeps messages for 60 s, not session_s = 604800" in caplog.text, caplog.text)


def test_answers_that_the_broker_does_not_read_are_bounded(
    tmp_path: Path, broker: Callable[..., Broker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_MAX_ANSWERS", 5)
    session = session_of(tmp_path, broker=broker().address)
    client = session.made_client()
    for _ in range(6):
        client.check_answers()
        client._packet_queue(0xD0, b"", 0, 0)
    with pytest.raises(HostileBroker, match="more packets than it reads answers"):
        client.check_answers()
    with connected(session):
        pass


def test_a_flood_of_messages_waits_for_kafka(tmp_path: Path, broker: Callable[..., Broker]) -> None:
    one = broker(publish(b"x" * 100_000, 0) * 400)
    session = session_of(tmp_path, broker=one.address)
    with allocating(24 * MIB), running(session, acknowledges=False) as kept:
        wait(lambda: len(kept.values) >= 64, "messages are missing")
        time.sleep(0.1)  # turns of its loop
        assert len(kept.values) < 80
        kept.acknowledge()


def test_a_message_up_to_the_limit_is_acknowledged_after_kafka_has_it(
    tmp_path: Path, broker: Callable[..., Broker]
) -> None:
    made = broker(publish(b"x" * 10) + publish(b"y" * 11))
    session = session_of(tmp_path, broker=made.address, max_bytes=10)
    with running(session, acknowledges=False) as kept:
        wait(lambda: kept.outcomes.get("too_large"), "the second message is missing")
        time.sleep(0.1)  # turns of its loop
        assert PUBACK not in made.read
        kept.acknowledge()
        wait(lambda: made.read.count(PUBACK) == 2, "they are not acknowledged")
    assert kept.values == [b"x" * 10]
