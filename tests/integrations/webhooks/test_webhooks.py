"""The receiver's answers over real HTTP; its deliveries are kept in memory."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from ciml.errors import EngineError
from ciml.events.records import Message
from ciml.integrations.registry import read_event
from ciml.limits import MAX_DELIVERY_BYTES
from ciml.services import receivers
from tests.integrations.receivers.kept import wait
from tests.integrations.webhooks.hooking import SOURCE, Hooks, delivery, receiving
from tests.integrations.webhooks.test_signatures import github
from tests.scraping import collected

pytestmark = pytest.mark.usefixtures("probe")


class Memory:
    """Stands for the producer: acknowledges each delivery."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def deliver(self, value: bytes, headers: list[tuple[str, bytes]]) -> None:
        self.messages.append(Message(len(self.messages), value, tuple(headers)))

    def close(self) -> None:
        pass


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    memory = Memory()
    monkeypatch.setattr(receivers, "DeliveryProducer", lambda *_: memory)
    monkeypatch.setattr(receivers, "topic_of", lambda *_: ("", [0]))
    return memory


@pytest.fixture
def hooks(memory: Memory, tmp_path: Path) -> Iterator[Hooks]:
    with receiving(tmp_path, "", "") as (hooks, _):
        yield hooks


@contextmanager
def sending(hooks: Hooks, text: str, body: bytes = b"", path: str = "/hooks/hub") -> Iterator[socket.socket]:
    """Connect, and send the beginning of a request that is signed for a body; ``text`` adds headers."""
    signature = github(body)["x-hub-signature-256"]
    with socket.create_connection(("127.0.0.1", hooks.port), timeout=30) as one:
        one.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: {signature}\r\n{text}".encode())
        yield one


def read_all(one: socket.socket) -> bytes:
    answer = b""
    while part := one.recv(4096):
        answer += part
    return answer


def test_an_accepted_delivery_is_kept_as_the_adapter_needs_it(hooks: Hooks, memory: Memory) -> None:
    body = b' {"id": "e-1",\n "run": {"id": "1", "job": "unit"}} '
    answer = hooks.post(body, {"X-Probe-Event": "run", "X-GitHub-Delivery": "d-1", "Cookie": "x"})
    assert (answer.status, answer.value) == (202, {"accepted": True})
    assert hooks.post(b'{"zen": "Design for failure."}', {"X-Probe-Event": "ping"}).status == 202
    run, ping = memory.messages
    assert run.value == body
    assert dict(run.headers) == {
        "ciml_adapter": b"probe", "ciml_source": b"hub", "ciml_auth": b"hmac-sha256",
        "ciml_header_x-probe-event": b"run",
    }  # fmt: skip
    event = read_event(run)
    assert (event.key, event.source, event.ignored) == ("hub+hmac-sha256 e-1", "hub", "")
    assert read_event(ping).ignored == "a ping only tests the webhook"


def test_another_path_or_method_is_answered_without_reading(memory: Memory, tmp_path: Path) -> None:
    requests = [
        ("POST", "/", 404), ("POST", "/hooks/hub/", 404), ("POST", "/hooks/Hub", 404), ("GET", "/hooks/none", 404),
        ("GET", "/hooks/hub", 405), ("PUT", "/hooks/hub", 405), ("POST", "/healthz", 405),
    ]  # fmt: skip
    with receiving(tmp_path, "", "") as (hooks, service):
        for method, path, status in requests:
            with socket.create_connection(("127.0.0.1", hooks.port), timeout=10) as one:
                one.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode())
                assert one.recv(4096).startswith(f"HTTP/1.1 {status} ".encode()), (method, path)
        counted = collected(service.metrics.collectors[0])["ciml_deliveries_total"]
        assert counted == {("not_found", "webhooks", "_unknown"): 4}


def test_a_receiver_is_ready_once_the_broker_has_answered(memory: Memory, tmp_path: Path) -> None:
    with receiving(tmp_path, "", "") as (hooks, service):
        assert hooks.ask("GET", "/readyz").status == 503
        assert hooks.ask("GET", "/healthz").value == {"alive": True}
        service.observe()
        assert hooks.ask("GET", "/readyz").value == {"ready": True}


