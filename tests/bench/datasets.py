"""Building a data set against pandas, whole processes, as ratios in one run.

    python -m tests.bench.datasets LISTING LOGS [--runs N …] [--rounds N] [--records] [--stores FOLDER]

For each number of runs (the listing's own, again and again under new ids): `ciml build-dataset` of (usr, 1m) at 10 s
from a compacted raw store, and, up to 10,000 runs, `by_pandas.py` from the logs; beyond, by its own rate. The first
number is also built straight from the logs. ``--records`` adds tf.Transform's analysis and the normalised TFRecord
files. A line has the medians: wall and CPU seconds, and peak memory. The CPU ratio is the one to look at on a machine
where others work. Rounds of the one and the other take turns. All find their libraries compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

OPPONENT = Path(__file__).with_name("by_pandas.py")
AT_MOST = 10_000
NAME = "bench"
RECORDS = f"""
import sys; from pathlib import Path; from ciml.storage import open_store
from training.materialise import materialise; from training.snapshot import make_snapshot
from transforms.trust import TrustPolicy
data = open_store(sys.argv[1])
done = materialise(data, make_snapshot(data, {NAME!r}, TrustPolicy.load(None)), Path(sys.argv[2]))
assert sum(done.counts.values()) == int(sys.argv[3])
"""


@dataclass(frozen=True)
class Cost:
    """What a process took: wall and CPU seconds, and its peak memory in MiB."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def run(*command: str | Path) -> Cost:
    os.sync()  # what the one before has left unwritten is not to be waited for by this one
    began = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen([str(part) for part in command], stdout=out, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        assert child.returncode == 0, out.read().decode()
    return Cost(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def of_rounds(costs: list[Cost]) -> Cost:
    return Cost(*(median(getattr(cost, name) for cost in costs) for name in ("wall_s", "cpu_s", "peak_mib")))


def built(target: Path, *more: str | Path) -> Cost:
    """What `ciml build-dataset` takes."""
    shutil.rmtree(target, ignore_errors=True)
    line = [
        "--dataset",
        NAME,
        "--features-regex",
        "(usr|1min)",
        "--class-label",
        "provider",
        "--sample-interval",
        "10s",
    ]
    return run(sys.executable, "-m", "cli.main", "build-dataset", *line, *more, "--target-data-path", target)


def with_records(target: Path, runs: int, done: Cost) -> Cost:
    """What it takes together with the normalised records of the same runs."""
    more = run(sys.executable, "-c", RECORDS, target, target / "records", str(runs))
    return Cost(done.wall_s + more.wall_s, done.cpu_s + more.cpu_s, max(done.peak_mib, more.peak_mib))


def told(what: str, runs: int, ours: Cost, per_run: Cost) -> str:
    wall_s, cpu_s = per_run.wall_s * runs, per_run.cpu_s * runs
    return (
        f"{what}, {runs:,} runs: {ours.wall_s:.2f} s, {ours.cpu_s:.2f} s of CPU, {ours.peak_mib:.0f} MiB; pandas "
        f"{wall_s:.1f} s, {cpu_s:.1f} s of CPU, {per_run.peak_mib:.0f} MiB: {wall_s / ours.wall_s:.1f} times as fast, "
        f"{cpu_s / ours.cpu_s:.1f} by CPU"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("listing", type=Path)
    parser.add_argument("logs", type=Path)
    parser.add_argument("--runs", type=int, nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", action="store_true")
    parser.add_argument("--stores", type=Path, help="a folder that keeps the raw stores: they take minutes to fill")
    given = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    builds = [json.loads(line) for line in given.listing.read_text().splitlines()]
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        target, per_run = folder / "sets", None
        for runs in given.runs or [len(builds)]:
            data = (given.stores or folder) / f"data{runs}"
            if not data.exists():  # in a process of its own: what this one holds would count as its children's peak
                run(sys.executable, "-m", "tests.bench.many_runs", given.listing, given.logs, data, str(runs))
            by_store, by_logs, by_pandas, measured = [], [], [], min(runs, AT_MOST)
            listing = folder / "builds.jsonl"
            listing.write_text("".join(f"{json.dumps(builds[at % len(builds)])}\n" for at in range(measured)))
            straight = per_run is None and runs <= len(builds)
            built(target, "--data-path", data)  # finds its modules compiled from now on
            for _ in range(given.rounds):
                if straight:
                    by_logs.append(built(target, "--data-path", data, "--listing", listing, "--logs", given.logs))
                done = built(target, "--data-path", data)
                by_store.append(with_records(target, runs, done) if given.records else done)
                if runs <= AT_MOST or per_run is None:
                    by_pandas.append(run(sys.executable, OPPONENT, listing, given.logs, folder / "npz"))
            shutil.rmtree(target)
            if by_pandas:
                opponent = of_rounds(by_pandas)
                per_run = Cost(opponent.wall_s / measured, opponent.cpu_s / measured, opponent.peak_mib)
            assert per_run is not None
            if straight:
                print(told("from logs", runs, of_rounds(by_logs), per_run), flush=True)
            what = "from packs to records" if given.records else "from packs"
            print(told(what, runs, of_rounds(by_store), per_run), flush=True)


if __name__ == "__main__":
    main()
