"""Slow clients affect only themselves: connections, headers, bodies and messages have limits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ciml import limits
from ciml.errors import CimlError
from ciml.serving.server.server import ModelServer, ServerOptions
from tests.scraping import scrape
from tests.serving.models_fixture import columns, save_model
from tests.serving.process import ServerProcess, server_process
from tests.serving.siege import besiege, write_config

pytestmark = pytest.mark.engines

HEADER_S, BODY_S = 3.0, 3.5
PREDICT = "/tensorflow.serving.PredictionService/Predict"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Run a server with few open files and connections."""
    root = tmp_path_factory.mktemp("slow")
    config = write_config(root, save_model(root / "models" / "1"))
    arguments = ("--rest-connections=100", "--grpc-connections=48", f"--header-seconds={HEADER_S}")
    with server_process(
        config, root / "log", "--unverified", *arguments, f"--body-seconds={BODY_S}", files=100 + 48 + 256
    ) as running:
        yield running


def connect(server: ServerProcess, data: bytes, source: str = "127.0.0.1") -> socket.socket:
    one = socket.create_connection(("127.0.0.1", server.rest_port), timeout=20, source_address=(source, 0))
    one.sendall(data)
    return one


def read_all(one: socket.socket) -> bytes:
    found = b""
    with one:
        while part := one.recv(1 << 16):
            found += part
    return found


def rejections(server: ServerProcess) -> Counter[tuple[str, ...]]:
    """The rejected requests by API and limit."""
    samples = scrape(f"http://127.0.0.1:{server.rest_port}/monitoring/prometheus/metrics")
    return Counter(samples.get("ciml_model_rejections_total", {}))


def post(body: bytes, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (length, body)


def test_rest_slow_requests_are_closed_with_the_reason(server: ServerProcess) -> None:
    """Also a body whose bytes come one by one: they do not extend its time."""
    header = "no complete request within 3 s (MAX_HEADER_S)"
    body = "the request did not arrive within 3.5 s (MAX_BODY_S)"
    half_body = post(b"{", 100_000)
    before = rejections(server)
    sent = [(b"", header), (b"POST /v1/models/m:predict HTTP/1.1\r\nX: ", header), (half_body, body), (half_body, body)]
    clients = [connect(server, data) for data, _ in sent]
    clients[3].settimeout(0.1)
    answer = b""
    while not answer:
        try:
            answer = clients[3].recv(1000)
        except TimeoutError:
            clients[3].sendall(b" ")
    for (_, message), client, start in zip(sent, clients, (b"", b"", b"", answer), strict=True):
        head, _, text = (start + read_all(client)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert json.loads(text) == {"error": message}
    assert rejections(server) - before == {("rest_predict", "MAX_BODY_S"): 2}


def test_rest_a_client_that_does_not_read_its_answers_is_closed(server: ServerProcess) -> None:
    question = b"GET /v1/models/m/metadata HTTP/1.1\r\nHost: x\r\n\r\n"

    def ask_forever() -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                client.sendall(question)

    with connect(server, b"") as client:
        client.settimeout(0.1)
        with pytest.raises(ConnectionError):
            ask_forever()


def test_rest_beyond_the_limit_the_address_with_the_most_connections_loses_one(server: ServerProcess) -> None:
    body = json.dumps(columns(1)).encode()
    request = post(body).replace(b"Host: x", b"Host: x\r\nConnection: close")
    first = connect(server, request[:-1])  # before all others, and the slowest of them
    others = [connect(server, b"", source="127.0.0.2") for _ in range(120)]
    rejected = [read_all(one) for one in others[: 120 + 1 - 100]]  # the oldest, once the server has accepted all
    assert all(b" 503 " in answer for answer in rejected)
    assert b"more than 100 connections (MAX_REST_CONNECTIONS)" in rejected[0]
    first.sendall(body[-1:])
    assert b'\r\n\r\n{"outputs":' in read_all(first)
    assert not any(b" 503 " in read_all(one) for one in others[len(rejected) :])


def test_grpc_half_sent_messages_are_ended_and_use_no_thread(server: ServerProcess) -> None:
    async def ask() -> list[Any]:
        async def nothing() -> Any:
            await asyncio.sleep(60)
            yield b""

        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            half = channel.stream_unary(PREDICT)
            calls = [half(nothing()) for _ in range(40)]
            await asyncio.sleep(0.3)
            status = channel.unary_unary("/tensorflow.serving.ModelService/GetModelStatus")
            assert await status(b"\x0a\x03\x0a\x01m", timeout=20)
            return await asyncio.gather(*calls, return_exceptions=True)

    before = rejections(server)
    ended = [(one.code().name, one.details()) for one in asyncio.run(ask())]
    oldest = f"dropped as the oldest of {limits.MAX_READING_REQUESTS} incomplete requests (MAX_READING_REQUESTS)"
    assert set(ended) == {
        ("UNAVAILABLE", oldest),
        ("DEADLINE_EXCEEDED", "the request did not arrive within 3.5 s (MAX_BODY_S)"),
    }
    limit_of = {"UNAVAILABLE": "MAX_READING_REQUESTS", "DEADLINE_EXCEEDED": "MAX_BODY_S"}
    assert rejections(server) - before == Counter(("grpc_predict", limit_of[code]) for code, _ in ended)


def test_good_requests_are_answered_during_a_siege(server: ServerProcess) -> None:
    siege = asyncio.run(besiege(server, slow=200, seconds=3.0, rate=20.0))
    assert siege.failures == []
    assert siege.good == 60
    assert siege.rss < limits.MAX_MODEL_SERVER_RSS
    assert siege.closed["HTTP/1.1 503 Service Unavailable"] > 0  # it was more than the limit


def test_a_server_whose_connections_exceed_its_open_files_does_not_start(tmp_path: Path) -> None:
    options = ServerOptions(
        str(tmp_path / "x.config"), verify=False, grpc_port=0, rest_port=0, rest_connections=1 << 30
    )
    with pytest.raises(CimlError, match=r"raise it .ulimit -n 1073742336. or lower --rest-connections"):
        ModelServer(options).start()
