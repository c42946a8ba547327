"""Maps and sets of ids: in memory, or over a table of a checkpoint (`ciml.manifest.id_index`).

A state that replays deltas keeps its ids here. Those since the checkpoint are in memory; earlier ones are in the table,
which never changes and may be on a remote store. So a caller applies a delta in two steps: `IdMap.prefetch` reads all
ids of the delta in one batch, which may fail, and the queries that follow are answered from memory, which cannot fail.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ciml.manifest.id_index import IdTable, Rows

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Codec(Generic[Key, Value]):
    """How the values of an `IdMap` are stored in its table.

    Attributes:
      identity: returns the id of a key.
      encode: returns the columns of a row for a key and its value.
      decode: returns the value for a key and its row, which is None for an id that the table lacks.
    """

    identity: Callable[[Key], bytes]
    encode: Callable[[Key, Value], Mapping[str, Any]]
    decode: Callable[[Key, Mapping[str, Any] | None], Value]


class IdMap(Generic[Key, Value]):
    """Values by key; those that were put since a checkpoint are in memory.

    A query for any other key reads the table, unless `prefetch` or an earlier query has read the key.

    Args:
      codec: of the values.
      table: the values until the checkpoint; None for a map in memory alone.

    Attributes:
      recent: the values since the checkpoint.
    """

    def __init__(self, codec: Codec[Key, Value], table: IdTable | None = None) -> None:
        self.recent: dict[Key, Value] = {}
        self._codec = codec
        self._table = table
        self._cache: dict[Key, Value] = {}  # values from the table, since the last `prefetch`

    def prefetch(self, keys: Iterable[Key]) -> None:
        """Read keys in one batch, and forget the earlier ones. Until the next call, queries for them cannot fail."""
        stored = set(keys) - self.recent.keys()
        cached = {key: self._cache[key] for key in stored & self._cache.keys()}
        self._cache = cached | self._look_up(stored - cached.keys())

    def read(self, keys: Collection[Key]) -> list[Value]:
        """Return the values of keys, looked up in one batch, without caching them."""
        values = self._look_up(set(keys) - self.recent.keys()) | self.recent
        return [values[key] for key in keys]

    def _look_up(self, keys: Collection[Key]) -> dict[Key, Value]:
        """Return the values of keys until the checkpoint."""
        if self._table is None or not keys:
            return {key: self._codec.decode(key, None) for key in keys}
        rows = self._table.get([self._codec.identity(key) for key in keys])
        return {key: self._codec.decode(key, row) for key, row in zip(keys, rows, strict=True)}

    def __getitem__(self, key: Key) -> Value:
        if key in self.recent:
            return self.recent[key]
        if key not in self._cache:
            self._cache |= self._look_up([key])
        return self._cache[key]

    def __setitem__(self, key: Key, value: Value) -> None:
        self.recent[key] = value

    def rows(self) -> Rows:
        """Return the values since the checkpoint, as rows for the table.

        Raises:
          TypeError: the map has no table.
        """
        if self._table is None:
            raise TypeError("a map without a table has no rows for a table")
        kind = self._table.kind
        encoded = [self._codec.encode(key, value) for key, value in self.recent.items()]
        columns = {name: [row[name] for row in encoded] for name in kind.columns}
        return kind.rows([self._codec.identity(key) for key in self.recent], columns)


class IdSet(IdMap[bytes, bool]):
    """Fingerprints: an `IdMap` from each to whether it is in the set; none is ever removed.

    Args:
      table: the members until the checkpoint; None for a set in memory alone.
    """

    def __init__(self, table: IdTable | None = None) -> None:
        # A row has no columns: it is there for each member.
        super().__init__(Codec(identity=bytes, encode=lambda *_: {}, decode=lambda _, row: row is not None), table)

    def __contains__(self, identity: bytes) -> bool:
        return self[identity]

    def add(self, identity: bytes) -> None:
        """Add an id."""
        self[identity] = True
