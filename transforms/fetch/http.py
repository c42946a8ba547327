"""HTTP for logs: connections go to exactly the address that was checked, and everything has a limit.

Built on httpcore, the connection layer of httpx: it allows to resolve, check and connect a host in one step. There is
no proxy from the environment, no cookie, and no unchecked redirect.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin

import httpcore
import tenacity

from ciml.errors import CimlError, RejectedInput
from ciml.events.redaction import redact_url
from ciml.limits import MAX_REDIRECTS
from transforms.fetch.addresses import PORTS, Address, HostRule, as_ip, check_ips, parse_address
from transforms.fetch.errors import LogUnavailableError
from transforms.fetch.gunzip import gunzip
from transforms.fetch.policy import FetchPolicy

#: (host, port) -> IP addresses. Raises OSError where the name does not resolve.
Resolve = Callable[[str, int], list[str]]

_DRAINED = 1 << 14  # of an error response, so that its connection can be reused
_SLACK_S = 0.001


def system_resolve(host: str, port: int) -> list[str]:
    """Resolve a host with the system's resolver, without repeats."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _Deadline(threading.local):
    """The end of this thread's present fetch, by ``time.monotonic``."""

    at: float = float("inf")

    def left(self, timeout: float | None) -> float:
        """Return the time limit of one step, s."""
        left = self.at - time.monotonic()
        if left <= _SLACK_S:
            raise httpcore.ReadTimeout("the time limit of the fetch was reached")
        return left if timeout is None else min(timeout, left)


