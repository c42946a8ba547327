"""Logs from files below the allowed roots; nothing outside of a root is ever accessed.

The address of a file comes from outside, and the reason of its dead letter is published. So the answer must not depend
on whether a path outside of the roots exists, what it is, or who may read it. A path is therefore walked from its root,
component by component, each opened relative to its folder and never through a symlink. Where a ``..`` or a symlink
leads out of every root, the walk ends before the file system is accessed.

Folders of logs: the usual paths below one are tried in their order.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import ExitStack

from ciml.errors import RejectedInput
from ciml.http.addresses import Address
from ciml.transforms.fetch.decompress import gunzip
from ciml.transforms.fetch.policy import FetchPolicy, LogUnavailableError


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


_PIECE = 1 << 20
_MAX_PATH = 4096  # bytes, as in Linux
_MAX_LINKS = 40  # as in Linux
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", 0)
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


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
