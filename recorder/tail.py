"""Reading of a growing log of the recorder, piece by piece, as the samples of messages.

`Tail` reads the same samples as `ciml.transforms.parse.logs`, without Arrow. It reads logs of dool and
`ciml.recorder.sampler` only: they have an epoch column, and neither quotes nor text in a sample.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import msgspec

from ciml.dstat import EARLIEST, LATEST, NUMBER, SECOND, Columns, read_columns
from ciml.limits import MAX_RECORDING_LOG_BYTES

#: Epoch microseconds from 2000 to 2099.
Micros = Annotated[int, msgspec.Meta(ge=946_684_800_000_000, lt=4_102_444_800_000_000)]
_PIECE_BYTES = 32 << 10  # of the log in one message, whose JSON is at most three times as large
_NUMBER = re.compile(NUMBER)
#: The beginning of a line of a header's preamble, which is quoted as the header is.
_PREAMBLE_LINE = re.compile(rb'"[^"\n]{0,99}:"|"[^"\n]{0,99} CSV [Oo]utput"')


@dataclass(frozen=True)
class Start:
    """A start of the recorder: its offset in the log, and its time, epoch microseconds."""

    offset: Annotated[int, msgspec.Meta(ge=0, le=MAX_RECORDING_LOG_BYTES)]
    recorder_us: Micros


@dataclass(frozen=True)
class Piece:
    """Consecutive samples of one start of the recorder, with the same columns.

    Attributes:
      recorder_us: time of the start, epoch microseconds.
      first: sequence number of the first sample, from 0 for each start.
      columns: full names of the columns.
      times_us, boots, values: one value, or one row of values, for each sample.
    """

    recorder_us: int
    first: int
    columns: tuple[str, ...]
    times_us: list[int] = field(default_factory=list)
    boots: list[bool] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Mark:
    """A position in a log, from which it can be read again.

    Attributes:
      offset: offset of the next byte.
      start: index of the recorder's start at this position.
      sequence: the next sample's number in it.
      header: the last header's two rows, as far as they are read.
      boot: whether the next row is the first below its header.
    """

    offset: int = 0
    start: int = 0
    sequence: int = 0
    header: tuple[bytes, ...] = ()
    boot: bool = False


class Tail:
    """Reads a log from its beginning, piece by piece.

    Args:
      log: called with (offset, count); returns at most count bytes, b"" if there are none yet.
      starts: the starts of the recorder.

    Attributes:
      mark: its position; set an earlier one to read from there again.
      counts: the number of samples read so far, by the time of the recorder's start.
      first_us: the time of the log's first sample, epoch microseconds, once it is read.
    """

    def __init__(self, log: Callable[[int, int], bytes], starts: Sequence[Start]) -> None:
        self._log = log
        self._starts = list(starts)
        self.mark = Mark()
        self.first_us: int | None = None
        self.counts: dict[int, int] = {start.recorder_us: 0 for start in starts}

    def read(self) -> Piece | None:
        """Return the next samples, and move the mark behind them; None if there are no complete lines yet.

        Raises:
          OSError: the log cannot be read.
        """
        while lines := self._read_lines():
            piece = self._take(lines)
            if piece.times_us:
                return piece
        return None

    def _read_lines(self) -> bytes:
        """Return complete lines from the mark on, up to the next start of the recorder."""
        mark = self.mark
        while mark.start + 1 < len(self._starts) and mark.offset >= self._starts[mark.start + 1].offset:
            mark = self.mark = Mark(mark.offset, mark.start + 1)
        max_bytes = _PIECE_BYTES
        if mark.start + 1 < len(self._starts):
            max_bytes = min(max_bytes, self._starts[mark.start + 1].offset - mark.offset)
        data = self._log(mark.offset, max_bytes)
        end = data.rfind(b"\n") + 1
        if not end and len(data) == max_bytes:
            return data  # a part of a line: cut off by a restart, or not written by the recorder
        return data[:end]

    def _take(self, lines: bytes) -> Piece:
        """Parse lines up to the next header after samples, and move the mark there."""
        mark = self.mark
        offset = mark.offset
        header = mark.header
        boot = mark.boot
        columns = _columns(header)
        piece = Piece(self._starts[mark.start].recorder_us, mark.sequence, _column_names(columns))
        for line in lines.splitlines(keepends=True):
            row = line.rstrip(b"\r\n")
            if row.startswith(b'"'):
                if piece.times_us:
                    break  # the header belongs to the next piece
                header = _extended_header(header, row)
                columns = _columns(header)
                piece = replace(piece, columns=_column_names(columns))
                boot = True
            elif row and columns is not None and columns.epoch is not None:
                _add_sample(piece, row, columns, columns.epoch, boot)
                boot = False
            offset += len(line)
        sequence = mark.sequence + len(piece.times_us)
        self.mark = Mark(offset, mark.start, sequence, header, boot)
        self.counts[piece.recorder_us] = max(sequence, self.counts.get(piece.recorder_us, 0))  # it may read again
        if self.first_us is None and piece.times_us:
            self.first_us = piece.times_us[0]
        return piece


def _extended_header(header: tuple[bytes, ...], row: bytes) -> tuple[bytes, ...]:
    """Return the rows of the present header after another quoted row."""
    if _PREAMBLE_LINE.match(row):
        return ()
    return (*header, row) if len(header) == 1 else (row,)


def _columns(header: tuple[bytes, ...]) -> Columns | None:
    return read_columns(*header) if len(header) == 2 else None


def _column_names(columns: Columns | None) -> tuple[str, ...]:
    """Return the names of the columns in a sample: all except those that hold the time."""
    return tuple(name for name in columns.names if name) if columns else ()


def _add_sample(piece: Piece, row: bytes, columns: Columns, epoch: int, boot: bool) -> None:
    """Add a row to a piece; drop it where it has another number of cells, or a time out of range."""
    cells = row.split(b",")
    if len(cells) != len(columns.names):
        return
    numbers = [_to_float(cell) for cell in cells]
    moment_us = numbers[epoch] * SECOND
    if EARLIEST <= moment_us < LATEST:
        piece.times_us.append(round(moment_us))
        piece.boots.append(boot)
        piece.values.append([number for number, name in zip(numbers, columns.names) if name])


def _to_float(cell: bytes) -> float:
    """Return the number in a cell; NaN where it is not a finite number."""
    text = cell.decode("ascii", "replace").strip()
    value = float(text) if _NUMBER.match(text) else math.nan
    return value if math.isfinite(value) else math.nan
