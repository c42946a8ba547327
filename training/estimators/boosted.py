"""Gradient boosting over summaries of a run's windows that do not depend on the run's length.

Trees over unrolled examples compare window 17 of one run with window 17 of another, although the runs do different work
by then. A summary covers a column over all of the run's own windows and ignores padding. There are two views, so that
ensemble members have different errors:

- *levels*: location and movement of a column (quantiles, mean, deviation, first and last, mean step), and the ratios of
  columns to each other, which do not depend on the size of the machine or the job;
- *shapes*: levels without ratios, and the form of the curve: moments, autocorrelation, spectrum, quarters, the first
  windows, the tasks behind a load average, and the clock ticks behind a percentage.

The members are `HistGradientBoostingClassifier`s with different seeds, some over the levels and some over the shapes;
each split of a tree considers a share of the numbers. Their probabilities are averaged: members with different errors
generalise better to unseen machines and jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from ciml.errors import CimlError
from ciml.training.experiment import Experiment

#: Share of the 1 min load average that remains after 5 s, the interval of Linux's updates.
_DECAY = float(np.exp(-5 / 60))
#: Clock ticks per second on machines of 2, 4 and 8 cores: a hundred per core, and a few fewer.
_TICKS = (198, 199, 200, 201, 396, 397, 398, 399, 400, 401, 796, 797, 798, 799, 800, 801)
_QUANTILES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
_STEP_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
_LAGS = (1, 2, 3, 5)
_FIRST = 8  # windows that are features themselves
_SPECTRUM = 64  # windows of the spectrum
_BANDS = ((0, 2), (2, 4), (4, 8), (8, 16), (16, 32))
_SMALL = 1e-3  # values below count as zero in ratios
_ROUNDED = 0.005  # a percentage is recorded with two digits
_CHUNK = 1 << 20  # values of a column processed at a time, so that they fit the CPU's caches

View = Literal["levels", "shapes"]
#: Numbers of a single column in each view.
_NUMBERS: dict[View, int] = {"levels": 19, "shapes": 77}


def summarise(inputs: np.ndarray, n_windows: np.ndarray, view: View) -> np.ndarray:
    """Compute a view of runs. A run's result depends neither on other runs nor on the padding.

    Args:
      inputs: float32 [n, L, F], not normalised, since ratios and ticks need the recorded numbers.
      n_windows: int32 [n], at least 1 each.
      view: of F columns, ``levels`` has 19 F + 3 F (F - 1) / 2 numbers and ``shapes`` 77 F.

    Returns:
      float32 [n, numbers]; NaN if a run is too short for a number.
    """
    size = max(1, _CHUNK // max(1, inputs.shape[1]))
    starts = range(0, max(1, len(inputs)), size)
    parts = [_summarise(inputs[start : start + size], n_windows[start : start + size], view) for start in starts]
    return np.concatenate(parts)


def columns_of(view: View, columns: int) -> np.ndarray:
    """Return the columns behind each number of a view, int64 [numbers, 2]; a single column is repeated."""
    count = _NUMBERS[view]
    pairs = [(column, column) for column in range(columns) for _ in range(count)]
    ratios = [pair for pair in combinations(range(columns), 2) for _ in range(3)] if view == "levels" else []
    return np.array([*pairs, *ratios], np.int64).reshape(-1, 2)


def _summarise(inputs: np.ndarray, n_windows: np.ndarray, view: View) -> np.ndarray:
    n, windows, _ = inputs.shape
    own = np.arange(windows) < n_windows[:, None]
    counts = np.maximum(n_windows, 1).astype(np.float64)
    numbers: list[np.ndarray] = []
    centres: list[np.ndarray] = []  # [3, n] for each column: mean, median and 90th percentile
    with np.errstate(all="ignore"):
        for values in inputs.transpose(2, 0, 1).astype(np.float64):
            column = _Column(values, own, counts)
            level = list(_levels(column))
            numbers += level
            centres.append(np.stack([column.mean, level[_QUANTILES.index(0.5)], level[_QUANTILES.index(0.9)]]))
            if view == "shapes":
                numbers += [*_shapes(column), *_tasks(column), *_ticks(column)]
        if view == "levels":
            for left_column, right_column in combinations(centres, 2):
                numbers += list(np.log((np.abs(left_column) + _SMALL) / (np.abs(right_column) + _SMALL)))
    return _stack(numbers, n)


def _stack(numbers: list[np.ndarray], n: int) -> np.ndarray:
    """Stack numbers of n runs as float32; values that are not finite become NaN."""
    with np.errstate(over="ignore"):
        stacked = np.stack(numbers, axis=1).astype(np.float32) if numbers else np.zeros((n, 0), np.float32)
    stacked[~np.isfinite(stacked)] = np.nan
    return stacked


class _Column:
    """A column of n runs, with intermediate results that summaries share.

    Attributes:
      values: float64 [n, L], zero in the padding.
      own: bool [n, L], whether a window is the run's own.
      counts: float64 [n], number of own windows.
      step_counts: float64 [n], number of steps, at least 1.
      ordered: float64 [n, L], the run's own values ascending, then infinity.
      steps: float64 [n, L - 1], from each window to the next, zero in the padding.
      is_step: bool [n, L - 1], whether a step is between two own windows.
      centred: float64 [n, L], values minus the mean, zero in the padding.
    """

    def __init__(self, values: np.ndarray, own: np.ndarray, counts: np.ndarray):
        self.values = np.where(own, values, 0.0)
        self.own = own
        self.counts = counts
        self.ordered = np.sort(np.where(own, values, np.inf), axis=1)
        self.is_step = own[:, 1:]
        self.steps = np.where(self.is_step, np.diff(self.values, axis=1), 0.0)
        self.step_counts = np.maximum(counts - 1, 1)
        self.mean = self.values.sum(axis=1) / counts
        self.centred = np.where(own, values - self.mean[:, None], 0.0)
        self.deviation = np.sqrt((self.centred**2).sum(axis=1) / counts)

    def share_of_windows(self, condition: np.ndarray) -> np.ndarray:
        """Return the share of the run's own windows for which a condition, bool [n, L], is true."""
        share: np.ndarray = (condition & self.own).sum(axis=1) / self.counts
        return share

    def share_of_steps(self, condition: np.ndarray) -> np.ndarray:
        """Return the share of the run's steps for which a condition, bool [n, L - 1], is true."""
        share: np.ndarray = (condition & self.is_step).sum(axis=1) / self.step_counts
        return share


