"""The interface of a store: objects under relative paths, whose ``create`` is the atomic commit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from ciml.errors import CimlError

#: Bytes per read of objects that may be larger than memory.
PIECE = 1 << 20


class Entry(NamedTuple):
    """An object of a listing: its path, its size in bytes, and its modification time, epoch seconds by the storage."""

    path: str
    size: int
    modified_s: float


class Store(ABC):
    """A root under which objects have relative POSIX paths.

    Every method raises `ciml.errors.EngineError` where the storage itself does not answer, and `CimlError` for a path
    that leaves the root. Stores can be pickled: clients are created lazily, one per process.
    """

    root: str

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Write a new object, whole or not at all. Return False, and write nothing, where it exists already."""

    @abstractmethod
    def replace(self, path: str, data: bytes) -> None:
        """Write an object as a whole, over an older one. Only for reports, caches and pointers, never for records."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Return the object's bytes; raise `FileNotFoundError` where it does not exist."""

    def read_while(self, paths: Sequence[str]) -> list[bytes]:
        """Return the objects at the first of ``paths``, up to the first missing one."""
        objects: list[bytes] = []
        with suppress(FileNotFoundError):
            for path in paths:
                objects.append(self.read(path))
        return objects

    def read_range(self, path: str, start: int, size: int) -> bytes:
        """Return ``size`` bytes (at least one) from ``start``, fewer where the object ends. Raises as `read`."""
        return self.read(path)[start : start + size]

    def pieces(self, path: str) -> Iterator[bytes]:
        """Yield the object's bytes in order, in chunks: for objects that may be larger than memory.

        Raises as `read`.
        """
        yield self.read(path)

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Return whether the object exists (a folder is not an object)."""

    @abstractmethod
    def list(self, prefix: str = "", after: str = "") -> list[str]:
        """Return the paths of all objects below the folder ``prefix``, sorted; only those greater than ``after``."""

    @abstractmethod
    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Yield all objects below the folder ``prefix``, in no defined order.

        Objects deleted meanwhile are left out; objects created meanwhile may be included.
        """

    @abstractmethod
    def delete(self, path: str) -> None:
        """Delete an object; a missing one is not an error."""

    def delete_leftovers(self, prefix: str, before_s: float) -> int:
        """Delete incomplete files of killed writers below ``prefix``, and empty folders, older than ``before_s``.

        ``before_s`` is epoch seconds. Objects are never deleted. Return the number of deleted files.
        """
        return 0

    @abstractmethod
    def child(self, path: str) -> Store:
        """Return the store whose root is the folder ``path`` of this one."""

    def url(self, path: str = "") -> str:
        """Return the full address of an object, in the form of pyarrow, Beam and TensorFlow."""
        return f"{self.root}/{checked(path)}" if path else self.root

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.root!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other.root == self.root

    def __hash__(self) -> int:
        return hash(self.root)


def checked(path: str) -> str:
    """Normalise a path below a store's root. Raises `CimlError` for one that leaves it."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or path.startswith("/") or ".." in parts or "\x00" in path:
        raise CimlError(f"{path!r} is not a path below a store's root")
    return "/".join(parts)
