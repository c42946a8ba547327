"""Logs of a recorder that a test can tell apart, and a data root with them and a pushed model."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

import ciml
from ciml.data_root import DataRoot
from ciml.events.records import RunFacts
from tests.runs.scenes import RawStore

RUNS, ROWS = 120, 60
START = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
HEADER = """"Dstat 0.7.4 CSV output"
"Author:","Dag Wieers <dag@wieers.com>",,,,"URL:","http://dag.wieers.com/home-made/dstat/"
"Host:","ci",,,,"User:","root"
"Cmdline:","dstat -tcml --output log",,,,"Date:","24 Nov 2026 12:00:00 UTC"

"system","total cpu usage",,,"memory usage",,,,"load avg",,
"time","usr","sys","idl","used","free","buff","cach","1m","5m","15m"
"""


def write_log(path: Path, number: int, rows: int = ROWS) -> None:
    """Write the log of a run; that of an odd number has a busy processor."""
    random = np.random.default_rng(number)
    lines = []
    for row in range(rows):
        usr = random.uniform(60, 80) if number % 2 else random.uniform(10, 40)
        load = usr / 25 + random.uniform(0, 0.2)
        time = (START + timedelta(seconds=row)).strftime("%d-%m %H:%M:%S")
        cells = [usr, 2.0, 98 - usr, 2e9, 6e9, 1e8, 1e9, load, load, load]
        lines.append(",".join([time, *(f"{cell:.3f}" for cell in cells)]))
    path.write_text(HEADER + "\n".join(lines) + "\n")


def make_root(folder: Path) -> Path:
    """Make ``logs`` and ``data``: 120 stored runs, every tenth untrusted; the data set and the model ``status``."""
    logs = folder / "logs"
    logs.mkdir()
    runs: list[tuple[RunFacts, pa.Table]] = []
    for number in range(RUNS):
        path = logs / f"unit-{number:03}.csv"
        write_log(path, number)
        runs.append((facts(number), ciml.parse_log(path)))
    root = DataRoot.open(folder / "data")
    raw = RawStore(root)
    for start in range(0, RUNS, 20):
        raw.add(runs[start : start + 20])
    ciml.open(folder / "data").define_dataset(
        "status", sample_interval="6s", features_regex="^(usr|1m)", max_windows=12, span_runs=30, tdt_split=(6, 0, 4)
    )
    return folder


def facts(number: int) -> RunFacts:
    start_us = int(START.timestamp()) * 1_000_000
    failed = number % 2 == 1
    return RunFacts(
        run_id=f"zuul~{number}~1",
        build_uuid=str(number),
        build_name="unit" if number % 3 else "lint",
        outcome="failure" if failed else "success",
        result="FAILURE" if failed else "SUCCESS",
        source="zuul",
        pipeline="check" if number % 10 == 4 else "gate",
        change=str(number),
        start_us=start_us,
        end_us=start_us + (ROWS + number % 7) * 1_000_000,
        labels={"size": "small"},
    )
