"""Zones: the candidate zones of a header's name, and their offsets over the time of a log.

From a recorder's clock to UTC: its zone, and the meaning of clock changes within the log.

A header names its zone by an offset, by an abbreviation, or not at all. An abbreviation may mean several zones (IST is
India, Israel and Ireland; CST is Chicago, Shanghai and Havana), and whether CET has a summer time depends on the place.
So every candidate zone is tried. If all give the same times, those are right. Else the event's start and end decide,
then the fewest jumps. If that is not enough, the log is rejected.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from ciml.dstat import DAY, HOUR, SECOND, epoch_us
from ciml.errors import RejectedInput
from ciml.transforms.parse.times import Int64
from ciml.transforms.results.values import zone_of

_STEP = 7 * DAY  # no zone changes its clock and back within a week

#: Zones by the result of ``strftime("%Z")``. Only zones with different rules are listed.
_ABBREVIATIONS = {
    "GMT": "Europe/London Africa/Abidjan",
    "BST": "Europe/London Asia/Dhaka",
    "WET": "Europe/Lisbon",
    "WEST": "Europe/Lisbon",
    "CET": "Europe/Berlin Africa/Algiers",
    "CEST": "Europe/Berlin",
    "EET": "Europe/Helsinki Africa/Tripoli Africa/Cairo",
    "EEST": "Europe/Helsinki Africa/Cairo",
    "MSK": "Europe/Moscow",
    "IST": "Asia/Kolkata Asia/Jerusalem Europe/Dublin",
    "IDT": "Asia/Jerusalem",
    "PKT": "Asia/Karachi",
    "CST": "America/Chicago Asia/Shanghai America/Havana America/Mexico_City",
    "CDT": "America/Chicago America/Havana",
    "EST": "America/New_York America/Panama",
    "EDT": "America/New_York",
    "MST": "America/Denver America/Phoenix",
    "MDT": "America/Denver",
    "PST": "America/Los_Angeles Asia/Manila",
    "PDT": "America/Los_Angeles",
    "AKST": "America/Anchorage",
    "AKDT": "America/Anchorage",
    "HST": "Pacific/Honolulu",
    "AST": "America/Halifax America/Puerto_Rico",
    "ADT": "America/Halifax",
    "NST": "America/St_Johns",
    "NDT": "America/St_Johns",
    "HKT": "Asia/Hong_Kong",
    "KST": "Asia/Seoul",
    "WIB": "Asia/Jakarta",
    "WITA": "Asia/Makassar",
    "WIT": "Asia/Jayapura",
    "AWST": "Australia/Perth",
    "ACST": "Australia/Adelaide Australia/Darwin",
    "ACDT": "Australia/Adelaide",
    "AEST": "Australia/Sydney Australia/Brisbane",
    "AEDT": "Australia/Sydney",
    "NZST": "Pacific/Auckland",
    "NZDT": "Pacific/Auckland",
    "SAST": "Africa/Johannesburg",
    "EAT": "Africa/Nairobi",
    "CAT": "Africa/Maputo",
    "WAT": "Africa/Lagos",
    "SST": "Pacific/Pago_Pago",
}
#: Zones with clock changes, now or recently, whose ``%Z`` is a number: their "-03" is not a fixed offset.
_NUMBERED = (
    "Africa/Casablanca America/Asuncion America/Campo_Grande America/Miquelon America/Montevideo America/Nuuk "
    "America/Punta_Arenas America/Santiago America/Sao_Paulo America/Scoresbysund Antarctica/Troll Asia/Baku "
    "Asia/Tehran Atlantic/Azores Australia/Lord_Howe Pacific/Apia Pacific/Chatham Pacific/Easter Pacific/Fiji "
    "Pacific/Norfolk "
).split()
_FIXED = {"UTC": 0, "UCT": 0, "Z": 0, "Zulu": 0, "Etc/UTC": 0, "JST": 9 * HOUR}
_OFFSET = re.compile(r"([+-])(\d\d)(?::?(\d\d))?", re.ASCII)
#: Offsets in use, in minutes, for a clock without any information.
_OFFSETS = [*range(-720, 841, 60), -570, -210, -150, 210, 270, 330, 345, 390, 525, 570, 630, 765]


def fixed_offset(zone: str) -> int | None:
    """Return the offset from UTC in µs of a name with one offset everywhere and always; None for others."""
    if zone in _FIXED:
        return _FIXED[zone]
    match = _OFFSET.fullmatch(zone)
    if match is None:
        return None
    minutes = int(match[2]) * 60 + int(match[3] or 0)
    if minutes > 14 * 60 or int(match[3] or 0) > 59:
        return None
    return (minutes if match[1] == "+" else -minutes) * 60 * SECOND


def check_zone(name: str) -> None:
    """Raise `CimlError` unless a name is an offset, an abbreviation, or the IANA name of a zone."""
    if fixed_offset(name) is None and name not in _ABBREVIATIONS:
        zone_of(name)


@dataclass(frozen=True, slots=True)
class Clock:
    """A zone's history: from ``since[i]`` µs UTC on, its offset is ``offsets[i]`` µs."""

    name: str
    since: tuple[int, ...]
    offsets: tuple[int, ...]

    def offset_at(self, utc: Int64) -> Int64:
        index = np.searchsorted(np.asarray(self.since[1:], np.int64), utc, side="right")
        return np.asarray(self.offsets, np.int64)[index]


