"""Summaries of a run's windows that do not depend on the run's length, as arrays and as operations of a served model.

Trees over unrolled examples compare window 17 of one run with window 17 of another, although the runs do different work
by then. A summary covers a column over all of the run's own windows and ignores padding. There are three:

- *summary*: ten well-known statistics of each column and the number of windows; always finite, for any estimator;
- *levels*: location and movement of a column (quantiles, mean, deviation, first and last, mean step), and the ratios of
  columns to each other, which do not depend on the size of the machine or the job;
- *shapes*: levels without ratios, and the form of the curve: moments, autocorrelation, spectrum, quarters, the first
  windows, the tasks behind a load average, and the clock ticks behind a percentage.

Each is written once, for an array namespace ``xp``: ``numpy`` for training, and ``tensorflow.experimental.numpy`` for
the graph of an exported model. Both compute in float64. Conditions, positions and quantiles agree exactly, so that a
tree takes the same branch in both; other numbers agree up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np

from ciml.tensorflow import load_tensorflow

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
_PART = 128  # values of a row that numpy adds without halving it
_ROUNDED = 0.005  # a percentage is recorded with two digits
_CHUNK = 1 << 20  # values processed at a time, so that they fit the CPU's caches

View = Literal["levels", "shapes"]
#: Numbers of a single column in each view.
_NUMBERS: dict[View, int] = {"levels": 19, "shapes": 77}
#: The statistics of `summary` for each column.
STATISTICS = ("mean", "std", "min", "q10", "median", "q90", "max", "first", "last", "step")


def summarise(inputs: np.ndarray, n_windows: np.ndarray, view: View) -> np.ndarray:
    """Compute a view of runs. A run's result depends neither on other runs nor on the padding.

    Args:
      inputs: float32 [n, L, F], not normalised, since ratios and ticks need the recorded numbers.
      n_windows: int32 [n], from 1 to L.
      view: of F columns, ``levels`` has 19 F + 3 F (F - 1) / 2 numbers and ``shapes`` 77 F.

    Returns:
      float32 [n, numbers]; NaN if a run is too short for a number.
    """
    _, windows, features = inputs.shape
    size = max(1, _CHUNK // max(1, windows * features))
    starts = range(0, max(1, len(inputs)), size)
    with np.errstate(all="ignore"):
        parts = [view_of(inputs[start : start + size], n_windows[start : start + size], view, np) for start in starts]
    return np.concatenate(parts)


def view_of(inputs: Any, n_windows: Any, view: View, xp: Any) -> Any:
    """Compute a view of runs with the functions of an array namespace; see `summarise`.

    Args:
      inputs: float32 [n, L, F], not normalised; a TensorFlow tensor has static L and F.
      n_windows: int32 [n], from 1 to L.
      view: the view to compute.
      xp: ``numpy``, or ``tensorflow.experimental.numpy`` for tensors.

    Returns:
      float32 [n, numbers], as `summarise`.
    """
    columns = _Columns(inputs, n_windows, xp)
    level = list(_levels(columns))
    if view == "shapes":
        numbers = columns.joined([*level, *_shapes(columns), *_tasks(columns), *_ticks(columns)])
    elif columns.features > 1:
        centres = [columns.mean, level[_QUANTILES.index(0.5)], level[_QUANTILES.index(0.9)]]
        numbers = xp.concatenate([columns.joined(level), _ratios(xp.stack(centres, axis=-1), columns)], axis=1)
    else:
        numbers = columns.joined(level)
    rounded = xp.asarray(numbers, xp.float32)
    return xp.where(xp.isfinite(rounded), rounded, np.float32(np.nan))


def columns_of(view: View, columns: int) -> np.ndarray:
    """Return the columns behind each number of a view, int64 [numbers, 2]; a single column is repeated."""
    count = _NUMBERS[view]
    pairs = [(column, column) for column in range(columns) for _ in range(count)]
    ratios = [pair for pair in combinations(range(columns), 2) for _ in range(3)] if view == "levels" else []
    return np.array([*pairs, *ratios], np.int64).reshape(-1, 2)


def summary(inputs: Any, n_windows: Any, xp: Any) -> Any:
    """Compute the statistics `STATISTICS` of each column over the run's own windows, and the number of windows.

    Args:
      inputs: float32 [n, L, F], not normalised; a TensorFlow tensor has static L and F.
      n_windows: int32 [n], from 1 to L.
      xp: ``numpy``, or ``tensorflow.experimental.numpy`` for tensors.

    Returns:
      float64 [n, 10 F + 1], named by `summary_names`. ``std`` has ddof 0; ``step`` is the mean absolute step from a
      window to the next, 0 for a run of one window. Finite inputs give finite numbers.
    """
    columns = _Columns(inputs, n_windows, xp)
    smallest, low, median, high, largest = _quantiles(columns.ordered, columns.counts, (0.0, 0.1, 0.5, 0.9, 1.0), xp)
    numbers = [columns.mean, columns.deviation, smallest, low, median, high, largest]
    numbers += [columns.values[..., 0], columns.last(), columns.mean_step()]
    return xp.concatenate([columns.joined(numbers), columns.counts], axis=1)


def summary_names(features: Sequence[str]) -> list[str]:
    """Return the names of the numbers of `summary`: ``usr_mean``, ``usr_std``, ..., ``n_windows``."""
    return [*(f"{feature}_{statistic}" for feature in features for statistic in STATISTICS), "n_windows"]


class _Columns:
    """The columns of n runs, with intermediate results that summaries share.

    Attributes:
      xp: the array namespace.
      windows: L.
      features: F.
      values: float64 [n, F, L], zero in the padding.
      own: bool [n, 1, L], whether a window is the run's own.
      counts: float64 [n, 1], number of own windows.
      step_counts: float64 [n, 1], number of steps, at least 1.
      ordered: float64 [n, F, L], the run's own values ascending, then infinity.
      steps: float64 [n, F, L - 1], from each window to the next, zero in the padding.
      is_step: bool [n, 1, L - 1], whether a step is between two own windows.
      mean: float64 [n, F].
      centred: float64 [n, F, L], values minus the mean, zero in the padding.
      deviation: float64 [n, F], with ddof 0.
    """

    def __init__(self, inputs: Any, n_windows: Any, xp: Any):
        self.xp = xp
        self.windows = int(inputs.shape[1])
        self.features = int(inputs.shape[2])
        # A request can contain any number of windows.
        own_windows = xp.minimum(xp.maximum(xp.asarray(n_windows, xp.int64), 1), self.windows)
        values = xp.ascontiguousarray(xp.transpose(inputs, (0, 2, 1)), xp.float64)  # numpy's sums depend on the layout
        self.own = (xp.arange(self.windows) < own_windows[:, None])[:, None, :]
        self.counts = xp.asarray(own_windows, xp.float64)[:, None]
        self.values = xp.where(self.own, values, 0.0)
        # NaN has no place in an order: as infinity, it makes the same numbers undefined.
        self.ordered = xp.sort(xp.where(self.own & ~xp.isnan(values), values, np.inf), axis=-1)
        self.is_step = self.own[..., 1:]
        self.steps = xp.where(self.is_step, self.values[..., 1:] - self.values[..., :-1], 0.0)
        self.step_counts = xp.maximum(self.counts - 1, 1.0)
        self.mean = _sum(self.values, xp) / self.counts
        self.centred = xp.where(self.own, values - self.mean[..., None], 0.0)
        self.deviation = xp.sqrt(_sum(self.centred**2, xp) / self.counts)

    def joined(self, numbers: list[Any]) -> Any:
        """Join numbers [n, F] to [n, F * numbers], column by column."""
        return self.xp.reshape(self.xp.stack(numbers, axis=-1), (-1, self.features * len(numbers)))

    def sum(self, values: Any) -> Any:
        """Return the sum over windows, [n, F] of [n, F, L]; of a condition, the number of windows as float64."""
        return self.xp.sum(self.xp.asarray(values, self.xp.float64), axis=-1)

    def share_of_windows(self, condition: Any) -> Any:
        """Return the share of the run's own windows for which a condition, bool [n, F, L], is true."""
        return self.sum(condition & self.own) / self.counts

    def share_of_steps(self, condition: Any) -> Any:
        """Return the share of the run's steps for which a condition, bool [n, F, L - 1], is true."""
        return self.sum(condition & self.is_step) / self.step_counts

    def mean_step(self) -> Any:
        """Return the mean absolute step, float64 [n, F]."""
        return self.sum(self.xp.abs(self.steps)) / self.step_counts

    def last(self) -> Any:
        """Return the last own value, float64 [n, F]."""
        return _entries(self.values, (self.counts - 1)[..., None], self.xp)[..., 0]

    def missing(self) -> Any:
        """Return NaN for a number that no run has, float64 [n, F]."""
        return self.xp.full_like(self.mean, np.nan)


