"""From a recorder's clock to UTC: its zone, and the meaning of clock changes within the log.

A header names its zone by an offset, by an abbreviation, or not at all. An abbreviation may mean several zones (IST is
India, Israel and Ireland; CST is Chicago, Shanghai and Havana), and whether CET has a summer time depends on the place.
So every place whose clock shows that name at the header's date is tried. If all give the same times, those are right.
Else the event's start and end decide, then the fewest jumps. If that is not enough, the log is rejected.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from ciml.dstat import DAY, HOUR, SECOND
from ciml.errors import RejectedInput
from ciml.transforms.parse.times import Int64
from ciml.transforms.results.values import zone_of

#: A place for each set of rules behind the names that ``strftime("%Z")`` writes. First those with abbreviations, the
#: likelier first. Then those with clock changes whose name is a number: their "-03" is not a fixed offset.
_PLACES = (
    "Europe/London Africa/Abidjan Europe/Lisbon Europe/Berlin Africa/Algiers Europe/Helsinki Africa/Tripoli "
    "Africa/Cairo Europe/Moscow Asia/Kolkata Asia/Jerusalem Europe/Dublin Asia/Karachi America/Chicago Asia/Shanghai "
    "America/Havana America/Mexico_City America/New_York America/Panama America/Denver America/Phoenix "
    "America/Los_Angeles Asia/Manila America/Anchorage Pacific/Honolulu America/Halifax America/Puerto_Rico "
    "America/St_Johns Asia/Hong_Kong Asia/Seoul Asia/Jakarta Asia/Makassar Asia/Jayapura Australia/Perth "
    "Australia/Adelaide Australia/Darwin Australia/Sydney Australia/Brisbane Pacific/Auckland Africa/Johannesburg "
    "Africa/Nairobi Africa/Maputo Africa/Lagos Pacific/Pago_Pago "
    "Africa/Casablanca America/Asuncion America/Campo_Grande America/Miquelon America/Montevideo America/Nuuk "
    "America/Punta_Arenas America/Santiago America/Sao_Paulo America/Scoresbysund Antarctica/Troll Asia/Baku "
    "Asia/Tehran Atlantic/Azores Australia/Lord_Howe Pacific/Apia Pacific/Chatham Pacific/Easter Pacific/Fiji "
    "Pacific/Norfolk"
).split()
_FIXED = {"UTC": 0, "UCT": 0, "Z": 0, "Zulu": 0, "Etc/UTC": 0, "JST": 9 * HOUR}
_OFFSET = re.compile(r"([+-])(\d\d)(?::?(\d\d))?", re.ASCII)
#: Offsets in use, in minutes, for a clock without any information.
_OFFSETS = [*range(-720, 841, 60), -570, -210, -150, 210, 270, 330, 345, 390, 525, 570, 630, 765]
#: Tolerance beyond the run's start and end: clocks differ, and recorders start early and stop late.
SLACK = 600 * SECOND
_GAP = 600 * SECOND  # after a longer gap within a repeated hour it is unknown which of the two it is
_MAX_SPAN = 400 * DAY
_STEP_S = 7 * 86_400  # no zone changes its clock and back within a week
_EPOCH = dt.datetime(1970, 1, 1)

#: The rules of a clock: its fixed offset from UTC in µs, or the IANA name of its zone.
_Rules = int | str
#: The times of a log by one clock: its offset from UTC in µs, or each time, µs UTC.
_Reading = int | Int64


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
    seasons = (dt.datetime(2026, 1, 1), dt.datetime(2026, 7, 1))
    if fixed_offset(name) is None and not any(
        season.replace(tzinfo=ZoneInfo(place)).tzname() == name for place in _PLACES for season in seasons
    ):
        zone_of(name)


def _clocks(anchor: int, zone: str, hint: str | None) -> Iterator[tuple[str, _Rules, int | None]]:
    """Yield the name and the rules of each candidate clock, and the instant at which it shows ``anchor``, µs UTC.

    The instant is None where only the user names the zone.
    """
    for name in (zone, hint or ""):
        offset = fixed_offset(name)
        if offset is not None:
            yield name, offset, anchor - offset
        places: list[tuple[str, int | None]] = [
            (place, instant) for place in _PLACES for instant in _instants(place, anchor, name)
        ]
        if hint in {place for place, _ in places}:
            places = [(place, instant) for place, instant in places if place == hint]
        if "/" in name and _zone(name) is not None:
            places = [(name, None)]
        yield from ((place, place, instant) for place, instant in places)
        if offset is not None or places:
            return
    for minutes in _OFFSETS:
        offset = minutes * 60 * SECOND
        name = f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
        yield name, offset, anchor - offset


def _instants(place: str, local: int, name: str) -> list[int]:
    """Return the instants (0 to 2), µs UTC, at which a place's clock showed a time and its zone was called ``name``."""
    zone = _zone(place)
    shown = _EPOCH + dt.timedelta(microseconds=local)
    moments = [shown.replace(tzinfo=zone, fold=fold) for fold in (0, 1)]
    utc = [moment.astimezone(dt.UTC) for moment in moments if zone is not None and moment.tzname() == name]
    exact = (moment for moment in utc if moment.astimezone(zone).replace(tzinfo=None) == shown)
    return [(moment.replace(tzinfo=None) - _EPOCH) // dt.timedelta(microseconds=1) for moment in dict.fromkeys(exact)]


@lru_cache(maxsize=256)
def _zone(place: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(place)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None  # an unknown zone, or a machine without the tz database


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
    stated_zone = zone or hint or ""
    offset = fixed_offset(stated_zone)
    if offset is not None and (last - first > _MAX_SPAN or not stated_zone.startswith(("+", "-"))):
        return local - offset
    if last - first > _MAX_SPAN:
        raise RejectedInput("ambiguous_time", "the samples span more than a year")
    readings: dict[int | bytes, tuple[str, _Reading]] = {}
    for name, rules, instant in _clocks(first if date_us is None else date_us, zone, hint):
        for reading in _readings(local, rules, instant if date_us is not None else None):
            key = reading if isinstance(reading, int) else hashlib.blake2b(reading.tobytes(), digest_size=16).digest()
            readings.setdefault(key, (name, reading))
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


def _readings(local: Int64, rules: _Rules, date_utc: int | None) -> Iterator[_Reading]:
    """Yield the series in UTC by one clock: once, or twice where a repeated hour is ambiguous."""
    if isinstance(rules, int):
        yield rules
        return
    changes, offsets = _history(rules, int(local.min()) - 2 * DAY, int(local.max()) + 2 * DAY)
    candidates = np.unique(offsets)[::-1]  # a greater offset is the earlier instant
    instants = local[:, None] - candidates
    shown = offsets[np.searchsorted(changes, instants, side="right")] == candidates
    skipped = ~shown.any(axis=1)  # a time that the clock never showed is read by the greatest offset
    rows = np.arange(len(local))
    early = instants[rows, shown.argmax(axis=1)]
    late = instants[rows, np.where(skipped, 0, len(candidates) - 1 - shown[:, ::-1].argmax(axis=1))]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], early != late, [False]]).astype(np.int8)))
    choices: list[Int64] = [early.copy()]
    for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        steps = np.diff(local[begin:end])
        second = np.concatenate([[False], np.cumsum(steps < -HOUR // 4) > 0])
        before = int(choices[0][begin - 1]) if begin else date_utc
        gaps = [abs(int(utc[begin]) - before) for utc in (early, late)] if before is not None else []
        sure = bool(gaps) and min(gaps) <= _GAP
        if sure and gaps[1] < gaps[0]:
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


def _history(place: str, begin: int, end: int) -> tuple[Int64, Int64]:
    """Return the clock changes of a place between two instants, all µs UTC, and its offsets: one more, µs."""
    zone = _zone(place)

    def offset(second: int) -> int:
        return int((dt.datetime.fromtimestamp(second, zone).utcoffset() or dt.timedelta()).total_seconds())

    def differs(before: int, second: int) -> bool:
        return offset(second) != before

    seconds = [*range(begin // SECOND, end // SECOND, _STEP_S), end // SECOND]
    changes = [
        bisect_left(range(high), True, low, key=partial(differs, offset(low)))
        for low, high in pairwise(seconds)
        if offset(low) != offset(high)
    ]
    offsets = [offset(second) for second in (seconds[0], *changes)]
    return np.array(changes, np.int64) * SECOND, np.array(offsets, np.int64) * SECOND
