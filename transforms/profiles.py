"""The passing profile of each job: its length and the range of each series, from the windows of its passing runs.

Profiles: the usual telemetry of the passing runs of each job, and where a run departs from it.

Pure functions over Arrow tables and numpy. They read no store; `ciml.verdicts.evidence` makes sentences of what they
find.

Means of a run's telemetry over windows of seconds, counted from its earliest sample. Linear in the samples.

The series that people know, by the full names of their columns: their words, units, and what counts as noise.

Departures: contiguous windows in which a run's series are outside of the range of passing runs, beyond noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import quote

import msgspec
import numpy as np
import pyarrow as pa

from ciml.errors import CimlError
from ciml.events.records import Record, RunFacts
from ciml.limits import MAX_PROFILE_JOBS, MAX_PROFILE_RUNS
from ciml.telemetry import BOOT, TIME

MINUTE_S = 60
#: Windows of runs that are shorter than `SHORT_RUN_S`, seconds.
SHORT_WINDOW_S = 5
SHORT_RUN_S = 180.0
#: A value beyond it counts as none: it is no measurement, and sums of such values overflow.
MAX_VALUE = 1e18


@dataclass(frozen=True, slots=True, eq=False)
class WindowMeans:
    """The means of W windows that hold samples.

    Attributes:
      seconds: int64 [W], start of each window in seconds since the earliest sample, ascending.
      means: by column, float64 [W]; NaN where a window has no value.
      counts: by column, int64 [W], the number of values.
    """

    seconds: np.ndarray
    means: dict[str, np.ndarray]
    counts: dict[str, np.ndarray]

    def mean(self, column: str, first: int, last: int) -> float:
        """Return the mean of a column's values in the windows ``first`` to ``last``, which have some."""
        part = slice(first, last + 1)
        counts = self.counts[column][part]
        sums = np.where(counts > 0, self.means[column][part], 0.0) * counts
        return float(sums.sum() / counts.sum())


def elapsed_s(table: pa.Table) -> np.ndarray:
    """Return the seconds of each sample since the earliest, float64; 0 where the time is missing."""
    times = table.column(TIME).combine_chunks().cast(pa.int64())
    first = times.drop_null().to_numpy().min() if times.null_count < len(times) else 0
    passed: np.ndarray = times.fill_null(first).to_numpy() - first
    return passed / 1e6


def length_s(table: pa.Table) -> float:
    """Return the seconds from the earliest sample to the latest; 0 for a single one."""
    return float(elapsed_s(table).max(initial=0.0))


def tail_s(table: pa.Table, end_us: int | None) -> float | None:
    """Return the seconds from the last sample to ``end_us``; None where either is unknown."""
    times = table.column(TIME).combine_chunks().cast(pa.int64()).drop_null().to_numpy()
    return None if end_us is None or not times.size else float(end_us - times.max()) / 1e6


def window_of(length: float) -> int:
    """Return the seconds of a window that suit a run of this length: minutes, for short runs less."""
    return SHORT_WINDOW_S if length < SHORT_RUN_S else MINUTE_S


def values_of(table: pa.Table, column: str) -> np.ndarray:
    """Return a column's values, float64: NaN where there is none, where it is no number, and in samples since the boot.

    A recorder's first sample holds the means since the machine was started (column ``boot``): they are not the run's.
    """
    chunks = table.column(column)
    if not pa.types.is_floating(chunks.type) and not pa.types.is_integer(chunks.type):
        return np.full(table.num_rows, np.nan)
    values: np.ndarray = chunks.cast(pa.float64()).to_numpy().copy()
    values[~(np.abs(values) <= MAX_VALUE)] = np.nan
    if BOOT in table.column_names:
        values[table.column(BOOT).fill_null(False).to_numpy()] = np.nan
    return values


