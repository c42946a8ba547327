"""From a recorder's clock to UTC: its zone, and the meaning of clock changes within the log.

A header names its zone by an offset, by an abbreviation, or not at all. An abbreviation may mean several zones (IST is
India, Israel and Ireland; CST is Chicago, Shanghai and Havana), and whether CET has a summer time depends on the place.
So every candidate zone is tried. If all give the same times, those are right. Else the event's start and end decide,
then the fewest jumps. If that is not enough, the log is rejected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from ciml.dstat.vocabulary import DAY, HOUR, SECOND
from ciml.errors import RejectedInput
from ciml.transforms.parse.times import Int64
from ciml.transforms.parse.zones import Clock, clocks, fixed_offset, numbered_clocks

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
    first, last = int(local.min()), int(local.max())
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
    first, last = int(local.min()), int(local.max())
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
        bounded = [each for each, count in zip(bounded, jumps, strict=True) if count == min(jumps)]
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
        first, last = first - reading, last - reading
    else:
        first, last = int(reading.min()), int(reading.max())
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
    early, late = instants[rows, first], instants[rows, last]
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
            other = choices[0].copy()
            other[begin:end] = late[begin:end]
            choices.append(other)
    for choice in choices:
        ahead = local - choice
        yield int(ahead[0]) if (ahead == ahead[0]).all() else choice
