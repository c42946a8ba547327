"""Convert times by a recorder's clock to UTC: find its zone, and resolve clock changes within the log.

A header names its zone by an offset, by an abbreviation, or not at all. An abbreviation may mean several zones (IST is
India, Israel and Ireland; CST is Chicago, Shanghai and Havana), and whether CET has a summer time depends on the place.
So `to_utc` tries every place whose clock shows that name at the header's date. If all give the same times, those are
right. Otherwise the event's start and end decide, then the fewest jumps. If that is not enough, the log is rejected.

A *clock* is a fixed offset or a zone. A *reading* is the times of a log by one clock. A zone may have two readings: an
hour that it has twice, when a clock is set back, may be the first or the second.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import pairwise
from typing import NamedTuple
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
_SLACK = 600 * SECOND
#: Samples after a longer gap may be in either hour of a repeated one.
_GAP = 600 * SECOND
_MAX_SPAN = 400 * DAY
_STEP_S = 7 * 86_400  # no zone changes its clock and back within a week
_EPOCH = dt.datetime(1970, 1, 1)


class _Clock(NamedTuple):
    """A clock that the recorder may have had.

    Attributes:
      name: its name for messages.
      rules: the fixed offset from UTC in µs, or the IANA name of a zone.
      instant: when it shows the header's date (or the first sample's time), µs UTC; None where only the user names it.
    """

    name: str
    rules: int | str
    instant: int | None


class _Reading(NamedTuple):
    """The times of a log by one clock: its offset from UTC in µs if that never changes, or else each time, µs UTC."""

    clock: str
    times: int | Int64

    def to_utc(self, local: Int64) -> Int64:
        return local - self.times if isinstance(self.times, int) else self.times

    def key(self) -> int | bytes:
        """Return a key that is equal for equal times."""
        times = self.times
        return times if isinstance(times, int) else hashlib.blake2b(times.tobytes(), digest_size=16).digest()


def fixed_offset(zone: str) -> int | None:
    """Return the offset from UTC in µs that a name has in every place at any time; None for other names."""
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
    readings: dict[int | bytes, _Reading] = {}
    for clock in _clocks(first if date_us is None else date_us, zone, hint):
        for times in _times_by(clock.rules, local, clock.instant if date_us is not None else None):
            reading = _Reading(clock.name, times)
            readings.setdefault(reading.key(), reading)
    possible = list(readings.values())
    if len(possible) == 1 and (zone or hint):
        return possible[0].to_utc(local)
    fitting = [reading for reading in possible if _fits(reading, first, last, start_us, end_us)]
    if len(fitting) > 1 and any(not isinstance(reading.times, int) for reading in fitting):
        jumps = [_count_jumps(reading.to_utc(local)) for reading in fitting]
        fitting = [reading for reading, count in zip(fitting, jumps, strict=True) if count == min(jumps)]
    if len(fitting) != 1:
        raise _ambiguous(zone, possible, fitting)
    return fitting[0].to_utc(local)


def _ambiguous(zone: str, possible: list[_Reading], fitting: list[_Reading]) -> RejectedInput:
    stated = f"zone {zone!r}" if zone else "no zone"
    clocks = list(dict.fromkeys(reading.clock for reading in (fitting or possible)))
    names = ", ".join(clocks)[:200]
    if not fitting:
        detail = f"no zone fits the event's start and end ({names})"
    elif len(clocks) == 1:
        detail = f"an hour that {clocks[0]} has twice may be the first or the second"
    else:
        detail = f"several zones fit the event's start and end ({names}); name one, such as {clocks[0]}"
    return RejectedInput("ambiguous_time", f"{stated}: {detail}")


def _clocks(shown: int, zone: str, hint: str | None) -> Iterator[_Clock]:
    """Yield each clock of the header's zone, else of the hint, else with any offset; it shows the time ``shown``."""
    for name in (zone, hint or ""):
        offset = fixed_offset(name)
        if offset is not None:
            yield _Clock(name, offset, shown - offset)
        places: list[tuple[str, int | None]] = [
            (place, instant) for place in _PLACES for instant in _instants(place, shown, name)
        ]
        if hint in {place for place, _ in places}:
            places = [(place, instant) for place, instant in places if place == hint]
        if "/" in name and _zone(name) is not None:
            places = [(name, None)]
        yield from (_Clock(place, place, instant) for place, instant in places)
        if offset is not None or places:
            return
    for minutes in _OFFSETS:
        offset = minutes * 60 * SECOND
        sign = "-" if minutes < 0 else "+"
        name = f"{sign}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
        yield _Clock(name, offset, shown - offset)


