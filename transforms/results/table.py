"""Open a table of results, found out by its content: delimited text (CSV and its kin), JSON lines, Parquet or Arrow.

A `ResultsTable` yields its `Row`s in order, at each call from the first, in bounded memory. A row that cannot be read
has a fault, and the others are read nevertheless. The meaning of the columns is not used here.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from functools import partial
from io import BufferedReader
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from ciml.errors import CimlError, RejectedInput
from ciml.events.fields import parse_json
from ciml.events.listing import open_unpacked
from ciml.limits import (
    MAX_COLUMN_NAME_CHARACTERS,
    MAX_RESULTS_BYTES,
    MAX_RESULTS_CELL_CHARACTERS,
    MAX_RESULTS_COLUMNS,
    MAX_RESULTS_ROW_BYTES,
    MAX_RESULTS_ROWS,
)
from ciml.transforms.results.values import NO_VALUE

if TYPE_CHECKING:
    import pyarrow as pa

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_HEAD_BYTES = 4096
_BOM = b"\xef\xbb\xbf"
#: First bytes of files in other formats, and what to do.
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip file or an Excel workbook; save it as CSV",
    b"\xff\xfe": "text in UTF-16; save it in UTF-8",
    b"\xfe\xff": "text in UTF-16; save it in UTF-8",
    b"SQLite format 3": "an SQLite database; export the table as CSV",
    b"ARROW1": "an Arrow file; write Parquet",
}
#: Lines from which the delimiter is guessed.
_SNIFFED_LINES = 20
_ARROW_BATCH_ROWS = 512


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      number: from 1; a header is not a row.
      cells: by column; empty if they cannot be read.
      fault: why they cannot be read, or "".
    """

    number: int
    cells: Mapping[str, Any]
    fault: str = ""


@dataclass(frozen=True)
class ResultsTable:
    """A table that can be read repeatedly, in bounded memory.

    Attributes:
      name: for messages.
      form: its format, such as ``text with semicolons``.
      columns: the names of its columns.
      rows: yields the rows in order, from the first, at each call. Blank lines are not rows.
    """

    name: str
    form: str
    columns: tuple[str, ...]
    rows: Callable[[], Iterator[Row]]


def open_results(results: str | os.PathLike[str] | pa.Table) -> ResultsTable:
    """Open a table of results: CSV, Parquet or JSON lines, gzip or not, or an Arrow table in memory.

    Args:
      results: a local path, an ``s3://`` object, or the table.

    Raises:
      CimlError: if it does not exist, is none of these formats, or exceeds a limit.
      EngineError: if the storage does not answer.
    """
    if not isinstance(results, str | os.PathLike):
        return arrow_table("the table", results)
    url = os.fspath(results)
    name = url.rpartition("/")[2]
    raw = open_unpacked(url, "table", "a file of CSV, Parquet or JSON lines", MAX_RESULTS_BYTES)
    file = BufferedReader(raw)  # type: ignore[type-var]  # it has the methods of a raw stream, without the base class
    size = file.seek(0, os.SEEK_END)
    if size > MAX_RESULTS_BYTES:
        raise CimlError(f"{name} has {size >> 20:,} MiB, at most {MAX_RESULTS_BYTES >> 20:,}; split it")
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    text = head.removeprefix(_BOM).lstrip()
    unsupported = next((description for begin, description in _OTHER_FORMATS.items() if head.startswith(begin)), None)
    if unsupported is not None:
        raise CimlError(f"{name} is {unsupported}")
    if not text and size <= _HEAD_BYTES:
        raise CimlError(f"{name} is empty; give a table with a row a run")
    if head.startswith(b"PAR1"):
        return arrow_table(name, file)
    if text.startswith(b"["):
        raise CimlError(
            f"{name} is a JSON array; write JSON lines, an object a run, as pandas does by to_json(lines=True)"
        )
    return json_lines_table(name, file) if text.startswith(b"{") else delimited_table(name, file)