def _entries(values: Any, positions: Any, xp: Any) -> Any:
    """Take entries of the last axis, [n, F, K] of values [n, F, L] at positions float64 [n, F or 1, K]."""
    indices = xp.asarray(positions + xp.zeros_like(values[..., :1]), xp.int64)  # of a row for each column
    if xp is np:
        return np.take_along_axis(values, indices, axis=-1)
    return load_tensorflow().gather(values, indices, batch_dims=2, axis=2)


def _first(condition: Any, xp: Any) -> Any:
    """Return the position of the first true entry, float64 [n, F] of bool [n, F, L]; L if there is none."""
    length = condition.shape[-1]
    return xp.min(xp.where(condition, xp.arange(length, dtype=xp.float64), float(length)), axis=-1)


def _quantiles(ordered: Any, counts: Any, shares: tuple[float, ...], xp: Any) -> list[Any]:
    """Interpolate quantiles linearly in ascending rows; only the first entries are values.

    Args:
      ordered: float64 [n, F, K].
      counts: float64 [n, F or 1], the number of values in each row.
      shares: S quantiles.
      xp: the array namespace.

    Returns:
      S numbers float64 [n, F]; NaN where there is no value.
    """
    last = xp.maximum(counts - 1, 0.0)[..., None]
    position = last * np.array(shares)
    low = xp.floor(position)
    high = xp.minimum(low + 1, last)
    lower = _entries(ordered, low, xp)
    upper = _entries(ordered, high, xp)
    distance = xp.where(high > low, (upper - lower) * (position - low), 0.0)  # upper may be infinite padding
    quantiles = xp.where(counts[..., None] > 0, lower + distance, np.nan)
    return [quantiles[..., number] for number in range(len(shares))]