def clocks(
    first: int, last: int, date_us: int | None, zone: str, hint: str | None
) -> Iterator[tuple[Clock, int | None]]:
    """Yield the candidate clocks of times from ``first`` to ``last``, and the header's date by each, µs UTC."""
    anchor = first if date_us is None else date_us
    is_known = False
    for name in (zone, hint or ""):
        offset = fixed_offset(name)
        if offset is not None:
            yield Clock(name, (0,), (offset,)), None if date_us is None else date_us - offset
            for numbered, instant in numbered_clocks(name, anchor, first, last):
                yield numbered, instant if date_us is not None else None
            return
        for place in _places(name, hint):
            clock = _history(place, first, last)
            if clock is None:
                continue
            if name not in _ABBREVIATIONS:
                is_known = True
                yield clock, None
                continue
            for instant in _instants(place, anchor, name):
                is_known = True
                yield clock, instant if date_us is not None else None
        if is_known:
            return
    for minutes in _OFFSETS:
        offset = minutes * 60 * SECOND
        name = f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
        yield Clock(name, (0,), (offset,)), None if date_us is None else date_us - offset


def numbered_clocks(name: str, anchor: int, first: int, last: int) -> Iterator[tuple[Clock, int]]:
    """Yield the clocks of places that write ``name`` at local time ``anchor``, and that instant, µs UTC."""
    years = range(_year(anchor - 2 * DAY), _year(anchor + 2 * DAY) + 1)
    for place in _NUMBERED:
        if not any(name in {called for _, _, called in _changes(place, year) or ()} for year in years):
            continue  # the common case
        for instant in _instants(place, anchor, name):
            if (clock := _history(place, first, last)) is not None:
                yield clock, instant


def _instants(place: str, local: int, name: str) -> list[int]:
    """Return the instants (0 to 2) at which a place's clock showed a time and its zone was called ``name``."""
    pieces = _pieces(place, local - 2 * DAY, local + 2 * DAY) or []
    since = [instant for instant, _, _ in pieces]
    candidates = (
        (local - offset, pieces[bisect_right(since, local - offset, 1) - 1])
        for offset in sorted({offset for _, offset, _ in pieces}, reverse=True)
    )
    return [instant for instant, (_, offset, called) in candidates if (instant + offset, called) == (local, name)]


def _places(name: str, hint: str | None) -> list[str]:
    """Return the candidate zones of a name; the hint first, where the abbreviation does not exclude it."""
    if name not in _ABBREVIATIONS:
        return [name] if "/" in name else []
    places = _ABBREVIATIONS[name].split()
    return [hint] if hint in places else places