def test_a_request_without_a_proof_is_answered_before_its_body(memory: Memory, tmp_path: Path) -> None:
    lab = SOURCE.replace('"hub"', '"lab"') + 'auth = "gitlab-token"\n'
    with receiving(tmp_path, "", "", SOURCE + lab) as (hooks, _):
        for path, header in (("/hooks/hub", ""), ("/hooks/lab", "X-Gitlab-Token: wrong\r\n")):
            with socket.create_connection(("127.0.0.1", hooks.port), timeout=10) as one:
                one.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\n{header}Content-Length: 1000\r\n\r\n".encode())
                assert one.recv(4096).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("most", [100, MAX_DELIVERY_BYTES])
def test_a_body_over_the_limit_is_rejected_before_it_is_in_memory(memory: Memory, tmp_path: Path, most: int) -> None:
    with receiving(tmp_path, "", "", f"{SOURCE}max_bytes = {most}\n") as (hooks, _):
        answer = hooks.post(b"x" * (most + 1))
        assert answer.status == 413
        assert answer.value == {"error": f"the request is larger than {most} bytes (MAX_DELIVERY_BYTES)"}
        with sending(hooks, "Content-Length: 100000000\r\n\r\n") as one:
            assert one.recv(4096).startswith(b"HTTP/1.1 413 ")
        with sending(hooks, "Transfer-Encoding: chunked\r\n\r\n") as one:
            for _ in range(1 + most // 0x8000):
                one.sendall(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
            assert one.recv(4096).startswith(b"HTTP/1.1 413 ")
        assert hooks.post(b"x" * most).status == 202


def test_the_limits_of_the_configuration_are_those_of_its_connections(memory: Memory, tmp_path: Path) -> None:
    for limits, text, message in (
        ("header_s = 0.2", "", b"no complete request within 0.2 s (MAX_HEADER_S)"),
        ("header_s = 2\nbody_s = 0.4", "Content-Length: 9\r\n\r\n{", b"within 0.4 s (MAX_BODY_S)"),
    ):
        with (
            receiving(tmp_path, "", "", f"[webhooks]\nport = 0\n{limits}\n{SOURCE}") as (hooks, _),
            sending(hooks, text) as one,
        ):
            answer = read_all(one)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert message in answer
    with receiving(tmp_path, "", "", "[webhooks]\nport = 0\nconnections = 3\n" + SOURCE) as (hooks, _):
        many = [socket.create_connection(("127.0.0.1", hooks.port), 10) for _ in range(4)]
        assert b"more than 3 connections (MAX_HOOK_CONNECTIONS)" in read_all(many[0])
        for one in many:
            one.close()


def test_the_end_answers_what_was_read(memory: Memory, tmp_path: Path) -> None:
    body = delivery(1)
    with receiving(tmp_path, "", "") as (hooks, service):
        with sending(hooks, f"Content-Length: {len(body)}\r\n\r\n", body) as one:
            one.sendall(body[:-1])
            assert hooks.ask("GET", "/healthz").status == 200  # it has read what was sent before
            closing = threading.Thread(target=service.close)
            closing.start()

            def is_closed() -> bool:
                with socket.socket() as client:
                    return client.connect_ex(("127.0.0.1", hooks.port)) != 0

            wait(is_closed, "it listens on")
            one.sendall(body[-1:])
            assert one.recv(4096).startswith(b"HTTP/1.1 202 ")
        closing.join(15)
        assert not closing.is_alive()
    assert [message.value for message in memory.messages] == [body]


def test_a_port_in_use_is_an_error_in_one_line(hooks: Hooks, tmp_path: Path) -> None:
    other: AbstractContextManager[object] = receiving(
        tmp_path / "other", "", "", f"[webhooks]\nport = {hooks.port}\n{SOURCE}"
    )
    with pytest.raises(EngineError, match=f"{hooks.port}: Address already in use; set another port in"), other:
        pass
