"""Compute the numbers of a data set's plots: counts, courses and images. No drawing.

Shapes: n runs, m of them sampled (`Runs.sampled`), G groups, T times. An example has L windows of F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ciml.datasets.definition import SPLITS
from ciml.reports.dataset.read import Runs

#: Number of classes with a colour of their own; smaller classes share one group.
MOST_CLASSES = 7
#: Means and bands of fewer runs are not drawn, unless the whole class is smaller.
FEW_RUNS = 5
#: Points of a course; longer courses are thinned to every second window, third, and so on.
MOST_POINTS = 400
#: Rows and columns of an image of examples.
MOST_ROWS = 400
MOST_COLUMNS = 2400
#: Bars of a plot over time; beyond that, days become weeks, then months.
MOST_BARS = 75
#: Days from Thursday to Monday. numpy's weeks begin on Thursday; this many days earlier each Monday is a Thursday.
_MONDAY = 4
Unit = Literal["day", "week", "month"]


@dataclass(frozen=True)
class Groups:
    """Values by name, with the rarest names merged.

    Attributes:
      names: names of the groups, the largest first; the last may be ``N others``.
      assigned: int64 [n], the index of each value's group.
      counts: int64 [G], the number of values in each group.
      named: number of groups with a single name: all, or all but the last.
    """

    names: tuple[str, ...]
    assigned: np.ndarray
    counts: np.ndarray
    named: int


def group_values(values: np.ndarray, limit: int = MOST_CLASSES) -> Groups:
    """Return a group for each of the ``limit`` most frequent values, and one of the rest. Ties are ordered by name.

    The rest has at least two values: a single one keeps its name. "" is counted as ``unknown``.
    """
    names, inverse, counts = np.unique(
        np.array([value or "unknown" for value in values], object), return_inverse=True, return_counts=True
    )
    order = sorted(range(len(names)), key=lambda index: (-counts[index], names[index]))
    largest = order if len(order) <= limit + 1 else order[:limit]
    group = np.full(len(names), len(largest), np.int64)
    group[largest] = np.arange(len(largest))
    group_names = [str(names[index]) for index in largest]
    if len(largest) < len(order):
        group_names.append(f"{len(order) - len(largest)} others")
    assigned = group[inverse]
    return Groups(tuple(group_names), assigned, np.bincount(assigned, minlength=len(group_names)), len(largest))


def count_by_split(runs: Runs, groups: Groups) -> np.ndarray:
    """Return the number of runs of each group in train, dev and test, int64 [G, 3]."""
    return np.stack(
        [np.bincount(groups.assigned[runs.split == split], minlength=len(groups.names)) for split in SPLITS], axis=1
    )


def count_unsuccessful(runs: Runs, groups: Groups) -> np.ndarray:
    """Return the number of runs of each group whose outcome is not success, int64 [G]."""
    return np.bincount(groups.assigned[runs.outcome != "success"], minlength=len(groups.names))


def running_shares(runs: Runs, groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of runs that still run at each time. Not for aggregated data sets.

    Returns:
      Seconds from the start of a run, float64 [T]; the share of each group's runs that have a window at that time or
      later, float64 [G, T].
    """
    windows = _windows_to_draw(int(runs.n_windows.max()))
    shares = np.empty((len(groups.names), len(windows)))
    for group in range(len(groups.names)):
        n_windows = np.sort(runs.n_windows[groups.assigned == group])
        shares[group] = 1 - np.searchsorted(n_windows, windows, side="right") / len(n_windows)
    return windows * runs.interval_s, shares


@dataclass(frozen=True)
class Course:
    """One feature over time, without padding: each time has only the runs that are that long.

    Attributes:
      feature: name of the feature in examples.
      column: full name of its telemetry column.
      times_s: float64 [T], starts of the windows; in an aggregated data set the indices of the functions.
      mean, low, high: float64 [G, T], mean, first and third quartile; NaN where too few runs are left.
      runs: int64 [G, T], the number of runs that are left.
    """

    feature: str
    column: str
    times_s: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: np.ndarray


def compute_courses(runs: Runs, groups: Groups, features: Sequence[int]) -> list[Course]:
    """Return the courses of features (indices into the definition's) by group, from the sampled runs."""
    n_windows = runs.n_windows[runs.sampled]
    assigned = groups.assigned[runs.sampled]
    windows = _windows_to_draw(int(n_windows.max()))
    shape = (len(groups.names), len(windows), len(features))
    mean, low, high = (np.full(shape, np.nan) for _ in range(3))
    runs_left = np.zeros(shape[:2], np.int64)
    for group in range(len(groups.names)):
        members = np.flatnonzero(assigned == group)
        members = members[np.argsort(-n_windows[members], kind="stable")]  # longest first: those left are a prefix
        least = max(1, min(FEW_RUNS, len(members)))
        for point, window in enumerate(windows):
            count = int(np.count_nonzero(n_windows[members] > window))
            runs_left[group, point] = count
            if count >= least:
                values = runs.inputs[members[:count], window][:, features].astype(np.float64)
                mean[group, point] = values.mean(axis=0)
                low[group, point], high[group, point] = np.quantile(values, (0.25, 0.75), axis=0)
    times_s = windows * (1.0 if runs.aggregated else runs.interval_s)
    names = runs.resolved.telemetry_features
    columns = runs.resolved.columns
    return [
        Course(
            names[feature], columns[feature], times_s, mean[..., index], low[..., index], high[..., index], runs_left
        )
        for index, feature in enumerate(features)
    ]


