"""An HTTP server for an ASGI application, with limits on connections and on the time of each of their states.

A connection takes a file descriptor: without a free one, the process accepts nothing. So a `ConnectionLimiter` limits
the number of connections, and each one has a time limit in each of its states. h11 parses and writes HTTP/1.1.

An exchange is a request with its response. A connection has one exchange at a time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from enum import Enum, auto
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import h11

from ciml.errors import EngineError
from ciml.http.intake import ConnectionLimiter
from ciml.limits import MAX_HEADER_BYTES, MAX_SMALL_CHUNKS, MIN_CHUNK_BYTES

_LOG = logging.getLogger(__name__)
#: Seconds until a connection without a request in progress is closed.
_KEEP_ALIVE_S = 5.0
#: Bytes of a body that the application has not read; beyond them the connection is not read.
_MAX_UNREAD_BYTES = 64 << 10
#: Connections that the loop accepts in one turn: each takes a file descriptor before it is counted.
_MAX_ACCEPTED_PER_TURN = 64
_BACKLOG = 1024

#: An ASGI application.
Application = Callable[..., Any]


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket; port 0 lets the system choose one. Raises `EngineError` if the address is not free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With an explicit protocol asyncio sets TCP_NODELAY on accepted sockets; otherwise each answer is delayed by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise EngineError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return listener


@contextmanager
def serve_in_thread(
    app: Application, listener: socket.socket, limiter: ConnectionLimiter, thread_name: str, grace_s: int = 1
) -> Iterator[None]:
    """Serve an application in a thread of its own while the context is open. Arguments as for `HttpServer`."""
    loop = asyncio.new_event_loop()
    server = HttpServer(app, listener, limiter, grace_s)
    thread = threading.Thread(target=loop.run_forever, name=thread_name, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result()
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class HttpServer:
    """An application that is served on a socket. Belongs to one event loop.

    Args:
      app: the application.
      listener: a bound socket.
      limiter: the limits of its connections.
      grace_s: time of `stop` to answer requests that have begun, seconds.

    Attributes:
      open: the open connections.
    """

    def __init__(self, app: Application, listener: socket.socket, limiter: ConnectionLimiter, grace_s: int = 5) -> None:
        self.app = app
        self.limiter = limiter
        self.open: set[_Connection] = set()
        self._listener = listener
        self._grace_s = grace_s
        self._answers: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Serve; return when connections are accepted."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), sock=self._listener, backlog=_MAX_ACCEPTED_PER_TURN
        )
        self._listener.listen(_BACKLOG)  # asyncio would accept as many in one turn

    def run(self, answer: Coroutine[Any, Any, None]) -> None:
        """Run the answer to a request in a task, and keep the task: the loop has only a weak reference to it."""
        task = asyncio.get_running_loop().create_task(answer)
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def stop(self) -> None:
        """Accept no more connections, answer the requests that have begun, and close all connections."""
        self._server.close()
        for connection in tuple(self.open):
            connection.finish()
        try:
            async with asyncio.timeout(self._grace_s):
                while self.open or self._answers:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            _LOG.error("%d answers were cancelled after %d s", len(self._answers), self._grace_s)
            for task in self._answers:
                task.cancel()
            for connection in self.open:
                connection.transport.abort()


class _State(Enum):
    """The states of a connection. Each has a time limit.

    Members:
      HEADER: the header of a request is incomplete, and the connection is new or some bytes have arrived.
      EXCHANGE: the header has arrived, and the response has not ended.
      REMAINDER: the response has ended, and the request has not. The rest of its body is discarded.
      IDLE: request and response have ended, and no byte of another request has arrived.
    """

    HEADER = auto()
    EXCHANGE = auto()
    REMAINDER = auto()
    IDLE = auto()


class _Connection(asyncio.Protocol):
    """A connection with a time limit in each state.

    At its time limit, a connection in HEADER or EXCHANGE is rejected, and one in REMAINDER or IDLE is closed. While the
    client is too slow to read a response, the limit of HEADER applies, and then the connection is aborted.

    Args:
      server: the server that accepted it.

    Attributes:
      transport: set when the connection is made.
      address: IP address of the client.
      writable: cleared while the client is too slow to read.
      is_finishing: whether the server is stopping: the response in progress is the last one.
    """

    transport: asyncio.Transport

    def __init__(self, server: HttpServer) -> None:
        self.loop = asyncio.get_running_loop()
        self.address = ""
        self.writable = asyncio.Event()
        self.writable.set()
        self.is_finishing = False
        self._server = server
        self._limiter = limiter = server.limiter
        self._parser = h11.Connection(h11.SERVER, MAX_HEADER_BYTES)
        self._client = ("", 0)
        self._state = _State.HEADER
        self._limits_s = {
            _State.HEADER: limiter.header_s,
            _State.EXCHANGE: limiter.request_s,
            _State.REMAINDER: limiter.header_s,
            _State.IDLE: _KEEP_ALIVE_S,
        }
        self._exchange: _Exchange | None = None  # set in EXCHANGE and REMAINDER
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP's transport
        self.transport = transport
        self._client = (transport.get_extra_info("peername") or ("", 0))[:2]
        self.address = self._client[0]
        self._server.open.add(self)
        self._enter(_State.HEADER)
        self._limiter.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._limiter.remove(self)
        self._server.open.discard(self)
        if self._exchange is not None:
            self._exchange.disconnect()
        self.writable.set()  # `send` may wait for it, and returns now

    def data_received(self, data: bytes) -> None:
        if self._state is _State.IDLE:
            self._enter(_State.HEADER)
        self._parser.receive_data(data)
        self._handle_events()

    def pause_writing(self) -> None:
        self.writable.clear()
        self._restart_timer(self._limiter.header_s)

    def resume_writing(self) -> None:
        self.writable.set()
        self._restart_timer(self._limits_s[self._state])

    def _enter(self, state: _State) -> None:
        self._state = state
        if self.writable.is_set():  # otherwise the timer of the unread response is running
            self._restart_timer(self._limits_s[state])

    def _restart_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._expire, seconds)

    def _expire(self, seconds: float) -> None:
        """End the state whose time limit has passed."""
        exchange = self._exchange
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # the client does not read; `close` would wait for it
        elif self._state is _State.HEADER:
            self.reject(408, f"no complete request within {seconds:g} s (MAX_HEADER_S)")
        elif self._state is not _State.EXCHANGE or exchange is None:
            self.transport.close()
        elif exchange.more_body:
            self.reject(408, f"the request did not arrive within {seconds:g} s (MAX_BODY_S)")
        else:
            self.reject(504, f"the server did not answer within {seconds:g} s of the request's header")

    def _handle_events(self) -> None:
        """Handle the events that h11 has parsed from the bytes received so far."""
        try:
            while isinstance(event := self._parser.next_event(), h11.Event):
                self._handle(event)
                if self._parser.their_state is h11.MUST_CLOSE:
                    return
            if event is h11.PAUSED:  # the next request waits for this exchange to end
                self.transport.pause_reading()
        except h11.RemoteProtocolError as error:
            names_limit = str(error).endswith("(MIN_CHUNK_BYTES)")
            self.reject(400, str(error) if names_limit else "Invalid HTTP request received.")
        except Exception as error:  # noqa: BLE001 - otherwise asyncio logs a traceback for a client's bytes
            _LOG.warning("a request failed: %s", type(error).__name__)
            self.reject(400, "Invalid HTTP request received.")

    def _handle(self, event: h11.Event) -> None:
        exchange = self._exchange
        if isinstance(event, h11.Request):
            self._begin(event)
        elif exchange is None:  # h11 parses a body only after its request
            raise h11.RemoteProtocolError("a body without a request")
        elif isinstance(event, h11.Data):
            exchange.add_body(event)
            if len(exchange.body) > _MAX_UNREAD_BYTES:
                self.transport.pause_reading()
        else:
            exchange.end_body()
            if self._state is _State.REMAINDER:
                self._await_request()
            else:
                self._limiter.mark_working(self)

    def _begin(self, request: h11.Request) -> None:
        """Begin an exchange after the header of its request."""
        self._exchange = exchange = _Exchange(self, request.method)
        self._enter(_State.EXCHANGE)
        scope = _scope(request, self._client, self.transport.get_extra_info("sockname")[:2])
        self._server.run(self._answer(exchange, scope))

    async def _answer(self, exchange: _Exchange, scope: dict[str, Any]) -> None:
        """Run the application for an exchange; end the response if the application did not."""
        try:
            await self._server.app(scope, exchange.receive, exchange.send)
        except Exception:  # noqa: BLE001 - a request never affects others
            _LOG.exception("a request failed")
        if exchange.response is _Response.STARTED:
            self.transport.abort()
        elif exchange.response is _Response.PENDING:
            self.reject(500, "internal error")

    def resume_body(self) -> None:
        """Continue to read the body: the application waits for it."""
        if self._parser.they_are_waiting_for_100_continue:
            self.write(h11.InformationalResponse(status_code=100, headers=[], reason="Continue"))
        self.transport.resume_reading()

    def write(self, event: h11.Event) -> None:
        self.transport.write(self._parser.send(event) or b"")

    def end_response(self) -> None:
        """Close the connection after a response, or read the rest of its request, or await the next one."""
        self._limiter.mark_waiting(self)
        self._enter(_State.REMAINDER)
        if self._parser.our_state is h11.MUST_CLOSE or self.is_finishing:
            self.transport.close()
        elif not self.transport.is_closing():
            self.transport.resume_reading()
            if self._exchange is not None and not self._exchange.more_body:
                self._await_request()
                self._handle_events()  # the next request may have arrived

    def _await_request(self) -> None:
        """Enter IDLE. Called when both request and response have ended, by the later of the two."""
        self._exchange = None
        self._parser.start_next_cycle()
        self.transport.resume_reading()
        self._enter(_State.IDLE)

    def finish(self) -> None:
        """Close the connection after the response in progress."""
        self.is_finishing = True
        if self._state is not _State.EXCHANGE:
            self.transport.close()

    def reject(self, status: int, message: str) -> None:
        """Close the connection; send an error unless a response was sent, is in progress or unread."""
        self._limiter.remove(self)  # now, since the transport closes in a later turn
        response = _Response.PENDING
        if self._exchange is not None:
            response = self._exchange.response
            self._exchange.disconnect()
        if response is _Response.STARTED or self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.transport.abort()  # `close` waits for a client that does not read
            return
        if response is _Response.PENDING:
            body = json.dumps({"error": message})
            self.transport.write(
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()
            )
        self.transport.close()


def _scope(request: h11.Request, client: tuple[str, int], server: tuple[str, int]) -> dict[str, Any]:
    """Return the ASGI scope of a request."""
    raw_path, _, query = request.target.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": request.http_version.decode("ascii"),
        "scheme": "http",
        "method": request.method.decode("ascii"),
        "root_path": "",
        "path": unquote(raw_path.decode("ascii")),
        "raw_path": raw_path,
        "query_string": query,
        "headers": list(request.headers),
        "client": client,
        "server": server,
    }


class _Response(Enum):
    """The progress of a response. LOST: the connection was closed or rejected first; nothing more is sent."""

    PENDING = auto()
    STARTED = auto()
    ENDED = auto()
    LOST = auto()


class _Exchange:
    """A request and its response. `receive` and `send` are the functions that ASGI passes to an application.

    Attributes:
      body: the bytes that the application has not read.
      more_body: whether the request is incomplete.
      response: the progress of the response.
    """

    def __init__(self, connection: _Connection, method: bytes) -> None:
        self._connection = connection
        self._sends_body = method != b"HEAD"
        self.body = bytearray()
        self.more_body = True
        self.response = _Response.PENDING
        self._body_bytes = 0  # received so far
        self._chunks = 0
        self._changed = asyncio.Event()  # `receive` waits for it

    @property
    def _is_over(self) -> bool:
        return self.response in (_Response.ENDED, _Response.LOST)

    def add_body(self, data: h11.Data) -> None:
        """Add a part of the body. Tiny chunks are rejected: each costs the server time, and its sender a few bytes."""
        self._chunks += data.chunk_end  # packets of a body without chunks do not count
        self._body_bytes += len(data.data)
        if self._chunks > MAX_SMALL_CHUNKS and self._body_bytes < self._chunks * MIN_CHUNK_BYTES:
            raise h11.RemoteProtocolError(f"chunks of less than {MIN_CHUNK_BYTES} bytes on average (MIN_CHUNK_BYTES)")
        if not self._is_over:
            self.body += data.data
            self._changed.set()

    def end_body(self) -> None:
        """Mark the request as complete."""
        self.more_body = False
        self._changed.set()

    def disconnect(self) -> None:
        """Mark the response as lost unless it has ended."""
        if self.response is not _Response.ENDED:
            self.response = _Response.LOST
            self._changed.set()

    async def receive(self) -> dict[str, Any]:
        """Return the next part of the body, or a disconnect once the response has ended or is lost."""
        if not self._is_over:
            self._connection.resume_body()
            await self._changed.wait()
            self._changed.clear()
        if self._is_over:
            return {"type": "http.disconnect"}
        body = bytes(self.body)
        self.body.clear()
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Any) -> None:
        """Send the start or a part of the response. Wait while the client does not read."""
        connection = self._connection
        await connection.writable.wait()
        if self.response is _Response.LOST:
            return
        if message["type"] == "http.response.start":
            headers = [(b"date", formatdate(usegmt=True).encode()), *message.get("headers", ())]
            if connection.is_finishing:
                headers.append((b"connection", b"close"))
            status = HTTPStatus(message["status"])
            connection.write(h11.Response(status_code=status, headers=headers, reason=status.phrase))
            self.response = _Response.STARTED
            return
        connection.write(h11.Data(data=message.get("body", b"") if self._sends_body else b""))
        if not message.get("more_body", False):
            connection.write(h11.EndOfMessage())
            self.response = _Response.ENDED
            self.body.clear()  # else the connection would not be read
            self._changed.set()
            connection.end_response()
