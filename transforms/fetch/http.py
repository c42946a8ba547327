"""Fetch logs over HTTP: from an address, a folder, GitHub's list of artifacts, or an archive of artifacts.

Each hop of a request is checked and has its limits, and a credential is sent to its own host only. There is no proxy
from the environment, no cookie, and no unchecked redirect. The connections are httpcore's, the layer below httpx,
because it lets us resolve, check and connect to a host in one step.
"""

from __future__ import annotations

import random
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import IO, TypeVar
from urllib.parse import urljoin

import httpcore

from ciml.errors import CimlError, LogUnavailableError, RejectedInput
from ciml.events.redaction import redact_url
from ciml.http.addresses import PORTS, Address, below, parse_address
from ciml.http.outgoing import FetchLimits, Pinned, Resolve, header, retry_after_s, system_resolve, tls_context
from ciml.limits import MAX_ARTIFACTS_PAGE_BYTES, MAX_ARTIFACTS_PAGES, MAX_REDIRECTS
from ciml.transforms.fetch.artifacts import (
    PAGE,
    Artifact,
    JobFacts,
    artifact_of,
    artifacts_on,
    is_artifact_list,
)
from ciml.transforms.fetch.credentials import credential_of
from ciml.transforms.fetch.decompress import gunzip, is_archive, unzip
from ciml.transforms.fetch.files import first_found
from ciml.transforms.fetch.policy import FetchPolicy, check_host

T = TypeVar("T")

#: GitLab's archive of the artifacts of a job.
_JOB_ARCHIVE = re.compile(r"(?:/[^?]*)?/api/v4/projects/[^/?]+/jobs/[0-9]+/artifacts")

#: An error response up to this size is read to its end, so that its connection can be reused.
_DRAINED_BYTES = 1 << 14
#: A larger archive is stored in an unnamed file.
_ARCHIVE_BYTES_IN_MEMORY = 1 << 18
_CHUNK_BYTES = 1 << 18