def _windows_to_draw(windows: int) -> np.ndarray:
    """Return the indices of at most `MOST_POINTS` of some windows: all, or every second, third, …"""
    stride = max(1, -(-windows // MOST_POINTS))
    return np.arange(0, windows, stride)


def choose_typical_runs(runs: Runs, groups: Groups) -> list[int]:
    """Return for each group one or two runs of nearly median length, as indices into ``Runs.sampled``."""
    runs_per_group = 2 if len(groups.names) <= 4 else 1
    n_windows = runs.n_windows[runs.sampled]
    assigned = groups.assigned[runs.sampled]
    indices: list[int] = []
    for group in range(len(groups.names)):
        members = np.flatnonzero(assigned == group)
        if len(members):
            median = np.median(n_windows[members])
            order = np.argsort(np.abs(n_windows[members] - median), kind="stable")
            indices += members[order][:runs_per_group].tolist()
    return indices


def value_range(values: np.ndarray) -> tuple[str, str, str]:
    """Return minimum, mean and maximum as texts, or three dashes for no values."""
    if not values.size:
        return ("–",) * 3
    return (f"{values.min():,.4g}", f"{values.mean():,.4g}", f"{values.max():,.4g}")


def unroll(runs: Runs, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Normalise and unroll sampled runs, float32 [runs, F·L]: all windows of the first feature, then of the second.

    Args:
      runs: runs of a data set.
      indices: indices into ``runs.sampled``.
    """
    normal = runs.normalisation.apply(runs.inputs[np.asarray(indices, np.int64)])
    return normal.transpose(0, 2, 1).reshape(len(normal), -1)


@dataclass(frozen=True)
class Image:
    """Runs × unrolled features. Each row is a run.

    Attributes:
      values: float32 [rows, F·width]: means of neighbouring windows, which reduce L windows to ``width`` columns.
      indices: int64 [rows], indices into ``Runs.sampled``: by group, the longest first.
      rows: int64 [G], number of rows of each group.
      width: number of columns of each feature.
    """

    values: np.ndarray
    indices: np.ndarray
    rows: np.ndarray
    width: int


def make_image(runs: Runs, groups: Groups) -> Image:
    """Return the sampled runs as an image of at most `MOST_ROWS`. Each group keeps its share, and at least one row."""
    n_windows = runs.n_windows[runs.sampled]
    assigned = groups.assigned[runs.sampled]
    counts = np.bincount(assigned, minlength=len(groups.names))
    rows = counts
    if len(assigned) > MOST_ROWS:
        rows = np.minimum(counts, np.maximum(1, counts * MOST_ROWS // len(assigned)))
    ordered = np.lexsort((-n_windows, assigned))  # by group, then the longest first
    chosen: list[np.ndarray] = []
    for members, number in zip(np.split(ordered, np.cumsum(counts)[:-1]), rows, strict=True):
        evenly_spaced = np.linspace(0, len(members) - 1, number).round().astype(np.int64)
        chosen.append(members[evenly_spaced])
    indices = np.concatenate(chosen)
    windows = runs.resolved.windows
    windows_per_column = max(1, -(-windows * len(runs.resolved.features) // MOST_COLUMNS))
    starts = np.arange(0, windows, windows_per_column)
    widths = np.diff(np.append(starts, windows))  # the last column may have fewer windows
    normal = runs.normalisation.apply(runs.inputs[indices])
    means = np.add.reduceat(normal, starts, axis=1) / widths[None, :, None]
    values = means.transpose(0, 2, 1).reshape(len(indices), -1).astype(np.float32)
    return Image(values, indices, rows, len(starts))


@dataclass(frozen=True)
class Calendar:
    """Runs over time.

    Attributes:
      unit: the length of a bar; a week starts on Monday.
      starts: datetime64[D] [bars], the first day of each bar, without gaps.
      groups: groups by which runs are counted.
      counts: int64 [G, bars].
      undated: number of runs without a time, which ``counts`` leaves out.
    """

    unit: Unit
    starts: np.ndarray
    groups: Groups
    counts: np.ndarray
    undated: int


def make_calendar(runs: Runs, groups: Groups) -> Calendar | None:
    """Count the runs of each group by UTC day, week or month. None if no run has a time."""
    dated = ~np.isnat(runs.day)
    if not dated.any():
        return None
    days = runs.day[dated]
    unit = _choose_unit(days)
    periods = _periods_of(days, unit)
    bars = np.arange(periods.min(), periods.max() + 1)
    counts = np.zeros((len(groups.names), len(bars)), np.int64)
    np.add.at(counts, (groups.assigned[dated], np.searchsorted(bars, periods)), 1)
    starts = bars.astype("datetime64[D]") + (_MONDAY if unit == "week" else 0)
    return Calendar(unit, starts, groups, counts, int(np.count_nonzero(~dated)))


def _choose_unit(days: np.ndarray) -> Unit:
    """Return the shortest unit that gives at most `MOST_BARS` bars; a month in any case."""
    units: tuple[Unit, ...] = ("day", "week")
    for unit in units:
        periods = _periods_of(days, unit)
        if int((periods.max() - periods.min()).astype(np.int64)) < MOST_BARS:
            return unit
    return "month"


def _periods_of(days: np.ndarray, unit: Unit) -> np.ndarray:
    """Return the day, week or month of each day, as numpy counts them. A week is moved: see `_MONDAY`."""
    if unit == "week":
        return (days - _MONDAY).astype("datetime64[W]")
    return days if unit == "day" else days.astype("datetime64[M]")
