"""Convert sample rows to columns of floats: many bodies with the same columns in one call of Arrow's CSV reader.

A *body* is the rows of one segment as text. There are two paths with equal results. The fast one reads cells as
numbers. A body that it cannot read (text in a numeric cell, quotes, too many or too few cells, …) is first repaired row
by row. Then its cells are read as bytes, and parsed by a strict numeric grammar.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from ciml.dstat import NUMBER, Columns
from ciml.limits import MAX_LOG_ROW_BYTES

#: Number of rows of a body that are examined for cells of text.
_SAMPLED_ROWS = 32
#: Bytes of times and numbers. Other bytes in a body are commas, or make it irregular.
_NUMERIC_BYTES = b"0123456789. :-\n" + bytes(sorted(set(b"JanFebMarAprMayJunJulAugSepOctNovDec")))
# pa.scalar() and pa.array() of a Python value would import pandas.
_NO_TEXT = pa.nulls(1, pa.string())[0]
_NO_NUMBER = pa.nulls(1, pa.float64())[0]


class Body(NamedTuple):
    """Rows of samples that all have the right number of cells, without quotes and blank lines.

    Attributes:
      text: the rows.
      rows: their number.
      dropped: number of rows that were dropped.
      has_first: whether the first row was not dropped.
    """

    text: bytes
    rows: int
    dropped: int = 0
    has_first: bool = True


def repair(body: bytes, columns: Columns) -> Body:
    """Make a body regular, row by row.

    - Carriage returns end rows, blank lines are ignored, lines beyond `MAX_LOG_ROW_BYTES` are dropped.
    - A quoted cell loses its quotes and its commas.
    - A surplus last cell that is quoted or empty (pcp-dstat's ``"missed 3 ticks"``, a comma at the end) is removed.
    - Other surplus cells come from commas within unquoted text of ``--top-*`` columns, where the log has any: the cells
      before the first and after the last such column keep their positions, those between are left empty.
    - Rows that still have too many or too few cells are dropped.
    """
    if b"\r" in body:
        body = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    text_cells = _text_cells(body, columns)
    repaired = [_repaired(line, len(columns.names), text_cells) if line else line for line in _lines(body)]
    rows = [(line or b" ") + b"\n" for line in repaired if line is not None]  # the reader would skip a blank line
    has_first = bool(repaired) and repaired[0] is not None
    return Body(b"".join(rows), len(rows), len(repaired) - len(rows), has_first)


def _lines(body: bytes) -> Iterator[bytes | None]:
    """Yield the lines that are not blank; None for one beyond `MAX_LOG_ROW_BYTES`."""
    for line in BytesIO(body):
        row = line.removesuffix(b"\n")
        if row:
            yield row if len(row) <= MAX_LOG_ROW_BYTES else None


def _unquoted(line: bytes) -> bytes:
    """Return a line with spaces in place of its quotes and of the commas between them."""
    parts = line.split(b'"')
    parts[1::2] = [part.replace(b",", b" ") for part in parts[1::2]]
    return b" ".join(parts)


def _repaired(line: bytes, cells: int, text_cells: _TextCells | None) -> bytes | None:
    """Return a line with the right number of cells; None if it has too few or too many."""
    regular = _unquoted(line)
    surplus = regular.count(b",") + 1 - cells
    if surplus <= 0:
        return None if surplus else regular
    values = regular.split(b",")
    last_may_be_text = text_cells is not None and text_cells.last == cells - 1
    if surplus == 1 and (not values[-1] or (line.endswith(b'"') and not last_may_be_text)):
        return b",".join(values[:-1])
    if text_cells is None:
        return None
    before = values[: text_cells.first]
    after = values[text_cells.last + 1 + surplus :]
    return b",".join([*before, *[b""] * (cells - len(before) - len(after)), *after])


class _TextCells(NamedTuple):
    """The indices of the first and the last cell of text."""

    first: int
    last: int


def _text_cells(body: bytes, columns: Columns) -> _TextCells | None:
    """Find the cells of text: by their names, or because they are never a number in the first regular rows."""
    indices = set(columns.text)
    rows = (_unquoted(line).split(b",") for line in _lines(body) if line is not None)
    sample = list(islice((row for row in rows if len(row) == len(columns.names)), _SAMPLED_ROWS))
    for index in range(len(columns.names)):
        values = [row[index].strip() for row in sample]
        if index not in (columns.time, columns.epoch) and any(values) and not any(map(_may_be_number, values)):
            indices.add(index)
    return _TextCells(min(indices), max(indices)) if indices else None


def _may_be_number(value: bytes) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


@dataclass(slots=True)
class Rows:
    """The rows of several bodies, one after another.

    Attributes:
      time: binary array of the time cells, or None; ``epoch``: float64 array of the epoch cells, or None.
      values: a float64 array for each telemetry column; missing, non-numeric and non-finite cells are null.
      counts: number of rows of each body.
      dropped: number of rows of each body that had too few or too many cells.
      has_first: for each body, whether its first row is among the rows.
    """

    time: pa.Array | None
    epoch: pa.Array | None
    values: list[pa.Array]
    counts: list[int]
    dropped: list[int]
    has_first: list[bool]

    def slices(self) -> list[slice]:
        """Return the rows of each body."""
        ends = np.cumsum(self.counts, dtype=np.int64).tolist()
        return [slice(end - count, end) for end, count in zip(ends, self.counts, strict=True)]


def read_rows(bodies: Sequence[bytes], columns: Columns) -> Iterator[tuple[list[int], Rows]]:
    """Read the bodies of segments with the same columns. Each body ends in a line feed, or is empty.

    Yields:
      Indices of bodies, and their rows. Irregular bodies are read apart, so that they do not slow down the others.
    """
    unrepaired = [Body(body, body.count(b"\n")) for body in bodies]
    if not any(b'"' in body or b"\r" in body or _has_long_row(body) for body in bodies):
        rows = _read(unrepaired, columns, as_numbers=True)
        if rows is not None:
            yield list(range(len(bodies))), rows
            return
    regular = [_is_regular(body, len(columns.names)) for body in unrepaired]
    groups = [[index for index, is_regular in enumerate(regular) if is_regular is side] for side in (True, False)]
    if not all(groups):
        rows = _read_repaired(bodies, columns)
        if rows is not None:
            yield list(range(len(bodies))), rows
            return
        groups = [[index] for index in range(len(bodies))]  # one of them is irregular
    for group in groups:
        for indices, rows in read_rows([bodies[index] for index in group], columns):
            yield [group[index] for index in indices], rows


def _read_repaired(bodies: Sequence[bytes], columns: Columns) -> Rows | None:
    """Repair and read bodies; None if one of several is irregular nevertheless."""
    repaired = [repair(body, columns) for body in bodies]
    rows = _read(repaired, columns, as_numbers=False)
    if rows is None and len(bodies) == 1:
        # The reader treats something differently, such as a byte order mark: the body has no rows.
        dropped = repaired[0].dropped + repaired[0].rows
        rows = _read([Body(b"", 0, dropped, has_first=False)], columns, as_numbers=False)
    return rows


def _is_regular(body: Body, cells: int) -> bool:
    """Return whether the fast path probably reads a body: a cheap guess, and a wrong one costs only time."""
    if b",-," in body.text or b",-\n" in body.text or _has_long_row(body.text):
        return False  # a dash for "no value", or a row that only `repair` removes
    unexpected = body.text.translate(None, _NUMERIC_BYTES)
    return len(unexpected) == body.rows * (cells - 1) and unexpected.count(b",") == len(unexpected)


def _has_long_row(body: bytes) -> bool:
    """Return whether a body has a row beyond `MAX_LOG_ROW_BYTES`."""
    start = 0
    while len(body) - start > MAX_LOG_ROW_BYTES:
        end = body.rfind(b"\n", start, start + MAX_LOG_ROW_BYTES + 1)
        if end < 0:
            return True
        start = end + 1
    return False


def _read(bodies: Sequence[Body], columns: Columns, *, as_numbers: bool) -> Rows | None:
    """Read bodies, their cells as numbers or else as text that is then parsed; None if one is irregular."""
    cells = len(columns.names)
    names = [str(index) for index in range(cells)]
    count = sum(body.rows for body in bodies)
    text_columns = set(columns.text) if as_numbers else set(range(cells))
    if columns.time is not None:
        text_columns.add(columns.time)
    types = {name: pa.binary() if index in text_columns else pa.float64() for index, name in enumerate(names)}
    text = b"".join(body.text for body in bodies)
    if text.startswith(BOM_UTF8):  # the reader removes one there, but not those of the other bodies
        text = BOM_UTF8 + text
    if count:
        try:
            table = pacsv.read_csv(
                pa.BufferReader(text),
                read_options=pacsv.ReadOptions(use_threads=False, column_names=names, block_size=1 << 20),
                parse_options=pacsv.ParseOptions(quote_char=False, newlines_in_values=False),
                convert_options=pacsv.ConvertOptions(column_types=types, strings_can_be_null=False, check_utf8=False),
            )
        except pa.ArrowInvalid:
            return None
    else:
        table = pa.table({name: pa.nulls(0, kind) for name, kind in types.items()})
    # Without carriage returns and quotes, a body has a row for each line feed, or fewer if it has blank lines. So equal
    # totals prove that each body has its own rows, and no log's rows enter another log's table.
    if table.num_rows != count:
        return None

    def column(index: int) -> pa.Array:
        chunked = table.column(index)
        return chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()

    return Rows(
        time=None if columns.time is None else column(columns.time),
        epoch=None if columns.epoch is None else to_floats(column(columns.epoch)),
        values=[to_floats(column(index)) for index, name in enumerate(columns.names) if name],
        counts=[body.rows for body in bodies],
        dropped=[body.dropped for body in bodies],
        has_first=[body.has_first for body in bodies],
    )


def to_floats(cells: pa.Array) -> pa.Array:
    """Convert binary or float64 cells to float64; cells that are not finite numbers become null."""
    if not pa.types.is_floating(cells.type):
        text = pa.Array.from_buffers(pa.string(), len(cells), cells.buffers(), offset=cells.offset)
        trimmed = pc.ascii_trim_whitespace(text)
        # Matched as bytes: as a string, a Latin-1 byte would be an error.
        numeric = pc.match_substring_regex(trimmed.view(pa.binary()), NUMBER)
        cells = pc.cast(pc.if_else(numeric, trimmed, _NO_TEXT), pa.float64())
    if len(cells) and not bool(np.isfinite(_buffer(cells)).all()):
        cells = pc.if_else(pc.is_finite(cells), cells, _NO_NUMBER)
    return cells


def with_nans(cells: pa.Array) -> npt.NDArray[np.float64]:
    """Return the values of a float64 array, with NaN for null. (`pyarrow.compute.fill_null` would import pandas.)"""
    values = _buffer(cells)
    if not cells.null_count:
        return values
    return np.where(np.from_dlpack(pc.is_valid(cells).cast(pa.uint8())) == 1, values, np.nan)


def _buffer(cells: pa.Array) -> npt.NDArray[np.float64]:
    """Return the values of a float64 array as stored in memory: values at nulls are unspecified."""
    return np.frombuffer(cells.buffers()[1], np.float64)[cells.offset : cells.offset + len(cells)]
