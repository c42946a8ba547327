"""Downsampling: from the samples of many runs to windows of equal length, all runs at once.

Windows start at UTC midnight of the day of a run's first recorded sample and continue over the following midnights.
They are closed and labelled on the left, as in pandas' ``resample``. A sample statistic summarises the values of a
window. A window in which a selected column has no value is dropped, and later ones close up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ciml.datasets.definition import ResolvedDefinition
from ciml.errors import RejectedInput
from ciml.runs.arrow import empty_table, plain

DAY_US = 86_400_000_000
_TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """The windows of n runs, without padding; with aggregations in the definition, these instead of windows.

    Attributes:
      values: float32 [W, F], the runs' windows one after another, in order of time.
      run: int64 [W], index of each window's run, ascending.
      position: int64 [W], index of the window in the run, from 0, always below L.
      n_windows: int32 [n], number of windows of each run; 0 where the run is rejected.
      rejected: (index of the run, reason) of rejected runs.
    """

    values: np.ndarray
    run: np.ndarray
    position: np.ndarray
    n_windows: np.ndarray
    rejected: tuple[tuple[int, RejectedInput], ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Samples:
    """The samples of n runs: run int64 [S] ascending, time int64 [S] ascending within a run, F columns float64 [S]."""

    run: np.ndarray
    time: np.ndarray
    columns: list[np.ndarray]


def downsample(tables: Sequence[pa.Table], resolved: ResolvedDefinition) -> Windows:
    """Downsample the telemetry of many runs at once. The result of a run does not depend on other runs.

    Args:
      tables: telemetry of each run as stored: ``time`` timestamp[us, UTC], ``boot`` bool, float64 columns; a null
        or NaN is no value. Samples need not be sorted; samples with equal times keep their order.
      resolved: the resolved definition.

    Returns:
      The windows of all runs. A run is rejected as ``missing_column``, ``no_time`` (a time is null), ``empty`` (no
      window has values in all columns) or ``out_of_range`` (a value that float32 cannot hold).
    """
    rejected: dict[int, RejectedInput] = {}
    joined, runs = _join(tables, resolved, rejected)
    return _windows(joined, runs, len(tables), resolved, rejected)


def downsample_joined(joined: pa.Table, rows: np.ndarray, resolved: ResolvedDefinition) -> Windows:
    """Downsample, as `downsample`, runs that follow one another in one table.

    Args:
      joined: the telemetry of n runs, with the same columns.
      rows: int64 [n], number of rows of each run.
      resolved: the resolved definition.
    """
    rejected: dict[int, RejectedInput] = {}
    part = _needed(joined, _schema(resolved))
    runs = np.repeat(np.arange(rows.size), rows)
    if isinstance(part, RejectedInput):
        rejected = dict.fromkeys(range(rows.size), part)
        part = empty_table(_schema(resolved))
        runs = runs[:0]
    elif part.column(0).null_count:
        timeless = np.zeros(rows.size, bool)
        timeless[runs[plain(part.column(0).is_null().cast(pa.uint8())) == 1]] = True
        rejected = {int(run): _no_time() for run in np.flatnonzero(timeless)}
        part = part.filter(pa.array((~timeless[runs]).tolist(), pa.bool_()))
        runs = runs[~timeless[runs]]
    return _windows(part, runs, rows.size, resolved, rejected)


def _windows(
    joined: pa.Table, runs: np.ndarray, n: int, resolved: ResolvedDefinition, rejected: dict[int, RejectedInput]
) -> Windows:
    """Return the windows of n runs. ``runs`` int64 [S] is the run of each row, ascending."""
    definition = resolved.definition
    samples, origin = _samples(joined, runs, resolved)
    columns, run = _bins(samples, origin, definition.interval_us, definition.sample_statistic)
    if definition.aggregation_functions:
        columns, run = _aggregate(columns, run, definition.aggregation_functions)
    position = np.arange(run.size) - _starts(run)[1]
    if (cut := position >= resolved.windows).any():
        columns = [column[~cut] for column in columns]
        run = run[~cut]
        position = position[~cut]
    values = as_stored(columns)
    if not (finite := np.isfinite(values).all(axis=1)).all():
        for index in np.unique(run[~finite]).tolist():
            rejected[index] = RejectedInput("out_of_range", "a value exceeds the range of float32")
        finite_runs = ~np.isin(run, run[~finite])
        values = values[finite_runs]
        run = run[finite_runs]
        position = position[finite_runs]
    n_windows = np.bincount(run, minlength=n).astype(np.int32)
    for index in np.flatnonzero(n_windows == 0).tolist():
        rejected.setdefault(index, RejectedInput("empty", "no window has a value in every selected column"))
    return Windows(values, run, position, n_windows, tuple(sorted(rejected.items())))


def _join(
    tables: Sequence[pa.Table], resolved: ResolvedDefinition, rejected: dict[int, RejectedInput]
) -> tuple[pa.Table, np.ndarray]:
    """Return one table of the needed columns of all runs, and the run of each row, int64 [S]."""
    parts = []
    index = []
    rows = []
    schema = _schema(resolved)
    for number, table in enumerate(tables):
        part = _needed(table, schema)
        if not isinstance(part, RejectedInput) and part.column(0).null_count:
            part = _no_time()
        if isinstance(part, RejectedInput):
            rejected[number] = part
            continue
        parts.append(part)
        index.append(number)
        rows.append(part.num_rows)
    joined = pa.concat_tables(parts) if parts else empty_table(schema)
    return joined, np.repeat(np.array(index, np.int64), np.array(rows, np.int64))


def _schema(resolved: ResolvedDefinition) -> pa.Schema:
    names = ["time", *([] if resolved.definition.count_first_sample else ["boot"]), *resolved.columns]
    return pa.schema([(name, {"time": _TIME, "boot": pa.bool_()}.get(name, pa.float64())) for name in names])


def _needed(table: pa.Table, schema: pa.Schema) -> pa.Table | RejectedInput:
    """Return the needed columns of telemetry, with their types."""
    try:
        part = table.select(schema.names)
    except KeyError:
        return RejectedInput("missing_column", next(name for name in schema.names if name not in table.column_names))
    return part if part.schema.equals(schema) else part.cast(schema)


def _no_time() -> RejectedInput:
    return RejectedInput("no_time", "a sample has no time")


def merge_windows(parts: Sequence[tuple[np.ndarray, Windows]], n: int) -> Windows:
    """Return the windows of n runs from at least one part: (int64 [m], indices of the runs; their windows)."""
    run = np.concatenate([indices[windows.run] for indices, windows in parts])
    order = np.argsort(run, kind="stable")
    n_windows = np.zeros(n, np.int32)
    rejected: list[tuple[int, RejectedInput]] = []
    for indices, windows in parts:
        n_windows[indices] = windows.n_windows
        rejected.extend((int(indices[index]), why) for index, why in windows.rejected)
    values = np.concatenate([windows.values for _, windows in parts])[order]
    position = np.concatenate([windows.position for _, windows in parts])[order]
    return Windows(values, run[order], position, n_windows, tuple(sorted(rejected, key=lambda each: each[0])))


def _samples(joined: pa.Table, run: np.ndarray, resolved: ResolvedDefinition) -> tuple[_Samples, np.ndarray]:
    """Return the counted samples in order, and for each the midnight from which its run counts windows, int64 [S]."""
    time = plain(joined.column(0))
    columns = [_filled(joined.column(name), np.nan) for name in resolved.columns]
    order: np.ndarray | None = None
    if ((time[1:] < time[:-1]) & (run[1:] == run[:-1])).any():
        order = np.lexsort((time, run))  # stable, so a sorted run is unchanged
        time = time[order]
        columns = [column[order] for column in columns]
    first = time[_starts(run)[1]]
    origin = first - first % DAY_US
    if not resolved.definition.count_first_sample:  # it still counts for the first day
        counts = _filled(joined.column("boot").cast(pa.uint8()), 0) == 0
        counts = counts if order is None else counts[order]
        run = run[counts]
        time = time[counts]
        origin = origin[counts]
        columns = [column[counts] for column in columns]
    return _Samples(run, time, columns), origin


def _filled(column: pa.ChunkedArray, null: float) -> np.ndarray:
    """Convert a column as `plain`, with a value for nulls. (Arrow's own fill_null would import pandas.)"""
    array = column.combine_chunks()
    if not array.null_count:
        return np.from_dlpack(array)
    valid = np.from_dlpack(array.is_valid().cast(pa.uint8())) == 1
    bare = pa.Array.from_buffers(array.type, len(array), [None, array.buffers()[1]], offset=array.offset)
    return np.where(valid, np.from_dlpack(bare), null)


def _starts(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the starts of groups of equal neighbours, int64 [groups], and for each element its group's start."""
    begins = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))) if keys.size else np.zeros(0, np.int64)
    return begins, np.repeat(begins, _sizes(begins, keys.size))


