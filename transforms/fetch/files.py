"""Read logs from files in the allowed roots, and from objects in S3, within the limits of the fetch policy.

The address of a file comes from outside, and the reason of its dead letter is published. So the result must not depend
on whether a path outside the roots exists, what it is, or who may read it. `open_below` therefore walks a path from its
root, opens each component relative to its folder, and never opens through a symlink. Where a ``..`` or a symlink leads
out of every root, the walk ends before the file system is accessed.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from ciml.errors import LogUnavailableError, RejectedInput
from ciml.http.addresses import Address
from ciml.transforms.fetch.decompress import gunzip
from ciml.transforms.fetch.policy import FetchPolicy

T = TypeVar("T")

_FILE_CHUNK_BYTES = 1 << 20
_S3_CHUNK_BYTES = 1 << 18
_S3_ATTEMPTS = 3  # by boto, with its own pauses; all within the time limit of the fetch
_S3_NOT_FOUND = ("NoSuchKey", "404", "NotFound")
_MAX_PATH_BYTES = 4096  # as in Linux
_MAX_LINKS = 40  # as in Linux
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", 0)
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def first_found(addresses: Iterable[Address], fetch: Callable[[Address], T]) -> T:
    """Fetch the log at the first address that has one.

    A forbidden log counts as absent: some stores respond "forbidden" for an absent one. Any other failure ends the
    search.

    Raises:
      RejectedInput: if ``fetch`` raises it.
      LogUnavailableError: if ``fetch`` raises it for another reason; ``log_forbidden`` if no address has the log and
        one is forbidden; otherwise ``log_not_found``.
    """
    failures: list[LogUnavailableError] = []
    for address in addresses:
        try:
            return fetch(address)
        except LogUnavailableError as failure:
            if failure.reason not in ("log_not_found", "log_forbidden"):
                raise
            failures.append(failure)
    detail = f"at none of {len(failures)} paths below the folder"
    for absent in failures:
        if absent.reason == "log_forbidden":
            raise LogUnavailableError("log_forbidden", f"{detail}: {absent.detail}")
    raise LogUnavailableError("log_not_found", detail)


def read_file(policy: FetchPolicy, path: str, grow: Callable[[int], None] | None = None) -> bytes:
    """Read the log in a file, unpacked.

    Args:
      policy: the roots and the limits.
      path: absolute.
      grow: as in `ciml.transforms.fetch.decompress.gunzip`.

    Raises:
      RejectedInput: ``address_not_allowed``, ``bad_address``, ``log_too_large``, ``corrupt_gzip``.
      LogUnavailableError: ``log_not_found``, ``log_unavailable``.
    """
    return consume_file(policy, path, policy.max_wire_bytes, lambda chunks: gunzip(chunks, policy.max_bytes, grow))


def consume_file(policy: FetchPolicy, path: str, limit: int, consume: Callable[[Iterable[bytes]], T]) -> T:
    """Pass the bytes of a file to a function, in chunks, and return its result.

    Args:
      policy: the roots.
      path: absolute.
      limit: of the file's size, bytes.
      consume: reads all chunks.

    Raises:
      RejectedInput: ``address_not_allowed``, ``bad_address``, ``log_too_large``; those of ``consume``.
      LogUnavailableError: ``log_not_found``, ``log_unavailable``.
    """
    handle = open_log(policy, path)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise _not_regular()
        if status.st_size > limit:
            raise RejectedInput("log_too_large", f"{status.st_size} bytes, at most {limit}")
        return consume(iter(lambda: os.read(handle, _FILE_CHUNK_BYTES), b""))
    except OSError as error:
        raise LogUnavailableError("log_unavailable", f"{error.strerror}") from None
    finally:
        os.close(handle)


def open_log(policy: FetchPolicy, path: str) -> int:
    """Open the log in a file for reading. Return a file descriptor, which the caller closes.

    Raises:
      RejectedInput: ``address_not_allowed``, ``bad_address``.
      LogUnavailableError: ``log_not_found``, ``log_unavailable``.
    """
    try:
        return open_below(policy.resolved_roots, path)
    except (FileNotFoundError, NotADirectoryError):
        raise LogUnavailableError("log_not_found", "no such file") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise RejectedInput("bad_address", f"{error.strerror}") from None
        raise LogUnavailableError("log_unavailable", f"{error.strerror}") from None


def open_below(roots: tuple[tuple[str, str], ...], path: str) -> int:
    """Open a regular file for reading, if its path is in the roots at every step.

    Args:
      roots: `FetchPolicy.resolved_roots`.
      path: absolute. Symlinks and ``..`` are followed within the roots and from one root to another.

    Returns:
      A file descriptor, which the caller closes. Devices and pipes are never opened.

    Raises:
      RejectedInput: ``address_not_allowed``, with the same detail for every path that leads outside.
      OSError: if the path is too long, or the file is in a root but cannot be opened.
    """
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    walk = _Walk(tuple(real for _, real in roots))
    try:
        return walk.open(_resolve_root(roots, path))
    finally:
        walk.close()


def _resolve_root(roots: tuple[tuple[str, str], ...], path: str) -> str:
    """Replace a root at the start of a path by its resolved path, without access to the file system."""
    for root, real in roots:
        if path.startswith(root):
            return real + path[len(root) :]
    return path


class _Walk:
    """A walk along a path, with a handle for each folder of a root on the way.

    Args:
      roots: resolved paths of the roots, each with a final slash.
    """

    def __init__(self, roots: tuple[str, ...]) -> None:
        self._roots = roots
        self._handles: dict[str, int] = {}
        # The path of the current folder, without a final slash: a root, a folder in one, or a folder above one, where
        # only names are compared.
        self._folder = ""

    def close(self) -> None:
        for handle in self._handles.values():
            os.close(handle)

    def open(self, path: str) -> int:
        todo = _reversed_names(path)
        links = 0
        while todo:
            name = todo.pop()
            if name == "..":
                self._folder = self._folder.rpartition("/")[0]
                continue
            child = f"{self._folder}/{name}"
            if any(root.startswith(f"{child}/") for root in self._roots):
                self._folder = child  # a root, or a folder above one: not a symlink, because roots are resolved
                continue
            if not self._is_in_root():
                raise _not_allowed()
            handle = self._folder_handle()
            mode = os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = os.readlink(name, dir_fd=handle)
                if target.startswith("/"):
                    self._folder = ""
                todo += _reversed_names(target)
            elif todo:
                self._folder = child
                self._folder_handle()  # opened even if ``..`` follows: the path is invalid if this is not a folder
            elif stat.S_ISREG(mode):
                return os.open(name, _FILE, dir_fd=handle)
            else:
                raise _not_regular()
        raise _not_regular() if self._is_in_root() else _not_allowed()

    def _is_in_root(self) -> bool:
        return f"{self._folder}/".startswith(self._roots)

    def _folder_handle(self) -> int:
        """Return a handle of the current folder: a root, or a folder in one with a handle."""
        handle = self._handles.get(self._folder)
        if handle is None:
            parent, _, name = self._folder.rpartition("/")
            parent_handle = self._handles.get(parent)
            if parent_handle is None:
                handle = os.open(self._folder or "/", _FOLDER)
            else:
                handle = os.open(name, _FOLDER, dir_fd=parent_handle)
            self._handles[self._folder] = handle
        return handle


def _reversed_names(path: str) -> list[str]:
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _not_allowed() -> RejectedInput:
    return RejectedInput("address_not_allowed", "the file is not below an allowed root")


def _not_regular() -> RejectedInput:
    return RejectedInput("address_not_allowed", "not a regular file")


class S3Logs:
    """Fetches logs from S3, with the credentials and the endpoint of the environment. Safe for many threads.

    Args:
      policy: the limits; ``total_s`` includes boto's retries and the retry of `fetch`.
    """

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy = policy
        self._client = self._new_client()

    def _new_client(self) -> Any:
        import boto3
        from botocore.config import Config

        policy = self._policy
        config = Config(
            connect_timeout=policy.connect_s,
            read_timeout=policy.read_s,
            retries={"mode": "standard", "total_max_attempts": _S3_ATTEMPTS},
            max_pool_connections=2 * policy.threads,
            response_checksum_validation="when_required",  # a check would read the whole body, without a time limit
        )
        return boto3.session.Session().client("s3", config=config)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def fetch(self, address: Address, grow: Callable[[int], None] | None = None, end: float | None = None) -> bytes:
        """Fetch the log in an object, unpacked. A truncated response is retried once, without a pause.

        Args:
          address: an s3 address.
          grow: as in `ciml.transforms.fetch.decompress.gunzip`.
          end: time limit, by ``time.monotonic``; by default ``total_s`` from now.

        Raises:
          RejectedInput: ``log_too_large``, ``corrupt_gzip``.
          LogUnavailableError: ``log_not_found``, ``log_unavailable``, ``log_timeout``, ``log_cut``.
        """
        policy = self._policy
        return self.consume(address, policy.max_wire_bytes, lambda chunks: gunzip(chunks, policy.max_bytes, grow), end)

    def consume(
        self, address: Address, limit: int, consume: Callable[[Iterable[bytes]], T], end: float | None = None
    ) -> T:
        """Pass the bytes of an object to a function, in chunks, and return its result; see `fetch`.

        Args:
          address: an s3 address.
          limit: of the object's size, bytes.
          consume: reads all chunks. It is called again for the retry.
          end: time limit, by ``time.monotonic``; by default ``total_s`` from now.
        """
        if end is None:
            end = time.monotonic() + self._policy.total_s
        try:
            return consume(self._body(address, end, limit))
        except LogUnavailableError as failure:
            if not failure.retry_now:
                raise
        return consume(self._body(address, end, limit))

    def _body(self, address: Address, end: float, limit: int) -> Iterator[bytes]:
        from urllib3 import exceptions as http_errors

        response = self._request(address, end)
        body = response["Body"]
        size = 0
        announced = int(response["ContentLength"])
        try:
            if announced > limit:
                raise RejectedInput("log_too_large", f"{announced} bytes announced, at most {limit}")
            while size < announced:
                body.set_socket_timeout(min(self._policy.read_s, _remaining_s(end)))
                # The bytes available after at most one wait: `body.read` waits for all requested bytes.
                chunk = body._raw_stream.read1(min(_S3_CHUNK_BYTES, announced - size))
                if not chunk:
                    raise LogUnavailableError(
                        "log_cut", "the response ended before its announced length", retry_now=True
                    )
                size += len(chunk)
                yield chunk
        except http_errors.TimeoutError:
            raise LogUnavailableError("log_timeout", "no response in time") from None
        except (http_errors.HTTPError, OSError) as error:
            raise LogUnavailableError("log_cut", f"{error!s:.200}", retry_now=True) from None
        finally:
            body.close()

    def _request(self, address: Address, end: float) -> Any:
        """Request an object; return the response once its headers have arrived.

        Botocore has no limit for the whole request. So a slow request is abandoned in its thread.
        """
        from botocore.exceptions import NoCredentialsError, PartialCredentialsError

        remaining_s = _remaining_s(end)
        response: Future[Any] = Future()

        def request() -> None:
            try:
                response.set_result(self._client.get_object(Bucket=address.host, Key=address.path))
            except Exception as error:  # noqa: BLE001  # raised by the thread that waits
                response.set_exception(error)

        threading.Thread(target=request, name=f"s3 {address.host}", daemon=True).start()
        wait([response], remaining_s)
        if not response.done():
            response.add_done_callback(_close_response)  # called immediately if the response has just arrived
            raise LogUnavailableError("log_timeout", "no response in time")
        error = response.exception()
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            self._client = self._new_client()  # a client without credentials never looks for them again
        if error is not None:
            raise _log_error(error)
        return response.result()


def _close_response(response: Future[Any]) -> None:
    if response.exception() is None:
        response.result()["Body"].close()


def _log_error(error: BaseException) -> BaseException:
    """Convert the error of a request to the error of its log; return the error itself if S3 did not cause it."""
    from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, ReadTimeoutError

    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _S3_NOT_FOUND:
            return LogUnavailableError("log_not_found", "no such object")
        return LogUnavailableError("log_unavailable", f"answered {code:.80}")
    if isinstance(error, ConnectTimeoutError | ReadTimeoutError):
        return LogUnavailableError("log_timeout", f"{error!s:.200}")
    if isinstance(error, BotoCoreError):
        return LogUnavailableError("log_unavailable", f"{error!s:.200}")
    return error


def _remaining_s(end: float) -> float:
    """Return the seconds until a time limit, above 0. Raise `LogUnavailableError` ``log_timeout`` if it is reached."""
    remaining_s = end - time.monotonic()
    if remaining_s <= 0:
        raise LogUnavailableError("log_timeout", "the time limit of the fetch was reached")
    return remaining_s
