"""Repair of irregular sample rows (quotes, text with commas, too many or too few cells), by columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ciml.dstat.header import Columns
from ciml.limits import MAX_LOG_ROW_BYTES

_BLOCK = 1 << 22
_BLANK, _LINE_FEED, _QUOTE, _COMMA = 32, 10, 34, 44

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
        kept = int(np.count_nonzero(keep))
        if len(keep) and first_kept is None:
            first_kept = bool(keep[0])
        rows += kept
        dropped += len(keep) - kept
        parts.append(lines.joined(keep))
        position = end
    return Repaired(b"".join(parts), rows, dropped, bool(first_kept))


class _Lines:
    """The non-blank lines of a block, which ends in a line feed."""

    def __init__(self, buffer: Bytes, cells: int) -> None:
        self.buffer, self.cells = buffer, cells
        ends = np.flatnonzero(buffer == _LINE_FEED)
        starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
        filled = ends > starts
        self.starts, self.ends = starts[filled], ends[filled]
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
            head, tail = words[0], self.cells - 1 - words[1]
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
    found = set(columns.text)
    sample = lines.sample()
    for index in range(len(columns.names)):
        values = [row[index].strip() for row in sample]
        if index not in (columns.time, columns.epoch) and any(values) and not any(_may_be_number(v) for v in values):
            found.add(index)
    return (min(found), max(found)) if found else None


def _may_be_number(value: bytes) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
