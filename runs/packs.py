"""Packs: many runs of one job and day in one Parquet file, written, opened and read.

A pack has one schema, its runs follow one another, and a row group ends where a run ends. The names and positions of
the runs are in the file's key-value metadata, as JSON under the key ``ciml.pack``. The last columns, ``run_id`` and
``digest``, say for other programs whose samples a row holds; packs of older versions lack them. So any program reads a
pack as one table, and ciml reads exactly the original tables of the runs.
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ciml.digest import canonical_json, sha256_json, telemetry_digest
from ciml.errors import IntegrityError
from ciml.events.records import Record
from ciml.runs import arrow
from ciml.runs.pack_index import PACKS, PackFile, run_of
from ciml.runs.writer import damaged, unreadable
from ciml.storage import LocalStore, Store
from ciml.telemetry import TIME

_KEY = b"ciml.pack"
_CHECKSUMS = b"ciml.crc32"
_MAGIC = b"PAR1"
#: The last columns of a pack, which are no telemetry: of each row the run id, and the digest of the run's telemetry. A
#: run may have two logs (`other_log`), which only the digest distinguishes.
RUN_COLUMNS = ("run_id", "digest")
_TEXT = pa.dictionary(pa.int32(), pa.string())
#: A row group ends with the run that reaches this size: it is read for one run, and held while writing.
GROUP_ROWS = 32_768
PACK_RUNS = 5_000
# Ranges closer than this are read as one: about the bytes transferred in the time of one more request.
_GAP = 64 << 10
_GAP_REMOTE = 1 << 20

#: Number of rows that are read together.
BATCH_ROWS = 200_000

T = TypeVar("T")
Metadata = dict[bytes, bytes] | None


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


def columns_digest(schema: pa.Schema) -> str:
    """Return the digest that runs of one pack share: of the names, types and order of their columns."""
    return sha256_json([[field.name, str(field.type), field.nullable] for field in schema])[:16]


class PackedRun(Record, frozen=True, gc=False):
    """The position of a run in a pack: ``rows`` rows from ``first`` on, and the metadata of its own table."""

    name: str
    digest: str
    first: int
    rows: int
    metadata: Metadata


class _Chunk(NamedTuple):
    """A column chunk of a pack: bytes ``start`` to ``end``, and its number in the pack."""

    start: int
    end: int
    number: int


def _chunks(metadata: pq.FileMetaData, groups: Iterable[int], columns: Iterable[int]) -> Iterator[_Chunk]:
    for group in groups:
        described = metadata.row_group(group)
        for column in columns:
            chunk = described.column(column)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            yield _Chunk(start, start + chunk.total_compressed_size, group * metadata.num_columns + column)


def _checksums(metadata: pq.FileMetaData, data: bytes) -> list[int]:
    """Return the CRC-32 of each column chunk, row group after row group."""
    view = memoryview(data)
    chunks = _chunks(metadata, range(metadata.num_row_groups), range(metadata.num_columns))
    return [zlib.crc32(view[chunk.start : chunk.end]) for chunk in chunks]


def _encode(checksums: Sequence[int]) -> bytes:
    return _CHECKSUMS + b"=" + b"".join(b"%08x" % checksum for checksum in checksums)


def _decode(value: bytes) -> list[int]:
    digits = value[len(_CHECKSUMS) + 1 :]
    return [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]


def _with_checksums(data: bytes) -> bytes:
    """Fill in the checksums of a pack's column chunks, which are known only after it is written."""
    checksums = _encode(_checksums(pq.ParquetFile(pa.BufferReader(data)).metadata, data))
    offset = data.rindex(_CHECKSUMS + b"=")
    return data[:offset] + checksums + data[offset + len(checksums) :]


