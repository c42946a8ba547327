"""Loading a folder of logs and a CSV, beside a loop of pandas that only keeps summary statistics."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.pipelines.backfill.tables import make_runs, write_csv

pytestmark = pytest.mark.bench

RUNS = 2000
LOAD = """
import sys
from ciml.data_root import DataRoot
from ciml.pipelines.backfill.load import load
from tests.memory import peak_bytes
report = load(DataRoot.open(sys.argv[3]), sys.argv[2], sys.argv[1])
assert report.complete
print(report.totals["run"], peak_bytes() >> 20)
"""


def timed(*words: str) -> tuple[float, int, int]:
    """Seconds, runs, and the peak of resident memory in MiB of a process of its own."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True, env=os.environ)
    runs, peak = map(int, done.stdout.split()[-2:])
    return time.perf_counter() - began, runs, peak


def compare(results: Path, logs: Path, data: Path, rounds: int = 3) -> None:
    """Print both, in turn; each round loads into a new data root."""
    count = len(pd.read_csv(results))
    for number in range(rounds):
        ours = timed("-c", LOAD, str(results), str(logs), str(data / f"{number}"))
        again = timed("-c", LOAD.replace('totals["run"]', "before"), str(results), str(logs), str(data / f"{number}"))
        theirs = timed("-m", "tests.bench.statistics_by_pandas", str(results), str(logs))
        assert ours[1] == again[1] == theirs[1] == count
        shutil.rmtree(data / f"{number}")
        print(
            f"\n{count} runs: ciml load {ours[0]:.2f} s, {ours[2]} MiB; again {again[0]:.2f} s; "
            f"pandas {theirs[0]:.2f} s, {theirs[2]} MiB; ratio {theirs[0] / ours[0]:.1f}"
        )


def test_load_against_a_loop_of_pandas(tmp_path: Path) -> None:
    rows = [
        {"build_uuid": row["run_id"], "build_name": row["job_name"], "result": row["status"],
         "start_time": row["started_at"], "log_path": row["log_file"]}
        for row in make_runs(tmp_path, RUNS)
    ]  # fmt: skip
    compare(Path(write_csv(tmp_path / "results.csv", rows)), tmp_path / "logs", tmp_path / "data")


if __name__ == "__main__":  # python -m tests.bench.test_load LISTING FOLDER: real runs of a listing
    listing, folder = map(Path, sys.argv[1:])
    work = Path("/tmp") / f"ciml-load-bench-{os.getpid()}"
    work.mkdir()
    lines = [json.loads(line) for line in listing.read_text().splitlines()]
    pd.DataFrame(lines).to_csv(work / "results.csv", index=False)
    compare(work / "results.csv", folder, work)
    shutil.rmtree(work)