def _levels(columns: _Columns) -> Iterator[Any]:
    """Yield the numbers of *levels* without ratios.

    Nine quantiles; mean, deviation, first, last; mean and root mean square step; shares of zeros and of unchanged
    windows; the smallest value above zero and the smallest step, which show the resolution.
    """
    xp = columns.xp
    sizes = xp.abs(columns.steps)
    yield from _quantiles(columns.ordered, columns.counts, _QUANTILES, xp)
    yield columns.mean
    yield columns.deviation
    yield columns.values[..., 0]
    yield columns.last()
    yield columns.mean_step()
    yield xp.sqrt(columns.sum(columns.steps**2) / columns.step_counts)
    yield columns.share_of_windows(columns.values == 0)
    yield columns.share_of_steps(columns.steps == 0)
    yield xp.min(xp.where(columns.own & (columns.values > 0), columns.values, np.inf), axis=-1)
    yield xp.min(xp.where(sizes > 1e-6, sizes, np.inf), axis=-1) if columns.windows > 1 else columns.missing()


def _ratios(centres: Any, columns: _Columns) -> Any:
    """Return the logarithms of the ratios of columns, [n, 3 F (F - 1) / 2] of mean, median and q90 [n, F, 3]."""
    xp = columns.xp
    pairs = np.array(list(combinations(range(columns.features), 2)))
    sizes = xp.abs(centres) + _SMALL
    ratios = xp.log(xp.take(sizes, pairs[:, 0], axis=1) / xp.take(sizes, pairs[:, 1], axis=1))
    return xp.reshape(ratios, (-1, 3 * len(pairs)))


def _shapes(columns: _Columns) -> Iterator[Any]:
    """Yield the numbers of *shapes* that are not levels, tasks or ticks."""
    yield from _moments(columns)
    yield from _movements(columns)
    yield from _quarters(columns)
    yield from _spectrum(columns)
    yield from _beginning(columns)


