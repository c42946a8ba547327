"""Folders that another process may have prepared: opened component by component, without following links, and checked.

An earlier job of the same user can put anything into the spool. So nothing there is opened by path: a folder is held by
its descriptor, and a file is valid only if it is a regular file of this user with a single name.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from ciml.errors import CimlError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # opening a FIFO does not block


class Folder:
    """A folder of this user, held open.

    Attributes:
      path: its path, for messages and for programs that need a path.
      descriptor: descriptor of the folder.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    def close(self) -> None:
        """Close the folder."""
        os.close(self.descriptor)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def folder(self, name: str) -> Folder:
        """Open a subfolder.

        Raises:
          CimlError: it belongs to another user.
          OSError: it does not exist, is a link or not a folder, or cannot be opened.
        """
        path = self.path / name
        descriptor = os.open(name, _FOLDER, dir_fd=self.descriptor)
        if (owner := os.fstat(descriptor).st_uid) != os.geteuid():
            os.close(descriptor)
            raise CimlError(f"{path} belongs to another user (uid {owner})")
        return Folder(path, descriptor)

    def names(self, most: int) -> list[str]:
        """Return its names, sorted; any ``most`` + 1 of them where there are more than ``most``. Raises `OSError`."""
        names: list[str] = []
        with os.scandir(self.descriptor) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) > most:
                    break
        return sorted(names)

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Open a file; return its descriptor.

        Raises:
          CimlError: it is not a regular file, belongs to another user, or has a second name.
          OSError: it cannot be opened; a link is an `OSError` too.
        """
        descriptor = os.open(name, flags | _FILE, 0o600, dir_fd=self.descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink != 1:
            os.close(descriptor)
            raise CimlError(f"{self.path / name} is not a regular file of this user with a single name")
        return descriptor

    def read(self, name: str, most: int) -> bytes:
        """Return the content of a file of at most ``most`` bytes.

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
        """Return `os.fstat` of a file; None if it does not exist. Raises as `open`."""
        try:
            descriptor = self.open(name)
        except FileNotFoundError:
            return None
        with contextlib.closing(os.fdopen(descriptor, "rb")):
            return os.fstat(descriptor)

    def write(self, name: str, content: bytes) -> None:
        """Replace a file as a whole. After a power cut, it has its old or its new content. Raises `OSError`."""
        staged = f"{name}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staged, dir_fd=self.descriptor)
        with os.fdopen(self.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut could leave the name with an empty file
        os.rename(staged, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)


def open_private(path: Path, *, create: bool = False) -> Folder:
    """Open a folder that belongs to this user and is closed to others.

    Args:
      path: its path; its last component must not be a link.
      create: create it with mode 0700 where it does not exist.

    Raises:
      CimlError: it is a link, belongs to another user, or is open to others; the message gives the remedy.
      OSError: it does not exist, or cannot be created or opened.
    """
    if create:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700, parents=True)
    try:
        descriptor = os.open(path, _FOLDER)
    except OSError:
        if path.is_symlink():
            raise CimlError(f"{path} is a symbolic link; give the folder itself with --spool") from None
        raise
    status = os.fstat(descriptor)
    problem = ""
    if status.st_uid != os.geteuid():
        problem = f"{path} belongs to another user (uid {status.st_uid}); give a folder of your own with --spool"
    elif status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        problem = f"{path} is open to other users (mode {mode:04o}); check its content, then run: chmod 700 {path}"
    if problem:
        os.close(descriptor)
        raise CimlError(problem)
    return Folder(path, descriptor)
