"""Limits of a server, so that slow clients and large requests do not block others: for REST, gRPC and webhooks.

A request passes three limits, each with a class of its own, in this order:

1. `ConnectionLimiter`: the open connections.
2. `Intake`: the time to read a request, and the bytes of all requests in memory.
3. `Workers`: the requests that wait for a thread.

`RequestError` is the error of a request: the name of a gRPC status code, and a message that states what to change.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ciml.errors import CimlError
from ciml.limits import LARGE_REQUEST_BYTES, MAX_HELD_BYTES, MAX_WAITING_REQUESTS, SMALL_REQUEST_BYTES, SPARE_FILES

#: HTTP status by gRPC status, as TensorFlow Serving maps them.
HTTP_STATUS = {
    "OK": 200,
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 503,
    "FAILED_PRECONDITION": 412,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
}

_MESSAGE_CHARACTERS = 1000
#: Seconds that count for a connection in addition to its wait, so that many new connections count too.
_MIN_WAIT_S = 1.0
T = TypeVar("T")


class RequestError(Exception):
    """A failed request: ``code`` names a gRPC status, ``http_status`` is the HTTP status.

    Attributes:
      limit: the server's limit that rejected the request before any work on it; "" for any other error.
    """

    def __init__(self, code: str, message: str, http_status: int | None = None, limit: str = "") -> None:
        # gRPC sends the message in a header of limited size, and it may quote the client's input.
        message = message if len(message) <= _MESSAGE_CHARACTERS else message[:_MESSAGE_CHARACTERS] + "…"
        super().__init__(message)
        self.code = code
        self.message = message
        self.http_status = http_status or HTTP_STATUS.get(code, 500)
        self.limit = limit


def invalid(message: str) -> RequestError:
    """Return an INVALID_ARGUMENT error: the same request fails again."""
    return RequestError("INVALID_ARGUMENT", message)


def too_large(message: str, limit: str = "") -> RequestError:
    """Return an INVALID_ARGUMENT error (HTTP 413) whose message names the exceeded limit."""
    return RequestError("INVALID_ARGUMENT", message, http_status=413, limit=limit)


def busy(message: str, limit: str) -> RequestError:
    """Return an UNAVAILABLE error: the server has too many requests, and the same one may succeed later."""
    return RequestError("UNAVAILABLE", f"{message} ({limit})", limit=limit)


def not_found(message: str) -> RequestError:
    """Return a NOT_FOUND error: no such model or version (yet)."""
    return RequestError("NOT_FOUND", message)


class OpenConnection(Protocol):
    """A connection that a `ConnectionLimiter` counts. Hashed by identity."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    @property
    def address(self) -> str: ...

    def reject(self, status: int, message: str) -> None: ...


@dataclass
class _Waits:
    """The waiting connections of a client address.

    Attributes:
      since_s: when each began to wait, by the clock of the event loop; the oldest first.
      sum_s: the sum of these times, so that `total_s` need not visit each connection.
    """

    since_s: dict[OpenConnection, float] = field(default_factory=dict)
    sum_s: float = 0.0

    def total_s(self, now_s: float) -> float:
        """Return the sum of ``now_s - since + _MIN_WAIT_S`` over the connections."""
        return (now_s + _MIN_WAIT_S) * len(self.since_s) - self.sum_s


