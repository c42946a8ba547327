"""Statistics of examples: distributions of features by job, provider, flavour and class; small enough to store.

The windows of a run resemble each other, those of different runs do not. So a distribution counts runs: each once, by
the mean of its windows. Count, mean, std, extremes and zeros are of all windows, without the padding.

A *cell* is the runs with equal job, provider, flavour and class. A *bucket* is a narrow range of means.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ciml.datasets.definition import ResolvedDefinition
from ciml.runs.arrow import plain

#: The series of the number of windows, which changes if jobs end early or late.
WINDOWS = "n_windows"
#: Bits of a float32 that a bucket drops; it keeps sign, exponent and 7 bits of the mantissa.
_SHIFT = 16
#: Number of possible buckets, half of them negative.
_BUCKETS = 1 << 16
#: Fields of `Series` with floats, and fields with a value per bucket instead of per cell.
_FLOAT_FIELDS = ("mean", "std", "minimum", "maximum")
_DISTRIBUTION_FIELDS = ("cell", "bucket", "runs")
#: Number of parts that are merged at a time.
_MERGED_PARTS = 32


class Cell(NamedTuple):
    """The runs with equal job, provider, flavour and class; "" for an unknown one."""

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

    def summary(self) -> dict[str, float]:
        """Summarise the windows of all cells: count, mean, std, min, max and the share of zeros."""
        count = int(self.count.sum())
        if not count:
            return {"count": 0}
        mean = float((self.count * self.mean).sum() / count)
        variance = float((self.count * (self.std**2 + (self.mean - mean) ** 2)).sum() / count)
        return {
            "count": count,
            "mean": mean,
            "std": math.sqrt(variance),
            "min": float(self.minimum.min()),
            "max": float(self.maximum.max()),
            "zeros": float(self.zeros.sum() / count),
        }


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
                {"name": name, **{key: _rounded(getattr(series, key).tolist()) for key in Series.__slots__}}
                for name, series in self.series.items()
            ],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Statistics:
        """Decode `to_json`. Raises `ValueError`, `KeyError` or `TypeError` for invalid data."""
        cells = tuple(Cell(*cell[:-1]) for cell in value["cells"])
        series = {entry["name"]: _series_from_json(entry, len(cells)) for entry in value["series"]}
        return cls(cells, np.array([cell[-1] for cell in value["cells"]], np.int64), series)


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
    """Compute the series of runs.

    Args:
      values: the values of run 0, run 1, … one after another.
      n: int64 [runs], number of values of each run, at least 1.
      cell: int64 [runs], the cell of each run.
      cells: number of cells.
    """
    if not n.size:
        return _group(Series(*([np.zeros(0, np.int64)] * len(Series.__slots__))), cell, cells)
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
    return _group(runs, cell, cells)


def _group(parts: Series, owner: np.ndarray, cells: int) -> Series:
    """Join the parts of each cell. ``owner`` int64 [parts] is their cells, which ``parts.cell`` has already."""
    count = np.bincount(owner, parts.count, cells)
    divisor = np.maximum(count, 1)
    mean = np.bincount(owner, parts.count * parts.mean, cells) / divisor
    spread = np.bincount(owner, parts.count * (parts.std**2 + (parts.mean - mean[owner]) ** 2), cells) / divisor
    low = np.full(cells, np.inf)
    high = np.full(cells, -np.inf)
    np.minimum.at(low, owner, parts.minimum)
    np.maximum.at(high, owner, parts.maximum)
    keys, inverse = np.unique(parts.cell * _BUCKETS + parts.bucket + _BUCKETS // 2, return_inverse=True)
    return Series(
        count=count.astype(np.int64),
        mean=mean,
        std=np.sqrt(spread),
        minimum=low,
        maximum=high,
        zeros=np.bincount(owner, parts.zeros, cells).astype(np.int64),
        cell=keys // _BUCKETS,
        bucket=keys % _BUCKETS - _BUCKETS // 2,
        runs=np.bincount(inverse, parts.runs, keys.size).astype(np.int64),
    )


def merge(parts: Iterable[Statistics]) -> Statistics:
    """Merge the statistics of one or more parts with the same series. Only a few are in memory at a time."""
    unmerged: list[Statistics] = []
    for part in parts:
        unmerged.append(part)
        if len(unmerged) == _MERGED_PARTS:
            unmerged = [_merge(unmerged)]
    return unmerged[0] if len(unmerged) == 1 else _merge(unmerged)


def _merge(parts: Sequence[Statistics]) -> Statistics:
    cells = tuple(sorted({cell for part in parts for cell in part.cells}))
    number = {cell: index for index, cell in enumerate(cells)}
    new_cells = [np.array([number[cell] for cell in part.cells], np.int64) for part in parts]  # by old number
    owner = np.concatenate(new_cells)
    series = {}
    for name in parts[0].series:
        part_series = [part.series[name] for part in parts]
        fields = {key: np.concatenate([getattr(values, key) for values in part_series]) for key in Series.__slots__}
        fields["cell"] = np.concatenate([new[values.cell] for new, values in zip(new_cells, part_series, strict=True)])
        series[name] = _group(Series(**fields), owner, len(cells))
    runs = np.bincount(owner, np.concatenate([part.runs for part in parts]), len(cells))
    return Statistics(cells, runs.astype(np.int64), series)


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


def _rounded(numbers: list[Any]) -> list[Any]:
    """Round to nine digits: enough for a float32, and for a mean."""
    return [float(f"{number:.9g}") if isinstance(number, float) else number for number in numbers]


def _series_from_json(value: Mapping[str, Any], cells: int) -> Series:
    arrays = {}
    for key in Series.__slots__:
        kind = np.float64 if key in _FLOAT_FIELDS else np.int64
        size = len(value["cell"]) if key in _DISTRIBUTION_FIELDS else cells
        arrays[key] = np.array(value[key], kind).reshape(size)
    if arrays["cell"].size and not 0 <= arrays["cell"].min() <= arrays["cell"].max() < cells:
        raise ValueError("the distribution refers to unknown cells")
    return Series(**arrays)
