"""Objects in a folder. Each is written to a temporary file, synced to disk, and then renamed or linked as a whole.

Savepoints of Flink name this module and `LocalStore`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ciml.errors import EngineError
from ciml.storage.base import PIECE, Entry, Store, checked

#: Tries to write an object while another process deletes its folder, which is empty.
_FOLDER_ATTEMPTS = 5
#: Prefix of the names of temporary files.
_STAGING = ".staging-"


class LocalStore(Store):
    """A folder. ``create`` is a temporary file and a hard link, safe against kills and races; files are synced."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(os.fspath(root))

    def create(self, path: str, data: bytes) -> bool:
        return self._write(path, data, exclusive=True)

    def replace(self, path: str, data: bytes) -> None:
        self._write(path, data, exclusive=False)

    def _write(self, path: str, data: bytes, *, exclusive: bool) -> bool:
        target = Path(self._file(path))
        missing_folder: FileNotFoundError | None = None
        for _ in range(_FOLDER_ATTEMPTS):
            try:
                _make_folder(target.parent)
                exists = exclusive and target.exists()  # found faster than by writing a temporary file
                is_written = not exists and replace_file(target, data, 0o644, exclusively=exclusive)
                sync_folder(target.parent)  # also for another writer's object: the next write may refer to it
                return is_written
            except FileNotFoundError as error:  # its empty folder was deleted meanwhile
                missing_folder = error
            except OSError as error:
                raise _failed("write", target, error) from error
        assert missing_folder is not None
        raise _failed("write", target, missing_folder) from missing_folder

    def read(self, path: str) -> bytes:
        with _reported("read", self._file(path)) as file, open(file, "rb") as source:
            return source.read()

    def read_range(self, path: str, start: int, size: int) -> bytes:
        with _reported("read", self._file(path)) as file, open(file, "rb") as source:
            source.seek(start)
            return source.read(size)

    def pieces(self, path: str) -> Iterator[bytes]:
        with _reported("read", self._file(path)) as file, open(file, "rb") as source:
            while piece := source.read(PIECE):
                yield piece

    def exists(self, path: str) -> bool:
        return os.path.isfile(self._file(path))

    def _walk(self, prefix: str, after: str = "") -> Iterator[tuple[str, list[str]]]:
        """Yield (folder, file names) below ``prefix``, staged files too; without folders sorted before ``after``."""

        def broken(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):  # an incomplete listing is an error
                raise _failed("list", error.filename or top, error) from error

        top = self._file(prefix) if prefix else self.root
        for folder, folders, names in os.walk(top, onerror=broken):
            folders.sort()
            if after:
                below = "" if folder == self.root else f"{os.path.relpath(folder, self.root)}/"
                folders[:] = [name for name in folders if f"{below}{name}/" >= after[: len(below) + len(name) + 1]]
            yield folder, sorted(names)

    def list(self, prefix: str = "", after: str = "") -> list[str]:
        paths = [
            os.path.relpath(os.path.join(folder, name), self.root)
            for folder, names in self._walk(prefix, after)
            for name in names
            if not name.startswith(_STAGING)
        ]
        return sorted(path for path in paths if path > after)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        for folder, names in self._walk(prefix):
            for name in names:
                if name.startswith(_STAGING):
                    continue
                with suppress(FileNotFoundError), _reported("list", os.path.join(folder, name)) as path:
                    status = os.stat(path)
                    yield Entry(os.path.relpath(path, self.root), status.st_size, status.st_mtime)

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError), _reported("delete", self._file(path)) as file:
            os.unlink(file)

    def delete_leftovers(self, prefix: str, before_s: float) -> int:
        removed = 0
        top = self._file(prefix)
        for folder, names in self._walk(prefix):
            for name in names:
                if name.startswith(_STAGING):
                    removed += _remove_old(os.path.join(folder, name), before_s)
            with suppress(OSError):  # rmdir keeps a folder that is not empty
                if not names and folder != top and os.stat(folder).st_mtime < before_s:
                    os.rmdir(folder)
        return removed

    def child(self, path: str) -> LocalStore:
        return LocalStore(self._file(path))

    def _file(self, path: str) -> str:
        """Return the path of an object's file. A text: a `Path` takes much longer to make."""
        return f"{self.root}/{checked(path)}"


def replace_file(path: Path, data: bytes, mode: int = 0o600, *, exclusively: bool = False) -> bool:
    """Replace a file in an existing folder atomically. After a power cut, it has its old or its new content.

    Args:
      path: of the file.
      data: its content.
      mode: its permissions.
      exclusively: write nothing if the file exists already.

    Returns:
      Whether the file was written.
    """
    handle, staged = tempfile.mkstemp(prefix=_STAGING, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())  # otherwise a power cut could leave the name with an empty file
        os.chmod(staged, mode)
        (os.link if exclusively else os.replace)(staged, path)
        return True
    except FileExistsError:
        return False
    finally:
        with suppress(OSError):  # a leftover is deleted later; the file is written
            os.unlink(staged)


def _failed(verb: str, path: str | os.PathLike[str], error: OSError) -> EngineError:
    return EngineError(f"cannot {verb} {os.fspath(path)}: {error.strerror or error}")


@contextmanager
def _reported(verb: str, path: str) -> Iterator[str]:
    """Yield the path. An `OSError` of the block becomes an `EngineError`, except for `FileNotFoundError`."""
    try:
        yield path
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _failed(verb, path, error) from error


def _remove_old(path: str, before_s: float) -> bool:
    with suppress(FileNotFoundError), _reported("delete", path):
        if os.stat(path).st_mtime < before_s:
            os.unlink(path)
            return True
    return False


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each synced to disk before the next."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, after one was created or renamed. Raises `OSError`."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
