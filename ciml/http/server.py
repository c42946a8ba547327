"""Limits of HTTP connections: their number, the size of chunks, the time for a header, a request, reading a response.

uvicorn limits neither the number of connections (its ``limit_concurrency`` rejects requests and counts idle
connections) nor the time for a header. A connection takes a file descriptor: without a free one, nothing is accepted.

The listening socket of an HTTP server, and the open files that its connections take.

uvicorn on a socket, with limits on connections and a graceful end.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import socket
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ciml.errors import CimlError, EngineError
from ciml.limits import MAX_HEADER_BYTES, MAX_SMALL_CHUNKS, MIN_CHUNK_BYTES, SPARE_FILES

if TYPE_CHECKING:
    from starlette.applications import Starlette

_LOG = logging.getLogger(__name__)
#: What a connection that has just begun to wait counts as, seconds: many new ones weigh too.
_LEAST_WAIT_S = 1.0
_PHRASES = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


class Counted(Protocol):
    """A connection that `Connections` counts."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    @property
    def address(self) -> str: ...

    def reject(self, status: int, message: str) -> None: ...


class Connections:
    """The open connections, and which of them await a complete request. Belongs to one event loop.

    Args:
      most: open connections. At one more, the client address whose connections have waited longest for complete
        requests, all together, loses the one that has waited longest. So a slow client affects only itself, and one
        with many complete or new requests, such as a proxy, is not taken for slow.
      header_s: limit for the header of a request, and for reading a response, seconds.
      body_s: limit for its body, seconds.
      work_s: limit for its answer, seconds.
      limit: the name of the limit ``most``, for its message.
    """

    def __init__(self, most: int, header_s: float, body_s: float, work_s: float, limit: str) -> None:
        self.most = most
        self.header_s = header_s
        self.request_s = body_s + work_s + header_s
        self._message = f"more than {most} connections ({limit})"
        self._open = 0
        self._waiting: dict[str, dict[Counted, float]] = {}  # by address, the oldest first: since when
        self._since: defaultdict[str, float] = defaultdict(float)  # the sum of these times

    def opened(self, one: Counted) -> None:
        self._open += 1
        self.waits(one)
        if self._open > self.most:
            counted_s = one.loop.time() + _LEAST_WAIT_S
            address = max(self._waiting, key=lambda each: counted_s * len(self._waiting[each]) - self._since[each])
            next(iter(self._waiting[address])).reject(503, self._message)

    def waits(self, one: Counted) -> None:
        """Mark a connection as waiting for a complete request."""
        self.works(one)
        now_s = one.loop.time()
        self._waiting.setdefault(one.address, {})[one] = now_s
        self._since[one.address] += now_s

    def works(self, one: Counted) -> None:
        """Mark a connection's request as complete, or the connection as closed."""
        waiting = self._waiting.get(one.address, {})
        self._since[one.address] -= waiting.pop(one, 0.0)
        if not waiting:
            self._waiting.pop(one.address, None)
            self._since.pop(one.address, None)

    def closed(self, one: Counted) -> None:
        self.works(one)
        self._open -= 1

    def protocol(self) -> type[asyncio.Protocol]:
        """Return the protocol class for uvicorn."""
        return type("LimitedConnection", (Connection,), {"table": self})


class _SmallChunksError(Exception):
    """The body comes in chunks that are too small."""


class _Parser(h11.Connection):
    """A parser that rejects bodies in tiny chunks: each costs the whole server's time, and its sender a few bytes."""

    _chunks = _bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if type(event) is h11.Request:
            self._chunks = self._bytes = 0
        elif type(event) is h11.Data:
            self._chunks += event.chunk_end  # only of a chunked body; packets without chunks do not count
            self._bytes += len(event.data)
            if self._chunks > MAX_SMALL_CHUNKS and self._bytes < self._chunks * MIN_CHUNK_BYTES:
                raise _SmallChunksError
        return event


