"""Compute a data set with pandas, run by run, for comparison; uses nothing of ciml. `studies.datasets` runs it.

    python studies/by_pandas.py LISTING LOGS OUT [RUNS]

It decompresses and parses each log with all columns, resamples all of them, drops incomplete windows, cuts or pads, and
unrolls. Each feature is normalised by the training runs, and both sets are saved.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

LENGTH_S = 5500


def bins_of(path: Path, year: int, interval: str) -> pd.DataFrame:
    """The windows of a run, all columns, by the short name of each's first occurrence."""
    with gzip.open(path) as file:
        frame = pd.read_csv(file, skiprows=6).set_index("time")
    times = []
    for text in frame.index:
        day, clock = text.split(" ")
        date = day.split("-")
        hours = clock.split(":")
        times.append(datetime(year, int(date[1]), int(date[0]), int(hours[0]), int(hours[1]), int(hours[2])))
    frame.index = pd.DatetimeIndex(times)
    return frame.resample(interval).mean().dropna()


def unroll(bins: pd.DataFrame, pattern: re.Pattern[str], length: int) -> np.ndarray:
    """Float64 [features × length]: column by column."""
    bins = bins[[name for name in bins.columns if pattern.search(name)]]
    if len(bins) > length:
        bins = bins[:length]
    elif len(bins) < length:
        zeros = pd.DataFrame(0, index=np.arange(length - len(bins)), columns=bins.columns)
        bins = pd.concat([bins, zeros])
    unrolled: np.ndarray = bins.to_numpy().flatten("F")
    return unrolled


def normalise(examples: np.ndarray, params: dict[int, tuple[float, float]]) -> np.ndarray:
    """Feature by feature; the first set that comes settles the parameters."""
    out = np.empty((examples.shape[1], examples.shape[0]))
    for feature in range(examples.shape[1]):
        values = examples[:, feature]
        if feature not in params:
            spread = np.max(values) - np.min(values)
            params[feature] = (np.mean(values), spread if spread else 1)
        mean, spread = params[feature]
        out[feature] = list(map(lambda x: (x - mean) / spread, values))  # noqa: C417 (as the original does)
    return out.transpose()


def build(listing: Path, logs: Path, out: Path, runs: int | None = None, interval: str = "10s") -> None:
    """Saves ``training.npz`` and ``test.npz``: normalised examples, their ids and classes."""
    pattern = re.compile("(usr|1m)")
    builds = [json.loads(line) for line in listing.read_text().splitlines()][:runs]
    length = int(np.ceil(LENGTH_S / pd.Timedelta(interval).total_seconds()))
    examples = np.ndarray((len(builds), 2 * length))
    for row, entry in enumerate(builds):
        bins = bins_of(logs / entry["log_path"], int(entry["start_time"][:4]), interval)
        examples[row] = unroll(bins, pattern, length)
    classes = np.array([entry["node_provider"] for entry in builds])
    ids = np.array([entry["build_uuid"] for entry in builds])
    training = np.array([hashlib.sha256(build_id.encode()).digest()[0] % 10 < 7 for build_id in ids])
    params: dict[int, tuple[float, float]] = {}
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("training", training), ("test", ~training)):
        normalised = normalise(examples[rows], params)
        np.savez_compressed(out / f"{name}.npz", examples=normalised, example_ids=ids[rows], classes=classes[rows])


if __name__ == "__main__":
    listing, logs, out, *limits = sys.argv[1:]
    build(Path(listing), Path(logs), Path(out), int(limits[0]) if limits else None)
