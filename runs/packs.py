"""Packs: the telemetry of many runs of one job and day in one Parquet file; how it is opened and read.

A pack has one schema, its runs follow one another, and a row group ends where a run ends. The names and positions of
the runs are in the file's key-value metadata, as JSON under the key ``ciml.pack``. A run's *number* is its index there.
The last columns, ``run_id`` and ``digest``, name for other programs the run of each row; packs of older versions lack
them. So any program reads a pack as one table, and ciml reads exactly the original tables of the runs.

`ciml.runs.packing` writes packs. `ciml.runs.reader` finds the pack of a run.
"""

from __future__ import annotations

import hashlib
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ciml.errors import IntegrityError
from ciml.events.records import Record
from ciml.runs import arrow
from ciml.runs.pack_index import PackFile
from ciml.runs.writer import damaged, unreadable
from ciml.storage import LocalStore, Store

#: Key of the names and positions of the runs, in the key-value metadata of a pack.
DESCRIPTION = b"ciml.pack"
#: Key of the CRC-32 of each column chunk, 8 hex digits each, row group after row group. Its value begins with the key.
CHECKSUMS = b"ciml.crc32"
#: The last columns of a pack, which are not telemetry: of each row the run id, and the digest of the run's telemetry. A
#: run may have two logs (`other_log`), which only the digest distinguishes.
RUN_COLUMNS = ("run_id", "digest")
#: Number of rows that are read together.
BATCH_ROWS = 200_000
_MAGIC = b"PAR1"
# Ranges closer than this are read as one: about the bytes transferred in the time of one more request.
_GAP = 64 << 10
_GAP_REMOTE = 1 << 20

T = TypeVar("T")
Metadata = dict[bytes, bytes] | None


def open_pack(store: Store, file: PackFile) -> OpenPack:
    """Read a pack's description. Raises `FileNotFoundError`, `IntegrityError`."""
    return OpenPack(file, store.read_range(file.path, file.size - file.footer, file.footer))


def prove_pack(store: Store, file: PackFile) -> str:
    """Check a pack's bytes against its name: return "" if they match, else one line."""
    try:
        data = store.read(file.path)
    except FileNotFoundError:
        return f"{store.url(file.path)} is in its manifest but does not exist"
    return "" if _has_name(file, data) else f"{store.url(file.path)} differs from the digest in its name"


def _has_name(file: PackFile, data: bytes) -> bool:
    return len(data) == file.size and pack_digest(data) == file.path[-40:-8]


def pack_digest(data: bytes) -> str:
    """Return the digest in the name of a pack, and of its footer: half of the sha256 as hex."""
    return hashlib.sha256(data).hexdigest()[:32]


def batches(items: Iterable[T], rows_of: Callable[[T], int], rows: int = BATCH_ROWS) -> Iterator[list[T]]:
    """Yield items in batches: each ends with the item that brings it to ``rows`` rows."""
    batch: list[T] = []
    total = 0
    for item in items:
        batch.append(item)
        total += rows_of(item)
        if total >= rows:
            yield batch
            batch = []
            total = 0
    if batch:
        yield batch


class PackedRun(Record, frozen=True, gc=False):
    """The position of a run in a pack: ``rows`` rows from ``first`` on, and the metadata of its own table."""

    name: str
    digest: str
    first: int
    rows: int
    metadata: Metadata


class _JoinedRuns(NamedTuple):
    """A table that holds runs, perhaps among the rows of others, without the metadata of their own tables.

    Attributes:
      table: the rows.
      first_rows: first row of each run in the table, by the run's number, in order.
    """

    table: pa.Table
    first_rows: dict[int, int]


