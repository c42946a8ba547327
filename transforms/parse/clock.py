"""Convert times by a recorder's clock to UTC: find its zone, and resolve clock changes within the log.

A header names its zone by an offset, by an abbreviation, or not at all. An abbreviation may mean several zones (IST is
India, Israel and Ireland; CST is Chicago, Shanghai and Havana), and whether CET has a summer time depends on the place.
So `to_utc` tries every place whose clock shows that name at the header's date. If all give the same times, those are
right. Otherwise the event's start and end decide, then the fewest jumps. If that is not enough, the log is rejected.

A *clock* is a fixed offset or a zone. A *reading* is the times of a log by one clock. A zone may have two readings: a
clock that is set back shows an hour twice, and a time in that hour may be of the first or of the second.
"""

from __future__ import annotations

import datetime as dt
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from ciml.dstat import DAY, HOUR, SECOND
from ciml.errors import RejectedInput
from ciml.transforms.parse.times import Bool, Int64
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


class _Reading(NamedTuple):
    """The times of a log by one clock: the offset from UTC ``offsets[i]`` applies from row ``rows[i]`` on.

    Attributes:
      clock: name of the clock for messages.
      rows: int64 [offsets], ascending from 0.
      offsets: int64 [offsets], µs.
    """

    clock: str
    rows: Int64
    offsets: Int64

    @classmethod
    def of(cls, clock: str, offset_of_row: Int64) -> _Reading:
        """Return the reading with an offset for each row, int64 [rows], µs."""
        rows = np.concatenate([[0], 1 + np.flatnonzero(np.diff(offset_of_row))])
        return cls(clock, rows, offset_of_row[rows])

    def key(self) -> bytes:
        """Return bytes that are equal for readings with equal times."""
        return self.rows.tobytes() + self.offsets.tobytes()

    def to_utc(self, local: Int64) -> Int64:
        """Convert the local times of the log, int64 [rows], µs."""
        return local - np.repeat(self.offsets, np.diff(self.rows, append=len(local)))


class _FixedClock(NamedTuple):
    """A clock with a fixed offset from UTC in µs."""

    name: str
    offset: int

    def readings(self, local: Int64) -> Iterator[_Reading]:
        """Yield the only reading of the times ``local``, int64 [rows], µs."""
        yield _Reading(self.name, np.array([0]), np.array([self.offset]))


class _ZoneClock(NamedTuple):
    """A clock with the rules of an IANA zone.

    Attributes:
      place: the zone's name.
      date_utc: when it showed the header's date, just before the first row, µs UTC; None if unknown.
    """

    place: str
    date_utc: int | None

    def readings(self, local: Int64) -> Iterator[_Reading]:
        """Yield the readings of the times ``local``, int64 [rows], µs: a second one if a repeated hour is ambiguous."""
        early, late = _early_and_late(self.place, local)
        utc = early.copy()
        ambiguous_hour: slice | None = None
        for hour in _true_ranges(early != late):
            before = int(utc[hour.start - 1]) if hour.start else self.date_utc
            is_second, is_sure = _rows_in_second_hour(local[hour], early[hour], late[hour], before)
            utc[hour] = np.where(is_second, late[hour], early[hour])
            if not is_sure and ambiguous_hour is None:
                ambiguous_hour = hour
        yield _Reading.of(self.place, local - utc)
        if ambiguous_hour is not None:
            utc[ambiguous_hour] = late[ambiguous_hour]
            yield _Reading.of(self.place, local - utc)


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
    stated_zone = zone or hint or ""
    offset = fixed_offset(stated_zone)
    # A number, such as -03, may also name a zone with clock changes; an abbreviation such as UTC has no other meaning.
    if offset is not None and not stated_zone.startswith(("+", "-")):
        return local - offset
    first = int(local.min())
    if int(local.max()) - first > _MAX_SPAN:
        if offset is not None:
            return local - offset
        raise RejectedInput("ambiguous_time", "the samples span more than a year")
    # Read the log by each possible clock. Among different readings those count that fit the event, and of these the
    # ones with the fewest jumps. Exactly one must remain.
    readings: dict[bytes, _Reading] = {}
    for clock in _clocks(zone, hint, first, date_us):
        for reading in clock.readings(local):
            readings.setdefault(reading.key(), reading)
    possible = list(readings.values())
    if len(possible) == 1 and stated_zone:
        return possible[0].to_utc(local)
    fitting = [reading for reading in possible if _fits(reading.to_utc(local), start_us, end_us)]
    jumps = [_count_jumps(reading.to_utc(local)) for reading in fitting]
    smoothest = [reading for reading, count in zip(fitting, jumps, strict=True) if count == min(jumps)]
    if len(smoothest) != 1:
        raise _ambiguous(zone, possible, smoothest)
    return smoothest[0].to_utc(local)


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