class PackWriter:
    """A pack being written, in memory: its compressed bytes, and one uncompressed row group."""

    def __init__(self, folder: str, schema: pa.Schema) -> None:
        self.folder = folder
        self.columns = columns_digest(schema)
        self.runs: list[PackedRun] = []
        self.rows = 0
        self._schema = schema.remove_metadata()
        # Telemetry columns have a colon in their names, but nothing else prevents these names.
        self._added = () if set(RUN_COLUMNS) & set(schema.names) else RUN_COLUMNS
        self._stored = self._schema
        for name in self._added:
            self._stored = self._stored.append(pa.field(name, _TEXT))
        self._sink = io.BytesIO()
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._groups = 0
        # Telemetry repeats from run to run, which zstd compresses and a dictionary hides. Statistics of a pack are
        # never read, and the schema is not stored a second time in Arrow's own form.
        self._writer = pq.ParquetWriter(
            self._sink,
            self._stored,
            compression="zstd",
            use_dictionary=list(self._added) or False,
            column_encoding={TIME: "DELTA_BINARY_PACKED"} if TIME in self._schema.names else None,
            write_statistics=False,
            store_schema=False,
            write_page_checksum=True,
            version="2.6",
        )

    @property
    def size(self) -> int:
        """Bytes of the row groups so far."""
        return self._sink.tell()

    def add(self, name: str, digest: str, table: pa.Table) -> None:
        """Append a run with the columns of the pack."""
        self.runs.append(PackedRun(name, digest, self.rows, table.num_rows, table.schema.metadata))
        self.rows += table.num_rows
        self._waiting.append(table.replace_schema_metadata(None))
        self._waiting_rows += table.num_rows
        if self._waiting_rows >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting_rows:
            rows = _with_runs(pa.concat_tables(self._waiting), self.runs[-len(self._waiting) :], self._added)
            self._writer.write_table(rows, row_group_size=self._waiting_rows)
            self._groups += 1
        self._waiting = []
        self._waiting_rows = 0

    def finish(self) -> tuple[PackFile, bytes]:
        """Finish the pack, and verify that every run reads back unchanged. Return the pack and its bytes.

        Raises:
          IntegrityError: a run does not read back unchanged.
        """
        self._flush()
        noughts = _encode([0] * self._groups * len(self._stored))  # the last entry: see `_with_checksums`
        described = _describe(self.folder, self.runs, self._added)
        self._writer.add_key_value_metadata({_KEY: described, _CHECKSUMS: noughts})
        self._writer.close()
        data = _with_checksums(self._sink.getvalue())
        footer = int.from_bytes(data[-8:-4], "little") + 8
        path = f"{PACKS}/{self.folder}/{_head(data)}.parquet"
        pack = PackFile(path, len(data), footer, _head(data[-footer:]), self.rows, len(self.runs), self.columns)
        opened = OpenPack(pack, data[-footer:])
        for batch in opened.batches():
            for number, table in opened.divide(*opened.load(pa.BufferReader(data), batch, None)).items():
                run = opened.runs[number]
                same = table.schema.equals(self._schema) and telemetry_digest(run_of(run.name), table) == run.digest
                if not same or run.metadata != self.runs[number].metadata:
                    raise IntegrityError(f"{path}: {run.name} does not read back from the pack unchanged")
        return pack, data


def _with_runs(rows: pa.Table, runs: Sequence[PackedRun], names: Sequence[str]) -> pa.Table:
    """Append `RUN_COLUMNS` to the rows of these runs."""
    indices = arrow.numbers(np.repeat(np.arange(len(runs), dtype=np.int32), [run.rows for run in runs]))
    values = {"run_id": [run_of(run.name) for run in runs], "digest": [run.digest for run in runs]}
    for name in names:
        rows = rows.append_column(
            pa.field(name, _TEXT), pa.DictionaryArray.from_arrays(indices, arrow.texts(values[name]))
        )
    return rows


def _describe(folder: str, runs: Iterable[PackedRun], added: Sequence[str]) -> bytes:
    """Return the runs of a pack as JSON; shared metadata is stored once."""
    different: dict[str, int] = {}
    kinds: list[Any] = []
    encoded = []
    for run in runs:
        text = None if run.metadata is None else [[_text(k), _text(v)] for k, v in run.metadata.items()]
        key = json.dumps(text)
        if key not in different:
            different[key] = len(kinds)
            kinds.append(text)
        encoded.append([run.name, run.digest, run.first, run.rows, different[key]])
    return canonical_json({"folder": folder, "metadata": kinds, "runs": encoded, "run_columns": list(added)})


