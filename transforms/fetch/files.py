"""Logs from files below the allowed roots, and from objects in S3, within the common limits on time and bytes.

The address of a file comes from outside, and the reason of its dead letter is published. So the answer must not depend
on whether a path outside of the roots exists, what it is, or who may read it. A path is therefore walked from its root,
component by component, each opened relative to its folder and never through a symlink. Where a ``..`` or a symlink
leads out of every root, the walk ends before the file system is accessed.

Of a folder of logs, the usual paths are tried in their order.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from ciml.errors import RejectedInput
from ciml.http.addresses import Address
from ciml.transforms.fetch.decompress import gunzip
from ciml.transforms.fetch.policy import FetchPolicy, LogUnavailableError

_PIECE = 1 << 20  # of a file
_S3_PIECE = 1 << 18
_ATTEMPTS = 3  # requests of an object, by boto with its own pauses; all within the time limit of the fetch
_GONE = ("NoSuchKey", "404", "NotFound")
_MAX_PATH = 4096  # bytes, as in Linux
_MAX_LINKS = 40  # as in Linux
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", 0)
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def first_found(addresses: Iterable[Address], fetch: Callable[[Address], bytes]) -> bytes:
    """Return what can be fetched first. Stop at anything but an absent log; some stores call it forbidden.

    Raises:
      RejectedInput, LogUnavailableError: of ``fetch``; ``log_not_found``, or ``log_forbidden``, where none exists.
    """
    answers: list[LogUnavailableError] = []
    for address in addresses:
        try:
            return fetch(address)
        except LogUnavailableError as absent:
            if absent.reason not in ("log_not_found", "log_forbidden"):
                raise
            answers.append(absent)
    forbidden = next((answer for answer in answers if answer.reason == "log_forbidden"), None)
    reason, detail = (forbidden.reason, f": {forbidden.detail}") if forbidden else ("log_not_found", "")
    raise LogUnavailableError(reason, f"at none of {len(answers)} paths below the folder{detail}")


def read_file(policy: FetchPolicy, path: str, grow: Callable[[int], None] | None = None) -> bytes:
    """Read the log in a file, unpacked.

    Raises:
      RejectedInput: ``address_not_allowed``, ``bad_address``, ``log_too_large``, ``corrupt_gzip``.
      LogUnavailableError: ``log_not_found``, ``log_unavailable``.
    """
    handle = open_log(policy, path)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise _not_regular()
        if status.st_size > policy.max_wire_bytes:
            raise RejectedInput("log_too_large", f"{status.st_size} bytes, at most {policy.max_wire_bytes}")
        return gunzip(iter(lambda: os.read(handle, _PIECE), b""), policy.max_bytes, grow)
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
        return open_below(policy.roots, path)
    except (FileNotFoundError, NotADirectoryError):
        raise LogUnavailableError("log_not_found", "no such file") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise RejectedInput("bad_address", f"{error.strerror}") from None
        raise LogUnavailableError("log_unavailable", f"{error.strerror}") from None


def open_below(roots: tuple[tuple[str, str], ...], path: str) -> int:
    """Open a regular file for reading, if its path stays below the roots at every step.

    Args:
      roots: of `FetchPolicy.roots`.
      path: absolute. Symlinks and ``..`` are followed within the roots and from one root to another.

    Returns:
      A file descriptor, which the caller closes. Devices and pipes are never opened.

    Raises:
      RejectedInput: ``address_not_allowed``, with the same detail for every path that leads outside.
      OSError: the file is below a root but cannot be opened.
    """
    if len(os.fsencode(path)) > _MAX_PATH:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    with ExitStack() as opened:
        walk = _Walk(tuple(real for _, real in roots), opened)
        return walk.open(_respelled(roots, path))


def _not_allowed() -> RejectedInput:
    return RejectedInput("address_not_allowed", "the file is not below an allowed root")


def _not_regular() -> RejectedInput:
    return RejectedInput("address_not_allowed", "not a regular file")


def _respelled(roots: tuple[tuple[str, str], ...], path: str) -> str:
    """Resolve a root's own symlinks in a path, without access to the file system."""
    for spelled, real in roots:
        if path.startswith(spelled):
            return real + path[len(spelled) :]
    return path


class _Walk:
    """The walk along a path, with a handle for each folder on the way.

    Attributes:
      at: the current folder, "" for ``/``: below a root, or above one, where only names are compared.
    """

    def __init__(self, roots: tuple[str, ...], opened: ExitStack) -> None:
        self._roots = roots
        self._opened = opened
        self._handles: dict[str, int] = {}
        self._at = ""

    def open(self, path: str) -> int:
        todo = _reversed(path)
        links = 0
        while todo:
            name = todo.pop()
            if name == "..":
                self._at = self._at.rpartition("/")[0]
                continue
            address = f"{self._at}/{name}"
            if any(root.startswith(f"{address}/") for root in self._roots):
                self._at = address  # a root, or a folder above one: no symlink, as roots are stored
                continue
            if not f"{self._at}/".startswith(self._roots):
                raise _not_allowed()
            folder = self._folder()
            mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = os.readlink(name, dir_fd=folder)
                if target.startswith("/"):
                    self._at = ""
                todo += _reversed(target)
            elif todo:
                self._at = address
                self._folder()
            elif stat.S_ISREG(mode):
                return os.open(name, _FILE, dir_fd=folder)
            else:
                raise _not_regular()
        if f"{self._at}/".startswith(self._roots):
            raise _not_regular()
        raise _not_allowed()

    def _folder(self) -> int:
        """Return a handle of the current folder: a root, or a folder in one with a handle."""
        handle = self._handles.get(self._at)
        if handle is None:
            above, _, name = self._at.rpartition("/")
            within = self._handles.get(above)
            handle = os.open(self._at or "/", _FOLDER) if within is None else os.open(name, _FOLDER, dir_fd=within)
            self._opened.callback(os.close, handle)
            self._handles[self._at] = handle
        return handle