def window_means(table: pa.Table, columns: Iterable[str], seconds: int) -> WindowMeans:
    """Return the means of the windows of a run.

    Args:
      table: telemetry as stored: ``time``, ``boot``, float64 columns. Samples need not be sorted.
      columns: full names; those that the table lacks are left out.
      seconds: length of a window.
    """
    starts, window = np.unique((elapsed_s(table) // seconds).astype(np.int64), return_inverse=True)
    means = {}
    counts = {}
    for column in columns:
        if column not in table.column_names:
            continue
        values = values_of(table, column)
        valid = np.isfinite(values)
        counts[column] = number = np.bincount(window[valid], minlength=starts.size)
        sums = np.bincount(window[valid], values[valid], minlength=starts.size)
        means[column] = np.divide(sums, number, out=np.full(starts.size, np.nan), where=number > 0)
    return WindowMeans(starts * seconds, means, counts)


#: ``%`` of the machine's processors, ``B`` bytes, ``B/s`` bytes a second, ``/s`` events a second, "" a number.
Unit = Literal["%", "B", "B/s", "/s", ""]

_MB = 1e6


class Series(NamedTuple):
    """A series.

    Attributes:
      words: what people call it.
      unit: of its values.
      noise: how far two runs differ without a reason, in its unit: a smaller departure is none.
      group: series of one group say the same of a run; "" where a series says nothing to people.
    """

    words: str
    unit: Unit
    noise: float
    group: str = ""


#: By full name. Columns of other names are never shown to people: names come from logs, which are hostile.
SERIES: Mapping[str, Series] = {
    "total cpu usage:usr": Series("user CPU", "%", 10.0, "processor"),
    "total cpu usage:sys": Series("system CPU", "%", 10.0, "processor"),
    "total cpu usage:idl": Series("idle CPU", "%", 10.0, "processor"),
    "total cpu usage:wai": Series("waiting for disk", "%", 5.0, "waiting"),
    "total cpu usage:stl": Series("steal", "%", 2.0, "steal"),
    "load avg:1m": Series("load", "", 1.0, "queue"),
    "load avg:5m": Series("load of 5 minutes", "", 1.0),
    "load avg:15m": Series("load of 15 minutes", "", 1.0),
    "memory usage:used": Series("memory used", "B", 300 * _MB, "memory"),
    "memory usage:free": Series("memory free", "B", 300 * _MB),
    "memory usage:buff": Series("buffers", "B", 300 * _MB),
    "memory usage:cach": Series("page cache", "B", 300 * _MB),
    "memory usage:avai": Series("memory available", "B", 300 * _MB),
    "swap:used": Series("swap used", "B", 50 * _MB, "swap"),
    "swap:free": Series("swap free", "B", 50 * _MB),
    "paging:in": Series("swap-in rate", "B/s", _MB, "swap"),
    "paging:out": Series("swap-out rate", "B/s", _MB, "swap"),
    "dsk/total:read": Series("disk read rate", "B/s", 5 * _MB, "disk"),
    "dsk/total:writ": Series("disk write rate", "B/s", 5 * _MB, "disk"),
    "io/total:read": Series("disk reads", "/s", 100.0),
    "io/total:writ": Series("disk writes", "/s", 100.0),
    "net/total:recv": Series("network receive rate", "B/s", _MB, "network"),
    "net/total:send": Series("network send rate", "B/s", _MB, "network"),
    "system:int": Series("interrupts", "/s", 1000.0),
    "system:csw": Series("context switches", "/s", 1000.0),
    "procs:run": Series("the number of runnable processes", "", 2.0, "queue"),
    "procs:blk": Series("the number of blocked processes", "", 1.0, "waiting"),
    "procs:new": Series("new processes", "/s", 20.0),
    "/:used": Series("disk used", "B", 500 * _MB),
    "/:free": Series("free disk", "B", 500 * _MB, "space"),
}


#: A range of passing runs: 5 %, 50 % and 95 %.
Range: TypeAlias = tuple[float, float, float]

#: A job with fewer passing runs has the pooled profile: with five, the range is about that of all of them.
MIN_RUNS = 5
_SHARES = (0.05, 0.5, 0.95)
#: Quantiles that stand for the windows of one run, so that a long run weighs as much as a short one, in memory too.
_POINTS = (np.arange(20) + 0.5) / 20


class Profile(Record, frozen=True, gc=False):
    """The passing runs of a job.

    Attributes:
      job: its name; "" for the runs of all jobs.
      runs: number of passing runs that it was made from.
      length_s: 5 %, 50 % and 95 % of their lengths, first to last sample, in seconds.
      columns: by full name, 5 %, 50 % and 95 % of the means of their minutes, in the column's unit. Every run weighs
        the same.
      short: the same of windows of `SHORT_WINDOW_S` seconds, for runs below `SHORT_RUN_S` seconds.
      tail_s: 5 %, 50 % and 95 % of the seconds from the last sample to the run's end by the CI system, which stores
        logs meanwhile; None where no end is known.
      places: number of the runs by kind of machine (`place_of`); None in profiles of earlier versions.
    """

    job: str
    runs: int
    length_s: Range
    columns: Mapping[str, Range]
    short: Mapping[str, Range] = msgspec.field(default_factory=dict)
    tail_s: Range | None = None
    places: Mapping[str, int] | None = None

    def ranges(self, window_s: int) -> Mapping[str, Range]:
        """Return the ranges for windows of this length: `MINUTE_S` or `SHORT_WINDOW_S`."""
        return self.columns if window_s >= MINUTE_S else self.short


class Profiles(Record, frozen=True, gc=False):
    """The profiles of all jobs, and that of all their runs together.

    Example:
      >>> profiles = make_profiles([(facts, table)])
      >>> profiles.of("unit").runs
      1
    """

    jobs: Mapping[str, Profile]
    pooled: Profile

    def of(self, job: str) -> Profile:
        """Return the profile of a job; the pooled one where fewer than `MIN_RUNS` of its runs passed."""
        profile = self.jobs.get(job)
        return profile if profile is not None and profile.runs >= MIN_RUNS else self.pooled

    def to_json(self) -> dict[str, Any]:
        """Return the form of ``profiles.json``."""
        return {"jobs": {job: profile.to_json() for job, profile in self.jobs.items()}, "pooled": self.pooled.to_json()}

    @classmethod
    def from_json(cls, value: Any, where: str = "profiles.json") -> Profiles:
        """Return the profiles of a JSON form. Raises `CimlError` where it is none."""
        try:
            return msgspec.convert(value, cls)
        except msgspec.ValidationError as error:
            raise CimlError(f"{where}: {error}") from None


class _Summary(Record, frozen=True, gc=False):
    """What is kept of a passing run: its length, and by column the quantiles of its windows, float64 [20]."""

    length_s: float
    tail_s: float | None
    place: str
    columns: Mapping[str, np.ndarray]
    short: Mapping[str, np.ndarray]


def make_profiles(runs: Iterable[tuple[RunFacts, pa.Table]], columns: Iterable[str] = ()) -> Profiles:
    """Make the profiles of the passing runs among ``runs``; other outcomes are left out.

    Args:
      runs: facts and telemetry of each run, read once. Of each job, the first `MAX_PROFILE_RUNS` passing runs count,
        and the first `MAX_PROFILE_JOBS` jobs.
      columns: full names of further columns to describe, beside those of `SERIES`.
    """
    names = tuple(dict.fromkeys([*SERIES, *columns]))
    jobs: dict[str, list[_Summary]] = {}
    for facts, table in runs:
        if facts.outcome != "success" or not table.num_rows:
            continue
        if facts.build_name not in jobs and len(jobs) >= MAX_PROFILE_JOBS:
            continue
        job_runs = jobs.setdefault(facts.build_name, [])
        if len(job_runs) < MAX_PROFILE_RUNS:
            job_runs.append(_summary(facts, table, names))
    pooled = _profile("", [run for job_runs in jobs.values() for run in job_runs])
    return Profiles({job: _profile(job, job_runs) for job, job_runs in sorted(jobs.items())}, pooled)


def _summary(facts: RunFacts, table: pa.Table, names: tuple[str, ...]) -> _Summary:
    minutes = _quantiles(table, names, MINUTE_S)
    short = _quantiles(table, names, SHORT_WINDOW_S)
    return _Summary(length_s(table), tail_s(table, facts.end_us), place_of(facts), minutes, short)


def place_of(facts: RunFacts) -> str:
    """Return the kind of machine that executed a run, ``provider/region/flavour``: each empty where it is unknown."""
    return "/".join(quote(part, safe="") for part in (facts.provider, facts.region, facts.flavour))


def _quantiles(table: pa.Table, names: tuple[str, ...], seconds: int) -> dict[str, np.ndarray]:
    finite = {name: means[np.isfinite(means)] for name, means in window_means(table, names, seconds).means.items()}
    return {name: np.quantile(means, _POINTS) for name, means in finite.items() if means.size}


def _profile(job: str, kept: list[_Summary]) -> Profile:
    lengths = np.array([run.length_s for run in kept])
    minutes = _ranges([run.columns for run in kept])
    short = _ranges([run.short for run in kept])
    tails = np.array([run.tail_s for run in kept if run.tail_s is not None])
    tail = _range(tails) if tails.size else None
    places = dict(sorted(Counter(run.place for run in kept).items()))
    return Profile(job, len(kept), _range(lengths) if kept else (0.0, 0.0, 0.0), minutes, short, tail, places)


def _ranges(runs: list[Mapping[str, np.ndarray]]) -> dict[str, Range]:
    points: dict[str, list[np.ndarray]] = {}
    for run in runs:
        for name, values in run.items():
            points.setdefault(name, []).append(values)
    return {name: _range(np.concatenate(arrays)) for name, arrays in points.items()}


def _range(values: np.ndarray) -> Range:
    low, middle, high = np.quantile(values, _SHARES).tolist()
    return low, middle, high


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
    series = SERIES.get(column)
    noise = series.noise if series is not None else _OTHER_NOISE * abs(middle)
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
    departures_found = []
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
                departures_found.append(
                    Departure(column, int(windows.seconds[first]), int(ends[last]), mean, low, high, round(size, 3))
                )
    return tuple(sorted(departures_found, key=lambda each: (-each.size, each.column, each.from_s)))


def _stretches(outside: np.ndarray, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return first and last index of each stretch of windows outside; windows without a value do not interrupt one."""
    indices = np.flatnonzero(outside)
    inside = np.cumsum(~(outside | missing))
    breaks = np.flatnonzero(np.diff(inside[indices]) > 0)
    starts = np.append(0, breaks + 1)
    ends = np.append(breaks, indices.size - 1)
    return (indices[starts], indices[ends]) if indices.size else (indices, indices)
