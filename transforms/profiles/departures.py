"""Departures: contiguous windows in which a run's series are outside of the range of passing runs, beyond noise."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ciml.events.records import Record
from ciml.transforms.profiles.profile import MIN_RUNS, Profile, Range
from ciml.transforms.profiles.series import SERIES
from ciml.transforms.profiles.windows import MINUTE_S, length_s, window_means, window_of

#: The share of a range's own width by which a value must be beyond it.
_MARGIN = 0.5
#: Noise of a column that `SERIES` does not have, as a share of its usual value.
_OTHER_NOISE = 0.25
#: The shortest departure, in seconds and as a share of the run: a shorter one is a moment. So a run of a few seconds
#: has no departures: its start is not compared with the whole of other runs.
MIN_DEPARTURE_S = 10
_MIN_SHARE = 0.02


class Departure(Record, frozen=True, gc=False):
    """A departure from the passing range.

    Attributes:
      column: its full name.
      from_s, until_s: start of its first window and end of its last, seconds since the first sample; a run's last
        window ends with its last sample.
      mean: of the run's values in these windows.
      low, high: the passing range, 5 % to 95 %, of windows of this length.
      size: how far the mean is outside, in units of the margin against noise (above 1), times the square root of the
        share of the run's windows that depart. It orders departures of different units.
    """

    column: str
    from_s: int
    until_s: int
    mean: float
    low: float
    high: float
    size: float

    @property
    def from_minute(self) -> int:
        """The minute in which it begins, counted from 0."""
        return self.from_s // MINUTE_S

    @property
    def until_minute(self) -> int:
        """The minute in which it ends."""
        return self.until_s // MINUTE_S


def margin(column: str, usual: Range) -> float:
    """Return how far outside of its passing range a column's value must be to count, in the column's unit."""
    low, middle, high = usual
    known = SERIES.get(column)
    noise = known.noise if known is not None else _OTHER_NOISE * abs(middle)
    return max(noise, _MARGIN * (high - low))


def departures(table: pa.Table, profile: Profile) -> tuple[Departure, ...]:
    """Return where a run departs from the passing profile, the largest first. Linear in its samples.

    Runs of three minutes and more are compared by minutes, shorter ones by windows of five seconds.

    Args:
      table: telemetry as stored.
      profile: of its job. One of fewer than `MIN_RUNS` runs says nothing: there are no departures from it.
    """
    if profile.runs < MIN_RUNS:
        return ()
    length = length_s(table)
    seconds = window_of(length)
    ranges = profile.ranges(seconds)
    windows = window_means(table, ranges, seconds)
    ends = np.minimum(windows.seconds + seconds, int(length) + 1)
    least = max(MIN_DEPARTURE_S, _MIN_SHARE * length)
    found = []
    for column, means in windows.means.items():
        low, _, high = usual = ranges[column]
        beyond = margin(column, usual)
        if beyond <= 0:  # passing runs always record 0: no scale says how far another value is, as in context features
            continue
        for above in (True, False):
            outside = means > high + beyond if above else means < low - beyond
            firsts, lasts = _stretches(outside, np.isnan(means))
            lasting = ends[lasts] - windows.seconds[firsts] >= least  # at most one in `_MIN_SHARE` of the run
            for first, last in zip(firsts[lasting].tolist(), lasts[lasting].tolist(), strict=True):
                mean = windows.mean(column, first, last)
                share = (last + 1 - first) / means.size
                size = (mean - high if above else low - mean) / beyond * share**0.5
                found.append(
                    Departure(column, int(windows.seconds[first]), int(ends[last]), mean, low, high, round(size, 3))
                )
    return tuple(sorted(found, key=lambda each: (-each.size, each.column, each.from_s)))


def _stretches(outside: np.ndarray, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return first and last index of each stretch of windows outside; windows without a value do not interrupt one."""
    indices = np.flatnonzero(outside)
    inside = np.cumsum(~(outside | missing))
    breaks = np.flatnonzero(np.diff(inside[indices]) > 0)
    starts, ends = np.append(0, breaks + 1), np.append(breaks, indices.size - 1)
    return (indices[starts], indices[ends]) if indices.size else (indices, indices)