def _zone(place: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(place)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None  # an unknown zone, or a machine without the tz database


def _history(place: str, first: int, last: int) -> Clock | None:
    """Return a zone's offsets while its clock shows ``first`` to ``last``, µs, and days around; None if unknown."""
    pieces = _pieces(place, first - 2 * DAY, last + 2 * DAY)
    if pieces is None:
        return None
    changed = [index for index, (_, offset, _) in enumerate(pieces) if not index or offset != pieces[index - 1][1]]
    return Clock(place, tuple(pieces[index][0] for index in changed), tuple(pieces[index][1] for index in changed))


#: From an instant on, µs UTC: the offset of a zone, µs, and its name.
_Piece = tuple[int, int, str]


def _pieces(place: str, begin: int, end: int) -> list[_Piece] | None:
    """Return a zone's history between two instants, µs UTC."""
    pieces: list[_Piece] = []
    for year in range(_year(begin), _year(end) + 1):
        changes = _changes(place, year)
        if changes is None:
            return None
        for instant, offset, called in changes:
            if instant <= begin:
                pieces = [(begin, offset, called)]
            elif instant < end and (offset, called) != pieces[-1][1:]:
                pieces.append((instant, offset, called))
    return pieces


def _year(us: int) -> int:
    return dt.datetime.fromtimestamp(us // SECOND, dt.UTC).year


@lru_cache(maxsize=4096)
def _changes(place: str, year: int) -> tuple[_Piece, ...] | None:
    """Return the history of a zone in a year of UTC, within or next to the years of `EARLIEST` to `LATEST`."""
    zone = _zone(place)
    if zone is None:
        return None
    begin, end = (epoch_us(start_year, 1, 1) or 0 for start_year in (year, year + 1))
    pieces = [_piece(zone, begin)]
    for low in range(begin, end, _STEP):
        high = min(low + _STEP, end)
        if _piece(zone, high)[1:] == pieces[-1][1:]:
            continue
        before = low
        change = high
        while change - before > SECOND:
            middle = (before + change) // 2 // SECOND * SECOND
            if _piece(zone, middle)[1:] == pieces[-1][1:]:
                before = middle
            else:
                change = middle
        pieces.append(_piece(zone, change))
    return tuple(pieces)


def _piece(zone: ZoneInfo, us: int) -> _Piece:
    moment = dt.datetime.fromtimestamp(us // SECOND, zone)
    offset = moment.utcoffset() or dt.timedelta()
    return us, int(offset.total_seconds()) * SECOND, moment.tzname() or ""


#: Tolerance beyond the run's start and end: clocks differ, and recorders start early and stop late.
SLACK = 600 * SECOND
_GAP = 600 * SECOND  # after a longer gap within a repeated hour it is unknown which of the two it is
_MAX_SPAN = 400 * DAY


def may_change(zone: str, local: Int64, date_us: int | None) -> bool:
    """Return whether a place with this offset changes its clocks during these samples.

    Args:
      zone: the header's zone, whose `fixed_offset` is not None.
      local, date_us: as for `to_utc`.
    """
    if not zone.startswith(("+", "-")):
        return False
    first = int(local.min())
    last = int(local.max())
    anchor = first if date_us is None else date_us
    return last - first <= _MAX_SPAN and any(
        clock.offsets != (fixed_offset(zone),) for clock, _ in numbered_clocks(zone, anchor, first, last)
    )


#: The times of a log by one clock: its offset from UTC in µs, or each time, µs UTC.
_Reading = int | Int64


def to_utc(
    local: Int64, date_us: int | None, zone: str, start_us: int | None, end_us: int | None, hint: str | None
) -> Int64:
    """Convert the times of one start of the recorder.

    Args:
      local: int64 [rows], µs by the recorder's clock, in recorded order; at least one.
      date_us: the header's date by the same clock, µs, or None.
      zone: the header's zone, "" for none.
      start_us, end_us: the event's start and end, µs UTC, or None.
      hint: zone to assume where the header's is missing or unknown: an IANA name, an offset or an abbreviation.

    Returns:
      int64 [rows], µs UTC.

    Raises:
      RejectedInput: ``ambiguous_time``.
    """
    first = int(local.min())
    last = int(local.max())
    if last - first > _MAX_SPAN:
        raise RejectedInput("ambiguous_time", "the samples span more than a year")
    readings: dict[int | bytes, tuple[str, _Reading]] = {}
    for clock, date_utc in clocks(first, last, date_us, zone, hint):
        for reading in _readings(local, clock, date_utc):
            key = reading if isinstance(reading, int) else hashlib.blake2b(reading.tobytes(), digest_size=16).digest()
            readings.setdefault(key, (clock.name, reading))
    tried = list(readings.values())
    if len(tried) == 1 and (zone or hint):
        return _times(local, tried[0][1])
    bounded = [(name, reading) for name, reading in tried if _within(first, last, reading, start_us, end_us)]
    if len(bounded) > 1 and any(not isinstance(reading, int) for _, reading in bounded):
        jumps = [_jumps(local if isinstance(reading, int) else reading) for _, reading in bounded]
        bounded = [candidate for candidate, count in zip(bounded, jumps, strict=True) if count == min(jumps)]
    if len(bounded) == 1:
        return _times(local, bounded[0][1])
    names = ", ".join(dict.fromkeys(name for name, _ in (bounded or tried)))
    stated = f"zone {zone!r}" if zone else "no zone"
    if not bounded:
        raise RejectedInput("ambiguous_time", f"{stated}: no zone fits the event's start and end ({names[:200]})")
    places = list(dict.fromkeys(name for name, _ in bounded))
    if len(places) == 1:
        detail = f"{stated}: an hour that {places[0]} has twice may be the first or the second"
    else:
        detail = f"{stated}: several zones fit the event's start and end ({names[:200]}); name one, such as {places[0]}"
    raise RejectedInput("ambiguous_time", detail)


def _times(local: Int64, reading: _Reading) -> Int64:
    return local - reading if isinstance(reading, int) else reading


def _within(first: int, last: int, reading: _Reading, start_us: int | None, end_us: int | None) -> bool:
    if isinstance(reading, int):
        first = first - reading
        last = last - reading
    else:
        first = int(reading.min())
        last = int(reading.max())
    if start_us is not None and end_us is not None:
        return start_us - SLACK <= first and last <= end_us + SLACK
    # With only one of them the log must begin or end there, or every zone to one side of it would fit.
    if start_us is not None:
        return abs(first - start_us) <= SLACK
    return end_us is None or abs(last - end_us) <= SLACK


def _jumps(utc: Int64) -> int:
    steps = np.diff(utc)
    return int(np.count_nonzero((steps < -60 * SECOND) | (steps > _GAP)))


def _readings(local: Int64, clock: Clock, date_utc: int | None) -> Iterator[_Reading]:
    """Yield the series in UTC by one clock: once, or twice where a repeated hour is ambiguous."""
    if len(clock.offsets) == 1:
        yield clock.offsets[0]
        return
    offsets = np.asarray(sorted(set(clock.offsets), reverse=True), np.int64)
    instants = local[:, None] - offsets  # a greater offset is the earlier instant
    shown = clock.offset_at(instants) == offsets
    any_shown = shown.any(axis=1)
    first = np.where(any_shown, shown.argmax(axis=1), 0)
    last = np.where(any_shown, len(offsets) - 1 - shown[:, ::-1].argmax(axis=1), 0)
    rows = np.arange(len(local))
    early = instants[rows, first]
    late = instants[rows, last]
    twice = early != late
    if not twice.any():
        ahead = local - early
        yield int(ahead[0]) if (ahead == ahead[0]).all() else early
        return
    edges = np.flatnonzero(np.diff(np.concatenate([[False], twice, [False]]).astype(np.int8)))
    choices: list[Int64] = [early.copy()]
    for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        steps = np.diff(local[begin:end])
        second = np.concatenate([[False], np.cumsum(steps < -HOUR // 4) > 0])
        before = int(choices[0][begin - 1]) if begin else date_utc
        sure = before is not None and (
            abs(int(early[begin]) - before) <= _GAP or abs(int(late[begin]) - before) <= _GAP
        )
        if before is not None and sure and abs(int(late[begin]) - before) < abs(int(early[begin]) - before):
            second[:] = True
        by_fold = np.where(second, late[begin:end], early[begin:end])
        for choice in choices:
            choice[begin:end] = by_fold
        if not sure and not second.any() and len(choices) == 1:
            later = choices[0].copy()
            later[begin:end] = late[begin:end]
            choices.append(later)
    for choice in choices:
        ahead = local - choice
        yield int(ahead[0]) if (ahead == ahead[0]).all() else choice
