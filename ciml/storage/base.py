"""What a store is: objects under relative paths, whose ``create`` is the atomic commit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ciml.errors import CimlError

#: Bytes that are read at a time where an object may be larger than memory.
PIECE = 1 << 20


class Entry(NamedTuple):
    """An object of a listing: its path, its size in bytes, and when it was written, epoch seconds by the storage."""

    path: str
    size: int
    modified_s: float


class Store(ABC):
    """A root under which objects have relative POSIX paths.

    Every method raises `ciml.errors.EngineError` when the storage itself does not answer, and `CimlError` for a path
    that leaves the root. Stores can be pickled: clients are made lazily, one a process.
    """

    root: str

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Write a new object, whole or not at all. Return False, and writes nothing, where one exists already."""

    @abstractmethod
    def replace(self, path: str, data: bytes) -> None:
        """Write an object whole, over an older one. Only for what is no record: reports, caches, pointers."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Return the object's bytes. Raises `FileNotFoundError` where there is none."""

    def read_while(self, paths: Sequence[str]) -> list[bytes]:
        """Return the objects at the first of ``paths``, up to one that is not there: fewer where one is missing."""
        found: list[bytes] = []
        for path in paths:
            try:
                found.append(self.read(path))
            except FileNotFoundError:
                break
        return found

    def read_head(self, path: str, size: int) -> bytes:
        """At most the first ``size`` bytes of the object, however large. Raises as `read` does."""
        return self.read(path)[:size]

    def read_range(self, path: str, start: int, size: int) -> bytes:
        """At most ``size`` bytes (at least one) from ``start`` on; fewer where the object ends. Raises as `read`."""
        return self.read(path)[start : start + size]

    def pieces(self, path: str) -> Iterator[bytes]:
        """Yield the object's bytes in their order, piece by piece: for what may be larger than memory.

        Raises as `read`."""
        yield self.read(path)

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Return whether there is such an object (a folder is none)."""

    @abstractmethod
    def list(self, prefix: str = "", after: str = "") -> list[str]:
        """Return the paths of all objects below the folder ``prefix``, sorted; only those greater than ``after``."""

    @abstractmethod
    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """All objects below the folder ``prefix``, one by one, in no promised order. What vanishes meanwhile is left
        out, what appears meanwhile may be."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove an object; none there is no error."""

    def delete_leftovers(self, prefix: str, before_s: float) -> int:
        """Remove below ``prefix`` what killed writers left half-written before ``before_s`` (epoch seconds), and
        folders that have been empty since then. Never an object. Returns how many files were removed."""
        return 0

    @abstractmethod
    def child(self, path: str) -> Store:
        """Return the store whose root is the folder ``path`` of this one."""

    def url(self, path: str = "") -> str:
        """Return the full address of an object, as pyarrow, Beam and TensorFlow take it."""
        return f"{self.root}/{checked(path)}" if path else self.root

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.root!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other.root == self.root

    def __hash__(self) -> int:
        return hash(self.root)


def checked(path: str) -> str:
    """Return a path below a store's root in its plain form. Raises `CimlError` for one that leaves it."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or path.startswith("/") or ".." in parts or "\x00" in path:
        raise CimlError(f"{path!r} is no path below a store's root")
    return "/".join(parts)
