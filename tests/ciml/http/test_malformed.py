"""Malformed bytes on each HTTP listener: the log stays small and has no traceback, and good requests are answered."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ciml.http.intake import ConnectionLimiter
from ciml.http.server import HttpServer, listen
from ciml.logs import BoundedFormatter
from ciml.metrics import Board, registry_of, serve_metrics
from tests.malformed import MALFORMED, send

#: Bytes of the log for one malformed request, and for all scrapes together.
REQUEST_BYTES, ALL_BYTES = 100, 1000


async def read(request: Request) -> Response:
    try:
        body = await request.body()
    except ClientDisconnect:
        return Response(status_code=499)
    return PlainTextResponse(str(len(body)))


async def early(request: Request) -> Response:
    return PlainTextResponse("unauthorized", 401)  # before the body


async def slow(request: Request) -> Response:
    await asyncio.sleep(60)
    return PlainTextResponse("too late")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    listener = listen("127.0.0.1", 0)
    ready, stopping = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []
    routes = [
        Route("/early", early, methods=["POST"]),
        Route("/slow", slow, methods=["GET", "POST"]),
        Route("/{path:path}", read, methods=["GET", "POST"]),
    ]

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        server = HttpServer(Starlette(routes=routes), listener, ConnectionLimiter(64, 2.0, 0.5, 0.5, "MOST"), 1)
        await server.start()
        ready.set()
        await stopping.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait()
    yield listener.getsockname()[1]
    loops[0].call_soon_threadsafe(stopping.set)
    thread.join()


@contextmanager
def logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[list[str]]:
    """Collect the lines that are logged and printed."""
    caplog.clear()
    capfd.readouterr()
    lines: list[str] = []
    with caplog.at_level(logging.WARNING):
        yield lines
    lines += [BoundedFormatter().format(record) for record in caplog.records]
    lines += "".join(capfd.readouterr()).splitlines()


@pytest.mark.parametrize("path", [b"/v1/models/m:predict", b"/early"], ids=["body is read", "answered before the body"])
def test_malformed_requests_leave_no_tracebacks(
    port: int, path: bytes, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, data in MALFORMED.items():
        with logged(caplog, capfd) as lines:
            sent = data.replace(b"/v1/models/m:predict", path)
            send(port, sent)
            send(port, sent, split=True)
            send(port, sent, reset=True)
        assert len(text := "\n".join(lines)) <= REQUEST_BYTES, (name, text)
        assert "Traceback" not in text, name
    answer = httpx.post(f"http://127.0.0.1:{port}/x", content=b"abc", trust_env=False)
    assert (answer.status_code, answer.text) == (200, "3")
    refused = send(port, MALFORMED["chunk size of letters"])  # a bad chunk after a good header
    assert refused.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert refused.endswith(b'{"error": "Invalid HTTP request received."}')


def answers_to(port: int, data: bytes) -> bytes:
    """Send bytes, and return the answers until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(data)
        return client.makefile("rb").read()


@pytest.mark.parametrize(
    ("length", "status", "message"),
    [
        (b"0", b"504 Gateway Timeout", b"the server did not answer within 3 s of the request's header"),
        (b"9", b"408 Request Timeout", b"the request did not arrive within 3 s (MAX_BODY_S)"),
    ],
    ids=["slow application", "half a body"],
)
def test_the_error_names_the_limit_that_passed(port: int, length: bytes, status: bytes, message: bytes) -> None:
    answer = answers_to(port, b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: " + length + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert answer.endswith(b'{"error": "' + message + b'"}')


def test_a_connection_serves_one_request_after_another(port: int) -> None:
    pipelined = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab" * 2
    last = b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nConnection: close\r\n\r\nc"
    answer = answers_to(port, pipelined + last)
    assert (answer.count(b"HTTP/1.1 200 OK"), answer.count(b"HTTP/1.1 401 Unauthorized")) == (2, 1)


def test_malformed_scrapes_leave_no_tracebacks(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with serve_metrics(registry_of(Board()), 0) as url, logged(caplog, capfd) as lines:
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        for data in MALFORMED.values():
            send(port, data)
            send(port, data, reset=True)
        assert "ciml_build_info" in httpx.get(url, trust_env=False).text
    assert len(text := "\n".join(lines)) <= ALL_BYTES, text
    assert "Traceback" not in text