def _sizes(begins: np.ndarray, total: int) -> np.ndarray:
    """Return the number of elements of each group: int64 [groups]. (np.diff takes ten times as long for a few.)"""
    sizes = np.empty_like(begins)
    sizes[:-1] = begins[1:] - begins[:-1]
    sizes[-1:] = total - begins[-1:]
    return sizes


def _bins(
    samples: _Samples, origin: np.ndarray, interval_us: int, statistic: str
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the statistic of windows with a value in every column: F columns float64 [W], and their runs int64 [W]."""
    number = (samples.time - origin) // interval_us
    new = np.ones(number.size, bool)
    new[1:] = (number[1:] != number[:-1]) | (samples.run[1:] != samples.run[:-1])
    begins = np.flatnonzero(new)
    reduced, complete = reduce_windows(samples.columns, begins, statistic)
    return [column[complete] for column in reduced], samples.run[begins][complete]


def reduce_windows(
    columns: Sequence[np.ndarray], begins: np.ndarray, statistic: str
) -> tuple[list[np.ndarray], np.ndarray]:
    """Compute the sample statistic of windows whose samples are consecutive.

    Args:
      columns: F columns float64 [S]; NaN is a missing value.
      begins: int64 [W] ascending, start of each window's samples; each has at least one, and the last ends at S.
      statistic: of `ciml.datasets.definition`: ``mean``, ``std``, ``min``, ``max`` or ``last``.

    Returns:
      F columns float64 [W]; and bool [W], whether a window has a value in each column. Drop the others:
      their statistics are undefined.
    """
    complete = np.ones(begins.size, bool)
    reduced = []
    for column in columns:
        has_value = ~np.isnan(column)
        counts = _count(has_value, begins)
        complete &= counts > 0
        with np.errstate(all="ignore"):  # windows without a value are dropped, and overflows are rejected
            reduced.append(_STATISTICS[statistic](column, has_value, begins, counts))
    return reduced, complete


def as_stored(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Convert F columns float64 [W] to float32 [W, F]; values out of its range become infinite."""
    values = np.empty((columns[0].size, len(columns)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for index, column in enumerate(columns):
            values[:, index] = column
        values += 0.0  # normalise zero: -0.0 has another digest
    return values


def _count(has_value: np.ndarray, begins: np.ndarray) -> np.ndarray:
    sizes = _sizes(begins, has_value.size)
    return sizes if has_value.all() else _reduceat(np.add, has_value.astype(np.int64), begins)


_Reduce = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
# Arguments: a column float64 [S], its validity bool [S], starts of groups int64 [W], and their numbers of values
# int64 [W]. All groups have a sample; the result of a group without a value is undefined.


def _sum(column: np.ndarray, has_value: np.ndarray, begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return _reduceat(np.add, np.where(has_value, column, 0.0), begins)


def _reduceat(operation: np.ufunc, column: np.ndarray, begins: np.ndarray) -> np.ndarray:
    return np.asarray(operation.reduceat(column, begins)) if begins.size else np.zeros(0, column.dtype)


def _mean(column: np.ndarray, has_value: np.ndarray, begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.asarray(_sum(column, has_value, begins, counts) / counts)


def _var(column: np.ndarray, has_value: np.ndarray, begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the variance with ddof 1, in two passes: the mean, then the squared distances; 0 for one value."""
    mean = _mean(column, has_value, begins, counts)
    distance = column - np.repeat(mean, _sizes(begins, column.size))
    return np.asarray(_sum(distance * distance, has_value, begins, counts) / np.maximum(counts - 1, 1))


def _std(column: np.ndarray, has_value: np.ndarray, begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(_var(column, has_value, begins, counts)))


def _min(column: np.ndarray, has_value: np.ndarray, begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return _reduceat(np.fmin, column, begins)  # fmin and fmax ignore NaN


def _max(column: np.ndarray, has_value: np.ndarray, begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return _reduceat(np.fmax, column, begins)


def _last(column: np.ndarray, has_value: np.ndarray, begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    indices = np.where(has_value, np.arange(column.size), 0)
    return np.asarray(column[_reduceat(np.maximum, indices, begins)])


def _first(column: np.ndarray, has_value: np.ndarray, begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.asarray(column[begins])


def _median(column: np.ndarray, has_value: np.ndarray, begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    ascending = column[np.lexsort((column, np.repeat(begins, counts)))]
    low = ascending[begins + (counts - 1) // 2]
    high = ascending[begins + counts // 2]
    return np.asarray(np.where(low == high, low, (low + high) / 2))


def _number(column: np.ndarray, has_value: np.ndarray, begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return counts.astype(np.float64)


_STATISTICS: dict[str, _Reduce] = {"mean": _mean, "std": _std, "min": _min, "max": _max, "last": _last}
#: Functions of a run's windows, which all have values.
_AGGREGATIONS = {**_STATISTICS, "var": _var, "sum": _sum, "first": _first, "count": _number, "median": _median}


def _aggregate(
    columns: list[np.ndarray], run: np.ndarray, functions: Sequence[str]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Apply functions to each run's windows: F columns float64 [runs × functions], and their run."""
    begins, _ = _starts(run)
    counts = _sizes(begins, run.size)
    all_there = np.ones(run.size, bool)
    out = []
    for column in columns:
        with np.errstate(all="ignore"):
            results = [_AGGREGATIONS[name](column, all_there, begins, counts) for name in functions]
        out.append(np.stack(results, axis=1).ravel())
    return out, np.repeat(run[begins], len(functions))
