"""Profiles of jobs: the usual telemetry of their passing runs, and where another run departs from it.

A *profile* has the lengths of a job's passing runs and the range of each column. A *range* is 5 %, 50 % and 95 % of the
means of windows: of minutes, or of a few seconds for short runs. A *departure* is a stretch of a run's windows outside
of the range, by more than noise.

The functions are pure and linear in the samples. `ciml.verdicts.evidence` makes sentences of departures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
#: The length of the windows of runs that are shorter than `SHORT_RUN_S`.
SHORT_WINDOW_S = 5
SHORT_RUN_S = 180.0
#: A larger value is not a measurement and counts as missing: sums of such values overflow.
MAX_VALUE = 1e18
_MB = 1e6
#: A job with fewer passing runs has the pooled profile. The range of five runs is already close to that of all runs.
MIN_RUNS = 5
_RANGE_QUANTILES = (0.05, 0.5, 0.95)
#: Each run is represented by 20 quantiles of its windows, so that its length determines neither weight nor memory.
_RUN_QUANTILES = (np.arange(20) + 0.5) / 20
#: The least distance of a departure from the range, as a share of the range's width.
_MIN_DISTANCE = 0.5
#: The noise of a column that `SERIES` lacks, as a share of its median.
_OTHER_NOISE = 0.25
#: The shortest departure, in seconds and as a share of the run. So a run of a few seconds has no departures: its start
#: is not compared with complete runs.
MIN_DEPARTURE_S = 10
_MIN_DEPARTURE_SHARE = 0.02
#: ``%`` of the machine's processors, ``B`` bytes, ``B/s`` bytes a second, ``/s`` events a second, "" a number.
Unit = Literal["%", "B", "B/s", "/s", ""]
#: 5 %, 50 % and 95 % of the values of passing runs.
Range: TypeAlias = tuple[float, float, float]


class Series(NamedTuple):
    """A column that people know.

    Attributes:
      words: its name in sentences.
      unit: the unit of its values.
      noise: the difference of two runs without a reason, in its unit. A smaller departure is not reported.
      group: columns of one group describe the same fact of a run; "" for a column that is not shown to people.
    """

    words: str
    unit: Unit
    noise: float
    group: str = ""


#: Series by the full name of the column. Other columns are never shown to people: a hostile log may name them anything.
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


class Profile(Record, frozen=True, gc=False):
    """The passing runs of a job.

    Attributes:
      job: its name; "" for the runs of all jobs.
      runs: number of its passing runs.
      length_s: the range of their lengths, first to last sample, in seconds.
      columns: the range of the means of their minutes by full name, in the column's unit. Every run weighs the same.
      short: the same for windows of `SHORT_WINDOW_S`, for runs below `SHORT_RUN_S`.
      tail_s: the range of the seconds from the last sample to the end that the CI system reports, which stores logs
        meanwhile; None if no end is known.
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
    """The profile of each job, and the pooled profile of the runs of all jobs.

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
        """Encode as in ``profiles.json``."""
        return {"jobs": {job: profile.to_json() for job, profile in self.jobs.items()}, "pooled": self.pooled.to_json()}

    @classmethod
    def from_json(cls, value: Any, where: str = "profiles.json") -> Profiles:
        """Decode `to_json`. Raises `CimlError` for invalid JSON, with ``where`` as its place."""
        try:
            return msgspec.convert(value, cls)
        except msgspec.ValidationError as error:
            raise CimlError(f"{where}: {error}") from None


class _Summary(Record, frozen=True, gc=False):
    """A passing run: its length, and by column the `_RUN_QUANTILES` of its windows, float64 [20]."""

    length_s: float
    tail_s: float | None
    place: str
    columns: Mapping[str, np.ndarray]
    short: Mapping[str, np.ndarray]


def make_profiles(runs: Iterable[tuple[RunFacts, pa.Table]], columns: Iterable[str] = ()) -> Profiles:
    """Make the profiles of jobs from their passing runs; runs with another outcome are ignored.

    Args:
      runs: facts and telemetry of each run, read once. The first `MAX_PROFILE_JOBS` jobs count, with the first
        `MAX_PROFILE_RUNS` passing runs of each.
      columns: full names of columns to describe in addition to those of `SERIES`.
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
            job_runs.append(_summarise(facts, table, names))
    pooled = _profile_of("", [run for job_runs in jobs.values() for run in job_runs])
    return Profiles({job: _profile_of(job, job_runs) for job, job_runs in sorted(jobs.items())}, pooled)


