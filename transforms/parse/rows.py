"""Sample rows to columns of floats: many bodies with the same columns in one call of Arrow's CSV reader.

There are two paths with equal results. The fast one reads numbers at once. Bodies that it cannot read (text in a
numeric cell, quotes, too many or too few cells, …) are first made regular (`ciml.transforms.parse.rows`), then read
as bytes and parsed by a strict numeric grammar, by columns, never by rows.

Repair of irregular sample rows (quotes, text with commas, too many or too few cells), by columns.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from ciml.dstat import NUMBER, Columns
from ciml.limits import MAX_LOG_ROW_BYTES

_BLOCK = 1 << 22
_BLANK = 32
_LINE_FEED = 10
_QUOTE = 34
_COMMA = 44

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Repaired:
    """A body whose rows all have the right number of cells, without quotes and blank lines."""

    body: bytes
    rows: int
    dropped: int
    first_kept: bool


def repair(body: bytes, columns: Columns) -> Repaired:
    """Make a body regular, block by block, so that memory stays bounded.

    - Carriage returns end rows, blank lines are ignored, lines beyond `MAX_LOG_ROW_BYTES` are dropped.
    - A quoted cell loses its quotes and its commas.
    - A surplus last cell that is quoted or empty (pcp-dstat's ``"missed 3 ticks"``, a comma at the end) is removed.
    - Other surplus cells come from commas within unquoted text of ``--top-*`` columns, where the log has any: the cells
      before the first and after the last such column keep their positions, those between are left empty.
    - Rows that still have too many or too few cells are dropped.
    """
    if b"\r" in body:
        body = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        body += b"" if body.endswith(b"\n") or not body else b"\n"
    parts: list[bytes] = []
    rows = dropped = position = 0
    first_kept: bool | None = None
    words: tuple[int, int] | None = None
    while position < len(body):
        end = body.rfind(b"\n", position, position + _BLOCK) + 1
        if end == 0:  # one line longer than a block
            position = body.index(b"\n", position) + 1
            dropped += 1
            first_kept = bool(first_kept)
            continue
        lines = _Lines(np.frombuffer(body, np.uint8, end - position, position).copy(), len(columns.names))
        words = words or _word_cells(lines, columns)
        keep = lines.regularise(words)
        kept_rows = int(np.count_nonzero(keep))
        if len(keep) and first_kept is None:
            first_kept = bool(keep[0])
        rows += kept_rows
        dropped += len(keep) - kept_rows
        parts.append(lines.joined(keep))
        position = end
    return Repaired(b"".join(parts), rows, dropped, bool(first_kept))


class _Lines:
    """The non-blank lines of a block, which ends in a line feed."""

    def __init__(self, buffer: Bytes, cells: int) -> None:
        self.buffer = buffer
        self.cells = cells
        ends = np.flatnonzero(buffer == _LINE_FEED)
        starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
        filled = ends > starts
        self.starts = starts[filled]
        self.ends = ends[filled]
        self.quoted_last = buffer[self.ends - 1] == _QUOTE
        if (buffer == _QUOTE).any():
            self._unquote(starts, ends)
        self._count()

    def _unquote(self, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> None:
        quotes = self.buffer == _QUOTE
        running = np.cumsum(quotes, dtype=np.int32)
        before = np.where(starts > 0, running[starts - 1], 0).astype(np.int32)
        inside = (running - np.repeat(before, ends - starts + 1)) & 1 == 1
        self.buffer[inside & (self.buffer == _COMMA)] = _BLANK
        self.buffer[quotes] = _BLANK

    def _count(self) -> None:
        self.commas = np.flatnonzero(self.buffer == _COMMA)
        self.first = np.searchsorted(self.commas, self.starts)
        self.last = np.searchsorted(self.commas, self.ends)
        self.surplus = self.last - self.first + 1 - self.cells

    def sample(self, limit: int = 32) -> list[list[bytes]]:
        """Return the cells of the first regular lines."""
        rows = np.flatnonzero((self.surplus == 0) & (self.ends - self.starts <= MAX_LOG_ROW_BYTES))[:limit].tolist()
        return [bytes(self.buffer[self.starts[row] : self.ends[row]]).split(b",") for row in rows]

    def regularise(self, words: tuple[int, int] | None) -> npt.NDArray[np.bool_]:
        """Remove surplus cells; return which lines are regular now."""
        if (self.surplus == 1).any():
            empty_last = np.zeros(len(self.ends), np.bool_)
            several = self.last > self.first
            empty_last[several] = self.commas[self.last[several] - 1] == self.ends[several] - 1
            extra = (self.surplus == 1) & (empty_last | (self.quoted_last & several))
            if words is not None and words[1] == self.cells - 1:
                extra &= empty_last  # the quoted cell may be the text itself
            rows = np.flatnonzero(extra)
            self._fill(self.commas[self.last[rows] - 1], self.ends[rows])
            self._count()
        rows = np.flatnonzero(self.surplus > 0)
        if words is not None and len(rows):
            head = words[0]
            tail = self.cells - 1 - words[1]
            begin = self.starts[rows] if head == 0 else self.commas[self.first[rows] + head - 1] + 1
            end = self.ends[rows] if tail == 0 else self.commas[self.last[rows] - tail]
            self._fill(begin, end)
            for step in range(words[1] - words[0]):  # the region holds more commas than that
                self.buffer[begin + step] = _COMMA
            self._count()
        regular: npt.NDArray[np.bool_] = (self.surplus == 0) & (self.ends - self.starts <= MAX_LOG_ROW_BYTES)
        return regular

    def _fill(self, begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> None:
        """Return the blanks over regions of different lines."""
        edge = np.zeros(len(self.buffer) + 1, np.int8)
        edge[begin] += 1
        edge[end] -= 1
        self.buffer[np.cumsum(edge[:-1], dtype=np.int8) > 0] = _BLANK

    def joined(self, keep: npt.NDArray[np.bool_]) -> bytes:
        """Return the lines to keep, one after another."""
        edge = np.zeros(len(self.buffer) + 1, np.int8)
        edge[self.starts[keep]] += 1
        edge[self.ends[keep] + 1] -= 1
        return self.buffer[np.cumsum(edge[:-1], dtype=np.int8) > 0].tobytes()


def _word_cells(lines: _Lines, columns: Columns) -> tuple[int, int] | None:
    """Return the first and last index of text cells: by their names, or never a number in the first lines."""
    word_cells = set(columns.text)
    sample = lines.sample()
    for index in range(len(columns.names)):
        values = [row[index].strip() for row in sample]
        if index not in (columns.time, columns.epoch) and any(values) and not any(_may_be_number(v) for v in values):
            word_cells.add(index)
    return (min(word_cells), max(word_cells)) if word_cells else None


def _may_be_number(value: bytes) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


_NUMERIC_BYTES = b"0123456789. :-\n" + bytes(sorted(set(b"JanFebMarAprMayJunJulAugSepOctNovDec")))
# pa.scalar() and pa.array() of a Python value would import pandas.
_NO_TEXT = pa.nulls(1, pa.string())[0]
_NO_NUMBER = pa.nulls(1, pa.float64())[0]


@dataclass(slots=True)
class Rows:
    """The rows of several bodies, one after another.

    Attributes:
      time: binary array of the time cells, or None; ``epoch``: float64 array of the epoch cells, or None.
      values: a float64 array for each telemetry column; missing, non-numeric and non-finite cells are null.
      counts: number of rows of each body.
      dropped: number of rows of each body that had too few or too many cells.
      first_kept: for each body, whether its first row is among the rows.
    """

    time: pa.Array | None
    epoch: pa.Array | None
    values: list[pa.Array]
    counts: list[int]
    dropped: list[int]
    first_kept: list[bool]


def read_rows(bodies: Sequence[bytes], columns: Columns) -> Rows:
    """Read the bodies of segments with the same columns. Each body ends in a line feed, or is empty."""
    cells = len(columns.names)
    counts = [body.count(b"\n") for body in bodies]
    plain = not any(b'"' in body or b"\r" in body or _has_long_row(body) for body in bodies)
    table = _read(bodies, counts, columns, as_numbers=True) if plain else None
    if table is not None:
        return _rows(table, columns, counts, [0] * len(bodies), [True] * len(bodies))

    # Find the irregular bodies, so that one odd log does not slow down hundreds of others.
    regular = [_is_regular(body, count, cells) for body, count in zip(bodies, counts, strict=True)]
    if any(regular) and not all(regular):
        parts = [
            (index, read_rows([bodies[i] for i in index], columns))
            for is_selected in (True, False)
            if (index := [i for i, is_regular in enumerate(regular) if is_regular is is_selected])
        ]
        return _interleave(parts, len(bodies))
    repaired = [repair(body, columns) for body in bodies]
    table = _read(
        [repaired_body.body for repaired_body in repaired],
        [repaired_body.rows for repaired_body in repaired],
        columns,
        as_numbers=False,
    )
    if table is None and len(bodies) > 1:  # one of them is irregular: read each alone
        return _interleave([([index], read_rows([body], columns)) for index, body in enumerate(bodies)], len(bodies))
    if table is None:
        # The reader treats something differently, such as a byte order mark: the body has no rows.
        repaired = [Repaired(b"", 0, repaired_body.dropped + repaired_body.rows, False) for repaired_body in repaired]
        table = pa.table({str(index): pa.nulls(0, pa.binary()) for index in range(cells)})
    counts = [repaired_body.rows for repaired_body in repaired]
    return _rows(
        table,
        columns,
        counts,
        [repaired_body.dropped for repaired_body in repaired],
        [repaired_body.first_kept for repaired_body in repaired],
    )


def _is_regular(body: bytes, rows: int, cells: int) -> bool:
    """Return whether a body is probably readable by the fast path; cheap, and errors cost only time."""
    if b",-," in body or b",-\n" in body or _has_long_row(body):
        return False  # a text for "no value", or something that only `repair` removes
    unexpected = body.translate(None, _NUMERIC_BYTES)
    return len(unexpected) == rows * (cells - 1) and unexpected.count(b",") == len(unexpected)


def _has_long_row(body: bytes) -> bool:
    """Return whether a body has a row beyond `MAX_LOG_ROW_BYTES`."""
    start = 0
    while len(body) - start > MAX_LOG_ROW_BYTES:
        end = body.rfind(b"\n", start, start + MAX_LOG_ROW_BYTES + 1)
        if end < 0:
            return True
        start = end + 1
    return False


def _interleave(parts: list[tuple[list[int], Rows]], count: int) -> Rows:
    """Return the rows of two reads in the order of their bodies."""
    where: dict[int, tuple[int, int, int]] = {}  # body -> part, its first row within all parts, its number in the part
    base = 0
    for part, (index, rows) in enumerate(parts):
        for number, body in enumerate(index):
            where[body] = (part, base, number)
            base += rows.counts[number]
    places = [where[body] for body in range(count)]
    counts = [parts[part][1].counts[number] for part, _, number in places]
    order = np.concatenate([np.arange(first, first + n) for (_, first, _), n in zip(places, counts, strict=True)])
    take = pa.Array.from_buffers(pa.int64(), len(order), [None, pa.py_buffer(order.astype(np.int64))])

    def joined(arrays: list[pa.Array]) -> pa.Array:
        return pa.concat_arrays(arrays).take(take)

    reads = [rows for _, rows in parts]
    return Rows(
        time=None if reads[0].time is None else joined([rows.time for rows in reads]),
        epoch=None if reads[0].epoch is None else joined([rows.epoch for rows in reads]),
        values=[joined(list(arrays)) for arrays in zip(*(rows.values for rows in reads), strict=True)],
        counts=counts,
        dropped=[parts[part][1].dropped[number] for part, _, number in places],
        first_kept=[parts[part][1].first_kept[number] for part, _, number in places],
    )


def _read(bodies: Sequence[bytes], counts: Sequence[int], columns: Columns, *, as_numbers: bool) -> pa.Table | None:
    """Read regular bodies; None where they are irregular."""
    cells = len(columns.names)
    names = [str(index) for index in range(cells)]
    words = set(columns.text) if as_numbers else set(range(cells))
    if columns.time is not None:
        words.add(columns.time)
    types = {name: pa.binary() if index in words else pa.float64() for index, name in enumerate(names)}
    if sum(counts) == 0:
        return pa.table({name: pa.nulls(0, kind) for name, kind in types.items()})
    text = b"".join(bodies)
    if text.startswith(BOM_UTF8):  # the reader removes one there, but not those of the other bodies
        text = BOM_UTF8 + text
    try:
        table = pacsv.read_csv(
            pa.BufferReader(text),
            read_options=pacsv.ReadOptions(use_threads=False, column_names=names, block_size=1 << 20),
            parse_options=pacsv.ParseOptions(quote_char=False, newlines_in_values=False),
            convert_options=pacsv.ConvertOptions(column_types=types, strings_can_be_null=False, check_utf8=False),
        )
    except pa.ArrowInvalid:
        return None
    # Without returns and quotes, bodies have at most as many rows as line feeds, fewer only with blank lines. So equal
    # totals prove that each body has its own rows, and no log's rows enter another's table.
    return table if table.num_rows == sum(counts) else None


def _rows(table: pa.Table, columns: Columns, counts: list[int], dropped: list[int], first_kept: list[bool]) -> Rows:
    def column(index: int) -> pa.Array:
        chunked = table.column(index)
        return chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()

    return Rows(
        time=None if columns.time is None else column(columns.time),
        epoch=None if columns.epoch is None else to_floats(column(columns.epoch)),
        values=[to_floats(column(index)) for index, name in enumerate(columns.names) if name],
        counts=counts,
        dropped=dropped,
        first_kept=first_kept,
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
