"""Downsample the telemetry of runs: from samples to windows of equal length, all runs at once.

Windows start at UTC midnight of the day of a run's first recorded sample and continue over the following midnights.
They are closed and labelled on the left, as in pandas' ``resample``. A sample statistic (mean, std, min, max or last)
summarises the values of a window. A window in which a selected column has no value is dropped, and later ones close up.
If the definition has aggregations, these functions of a run's windows replace the windows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import pyarrow as pa

from ciml.datasets.definition import ResolvedDefinition
from ciml.errors import RejectedInput
from ciml.runs.arrow import empty_table, plain

DAY_US = 86_400_000_000
_TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """The windows of n runs, or the aggregations of these windows, without padding.

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
class _Joined:
    """The needed columns of n runs in one table, and the runs that are not in it.

    Attributes:
      table: the telemetry.
      run: int64 [S] ascending, the run of each row.
      n: number of runs.
      rejected: the reason for each run that is not in the table.
    """

    table: pa.Table
    run: np.ndarray
    n: int
    rejected: Mapping[int, RejectedInput]


@dataclass(frozen=True, slots=True, eq=False)
class _Samples:
    """The samples of n runs.

    Attributes:
      run: int64 [S] ascending.
      time: int64 [S], ascending within a run, epoch microseconds.
      origin: int64 [S], the midnight from which the run's windows are counted.
      columns: F columns float64 [S].
    """

    run: np.ndarray
    time: np.ndarray
    origin: np.ndarray
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
    schema = _schema(resolved)
    rejected: dict[int, RejectedInput] = {}
    parts: dict[int, pa.Table] = {}
    for index, table in enumerate(tables):
        part = _select(table, schema)
        if isinstance(part, RejectedInput):
            rejected[index] = part
        elif part.column(0).null_count:
            rejected[index] = _no_time()
        else:
            parts[index] = part
    joined = pa.concat_tables(parts.values()) if parts else empty_table(schema)
    rows = [part.num_rows for part in parts.values()]
    run = np.repeat(np.array(list(parts), np.int64), np.array(rows, np.int64))
    return _windows(_Joined(joined, run, len(tables), rejected), resolved)


def downsample_joined(joined: pa.Table, rows: np.ndarray, resolved: ResolvedDefinition) -> Windows:
    """Downsample, as `downsample`, runs that follow one another in one table.

    Args:
      joined: the telemetry of n runs, with the same columns.
      rows: int64 [n], number of rows of each run.
      resolved: the resolved definition.
    """
    n = rows.size
    run = np.repeat(np.arange(n), rows)
    table = _select(joined, _schema(resolved))
    if isinstance(table, RejectedInput):
        return _windows(_Joined(empty_table(_schema(resolved)), run[:0], n, dict.fromkeys(range(n), table)), resolved)
    if not table.column(0).null_count:
        return _windows(_Joined(table, run, n, {}), resolved)
    is_timeless = np.zeros(n, bool)
    is_timeless[run[plain(table.column(0).is_null().cast(pa.uint8())) == 1]] = True
    has_time = ~is_timeless[run]
    table = table.filter(pa.array(has_time.tolist(), pa.bool_()))
    rejected = {int(index): _no_time() for index in np.flatnonzero(is_timeless)}
    return _windows(_Joined(table, run[has_time], n, rejected), resolved)


def merge_windows(parts: Sequence[tuple[np.ndarray, Windows]], n: int) -> Windows:
    """Merge the windows of parts of n runs.

    Args:
      parts: at least one, each (int64 [m], indices of its runs; their windows).
      n: number of runs.
    """
    run = np.concatenate([indices[windows.run] for indices, windows in parts])
    order = np.argsort(run, kind="stable")
    n_windows = np.zeros(n, np.int32)
    rejected: list[tuple[int, RejectedInput]] = []
    for indices, windows in parts:
        n_windows[indices] = windows.n_windows
        rejected += [(int(indices[index]), reason) for index, reason in windows.rejected]
    values = np.concatenate([windows.values for _, windows in parts])[order]
    position = np.concatenate([windows.position for _, windows in parts])[order]
    return Windows(values, run[order], position, n_windows, tuple(sorted(rejected, key=itemgetter(0))))


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


def _schema(resolved: ResolvedDefinition) -> pa.Schema:
    """Return the schema of the needed columns."""
    fields = [("time", _TIME)]
    if not resolved.definition.count_first_sample:
        fields.append(("boot", pa.bool_()))
    return pa.schema(fields + [(name, pa.float64()) for name in resolved.columns])


def _select(table: pa.Table, schema: pa.Schema) -> pa.Table | RejectedInput:
    """Return the needed columns of telemetry, with their types."""
    try:
        selected = table.select(schema.names)
    except KeyError:
        return RejectedInput("missing_column", next(name for name in schema.names if name not in table.column_names))
    return selected if selected.schema.equals(schema) else selected.cast(schema)


def _no_time() -> RejectedInput:
    return RejectedInput("no_time", "a sample has no time")