def _quantiles(ordered: np.ndarray, counts: np.ndarray, shares: tuple[float, ...]) -> list[np.ndarray]:
    """Interpolate quantiles linearly in ascending rows [n, K]; only the first ``counts`` [n] entries are values."""
    if not ordered.shape[1]:
        return [np.full(len(ordered), np.nan) for _ in shares]
    quantiles = []
    for share in shares:
        position = np.maximum(counts - 1, 0) * share
        low = np.floor(position).astype(np.int64)
        high = np.minimum(low + 1, np.maximum(counts - 1, 0).astype(np.int64))
        lower, upper = (np.take_along_axis(ordered, index[:, None], axis=1)[:, 0] for index in (low, high))
        distance = np.where(high > low, (upper - lower) * (position - low), 0.0)  # upper may be infinite padding
        quantiles.append(np.where(counts > 0, lower + distance, np.nan))
    return quantiles


def _levels(column: _Column) -> Iterator[np.ndarray]:
    """Yield the numbers of *levels* without ratios.

    Nine quantiles; mean, deviation, first, last; mean and root mean square step; shares of zeros and of unchanged
    windows; the smallest value above zero and the smallest step, which show the resolution.
    """
    yield from _quantiles(column.ordered, column.counts, _QUANTILES)
    yield column.mean
    yield column.deviation
    yield column.values[:, 0]
    yield np.take_along_axis(column.values, column.counts.astype(np.int64)[:, None] - 1, axis=1)[:, 0]
    yield np.abs(column.steps).sum(axis=1) / column.step_counts
    yield np.sqrt((column.steps**2).sum(axis=1) / column.step_counts)
    yield column.share_of_windows(column.values == 0)
    yield column.share_of_steps(column.steps == 0)
    yield np.where(column.own & (column.values > 0), column.values, np.inf).min(axis=1)
    yield np.where(np.abs(column.steps) > 1e-6, np.abs(column.steps), np.inf).min(axis=1, initial=np.inf)


def _shapes(column: _Column) -> Iterator[np.ndarray]:
    """Yield the numbers of *shapes* that are not levels, tasks or ticks."""
    yield from _moments(column)
    yield from _movements(column)
    yield from _quarters(column)
    yield from _spectrum(column)
    yield from _beginning(column)


