"""An HTTP server for an ASGI application, with limits on connections and on the time of each of their states.

A connection takes a file descriptor: without a free one, the process accepts nothing. So `Connections` limits their
number, and each connection has a time limit for the header of a request, for the request with its answer, and for
reading a response. h11 parses and writes HTTP/1.1; asyncio does the rest.

An exchange is a request with its response. A connection has one exchange at a time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import h11

from ciml.errors import CimlError, EngineError
from ciml.http.intake import Connections
from ciml.limits import MAX_HEADER_BYTES, MAX_SMALL_CHUNKS, MIN_CHUNK_BYTES, SPARE_FILES

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


@contextmanager
def serve_in_thread(
    app: Application, listener: socket.socket, connections: Connections, thread_name: str
) -> Iterator[None]:
    """Serve an application in a thread of its own while the context is open. Arguments as for `HttpServer`."""
    loop = asyncio.new_event_loop()
    server = HttpServer(app, listener, connections, grace_s=1)
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
      connections: their limits.
      grace_s: time at the end to answer requests that have begun, seconds.

    Attributes:
      open: the open connections.
    """

    def __init__(self, app: Application, listener: socket.socket, connections: Connections, grace_s: int = 5) -> None:
        self.app = app
        self.connections = connections
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

    def run(self, answer: Any) -> None:
        """Run the answer to a request, and keep it until it ends."""
        task = asyncio.get_running_loop().create_task(answer)
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def stop(self) -> None:
        """Accept no more connections, answer what has begun, and end."""
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


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket; port 0 lets the system choose one. Raises `EngineError` if the address is not free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With an explicit protocol asyncio sets TCP_NODELAY on accepted sockets; else each answer waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise EngineError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return listener


def check_open_files(connections: Mapping[str, int], options: str) -> None:
    """Check that the process may open files for its connections: without free descriptors it accepts none.

    Args:
      connections: the limit of open connections, by what they are.
      options: the options that lower these numbers.

    Raises:
      CimlError: the process's limit of open files is lower.
    """
    needed = sum(connections.values()) + SPARE_FILES
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed != resource.RLIM_INFINITY and needed > allowed:
        kinds = " and ".join(f"{number} {kind}" for kind, number in connections.items())
        raise CimlError(
            f"{kinds} connections take {needed} files; the limit is {allowed}: raise it (ulimit -n {needed}) or "
            f"lower {options}"
        )


class _Connection(asyncio.Protocol):
    """A connection with a time limit in each state.

    Args:
      server: the server that accepted it.

    Attributes:
      transport: set when the connection is made.
      address: IP address of the client.
      writable: cleared while the client is too slow to read.
      is_ending: whether the response in progress is the last one.
    """

    transport: asyncio.Transport

    def __init__(self, server: HttpServer) -> None:
        self.loop = asyncio.get_running_loop()
        self.address = ""
        self.writable = asyncio.Event()
        self.writable.set()
        self.is_ending = False
        self._server = server
        self._connections = server.connections
        self._parser = h11.Connection(h11.SERVER, MAX_HEADER_BYTES)
        self._client = ("", 0)
        self._exchange: _Exchange | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_counted = True
        self._is_idle = False  # between two exchanges

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP's transport
        self.transport = transport
        self._client = (transport.get_extra_info("peername") or ("", 0))[:2]
        self.address = self._client[0]
        self._server.open.add(self)
        self._restart_timer(self._connections.header_s)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._stop_counting()
        self._server.open.discard(self)
        if self._exchange is not None:
            self._exchange.disconnect()
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        if self._is_idle:
            self._is_idle = False
            self._restart_timer(self._connections.header_s)
        self._parser.receive_data(data)
        self._handle_events()

    def pause_writing(self) -> None:
        self.writable.clear()
        self._restart_timer(self._connections.header_s)  # limits how long a slow reader can stall the response

    def resume_writing(self) -> None:
        self.writable.set()
        self._restart_timer(self._connections.request_s)

    def _handle_events(self) -> None:
        """Handle what h11 has parsed from the bytes received so far."""
        try:
            while (event := self._parser.next_event()) is not h11.NEED_DATA:
                if event is h11.PAUSED:  # the next request waits for the end of this one
                    self.transport.pause_reading()
                    return
                self._handle(event)
                if self._parser.their_state is h11.MUST_CLOSE:
                    return
        except h11.RemoteProtocolError as error:
            names_limit = str(error).endswith("(MIN_CHUNK_BYTES)")
            self.reject(400, str(error) if names_limit else "Invalid HTTP request received.")
        except Exception as error:  # noqa: BLE001 - else asyncio logs a traceback for a client's bytes
            _LOG.warning("a request failed: %s", type(error).__name__)
            self.reject(400, "Invalid HTTP request received.")

    def _handle(self, event: Any) -> None:
        exchange = self._exchange
        if type(event) is h11.Request:
            self._begin(event)
        elif exchange is None:
            raise h11.RemoteProtocolError("a body without a request")
        elif type(event) is h11.Data:
            exchange.add(event)
            if len(exchange.body) > _MAX_UNREAD_BYTES:
                self.transport.pause_reading()
        elif type(event) is h11.EndOfMessage and not exchange.complete:
            exchange.more_body = False
            exchange.changed.set()
            if self._is_counted:
                self._connections.mark_working(self)
        elif type(event) is h11.EndOfMessage:  # of a request that was answered before its end
            self._await_request()

    def _begin(self, request: h11.Request) -> None:
        """Begin an exchange after the header of its request."""
        self._is_idle = False
        self._exchange = exchange = _Exchange(self, request.method)
        if self.writable.is_set():
            self._restart_timer(self._connections.request_s)
        scope = _scope(request, self._client, self.transport.get_extra_info("sockname")[:2])
        self._server.run(self._answer(exchange, scope))

    async def _answer(self, exchange: _Exchange, scope: dict[str, Any]) -> None:
        """Run the application for an exchange; end the response if the application did not."""
        try:
            await self._server.app(scope, exchange.receive, exchange.send)
        except Exception:  # noqa: BLE001 - a request never affects others
            _LOG.exception("a request failed")
        if exchange.disconnected or exchange.complete:
            return
        if exchange.responding:
            self.transport.abort()
        else:
            self.reject(500, "internal error")

    def resume_body(self) -> None:
        """Continue to read the body: the application waits for it."""
        if self._parser.they_are_waiting_for_100_continue:
            self.write(h11.InformationalResponse(status_code=100, headers=[], reason="Continue"))
        self.transport.resume_reading()

    def write(self, event: Any) -> None:
        self.transport.write(self._parser.send(event) or b"")

    def end_exchange(self) -> None:
        """Close the connection after a response, or wait for the next request."""
        if self._is_counted:
            self._connections.mark_waiting(self)
        self._restart_timer(self._connections.header_s)
        if self._parser.our_state is h11.MUST_CLOSE or self.is_ending:
            self.transport.close()
        elif not self.transport.is_closing():
            self.transport.resume_reading()
            if self._parser.their_state is h11.DONE:
                self._await_request()
                self._handle_events()

    def _await_request(self) -> None:
        self._parser.start_next_cycle()
        self.transport.resume_reading()
        self._is_idle = True
        self._restart_timer(_KEEP_ALIVE_S)

    def finish(self) -> None:
        """Close the connection after the response in progress."""
        self.is_ending = True
        if self._exchange is None or self._exchange.complete:
            self.transport.close()

    def reject(self, status: int, message: str) -> None:
        """Send an error unless a response has begun, and close."""
        self._stop_counting()
        exchange = self._exchange
        responding = exchange is not None and exchange.responding and not exchange.complete
        if exchange is not None:
            exchange.disconnect()
        if responding or self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.transport.abort()  # `close` waits for a client that does not read
            return
        body = json.dumps({"error": message})
        self.transport.write(
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()
        )
        self.transport.close()

    def _restart_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._expire, seconds)

    def _expire(self, seconds: float) -> None:
        if self._is_idle and not self.transport.get_write_buffer_size():
            self.transport.close()
        else:
            self.reject(408, f"no complete request within {seconds:g} s (MAX_HEADER_S)")

    def _stop_counting(self) -> None:
        """Remove the connection from those that are counted: before its transport closes, in a later turn."""
        if self._is_counted:
            self._is_counted = False
            self._connections.remove(self)


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