def _moments(columns: _Columns) -> Iterator[Any]:
    """Yield skewness, kurtosis and autocorrelations."""
    xp = columns.xp
    centred = columns.centred
    deviation = xp.maximum(columns.deviation, 1e-9)
    yield columns.sum(centred**3) / columns.counts / deviation**3
    yield columns.sum(centred**4) / columns.counts / deviation**4
    for lag in _LAGS:
        has_lag = lag < columns.windows
        product = columns.sum(centred[..., lag:] * centred[..., :-lag]) if has_lag else xp.zeros_like(deviation)
        yield product / xp.maximum(columns.counts - lag, 1.0) / deviation**2


def _movements(columns: _Columns) -> Iterator[Any]:
    """Yield shares of rises, of crossings of the mean and of deviations above two, and the position of the maximum."""
    xp = columns.xp
    centred = columns.centred
    deviation = xp.maximum(columns.deviation, 1e-9)
    candidates = xp.where(columns.own & ~xp.isnan(columns.values), columns.values, -np.inf)
    yield columns.share_of_steps(columns.steps > 0)
    yield columns.share_of_steps(centred[..., 1:] * centred[..., :-1] < 0)
    yield columns.share_of_windows(xp.abs(centred) > 2 * deviation[..., None])
    yield _first(candidates == xp.max(candidates, axis=-1)[..., None], xp) / columns.counts


def _quarters(columns: _Columns) -> Iterator[Any]:
    """Yield the mean of each quarter of the run; a quarter has at least one window."""
    xp = columns.xp
    counts = columns.counts
    position = xp.arange(columns.windows, dtype=xp.float64)
    insides = []
    for quarter in range(4):
        start = xp.floor(counts * (quarter / 4))[..., None]
        end = xp.maximum(xp.floor(counts * ((quarter + 1) / 4))[..., None], start + 1)
        insides.append(xp.asarray((position >= start) & (position < end), xp.float64))
    inside = xp.stack(insides, axis=2)
    means = _sum(columns.values[:, :, None] * inside, xp) / xp.sum(inside, axis=-1)
    yield from (means[..., quarter] for quarter in range(4))


def _spectrum(columns: _Columns) -> Iterator[Any]:
    """Yield the share of each band in the power of the first `_SPECTRUM` windows."""
    xp = columns.xp
    power = _power(columns.centred[..., :_SPECTRUM], xp)
    total = xp.maximum(xp.sum(power, axis=-1), 1e-12)
    for low, high in _BANDS:
        yield xp.sum(power[..., low:high], axis=-1) / total


