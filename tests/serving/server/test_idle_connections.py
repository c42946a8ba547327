"""Idle connections never lock out a client: at the limit the one that has waited longest is closed."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import grpc
import httpx
import pytest

from ciml.serving.server.server import ModelServer, ServerOptions
from tests.malformed import MALFORMED, send

pytestmark = pytest.mark.whole

CONNECTIONS = 256
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
_PING = bytes.fromhex("0000080600000000000102030405060708")
_ANSWER_S = 12.0  # before the change: 15 s for silent connections, 65 s for those with a preface


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A server without models."""
    config = tmp_path_factory.mktemp("idle") / "models.config"
    options = ServerOptions(str(config), verify=False, grpc_port=0, rest_port=0, grpc_connections=CONNECTIONS)
    with ModelServer(options) as running:
        yield running


def code(channel: grpc.Channel, timeout_s: float = _ANSWER_S) -> grpc.StatusCode:
    """Return the status of a question about an unknown model."""
    call = channel.unary_unary("/tensorflow.serving.ModelService/GetModelStatus")
    with pytest.raises(grpc.RpcError) as answer:
        call(b"\x0a\x03\x0a\x01m", timeout=timeout_s, wait_for_ready=True)
    status: grpc.StatusCode = answer.value.code()
    return status


@contextlib.contextmanager
def flood(port: int, sent: bytes, number: int = CONNECTIONS + 50) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(number)]
        for client in clients:
            with contextlib.suppress(OSError):
                client.sendall(sent)
        yield clients


def is_closed(client: socket.socket) -> bool:
    """Return whether the server has closed a connection."""
    client.setblocking(False)
    try:
        while client.recv(1000):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


@pytest.mark.parametrize("sent", [b"", _PREFACE, _PREFACE + _PING], ids=["silent", "preface", "ping"])
def test_a_new_client_is_answered_while_idle_ones_hold_all_connections(server: ModelServer, sent: bytes) -> None:
    with flood(server.grpc_port, sent) as clients:
        for _ in range(3):
            with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
                assert code(channel) is grpc.StatusCode.NOT_FOUND
        deadline = time.monotonic() + 60
        while not any(map(is_closed, clients)):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_idle_keep_alive_connections_of_rest_do_not_lock_out_a_client(server: ModelServer) -> None:
    asked = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with flood(server.rest_port, asked, 560):
        answer = httpx.get(f"http://127.0.0.1:{server.rest_port}/healthz", trust_env=False, timeout=_ANSWER_S)
    assert answer.status_code == 200


def test_malformed_bytes_log_nothing(server: ModelServer, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    for data in MALFORMED.values():
        for port in (server.grpc_port, server.rest_port):
            send(port, data)
            send(port, data, reset=True)
    assert "".join(capfd.readouterr()) == ""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        assert code(channel) is grpc.StatusCode.NOT_FOUND