def _summarise(facts: RunFacts, table: pa.Table, names: tuple[str, ...]) -> _Summary:
    minutes = _window_quantiles(table, names, MINUTE_S)
    short = _window_quantiles(table, names, SHORT_WINDOW_S)
    return _Summary(length_s(table), tail_s(table, facts.end_us), place_of(facts), minutes, short)


def place_of(facts: RunFacts) -> str:
    """Return the kind of machine that executed a run as ``provider/region/flavour``; unknown parts are empty."""
    return "/".join(quote(part, safe="") for part in (facts.provider, facts.region, facts.flavour))


def _window_quantiles(table: pa.Table, names: tuple[str, ...], seconds: int) -> dict[str, np.ndarray]:
    quantiles = {}
    for name, means in window_means(table, names, seconds).means.items():
        finite = means[np.isfinite(means)]
        if finite.size:
            quantiles[name] = np.quantile(finite, _RUN_QUANTILES)
    return quantiles


def _profile_of(job: str, runs: list[_Summary]) -> Profile:
    tails = [run.tail_s for run in runs if run.tail_s is not None]
    return Profile(
        job,
        runs=len(runs),
        length_s=_range_of([run.length_s for run in runs]) if runs else (0.0, 0.0, 0.0),
        columns=_ranges_of([run.columns for run in runs]),
        short=_ranges_of([run.short for run in runs]),
        tail_s=_range_of(tails) if tails else None,
        places=dict(sorted(Counter(run.place for run in runs).items())),
    )


def _ranges_of(quantiles_by_run: list[Mapping[str, np.ndarray]]) -> dict[str, Range]:
    by_column: dict[str, list[np.ndarray]] = {}
    for quantiles in quantiles_by_run:
        for name, values in quantiles.items():
            by_column.setdefault(name, []).append(values)
    return {name: _range_of(np.concatenate(values)) for name, values in by_column.items()}


def _range_of(values: Sequence[float] | np.ndarray) -> Range:
    low, middle, high = np.quantile(values, _RANGE_QUANTILES).tolist()
    return low, middle, high


class Departure(Record, frozen=True, gc=False):
    """A stretch of windows in which a column is outside of its passing range.

    Attributes:
      column: the column's full name.
      from_s, until_s: start of the first window and end of the last, in seconds since the first sample. The last window
        of a run ends with its last sample.
      mean: mean of the run's values in these windows.
      low, high: the passing range, 5 % to 95 %, for windows of this length.
      size: distance of the mean from the range in `margin`s (above 1), times the square root of the share of the run's
        windows that depart. It orders departures of different units.
    """

    column: str
    from_s: int
    until_s: int
    mean: float
    low: float
    high: float
    size: float


def departures(table: pa.Table, profile: Profile) -> tuple[Departure, ...]:
    """Find where a run departs from a profile, the largest departure first.

    Runs of three minutes and more are compared by minutes, shorter ones by windows of five seconds.

    Args:
      table: telemetry as stored.
      profile: the profile of the run's job. There are no departures from one of fewer than `MIN_RUNS` runs.
    """
    if profile.runs < MIN_RUNS:
        return ()
    run_s = length_s(table)
    window_s = window_of(run_s)
    ranges = profile.ranges(window_s)
    windows = window_means(table, ranges, window_s)
    ends = np.minimum(windows.seconds + window_s, int(run_s) + 1)
    min_s = max(MIN_DEPARTURE_S, _MIN_DEPARTURE_SHARE * run_s)
    run_departures: list[Departure] = []
    for column, means in windows.means.items():
        low, _, high = usual = ranges[column]
        least = margin(column, usual)
        if least <= 0:  # every passing run records 0, so there is no scale for another value
            continue
        for outside, sign, border in ((means > high + least, 1, high), (means < low - least, -1, low)):
            for first, last in _stretches(outside, np.isnan(means)):
                if ends[last] - windows.seconds[first] < min_s:
                    continue
                mean = windows.mean(column, first, last)
                share = (last + 1 - first) / means.size
                size = round(sign * (mean - border) / least * share**0.5, 3)
                departure = Departure(column, int(windows.seconds[first]), int(ends[last]), mean, low, high, size)
                run_departures.append(departure)
    run_departures.sort(key=lambda departure: (-departure.size, departure.column, departure.from_s))
    return tuple(run_departures)


