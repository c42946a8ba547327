"""The format of dstat, dool and pcp-dstat logs: headers, column names, numbers and times.

A header is a group row and a column row, both fully quoted. It is recognised by that form, never by a line number. The
lines above it, its preamble (banner, ``Author``, ``Host``, ``Cmdline`` and ``Date``), are optional. A restarted
recorder appends another header, possibly with other columns: each start is one `Segment`.

This module uses no other library. `ciml.transforms.parse` parses whole logs.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ciml import limits
from ciml.errors import RejectedInput
from ciml.globs import linear_pattern
from ciml.limits import MAX_COLUMN_NAME, MAX_HEADER_OFFSET, MAX_HEADER_ROW_BYTES, MAX_LOG_COLUMNS, MAX_LOG_STARTS
from ciml.telemetry import unique_names

TIME_CELLS = frozenset({"time", "time-adv"})
EPOCH_CELLS = frozenset({"epoch", "epoch-adv"})
_MONTH_NAMES = b"jan feb mar apr may jun jul aug sep oct nov dec".split()
MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, 1)}

#: Microseconds of a second, an hour and a day.
SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
EARLIEST = limits.EARLIEST_US
LATEST = limits.LATEST_US
#: A time without a zone within these bounds may be an instant of `EARLIEST` to `LATEST`. Others are never converted.
FIRST_LOCAL = EARLIEST - DAY
END_LOCAL = LATEST + DAY
#: A number as the recorders write them, excluding other forms that some parser accepts (1_000, 0x10, ٣). The pattern is
#: unambiguous, so nothing is tried again.
NUMBER = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"

#: Columns that the recorders write, ``group:name``.
RECORDED_COLUMNS = frozenset(
    f"{group}:{name}"
    for group, names in {
        "total cpu usage": "usr sys idl wai hiq siq stl",
        "total usage": "usr sys idl wai hiq siq stl",
        "load avg": "1m 5m 15m",
        "memory usage": "used free buff cach avai",
        "dsk/total": "read writ",
        "io/total": "read writ",
        "net/total": "recv send",
        "swap": "used free",
        "paging": "in out",
        "procs": "run blk new",
        "system": "int csw",
        "tcp sockets": "lis act syn tim clo",
        "filesystem": "files inodes",
        "file locks": "pos lck rea wri",
        "sysv ipc": "msg sem shm",
        "unix sockets": "dgm str lis act",
        "virtual memory": "majpf minpf alloc free",
    }.items()
    for name in names.split()
)
_MAX_PREAMBLE_LINES = 12
# Possessive quantifiers: linear time without backtracking, on any input.
_HEADER = linear_pattern(
    rb'\n(?!"[^"\n]{0,99}:")("[^"\n]*+"(?:,(?:"[^"\n]*+")?+)*+)\r?+\n[\r\n]*+("[^"\n]++"(?:,"[^"\n]*+")*+,?+)\r?+(?:\n|\Z)'
)
_PREAMBLE_LINE = re.compile(rb'"[^"\n]{0,99}:"|"[^"\n]{0,99} CSV [Oo]utput"|\s*$')
_BOM = b"\xef\xbb\xbf"
_BANNER = re.compile(rb'"([^"\n]{0,99}) CSV [Oo]utput"')
_CMDLINE = b'"Cmdline:","'
_DATE_CELL = b'"Date:"'
_DATE = re.compile(rb'"Date:","(\d{1,2}) ([A-Za-z]{3}) (\d{4}) (\d\d):(\d\d):(\d\d)(?: (?P<zone>[^"\n]{0,40}))?"')
#: Options of the recorders with a value, so that the value is not mistaken for the delay.
_WITH_VALUE = frozenset(
    {"-C", "-D", "-I", "-L", "-M", "-N", "-P", "-S", "--output", "--profile", "--pidfile"}  # dstat and dool
    | {"-o", "-h", "--host", "-a", "--archive", "-O", "--origin", "-A", "--align"}  # pcp-dstat
)


@dataclass(frozen=True)
class Columns:
    """The columns in a group row and a column row.

    Attributes:
      names: the full name of each cell, ``group:name``, in the order of the log; "" for the time cells.
      time, epoch: index of the cell that holds the time of day, or the seconds since 1970; None if there is none.
      text: indices of the cells with text, by their name (``--top-cpu`` and similar).
    """

    names: tuple[str, ...]
    time: int | None
    epoch: int | None
    text: tuple[int, ...]


@dataclass(frozen=True)
class Segment:
    """The samples of one start of the recorder.

    Attributes:
      columns: its columns.
      body: its sample rows; each ends in a line feed.
      torn: number of truncated rows at the end of the file (0 or 1).
      recorder: its banner, such as ``dool 1.3.8``; "" without one.
      date_us: the ``Date`` cell as microseconds since 1970 *on the recorder's clock*, without its zone; None if it
        is missing, not a date, or outside the valid years of samples.
      near_us: the ``Date`` cell in any year, or that of an earlier start: close enough to determine the year.
      zone: the zone in the ``Date`` cell; "" without one.
      cmdline: the recorder's command line, "" if it is missing.
      size: bytes of its header and its samples.
    """

    columns: Columns
    body: bytes
    torn: int
    recorder: str
    date_us: int | None
    near_us: int | None
    zone: str
    cmdline: bytes
    size: int

    @property
    def interval_s(self) -> float:
        """The delay on the command line, seconds; the recorders' default is 1."""
        return interval_of(self.cmdline)


