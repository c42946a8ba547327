"""A sorted index of ids on disk, for the ids that a manifest keeps forever; and sets of ids that use it.

An id is a fingerprint of 128 bits, with values where its table has columns. A table is a list of sorted runs, the
oldest first; the newest run that holds an id wins. A run is a list of parts: memory-mapped Arrow files of about a
million rows, each with a range of fingerprints (`ciml.manifest.index_files`). Eight runs of a level are merged into one
of the next level. So there are few runs, and each id is written once per level.

Fingerprints are distributed evenly. So runs are split and merged by equal ranges, with one range in memory at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

Result = TypeVar("Result")
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
#: Number of runs of a level that are merged into one of the next.
TIER = 8
#: Target number of rows of a part.
PART_ROWS = 900_000
_SPAN = 1 << 64


class IdSet:
    """Fingerprints; none is ever removed.

    Args:
      table: the ids until a checkpoint; None for a set in memory alone.
    """

    def __init__(self, table: IdTable | None = None) -> None:
        self._table = table
        self._recent: set[bytes] = set()
        self._seen: dict[bytes, bool] = {}  # cache of the last look-ups; a table never changes

    def prefetch(self, ids: Iterable[bytes]) -> None:
        """Look up ids in one batch. Until the next call, queries for them cannot fail."""
        if self._table is None:
            return
        memberships = {identity: self._seen.get(identity) for identity in ids if identity not in self._recent}
        unknown = [identity for identity, is_member in memberships.items() if is_member is None]
        memberships.update(zip(unknown, self._table.contains(unknown), strict=True))
        self._seen = {identity: bool(is_member) for identity, is_member in memberships.items()}

    def __contains__(self, identity: bytes) -> bool:
        if identity in self._recent:
            return True
        if (is_member := self._seen.get(identity)) is not None:
            return is_member
        return self._table is not None and self._table.contains([identity])[0]

    def add(self, identity: bytes) -> None:
        """Add an id."""
        self._recent.add(identity)

    def recent(self) -> Rows:
        """Return the ids added since the checkpoint, as rows for the table.

        Raises:
          TypeError: the set has no table.
        """
        if self._table is None:
            raise TypeError("a set without a table has no rows for a table")
        return self._table.kind.rows(list(self._recent), {})


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
        self._seen: dict[Key, Value] = {}  # cache of the last look-ups; a table never changes

    def prefetch(self, keys: Iterable[Key]) -> None:
        """Look up keys in one batch. Until the next call, queries for them cannot fail."""
        missing = set(keys) - self.recent.keys()
        cached = {key: self._seen[key] for key in missing if key in self._seen}
        self._seen = cached | self._look_up(missing - cached.keys())

    def read(self, keys: Collection[Key]) -> list[Value]:
        """Return the values of keys, looked up in one batch, without caching them."""
        values = self._look_up(set(keys) - self.recent.keys()) | self.recent
        return [values[key] for key in keys]

    def _look_up(self, keys: Collection[Key]) -> dict[Key, Value]:
        if self._table is None or not keys:
            return {key: self._codec.decode(key, None) for key in keys}
        rows = self._table.get([self._codec.identity(key) for key in keys])
        return {key: self._codec.decode(key, row) for key, row in zip(keys, rows, strict=True)}

    def __getitem__(self, key: Key) -> Value:
        if key in self.recent:
            return self.recent[key]
        if key not in self._seen:
            self._seen |= self._look_up([key])
        return self._seen[key]

    def __setitem__(self, key: Key, value: Value) -> None:
        self.recent[key] = value

    def rows(self, kind: TableKind) -> Rows:
        """Return the values since the checkpoint, as rows for a table."""
        encoded = [self._codec.encode(key, value) for key, value in self.recent.items()]
        columns = {name: [row[name] for row in encoded] for name in kind.columns}
        return kind.rows([self._codec.identity(key) for key in self.recent], columns)


def fingerprint(*texts: str) -> bytes:
    """Return a fingerprint of 128 bits: among 10^9 ids the probability of a collision is below 10^-20."""
    return hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Rows:
    """Ids and their values, sorted by id, each once.

    Attributes:
      high: the first 64 bits of each id, shape (n,), uint64.
      low: the last 64 bits, the same shape.
      values: the columns of the table, each of n values.
    """

    __slots__ = ("__weakref__", "high", "low", "values")

    def __init__(self, high: np.ndarray, low: np.ndarray, values: dict[str, pa.Array]) -> None:
        self.high = high
        self.low = low
        self.values = values

    def __len__(self) -> int:
        return len(self.high)

    def row(self, position: int) -> dict[str, Any]:
        """Return the values of one row."""
        return {name: column[position].as_py() for name, column in self.values.items()}

    def slice(self, start: int, end: int) -> Rows:
        """Return rows [start, end), a view of the same memory."""
        values = {name: column.slice(start, end - start) for name, column in self.values.items()}
        return Rows(self.high[start:end], self.low[start:end], values)


@dataclass(frozen=True)
class Part:
    """A file of rows: its path in the store, the sha256 and size of its bytes, and its first and last 64 bits."""

    path: str
    sha256: str
    size: int
    rows: int
    first: int
    last: int


@dataclass(frozen=True)
class Run:
    """Consecutive parts, each id once, and the number of merges behind them."""

    level: int
    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last 64 bits of each part."""
        import numpy as np

        firsts, lasts = ([getattr(part, name) for part in self.parts] for name in ("first", "last"))
        return np.array(firsts, np.uint64), np.array(lasts, np.uint64)

    def to_json(self) -> dict[str, Any]:
        return {"level": self.level, "parts": [asdict(part) for part in self.parts]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Run:
        return cls(value["level"], tuple(Part(**part) for part in value["parts"]))


class Files(Protocol):
    """Storage of parts. See `ciml.manifest.index_files.PartFiles`."""

    def write(self, rows: Rows) -> Part:
        """Write rows as a part; equal rows give the same part."""

    def open(self, part: Part) -> Rows:
        """Return the rows of a part."""


@dataclass(frozen=True)
class TableKind:
    """The columns of a table beside its ids.

    Attributes:
      columns: name and Arrow type, as an alias of `pyarrow.type_for_alias`.
      is_removed: for tables with removal: marks the rows that stand for a removed id, by their values.
    """

    columns: dict[str, str] = field(default_factory=dict)
    is_removed: Callable[[dict[str, pa.Array]], np.ndarray] | None = None

    def rows(self, ids: Sequence[bytes], values: Mapping[str, Sequence[Any]]) -> Rows:
        """Build rows from unique ids in any order, and a list for each column."""
        import numpy as np
        import pyarrow as pa

        high, low = _words(ids)
        order = np.lexsort((low, high))
        columns = {
            name: pa.array(values[name], pa.type_for_alias(alias)).take(pa.array(order))
            for name, alias in self.columns.items()
        }
        return Rows(high[order], low[order], columns)


def _words(ids: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    words = np.frombuffer(b"".join(ids), ">u8").reshape(-1, 2).astype(np.uint64)
    return words[:, 0].copy(), words[:, 1].copy()


class IdTable:
    """A table as of one checkpoint. Immutable; `with_rows` and `merged` return new tables.

    Args:
      kind: its columns.
      runs: the oldest first.
      files: storage of the parts, which are opened on demand.
    """

    def __init__(self, kind: TableKind, runs: Sequence[Run], files: Files) -> None:
        self.kind = kind
        self.runs = tuple(runs)
        self.files = files

    def contains(self, ids: Sequence[bytes]) -> list[bool]:
        """Return whether each id is in the table."""
        members = [False] * len(ids)
        for _, indices, _ in self._find(ids):
            for index in indices.tolist():
                members[index] = True
        return members

    def get(self, ids: Sequence[bytes]) -> list[dict[str, Any] | None]:
        """Return the values of each id, None for an id that is not in the table."""
        values: list[dict[str, Any] | None] = [None] * len(ids)
        for rows, indices, positions in self._find(ids):
            for index, position in zip(indices.tolist(), positions.tolist(), strict=True):
                values[index] = rows.row(position)
        return values

    def _find(self, ids: Sequence[bytes]) -> Iterator[tuple[Rows, np.ndarray, np.ndarray]]:
        """Yield (rows, indices of the ``ids`` found there first, their positions)."""
        import numpy as np

        if not ids:
            return
        high, low = _words(ids)
        pending = np.argsort(high, kind="stable")  # sorted look-ups touch few pages, and each once
        for run in reversed(self.runs):
            hits: list[np.ndarray] = []
            keys = high[pending]
            firsts, lasts = run.bounds
            starts = np.searchsorted(keys, firsts)
            ends = np.searchsorted(keys, lasts, side="right")
            for part, start, end in zip(run.parts, starts.tolist(), ends.tolist(), strict=True):
                if start == end:
                    continue
                rows = self.files.open(part)
                indices = pending[start:end]
                # Most look-ups are for new ids, so most parts have no match: this must be fast.
                positions = np.searchsorted(rows.high, keys[start:end])  # in range: no key exceeds the part's last
                if not (rows.high[positions] == keys[start:end]).any():
                    continue
                hit, positions = _locate(rows, high[indices], low[indices], positions)
                if hit.any():
                    yield rows, indices[hit], positions[hit]
                    hits.append(indices[hit])
            if hits:
                pending = pending[~np.isin(pending, np.concatenate(hits))]
                if not len(pending):
                    return

    def starting(self, half: bytes, most: int) -> list[dict[str, Any]]:
        """Return the values of at most ``most`` ids that start with these 64 bits, the newest runs first.

        An id that several runs hold may appear several times.
        """
        import numpy as np

        key = np.uint64(int.from_bytes(half))
        values: list[dict[str, Any]] = []
        for run in reversed(self.runs):
            for part in run.parts:
                if len(values) < most and part.first <= key <= part.last:
                    rows = self.files.open(part)
                    start = int(np.searchsorted(rows.high, key))
                    end = int(np.searchsorted(rows.high, key, side="right"))
                    values += [rows.row(position) for position in range(start, min(end, start + most - len(values)))]
        return values

    def scan(self) -> Iterator[Rows]:
        """Yield all rows, each id once, without removed ones; one range of ids at a time."""
        for rows in _merge(self.kind, self.runs, self.files, drop=True):
            if len(rows):
                yield rows

    def with_rows(self, rows: Rows) -> IdTable:
        """Return the table with newer rows, as a run of level 0."""
        if not len(rows):
            return self
        return IdTable(self.kind, [*self.runs, Run(0, (self.files.write(rows),))], self.files)

    def merged(self) -> Generator[None, None, IdTable]:
        """Merge runs until few are left; yield after each part that is written, return the table."""
        runs = list(self.runs)
        while len(runs) >= TIER and len({run.level for run in runs[-TIER:]}) == 1:
            old = runs[-TIER:]
            runs = runs[:-TIER]
            parts: list[Part] = []
            for rows in _merge(self.kind, old, self.files, drop=not runs):
                if len(rows):
                    parts.append(self.files.write(rows))
                yield
            if parts:
                runs.append(Run(old[0].level + 1, tuple(parts)))
        return IdTable(self.kind, runs, self.files)


def completed(steps: Generator[None, None, Result]) -> Result:
    """Run a generator to its end; return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast("Result", end.value)


def _locate(rows: Rows, high: np.ndarray, low: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which of the ids are among the rows, and where, given the positions of their first halves."""
    import numpy as np

    hit = np.zeros(len(high), bool)
    while True:  # one pass, unless two ids share their first half
        inside = positions < len(rows)
        bounded = np.where(inside, positions, 0)
        same = inside & (rows.high[bounded] == high)
        hit |= same & (rows.low[bounded] == low)
        if not (pending := same & ~hit).any():
            return hit, positions
        positions = positions + pending


def _merge(kind: TableKind, runs: Sequence[Run], files: Files, *, drop: bool) -> Iterator[Rows]:
    """Yield the rows of runs, the newest of each id, by equal ranges of ids.

    Args:
      drop: whether no older run exists, so that rows of removed ids can be dropped.
    """
    import numpy as np

    pieces = max(1, -(-sum(run.rows for run in runs) // PART_ROWS))
    for piece in range(pieces):
        first = piece * _SPAN // pieces
        last = (piece + 1) * _SPAN // pieces - 1
        slices: list[Rows] = []
        for run in runs:
            for part in run.parts:
                if part.last < first or part.first > last:
                    continue
                rows = files.open(part)
                start = int(np.searchsorted(rows.high, np.uint64(first)))
                end = int(np.searchsorted(rows.high, np.uint64(last), side="right"))
                slices.append(rows.slice(start, end))
        yield _newest(kind, slices, drop=drop)


def _newest(kind: TableKind, slices: Iterable[Rows], *, drop: bool) -> Rows:
    """Merge rows, the oldest first, into one; the newest row of each id wins."""
    import numpy as np
    import pyarrow as pa

    rows = [part for part in slices if len(part)]
    if not rows:
        return kind.rows([], {name: [] for name in kind.columns})
    high = np.concatenate([part.high for part in rows])
    low = np.concatenate([part.low for part in rows])
    values = {name: pa.concat_arrays([part.values[name] for part in rows]) for name in kind.columns}
    order = np.argsort(high, kind="stable")  # merges sorted chunks; the older stays before the newer
    high = high[order]
    low = low[order]
    same = high[1:] == high[:-1]
    if (low[1:] != low[:-1])[same].any():  # two ids with the same first half: practically never
        stable = np.lexsort((low, high))
        order = order[stable]
        high = high[stable]
        low = low[stable]
        same = high[1:] == high[:-1]
    keep = np.append(~(same & (low[1:] == low[:-1])), True)
    if drop and kind.is_removed is not None:
        merged = {name: column.take(pa.array(order)) for name, column in values.items()}
        keep &= ~kind.is_removed(merged)
    order = order[keep]
    return Rows(high[keep], low[keep], {name: column.take(pa.array(order)) for name, column in values.items()})
