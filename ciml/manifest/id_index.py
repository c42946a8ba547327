"""A sorted index of ids on disk, for the ids that a manifest keeps forever. `ciml.manifest.id_maps` queries it.

The index is a log-structured merge tree (LSM tree) with tiered merging. Its *sorted runs* have nothing to do with CI
runs.

An id is a fingerprint of 128 bits, with values if its table has columns. A table is a list of sorted runs, the oldest
first; the newest sorted run that holds an id wins. A sorted run is a list of parts: memory-mapped Arrow files of about
a million rows, each with a range of fingerprints (`PartFiles`). Eight sorted runs of a level are merged into one of the
next level. So there are few sorted runs, and each id is written once per level.

Fingerprints are distributed evenly. So sorted runs are split and merged by equal ranges, with one range in memory at a
time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Container, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import msgspec

from ciml.errors import EngineError, IntegrityError
from ciml.storage import LocalStore, S3Store, Store
from ciml.storage.local import replace_file

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

Result = TypeVar("Result")
#: A task in steps: each yield ends a step, after which the caller may pause the task, and the task returns its result.
Steps = Generator[None, None, Result]
#: Number of sorted runs of one level that are merged into one of the next level.
TIER = 8
#: Target number of rows of a part.
PART_ROWS = 900_000
_SPAN = 1 << 64


def fingerprint(*texts: str) -> bytes:
    """Return a fingerprint of 128 bits: among 10^9 ids the probability of a collision is below 10^-20."""
    return hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Rows:
    """Ids and their values, sorted by id, each once.

    Attributes:
      batch: the columns ``high`` and ``low``, the halves of each id, and the columns of the table.
      high: the first 64 bits of each id, shape (n,), uint64; a view of the batch.
      low: the last 64 bits, the same shape.
    """

    __slots__ = ("__weakref__", "batch", "high", "low")

    def __init__(self, batch: pa.RecordBatch) -> None:
        import numpy as np

        self.batch = batch
        self.high = np.from_dlpack(batch.column("high"))
        self.low = np.from_dlpack(batch.column("low"))

    def __len__(self) -> int:
        return len(self.high)

    def row(self, position: int) -> dict[str, Any]:
        """Return the values of one row."""
        return {name: self.batch.column(name)[position].as_py() for name in self.batch.schema.names[2:]}


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of rows: its path in the store, the sha256 and size of its bytes, and its first and last 64 bits."""

    path: str
    sha256: str
    size: int
    rows: int
    first: int
    last: int


class SortedRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
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

        firsts = np.array([part.first for part in self.parts], np.uint64)
        return firsts, np.array([part.last for part in self.parts], np.uint64)


@dataclass(frozen=True)
class TableKind:
    """The columns of a table next to its ids.

    Attributes:
      columns: name and Arrow type, as an alias of `pyarrow.type_for_alias`.
      is_removed: for tables with removal: returns which rows are removal markers, by their values. A marker stands for
        a removed id until a merge drops it.
    """

    columns: dict[str, str] = field(default_factory=dict)
    is_removed: Callable[[pa.RecordBatch], np.ndarray] | None = None

    def rows(self, ids: Sequence[bytes], values: Mapping[str, Sequence[Any]]) -> Rows:
        """Build rows from unique ids in any order, and a list for each column."""
        import numpy as np
        import pyarrow as pa

        high, low = _words(ids)
        columns = {name: pa.array(values[name], pa.type_for_alias(alias)) for name, alias in self.columns.items()}
        batch = pa.RecordBatch.from_pydict({"high": high, "low": low, **columns})
        return Rows(batch.take(pa.array(np.lexsort((low, high)))))


