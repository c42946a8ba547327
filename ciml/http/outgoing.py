"""Outgoing HTTP: connections go to exactly the address that was checked, and every step ends in time.

`ciml.integrations.http` sends requests to one host by these connections (`Pinned`). `ciml.transforms.fetch.http`
fetches logs by them, and follows redirects between allowed hosts. `FetchLimits` limits both.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpcore

from ciml.errors import CimlError, RejectedInput
from ciml.http.addresses import HostRule, as_ip, check_ips
from ciml.limits import MAX_LOG_REQUESTS, MAX_RETRY_AFTER_S

T = TypeVar("T")
#: Returns the IP addresses of (host, port). Raises `OSError` if the name does not resolve.
Resolve = Callable[[str, int], list[str]]

_MIN_STEP_S = 0.001


def system_resolve(host: str, port: int) -> list[str]:
    """Resolve a host with the system's resolver, without repeats."""
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


def call_in_daemon(function: Callable[[], T], name: str) -> Future[T]:
    """Call a blocking function in a daemon thread of its own, so that one that never returns delays no exit."""
    result: Future[T] = Future()
    result.set_running_or_notify_cancel()  # a caller that gives up cannot cancel it

    def call() -> None:
        try:
            result.set_result(function())
        except Exception as error:  # noqa: BLE001 - raised where the result is awaited
            result.set_exception(error)

    threading.Thread(target=call, name=name, daemon=True).start()
    return result


class FetchLimits(threading.local):
    """The limits of what this thread fetches at present.

    Attributes:
      deadline_s: its end, by ``time.monotonic``; infinity outside of `within`.
      requests: number of requests that it may still send.
    """

    deadline_s: float = float("inf")
    requests: int = 0

    @contextmanager
    def within(self, total_s: float) -> Iterator[None]:
        """Limit the requests of the block. A block inside another has the limits of the outer one."""
        if self.deadline_s != float("inf"):
            yield
            return
        self.deadline_s = time.monotonic() + total_s
        self.requests = MAX_LOG_REQUESTS
        try:
            yield
        finally:
            self.deadline_s = float("inf")

    def remaining(self, timeout: float | None) -> float:
        """Return the time limit of one step, s: ``timeout``, or the remaining time if that is less.

        Raises:
          httpcore.ReadTimeout: nothing is left.
        """
        remaining_s = self.deadline_s - time.monotonic()
        if remaining_s <= _MIN_STEP_S:
            raise httpcore.ReadTimeout("the time limit of the fetch was reached")
        return remaining_s if timeout is None else min(timeout, remaining_s)

    def count_request(self) -> None:
        """Count a request. Raises `RejectedInput` where a log takes too many."""
        self.requests -= 1
        if self.requests < 0:
            raise RejectedInput("too_many_redirects", f"more than {MAX_LOG_REQUESTS} requests for one log")


class _Stream(httpcore.NetworkStream):
    """A connection whose every step ends at the fetch's deadline, even if bytes drip."""

    def __init__(self, inner: httpcore.NetworkStream, limits: FetchLimits) -> None:
        self._inner = inner
        self._limits = limits

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._limits.remaining(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._limits.remaining(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        inner = self._inner.start_tls(ssl_context, server_hostname, self._limits.remaining(timeout))
        return _Stream(inner, self._limits)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class Pinned(httpcore.NetworkBackend):
    """Connections to allowed hosts: it resolves once, checks every address, and connects to one of exactly those.

    Args:
      rules: the allowed hosts.
      resolve: resolves a host.
      limits: of each step.
    """

    def __init__(self, rules: tuple[HostRule, ...], resolve: Resolve, limits: FetchLimits) -> None:
        self._rules = rules
        self._resolve = resolve
        self._limits = limits
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:
        rules = [rule for rule in self._rules if rule.matches(rule.scheme, host, port)]
        if not rules:
            raise RejectedInput("address_not_allowed", f"{host}:{port} is not an allowed host")
        addresses = [host] if as_ip(host) else self._look_up(host, port, self._limits.remaining(timeout))
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        allowed = list(check_ips(addresses, any(rule.private for rule in rules)))
        for number, ip in enumerate(allowed):
            share_s = self._limits.remaining(timeout) / (len(allowed) - number)  # the others may answer
            try:
                inner = self._inner.connect_tcp(ip, port, share_s, None, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
                continue
            return _Stream(inner, self._limits)
        raise failure

    def _look_up(self, host: str, port: int, timeout: float) -> list[str]:
        # The system's resolver has no time limit, so a slow one is abandoned in its thread.
        addresses = call_in_daemon(lambda: self._resolve(host, port), f"resolve {host}")
        try:
            return addresses.result(timeout)
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"resolving {host} timed out") from None
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"cannot resolve {host}: {error}") from None


def tls_context(ca_file: str) -> ssl.SSLContext:
    """Return a context that trusts the usual authorities, and those in a file of certificates if it is not ""."""
    context = httpcore.default_ssl_context()
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise CimlError(f"cannot read the certificates in {ca_file}: {error}") from None
    return context


def retry_after_s(response: httpcore.Response) -> float:
    """Return how long a response asks to wait, s, at most `MAX_RETRY_AFTER_S`; 0 if it does not."""
    wait_s = _retry_after(response)
    for prefix in (b"x-ratelimit-", b"ratelimit-"):
        if wait_s is None:
            wait_s = _until_reset(response, prefix)
    return 0.0 if wait_s is None else min(max(wait_s, 1.0), MAX_RETRY_AFTER_S)


def _retry_after(response: httpcore.Response) -> float | None:
    """Return the seconds of the header Retry-After: a number, or a date; None without a valid one."""
    text = header(response, b"retry-after").decode("latin-1").strip()
    wait_s = _number(text)
    if wait_s is not None or not text:
        return wait_s
    try:
        moment = parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None


def _until_reset(response: httpcore.Response, prefix: bytes) -> float | None:
    """Return the seconds until a rate limit allows requests again; None if it still has requests left."""
    if header(response, prefix + b"remaining").strip() != b"0":
        return None  # the response has another reason
    reset_s = _number(header(response, prefix + b"reset").decode("latin-1"))
    return None if reset_s is None else reset_s - time.time()


def _number(text: str) -> float | None:
    text = text.strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def header(response: httpcore.Response, name: bytes) -> bytes:
    """Return the first header of a name, which is in lower case; b"" if there is none."""
    return next((value for key, value in response.headers if key.lower() == name), b"")
