"""The passing profile of each job: its length and the range of each series, from the windows of its passing runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias
from urllib.parse import quote

import msgspec
import numpy as np
import pyarrow as pa

from ciml.errors import CimlError
from ciml.events.records import Record, RunFacts
from ciml.limits import MAX_PROFILE_JOBS, MAX_PROFILE_RUNS
from ciml.transforms.profiles.series import SERIES
from ciml.transforms.profiles.windows import MINUTE_S, SHORT_WINDOW_S, length_s, tail_s, window_means

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
        found = self.jobs.get(job)
        return found if found is not None and found.runs >= MIN_RUNS else self.pooled

    def to_json(self) -> dict[str, Any]:
        """Return the form of ``profiles.json``."""
        return {"jobs": {job: each.to_json() for job, each in self.jobs.items()}, "pooled": self.pooled.to_json()}

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
        kept = jobs.setdefault(facts.build_name, [])
        if len(kept) < MAX_PROFILE_RUNS:
            kept.append(_summary(facts, table, names))
    pooled = _profile("", [each for kept in jobs.values() for each in kept])
    return Profiles({job: _profile(job, kept) for job, kept in sorted(jobs.items())}, pooled)


def _summary(facts: RunFacts, table: pa.Table, names: tuple[str, ...]) -> _Summary:
    minutes, short = _quantiles(table, names, MINUTE_S), _quantiles(table, names, SHORT_WINDOW_S)
    return _Summary(length_s(table), tail_s(table, facts.end_us), place_of(facts), minutes, short)


def place_of(facts: RunFacts) -> str:
    """Return the kind of machine that executed a run, ``provider/region/flavour``: each empty where it is unknown."""
    return "/".join(quote(part, safe="") for part in (facts.provider, facts.region, facts.flavour))


def _quantiles(table: pa.Table, names: tuple[str, ...], seconds: int) -> dict[str, np.ndarray]:
    found = {name: means[np.isfinite(means)] for name, means in window_means(table, names, seconds).means.items()}
    return {name: np.quantile(means, _POINTS) for name, means in found.items() if means.size}


def _profile(job: str, kept: list[_Summary]) -> Profile:
    lengths = np.array([each.length_s for each in kept])
    minutes, short = _ranges([each.columns for each in kept]), _ranges([each.short for each in kept])
    tails = np.array([each.tail_s for each in kept if each.tail_s is not None])
    tail = _range(tails) if tails.size else None
    places = dict(sorted(Counter(each.place for each in kept).items()))
    return Profile(job, len(kept), _range(lengths) if kept else (0.0, 0.0, 0.0), minutes, short, tail, places)


def _ranges(runs: list[Mapping[str, np.ndarray]]) -> dict[str, Range]:
    points: dict[str, list[np.ndarray]] = {}
    for run in runs:
        for name, values in run.items():
            points.setdefault(name, []).append(values)
    return {name: _range(np.concatenate(found)) for name, found in points.items()}


def _range(values: np.ndarray) -> Range:
    low, middle, high = np.quantile(values, _SHARES).tolist()
    return low, middle, high