def _words(ids: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    words = np.frombuffer(b"".join(ids), ">u8").reshape(-1, 2).astype(np.uint64)
    return words[:, 0].copy(), words[:, 1].copy()


class _Matches(NamedTuple):
    """Ids that were found in a part: its rows, the indices of the ids, and their positions in the rows."""

    rows: Rows
    indices: np.ndarray
    positions: np.ndarray


class IdTable:
    """A table as of one checkpoint. Immutable; `with_rows` and `merged` return new tables.

    Args:
      kind: its columns.
      runs: its sorted runs, the oldest first.
      files: storage of the parts, which are opened on demand.
    """

    def __init__(self, kind: TableKind, runs: Sequence[SortedRun], files: PartFiles) -> None:
        self.kind = kind
        self.runs = tuple(runs)
        self.files = files

    def get(self, ids: Sequence[bytes]) -> list[dict[str, Any] | None]:
        """Return the values of each id, None for an id that is not in the table.

        The values of a removed id are those of its removal marker (`TableKind.is_removed`), or None once it is dropped.
        """
        values: list[dict[str, Any] | None] = [None] * len(ids)
        for matches in self._find(ids):
            for index, position in zip(matches.indices.tolist(), matches.positions.tolist(), strict=True):
                values[index] = matches.rows.row(position)
        return values

    def _find(self, ids: Sequence[bytes]) -> Iterator[_Matches]:
        """Yield the position of each id in the newest sorted run that holds it."""
        import numpy as np

        if not ids:
            return
        high, low = _words(ids)
        pending = np.argsort(high, kind="stable")  # sorted look-ups touch few pages, and each once
        for run in reversed(self.runs):
            matched: list[np.ndarray] = []
            keys = high[pending]
            firsts, lasts = run.bounds
            starts = np.searchsorted(keys, firsts)
            ends = np.searchsorted(keys, lasts, side="right")
            for part, start, end in zip(run.parts, starts.tolist(), ends.tolist(), strict=True):
                if start == end:
                    continue
                rows = self.files.open(part)
                indices = pending[start:end]
                is_match, positions = _locate(rows, high[indices], low[indices])
                if is_match.any():
                    yield _Matches(rows, indices[is_match], positions[is_match])
                    matched.append(indices[is_match])
            if matched:
                pending = pending[~np.isin(pending, np.concatenate(matched))]

    def starting(self, half: bytes, most: int) -> list[dict[str, Any]]:
        """Return the values of at most ``most`` ids that start with these 64 bits, the newest sorted runs first.

        An id that several sorted runs hold may appear several times, and removal markers are returned, too.
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
        for rows in _merge(self.kind, self.runs, self.files, drop_removed=True):
            if len(rows):
                yield rows

    def with_rows(self, rows: Rows) -> IdTable:
        """Return the table with newer rows, as a sorted run of level 0."""
        if not len(rows):
            return self
        return IdTable(self.kind, [*self.runs, SortedRun(0, (self.files.write(rows),))], self.files)

    def merged(self) -> Steps[IdTable]:
        """Merge sorted runs until few are left; yield after each part that is written, return the table."""
        runs = list(self.runs)
        while len(runs) >= TIER and len({run.level for run in runs[-TIER:]}) == 1:
            merging = runs[-TIER:]
            runs = runs[:-TIER]
            has_older_runs = bool(runs)
            parts: list[Part] = []
            for rows in _merge(self.kind, merging, self.files, drop_removed=not has_older_runs):
                if len(rows):
                    parts.append(self.files.write(rows))
                yield
            if parts:
                runs.append(SortedRun(merging[0].level + 1, tuple(parts)))
        return IdTable(self.kind, runs, self.files)


def run_steps(steps: Steps[Result]) -> Result:
    """Run all steps of a task without a pause; return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast("Result", end.value)


def _locate(rows: Rows, high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which ids are among the rows of a part, and their positions there.

    The first half of no id exceeds the last one of the part.
    """
    import numpy as np

    positions = np.searchsorted(rows.high, high)
    is_match = np.zeros(len(high), bool)
    pending = rows.high[positions] == high
    # Most look-ups are for new ids: the loop does not start. It ends after one pass, unless ids share their first half.
    while pending.any():
        inside = positions < len(rows)
        bounded = np.where(inside, positions, 0)
        is_same_half = inside & (rows.high[bounded] == high)
        is_match |= is_same_half & (rows.low[bounded] == low)
        pending = is_same_half & ~is_match
        positions = positions + pending
    return is_match, positions


def _merge(kind: TableKind, runs: Sequence[SortedRun], files: PartFiles, *, drop_removed: bool) -> Iterator[Rows]:
    """Yield the rows of sorted runs, the newest of each id, by equal ranges of ids.

    Args:
      drop_removed: drop removal markers. An older sorted run may still hold a removed id, so a marker is needed until
        no older sorted run exists.
    """
    import numpy as np

    pieces = max(1, -(-sum(run.rows for run in runs) // PART_ROWS))
    for piece in range(pieces):
        first = piece * _SPAN // pieces
        last = (piece + 1) * _SPAN // pieces - 1
        slices: list[pa.RecordBatch] = []
        for run in runs:
            for part in run.parts:
                if part.last < first or part.first > last:
                    continue
                rows = files.open(part)
                start = int(np.searchsorted(rows.high, np.uint64(first)))
                end = int(np.searchsorted(rows.high, np.uint64(last), side="right"))
                if start < end:
                    slices.append(rows.batch.slice(start, end - start))
        yield _newest(kind, slices, drop_removed=drop_removed)


def _newest(kind: TableKind, slices: Sequence[pa.RecordBatch], *, drop_removed: bool) -> Rows:
    """Merge rows, the oldest first, into one; the newest row of each id wins."""
    import numpy as np
    import pyarrow as pa

    if not slices:
        return kind.rows([], {name: [] for name in kind.columns})
    rows = Rows(pa.concat_batches(slices))
    order = np.argsort(rows.high, kind="stable")  # merges sorted chunks; the older row remains before the newer
    high = rows.high[order]
    low = rows.low[order]
    same = high[1:] == high[:-1]
    if (low[1:] != low[:-1])[same].any():  # two ids with the same first half: practically never
        order = np.lexsort((rows.low, rows.high))
        high = rows.high[order]
        low = rows.low[order]
        same = high[1:] == high[:-1]
    keep = np.append(~(same & (low[1:] == low[:-1])), True)
    newest = rows.batch.take(pa.array(order[keep]))
    if drop_removed and kind.is_removed is not None:
        newest = newest.filter(pa.array(~kind.is_removed(newest)))
    return Rows(newest)


class IndexFileMissingError(EngineError):
    """A part does not exist or no longer exists: a newer checkpoint replaced it, or it was lost."""


class PartFiles:
    """Parts in ``folder`` of a store. Each is opened once and remains open until it is released.

    A part is compared with its digest when it is opened. A local part is mapped in place. A part on S3 is fetched once
    into a cache folder that only its owner may enter, and mapped there. Parts of other stores are held in memory.

    Args:
      store: where the parts are.
      folder: their folder there.
      cache: the cache folder for S3; by default one for the store in the user's own.
    """

    def __init__(self, store: Store, folder: str, cache: Path | None = None) -> None:
        self._store = store
        self._folder = folder
        self._cache = cache
        self._open: dict[str, Rows] = {}

    def write(self, rows: Rows) -> Part:
        """Write rows as a part; equal rows give the same part."""
        import pyarrow as pa

        out = pa.BufferOutputStream()
        with pa.ipc.new_file(out, rows.batch.schema) as writer:
            writer.write_batch(rows.batch)
        data = out.getvalue().to_pybytes()
        digest = hashlib.sha256(data).hexdigest()
        path = f"{self._folder}/{digest[:32]}.arrow"
        self._store.create(path, data)
        return Part(path, digest, len(data), len(rows), int(rows.high[0]), int(rows.high[-1]))

    def open(self, part: Part) -> Rows:
        """Return the rows of a part.

        Raises:
          IndexFileMissingError: the part does not exist or no longer exists.
          IntegrityError: it is damaged.
        """
        import pyarrow as pa

        if (rows_of_part := self._open.get(part.path)) is not None:
            return rows_of_part
        where = self._store.url(part.path)
        try:
            with self._source(part) as source, pa.ipc.open_file(source) as reader:
                rows = Rows(reader.get_batch(0))
        except FileNotFoundError:
            raise IndexFileMissingError(f"{where} is missing; see docs/manifests.md") from None
        except (pa.ArrowException, ValueError, KeyError) as error:
            raise IntegrityError(f"{where} is not a part of an index: {error}") from None
        if len(rows) != part.rows:
            raise IntegrityError(f"{where} has {len(rows)} rows, expected {part.rows}")
        self._open[part.path] = rows
        return rows

    def release(self, used: Container[str]) -> None:
        """Close all parts except those at the paths ``used``, and remove them from the cache."""
        for path in list(self._open):  # a copy: another thread may open parts meanwhile
            if path not in used:
                self._open.pop(path, None)
        if isinstance(self._store, S3Store) and (cache := self._cache_folder()).is_dir():
            for file in cache.glob("*.arrow"):
                if f"{self._folder}/{file.name}" not in used:
                    file.unlink(missing_ok=True)  # existing mappings remain valid

    def check(self, part: Part) -> str | None:
        """Describe a fault of a part's bytes in the store; None if there is none."""
        try:
            self._bytes(part)
        except FileNotFoundError:
            return f"{self._store.url(part.path)} is missing"
        except IntegrityError as error:
            return str(error)
        return None

    def _source(self, part: Part) -> pa.NativeFile:
        import pyarrow as pa

        if isinstance(self._store, LocalStore):
            return _mapped(Path(self._store.url(part.path)), part)
        if not isinstance(self._store, S3Store):
            return pa.BufferReader(self._bytes(part))
        file = self._cache_folder() / part.path.rsplit("/", 1)[1]
        with suppress(FileNotFoundError, IntegrityError):
            return _mapped(file, part)
        self._fetch(part, file)
        return _mapped(file, part)

    def _bytes(self, part: Part) -> bytes:
        data = self._store.read(part.path)
        if len(data) != part.size or hashlib.sha256(data).hexdigest() != part.sha256:
            raise IntegrityError(f"{self._store.url(part.path)} differs from its digest; see docs/manifests.md")
        return data

    def _fetch(self, part: Part, file: Path) -> None:
        data = self._bytes(part)
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.chmod(file.parent, 0o700)
            replace_file(file, data)
        except OSError as error:
            raise EngineError(f"cannot write {file}: {error.strerror or error}") from error

    def _cache_folder(self) -> Path:
        if self._cache is None:
            from platformdirs import user_cache_path

            name = hashlib.sha256(f"{self._store.root}/{self._folder}".encode()).hexdigest()[:16]
            self._cache = user_cache_path("ciml") / "index" / name
        return self._cache


def _mapped(file: Path, part: Part) -> pa.NativeFile:
    import pyarrow as pa

    try:
        # The digest is computed by reading, not from the mapping: the pages that a mapping touches would count as
        # memory of this process.
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if file.stat().st_size != part.size or digest != part.sha256:
            raise IntegrityError(f"{file} differs from its digest; see docs/manifests.md")
        return pa.memory_map(str(file))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise EngineError(f"cannot read {file}: {error}") from error