def _moments(column: _Column) -> Iterator[np.ndarray]:
    """Yield skewness, kurtosis and autocorrelations."""
    centred = column.centred
    counts = column.counts
    deviation = np.maximum(column.deviation, 1e-9)
    yield (centred**3).sum(axis=1) / counts / deviation**3
    yield (centred**4).sum(axis=1) / counts / deviation**4
    for lag in _LAGS:
        has_lag = lag < centred.shape[1]
        product = (centred[:, lag:] * centred[:, :-lag]).sum(axis=1) if has_lag else np.zeros(len(counts))
        yield product / np.maximum(counts - lag, 1) / deviation**2


def _movements(column: _Column) -> Iterator[np.ndarray]:
    """Yield shares of rises, of crossings of the mean and of deviations above two, and the position of the maximum."""
    centred = column.centred
    deviation = np.maximum(column.deviation, 1e-9)
    yield column.share_of_steps(column.steps > 0)
    yield column.share_of_steps(centred[:, 1:] * centred[:, :-1] < 0)
    yield column.share_of_windows(np.abs(centred) > 2 * deviation[:, None])
    yield np.where(column.own, column.values, -np.inf).argmax(axis=1) / column.counts


def _quarters(column: _Column) -> Iterator[np.ndarray]:
    """Yield the mean of each quarter of the run; a quarter has at least one window."""
    counts = column.counts
    position = np.arange(column.values.shape[1])
    for quarter in range(4):
        start = (counts * quarter // 4)[:, None]
        end = np.maximum((counts * (quarter + 1) // 4)[:, None], start + 1)
        is_inside = (position >= start) & (position < end)
        yield (column.values * is_inside).sum(axis=1) / is_inside.sum(axis=1)


def _spectrum(column: _Column) -> Iterator[np.ndarray]:
    """Yield the share of each band in the power of the first `_SPECTRUM` windows."""
    power = np.abs(np.fft.rfft(column.centred[:, :_SPECTRUM], n=_SPECTRUM, axis=1))[:, 1:] ** 2
    total = np.maximum(power.sum(axis=1), 1e-12)
    for low, high in _BANDS:
        yield power[:, low:high].sum(axis=1) / total


def _beginning(column: _Column) -> Iterator[np.ndarray]:
    """Yield the first windows and steps; NaN for a run that is shorter."""
    counts = column.counts
    windows = column.values.shape[1]
    missing = np.full(len(counts), np.nan)
    for window in range(_FIRST):
        yield np.where(counts > window, column.values[:, window], np.nan) if window < windows else missing
    for step in range(3):
        has_step = step < windows - 1
        yield np.where(column.is_step[:, step], column.steps[:, step], np.nan) if has_step else missing


def _tasks(column: _Column) -> Iterator[np.ndarray]:
    """Yield figures of the running tasks behind a load average, at each of its updates.

    Linux computes load = load · a + tasks · (1 - a) every 5 s. The figures: quantiles, mean and deviation of the tasks,
    the share of updates, the first update and its tasks.
    """
    is_update = column.is_step & (np.abs(column.steps) > 1e-4)
    tasks = column.values[:, :-1] + column.steps / (1 - _DECAY)
    counts = is_update.sum(axis=1).astype(np.float64)
    yield from _quantiles(np.sort(np.where(is_update, tasks, np.inf), axis=1), counts, _STEP_QUANTILES)
    mean = np.where(is_update, tasks, 0.0).sum(axis=1) / counts
    yield mean
    yield np.sqrt((np.where(is_update, tasks - mean[:, None], 0.0) ** 2).sum(axis=1) / counts)
    yield column.share_of_steps(is_update)
    if not is_update.shape[1]:
        yield from (np.full(len(counts), np.nan),) * 2
        return
    first = is_update.argmax(axis=1)
    yield np.where(counts > 0, first, np.nan)
    yield np.where(counts > 0, np.take_along_axis(tasks, first[:, None], axis=1)[:, 0], np.nan)


def _ticks(column: _Column) -> Iterator[np.ndarray]:
    """Yield by number of clock ticks a second how many percentages are multiples of 100 / ticks beyond chance.

    The value is NaN for runs in which the column exceeds 100 and so is not a percentage.
    """
    counted = column.own & (column.values > 0.5)
    counts = np.maximum(counted.sum(axis=1), 1)
    percentage = column.values.max(axis=1) <= 100.0
    for ticks in _TICKS:
        number = column.values * (ticks / 100)
        fits = np.abs(number - np.round(number)) * (100 / ticks) <= _ROUNDED * 1.001
        share = (fits & counted).sum(axis=1) / counts - 2 * _ROUNDED * ticks / 100
        yield np.where(percentage, share, np.nan)


#: Default parameters: the number of members over each view; the rest is scikit-learn's.
DEFAULTS = {
    "levels": 2,
    "shapes": 2,
    "columns": 1.0,
    "max_iter": 100,
    "learning_rate": 0.1,
    "max_leaf_nodes": 15,
    "max_features": 0.3,
}


class Windows(NamedTuple):
    """Runs, not normalised: inputs float32 [n, L, F] and n_windows int32 [n]."""

    inputs: np.ndarray
    n_windows: np.ndarray


class BoostedViews:
    """An ensemble over views of runs, with scikit-learn's interface.

    Attributes:
      members: number of boosters by view.
      columns: share of the columns that each member uses, drawn for each.
      parameters: parameters of each `HistGradientBoostingClassifier`.
      seed: the members' seeds follow from it.
      classes_: int64 [C], the classes of the training runs.
    """

    def __init__(self, members: dict[View, int], columns: float, parameters: dict[str, Any], seed: int):
        self.members = members
        self.columns = columns
        self.parameters = parameters
        self.seed = seed
        self.classes_ = np.zeros(0, np.int64)
        self._fitted: list[tuple[View, np.ndarray, Any]] = []

    def fit(self, runs: Windows, labels: np.ndarray) -> BoostedViews:
        """Fit all members on labels int64 [n]."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        views = self._views(runs)

        def member(view: View, number: int) -> tuple[View, np.ndarray, Any]:
            values = views[view]
            drawn = self._drawn_numbers(view, number, runs.inputs.shape[2])
            usable = drawn[~np.isnan(values[:, drawn]).all(axis=0)]  # all runs are too short for the other numbers
            model = HistGradientBoostingClassifier(**self.parameters, random_state=self.seed + number)
            return view, usable, model.fit(values[:, usable], labels)

        with _one_thread():
            self._fitted = [member(view, at) for view, count in self.members.items() for at in range(count)]
        self.classes_ = np.unique(labels)
        return self

    def predict_proba(self, runs: Windows) -> np.ndarray:
        """Return the mean of the members' probabilities, float64 [n, C]."""
        views = self._views(runs)

        with _one_thread():
            answers = [model.predict_proba(views[view][:, usable]) for view, usable, model in self._fitted]
        mean: np.ndarray = np.mean(answers, axis=0)
        return mean

    def _drawn_numbers(self, view: View, number: int, columns: int) -> np.ndarray:
        """Return the positions of the numbers of a view that a member uses, int64 [numbers]."""
        draw = np.random.default_rng([self.seed, number])
        chosen = draw.choice(columns, max(1, round(self.columns * columns)), replace=False)
        return np.flatnonzero(np.isin(columns_of(view, columns), chosen).all(axis=1))

    def _views(self, runs: Windows) -> dict[View, np.ndarray]:
        return {view: summarise(*runs, view) for view, count in self.members.items() if count}


def boosted_summaries(experiment: Experiment, smallest: int) -> BoostedViews:
    """Build the ensemble of an experiment. The size of the smallest class is not used.

    Raises:
      CimlError: for an invalid number of members or share of columns.
    """
    options: dict[str, Any] = {**DEFAULTS, **experiment.parameters}
    members: dict[View, Any] = {view: options.pop(view) for view in get_args(View)}
    for view, count in members.items():
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= 100:
            raise CimlError(f"experiment: parameters.{view}: invalid number of members {count!r}; use 0 to 100")
    if not any(members.values()):
        raise CimlError("experiment: parameters: levels and shapes are both 0: the ensemble has no members")
    columns = options.pop("columns")
    if not isinstance(columns, int | float) or not 0 < columns <= 1:
        raise CimlError(f"experiment: parameters.columns: invalid share {columns!r}; use more than 0 and at most 1")
    weights = {} if experiment.class_weights == "none" else {"class_weight": experiment.class_weights}
    return BoostedViews(members, columns, {"early_stopping": False, **options, **weights}, experiment.seed)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit boosting to one thread.

    Threads spin while they wait for each other at every split: on a busy machine, that is many times slower than one
    thread. Concurrent members would also share Python's warning filters.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="openmp"):
        yield