class _Header(NamedTuple):
    """A header in a log.

    Attributes:
      start: position of the group row.
      end: position behind the column row.
      group_row, column_row: without line ends.
    """

    start: int
    end: int
    group_row: bytes
    column_row: bytes


class _Preamble(NamedTuple):
    """The lines of a preamble.

    Attributes:
      recorder: the banner; "" without one.
      cmdline: the command line; b"" without one.
      date_us: the ``Date`` cell, as in `Segment`, of any year; None if it is missing or not a date.
      zone: the zone in the ``Date`` cell; None without a ``Date`` cell.
    """

    recorder: str
    cmdline: bytes
    date_us: int | None
    zone: str | None


def split_segments(text: bytes) -> list[Segment]:
    """Split a log into the starts of its recorder, in order.

    Raises:
      RejectedInput: ``empty_telemetry``, ``not_telemetry``, ``log_too_wide`` or ``too_many_restarts``.
    """
    text = text[len(_BOM) :] if text.startswith(_BOM) else text
    if not text.strip(b"\x00 \r\n\t"):
        raise RejectedInput("empty_telemetry", "the log is empty")
    headers = _find_headers(text)
    starts = [0]
    for previous, header in zip(headers, headers[1:]):
        starts.append(_preamble_start(text, previous.end, header.start))
    ends = [*starts[1:], len(text)]

    segments: list[Segment] = []
    recorder = ""
    cmdline = b""
    zone = ""
    near_us: int | None = None
    for header, start, end in zip(headers, starts, ends):
        preamble = _read_preamble(text[start : header.start])
        # A preamble may lack lines. Then the lines of an earlier start apply, except for its date.
        recorder = preamble.recorder or recorder
        cmdline = preamble.cmdline or cmdline
        zone = zone if preamble.zone is None else preamble.zone
        date_us = preamble.date_us
        near_us = near_us if date_us is None else date_us
        if date_us is not None and not FIRST_LOCAL <= date_us < END_LOCAL:
            date_us = None  # as `near_us` it determines the year of the rows, which are then out of range
        body = text[header.end : end]
        complete_bytes = body.rfind(b"\n") + 1
        torn = int(bool(body[complete_bytes:].strip()))
        columns = read_columns(header.group_row, header.column_row)
        segments.append(
            Segment(columns, body[:complete_bytes], torn, recorder, date_us, near_us, zone, cmdline, end - start)
        )
    return segments


def _find_headers(text: bytes) -> list[_Header]:
    """Return all headers of a log, at least one. Raises `RejectedInput`."""
    # `_HEADER` begins with a line feed, which the log's first line lacks: positions in ``head`` are one higher.
    head = b"\n" + text[:MAX_HEADER_OFFSET]
    first = _HEADER.search(head)
    if first is None:
        raise RejectedInput("not_telemetry", "no header of dstat, dool or pcp-dstat (quoted group and column rows)")
    headers = [_header(first, first.start(), first.end() - 1)]
    second_start = text.find(b'\n"', headers[0].end - 1)  # much faster than the pattern
    if second_start < 0:
        return headers
    for match in _HEADER.finditer(text, second_start):
        headers.append(_header(match, match.start() + 1, match.end()))
        if len(headers) > MAX_LOG_STARTS:
            raise RejectedInput("too_many_restarts", f"more than {MAX_LOG_STARTS} starts of the recorder")
    return headers


def _header(match: re.Match[bytes], start: int, end: int) -> _Header:
    return _Header(start, end, match.group(1).rstrip(b"\r"), match.group(2).rstrip(b"\r"))