def _windows(joined: _Joined, resolved: ResolvedDefinition) -> Windows:
    definition = resolved.definition
    columns, run = _bins(_samples(joined, resolved), definition.interval_us, definition.sample_statistic)
    if definition.aggregation_functions:
        columns, run = _aggregate(columns, run, definition.aggregation_functions)
    position = np.arange(run.size) - _group_starts(run)
    values = as_stored(columns)
    is_cut = position >= resolved.windows
    if is_cut.any():
        values = values[~is_cut]
        run = run[~is_cut]
        position = position[~is_cut]
    rejected = dict(joined.rejected)
    is_finite = np.isfinite(values).all(axis=1)
    if not is_finite.all():
        for index in np.unique(run[~is_finite]).tolist():
            rejected[index] = RejectedInput("out_of_range", "a value exceeds the range of float32")
        is_usable = ~np.isin(run, run[~is_finite])
        values = values[is_usable]
        run = run[is_usable]
        position = position[is_usable]
    n_windows = np.bincount(run, minlength=joined.n).astype(np.int32)
    for index in np.flatnonzero(n_windows == 0).tolist():
        rejected.setdefault(index, RejectedInput("empty", "no window has a value in every selected column"))
    return Windows(values, run, position, n_windows, tuple(sorted(rejected.items())))


def _samples(joined: _Joined, resolved: ResolvedDefinition) -> _Samples:
    """Return the samples that count, in order of time."""
    run = joined.run
    time = plain(joined.table.column(0))
    columns = [_filled(joined.table.column(name), np.nan) for name in resolved.columns]
    order = np.arange(run.size)
    if ((time[1:] < time[:-1]) & (run[1:] == run[:-1])).any():
        order = np.lexsort((time, run))  # stable, so a sorted run is unchanged
        time = time[order]
        columns = [column[order] for column in columns]
    first = time[_group_starts(run)]
    origin = first - first % DAY_US
    if not resolved.definition.count_first_sample:  # it still determines the first day
        is_counted = (_filled(joined.table.column("boot").cast(pa.uint8()), 0) == 0)[order]
        run = run[is_counted]
        time = time[is_counted]
        origin = origin[is_counted]
        columns = [column[is_counted] for column in columns]
    return _Samples(run, time, origin, columns)


def _filled(column: pa.ChunkedArray, null: float) -> np.ndarray:
    """Convert a column to numpy with a value for nulls. (Arrow's own fill_null would import pandas.)"""
    array = column.combine_chunks()
    if not array.null_count:
        return np.from_dlpack(array)
    is_valid = np.from_dlpack(array.is_valid().cast(pa.uint8())) == 1
    values = pa.Array.from_buffers(array.type, len(array), [None, array.buffers()[1]], offset=array.offset)
    return np.where(is_valid, np.from_dlpack(values), null)


def _group_begins(keys: np.ndarray) -> np.ndarray:
    """Return the start of each group of equal neighbours, int64 [groups]."""
    return np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))) if keys.size else np.zeros(0, np.int64)


def _group_starts(keys: np.ndarray) -> np.ndarray:
    """Return for each element the start of its group of equal neighbours, int64 [elements]."""
    begins = _group_begins(keys)
    return np.repeat(begins, _sizes(begins, keys.size))


def _sizes(begins: np.ndarray, total: int) -> np.ndarray:
    """Return the number of elements of each group: int64 [groups]. (np.diff takes ten times as long for a few.)"""
    sizes = np.empty_like(begins)
    sizes[:-1] = begins[1:] - begins[:-1]
    sizes[-1:] = total - begins[-1:]
    return sizes


def _bins(samples: _Samples, interval_us: int, statistic: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the statistic of windows with a value in every column: F columns float64 [W], and their runs int64 [W]."""
    number = (samples.time - samples.origin) // interval_us
    is_new = np.ones(number.size, bool)
    is_new[1:] = (number[1:] != number[:-1]) | (samples.run[1:] != samples.run[:-1])
    begins = np.flatnonzero(is_new)
    reduced, complete = reduce_windows(samples.columns, begins, statistic)
    return [column[complete] for column in reduced], samples.run[begins][complete]


def _count(has_value: np.ndarray, begins: np.ndarray) -> np.ndarray:
    sizes = _sizes(begins, has_value.size)
    return sizes if has_value.all() else _reduceat(np.add, has_value.astype(np.int64), begins)


#: A statistic of groups of samples, float64 [W], by: a column float64 [S]; bool [S], whether it has a value; starts of
#: the groups int64 [W]; and their numbers of values int64 [W]. Each group has a sample, but perhaps no value: then the
#: result is undefined.
_Reduce = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


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
    begins = _group_begins(run)
    counts = _sizes(begins, run.size)
    has_value = np.ones(run.size, bool)
    aggregated = []
    for column in columns:
        with np.errstate(all="ignore"):
            results = [_AGGREGATIONS[name](column, has_value, begins, counts) for name in functions]
        aggregated.append(np.stack(results, axis=1).ravel())
    return aggregated, np.repeat(run[begins], len(functions))