def _power(values: Any, xp: Any) -> Any:
    """Return the power of the frequencies 1 to 32 of at most 64 windows, [n, F, 32] of [n, F, L]."""
    if xp is np:
        return np.abs(np.fft.rfft(values, n=_SPECTRUM, axis=-1))[..., 1:] ** 2
    # A product with a small matrix needs no operation for the Fourier transform, which model servers lack.
    angles = 2 * np.pi * np.outer(np.arange(values.shape[-1]), np.arange(1, _SPECTRUM // 2 + 1)) / _SPECTRUM
    return xp.matmul(values, np.cos(angles)) ** 2 + xp.matmul(values, np.sin(angles)) ** 2


def _beginning(columns: _Columns) -> Iterator[Any]:
    """Yield the first windows and steps; NaN for a run that is shorter."""
    xp = columns.xp
    missing = columns.missing()
    for window in range(_FIRST):
        has_window = window < columns.windows
        yield xp.where(columns.counts > window, columns.values[..., window], np.nan) if has_window else missing
    for step in range(3):
        has_step = step < columns.windows - 1
        yield xp.where(columns.is_step[..., step], columns.steps[..., step], np.nan) if has_step else missing


def _tasks(columns: _Columns) -> Iterator[Any]:
    """Yield figures of the running tasks behind a load average, at each of its updates.

    Linux computes load = load · a + tasks · (1 - a) every 5 s. The figures: quantiles, mean and deviation of the tasks,
    the share of updates, the first update and its tasks.
    """
    xp = columns.xp
    if columns.windows < 2:  # no run has a step
        missing = columns.missing()
        yield from [missing] * (len(_STEP_QUANTILES) + 2)
        yield xp.zeros_like(missing)
        yield from [missing] * 2
        return
    is_update = columns.is_step & (xp.abs(columns.steps) > 1e-4)
    tasks = columns.values[..., :-1] + columns.steps / (1 - _DECAY)
    counts = columns.sum(is_update)
    ordered = xp.sort(xp.where(is_update & ~xp.isnan(tasks), tasks, np.inf), axis=-1)
    yield from _quantiles(ordered, counts, _STEP_QUANTILES, xp)
    mean = _sum(xp.where(is_update, tasks, 0.0), xp) / counts
    yield mean
    yield xp.sqrt(columns.sum(xp.where(is_update, tasks - mean[..., None], 0.0) ** 2) / counts)
    yield columns.share_of_steps(is_update)
    first = xp.minimum(_first(is_update, xp), columns.windows - 2.0)
    yield xp.where(counts > 0, first, np.nan)
    yield xp.where(counts > 0, _entries(tasks, first[..., None], xp)[..., 0], np.nan)


def _ticks(columns: _Columns) -> Iterator[Any]:
    """Yield by number of clock ticks a second how many percentages are multiples of 100 / ticks beyond chance.

    The value is NaN for runs in which the column exceeds 100 and so is not a percentage.
    """
    xp = columns.xp
    counted = columns.own & (columns.values > 0.5)
    counts = xp.maximum(columns.sum(counted), 1.0)
    is_percentage = xp.all(columns.values <= 100.0, axis=-1)
    for ticks in _TICKS:
        number = columns.values * (ticks / 100)
        fits = xp.abs(number - xp.floor(number + 0.5)) * (100 / ticks) <= _ROUNDED * 1.001
        share = columns.sum(fits & counted) / counts - 2 * _ROUNDED * ticks / 100
        yield xp.where(is_percentage, share, np.nan)


def _sum(values: Any, xp: Any) -> Any:
    """Return the sum over the last axis, with the same rounding in numpy and in TensorFlow.

    numpy halves a row of more than `_PART` values until its parts are short enough. A part is the sum of eight
    interleaved sums. In another order the last digit of a deviation could differ, and with it the share of the windows
    beyond two deviations: a window that differs from four equal ones is exactly two deviations away.
    """
    if xp is np:
        return np.sum(values, axis=-1)
    lanes, tails = _positions(int(values.shape[-1]))
    padded = xp.concatenate([values, xp.zeros_like(values[..., :1])], axis=-1)
    interleaved = xp.take(padded, lanes, axis=-1)
    remaining = xp.take(padded, tails, axis=-1)
    sums = sum((interleaved[..., number, :] for number in range(lanes.shape[1])), xp.zeros_like(remaining[..., :1]))
    for _ in range(3):  # eight sums, four, two
        sums = sums[..., ::2] + sums[..., 1::2]
    parts = sum((remaining[..., number] for number in range(tails.shape[1])), sums[..., 0])
    return _halved(int(values.shape[-1]), iter([parts[..., number] for number in range(len(lanes))]))


def _half(length: int) -> int:
    """Return the length of the first half of a row of more than `_PART` values, a multiple of eight."""
    return length // 2 - length // 2 % 8


def _lengths(length: int) -> list[int]:
    """Return the lengths of the parts of a row, at most `_PART` each."""
    half = _half(length)
    return [length] if length <= _PART else [*_lengths(half), *_lengths(length - half)]


def _halved(length: int, parts: Iterator[Any]) -> Any:
    """Return the sum of a row of a length, of the sums of its parts."""
    if length <= _PART:
        return next(parts)
    half = _half(length)
    first_half = _halved(half, parts)
    return first_half + _halved(length - half, parts)


def _positions(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the order in which numpy adds the entries of a row; position ``length`` stands for nothing.

    Args:
      length: L.

    Returns:
      int64 [parts, rounds, 8], entries of the eight interleaved sums; int64 [parts, 7], the rest of each part.
    """
    lengths = _lengths(length)
    lanes = np.full((len(lengths), max(max(lengths) // 8, 1), 8), length)
    tails = np.full((len(lengths), 7), length)
    start = 0
    for part, count in enumerate(lengths):
        interleaved = np.arange(start, start + count // 8 * 8)
        lanes[part, : count // 8] = interleaved.reshape(-1, 8)
        tails[part, : count % 8] = np.arange(start + interleaved.size, start + count)
        start += count
    return lanes, tails