def _preamble_start(text: bytes, earliest: int, group_start: int) -> int:
    """Return the start of the preamble above a group row, at ``earliest`` or later."""
    start = group_start
    for _ in range(_MAX_PREAMBLE_LINES):
        if start <= earliest:
            break
        line_start = max(text.rfind(b"\n", earliest, start - 1) + 1, earliest)
        if not _PREAMBLE_LINE.match(text, line_start, start):
            break
        start = line_start
    return start


def _read_preamble(text: bytes) -> _Preamble:
    banner = _BANNER.search(text)
    date = _DATE.search(text)
    recorder = _decode(banner.group(1)) if banner else ""
    if date is None:
        return _Preamble(recorder, _cmdline(text), None, None)
    return _Preamble(recorder, _cmdline(text), _date_us(date), _decode(date["zone"] or b""))


def _cmdline(preamble: bytes) -> bytes:
    """Return the ``Cmdline:`` cell, which may hold quotes and commas: up to the ``Date:`` cell or the line's end."""
    begin = preamble.find(_CMDLINE)
    if begin < 0:
        return b""
    begin += len(_CMDLINE)
    end = preamble.find(b"\n", begin)
    line = preamble[begin : end if end >= 0 else len(preamble)]
    cell, _, _ = line.partition(_DATE_CELL)
    return cell.rstrip(b"\r").rstrip(b",").removesuffix(b'"')


def _date_us(match: re.Match[bytes]) -> int | None:
    day, month, year, hour, minute, second, _ = match.groups()
    return epoch_us(int(year), MONTHS.get(month.lower(), 0), int(day), int(hour), int(minute), int(second))


def epoch_us(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> int | None:
    """Return a civil time as µs since 1970 without a zone; None for an invalid time.

    Second 60 is the next minute.
    """
    try:
        days = (dt.date(year, month, day) - dt.date(1970, 1, 1)).days
    except ValueError:
        return None
    if hour > 23 or minute > 59 or second > 60:
        return None
    return (days * 86400 + hour * 3600 + minute * 60 + second) * SECOND


def _decode(value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text).strip()


@lru_cache(maxsize=64)
def read_columns(group_row: bytes, column_row: bytes) -> Columns:
    """Return the columns in the two rows of a header, without line ends. A group's name is at its first column.

    Raises:
      RejectedInput: ``log_too_wide``: rows or names exceed the limits.
    """
    row_bytes = max(len(group_row), len(column_row))
    if row_bytes > MAX_HEADER_ROW_BYTES:
        raise RejectedInput("log_too_wide", f"header row of {row_bytes} bytes")
    groups = _cells(group_row)
    columns = _cells(column_row)
    if columns[-1] == "":
        columns.pop()  # a trailing comma
    if len(columns) > MAX_LOG_COLUMNS + 2:  # the time cells
        raise RejectedInput("log_too_wide", f"header of {len(columns)} columns, at most {MAX_LOG_COLUMNS}")
    time = epoch = None
    group = ""
    full_names = []
    text_indices = []
    for index, name in enumerate(columns):
        if index < len(groups) and groups[index]:
            group = groups[index]
        if len(name) > MAX_COLUMN_NAME or len(group) > MAX_COLUMN_NAME:
            raise RejectedInput("log_too_wide", f"column name of {max(len(name), len(group))} characters")
        if name in TIME_CELLS:
            time = index if time is None else time
            full_names.append("")
        elif name in EPOCH_CELLS:
            epoch = index if epoch is None else epoch
            full_names.append("")
        else:
            # With several instances, the recorders repeat the group in the column: net/lo:recv.
            full_names.append(name if name.startswith(f"{group}:") else f"{group}:{name}")
            if _is_text_column(group, name):
                text_indices.append(index)
    return Columns(unique_names(full_names), time, epoch, tuple(text_indices))


def _cells(row: bytes) -> list[str]:
    # The row matched _HEADER: no quote is within a cell, but a comma may be.
    return [_decode(cell.strip(b'"')) for cell in re.findall(rb'"[^"]*"|(?<=,)(?=,|$)', row)]


def _is_text_column(group: str, name: str) -> bool:
    return "process" in f"{group} {name}" or group.startswith(("most ", "highest ", "top-", "out of memory"))


def interval_of(cmdline: bytes) -> float:
    """Return the seconds between samples by a recorder's command line: its first numeric operand, else 1."""
    is_value = True  # of an option; as the program's name, it is skipped
    for word in _decode(cmdline).split():
        if is_value:
            is_value = False
        elif word in _WITH_VALUE:
            is_value = True
        elif re.fullmatch(r"\d{1,6}(\.\d{1,6})?", word, re.ASCII) and float(word) > 0:
            return float(word)
    return 1.0