class _Stream(httpcore.NetworkStream):
    """A connection whose every step ends at the fetch's deadline, even if bytes drip."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.left(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        inner = self._inner.start_tls(ssl_context, server_hostname, self._deadline.left(timeout))
        return _Stream(inner, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Pinned(httpcore.NetworkBackend):
    """Resolves once, checks every address, and connects to one of exactly those."""

    def __init__(self, rules: tuple[HostRule, ...], resolve: Resolve, deadline: _Deadline) -> None:
        self._rules = rules
        self._resolve = resolve
        self._deadline = deadline
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
        found = [host] if as_ip(host) else self._look_up(host, port, self._deadline.left(timeout))
        failed: Exception = httpcore.ConnectError(f"{host} has no address")
        for ip in check_ips(found, any(rule.private for rule in rules)):
            try:
                inner = self._inner.connect_tcp(ip, port, self._deadline.left(timeout), None, socket_options)
            except httpcore.ConnectError as error:
                failed = error
                continue
            return _Stream(inner, self._deadline)
        raise failed

    def _look_up(self, host: str, port: int, timeout: float) -> list[str]:
        # The system's resolver has no time limit, so a slow one is abandoned in its thread.
        answer: list[Any] = []

        def ask() -> None:
            try:
                answer.append(self._resolve(host, port))
            except (OSError, UnicodeError) as error:
                answer.append(error)

        thread = threading.Thread(target=ask, name=f"resolve {host}", daemon=True)
        thread.start()
        thread.join(timeout)
        if not answer:
            raise httpcore.ConnectTimeout(f"resolving {host} timed out")
        if isinstance(answer[0], Exception):
            raise httpcore.ConnectError(f"cannot resolve {host}: {answer[0]}")
        found: list[str] = answer[0]
        return found


class HttpLogs:
    """Fetches logs over HTTP. Safe for many threads; keeps connections. Not picklable: create one per process.

    Args:
      policy: the allowed hosts, also for redirects, and the limits; ``total_s`` includes redirects and a second try.
      resolve: maps host and port to IP addresses.
    """

    def __init__(self, policy: FetchPolicy, resolve: Resolve = system_resolve) -> None:
        self._policy, self._deadline = policy, _Deadline()
        connect_s, read_s, total_s = policy.connect_s, policy.read_s, policy.total_s
        self._extensions = {"timeout": {"connect": connect_s, "read": read_s, "write": read_s, "pool": total_s}}
        self._pool = httpcore.ConnectionPool(
            ssl_context=_tls(policy.ca_file) if any(rule.scheme == "https" for rule in policy.rules) else None,
            max_connections=4 * policy.threads,
            max_keepalive_connections=2 * policy.threads,
            keepalive_expiry=15.0,
            network_backend=_Pinned(policy.rules, resolve, self._deadline),
        )

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def fetch(self, address: Address, grow: Callable[[int], None] | None = None) -> bytes:
        """Fetch the log at an address, unpacked.

        A hiccup (a connection reset or refused, a 5xx response) is retried once, at once.

        Args:
          address: an http or https address.
          grow: as in `transforms.fetch.gunzip.gunzip`.

        Raises:
          RejectedInput: ``address_not_allowed``, ``bad_address``, ``too_many_redirects``, ``log_too_large``,
            ``log_encoding``, ``corrupt_gzip``: faults that a retry cannot fix.
          LogUnavailableError: ``log_not_found``, ``log_forbidden``, ``log_unavailable``, ``log_timeout``, ``log_cut``.
        """
        self._deadline.at = time.monotonic() + self._policy.total_s
        try:
            for attempt in tenacity.Retrying(
                stop=tenacity.stop_after_attempt(2),
                retry=tenacity.retry_if_exception(
                    lambda error: isinstance(error, LogUnavailableError) and error.hiccup
                ),
                wait=tenacity.wait_random(0.02, 0.2),
                reraise=True,
            ):
                with attempt:
                    return self._follow(address, grow)
        finally:
            self._deadline.at = float("inf")
        raise AssertionError("tenacity returns or raises")

    def _follow(self, address: Address, grow: Callable[[int], None] | None) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            self._check(address)
            with self._ask(address) as response:
                if response.status == 200:
                    return self._read(response, grow)
                self._drain(response)
            if response.status not in (301, 302, 303, 307, 308):
                raise _failed(response.status)
            address = _redirected(address, _header(response, b"location").decode("latin-1"))
        raise RejectedInput("too_many_redirects", f"more than {MAX_REDIRECTS} redirects")

    def _check(self, address: Address) -> None:
        if address.scheme not in PORTS:
            raise RejectedInput("address_not_allowed", f"redirected to {address.scheme}")
        if not any(rule.matches(address.scheme, address.host, address.port) for rule in self._policy.rules):
            raise RejectedInput("address_not_allowed", f"{address.origin} is not an allowed host")

    @contextmanager
    def _ask(self, address: Address) -> Iterator[httpcore.Response]:
        url = httpcore.URL(
            scheme=address.scheme.encode(), host=address.host.encode(), port=address.port, target=address.path.encode()
        )
        headers = [
            (b"Host", address.host_header.encode()),
            (b"Accept", b"*/*"),
            (b"Accept-Encoding", b"gzip"),
            (b"User-Agent", b"ciml"),
        ]
        reading = False
        try:
            with self._pool.stream("GET", url, headers=headers, extensions=self._extensions) as response:
                reading = True
                yield response
        except httpcore.TimeoutException as error:
            raise LogUnavailableError("log_timeout", _words(error) or "no response in time") from None
        except (httpcore.NetworkError, httpcore.RemoteProtocolError) as error:
            # A body shorter than its Content-Length is a protocol error once the response has begun.
            reason = "log_cut" if reading else "log_unavailable"
            raise LogUnavailableError(reason, _words(error) or type(error).__name__, hiccup=True) from None
        except (httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
            raise RejectedInput("bad_address", _words(error)) from None
        except ValueError as error:  # the protocol's parser rejects the headers
            raise LogUnavailableError("log_unavailable", _words(error)) from None

    def _read(self, response: httpcore.Response, grow: Callable[[int], None] | None) -> bytes:
        encodings = _header(response, b"content-encoding").decode("latin-1").lower().replace(" ", "")
        if set(encodings.split(",")) - {"", "gzip", "x-gzip", "identity"}:
            raise RejectedInput("log_encoding", f"content-encoding: {encodings!r:.40}, want gzip")
        announced = _header(response, b"content-length")
        if announced.isdigit() and int(announced) > self._policy.max_wire_bytes:
            raise RejectedInput(
                "log_too_large", f"{int(announced)} bytes announced, at most {self._policy.max_wire_bytes}"
            )
        return gunzip(self._wire(response), self._policy.max_bytes, grow)

    def _wire(self, response: httpcore.Response) -> Iterator[bytes]:
        size = 0
        for chunk in response.iter_stream():
            size += len(chunk)
            if size > self._policy.max_wire_bytes:
                raise RejectedInput("log_too_large", f"more than {self._policy.max_wire_bytes} bytes sent")
            yield chunk

    def _drain(self, response: httpcore.Response) -> None:
        announced = _header(response, b"content-length")
        if announced.isdigit() and int(announced) <= _DRAINED:
            for _ in response.iter_stream():
                pass


def _failed(status: int) -> LogUnavailableError:
    if status in (404, 410):
        return LogUnavailableError("log_not_found", f"answered {status}")
    if status in (401, 403):
        return LogUnavailableError("log_forbidden", f"answered {status}")
    return LogUnavailableError("log_unavailable", f"answered {status}", hiccup=status >= 500)


def _redirected(address: Address, location: str) -> Address:
    if not location:
        raise LogUnavailableError("log_unavailable", "redirect without a location")
    try:
        return parse_address(urljoin(f"{address.scheme}://{address.host_header}{address.path}", location))
    except RejectedInput as rejected:
        raise RejectedInput(rejected.reason, f"redirected: {rejected.detail}") from None
    except ValueError:
        raise RejectedInput("bad_address", "redirected to a malformed address") from None


def _header(response: httpcore.Response, name: bytes) -> bytes:
    return next((value for key, value in response.headers if key.lower() == name), b"")


def _words(error: Exception) -> str:
    return redact_url(f"{error!s:.200}")


def _tls(ca_file: str) -> ssl.SSLContext:
    context = httpcore.default_ssl_context()
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise CimlError(f"cannot read the certificates in {ca_file}: {error}") from None
    return context