class ConnectionLimiter:
    """Limits the number of open connections, and knows which of them wait for a complete request. For one event loop.

    One connection more than the limit closes another: the longest-waiting connection of the client address whose
    connections have waited longest in total. So a slow client affects only itself. A proxy with many busy connections
    does not count as slow, since a connection with a complete request does not wait.

    Args:
      max_open: limit of open connections.
      header_s: limit for the header of a request, and for reading a response, seconds.
      body_s: limit for its body, seconds.
      work_s: limit for its answer, seconds.
      limit: the name of the limit ``max_open``, for its message.

    Attributes:
      request_s: limit from the header of a request to the end of its response, seconds: ``header_s`` is the time to
        read the response.
    """

    def __init__(self, max_open: int, header_s: float, body_s: float, work_s: float, limit: str) -> None:
        self.header_s = header_s
        self.request_s = body_s + work_s + header_s
        self.max_open = max_open
        self._message = f"more than {max_open} connections ({limit})"
        self._open: set[OpenConnection] = set()
        self._waits: dict[str, _Waits] = {}  # by address

    def add(self, connection: OpenConnection) -> None:
        """Count a new connection, which waits. Reject the longest-waiting one if there are too many."""
        self._open.add(connection)
        self.mark_waiting(connection)
        if len(self._open) > self.max_open:
            now_s = connection.loop.time()
            slowest = max(self._waits.values(), key=lambda waits: waits.total_s(now_s))
            longest_waiting = next(iter(slowest.since_s))
            longest_waiting.reject(503, self._message)

    def mark_waiting(self, connection: OpenConnection) -> None:
        """Mark a connection as waiting for a complete request from now on. No effect on a removed one."""
        self.mark_working(connection)
        if connection in self._open:
            now_s = connection.loop.time()
            waits = self._waits.setdefault(connection.address, _Waits())
            waits.since_s[connection] = now_s
            waits.sum_s += now_s

    def mark_working(self, connection: OpenConnection) -> None:
        """Mark a connection's request as complete: the connection does not wait."""
        waits = self._waits.get(connection.address)
        if waits is None or connection not in waits.since_s:
            return
        waits.sum_s -= waits.since_s.pop(connection)
        if not waits.since_s:
            del self._waits[connection.address]

    def remove(self, connection: OpenConnection) -> None:
        """Stop counting a connection that is closed or will be. No effect if it was removed already."""
        self.mark_working(connection)
        self._open.discard(connection)


def check_open_files(max_open: Mapping[str, int], options: str) -> None:
    """Check that the process may open files for its connections: without free descriptors it accepts none.

    Args:
      max_open: the limit of open connections by their kind, such as ``REST``.
      options: the options that lower these limits.

    Raises:
      CimlError: the process may not open that many files.
    """
    needed = sum(max_open.values()) + SPARE_FILES
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed != resource.RLIM_INFINITY and needed > allowed:
        kinds = " and ".join(f"{number} {kind}" for kind, number in max_open.items())
        raise CimlError(
            f"{kinds} connections take {needed} files; the limit is {allowed}: raise it (ulimit -n {needed}) or "
            f"lower {options}"
        )


@dataclass(eq=False)  # hashed by identity
class Held:
    """A request whose bytes are in memory.

    Attributes:
      max_bytes: the limit on these bytes.
      size: their number.
      rejection: the error of a request that was dropped in favour of others; None for any other.
    """

    max_bytes: int
    size: int = 0
    rejection: RequestError | None = None


