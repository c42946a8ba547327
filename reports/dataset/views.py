"""Compute the numbers of a data set's plots: counts, courses and images. No drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ciml.reports.dataset.read import Runs
from ciml.transforms.examples.prepare import SPLITS

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
#: Units of telemetry columns, by a word of the group of the column.
_UNITS = {
    "cpu": "% of the time",
    "load": "processes",
    "memory": "B",
    "swap": "B",
    "dsk": "B/s",
    "net": "B/s",
    "paging": "B/s",
    "io": "requests/s",
    "system": "1/s",
    "interrupts": "1/s",
    "procs": "processes",
}
_STEPS = {"day": "datetime64[D]", "week": "datetime64[W]", "month": "datetime64[M]"}


@dataclass(frozen=True)
class Groups:
    """Values by name, with the rarest names merged.

    Attributes:
      names: names of the groups, the largest first; the last may be ``N others``.
      of: int64 [n], the group of each value.
      counts: int64 [groups].
      named: number of groups with a single name: all, or all but the last.
    """

    names: tuple[str, ...]
    of: np.ndarray
    counts: np.ndarray
    named: int


def grouped(values: np.ndarray, limit: int = MOST_CLASSES, unknown: str = "unknown") -> Groups:
    """Return a group for each of the ``limit`` most frequent values, and one of the rest. Ties are ordered by name."""
    names, inverse, counts = np.unique(
        np.array([value or unknown for value in values], object), return_inverse=True, return_counts=True
    )
    order = sorted(range(len(names)), key=lambda index: (-counts[index], names[index]))
    largest = order if len(order) <= limit + 1 else order[:limit]
    group = np.full(len(names), len(largest), np.int64)
    group[largest] = np.arange(len(largest))
    group_names = [str(names[index]) for index in largest]
    if len(largest) < len(order):
        group_names.append(f"{len(order) - len(largest)} others")
    of = group[inverse]
    return Groups(tuple(group_names), of, np.bincount(of, minlength=len(group_names)), len(largest))


def class_splits(runs: Runs, groups: Groups) -> np.ndarray:
    """Return the number of runs of each group in train, dev and test, int64 [groups, 3]."""
    return np.stack(
        [np.bincount(groups.of[runs.split == split], minlength=len(groups.names)) for split in SPLITS], axis=1
    )


def unsuccessful(runs: Runs, groups: Groups) -> np.ndarray:
    """Return the number of runs of each group with another outcome than success, int64 [groups]."""
    return np.bincount(groups.of[runs.outcome != "success"], minlength=len(groups.names))


def lengths(runs: Runs, groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """Return how long runs take. Not for aggregated data sets.

    Returns:
      Seconds from the start of a run, float64 [T]; the share of each group's runs that have a window at that time or
      later, float64 [groups, T].
    """
    windows = _thinned(int(runs.n_windows.max()))
    share = np.empty((len(groups.names), len(windows)))
    for group in range(len(groups.names)):
        n_windows = np.sort(runs.n_windows[groups.of == group])
        share[group] = 1 - np.searchsorted(n_windows, windows, side="right") / len(n_windows)
    return windows * runs.interval_s, share


@dataclass(frozen=True)
class Course:
    """One feature over time, without padding: each time has only the runs that are that long.

    Attributes:
      feature: its name in examples.
      column: its full name.
      times_s: float64 [T], starts of the windows; the index of the function in an aggregated data set.
      mean, low, high: float64 [groups, T]: mean and quartiles; NaN where too few runs are left.
      runs: int64 [groups, T]: number of these runs.
    """

    feature: str
    column: str
    times_s: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: np.ndarray


def courses(runs: Runs, groups: Groups, features: Sequence[int]) -> list[Course]:
    """Return the courses of features (indices into the definition's) by group, from the sampled runs."""
    n_windows = runs.n_windows[runs.sampled]
    of = groups.of[runs.sampled]
    windows = _thinned(int(n_windows.max()))
    shape = (len(groups.names), len(windows), len(features))
    mean, low, high = (np.full(shape, np.nan) for _ in range(3))
    running = np.zeros(shape[:2], np.int64)
    for group in range(len(groups.names)):
        rows = np.flatnonzero(of == group)
        rows = rows[np.argsort(-n_windows[rows], kind="stable")]  # longest first: runs left at a time are a prefix
        few = min(FEW_RUNS, len(rows))
        for point, window in enumerate(windows):
            running[group, point] = count = int(np.count_nonzero(n_windows[rows] > window))
            if count and count >= few:
                values = runs.inputs[rows[:count], window][:, features].astype(np.float64)
                mean[group, point] = values.mean(axis=0)
                low[group, point], high[group, point] = np.quantile(values, (0.25, 0.75), axis=0)
    times_s = windows * (1.0 if runs.aggregated else runs.interval_s)
    names = runs.resolved.telemetry_features
    columns = runs.resolved.columns
    return [
        Course(names[feature], columns[feature], times_s, mean[..., index], low[..., index], high[..., index], running)
        for index, feature in enumerate(features)
    ]


def _thinned(windows: int) -> np.ndarray:
    """Return the windows to draw: all, or every second, third, …"""
    return np.arange(0, windows, -(-windows // MOST_POINTS))


def typical(runs: Runs, groups: Groups) -> list[int]:
    """Return for each group one or two runs of nearly median length, as indices into ``Runs.sampled``."""
    runs_each = 2 if len(groups.names) <= 4 else 1
    n_windows = runs.n_windows[runs.sampled]
    of = groups.of[runs.sampled]
    indices: list[int] = []
    for group in range(len(groups.names)):
        rows = np.flatnonzero(of == group)
        if len(rows):
            middle = np.median(n_windows[rows])
            order = np.argsort(np.abs(n_windows[rows] - middle), kind="stable")
            indices += rows[order][:runs_each].tolist()
    return indices


def value_range(values: np.ndarray) -> tuple[str, str, str]:
    """Return minimum, mean and maximum as texts; dashes without values."""
    if not values.size:
        return ("–",) * 3
    return (f"{values.min():,.4g}", f"{values.mean():,.4g}", f"{values.max():,.4g}")


def unrolled(runs: Runs, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Normalise and unroll sampled runs, float32 [rows, F·L], by column: usr0 … usrL−1, 1m0 … 1mL−1."""
    normal = runs.normalisation.apply(runs.inputs[np.asarray(indices, np.int64)])
    return normal.transpose(0, 2, 1).reshape(len(normal), -1)


@dataclass(frozen=True)
class Image:
    """Runs × unrolled features.

    Attributes:
      values: float32 [rows, F·W]: means of neighbouring windows, which reduce L windows to W columns.
      indices: int64 [rows], indices into ``Runs.sampled``: by group, the longest first.
      rows: int64 [groups], number of rows of each group.
      width: W.
    """

    values: np.ndarray
    indices: np.ndarray
    rows: np.ndarray
    width: int


def image(runs: Runs, groups: Groups) -> Image:
    """Return the sampled runs as an image of at most `MOST_ROWS`. Each group keeps its share, and at least one row."""
    n_windows = runs.n_windows[runs.sampled]
    of = groups.of[runs.sampled]
    order = np.lexsort((-n_windows, of))
    counts = np.bincount(of, minlength=len(groups.names))
    keep = counts if len(of) <= MOST_ROWS else np.minimum(counts, np.maximum(1, counts * MOST_ROWS // len(of)))
    begins = np.cumsum(counts) - counts
    chosen = [begins[group] + np.linspace(0, counts[group] - 1, keep[group]).round() for group in range(len(counts))]
    indices = order[np.concatenate(chosen).astype(np.int64)]
    windows = runs.resolved.windows
    features = len(runs.resolved.features)
    stride = max(1, -(-windows * features // MOST_COLUMNS))
    edges = np.arange(0, windows, stride)
    normal = runs.normalisation.apply(runs.inputs[indices])
    means = np.add.reduceat(normal, edges, axis=1) / np.diff(np.append(edges, windows))[None, :, None]
    values = means.transpose(0, 2, 1).reshape(len(indices), -1).astype(np.float32)
    return Image(values, indices, keep, len(edges))


@dataclass(frozen=True)
class Calendar:
    """Runs over time.

    Attributes:
      unit: ``day``, ``week`` (from Monday) or ``month``.
      begins: datetime64[D] [B], without gaps.
      groups: groups by which runs are counted.
      counts: int64 [groups, B].
      undated: number of runs without a time, which ``counts`` leaves out.
    """

    unit: str
    begins: np.ndarray
    groups: Groups
    counts: np.ndarray
    undated: int


def calendar(runs: Runs, groups: Groups) -> Calendar | None:
    """Count the runs of each group by UTC day, week or month. None if no run has a time."""
    dated = ~np.isnat(runs.day)
    if not dated.any():
        return None
    days = runs.day[dated]
    for unit, step in _STEPS.items():
        # numpy counts weeks from a Thursday; four days earlier is the Monday of 1970-01-01's week
        binned = (days - 4).astype(step) if unit == "week" else days.astype(step)
        begins = np.arange(binned.min(), binned.max() + 1)
        if len(begins) <= MOST_BARS:
            break
    counts = np.zeros((len(groups.names), len(begins)), np.int64)
    np.add.at(counts, (groups.of[dated], np.searchsorted(begins, binned)), 1)
    first_days = begins.astype("datetime64[D]") + (4 if unit == "week" else 0)
    return Calendar(unit, first_days, groups, counts, int(np.count_nonzero(~dated)))


def unit_of(column: str) -> str:
    """Return the unit of a telemetry column by its full name (``load avg:1m``), or "" if it is unknown."""
    group, _, name = column.partition(":")
    if (group, name) == ("procs", "new"):
        return "processes/s"
    return next((unit for word, unit in _UNITS.items() if word in group.replace("/", " ").split()), "")
