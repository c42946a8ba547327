"""From a recorder's clock to UTC: which zone it was in, and what a clock change within the log means.

A header names its zone by an offset or by an abbreviation, or not at all. An abbreviation may mean several zones (IST
is India, Israel and Ireland; CST is Chicago, Shanghai and Havana), and whether CET has a summer depends on the place.
So every zone that it may be is tried. Where all give the same times, those are right; else the event's start and end
decide, then which of them has the fewest jumps; and when that is not enough, the log is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from ciml.errors import Refused
from transforms.parse_times import Int64
from transforms.parse_words import DAY, HOUR, SECOND

#: How far a log may reach beyond its run's start and end: clocks differ, and recorders start early and stop late.
SLACK = 600 * SECOND
_GAP = 600 * SECOND  # a longer silence within an hour that comes twice leaves open which of the two it is
_MAX_SPAN = 400 * DAY

#: What ``strftime("%Z")`` says, and where on earth it does. Only zones that differ in their rules are listed.
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
#: Where clocks change, or did in the last years, and ``%Z`` says a number: a "-03" of these is no fixed offset.
_NUMBERED = (
    "Africa/Casablanca", "America/Asuncion", "America/Campo_Grande", "America/Miquelon", "America/Montevideo",
    "America/Nuuk", "America/Punta_Arenas", "America/Santiago", "America/Sao_Paulo", "America/Scoresbysund",
    "Antarctica/Troll", "Asia/Baku", "Asia/Tehran", "Atlantic/Azores", "Australia/Lord_Howe", "Pacific/Apia",
    "Pacific/Chatham", "Pacific/Easter", "Pacific/Fiji", "Pacific/Norfolk",
)  # fmt: skip
_FIXED = {"UTC": 0, "UCT": 0, "Z": 0, "Zulu": 0, "Etc/UTC": 0, "JST": 9 * HOUR}
_OFFSET = re.compile(r"([+-])(\d\d)(?::?(\d\d))?", re.ASCII)
#: Offsets in use, in minutes, for a clock of which nothing is known.
_OFFSETS = [*range(-720, 841, 60), -570, -210, -150, 210, 270, 330, 345, 390, 525, 570, 630, 765]


def fixed_offset(zone: str) -> int | None:
    """Offset from UTC in µs, for a name that means the same offset everywhere and always; None for any other."""
    if zone in _FIXED:
        return _FIXED[zone]
    match = _OFFSET.fullmatch(zone)
    if match is None:
        return None
    minutes = int(match[2]) * 60 + int(match[3] or 0)
    if minutes > 14 * 60 or int(match[3] or 0) > 59:
        return None
    return (minutes if match[1] == "+" else -minutes) * 60 * SECOND


def may_change(zone: str, local: Int64, date_us: int | None) -> bool:
    """Whether a place that writes its zone as this offset changes its clocks while such samples are taken.

    Args:
      zone: the header's, of which `fixed_offset` is not None.
      local, date_us: as for `to_utc`.
    """
    if _OFFSET.fullmatch(zone) is None:
        return False
    first, last = int(local.min()), int(local.max())
    anchor = first if date_us is None else date_us
    return last - first <= _MAX_SPAN and any(
        len(clock.offsets) > 1 for clock, _ in _numbered_clocks(zone, anchor, min(first, anchor), max(last, anchor))
    )


@dataclass(frozen=True, slots=True)
class _Clock:
    """Pieces of a zone's history: from ``since[i]`` µs UTC on, ``offsets[i]`` µs is added to UTC."""

    name: str
    since: tuple[int, ...]
    offsets: tuple[int, ...]

    def offset_at(self, utc: Int64) -> Int64:
        index = np.searchsorted(np.asarray(self.since[1:], np.int64), utc, side="right")
        return np.asarray(self.offsets, np.int64)[index]

    def instants(self, local: int) -> list[int]:
        """The instants at which this clock showed a time: none, one, or two."""
        return [
            local - offset
            for offset in sorted(set(self.offsets), reverse=True)
            if int(self.offset_at(np.asarray(local - offset))) == offset
        ]


def to_utc(
    local: Int64, date_us: int | None, zone: str, start_us: int | None, end_us: int | None, hint: str | None
) -> Int64:
    """Converts the times of one start of the recorder.

    Args:
      local: int64 [rows], µs by the recorder's clock, in recorded order; at least one.
      date_us: the header's date by the same clock, or None.
      zone: the header's zone, "" where it names none.
      start_us, end_us: the event's start and end, µs UTC, or None.
      hint: zone to assume where the header's is missing or unknown: an IANA name, an offset or an abbreviation.

    Returns:
      int64 [rows], µs UTC.

    Raises:
      Refused: ``ambiguous_time``.
    """
    if int(local.max()) - int(local.min()) > _MAX_SPAN:
        raise Refused("ambiguous_time", "the samples are more than a year apart")
    readings: dict[bytes, tuple[str, Int64]] = {}
    for clock, date_utc in _clocks(local, date_us, zone, hint):
        for utc in _readings(local, clock, date_utc):
            readings.setdefault(utc.tobytes(), (clock.name, utc))
    tried = list(readings.values())
    if len(tried) == 1 and (zone or hint):
        return tried[0][1]
    bounded = [(name, utc) for name, utc in tried if _within(utc, start_us, end_us)]
    if len(bounded) > 1:
        jumps = [_jumps(utc) for _, utc in bounded]
        bounded = [each for each, count in zip(bounded, jumps, strict=True) if count == min(jumps)]
    if len(bounded) == 1:
        return bounded[0][1]
    names = ", ".join(dict.fromkeys(name for name, _ in (bounded or tried)))
    stated = f"zone {zone!r}" if zone else "no zone"
    if not bounded:
        raise Refused("ambiguous_time", f"{stated}: no reading fits the event's start and end ({names[:200]})")
    raise Refused("ambiguous_time", f"{stated}: the event's start and end leave several readings ({names[:200]})")


