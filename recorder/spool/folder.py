"""Folders that another process may have prepared: opened step by step, without following a link, and checked.

An earlier job of the same user can put anything into the spool. So nothing there is opened by its path: a folder is
held by its descriptor, and a file counts only when it is a regular file of this user with a single name.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from ciml.errors import CimlError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # a FIFO blocks no one who opens it so


class Folder:
    """A folder of this user, held open.

    Attributes:
      path: where it was found; for messages, and for programs that need a path.
      descriptor: of the folder.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def close(self) -> None:
        """Let go of it."""
        os.close(self.descriptor)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def folder(self, name: str) -> Folder:
        """Return the folder of that name in it.

        Raises:
          CimlError: it belongs to another user.
          OSError: there is none, it is a link or no folder, or it cannot be opened.
        """
        path = self.path / name
        descriptor = os.open(name, _FOLDER, dir_fd=self.descriptor)
        if (owner := os.fstat(descriptor).st_uid) != os.geteuid():
            os.close(descriptor)
            raise CimlError(f"{path} belongs to another user (uid {owner})")
        return Folder(path, descriptor)

    def names(self, most: int) -> list[str]:
        """Return the names in it, sorted; where there are more than ``most``, any ``most`` + 1 of them.

        Raises `OSError`."""
        found: list[str] = []
        with os.scandir(self.descriptor) as entries:
            for entry in entries:
                found.append(entry.name)
                if len(found) > most:
                    break
        return sorted(found)

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Return a descriptor of the file of that name.

        Raises:
          CimlError: it is no regular file, or another's, or has a second name.
          OSError: it cannot be opened; a link is an `OSError` too.
        """
        descriptor = os.open(name, flags | _FILE, 0o600, dir_fd=self.descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink != 1:
            os.close(descriptor)
            raise CimlError(f"{self.path / name} is not a regular file of this user with a single name")
        return descriptor

    def read(self, name: str, most: int) -> bytes:
        """Return the content of a file of at most so many bytes.

        Raises:
          CimlError: as `open`, or it is larger.
          OSError: as `open`.
        """
        with os.fdopen(self.open(name), "rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise CimlError(f"{self.path / name} is larger than {most} bytes")
        return content

    def stat(self, name: str) -> os.stat_result | None:
        """What `os.fstat` says of the file of that name; None where there is none. Raises as `open` does."""
        try:
            descriptor = self.open(name)
        except FileNotFoundError:
            return None
        with contextlib.closing(os.fdopen(descriptor, "rb")):
            return os.fstat(descriptor)

    def write(self, name: str, content: bytes) -> None:
        """Replace a file whole. Raises `OSError`."""
        staged = f"{name}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staged, dir_fd=self.descriptor)
        with os.fdopen(self.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(content)
        os.rename(staged, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)


def open_private(path: Path, *, create: bool = False) -> Folder:
    """Return a folder that this user owns and no other may enter.

    Args:
      path: its path; its last part may not be a link.
      create: makes it, mode 0700, where there is none.

    Raises:
      CimlError: it is a link, belongs to another user, or is open to others; the message says what to do.
      OSError: it is not there or cannot be made or opened.
    """
    if create:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700, parents=True)
    try:
        descriptor = os.open(path, _FOLDER)
    except OSError:
        if path.is_symlink():
            raise CimlError(f"{path} is a symbolic link; name the folder itself by --spool") from None
        raise
    status = os.fstat(descriptor)
    problem = ""
    if status.st_uid != os.geteuid():
        problem = f"{path} belongs to another user (uid {status.st_uid}); name a folder of your own by --spool"
    elif status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        problem = f"{path} is open to other users (mode {mode:04o}); check what is in it, then: chmod 700 {path}"
    if problem:
        os.close(descriptor)
        raise CimlError(problem)
    return Folder(path, descriptor)
