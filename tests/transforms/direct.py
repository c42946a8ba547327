"""Downsampling and unrolling, computed directly: by pandas, and by plain Python. Nothing of the project is in it."""

from __future__ import annotations

import gzip
import math
import re
import statistics
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd


@lru_cache(maxsize=1000)
def read_log(path: Path) -> pd.DataFrame:
    """A CSV log of dstat or dool in UTC, of one year and one header; columns are ``group:name``."""
    text = gzip.decompress(path.read_bytes()).decode().splitlines()
    at = next(number for number, line in enumerate(text) if line.startswith('"time"'))
    names, group = [], ""
    for above, name in zip(text[at - 1].split(","), text[at].split(","), strict=False):
        group = above.strip('"') or group
        names.append(f"{group}:{name.strip(chr(34))}")
    frame = pd.DataFrame([line.split(",") for line in text[at + 1 :]]).iloc[:, : len(names)]
    frame.columns = names
    year = next(re.findall(r"\d{4}", line) for line in text if '"Date:"' in line)[-1]
    cells, form = frame.pop("system:time"), "%b-%d" if '"dool' in text[0] else "%d-%m"
    times = pd.to_datetime(f"{year} " + cells, format=f"%Y {form} %H:%M:%S", utc=True)
    return frame.astype(float).set_index(pd.DatetimeIndex(times))


def frame_of(times_us: Sequence[int], columns: dict[str, list[float | None]]) -> pd.DataFrame:
    index = pd.to_datetime(np.array(times_us, dtype=np.int64), unit="us", utc=True)
    return pd.DataFrame({name: pd.array(values, dtype="float64") for name, values in columns.items()}, index=index)


def resampled(frame: pd.DataFrame, interval: str) -> pd.DataFrame:
    """The means of all bins of all columns; NaN where a column has no value in a bin."""
    return frame.sort_index(kind="stable").resample(interval).mean()


def unrolled(
    bins: pd.DataFrame, columns: Sequence[str], length: int, functions: Sequence[str] = ()
) -> tuple[np.ndarray, int]:
    """Float64 [length, F] and how many of the rows are the run's own."""
    bins = bins[list(columns)].dropna()
    if functions:
        values = bins.agg(_by_pandas(functions))
        for spread in {"std", "var"} & set(functions):
            values.loc[spread] = values.loc[spread].fillna(0.0)
        return values.loc[list(functions)].to_numpy(), len(functions)
    values = bins.to_numpy()[:length]
    out = np.zeros((length, len(columns)))
    out[: len(values)] = values
    return out, len(values)


def _by_pandas(functions: Sequence[str]) -> list[object]:
    def first(column: pd.Series) -> float:
        return float(column.iloc[0])

    def last(column: pd.Series) -> float:
        return float(column.iloc[-1])

    return [{"first": first, "last": last}.get(name, name) for name in functions]


def brute_force(
    samples: Sequence[tuple[int, bool, Sequence[float | None]]],
    interval_us: int,
    statistic: str,
    length: int,
    *,
    count_first: bool,
) -> list[list[float]]:
    """The windows of one run, one sample after another. Samples are (time in µs, boot, values)."""
    day = 86_400_000_000
    ordered = sorted(samples, key=lambda sample: sample[0])
    midnight = ordered[0][0] // day * day
    bins: dict[int, list[list[float]]] = {}
    for time, boot, values in ordered:
        if boot and not count_first:
            continue
        columns = bins.setdefault((time - midnight) // interval_us, [[] for _ in values])
        for column, value in zip(columns, values, strict=True):
            if value is not None and not math.isnan(value):
                column.append(value)
    windows = [columns for _, columns in sorted(bins.items()) if all(columns)]
    return [[_statistic(column, statistic) for column in columns] for columns in windows[:length]]


def _statistic(values: list[float], statistic: str) -> float:
    match statistic:
        case "mean":
            return math.fsum(values) / len(values)
        case "min":
            return min(values)
        case "max":
            return max(values)
        case "std":
            return statistics.stdev(values) if len(values) > 1 else 0.0
        case "last":
            return values[-1]
    raise AssertionError(statistic)


def assert_equal(found: np.ndarray, wanted: np.ndarray, valid: int, what: str = "") -> None:
    """To 1e-6 relative to max(|x|, 1) over the ``valid`` windows, and exactly over the padding."""
    assert found.shape == wanted.shape, what
    assert not wanted[valid:].any()
    assert not found[valid:].any(), what
    error = np.abs(found.astype(np.float64) - wanted) / np.maximum(np.abs(wanted), 1)
    assert error.max(initial=0.0) <= 1e-6, f"{what}: off by {error.max()}"
