"""HTTP for logs: each hop of a request is checked and has its limits; a credential goes to its own host alone.

Built on httpcore, the connection layer of httpx: it allows to resolve, check and connect a host in one step. There is
no proxy from the environment, no cookie, and no unchecked redirect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, TypeVar
from urllib.parse import urljoin

import httpcore
import tenacity

from ciml.errors import CimlError, RejectedInput
from ciml.events.redaction import redact_url
from ciml.http.addresses import PORTS, Address, HostRule, parse_address
from ciml.http.outgoing import FetchLimits, Pinned, Resolve, header, retry_after_s, system_resolve, tls_context
from ciml.limits import MAX_ARTIFACTS_PAGE_BYTES, MAX_REDIRECTS
from ciml.transforms.fetch.decompress import gunzip
from ciml.transforms.fetch.policy import FetchPolicy, LogUnavailableError, credential_of

T = TypeVar("T")

_DRAINED = 1 << 14  # of an error response, so that its connection can be reused


class HttpLogs:
    """Fetches logs over HTTP. Safe for many threads; keeps connections. Not picklable: create one per process.

    Args:
      policy: the allowed hosts, also for redirects, and the limits; ``total_s`` includes redirects and a second try.
      resolve: maps host and port to IP addresses.
    """

    def __init__(self, policy: FetchPolicy, resolve: Resolve = system_resolve) -> None:
        self._policy = policy
        self._limits = FetchLimits()
        connect_s = policy.connect_s
        read_s = policy.read_s
        total_s = policy.total_s
        rules = policy.redirect_rules
        self._extensions = {"timeout": {"connect": connect_s, "read": read_s, "write": read_s, "pool": total_s}}
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls_context(policy.ca_file) if any(rule.scheme == "https" for rule in rules) else None,
            max_connections=4 * policy.threads,
            max_keepalive_connections=2 * policy.threads,
            keepalive_expiry=15.0,
            network_backend=Pinned(rules, resolve, self._limits),
        )

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def one_log(self) -> AbstractContextManager[None]:
        """Limit the requests of the block together, as those of one log: in time and in number."""
        return self._limits.within(self._policy.total_s)

    def fetch(self, address: Address, grow: Callable[[int], None] | None = None) -> bytes:
        """Fetch the log at an address, unpacked.

        A hiccup (a connection reset or refused, a 5xx response) is retried once, at once.

        Args:
          address: an http or https address.
          grow: as in `ciml.transforms.fetch.decompress.gunzip`.

        Raises:
          RejectedInput: ``address_not_allowed``, ``bad_address``, ``too_many_redirects``, ``log_too_large``,
            ``log_encoding``, ``corrupt_gzip``: faults that a retry cannot fix.
          LogUnavailableError: ``log_not_found``, ``log_forbidden``, ``log_unavailable``, ``log_timeout``, ``log_cut``.
        """
        return self._get(
            address,
            lambda response: gunzip(self._wire(response, "gzip"), self._policy.max_bytes, grow),
            encoding=b"gzip",
        )

    def page(self, address: Address) -> bytes:
        """Fetch one page of JSON from an API. Arguments and errors: see `fetch`."""
        return self._get(
            address,
            lambda response: b"".join(self._wire(response, "identity", MAX_ARTIFACTS_PAGE_BYTES)),
            accept=b"application/json",
        )

    def download(self, address: Address, file: IO[bytes]) -> None:
        """Fetch the bytes at an address into a file, in place of its content. Arguments and errors: see `fetch`."""

        def read(response: httpcore.Response) -> None:
            file.seek(0)
            file.truncate()
            for chunk in self._wire(response, "identity"):
                file.write(chunk)

        self._get(address, read)

    def _get(
        self,
        address: Address,
        read: Callable[[httpcore.Response], T],
        accept: bytes = b"*/*",
        encoding: bytes = b"identity",
    ) -> T:
        headers = [(b"Accept", accept), (b"Accept-Encoding", encoding), (b"User-Agent", b"ciml")]
        with self.one_log():
            for attempt in tenacity.Retrying(
                stop=tenacity.stop_after_attempt(2),
                retry=tenacity.retry_if_exception(
                    lambda error: isinstance(error, LogUnavailableError) and error.hiccup
                ),
                wait=tenacity.wait_random(0.02, 0.2),
                reraise=True,
            ):
                with attempt:
                    return self._follow(address, read, headers)
        raise AssertionError("tenacity returns or raises")

    def _follow(
        self, address: Address, read: Callable[[httpcore.Response], T], headers: list[tuple[bytes, bytes]]
    ) -> T:
        secret = self._credential(address)
        rules = self._policy.rules
        for _ in range(MAX_REDIRECTS + 1):
            _check(address, rules)
            self._limits.count_request()
            with self._ask(address, headers + secret) as response:
                if response.status == 200:
                    return read(response)
                self._drain(response)
            if response.status not in (301, 302, 303, 307, 308):
                raise _failed(response)
            target = _redirected(address, header(response, b"location").decode("latin-1"))
            if target.origin != address.origin:
                # For good: another host must not choose what is asked with a credential, by a redirect back.
                secret = []
            address = target
            rules = self._policy.redirect_rules
        raise RejectedInput("too_many_redirects", f"more than {MAX_REDIRECTS} redirects")

    def _credential(self, address: Address) -> list[tuple[bytes, bytes]]:
        credential = credential_of(self._policy.credentials, address)
        try:
            return [credential.read()] if credential else []
        except CimlError as error:
            raise LogUnavailableError("log_unavailable", str(error)) from None

    @contextmanager
    def _ask(self, address: Address, headers: list[tuple[bytes, bytes]]) -> Iterator[httpcore.Response]:
        url = httpcore.URL(
            scheme=address.scheme.encode(), host=address.host.encode(), port=address.port, target=address.path.encode()
        )
        headers = [(b"Host", address.host_header.encode()), *headers]
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

    def _wire(self, response: httpcore.Response, want: str, most: int = 0) -> Iterator[bytes]:
        """Yield the body as it is sent, at most ``most`` bytes of it, by default `FetchPolicy.max_wire_bytes`."""
        most = most or self._policy.max_wire_bytes
        accepted = {"", "identity"} | ({"gzip", "x-gzip"} if want == "gzip" else set())
        encodings = header(response, b"content-encoding").decode("latin-1").lower().replace(" ", "")
        if set(encodings.split(",")) - accepted:
            raise RejectedInput("log_encoding", f"content-encoding: {encodings!r:.40}, want {want}")
        announced = header(response, b"content-length")
        if announced.isdigit() and int(announced) > most:
            raise RejectedInput("log_too_large", f"{int(announced)} bytes announced, at most {most}")
        size = 0
        for chunk in response.iter_stream():
            size += len(chunk)
            if size > most:
                raise RejectedInput("log_too_large", f"more than {most} bytes sent")
            yield chunk

    def _drain(self, response: httpcore.Response) -> None:
        announced = header(response, b"content-length")
        if announced.isdigit() and int(announced) <= _DRAINED:
            for _ in response.iter_stream():
                pass


def _check(address: Address, rules: tuple[HostRule, ...]) -> None:
    if address.scheme not in PORTS:
        raise RejectedInput("address_not_allowed", f"redirected to {address.scheme}")
    if not any(rule.matches(address.scheme, address.host, address.port) for rule in rules):
        raise RejectedInput("address_not_allowed", f"{address.origin} is not an allowed host")


def _failed(response: httpcore.Response) -> LogUnavailableError:
    status = response.status
    if status in (403, 429) and (wait_s := retry_after_s(response)):
        return LogUnavailableError(
            "log_unavailable", f"answered {status}, asks to wait for {wait_s:.0f} s", retry_after_s=wait_s
        )
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


def _words(error: Exception) -> str:
    return redact_url(f"{error!s:.200}")
