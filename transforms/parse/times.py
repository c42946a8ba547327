"""Parse the cells of a log's time column, many at a time.

A cell is one of the forms below, each with or without a fraction of a second (dstat in debug mode, pcp-dstat's
``time-adv``). dstat and dool write neither year nor zone; a recorder configured by ``DSTAT_TIMEFMT`` or
``DOOL_TIMEFMT`` may write them.

    24-11 13:56:24         dstat, pcp-dstat          Nov-24 13:56:24                dool
    13:56:24               time only              2026-11-24 13:56:24[zone]      ISO 8601, also with a T
    1795528584             seconds since 1970        1795528584123                  milliseconds

Times are microseconds since 1970 (int64): in UTC, or by the clock of the recorder ("local") until the zone is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ciml.dstat import DAY, EARLIEST, LATEST, MONTHS, SECOND

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

_MILLISECONDS_FROM = 1e11  # in seconds, this is the year 5138
_MAX_CELL = 40  # bytes
#: By number of the month, from 1: days of the year before it, and its days.
_DAYS_BEFORE = np.array([0, 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334], np.int64)
_DAYS_IN = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], np.int64)
#: The number of a month by its three letters, the lower five bits of each; 0 for other letters.
_MONTH_OF_LETTERS = np.zeros(1 << 15, np.int64)
for _name, _number in MONTHS.items():
    _MONTH_OF_LETTERS[(_name[0] & 31) << 10 | (_name[1] & 31) << 5 | (_name[2] & 31)] = _number


@dataclass(slots=True)
class Cells:
    """Time cells as read; every array has one value per row.

    Attributes:
      ok: whether the cell is valid; where not, the other values are undefined.
      instant: µs UTC, where ``absolute``.
      absolute: whether the cell itself holds the instant.
      year, month, day: of the local date; 0 if the cell lacks it.
      clock: µs since local midnight.
    """

    ok: Bool
    instant: Int64
    absolute: Bool
    year: Int64
    month: Int64
    day: Int64
    clock: Int64

    def __getitem__(self, rows: slice) -> Cells:
        return Cells(*(getattr(self, name)[rows] for name in self.__slots__))


def read_epochs(seconds: npt.NDArray[np.float64]) -> tuple[Int64, Bool]:
    """Convert an epoch column (NaN for no value) to µs UTC; return the times, and which are valid.

    It holds whole and fractional seconds, or whole milliseconds, distinguished by size.
    """
    ok = np.abs(seconds) < LATEST  # excludes values that are not a time in any unit, or would overflow, and NaN
    value = np.where(ok, seconds, 0.0)
    scaled = value * np.where(np.abs(value) >= _MILLISECONDS_FROM, 1e3, 1e6)
    ok &= (scaled >= EARLIEST) & (scaled < LATEST)
    return np.rint(np.where(ok, scaled, 0.0)).astype(np.int64), ok


def read_cells(cells: pa.Array) -> Cells:
    """Read a column of time cells (binary, one chunk), in any mixture of forms."""
    rows = len(cells)
    out = Cells(*(np.zeros(rows, np.bool_ if name in ("ok", "absolute") else np.int64) for name in Cells.__slots__))
    _read_widths(cells, out)
    if not out.ok.all():
        # Right-padded by pcp-dstat, or quoted: the common case above is not slowed down.
        text = pa.Array.from_buffers(pa.string(), rows, cells.buffers(), offset=cells.offset)
        _read_widths(pc.ascii_trim_whitespace(text), out)
    return out


def _read_widths(cells: pa.Array, out: Cells) -> None:
    """Fill in cells that are not ``ok`` yet, all cells of one width at a time."""
    if not len(cells):
        return
    _, offsets_buffer, data_buffer = cells.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[cells.offset : cells.offset + len(cells) + 1].astype(np.int64)
    data = np.frombuffer(data_buffer if data_buffer is not None else b"", np.uint8)
    widths = np.diff(offsets)
    todo = ~out.ok & (widths > 0) & (widths <= _MAX_CELL)
    if cells.null_count:
        todo &= np.from_dlpack(pc.is_valid(cells).cast(pa.uint8())).astype(bool)
    if not todo.any():
        return
    for width in np.flatnonzero(np.bincount(widths[todo])).tolist():
        rows = np.flatnonzero(todo & (widths == width))
        if len(rows) == len(cells):
            matrix = data[offsets[0] : offsets[-1]].reshape(-1, width)
        else:
            matrix = data[offsets[rows][:, None] + np.arange(width)]
        _read_matrix(matrix, rows, out)


def _read_matrix(matrix: npt.NDArray[np.uint8], rows: Int64, out: Cells) -> None:
    """Fill in cells of one width, uint8 [rows, width]; try one form after the other."""
    for form in _forms(matrix.shape[1]):
        fields, ok = _match(matrix, form)
        if not ok.any():
            continue
        ok = _store(fields, ok, form, rows, out)
        if ok.all():
            return
        matrix = matrix[~ok]
        rows = rows[~ok]


def _forms(width: int) -> list[str]:
    """Return the forms of cells of a width: d m y (day, month, year) b (month name) H M S f (fraction) u (s) z."""
    forms: list[str] = []
    for base in ("dd-mm HH:MM:SS", "bbb-dd HH:MM:SS", "HH:MM:SS", "yyyy-mm-dd HH:MM:SS", "yyyy-mm-ddTHH:MM:SS"):
        zones = ("", "Z", "szzzz", "szz:zz", "szz") if base[0] == "y" else ("",)
        for zone in zones:
            digits = width - len(base) - len(zone)
            if digits == 0 or 2 <= digits <= 10:
                forms.append(base + ("." + "f" * (digits - 1) if digits else "") + zone)
    if width in (9, 10) or 12 <= width <= 20:
        forms.append("u" * width if width in (9, 10, 12, 13) else "u" * 10 + "." + "f" * (width - 11))
    return forms


def _match(matrix: npt.NDArray[np.uint8], form: str) -> tuple[dict[str, Int64], Bool]:
    """Return the number in each field of a form, and which rows match."""
    ok = np.ones(len(matrix), np.bool_)
    fields: dict[str, Int64] = {}
    for index, kind in enumerate(form):
        column = matrix[:, index]
        if kind in "dmyHMSfuz":
            digit = column - np.uint8(48)  # wraps around below "0"
            ok &= digit < 10
            fields[kind] = fields[kind] * 10 + digit if kind in fields else digit.astype(np.int64)
        elif kind == "b":
            letter = (column & 31).astype(np.int64)
            ok &= (column | 32) - np.uint8(97) < 26
            fields[kind] = (fields[kind] << 5 | letter) if kind in fields else letter
        elif kind == "s":
            ok &= (column == ord("+")) | (column == ord("-"))
            fields[kind] = np.where(column == ord("-"), -1, 1).astype(np.int64)
        else:
            ok &= column == ord(kind)
        if index == 2 and not ok.any():
            break  # most wrong forms are excluded by now
    return fields, ok


def _store(fields: dict[str, Int64], ok: Bool, form: str, rows: Int64, out: Cells) -> Bool:
    """Fill in matching cells whose numbers are valid; return which rows these are."""
    zeros = np.zeros(len(rows), np.int64)
    fraction = fields.get("f", zeros) * SECOND // 10 ** form.count("f")
    if "u" in fields:
        unit = 1000 if form.count("u") > 10 else SECOND  # in µs
        return _store_instants(fields["u"] * unit + fraction, ok, rows, out)
    clock = ((fields["H"] * 60 + fields["M"]) * 60 + fields["S"]) * SECOND + fraction
    ok = ok & (fields["H"] < 24) & (fields["M"] < 60) & (fields["S"] <= 60)
    year = fields.get("y", zeros)
    month = _MONTH_OF_LETTERS[np.where(ok, fields["b"], 0)] if "b" in fields else fields.get("m", zeros)
    day = fields.get("d", zeros)
    if "d" in fields:
        ok &= _is_date(year, month, day)
    if "z" in fields or form.endswith("Z"):
        zone = fields.get("z", zeros)
        hours, minutes = (zone, zeros) if form.endswith("szz") else (zone // 100, zone % 100)
        ok &= (hours <= 14) & (minutes < 60)
        offset = (hours * 60 + minutes) * 60 * SECOND * fields.get("s", 1)
        instant = civil_days(year, np.where(ok, month, 1), day) * DAY + clock - offset
        ok = _store_instants(instant, ok, rows, out)
    out.year[rows[ok]] = year[ok]
    out.month[rows[ok]] = month[ok]
    out.day[rows[ok]] = day[ok]
    out.clock[rows[ok]] = clock[ok]
    out.ok[rows[ok]] = True
    return ok


def _store_instants(instant: Int64, ok: Bool, rows: Int64, out: Cells) -> Bool:
    ok = ok & (instant >= EARLIEST) & (instant < LATEST)
    out.instant[rows[ok]] = instant[ok]
    out.absolute[rows[ok]] = True
    out.ok[rows[ok]] = True
    return ok


def _is_date(year: Int64, month: Int64, day: Int64) -> Bool:
    """Return which dates exist; 29 February exists in year 0, which stands for an unknown one."""
    is_month = (month >= 1) & (month <= 12)
    leap_day = (month == 2) & ((year == 0) | _is_leap(year))
    valid: Bool = is_month & (day >= 1) & (day <= _DAYS_IN[np.where(is_month, month, 0)] + leap_day)
    return valid


def _is_leap(year: Int64) -> Bool:
    leap: Bool = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    return leap


def civil_days(year: Int64, month: Int64, day: Int64) -> Int64:
    """Return the days since 1970 of dates with a month from 1 to 12."""
    years_before = year - 1
    new_year = years_before * 365 + years_before // 4 - years_before // 100 + years_before // 400 - 719_162
    return new_year + _DAYS_BEFORE[month] + (_is_leap(year) & (month > 2)) + day - 1


def local_times(cells: Cells, reference_us: Int64 | int) -> tuple[Int64, Bool]:
    """Convert cells that are not ``absolute`` to local µs since 1970; missing fields come from a reference.

    A missing year is the one in which a sample is nearest to the reference, which handles New Year in both directions.
    Cells without a date get the day of the reference, and the next day each time the clock falls back by more than
    half a day.

    Args:
      cells: the cells.
      reference_us: a local time (one per row, or one for all) near the samples.

    Returns:
      The times, and which are valid.
    """
    reference = np.broadcast_to(np.asarray(reference_us, np.int64), cells.ok.shape)
    ok = cells.ok & ~cells.absolute
    month = np.where(cells.month > 0, cells.month, 1)
    year = np.where(cells.year > 0, cells.year, _years(reference))
    result = civil_days(year, month, cells.day) * DAY + cells.clock
    distance = result - reference
    yearless = ok & (cells.year == 0) & (cells.month > 0)
    other_year = yearless & (np.abs(distance) > 183 * DAY)
    if other_year.any():
        year = np.where(other_year, year - np.sign(distance), year)
        result = np.where(other_year, civil_days(year, month, cells.day) * DAY + cells.clock, result)
    ok &= ~(yearless & (month == 2) & (cells.day == 29) & ~_is_leap(year))
    clock_only = ok & (cells.month == 0)
    if clock_only.any():
        result = np.where(clock_only, _days_of_clock(cells.clock, clock_only, reference), result)
    return result, ok


def _years(us: Int64) -> Int64:
    return us.astype("datetime64[us]").astype("datetime64[Y]").astype(np.int64) + 1970


def _days_of_clock(clock: Int64, clock_only: Bool, reference: Int64) -> Int64:
    """Return local times for cells without a date; the rows are those of one start of the recorder."""
    rows = np.flatnonzero(clock_only)
    times = clock[rows]
    day, reference_clock = divmod(reference[rows[0]], DAY)
    if times[0] - reference_clock < -DAY // 2:
        day += 1
    elif times[0] - reference_clock > DAY // 2:
        day -= 1
    steps = np.diff(times)
    # Forward by more than half a day is a clock set back over midnight: the samples keep their recorded order.
    day_changes = (steps < -DAY // 2).astype(np.int64) - (steps > DAY // 2)
    out = np.zeros(len(clock), np.int64)
    out[rows] = (day + np.concatenate([[0], np.cumsum(day_changes)])) * DAY + times
    return out
