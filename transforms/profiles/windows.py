"""Means of a run's telemetry over windows of seconds, counted from its earliest sample. Linear in the samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ciml.telemetry import BOOT, TIME

MINUTE_S = 60
#: Windows of runs that are shorter than `SHORT_RUN_S`, seconds.
SHORT_WINDOW_S = 5
SHORT_RUN_S = 180.0
#: A value beyond it counts as none: it is no measurement, and sums of such values overflow.
MAX_VALUE = 1e18


@dataclass(frozen=True, slots=True, eq=False)
class WindowMeans:
    """The means of W windows that hold samples.

    Attributes:
      seconds: int64 [W], start of each window in seconds since the earliest sample, ascending.
      means: by column, float64 [W]; NaN where a window has no value.
      counts: by column, int64 [W], the number of values.
    """

    seconds: np.ndarray
    means: dict[str, np.ndarray]
    counts: dict[str, np.ndarray]

    def mean(self, column: str, first: int, last: int) -> float:
        """Return the mean of a column's values in the windows ``first`` to ``last``, which have some."""
        part = slice(first, last + 1)
        counts = self.counts[column][part]
        sums = np.where(counts > 0, self.means[column][part], 0.0) * counts
        return float(sums.sum() / counts.sum())


def elapsed_s(table: pa.Table) -> np.ndarray:
    """Return the seconds of each sample since the earliest, float64; 0 where the time is missing."""
    times = table.column(TIME).combine_chunks().cast(pa.int64())
    first = pc.min(times).as_py() or 0
    passed: np.ndarray = times.fill_null(first).to_numpy() - first
    return passed / 1e6


def length_s(table: pa.Table) -> float:
    """Return the seconds from the earliest sample to the latest; 0 for a single one."""
    return float(elapsed_s(table).max(initial=0.0))


def tail_s(table: pa.Table, end_us: int | None) -> float | None:
    """Return the seconds from the last sample to ``end_us``; None where either is unknown."""
    last = pc.max(table.column(TIME).combine_chunks().cast(pa.int64())).as_py()
    return None if end_us is None or last is None else (end_us - last) / 1e6


def window_of(length: float) -> int:
    """Return the seconds of a window that suit a run of this length: minutes, for short runs less."""
    return SHORT_WINDOW_S if length < SHORT_RUN_S else MINUTE_S


def values_of(table: pa.Table, column: str) -> np.ndarray:
    """Return a column's values, float64: NaN where there is none, where it is no number, and in samples since the boot.

    A recorder's first sample holds the means since the machine was started (column ``boot``): they are not the run's.
    """
    chunks = table.column(column)
    if not pa.types.is_floating(chunks.type) and not pa.types.is_integer(chunks.type):
        return np.full(table.num_rows, np.nan)
    values: np.ndarray = chunks.cast(pa.float64()).to_numpy().copy()
    values[~(np.abs(values) <= MAX_VALUE)] = np.nan
    if BOOT in table.column_names:
        values[table.column(BOOT).fill_null(False).to_numpy()] = np.nan
    return values


def window_means(table: pa.Table, columns: Iterable[str], seconds: int) -> WindowMeans:
    """Return the means of the windows of a run.

    Args:
      table: telemetry as stored: ``time``, ``boot``, float64 columns. Samples need not be sorted.
      columns: full names; those that the table lacks are left out.
      seconds: length of a window.
    """
    starts, window = np.unique((elapsed_s(table) // seconds).astype(np.int64), return_inverse=True)
    means, counts = {}, {}
    for column in columns:
        if column not in table.column_names:
            continue
        values = values_of(table, column)
        valid = np.isfinite(values)
        counts[column] = number = np.bincount(window[valid], minlength=starts.size)
        sums = np.bincount(window[valid], values[valid], minlength=starts.size)
        means[column] = np.divide(sums, number, out=np.full(starts.size, np.nan), where=number > 0)
    return WindowMeans(starts * seconds, means, counts)