def _reversed(path: str) -> list[str]:
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


class S3Logs:
    """Fetches logs from S3, with the credentials and the endpoint of the environment. Safe for many threads.

    Args:
      policy: the limits; ``total_s`` includes boto's retries and a second try.
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
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            max_pool_connections=2 * policy.threads,
            response_checksum_validation="when_required",  # a check would read the whole body, without a time limit
        )
        return boto3.session.Session().client("s3", config=config)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def fetch(self, address: Address, grow: Callable[[int], None] | None = None, end: float | None = None) -> bytes:
        """Fetch the log in an object, unpacked. A truncated response is retried once, at once.

        Args:
          address: an s3 address.
          grow: as in `ciml.transforms.fetch.decompress.gunzip`.
          end: when to stop, by ``time.monotonic``; after ``total_s`` by default.

        Raises:
          RejectedInput: ``log_too_large``, ``corrupt_gzip``.
          LogUnavailableError: ``log_not_found``, ``log_unavailable``, ``log_timeout``, ``log_cut``.
        """
        if end is None:
            end = time.monotonic() + self._policy.total_s
        try:
            return gunzip(self._wire(address, end), self._policy.max_bytes, grow)
        except LogUnavailableError as failure:
            if not failure.hiccup:
                raise
        return gunzip(self._wire(address, end), self._policy.max_bytes, grow)

    def _wire(self, address: Address, end: float) -> Iterator[bytes]:
        from urllib3.exceptions import HTTPError, TimeoutError

        answer = self._ask(address, end)
        body = answer["Body"]
        size = 0
        announced = int(answer["ContentLength"])
        try:
            if announced > self._policy.max_wire_bytes:
                raise RejectedInput(
                    "log_too_large", f"{announced} bytes announced, at most {self._policy.max_wire_bytes}"
                )
            while size < announced:
                body.set_socket_timeout(min(self._policy.read_s, _left(end)))
                # The bytes available after at most one wait: `body.read` waits for all requested bytes.
                piece = body._raw_stream.read1(min(_S3_PIECE, announced - size))
                if not piece:
                    raise LogUnavailableError("log_cut", "the response ended before its announced length", hiccup=True)
                size += len(piece)
                yield piece
        except TimeoutError:
            raise LogUnavailableError("log_timeout", "no response in time") from None
        except (HTTPError, OSError) as error:
            raise LogUnavailableError("log_cut", f"{error!s:.200}", hiccup=True) from None
        finally:
            body.close()

    def _ask(self, address: Address, end: float) -> Any:
        """Request an object; return once its headers have arrived. A slow server is abandoned in its thread."""
        from botocore.exceptions import NoCredentialsError, PartialCredentialsError

        answers: list[Any] = []
        left_behind = threading.Event()

        def ask() -> None:
            try:
                answer = self._client.get_object(Bucket=address.host, Key=address.path)
            except (NoCredentialsError, PartialCredentialsError) as error:
                self._client = self._new_client()  # a client without credentials never looks for them again
                answers.append(error)
                return
            except Exception as error:  # noqa: BLE001  # raised by the thread that waits
                answers.append(error)
                return
            if left_behind.is_set():
                answer["Body"].close()
            answers.append(answer)

        thread = threading.Thread(target=ask, name=f"s3 {address.host}", daemon=True)
        thread.start()
        thread.join(_left(end))
        if not answers:
            left_behind.set()
            raise LogUnavailableError("log_timeout", "no response in time")
        if isinstance(answers[0], Exception):
            raise _failed(answers[0])
        return answers[0]


def _left(end: float) -> float:
    remaining = end - time.monotonic()
    if remaining <= 0:
        raise LogUnavailableError("log_timeout", "the time limit of the fetch was reached")
    return remaining


def _failed(error: Exception) -> Exception:
    """Convert a failed request to the log's error; return the error itself where S3 did not cause it."""
    from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, ReadTimeoutError

    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _GONE:
            return LogUnavailableError("log_not_found", "no such object")
        return LogUnavailableError("log_unavailable", f"answered {code:.80}")
    if isinstance(error, ConnectTimeoutError | ReadTimeoutError):
        return LogUnavailableError("log_timeout", f"{error!s:.200}")
    if isinstance(error, BotoCoreError):
        return LogUnavailableError("log_unavailable", f"{error!s:.200}")
    return error