class _Exchange:
    """A request and its response. `receive` and `send` are the functions that ASGI passes to an application.

    Attributes:
      body: the bytes that the application has not read.
      more_body: whether the request is incomplete.
      chunks, size: of the body so far.
      responding, complete: whether the response has begun, and has ended.
      disconnected: whether the connection is closed or rejected: nothing more is sent.
      changed: set when any of these changes.
    """

    def __init__(self, connection: _Connection, method: bytes) -> None:
        self._connection = connection
        self._has_body = method != b"HEAD"
        self.body = bytearray()
        self.more_body = True
        self.chunks = 0
        self.size = 0
        self.responding = False
        self.complete = False
        self.disconnected = False
        self.changed = asyncio.Event()

    def add(self, data: h11.Data) -> None:
        """Add a part of the body. Tiny chunks are rejected: each costs the server time, and its sender a few bytes."""
        self.chunks += data.chunk_end  # packets of a body without chunks do not count
        self.size += len(data.data)
        if self.chunks > MAX_SMALL_CHUNKS and self.size < self.chunks * MIN_CHUNK_BYTES:
            raise h11.RemoteProtocolError(f"chunks of less than {MIN_CHUNK_BYTES} bytes on average (MIN_CHUNK_BYTES)")
        if not self.complete:
            self.body += data.data
            self.changed.set()

    def disconnect(self) -> None:
        if not self.complete:
            self.disconnected = True
            self.changed.set()

    async def receive(self) -> dict[str, Any]:
        """Return the next part of the body, or the end of the connection."""
        if not self.disconnected and not self.complete:
            self._connection.resume_body()
            await self.changed.wait()
            self.changed.clear()
        if self.disconnected or self.complete:
            return {"type": "http.disconnect"}
        body = bytes(self.body)
        self.body.clear()
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Any) -> None:
        """Send the start or a part of the response. Wait while the client does not read."""
        connection = self._connection
        await connection.writable.wait()
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            headers = [(b"date", formatdate(usegmt=True).encode()), *message.get("headers", ())]
            if connection.is_ending:
                headers.append((b"connection", b"close"))
            status = HTTPStatus(message["status"])
            connection.write(h11.Response(status_code=status, headers=headers, reason=status.phrase))
            self.responding = True
            return
        connection.write(h11.Data(data=message.get("body", b"") if self._has_body else b""))
        if not message.get("more_body", False):
            connection.write(h11.EndOfMessage())
            self.complete = True
            self.changed.set()
            connection.end_exchange()