def _within(utc: Int64, start_us: int | None, end_us: int | None) -> bool:
    first, last = int(utc.min()), int(utc.max())
    if start_us is not None and end_us is not None:
        return start_us - SLACK <= first and last <= end_us + SLACK
    # With one of them alone the log has to begin or end there, or every zone to one side of it would fit.
    if start_us is not None:
        return abs(first - start_us) <= SLACK
    return end_us is None or abs(last - end_us) <= SLACK


def _jumps(utc: Int64) -> int:
    steps = np.diff(utc)
    return int(np.count_nonzero((steps < -60 * SECOND) | (steps > _GAP)))


def _clocks(local: Int64, date_us: int | None, zone: str, hint: str | None) -> Iterator[tuple[_Clock, int | None]]:
    """The clocks that may have written these times, with the header's date as each would have it."""
    first, last = int(local.min()), int(local.max())
    anchor = first if date_us is None else date_us
    found = False
    for name in (zone, hint or ""):
        offset = fixed_offset(name)
        if offset is not None:
            yield _Clock(name, (0,), (offset,)), None if date_us is None else date_us - offset
            for numbered, instant in _numbered_clocks(name, anchor, min(first, anchor), max(last, anchor)):
                yield numbered, instant if date_us is not None else None
            return
        for place in _places(name, hint):
            clock = _history(place, (min(first, anchor) - 2 * DAY) // DAY, (max(last, anchor) + 2 * DAY) // DAY + 1)
            if clock is None:
                continue
            if name not in _ABBREVIATIONS:
                found = True
                yield clock, None
                continue
            for instant in clock.instants(anchor):
                if _abbreviation(place, instant) == name:
                    found = True
                    yield clock, instant if date_us is not None else None
        if found:
            return
    for minutes in _OFFSETS:
        offset = minutes * 60 * SECOND
        name = f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
        yield _Clock(name, (0,), (offset,)), None if date_us is None else date_us - offset


def _numbered_clocks(name: str, anchor: int, first: int, last: int) -> Iterator[tuple[_Clock, int]]:
    """The clocks of places that write their zone as ``name`` at the time ``anchor``, and that instant, µs UTC."""
    for place in _NUMBERED:
        clock = _history(place, (first - 2 * DAY) // DAY, (last + 2 * DAY) // DAY + 1)
        if clock is None:
            continue
        for instant in clock.instants(anchor):
            if _abbreviation(place, instant) == name:
                yield clock, instant


def _places(name: str, hint: str | None) -> list[str]:
    """The zones that a name may mean; the hint first, where it is a zone that the abbreviation does not rule out."""
    if name not in _ABBREVIATIONS:
        return [name] if "/" in name else []
    places = _ABBREVIATIONS[name].split()
    return [hint] if hint in places else places


def _zone(place: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(place)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None  # no such zone, or a machine without the tz database


def _offset_us(zone: ZoneInfo, us: int) -> int:
    import datetime as dt

    offset = dt.datetime.fromtimestamp(us // SECOND, zone).utcoffset()
    return int(offset.total_seconds()) * SECOND if offset is not None else 0


def _abbreviation(place: str, us: int) -> str:
    import datetime as dt

    return dt.datetime.fromtimestamp(us // SECOND, ZoneInfo(place)).strftime("%Z")


@lru_cache(maxsize=2048)
def _history(place: str, first_day: int, last_day: int) -> _Clock | None:
    """A zone's offsets over some days. None where the zone is not known."""
    zone = _zone(place)
    if zone is None:
        return None
    since, offsets = [first_day * DAY], [_offset_us(zone, first_day * DAY)]
    for day in range(first_day, last_day):
        low, high = day * DAY, (day + 1) * DAY
        if _offset_us(zone, high) == offsets[-1]:
            continue
        while high - low > SECOND:
            middle = (low + high) // 2 // SECOND * SECOND
            if _offset_us(zone, middle) == offsets[-1]:
                low = middle
            else:
                high = middle
        since.append(high)
        offsets.append(_offset_us(zone, high))
    return _Clock(place, tuple(since), tuple(offsets))


def _readings(local: Int64, clock: _Clock, date_utc: int | None) -> Iterator[Int64]:
    """The series in UTC by one clock: once, or twice where an hour that came twice can be read in both ways."""
    if len(clock.offsets) == 1:
        yield local - clock.offsets[0]
        return
    offsets = np.asarray(sorted(set(clock.offsets), reverse=True), np.int64)
    instants = local[:, None] - offsets  # a greater offset is the earlier instant
    shown = clock.offset_at(instants) == offsets
    any_shown = shown.any(axis=1)
    first = np.where(any_shown, shown.argmax(axis=1), 0)
    last = np.where(any_shown, len(offsets) - 1 - shown[:, ::-1].argmax(axis=1), 0)
    rows = np.arange(len(local))
    early, late = instants[rows, first], instants[rows, last]
    twice = early != late
    if not twice.any():
        yield early
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
            other = choices[0].copy()
            other[begin:end] = late[begin:end]
            choices.append(other)
    yield from choices
