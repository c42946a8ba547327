"""Statistics of examples: distributions of features by job, provider, flavour and class; small enough to store.

Windows of one run resemble each other, runs do not. So a distribution is one of runs: each counts once, by the mean of
its own windows, for any length. Count, mean, std, extremes and zeros are of all windows, never of the padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ciml.datasets.definition import ResolvedDefinition
from ciml.runs.arrow import plain

#: Number of windows of a run: a series of its own, because jobs that end early or late change it.
WINDOWS = "n_windows"
_SHIFT = 16  # bits of a float32 that a bucket drops: sign, exponent and 7 bits of the mantissa stay
_SPAN = 1 << 16  # buckets lie within ± half of this


class Cell(NamedTuple):
    """Runs with equal job, provider, flavour and class. Unknown ones are ""."""

    build_name: str
    provider: str
    flavour: str
    label_name: str


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One feature (or one of its aggregations) in each of C cells.

    Attributes:
      count: int64 [C], number of windows; a run's aggregations count once.
      mean, std, minimum, maximum: float64 [C], of these windows; std with ddof 0.
      zeros: int64 [C], number of windows that are exactly 0.
      cell, bucket, runs: int64 [K], the distribution of the runs' means: number of runs of a cell in a bucket
        (`buckets`), ascending by (cell, bucket).
    """

    count: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    zeros: np.ndarray
    cell: np.ndarray
    bucket: np.ndarray
    runs: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """The statistics of examples.

    Attributes:
      cells: cells of all runs, sorted.
      runs: int64 [C], number of runs of each cell.
      series: by name: ``usr``, or ``mean(usr)`` where a definition aggregates, and ``n_windows`` where it does not.
    """

    cells: tuple[Cell, ...]
    runs: np.ndarray
    series: Mapping[str, Series]

    def to_json(self) -> dict[str, Any]:
        return {
            "cells": [[*cell, runs] for cell, runs in zip(self.cells, self.runs.tolist(), strict=True)],
            "series": [
                {"name": name, **{key: _short(getattr(series, key).tolist()) for key in Series.__slots__}}
                for name, series in self.series.items()
            ],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Statistics:
        """Decode `to_json`. Raises `ValueError`, `KeyError` or `TypeError` for invalid data."""
        cells = tuple(Cell(*cell[:-1]) for cell in value["cells"])
        series = {entry["name"]: _series_from_json(entry, len(cells)) for entry in value["series"]}
        return cls(cells, np.array([cell[-1] for cell in value["cells"]], np.int64), series)


def _short(numbers: list[Any]) -> list[Any]:
    """Round to nine digits: enough for a float32, and for a mean."""
    return [float(f"{number:.9g}") if isinstance(number, float) else number for number in numbers]


_FLOATS = ("mean", "std", "minimum", "maximum")
_SKETCH = ("cell", "bucket", "runs")


def _series_from_json(value: Mapping[str, Any], cells: int) -> Series:
    arrays = {
        key: np.array(value[key], np.float64 if key in _FLOATS else np.int64).reshape(
            len(value["cell"]) if key in _SKETCH else cells
        )
        for key in Series.__slots__
    }
    if arrays["cell"].size and not 0 <= arrays["cell"].min() <= arrays["cell"].max() < cells:
        raise ValueError("the sketch refers to unknown cells")
    return Series(**arrays)


def buckets(values: np.ndarray) -> np.ndarray:
    """Return the bucket of each value, int64: the same edges for all data, each at most 0.8 % above the previous one.

    A bucket is the upper 16 bits of a float32, in the order of the values. So any distributions can be added, a factor
    of two shifts a value by whole buckets, and 0 has its own bucket.
    """
    magnitude = np.abs(values).astype(np.float32).view(np.int32).astype(np.int64) >> _SHIFT
    signed: np.ndarray = np.where(values < 0, -magnitude, magnitude)
    return signed


def middles(bucket: np.ndarray) -> np.ndarray:
    """Return the value in the middle of each bucket, float64; 0 for the bucket of 0."""
    magnitude = np.abs(bucket)
    bits = ((magnitude << _SHIFT) + np.where(magnitude > 0, 1 << (_SHIFT - 1), 0)).astype(np.int32)
    values: np.ndarray = np.where(bucket < 0, -1.0, 1.0) * bits.view(np.float32)
    return values


def columns_needed(resolved: ResolvedDefinition) -> list[str]:
    """Return the columns of examples that `statistics` needs."""
    return [*Cell._fields, "n_windows", *resolved.features]


def statistics(examples: pa.Table, resolved: ResolvedDefinition) -> Statistics:
    """Compute the statistics of examples.

    Args:
      examples: rows with the columns `columns_needed`, not normalised; padding is left out by ``n_windows``.
      resolved: their definition.
    """
    cells, cell = _cells(examples)
    n_windows = plain(examples.column("n_windows")).astype(np.int64)
    functions = resolved.definition.aggregation_functions
    is_window = np.arange(resolved.windows) < n_windows[:, None]
    ones = np.ones(examples.num_rows, np.int64)
    series: dict[str, Series] = {}
    for name in resolved.features:
        values = plain(pa.chunked_array([examples.column(name).combine_chunks().flatten()]))
        values = values.reshape(-1, resolved.windows)
        if functions:
            for index, function in enumerate(functions):
                series[f"{function}({name})"] = _series(values[:, index], ones, cell, len(cells))
        else:
            series[name] = _series(values[is_window], n_windows, cell, len(cells))
    if not functions:
        series[WINDOWS] = _series(n_windows, ones, cell, len(cells))
    return Statistics(cells, np.bincount(cell, minlength=len(cells)), series)


def _cells(examples: pa.Table) -> tuple[tuple[Cell, ...], np.ndarray]:
    """Return the cells of examples, sorted, and the index of each row's cell, int64 [rows]."""
    names = [examples.column(name).to_pylist() for name in Cell._fields]
    rows = [Cell(*(value or "" for value in row)) for row in zip(*names, strict=True)]
    cells = tuple(sorted(set(rows)))
    number = {cell: index for index, cell in enumerate(cells)}
    return cells, np.array([number[row] for row in rows], np.int64)


def _series(values: np.ndarray, n: np.ndarray, cell: np.ndarray, cells: int) -> Series:
    """Return a series of runs.

    ``values`` [sum of n] are those of run 0, run 1, …; ``n`` int64 [rows] is 1 or more.
    """
    if not n.size:
        return _grouped(Series(*([np.zeros(0, np.int64)] * len(Series.__slots__))), cell, cells)
    values = values.astype(np.float64)
    begins = np.cumsum(n) - n
    mean = np.add.reduceat(values, begins) / n
    runs = Series(
        count=n,
        mean=mean,
        std=np.sqrt(np.add.reduceat((values - np.repeat(mean, n)) ** 2, begins) / n),
        minimum=np.minimum.reduceat(values, begins),
        maximum=np.maximum.reduceat(values, begins),
        zeros=np.add.reduceat((values == 0).astype(np.int64), begins),
        cell=cell,
        bucket=buckets(mean),
        runs=np.ones_like(n),
    )
    return _grouped(runs, cell, cells)


def _grouped(parts: Series, owner: np.ndarray, cells: int) -> Series:
    """Join the parts of each cell: ``owner`` int64 [parts] is the cell of each; their sketches already refer to it."""
    count = np.bincount(owner, parts.count, cells)
    divisor = np.maximum(count, 1)
    mean = np.bincount(owner, parts.count * parts.mean, cells) / divisor
    spread = np.bincount(owner, parts.count * (parts.std**2 + (parts.mean - mean[owner]) ** 2), cells) / divisor
    low = np.full(cells, np.inf)
    high = np.full(cells, -np.inf)
    np.minimum.at(low, owner, parts.minimum)
    np.maximum.at(high, owner, parts.maximum)
    keys, inverse = np.unique(parts.cell * _SPAN + parts.bucket + _SPAN // 2, return_inverse=True)
    return Series(
        count=count.astype(np.int64),
        mean=mean,
        std=np.sqrt(spread),
        minimum=low,
        maximum=high,
        zeros=np.bincount(owner, parts.zeros, cells).astype(np.int64),
        cell=keys // _SPAN,
        bucket=keys % _SPAN - _SPAN // 2,
        runs=np.bincount(inverse, parts.runs, keys.size).astype(np.int64),
    )


def merge(parts: Iterable[Statistics]) -> Statistics:
    """Merge the statistics of one or more parts with the same series. Only a few are held at a time."""
    held: list[Statistics] = []
    for part in parts:
        held.append(part)
        if len(held) == _HELD:
            held = [_merge(held, tuple(part.series))]
    return held[0] if len(held) == 1 else _merge(held, tuple(held[0].series))


_HELD = 32


def _merge(parts: Sequence[Statistics], names: Sequence[str]) -> Statistics:
    cells = tuple(sorted({cell for part in parts for cell in part.cells}))
    number = {cell: index for index, cell in enumerate(cells)}
    indices = [np.array([number[cell] for cell in part.cells], np.int64) for part in parts]
    owner = np.concatenate(indices)
    series = {}
    for name in names:
        parts_of_name = [part.series[name] for part in parts]
        joined = {
            key: np.concatenate([getattr(part_series, key) for part_series in parts_of_name])
            for key in Series.__slots__
            if key != "cell"
        }
        sketched = np.concatenate(
            [index[part_series.cell] for index, part_series in zip(indices, parts_of_name, strict=True)]
        )
        series[name] = _grouped(Series(cell=sketched, **joined), owner, len(cells))
    runs = np.bincount(owner, np.concatenate([part.runs for part in parts]), len(cells))
    return Statistics(cells, runs.astype(np.int64), series)