class Intake:
    """Reads requests, each within a time limit, all within MAX_HELD_BYTES. Belongs to one event loop.

    The first SMALL_REQUEST_BYTES of each request are not counted, so that large requests cannot block small ones. If a
    limit on all requests is exceeded, one of them is rejected: the time limit of its `read`, which another task waits
    in, is set to now, and that `read` raises the reason.

    Args:
      body_s: limit from a request's header to its end, seconds.
      max_bytes: limit of one request.
      max_reading: requests that are read at a time; one more rejects the oldest.
      limit: the name of the limit ``max_bytes``, for its message.
    """

    def __init__(self, *, body_s: float, max_bytes: int, max_reading: int, limit: str = "MAX_REQUEST_BYTES") -> None:
        self._body_s = body_s
        self._max_bytes = max_bytes
        self._max_reading = max_reading
        self._limit = limit
        self._reading: dict[Held, asyncio.Timeout] = {}  # with their time limits; the oldest first
        self._counted_bytes = 0

    @contextmanager
    def hold(self, max_bytes: int | None = None) -> Iterator[Held]:
        """Hold a request from its first byte to its response.

        Args:
          max_bytes: a lower limit for this request.
        """
        held = Held(min(max_bytes or self._max_bytes, self._max_bytes))
        try:
            yield held
        finally:
            self._resize(held, 0)

    async def read(self, held: Held, parts: AsyncIterable[bytes], count: int | None = None) -> bytes:
        """Read the body of a request: ``count`` parts, or all.

        Raises:
          RequestError: the request is too slow (408), too large (413), or dropped in favour of others (503).
        """
        if len(self._reading) >= self._max_reading:
            message = f"dropped as the oldest of {self._max_reading} incomplete requests"
            self._reject(next(iter(self._reading)), busy(message, "MAX_READING_REQUESTS"))
        timeout = asyncio.timeout(self._body_s)
        self._reading[held] = timeout
        received: list[bytes] = []
        try:
            async with timeout:
                async for part in parts:
                    self._resize(held, held.size + len(part))
                    self._check_bytes(held)
                    received.append(part)
                    if len(received) == count:
                        break
        except TimeoutError:
            message = f"the request did not arrive within {self._body_s:g} s (MAX_BODY_S)"
            late = RequestError("DEADLINE_EXCEEDED", message, http_status=408, limit="MAX_BODY_S")
            raise held.rejection or late from None
        finally:
            self._reading.pop(held, None)
        return b"".join(received)

    def check_length(self, held: Held, announced: str | None) -> None:
        """Raise `RequestError` (413) if the header content-length announces too many bytes, before any is read."""
        if announced is not None and announced.isascii() and announced.isdigit() and int(announced) > held.max_bytes:
            raise self._too_large(held)

    def _too_large(self, held: Held) -> RequestError:
        return too_large(f"the request is larger than {held.max_bytes} bytes ({self._limit})", self._limit)

    def _resize(self, held: Held, size: int) -> None:
        self._counted_bytes += _counted(size) - _counted(held.size)
        held.size = size

    def _check_bytes(self, held: Held) -> None:
        """Raise `RequestError` if a request is too large, or the largest of too many bytes; else reject the largest."""
        if held.rejection is not None:  # as the largest, while a part of it was ready
            raise held.rejection
        if held.size > held.max_bytes:
            raise self._too_large(held)
        if self._counted_bytes > MAX_HELD_BYTES:
            message = f"dropped as the largest: all requests hold more than {MAX_HELD_BYTES} bytes"
            rejection = busy(message, "MAX_HELD_BYTES")
            largest = max(self._reading, key=lambda request: request.size)
            if largest is held:
                raise rejection
            self._reject(largest, rejection)

    def _reject(self, held: Held, rejection: RequestError) -> None:
        """Reject the request of another task, whose `read` raises the error; its bytes count until then."""
        held.rejection = rejection
        timeout = self._reading.pop(held)
        if not timeout.expired():
            timeout.reschedule(asyncio.get_running_loop().time())


def _counted(size: int) -> int:
    """Return how many bytes of a request count against MAX_HELD_BYTES."""
    return max(size - SMALL_REQUEST_BYTES, 0)


class _Threads:
    """Threads, and the requests that wait for them: one that its client gives up leaves, and its memory is free."""

    def __init__(self, number: int, name: str) -> None:
        self.pool = ThreadPoolExecutor(number, thread_name_prefix=name)
        self._free = asyncio.Semaphore(number)

    async def run(self, work: Callable[[], T]) -> T:
        await self._free.acquire()
        try:
            result = asyncio.wrap_future(self.pool.submit(_without_traceback, work))
        except BaseException:
            self._free.release()
            raise
        result.add_done_callback(self._end)
        return await asyncio.shield(result)  # a thread is not free before its work ends

    def _end(self, result: asyncio.Future[Any]) -> None:
        self._free.release()
        if not result.cancelled():
            result.exception()  # asyncio logs one that nobody has read, such as of a request that was given up


class Workers:
    """Threads that process requests, and another one for large requests. Belongs to one event loop."""

    def __init__(self, threads: int) -> None:
        self._small = _Threads(threads, "request")
        self._large = _Threads(1, "large-request")
        self._waiting = 0

    async def run(self, size: int, work: Callable[[], T]) -> T:
        """Run ``work`` for a request of ``size`` bytes in a thread.

        Raises:
          RequestError: UNAVAILABLE if too many requests wait.
        """
        if self._waiting >= MAX_WAITING_REQUESTS:
            raise busy(f"{MAX_WAITING_REQUESTS} requests are waiting already", "MAX_WAITING_REQUESTS")
        self._waiting += 1
        try:
            return await (self._large if size > LARGE_REQUEST_BYTES else self._small).run(work)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        for threads in (self._small, self._large):
            threads.pool.shutdown(wait=False)


def _without_traceback(work: Callable[[], T]) -> T:
    # A traceback keeps the variables of its frames, and forms a cycle with the future. Without this, the parsed request
    # would stay in memory until the garbage collector runs.
    try:
        return work()
    except RequestError as error:
        error.__context__ = None
        raise error.with_traceback(None) from None
