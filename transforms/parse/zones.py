"""Zones: the candidate zones of a header's name, and their offsets over the time of a log."""

from __future__ import annotations

import datetime as dt
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from ciml.dstat.vocabulary import DAY, HOUR, SECOND, epoch_us
from ciml.results.values import zone_of
from ciml.transforms.parse.times import Int64

_STEP = 7 * DAY  # no zone changes its clock and back within a week

#: Zones by the result of ``strftime("%Z")``. Only zones with different rules are listed.
_ABBREVIATIONS = {
    "GMT": "Europe/London Africa/Abidjan", "BST": "Europe/London Asia/Dhaka", "WET": "Europe/Lisbon",
    "WEST": "Europe/Lisbon", "CET": "Europe/Berlin Africa/Algiers", "CEST": "Europe/Berlin",
    "EET": "Europe/Helsinki Africa/Tripoli Africa/Cairo", "EEST": "Europe/Helsinki Africa/Cairo",
    "MSK": "Europe/Moscow", "IST": "Asia/Kolkata Asia/Jerusalem Europe/Dublin", "IDT": "Asia/Jerusalem",
    "PKT": "Asia/Karachi", "CST": "America/Chicago Asia/Shanghai America/Havana America/Mexico_City",
    "CDT": "America/Chicago America/Havana", "EST": "America/New_York America/Panama", "EDT": "America/New_York",
    "MST": "America/Denver America/Phoenix", "MDT": "America/Denver", "PST": "America/Los_Angeles Asia/Manila",
    "PDT": "America/Los_Angeles", "AKST": "America/Anchorage", "AKDT": "America/Anchorage", "HST": "Pacific/Honolulu",
    "AST": "America/Halifax America/Puerto_Rico", "ADT": "America/Halifax", "NST": "America/St_Johns",
    "NDT": "America/St_Johns", "HKT": "Asia/Hong_Kong", "KST": "Asia/Seoul", "WIB": "Asia/Jakarta",
    "WITA": "Asia/Makassar", "WIT": "Asia/Jayapura", "AWST": "Australia/Perth", "ACST": "Australia/Adelaide "
    "Australia/Darwin", "ACDT": "Australia/Adelaide", "AEST": "Australia/Sydney Australia/Brisbane",
    "AEDT": "Australia/Sydney", "NZST": "Pacific/Auckland", "NZDT": "Pacific/Auckland", "SAST": "Africa/Johannesburg",
    "EAT": "Africa/Nairobi", "CAT": "Africa/Maputo", "WAT": "Africa/Lagos", "SST": "Pacific/Pago_Pago",
}  # fmt: skip
#: Zones with clock changes, now or recently, whose ``%Z`` is a number: their "-03" is not a fixed offset.
_NUMBERED = (
    "Africa/Casablanca", "America/Asuncion", "America/Campo_Grande", "America/Miquelon", "America/Montevideo",
    "America/Nuuk", "America/Punta_Arenas", "America/Santiago", "America/Sao_Paulo", "America/Scoresbysund",
    "Antarctica/Troll", "Asia/Baku", "Asia/Tehran", "Atlantic/Azores", "Australia/Lord_Howe", "Pacific/Apia",
    "Pacific/Chatham", "Pacific/Easter", "Pacific/Fiji", "Pacific/Norfolk",
)  # fmt: skip
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
    found = False
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
                found = True
                yield clock, None
                continue
            for instant in _instants(place, anchor, name):
                found = True
                yield clock, instant if date_us is not None else None
        if found:
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
    found = (
        (local - offset, pieces[bisect_right(since, local - offset, 1) - 1])
        for offset in sorted({offset for _, offset, _ in pieces}, reverse=True)
    )
    return [instant for instant, (_, offset, called) in found if (instant + offset, called) == (local, name)]


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
    changed = [at for at, (_, offset, _) in enumerate(pieces) if not at or offset != pieces[at - 1][1]]
    return Clock(place, tuple(pieces[at][0] for at in changed), tuple(pieces[at][1] for at in changed))


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
    begin, end = (epoch_us(each, 1, 1) or 0 for each in (year, year + 1))
    found = [_piece(zone, begin)]
    for low in range(begin, end, _STEP):
        high = min(low + _STEP, end)
        if _piece(zone, high)[1:] == found[-1][1:]:
            continue
        before, change = low, high
        while change - before > SECOND:
            middle = (before + change) // 2 // SECOND * SECOND
            if _piece(zone, middle)[1:] == found[-1][1:]:
                before = middle
            else:
                change = middle
        found.append(_piece(zone, change))
    return tuple(found)


def _piece(zone: ZoneInfo, us: int) -> _Piece:
    moment = dt.datetime.fromtimestamp(us // SECOND, zone)
    offset = moment.utcoffset() or dt.timedelta()
    return us, int(offset.total_seconds()) * SECOND, moment.tzname() or ""