def margin(column: str, usual: Range) -> float:
    """Return the least distance from its passing range at which a value departs, in the column's unit."""
    low, middle, high = usual
    series = SERIES.get(column)
    noise = series.noise if series is not None else _OTHER_NOISE * abs(middle)
    return max(noise, _MIN_DISTANCE * (high - low))


def _stretches(outside: np.ndarray, missing: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the first and last index of each stretch of windows outside; a missing value does not interrupt one."""
    indices = np.flatnonzero(outside)
    inside = np.cumsum(~(outside | missing))
    breaks = np.flatnonzero(np.diff(inside[indices]) > 0) + 1
    for stretch in np.split(indices, breaks):
        if stretch.size:
            yield int(stretch[0]), int(stretch[-1])


@dataclass(frozen=True, slots=True, eq=False)
class WindowMeans:
    """The means of a run's W windows that have samples.

    Attributes:
      seconds: int64 [W], start of each window in seconds since the earliest sample, ascending.
      means: by column, float64 [W]; NaN for a window without a value.
      counts: by column, int64 [W], the number of values.
    """

    seconds: np.ndarray
    means: dict[str, np.ndarray]
    counts: dict[str, np.ndarray]

    def mean(self, column: str, first: int, last: int) -> float:
        """Return the mean of a column's values, at least one, in the windows ``first`` to ``last``."""
        part = slice(first, last + 1)
        counts = self.counts[column][part]
        sums = np.where(counts > 0, self.means[column][part], 0.0) * counts
        return float(sums.sum() / counts.sum())


def window_means(table: pa.Table, columns: Iterable[str], seconds: int) -> WindowMeans:
    """Compute the means of a run's windows, which are counted from its earliest sample.

    Args:
      table: telemetry as stored: ``time``, ``boot``, float64 columns. Samples need not be sorted.
      columns: full names; columns that the table lacks are left out.
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
        count = np.bincount(window[valid], minlength=starts.size)
        sums = np.bincount(window[valid], values[valid], minlength=starts.size)
        means[column] = np.divide(sums, count, out=np.full(starts.size, np.nan), where=count > 0)
        counts[column] = count
    return WindowMeans(starts * seconds, means, counts)


def values_of(table: pa.Table, column: str) -> np.ndarray:
    """Return a column's values, float64; NaN for a missing value and for anything but a number.

    The first sample of a recorder (column ``boot``) has the means since the machine started, not those of the run. It
    counts as missing.
    """
    chunks = table.column(column)
    if not pa.types.is_floating(chunks.type) and not pa.types.is_integer(chunks.type):
        return np.full(table.num_rows, np.nan)
    values: np.ndarray = chunks.cast(pa.float64()).to_numpy().copy()
    values[~(np.abs(values) <= MAX_VALUE)] = np.nan
    if BOOT in table.column_names:
        values[table.column(BOOT).fill_null(False).to_numpy()] = np.nan
    return values


def window_of(length: float) -> int:
    """Return the length of a window for a run of this length, both in seconds."""
    return SHORT_WINDOW_S if length < SHORT_RUN_S else MINUTE_S


def elapsed_s(table: pa.Table) -> np.ndarray:
    """Return the seconds of each sample since the earliest, float64; 0 if the time is missing."""
    times = table.column(TIME).combine_chunks().cast(pa.int64())
    first = times.drop_null().to_numpy().min() if times.null_count < len(times) else 0
    elapsed_us: np.ndarray = times.fill_null(first).to_numpy() - first
    return elapsed_us / 1e6


def length_s(table: pa.Table) -> float:
    """Return the seconds from the earliest sample to the latest; 0 for a single one."""
    return float(elapsed_s(table).max(initial=0.0))


def tail_s(table: pa.Table, end_us: int | None) -> float | None:
    """Return the seconds from the last sample to ``end_us``; None if either is unknown."""
    times = table.column(TIME).combine_chunks().cast(pa.int64()).drop_null().to_numpy()
    return None if end_us is None or not times.size else float(end_us - times.max()) / 1e6