def _check_columns(table: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return a table's column names. Several may be empty, such as that of the index that pandas writes.

    Raises:
      CimlError: too many columns, a name that is too long, or one that appears twice.
    """
    columns = tuple(names)
    if len(columns) > MAX_RESULTS_COLUMNS:
        raise CimlError(f"{table} has {len(columns):,} columns, at most {MAX_RESULTS_COLUMNS:,}; leave some out")
    unique = set[str]()
    for name in columns:
        if len(name) > MAX_COLUMN_NAME_CHARACTERS:
            raise CimlError(f"{table}: the column {name!r:.60} has a name that is too long; shorten it")
        if name and name in unique:
            raise CimlError(f"{table}: the column {name!r} appears twice; rename one")
        unique.add(name)
    return columns


def delimited_table(name: str, file: IO[bytes]) -> ResultsTable:
    """Open a table of delimited text in UTF-8, with a header.

    Args:
      name: for messages.
      file: binary and seekable; each pass over the rows reads it again.

    Raises:
      CimlError: if the header is too long, has too many columns, or names one twice.
    """
    head = list(islice(_Lines(file), _SNIFFED_LINES))
    if not head:
        raise CimlError(f"{name}: its first line has more than {MAX_RESULTS_ROW_BYTES:,} bytes; is it a table?")
    delimiter = _sniff(head)
    try:
        header = next(filter(None, csv.reader(head, delimiter=delimiter)), None)
    except csv.Error as error:
        raise CimlError(f"{name}: cannot read the header: {error}") from None
    if header is None:
        raise CimlError(f"{name}: its first {len(head)} lines are blank; begin with the names of the columns")
    columns = _check_columns(name, (column.strip() for column in header))
    rows = partial(_delimited_rows, file, delimiter, columns)
    return ResultsTable(name, f"text with {DELIMITERS[delimiter]}", columns, rows)


def _sniff(head: list[str]) -> str:
    """Guess the delimiter: the header has several cells, and most lines have as many as the header."""

    def agreement(delimiter: str) -> tuple[float, int]:
        try:
            widths = [len(cells) for cells in csv.reader(head, delimiter=delimiter) if cells]
        except csv.Error:
            return (0.0, 0)
        if not widths or widths[0] == 1:
            return (0.0, 0)
        return (sum(width == widths[0] for width in widths) / len(widths), widths[0])

    return max(DELIMITERS, key=agreement)


def _delimited_rows(file: IO[bytes], delimiter: str, columns: Sequence[str]) -> Iterator[Row]:
    """Yield the rows. A row with another number of cells than the header, or beyond a limit, has a fault."""
    lines = _Lines(file)
    number = -1  # the header becomes row 0
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        lines.begin_row()
        cells: list[str] = []
        fault = ""
        try:
            cells = next(reader)
        except StopIteration:
            if not lines.is_too_long:
                return
        except csv.Error as error:
            fault = str(error)
        if lines.is_too_long:  # for the reader, this was the end of the file
            fault = f"more than {MAX_RESULTS_ROW_BYTES:,} bytes"
            reader = csv.reader(lines, delimiter=delimiter)
        if not cells and not fault:
            continue  # a blank line
        number += 1
        if number == 0:
            continue
        if not fault and len(cells) != len(columns):
            fault = f"{len(cells):,} cells, but the header has {len(columns):,}"
        values = [None if cell in NO_VALUE else cell for cell in cells]
        yield _row(number, dict(zip(columns, values, strict=False)), fault)


class _Lines:
    """Iterates over the lines of a file as texts. It stops at a row that is too long, and continues after that line.

    Bytes that are not UTF-8 become lone surrogates, which no field of a listing may hold.

    Attributes:
      is_too_long: whether it stopped at a row that is too long.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._bytes_left = MAX_RESULTS_ROW_BYTES
        self.is_too_long = False
        file.seek(0)
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(self._bytes_left + 1)
        if not line:
            raise StopIteration
        self._bytes_left -= len(line)
        if self._bytes_left < 0:
            while line and not line.endswith(b"\n"):
                line = self._file.readline(MAX_RESULTS_ROW_BYTES)
            self.is_too_long = True
            raise StopIteration
        return line.decode("utf-8", "surrogateescape")

    def begin_row(self) -> None:
        """Give the next row its own limit. The lines of a quoted cell count together."""
        self._bytes_left = MAX_RESULTS_ROW_BYTES
        self.is_too_long = False


def _row(number: int, cells: Mapping[str, Any], fault: str = "") -> Row:
    """Return a row; with a fault of its own, or of a cell beyond the limit, its cells are left out."""
    if any(isinstance(cell, str) and len(cell) > MAX_RESULTS_CELL_CHARACTERS for cell in cells.values()):
        fault = fault or f"a cell has more than {MAX_RESULTS_CELL_CHARACTERS:,} characters"
    return Row(number, {} if fault else cells, fault)


def json_lines_table(name: str, file: IO[bytes]) -> ResultsTable:
    """Open a table of JSON lines: one object a line. Its columns are all keys. Arguments: see `delimited_table`.

    Raises:
      CimlError: if no line is an object, or there are too many keys.
    """
    keys: dict[str, None] = {}
    for row in _json_rows(file):
        if not row.cells.keys() <= keys.keys():
            keys.update(dict.fromkeys(row.cells))
            _check_columns(name, keys)
    if not keys:
        raise CimlError(f"{name} holds no line that is a JSON object; write JSON lines, an object a run")
    return ResultsTable(name, "JSON lines", tuple(keys), partial(_json_rows, file))


def _json_rows(file: IO[bytes]) -> Iterator[Row]:
    """Yield the rows; a line that is not an object has a fault."""
    number = 0
    file.seek(0)
    while line := file.readline(MAX_RESULTS_ROW_BYTES + 1):
        is_too_long = len(line) > MAX_RESULTS_ROW_BYTES
        end = line
        while is_too_long and end and not end.endswith(b"\n"):
            end = file.readline(MAX_RESULTS_ROW_BYTES)
        text = line.removeprefix(_BOM).strip()
        if not text:
            continue
        number += 1
        if is_too_long:
            yield Row(number, {}, f"more than {MAX_RESULTS_ROW_BYTES:,} bytes")
        else:
            yield _parse_object(number, text)


def _parse_object(number: int, text: bytes) -> Row:
    try:
        cells: Any = parse_json(text)
    except RejectedInput as rejected:
        return Row(number, {}, rejected.detail)
    return Row(number, cells) if type(cells) is dict else Row(number, {}, "not an object")


def arrow_table(name: str, source: pa.Table | IO[bytes]) -> ResultsTable:
    """Open an Arrow table, or a Parquet file.

    Columns of lists, structs and bytes are left out: a run's field is a text, a number, a time, true or false.

    Args:
      name: for messages.
      source: a `pyarrow.Table`, or a binary, seekable file of Parquet.

    Raises:
      CimlError: if it is not Parquet, or exceeds a limit.
    """
    import pyarrow as pa

    size = 0
    if isinstance(source, pa.Table):
        schema = source.schema
        rows = source.num_rows
    else:
        try:
            parquet = _open_parquet(source)
        except (pa.ArrowException, OSError) as error:
            raise CimlError(f"{name} is broken Parquet: {error!s:.200}") from None
        schema = parquet.schema_arrow
        rows = parquet.metadata.num_rows
        size = sum(parquet.metadata.row_group(number).total_byte_size for number in range(parquet.num_row_groups))
    if rows > MAX_RESULTS_ROWS or size > MAX_RESULTS_BYTES:
        raise CimlError(
            f"{name} has {rows:,} rows and {size >> 20:,} MiB unpacked, at most {MAX_RESULTS_ROWS:,} and "
            f"{MAX_RESULTS_BYTES >> 20:,}; split it, or write a listing for ciml backfill"
        )
    cells = pa.schema([field for field in schema if not _is_unusable(field.type)])
    form = "Arrow table" if isinstance(source, pa.Table) else "Parquet"
    return ResultsTable(name, form, _check_columns(name, cells.names), partial(_arrow_rows, name, source, cells))


def _arrow_rows(name: str, source: pa.Table | IO[bytes], schema: pa.Schema) -> Iterator[Row]:
    """Yield the rows; a row with a cell beyond the limit has a fault."""
    import pyarrow as pa

    number = 0
    try:
        for batch in _batches(source, schema):
            columns = [_to_cells(batch.column(name)) for name in schema.names]
            for cells in zip(*columns, strict=True):
                number += 1
                yield _row(number, dict(zip(schema.names, cells, strict=True)))
    except (pa.ArrowException, OSError) as error:
        raise CimlError(f"{name} is broken Parquet: {error!s:.200}") from None


def _batches(source: pa.Table | IO[bytes], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    if isinstance(source, pa.Table):
        yield from source.select(schema.names).to_batches(max_chunksize=_ARROW_BATCH_ROWS)
        return
    # As dictionaries, texts that repeat are held once: else a small file could become any number of bytes.
    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    yield from _open_parquet(source, texts).iter_batches(_ARROW_BATCH_ROWS, columns=schema.names, use_threads=False)


def _open_parquet(file: IO[bytes], dictionaries: list[str] | None = None) -> Any:
    import pyarrow.parquet as pq

    file.seek(0)
    return pq.ParquetFile(file, read_dictionary=dictionaries)


def _is_unusable(kind: pa.DataType) -> bool:
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        return _is_unusable(kind.value_type)
    return bool(
        types.is_nested(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_duration(kind)
        or types.is_interval(kind)
        or isinstance(kind, pa.BaseExtensionType)
    )


def _to_cells(column: pa.Array) -> list[Any]:
    """Convert a column to Python values; times with a zone become aware times in UTC."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        values = _to_cells(column.dictionary)
        return [None if index is None else values[index] for index in column.indices.to_pylist()]
    if pa.types.is_timestamp(kind):
        # Nanoseconds would import pandas.
        naive = column.cast(pa.timestamp("us", kind.tz), safe=False).cast(pa.int64()).cast(pa.timestamp("us"))
        zone = UTC if kind.tz is not None else None
        return [None if moment is None else moment.replace(tzinfo=zone) for moment in naive.to_pylist()]
    return list(column.to_pylist())