class OpenPack:
    """The description of a pack: its row groups, and the runs in them. Small enough to cache.

    Attributes:
      file: the pack as described in the manifest.
      runs: its runs, in order.
      number: the index of each run in ``runs``, by name.
      schema, names: its columns of telemetry and their names, in order; without `RUN_COLUMNS`.
      renewable: whether an older version wrote it without `RUN_COLUMNS`, and no column of telemetry has such a name.
      format: as in docs/compatibility.md: 1 has no checksums, 2 has checksums of its column chunks, 3 has also
        `RUN_COLUMNS`.
    """

    def __init__(self, file: PackFile, footer: bytes) -> None:
        """Args:
          file: the pack as described in the manifest.
          footer: the file's last ``file.footer`` bytes.

        Raises:
          IntegrityError: the footer does not belong to the file.
        """
        self.file = file
        if pack_digest(footer) != file.footer_digest:  # Parquet's reader may crash on a damaged one
            raise IntegrityError(f"{file.path} differs from the digest in its manifest; restore a backup")
        try:
            parquet = pq.ParquetFile(pa.BufferReader(_MAGIC + footer))
            self.metadata = parquet.metadata
            # Not by `metadata.schema`: the two form a cycle, which keeps the footer until a garbage collection.
            stored_schema: pa.Schema = parquet.schema_arrow.remove_metadata()
            entries = self.metadata.metadata
            description = orjson.loads(entries[DESCRIPTION])
            added = len(description.get("run_columns", ()))  # `RUN_COLUMNS` are the last ones
            self.schema = pa.schema([stored_schema.field(index) for index in range(len(stored_schema) - added)])
            self.runs = _decode_runs(description)
            self._checksums = _decode_checksums(entries.get(CHECKSUMS, b""))
        except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
            raise IntegrityError(f"{file.path} cannot be read as a pack: {error!s:.200}") from None
        if self.metadata.num_rows != file.rows or len(self.runs) != file.runs:
            raise IntegrityError(
                f"{file.path} has {self.metadata.num_rows} rows in {len(self.runs)} runs, "
                "which differs from its manifest"
            )
        if self._checksums and len(self._checksums) != self.metadata.num_row_groups * self.metadata.num_columns:
            raise IntegrityError(f"{file.path} lacks checksums for some column chunks")
        self.format: Literal["1", "2", "3"] = (
            "1" if not self._checksums else "3" if "run_columns" in description else "2"
        )
        self.number = {run.name: number for number, run in enumerate(self.runs)}
        self.names: tuple[str, ...] = tuple(self.schema.names)
        self.renewable = not added and set(RUN_COLUMNS).isdisjoint(self.names)
        sizes = (self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups))
        #: The first row of each row group, and the number of all rows.
        self._group_starts = list(accumulate(sizes, initial=0))

    def batches(self) -> Iterator[list[int]]:
        """Yield the numbers of the runs that are read together."""
        return batches(range(len(self.runs)), lambda number: self.runs[number].rows)

    def read(self, store: Store, numbers: Iterable[int], columns: Sequence[str] | None) -> dict[int, pa.Table]:
        """Read runs by their number together: only the row groups and columns that they need.

        Raises:
          FileNotFoundError: the pack does not exist (any more).
          IntegrityError: it cannot be read.
        """
        return self._divide(self._fetch(store, numbers, columns))

    def read_joined(self, store: Store, numbers: Iterable[int], columns: Sequence[str]) -> pa.Table:
        """Read runs into one table, in the order of the pack, without the metadata of their own tables.

        Raises as `read`.
        """
        joined = self._fetch(store, numbers, columns)
        rows = [self.runs[number].rows for number in joined.first_rows]
        if sum(rows) == joined.table.num_rows:
            return joined.table
        slices: list[tuple[int, int]] = []  # (begin, end); adjacent runs share one
        for begin, count in zip(joined.first_rows.values(), rows, strict=True):
            end = begin + count
            if slices and slices[-1][1] == begin:
                begin = slices.pop()[0]
            slices.append((begin, end))
        return pa.concat_tables([joined.table.slice(begin, end - begin) for begin, end in slices])

    def decode(self, data: bytes, numbers: Iterable[int]) -> dict[int, pa.Table]:
        """Return runs by their number, from the bytes of the pack. Raises `pyarrow.ArrowException`, `OSError`."""
        ordered = sorted(numbers)
        return self._divide(self._load(pa.BufferReader(data), ordered, self._groups(ordered), None))

    def _fetch(self, store: Store, numbers: Iterable[int], columns: Sequence[str] | None) -> _JoinedRuns:
        """Read only the needed parts of the pack, and check them."""
        ordered = sorted(numbers)
        groups = self._groups(ordered)
        gap = _GAP if isinstance(store, LocalStore) else _GAP_REMOTE
        path = self.file.path
        checksums = self._known_checksums(store)
        file = np.zeros(self.file.size, np.uint8)  # takes memory only for the parts that are filled in
        for chunks in _adjacent(sorted(column_chunks(self.metadata, groups, self._indices(columns))), gap):
            begin = chunks[0].start
            data = store.read_range(path, begin, chunks[-1].end - begin)
            view = memoryview(data)
            for start, end, number in chunks:
                # Parquet's page checksums do not cover the pages' headers: each column chunk is checked as a whole.
                if zlib.crc32(view[start - begin : end - begin]) != checksums[number]:
                    raise damaged(store.url(path))
            file[begin : begin + len(data)] = np.frombuffer(data, np.uint8)
        try:
            return self._load(pa.BufferReader(pa.py_buffer(file)), ordered, groups, columns)
        except (pa.ArrowException, OSError) as error:
            raise unreadable(store.url(path), error) from None

    def _indices(self, columns: Sequence[str] | None) -> Sequence[int]:
        """Return the indices of columns in the file; all of them for None, because a checksum covers all columns."""
        if columns is None:
            return range(self.metadata.num_columns)
        return [index for index, name in enumerate(self.names) if name in columns]

    def _known_checksums(self, store: Store) -> Sequence[int]:
        """Return the pack's checksums; for a pack of an older version compute them, once its bytes match its name."""
        if not self._checksums:
            data = store.read(self.file.path)
            if not _has_name(self.file, data):
                raise damaged(store.url(self.file.path))
            self._checksums = chunk_checksums(self.metadata, data)
        return self._checksums

    def _load(
        self, source: pa.NativeFile, numbers: Sequence[int], groups: Sequence[int], columns: Sequence[str] | None
    ) -> _JoinedRuns:
        """Read row groups as one table.

        Args:
          source: the pack, or a file with the parts of it that are needed.
          numbers: of the runs, in order.
          groups: the row groups that hold them, in order.
          columns: only these, in this order; all by default.
        """
        names = [name for name in (self.names if columns is None else columns) if name in self.names]
        if not groups:
            return _JoinedRuns(arrow.empty_table(self.schema).select(names), dict.fromkeys(numbers, 0))
        parquet = pq.ParquetFile(source, metadata=self.metadata, pre_buffer=False, page_checksum_verification=True)
        table = parquet.read_row_groups(groups, columns=names, use_threads=False).select(names)
        starts = self._group_starts
        sizes = (starts[group + 1] - starts[group] for group in groups)
        # By how much a row of a group comes earlier in the table than in the pack.
        shifts = {
            group: starts[group] - begin for group, begin in zip(groups, accumulate(sizes, initial=0), strict=False)
        }
        first_rows: dict[int, int] = {}
        for number in numbers:
            run = self.runs[number]
            first_rows[number] = run.first - shifts[self._group(run)] if run.rows else 0
        rows = [self.runs[number].rows for number in numbers]
        # Slices keep the whole row groups in memory, which is fine while most of them is requested.
        if names and 2 * sum(rows) < table.num_rows:
            slices = [table.slice(first, count) for first, count in zip(first_rows.values(), rows, strict=True)]
            # A copy, even of one slice. `Table.take` would import pyarrow.compute.
            table = pa.concat_tables([*slices, table.slice(0, 0)]).combine_chunks()
            first_rows = dict(zip(numbers, accumulate(rows, initial=0), strict=False))
        return _JoinedRuns(table, first_rows)

    def _divide(self, joined: _JoinedRuns) -> dict[int, pa.Table]:
        """Return the tables of runs by number, with their own metadata."""
        return {
            number: joined.table.slice(first, self.runs[number].rows).replace_schema_metadata(
                self.runs[number].metadata
            )
            for number, first in joined.first_rows.items()
        }

    def _groups(self, numbers: Iterable[int]) -> list[int]:
        """Return the row groups that hold runs, in order."""
        return sorted({self._group(self.runs[number]) for number in numbers if self.runs[number].rows})

    def _group(self, run: PackedRun) -> int:
        """Return the row group that holds a run with rows."""
        return bisect_right(self._group_starts, run.first) - 1