def _instants(place: str, local: int, name: str) -> list[int]:
    """Return the instants (0 to 2), µs UTC, at which a place's clock showed a time and its zone was called ``name``."""
    zone = _zone(place)
    if zone is None:
        return []
    shown = _EPOCH + dt.timedelta(microseconds=local)
    instants: dict[int, None] = {}
    for fold in (0, 1):
        moment = shown.replace(tzinfo=zone, fold=fold)
        if moment.tzname() != name:
            continue
        utc = moment.astimezone(dt.UTC)
        if utc.astimezone(zone).replace(tzinfo=None) == shown:  # not a time that the clock skips
            instants[(utc.replace(tzinfo=None) - _EPOCH) // dt.timedelta(microseconds=1)] = None
    return list(instants)


@lru_cache(maxsize=256)
def _zone(place: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(place)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None  # an unknown zone, or a machine without the tz database


def _fits(reading: _Reading, first: int, last: int, start_us: int | None, end_us: int | None) -> bool:
    """Return whether a reading agrees with the event; ``first`` and ``last`` are the extreme local times."""
    if isinstance(reading.times, int):
        first -= reading.times
        last -= reading.times
    else:
        first = int(reading.times.min())
        last = int(reading.times.max())
    if start_us is not None and end_us is not None:
        return start_us - _SLACK <= first and last <= end_us + _SLACK
    # With only one of them the log must begin or end there, or every zone to one side of it would fit.
    if start_us is not None:
        return abs(first - start_us) <= _SLACK
    return end_us is None or abs(last - end_us) <= _SLACK


def _count_jumps(utc: Int64) -> int:
    steps = np.diff(utc)
    return int(np.count_nonzero((steps < -60 * SECOND) | (steps > _GAP)))


def _times_by(rules: int | str, local: Int64, date_utc: int | None) -> Iterator[int | Int64]:
    """Yield the times by a clock, as in `_Reading`: once, or twice where a repeated hour is ambiguous.

    Args:
      rules: of the clock.
      local: int64 [rows], µs by the clock.
      date_utc: the time of the header's date, just before the first row, µs UTC; None if unknown.
    """
    if isinstance(rules, int):
        yield rules
        return
    early, late = _early_and_late(rules, local)
    choices: list[Int64] = [early.copy()]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], early != late, [False]]).astype(np.int8)))
    for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):  # each repeated hour
        # A step back within it begins the second hour. Otherwise the time before it may be close to one of the two.
        is_second = np.concatenate([[False], np.cumsum(np.diff(local[begin:end]) < -HOUR // 4) > 0])
        before = int(choices[0][begin - 1]) if begin else date_utc
        gaps = [abs(int(utc[begin]) - before) for utc in (early, late)] if before is not None else []
        is_sure = bool(gaps) and min(gaps) <= _GAP
        if is_sure and gaps[1] < gaps[0]:
            is_second[:] = True
        for choice in choices:
            choice[begin:end] = np.where(is_second, late[begin:end], early[begin:end])
        if not is_sure and not is_second.any() and len(choices) == 1:
            second_choice = choices[0].copy()
            second_choice[begin:end] = late[begin:end]
            choices.append(second_choice)
    for choice in choices:
        offsets = local - choice
        yield int(offsets[0]) if (offsets == offsets[0]).all() else choice


def _early_and_late(place: str, local: Int64) -> tuple[Int64, Int64]:
    """Return the first and the last instant at which a place's clock showed each time, int64 [rows], µs UTC.

    They differ in a repeated hour only. A time that the clock skipped is read by the greatest offset.
    """
    changes, offsets = _history(place, int(local.min()) - 2 * DAY, int(local.max()) + 2 * DAY)
    candidates = np.unique(offsets)[::-1]  # a greater offset is the earlier instant
    instants = local[:, None] - candidates
    is_shown = offsets[np.searchsorted(changes, instants, side="right")] == candidates
    is_skipped = ~is_shown.any(axis=1)
    rows = np.arange(len(local))
    early = instants[rows, is_shown.argmax(axis=1)]
    late = instants[rows, np.where(is_skipped, 0, len(candidates) - 1 - is_shown[:, ::-1].argmax(axis=1))]
    return early, late


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