def _head(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _text(data: bytes) -> str:
    return data.decode("latin-1")  # reversible for any bytes


class OpenPack:
    """The description of a pack: its row groups, and the runs in them. Small enough to cache.

    Attributes:
      file: the pack as described in the manifest.
      runs: its runs, in order.
      number: index of each run in ``runs``, by name.
      schema, names: its columns of telemetry and their names, in order; without `RUN_COLUMNS`.
      renewable: whether it lacks `RUN_COLUMNS`, because an older version wrote it, and could have them.
      format: docs/compatibility.md; 3 names `RUN_COLUMNS`, 2 has checksums of its column chunks, 1 has none.
    """

    def __init__(self, file: PackFile, footer: bytes) -> None:
        """Args:
          file: the pack as described in the manifest.
          footer: the file's last ``file.footer`` bytes.

        Raises:
          IntegrityError: the footer does not belong to the file.
        """
        self.file = file
        if _head(footer) != file.footer_digest:  # Parquet's reader may crash on a damaged one
            raise IntegrityError(f"{file.path} differs from the digest in its manifest; restore a backup")
        try:
            described_by = pq.ParquetFile(pa.BufferReader(_MAGIC + footer))
            self.metadata = described_by.metadata
            # Not by `metadata.schema`: the two form a cycle, which keeps the footer until a garbage collection.
            schema: pa.Schema = described_by.schema_arrow.remove_metadata()
            described = orjson.loads(self.metadata.metadata[_KEY])
            added = len(described.get("run_columns", ()))  # the last ones
            self.schema = pa.schema([schema.field(index) for index in range(len(schema) - added)])
            self._checksums = _decode(self.metadata.metadata.get(_CHECKSUMS, b""))
            self.format: Literal["1", "2", "3"] = (
                "1" if not self._checksums else "3" if "run_columns" in described else "2"
            )
            kinds: list[Metadata] = [
                None if kind is None else {k.encode("latin-1"): v.encode("latin-1") for k, v in kind}
                for kind in described["metadata"]
            ]
            runs = [
                PackedRun(name, digest, first, rows, kinds[kind])
                for name, digest, first, rows, kind in described["runs"]
            ]
        except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
            raise IntegrityError(f"{file.path} cannot be read as a pack: {error!s:.200}") from None
        if self.metadata.num_rows != file.rows or len(runs) != file.runs:
            raise IntegrityError(
                f"{file.path} has {self.metadata.num_rows} rows in {len(runs)} runs, which differs from its manifest"
            )
        if self._checksums and len(self._checksums) != self.metadata.num_row_groups * self.metadata.num_columns:
            raise IntegrityError(f"{file.path} lacks checksums for some column chunks")
        self.runs = runs
        self.number = {run.name: number for number, run in enumerate(runs)}
        self.names: tuple[str, ...] = tuple(self.schema.names)
        self.renewable = not added and set(RUN_COLUMNS).isdisjoint(self.names)
        self._ends: list[int] = []
        for group in range(self.metadata.num_row_groups):
            self._ends.append((self._ends[-1] if self._ends else 0) + self.metadata.row_group(group).num_rows)

    def batches(self) -> Iterator[list[int]]:
        """Yield the numbers of the runs that are read together."""
        return batches(range(len(self.runs)), lambda number: self.runs[number].rows)

    def read(self, store: Store, numbers: Sequence[int], columns: Sequence[str] | None) -> dict[int, pa.Table]:
        """Read runs by their number in ``runs``, at once: only the row groups and columns that they need.

        Raises:
          FileNotFoundError: the pack does not exist (any more).
          IntegrityError: it cannot be read.
        """
        return self.divide(*self._fetch(store, numbers, columns))

    def read_joined(
        self, store: Store, numbers: Sequence[int], columns: Sequence[str]
    ) -> tuple[list[int], pa.Table, list[int]]:
        """Read runs into one table: return their numbers in the table's order, the table, and their rows.

        The table lacks the metadata of the runs' own tables. Raises as `read`.
        """
        table, starts = self._fetch(store, numbers, columns)
        rows = [self.runs[number].rows for number in starts]
        if sum(rows) < table.num_rows:
            parts: list[tuple[int, int]] = []  # (begin, end) of adjacent runs
            for begin, count in zip(starts.values(), rows, strict=True):
                is_adjacent = bool(parts) and parts[-1][1] == begin
                parts.append((parts.pop()[0] if is_adjacent else begin, begin + count))
            table = pa.concat_tables([table.slice(begin, end - begin) for begin, end in parts])
        return list(starts), table, rows

    def load(
        self, source: pa.NativeFile, numbers: Iterable[int], columns: Sequence[str] | None
    ) -> tuple[pa.Table, dict[int, int]]:
        """Return a table that holds runs, and the first row of each run in it, in order.

        Args:
          source: the pack, or a file with the parts of it that are needed.
          numbers: of the runs.
          columns: only these, in this order; all by default.
        """
        ordered = sorted(numbers)
        names = self.schema.names if columns is None else [name for name in columns if name in self.schema.names]
        groups = self._groups(ordered)
        if not groups:
            return arrow.empty_table(self.schema).select(names), dict.fromkeys(ordered, 0)
        parquet = pq.ParquetFile(source, metadata=self.metadata, pre_buffer=False, page_checksum_verification=True)
        table = parquet.read_row_groups(groups, columns=names, use_threads=False).select(names)
        begins = dict(zip(groups, accumulate(map(self._size, groups), initial=0), strict=False))
        starts: dict[int, int] = {}
        for number in ordered:
            run = self.runs[number]
            group = self._group(number)
            starts[number] = 0 if group is None else begins[group] + run.first - self._begin(group)
        rows = [self.runs[number].rows for number in ordered]
        # Slices keep the whole row groups in memory, which is fine while most of them is requested.
        if names and 2 * sum(rows) < table.num_rows:
            ranges = [np.arange(start, start + count) for start, count in zip(starts.values(), rows, strict=True)]
            table = table.take(arrow.numbers(np.concatenate(ranges)))
            starts = dict(zip(ordered, accumulate(rows, initial=0), strict=False))
        return table, starts

    def divide(self, table: pa.Table, starts: Mapping[int, int]) -> dict[int, pa.Table]:
        """Return the tables of runs by number, with their own metadata, from the result of `load`."""
        return {
            number: table.slice(start, self.runs[number].rows).replace_schema_metadata(self.runs[number].metadata)
            for number, start in starts.items()
        }

    def _groups(self, numbers: Iterable[int]) -> list[int]:
        return sorted({group for number in numbers if (group := self._group(number)) is not None})

    def _group(self, number: int) -> int | None:
        run = self.runs[number]
        return bisect_right(self._ends, run.first) if run.rows else None

    def _begin(self, group: int) -> int:
        return self._ends[group - 1] if group else 0

    def _size(self, group: int) -> int:
        return self._ends[group] - self._begin(group)

    def _fetch(
        self, store: Store, numbers: Sequence[int], columns: Sequence[str] | None
    ) -> tuple[pa.Table, dict[int, int]]:
        """Read only the needed parts of the pack; return the result of `load`.

        Parquet's page checksums do not cover the pages' headers: each column chunk is checked as a whole.
        """
        gap = _GAP if isinstance(store, LocalStore) else _GAP_REMOTE
        path = self.file.path
        indices: Iterable[int] = range(self.metadata.num_columns)  # `RUN_COLUMNS` too: what is read whole is checked
        if columns is not None:
            indices = [index for index, name in enumerate(self.schema.names) if name in columns]
        ranges: list[list[_Chunk]] = []
        for chunk in sorted(_chunks(self.metadata, self._groups(numbers), indices)):
            if ranges and chunk.start <= ranges[-1][-1].end + gap:
                ranges[-1].append(chunk)
            else:
                ranges.append([chunk])
        checksums = self._known_checksums(store)
        file = np.zeros(self.file.size, np.uint8)  # takes memory only for the parts that are filled in
        for chunks in ranges:
            begin = chunks[0].start
            data = store.read_range(path, begin, chunks[-1].end - begin)
            view = memoryview(data)
            if any(zlib.crc32(view[start - begin : end - begin]) != checksums[number] for start, end, number in chunks):
                raise damaged(store.url(path))
            file[begin : begin + len(data)] = np.frombuffer(data, np.uint8)
        try:
            return self.load(pa.BufferReader(pa.py_buffer(file)), numbers, columns)
        except (pa.ArrowException, OSError) as error:
            raise unreadable(store.url(path), error) from None

    def _known_checksums(self, store: Store) -> Sequence[int]:
        """Return the pack's checksums; for a pack of an older version compute them, once its bytes match its name."""
        if not self._checksums:
            data = store.read(self.file.path)
            if not _is_proved(self.file, data):
                raise damaged(store.url(self.file.path))
            self._checksums = _checksums(self.metadata, data)
        return self._checksums


def open_pack(store: Store, file: PackFile) -> OpenPack:
    """Read a pack's description. Raises `FileNotFoundError`, `IntegrityError`."""
    return OpenPack(file, store.read_range(file.path, file.size - file.footer, file.footer))


def prove_pack(store: Store, file: PackFile) -> str:
    """Check a pack's bytes against its name: return "" if they match, else one line."""
    try:
        data = store.read(file.path)
    except FileNotFoundError:
        return f"{store.url(file.path)} is in its manifest but does not exist"
    return "" if _is_proved(file, data) else f"{store.url(file.path)} differs from the digest in its name"


def _is_proved(file: PackFile, data: bytes) -> bool:
    return len(data) == file.size and _head(data) == file.path[-40:-8]
