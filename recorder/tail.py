"""The log, read while it grows: its samples as `transforms.parse.logs` gives them, without Arrow.

Only for what dool and `recorder.proc_sampler` write here: an epoch column, and neither quotes nor words in a sample.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import msgspec

from ciml.dstat.header import read_columns
from ciml.dstat.vocabulary import EARLIEST, LATEST, NUMBER, SECOND
from ciml.limits import MAX_RECORDING_LOG_BYTES

_PIECE = 32 << 10  # of the log in one message, which in JSON is no larger than three times that
_NUMBER = re.compile(NUMBER)
Micros = Annotated[int, msgspec.Meta(ge=946_684_800_000_000, lt=4_102_444_800_000_000)]  # 2000 to 2099
_NO_GROUPS = re.compile(rb'"[^"\n]{0,99}:"|"[^"\n]{0,99} CSV [Oo]utput"')


@dataclass(frozen=True, slots=True)
class Start:
    """A start of the recorder: where in the log it begins, and when it was, epoch microseconds."""

    offset: Annotated[int, msgspec.Meta(ge=0, le=MAX_RECORDING_LOG_BYTES)]
    recorder_us: Micros


@dataclass(frozen=True, slots=True)
class Piece:
    """Samples that follow one another: of one start of the recorder, with the same columns.

    Attributes:
      recorder_us: which start.
      first: the number of the first, from 0 for each start.
      columns: the full names.
      times_us, boots, values: a value, or a row of them, for each sample.
    """

    recorder_us: int
    first: int
    columns: tuple[str, ...]
    times_us: list[int] = field(default_factory=list)
    boots: list[bool] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a log was read; from a mark it can be read again.

    Attributes:
      offset: of the next byte.
      start: index of the recorder's start that it belongs to.
      sequence: the next sample's number there.
      header: the last header's two rows, or what there is of them.
      boot: whether the next row is the first below its header.
    """

    offset: int = 0
    start: int = 0
    sequence: int = 0
    header: tuple[bytes, ...] = ()
    boot: bool = False


class Tail:
    """Reads a log from its beginning on, a piece at a time.

    Args:
      log: reads at most so many bytes (second) from an offset on (first); b"" where there are none yet.
      starts: those that are known; `add_start` adds a later one.

    Attributes:
      mark: where it is.
      first_us: the time of the log's first sample, epoch microseconds, once it was read.
    """

    def __init__(self, log: Callable[[int, int], bytes], starts: Sequence[Start]) -> None:
        self._log = log
        self._starts = list(starts)
        self.mark = Mark()
        self.first_us: int | None = None
        self.counts: dict[int, int] = {start.recorder_us: 0 for start in starts}

    def read(self) -> Piece | None:
        """Return the next samples; None where there are no more whole lines now.

        Raises:
          OSError: the log cannot be read.
        """
        while data := self._lines():
            if piece := self._take(data):
                return piece
        return None

    def _lines(self) -> bytes:
        """Whole lines from the mark on, none of which belongs to the next start."""
        mark = self.mark
        while mark.start + 1 < len(self._starts) and mark.offset >= self._starts[mark.start + 1].offset:
            mark = self.mark = Mark(mark.offset, mark.start + 1)
        most = _PIECE
        if mark.start + 1 < len(self._starts):
            most = min(most, self._starts[mark.start + 1].offset - mark.offset)
        data = self._log(mark.offset, most)
        whole = data.rfind(b"\n") + 1
        if not whole and len(data) == most:
            return data  # what was cut before a start, or no line of ours
        return data[:whole]

    def _take(self, data: bytes) -> Piece | None:
        """Take lines up to the next header behind samples, and moves the mark there."""
        mark, offset = self.mark, self.mark.offset
        recorder_us = self._starts[mark.start].recorder_us
        header, boot = mark.header, mark.boot
        columns = read_columns(*header) if len(header) == 2 else None
        piece = Piece(recorder_us, mark.sequence, _named(columns.names) if columns else ())
        for line in data.splitlines(keepends=True):
            row = line.rstrip(b"\r\n")
            if row.startswith(b'"'):
                if piece.times_us:
                    break
                header = (row,) if len(header) != 1 else (*header, row)
                if _NO_GROUPS.match(row):
                    header = ()
                columns = read_columns(*header) if len(header) == 2 else None
                piece = replace(piece, columns=_named(columns.names) if columns else ())
                boot = True
            elif row and columns is not None and columns.epoch is not None:
                cells = row.split(b",")
                if len(cells) == len(columns.names):
                    numbers = [_to_float(cell) for cell in cells]
                    moment = numbers[columns.epoch] * SECOND
                    if EARLIEST <= moment < LATEST:
                        piece.times_us.append(round(moment))
                        piece.boots.append(boot)
                        piece.values.append([each for each, name in zip(numbers, columns.names, strict=True) if name])
                boot = False
            offset += len(line)
        sequence = mark.sequence + len(piece.times_us)
        self.mark = Mark(offset, mark.start, sequence, header, boot)
        self.counts[recorder_us] = max(sequence, self.counts.get(recorder_us, 0))
        if self.first_us is None and piece.times_us:
            self.first_us = piece.times_us[0]
        return piece if piece.times_us else None


def _named(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name)


def _to_float(cell: bytes) -> float:
    """Return the number that a cell holds; NaN where it holds none that is finite."""
    text = cell.decode("ascii", "replace").strip()
    value = float(text) if _NUMBER.match(text) else math.nan
    return value if math.isfinite(value) else math.nan
