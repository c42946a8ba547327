"""The HTTP server: connections beyond the limit, bodies that are not read, and the end of the server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ciml.http import server as server_module
from ciml.http.intake import ConnectionLimiter
from ciml.http.server import HttpServer, listen
from ciml.limits import MAX_SMALL_CHUNKS

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def ok(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def answer(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await ok(scope, receive, send)


@asynccontextmanager
async def served(app: Any, most: int = 9, grace_s: int = 5, waiting: int = 0) -> AsyncIterator[tuple[HttpServer, int]]:
    """Serve an application. So many clients (``waiting``) have connected before, and are accepted in one turn."""
    listener = listen("127.0.0.1", 0)
    listener.listen(16)
    port = listener.getsockname()[1]
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(waiting)]
    server = HttpServer(app, listener, ConnectionLimiter(most, 60, 60, 60, "MOST"), grace_s)
    await server.start()
    try:
        yield server, port
    finally:
        await server.stop()
        for client in clients:
            client.close()


@asynccontextmanager
async def client(port: int, request: bytes = b"") -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    yield reader, writer
    writer.close()


def runs(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))  # type: ignore[arg-type]


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_each_connection_beyond_the_limit_costs_one() -> None:
    """Those that are accepted in one turn of the loop are rejected before any of them is closed."""

    async def test() -> None:
        async with served(answer, most=2, waiting=5) as (server, port):
            await until(lambda: len(server.open) == 2)
            async with client(port) as (reader, writer):
                await until(lambda: len(server.open) == 2)
                writer.write(GET)
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                assert len(server.open) == 2

    runs(test)


@pytest.mark.parametrize("respond", [answer, ok], ids=["then it is read", "then it is discarded"])
def test_a_body_stays_in_the_connection_until_the_application_reads_it_or_has_answered(
    respond: Callable[..., Awaitable[None]],
) -> None:
    async def test() -> None:
        is_read = asyncio.Event()

        async def late(scope: Any, receive: Any, send: Any) -> None:
            await is_read.wait()
            await respond(scope, receive, send)

        size = 32 << 20  # more than sockets hold
        request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
        async with served(late) as (server, port), client(port, request) as (reader, writer):
            await until(lambda: any(not connection.transport.is_reading() for connection in server.open))
            is_read.set()
            writer.write(GET)
            for _ in range(2):
                assert (await reader.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200")

    runs(test)


@pytest.mark.parametrize(("chunks", "status"), [(MAX_SMALL_CHUNKS, b"200"), (MAX_SMALL_CHUNKS + 1, b"400")])
def test_chunks_of_any_size_have_a_number(chunks: int, status: bytes) -> None:
    async def test() -> None:
        body = b"1\r\nx\r\n" * chunks + b"0\r\n\r\n"
        request = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body
        async with served(answer) as (_, port), client(port, request) as (reader, _):
            assert (await reader.readline()).split()[1] == status

    runs(test)


def test_a_request_that_is_malformed_after_its_response_has_no_second_one() -> None:
    async def test() -> None:
        request = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        async with served(ok) as (_, port), client(port, request) as (reader, writer):
            first = await reader.readuntil(b"\r\n\r\nok")
            assert first.startswith(b"HTTP/1.1 200")
            writer.write(b"no chunk\r\n")
            assert await reader.read() == b""

    runs(test)


def test_the_end_closes_idle_connections_and_answers_the_requests_that_have_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "_KEEP_ALIVE_S", 600.0)

    async def test() -> None:
        begun, finish = asyncio.Event(), asyncio.Event()

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] == "/slow":
                begun.set()
                await finish.wait()
            await ok(scope, receive, send)

        async with (
            served(slow, grace_s=30) as (server, port),
            client(port, GET) as (idle, _),
            client(port, GET.replace(b"/ ", b"/slow ")) as (busy, _),
        ):
            assert b"connection: close" not in await idle.readuntil(b"\r\n\r\nok")
            await begun.wait()
            stopping = asyncio.create_task(server.stop())
            assert await idle.read() == b""
            with pytest.raises(ConnectionError):
                await asyncio.open_connection("127.0.0.1", port)
            assert not stopping.done()
            finish.set()
            answer = await busy.read()
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in answer
            await stopping

    runs(test)


def test_an_answer_that_takes_longer_than_the_grace_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        events: list[str] = []

        async def endless(scope: Any, receive: Any, send: Any) -> None:
            events.append("begun")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                events.append("cancelled")
                raise

        async with served(endless, grace_s=0) as (server, port), client(port, GET) as (reader, _):
            await until(lambda: events)
            await server.stop()
            await until(lambda: events == ["begun", "cancelled"])
            assert await reader.read() == b""

    runs(test)
    assert "1 answers were cancelled after 0 s" in caplog.text