def _clocks(zone: str, hint: str | None, first: int, date_us: int | None) -> Sequence[_FixedClock | _ZoneClock]:
    """Return the clocks that the header's zone may mean, else those of the hint, else those of all offsets in use.

    Args:
      zone, hint, date_us: as for `to_utc`.
      first: the least time of the log, µs by its clock.
    """
    for name in (zone, hint or ""):
        if clocks := _clocks_named(name, hint, first, date_us):
            return clocks
    names = [f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}" for minutes in _OFFSETS]
    return [_FixedClock(name, minutes * 60 * SECOND) for name, minutes in zip(names, _OFFSETS, strict=True)]


def _clocks_named(name: str, hint: str | None, first: int, date_us: int | None) -> Sequence[_FixedClock | _ZoneClock]:
    """Return the clocks that a name may mean: its fixed offset, and each place whose clock had it at the header's date.

    A hint selects one of these places. The name of a place itself, such as Europe/Berlin, means that place only.
    """
    offset = fixed_offset(name)
    fixed = [] if offset is None else [_FixedClock(name, offset)]
    if "/" in name and _zone(name) is not None:
        return [*fixed, _ZoneClock(name, None)]
    shown = first if date_us is None else date_us
    instants = [(place, instant) for place in _PLACES for instant in _instants(place, shown, name)]
    zones = [_ZoneClock(place, instant if date_us is not None else None) for place, instant in instants]
    hinted = [clock for clock in zones if clock.place == hint]
    return [*fixed, *(hinted or zones)]


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


def _fits(utc: Int64, start_us: int | None, end_us: int | None) -> bool:
    """Return whether the times of a log agree with the event's start and end, as far as these are known."""
    first = int(utc.min())
    last = int(utc.max())
    if start_us is not None and end_us is not None:
        return start_us - _SLACK <= first and last <= end_us + _SLACK
    # With only one of them the log must begin or end there, or every zone to one side of it would fit.
    if start_us is not None:
        return abs(first - start_us) <= _SLACK
    return end_us is None or abs(last - end_us) <= _SLACK


def _count_jumps(utc: Int64) -> int:
    """Return the number of steps back, by more than a minute, and of gaps between samples."""
    steps = np.diff(utc)
    return int(np.count_nonzero((steps < -60 * SECOND) | (steps > _GAP)))


def _true_ranges(flags: Bool) -> list[slice]:
    """Return each range of successive rows whose flags are true."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    return [slice(begin, end) for begin, end in edges.reshape(-1, 2).tolist()]


def _rows_in_second_hour(local: Int64, early: Int64, late: Int64, before: int | None) -> tuple[Bool, bool]:
    """Find which rows are in the second one of a repeated hour, bool [rows], and whether that is sure.

    The time before decides if it is close to one of the first row's two instants. Otherwise the first row counts as one
    of the first hour, and only a step back of the clock makes that sure: it begins the second hour.

    Args:
      local: int64 [rows], times in the repeated hour by the clock, µs.
      early, late: int64 [rows], their instants in the first and in the second hour, µs UTC.
      before: the time before the first row, µs UTC; None if unknown.
    """
    has_stepped_back = np.cumsum(np.diff(local, prepend=local[0]) < -HOUR // 4) > 0
    if before is None or min(abs(early[0] - before), abs(late[0] - before)) > _GAP:
        return has_stepped_back, bool(has_stepped_back.any())
    starts_in_second = abs(late[0] - before) < abs(early[0] - before)
    return has_stepped_back | starts_in_second, True


def _early_and_late(place: str, local: Int64) -> tuple[Int64, Int64]:
    """Return the first and the last instant at which a place's clock showed each time, int64 [rows], µs UTC.

    They differ in a repeated hour only. A time that the clock skipped is read by the greatest offset.
    """
    changes, offsets = _history(place, int(local.min()) - 2 * DAY, int(local.max()) + 2 * DAY)
    early = local - offsets.max()
    late = early.copy()
    was_shown = np.zeros(len(local), bool)
    for offset in np.unique(offsets)[::-1].tolist():  # a greater offset is an earlier instant
        instants = local - offset
        is_shown = offsets[np.searchsorted(changes, instants, side="right")] == offset
        early = np.where(is_shown & ~was_shown, instants, early)
        late = np.where(is_shown, instants, late)
        was_shown |= is_shown
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