class ColumnChunk(NamedTuple):
    """A column chunk of a pack: bytes ``start`` to ``end``, and its number in the pack."""

    start: int
    end: int
    number: int


def column_chunks(metadata: pq.FileMetaData, groups: Iterable[int], columns: Sequence[int]) -> Iterator[ColumnChunk]:
    """Yield the chunks of columns, given by their indices, in row groups."""
    for group in groups:
        row_group = metadata.row_group(group)
        for column in columns:
            chunk = row_group.column(column)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            yield ColumnChunk(start, start + chunk.total_compressed_size, group * metadata.num_columns + column)


def chunk_checksums(metadata: pq.FileMetaData, data: bytes) -> list[int]:
    """Return the CRC-32 of each column chunk of a pack, row group after row group."""
    view = memoryview(data)
    chunks = column_chunks(metadata, range(metadata.num_row_groups), range(metadata.num_columns))
    return [zlib.crc32(view[chunk.start : chunk.end]) for chunk in chunks]


def _adjacent(chunks: Iterable[ColumnChunk], gap: int) -> list[list[ColumnChunk]]:
    """Divide chunks, in order, into those that are read together: the gaps between them have at most ``gap`` bytes."""
    ranges: list[list[ColumnChunk]] = []
    for chunk in chunks:
        if ranges and chunk.start <= ranges[-1][-1].end + gap:
            ranges[-1].append(chunk)
        else:
            ranges.append([chunk])
    return ranges


def _decode_runs(description: Mapping[str, Any]) -> list[PackedRun]:
    """Return the runs in a pack's description, where runs with equal metadata share its index."""
    metadata: list[Metadata] = [
        None if entries is None else {key.encode("latin-1"): value.encode("latin-1") for key, value in entries}
        for entries in description["metadata"]
    ]
    return [
        PackedRun(name, digest, first, rows, metadata[index])
        for name, digest, first, rows, index in description["runs"]
    ]


def _decode_checksums(value: bytes) -> list[int]:
    digits = value[len(CHECKSUMS) + 1 :]
    return [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]