class HttpLogs:
    """Fetches logs over HTTP. Safe for many threads; keeps connections. Not picklable: create one per process.

    Args:
      policy: the allowed hosts (``host_rules``, and ``redirect_rules`` after a redirect) and the limits. ``total_s``
        includes redirects and retries.
      resolve: maps host and port to IP addresses.
    """

    def __init__(self, policy: FetchPolicy, resolve: Resolve = system_resolve) -> None:
        self._policy = policy
        self._limits = FetchLimits()
        rules = policy.redirect_rules
        timeouts = {"read": policy.read_s, "write": policy.read_s, "connect": policy.connect_s, "pool": policy.total_s}
        self._extensions = {"timeout": timeouts}
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

    def fetch(self, address: Address, job: JobFacts | None = None, grow: Callable[[int], None] | None = None) -> bytes:
        """Fetch the log that an address leads to, unpacked. All requests together have the limits of one log.

        Each request is repeated once after a failed connection, a truncated response or a 5xx response.

        Args:
          address: of a log; of a folder, if it ends with a slash; GitHub's list of the artifacts of a workflow run; or
            GitLab's archive of the artifacts of a job.
          job: the job whose log it is, for a list of artifacts.
          grow: as in `ciml.transforms.fetch.decompress.gunzip`.

        Raises:
          RejectedInput: ``address_not_allowed``, ``bad_address``, ``too_many_redirects``, ``log_too_large``,
            ``log_encoding``, ``corrupt_gzip``, ``corrupt_archive``: faults that a retry cannot fix.
          LogUnavailableError: ``log_not_found``, ``log_forbidden``, ``log_unavailable``, ``log_timeout``, ``log_cut``.
        """
        with self._limits.within(self._policy.total_s):
            if address.is_folder:
                addresses = below(address, self._policy.log_paths)
                return first_found(addresses, lambda file_address: self._fetch_file(file_address, grow))
            if is_artifact_list(address.path):
                artifact_address = self._artifact_address(address, job or JobFacts("", "", 1, None, None))
                return self._fetch_archive(artifact_address, grow)
            if _JOB_ARCHIVE.fullmatch(address.path):
                return self._fetch_archive(address, grow)
            return self._fetch_file(address, grow)

    def consume(self, addresses: Sequence[Address], limit: int, consume: Callable[[Address, Iterable[bytes]], T]) -> T:
        """Pass the bytes at the first address that has any to a function, and return its result; see `fetch`.

        Args:
          addresses: in the order in which they are tried.
          limit: of the transferred bytes.
          consume: takes the address, and reads all chunks. It is called again for a retry. Its exceptions are raised.
        """
        with self._limits.within(self._policy.total_s):
            return first_found(
                addresses,
                lambda address: self._get(
                    address, lambda response: consume(address, self._body(response, "gzip", limit)), encoding=b"gzip"
                ),
            )

    def _fetch_file(self, address: Address, grow: Callable[[int], None] | None) -> bytes:
        return self._get(
            address,
            lambda response: gunzip(self._body(response, "gzip"), self._policy.max_bytes, grow),
            encoding=b"gzip",
        )

    def _artifact_address(self, address: Address, job: JobFacts) -> Address:
        """Return the address of the artifact with a job's log, by the list of artifacts at an address.

        Artifacts after the last page that is read count as missing.
        """
        artifacts: list[Artifact] = []
        for number in range(1, MAX_ARTIFACTS_PAGES + 1):
            page_address = replace(address, path=f"{address.path}?per_page={PAGE}&page={number}")
            page = self._get(
                page_address,
                lambda response: b"".join(self._body(response, "identity", MAX_ARTIFACTS_PAGE_BYTES)),
                accept=b"application/json",
            )
            page_artifacts, has_next = artifacts_on(page)
            artifacts += page_artifacts
            if not has_next:
                break
        artifact = artifact_of(job, artifacts, self._policy.artifact_names)
        actions = address.path.rpartition("/runs/")[0]
        return replace(address, path=f"{actions}/artifacts/{artifact.id}/zip")

    def _fetch_archive(self, address: Address, grow: Callable[[int], None] | None) -> bytes:
        """Fetch the log in an archive. GitHub stores an artifact of a single file without an archive."""
        with tempfile.SpooledTemporaryFile(_ARCHIVE_BYTES_IN_MEMORY) as file:

            def read(response: httpcore.Response) -> None:
                file.seek(0)
                file.truncate()
                for chunk in self._body(response, "identity"):
                    file.write(chunk)

            try:
                self._get(address, read)
                chunks = unzip(file, self._policy.log_paths) if is_archive(file) else _chunks(file)
                return gunzip(chunks, self._policy.max_bytes, grow)
            except OSError as error:
                raise LogUnavailableError("log_unavailable", f"cannot store the archive: {error.strerror}") from None

    def _get(
        self,
        address: Address,
        read: Callable[[httpcore.Response], T],
        accept: bytes = b"*/*",
        encoding: bytes = b"identity",
    ) -> T:
        """Request an address and read its response, with one retry."""
        headers = [(b"Accept", accept), (b"Accept-Encoding", encoding), (b"User-Agent", b"ciml")]
        try:
            with self._response(address, headers) as response:
                return read(response)
        except LogUnavailableError as failure:
            if not failure.retry_now:
                raise
        time.sleep(random.uniform(0.02, 0.2))  # noqa: S311  # spreads the retries of concurrent fetches
        with self._response(address, headers) as response:
            return read(response)

    @contextmanager
    def _response(self, address: Address, headers: list[tuple[bytes, bytes]]) -> Iterator[httpcore.Response]:
        """Yield the response with status 200: of an address, or of the last one that its redirects lead to."""
        secret = self._credential(address)
        rules = self._policy.host_rules
        for _ in range(MAX_REDIRECTS + 1):
            check_host(address, rules)
            self._limits.count_request()
            with self._request(address, headers + secret) as response:
                if response.status == 200:
                    yield response
                    return
                _drain(response)
            if response.status not in (301, 302, 303, 307, 308):
                raise _failure(response)
            target = _redirect_target(address, header(response, b"location").decode("latin-1"))
            if target.origin != address.origin:
                # Also after a redirect back: another host must not choose a request that has a credential.
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
    def _request(self, address: Address, headers: list[tuple[bytes, bytes]]) -> Iterator[httpcore.Response]:
        """Yield the response of one host, and convert errors of the connection, also those while the body is read."""
        url = httpcore.URL(
            scheme=address.scheme.encode(), host=address.host.encode(), port=address.port, target=address.path.encode()
        )
        headers = [(b"Host", address.host_header.encode()), *headers]
        has_begun = False
        try:
            with self._pool.stream("GET", url, headers=headers, extensions=self._extensions) as response:
                has_begun = True
                yield response
        except httpcore.TimeoutException as error:
            raise LogUnavailableError("log_timeout", _message(error) or "no response in time") from None
        except (httpcore.NetworkError, httpcore.RemoteProtocolError) as error:
            # A body shorter than its Content-Length is a protocol error after the headers have arrived.
            reason = "log_cut" if has_begun else "log_unavailable"
            raise LogUnavailableError(reason, _message(error) or type(error).__name__, retry_now=True) from None
        except (httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
            raise RejectedInput("bad_address", _message(error)) from None
        except ValueError as error:
            if has_begun:  # an error of the reader
                raise
            # The protocol's parser rejects the headers.
            raise LogUnavailableError("log_unavailable", _message(error)) from None

    def _body(self, response: httpcore.Response, encoding: str, limit: int | None = None) -> Iterator[bytes]:
        """Yield the body as it is sent.

        Args:
          response: the response.
          encoding: ``gzip`` or ``identity``, which is always accepted.
          limit: in bytes; by default `FetchPolicy.max_wire_bytes`.
        """
        if limit is None:
            limit = self._policy.max_wire_bytes
        accepted = {"", "identity"} | ({"gzip", "x-gzip"} if encoding == "gzip" else set())
        encodings = header(response, b"content-encoding").decode("latin-1").lower().replace(" ", "")
        if set(encodings.split(",")) - accepted:
            raise RejectedInput("log_encoding", f"content-encoding: {encodings!r:.40}, want {encoding}")
        announced = header(response, b"content-length")
        if announced.isdigit() and int(announced) > limit:
            raise RejectedInput("log_too_large", f"{int(announced)} bytes announced, at most {limit}")
        size = 0
        for chunk in response.iter_stream():
            size += len(chunk)
            if size > limit:
                raise RejectedInput("log_too_large", f"more than {limit} bytes sent")
            yield chunk


def _drain(response: httpcore.Response) -> None:
    """Read a short body. If it is cut, the status of its response is still valid."""
    announced = header(response, b"content-length")
    if announced.isdigit() and int(announced) <= _DRAINED_BYTES:
        with suppress(httpcore.TimeoutException, httpcore.NetworkError, httpcore.RemoteProtocolError):
            for _ in response.iter_stream():
                pass


def _chunks(file: IO[bytes]) -> Iterable[bytes]:
    file.seek(0)
    return iter(lambda: file.read(_CHUNK_BYTES), b"")


def _failure(response: httpcore.Response) -> LogUnavailableError:
    status = response.status
    if status in (403, 429) and (wait_s := retry_after_s(response)):
        return LogUnavailableError(
            "log_unavailable", f"answered {status}, asks to wait for {wait_s:.0f} s", retry_after_s=wait_s
        )
    if status in (404, 410):
        return LogUnavailableError("log_not_found", f"answered {status}")
    if status in (401, 403):
        return LogUnavailableError("log_forbidden", f"answered {status}")
    return LogUnavailableError("log_unavailable", f"answered {status}", retry_now=status >= 500)


def _redirect_target(address: Address, location: str) -> Address:
    if not location:
        raise LogUnavailableError("log_unavailable", "redirect without a location")
    try:
        target = parse_address(urljoin(f"{address.scheme}://{address.host_header}{address.path}", location))
    except RejectedInput as rejected:
        raise RejectedInput(rejected.reason, f"redirected: {rejected.detail}") from None
    except ValueError:
        raise RejectedInput("bad_address", "redirected to a malformed address") from None
    if target.scheme not in PORTS:
        raise RejectedInput("address_not_allowed", f"redirected to {target.scheme}")
    return target


def _message(error: Exception) -> str:
    return redact_url(f"{error!s:.200}")