class Connection(H11Protocol):
    """A uvicorn connection with a time limit in each state."""

    table: Connections
    address = ""
    _timer: asyncio.TimerHandle | None = None
    _counted = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.conn = _Parser(h11.SERVER, MAX_HEADER_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._counted = True
        self._arm(self.table.header_s)
        self.table.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._close_count()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except Exception as error:  # noqa: BLE001 - else asyncio logs a traceback for a client's bytes
            _LOG.warning("a request failed: %s", type(error).__name__)
            self.reject(400, "Invalid HTTP request received.")

    def send_400_response(self, msg: str) -> None:
        # uvicorn's own fails once a response has begun, or while the body of a request is read.
        self.reject(400, msg)

    def handle_events(self) -> None:
        before = self.cycle
        try:
            super().handle_events()
        except _SmallChunksError:
            self.reject(400, f"chunks of less than {MIN_CHUNK_BYTES} bytes on average (MIN_CHUNK_BYTES)")
            return
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not self._counted:
            return
        if cycle is not before and not self.flow.write_paused:
            self._arm(self.table.request_s)
        if not cycle.more_body:
            self.table.works(self)

    def on_response_complete(self) -> None:
        if self._counted:
            self.table.waits(self)
        self._arm(self.table.header_s)
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._arm(self.table.header_s)  # limits how long a slow reader can stall the response

    def resume_writing(self) -> None:
        super().resume_writing()
        self._arm(self.table.request_s)

    def reject(self, status: int, message: str) -> None:
        """Send an error unless a response has begun, and close."""
        self._close_count()
        cycle: Any = self.cycle
        begun = cycle is not None and cycle.response_started and not cycle.response_complete
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # the application's answer would not follow the protocol any more
            cycle.message_event.set()
        if begun or self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.transport.abort()  # `close` waits for a client that does not read
            return
        body = json.dumps({"error": message})
        self.transport.write(
            f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()
        )
        self.transport.close()

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._late, seconds)

    def _late(self, seconds: float) -> None:
        self.reject(408, f"no complete request within {seconds:g} s (MAX_HEADER_S)")

    def _close_count(self) -> None:
        # At once on rejection: the transport itself closes in the next turn of the loop.
        if self._counted:
            self._counted = False
            self.table.closed(self)


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
      connections: the most open connections, by what they are.
      options: the options that lower these numbers.

    Raises:
      CimlError: the process's limit of open files is lower.
    """
    needed = sum(connections.values()) + SPARE_FILES
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed != resource.RLIM_INFINITY and needed > allowed:
        listed = " and ".join(f"{number} {what}" for what, number in connections.items())
        raise CimlError(
            f"{listed} connections take {needed} files; the limit is {allowed}: raise it (ulimit -n {needed}) or "
            f"lower {options}"
        )


_ACCEPTED_AT_ONCE = 64  # each takes a file descriptor before it is counted
_BACKLOG = 1024


class HttpServer:
    """An application that is served on a socket. Belongs to one event loop.

    Args:
      app: the application.
      listener: a bound socket.
      connections: their limits.
      grace_s: time at the end to answer requests that have begun, seconds.

    Attributes:
      done: the task that ends with the server.
    """

    done: asyncio.Task[None]

    def __init__(self, app: Starlette, listener: socket.socket, connections: Connections, grace_s: int = 5) -> None:
        # It warns of each request that is not HTTP, of which a client can send any number.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._listener = listener
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=connections.protocol(),
                ws="none",
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                backlog=_ACCEPTED_AT_ONCE,
                proxy_headers=False,  # limits are by the address that is connected
                server_header=False,
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=grace_s,
            )
        )

    async def start(self) -> None:
        """Serve; return when connections are accepted."""
        self.done = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        while not self._server.started:
            if self.done.done():
                self.done.result()
            await asyncio.sleep(0.01)
        self._listener.listen(_BACKLOG)  # also the number of connections that uvicorn accepts in one turn

    async def stop(self) -> None:
        """Accept no more connections, answer what has begun, and end."""
        self._server.should_exit = True
        await self.done
