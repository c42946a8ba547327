"""The opponent of `ciml load`: what a data scientist writes first. Nothing of the project is in it.

Every log of the table is read by ``read_csv``; mean, minimum, maximum and deviation of each column become a row of one
frame beside the run's result. Nothing is checked, and only the statistics are kept.

    python tests/bench/statistics_by_pandas.py RESULTS.csv LOGS
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pandas as pd


def header_of(path: Path) -> int:
    """The number of lines before the names of the columns."""
    with gzip.open(path, "rt") as file:
        return next(number for number, line in enumerate(file) if line.startswith('"time"'))


def statistics(results: Path, logs: Path) -> pd.DataFrame:
    """A row a run: four statistics of each column of its log, by group and name, and its result."""
    table = pd.read_csv(results)
    rows = []
    for run in table.itertuples():
        path = logs / run.log_path
        log = pd.read_csv(path, skiprows=header_of(path), skip_blank_lines=False, index_col=False)
        numbers = log.select_dtypes("number")
        summary = numbers.agg(["mean", "min", "max", "std"]).unstack()
        summary.index = [f"{column}:{statistic}" for column, statistic in summary.index]
        rows.append(summary.to_frame().T.assign(build_uuid=run.build_uuid, result=run.result))
    return pd.concat(rows, ignore_index=True)


if __name__ == "__main__":
    made = statistics(Path(sys.argv[1]), Path(sys.argv[2]))
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(len(made), int(peak.split()[1]) >> 10)
