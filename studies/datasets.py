"""Compare `ciml dataset build` with pandas, whole processes. Writes the table of costs in docs/datasets.md.

    python -m studies.datasets LISTING LOGS [--runs N …] [--rounds N] [--records] [--stores FOLDER] [--aligned]

For each number of runs (copies of the listing under new ids), it builds (usr, 1m) at 10 s from a compacted raw store.
Up to 10,000 runs, `by_pandas.py` reads the logs; beyond, its time is extrapolated. The first number of runs is also
built directly from the logs. ``--records`` adds tf.Transform's analysis and the normalised TFRecord files.

``--aligned`` makes spans of as many runs as the listing has, so that each span is the same work. Spans of 5,000 runs
cut the copies at different places; packs are then read for two spans, which costs a tenth.

Each line has medians of wall and CPU seconds and of peak memory. On a busy machine, use the CPU ratio.
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
from itertools import pairwise
from pathlib import Path
from statistics import median

PANDAS_SCRIPT = Path(__file__).with_name("by_pandas.py")
#: More runs are not read by pandas.
MAX_PANDAS_RUNS = 10_000
NAME = "bench"
RECORDS = f"""
import sys; from pathlib import Path
from ciml.data_root import DataRoot
from ciml.training.data.materialise import materialise; from ciml.training.data.snapshot import make_snapshot
from ciml.trust import TrustPolicy
data = DataRoot.open(sys.argv[1])
dataset = data.dataset({NAME!r})
done = materialise(dataset.store, make_snapshot(dataset, TrustPolicy.load(None)), Path(sys.argv[2]))
assert sum(done.counts.values()) == int(sys.argv[3])
"""


@dataclass(frozen=True)
class Cost:
    """The cost of a process: wall and CPU seconds, and its peak memory in MiB."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def run(*command: str | Path) -> Cost:
    """Measure a command."""
    os.sync()  # so that it does not wait for writes of an earlier command
    started = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen([str(part) for part in command], stdout=out, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        assert child.returncode == 0, out.read().decode()
    return Cost(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def median_of(costs: list[Cost]) -> Cost:
    return Cost(*(median(getattr(cost, name) for cost in costs) for name in ("wall_s", "cpu_s", "peak_mib")))


def build(target: Path, *options: str | Path) -> Cost:
    """Measure `ciml dataset build`."""
    shutil.rmtree(target, ignore_errors=True)
    selection = ["--dataset", NAME, "--features-regex", "(usr|1min)", "--class-label", "provider"]
    windows = ["--sample-interval", "10s", "--max-windows", "550"]
    command = [sys.executable, "-m", "ciml", "dataset", "build", *selection, *windows]
    return run(*command, *options, "--target-data-path", target)


def add_records(target: Path, runs: int, built: Cost) -> Cost:
    """Measure the normalised records of the same runs; return the cost of both together."""
    records = run(sys.executable, "-c", RECORDS, target, target / "records", str(runs))
    peak_mib = max(built.peak_mib, records.peak_mib)
    return Cost(built.wall_s + records.wall_s, built.cpu_s + records.cpu_s, peak_mib)


def line_of(what: str, runs: int, ours: Cost, per_run: Cost) -> str:
    """Return a line that compares the cost of ciml with that of pandas."""
    wall_s = per_run.wall_s * runs
    cpu_s = per_run.cpu_s * runs
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
    parser.add_argument("--aligned", action="store_true")
    parser.add_argument("--stores", type=Path, help="a folder for the raw stores, which take minutes to fill")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    builds = [json.loads(line) for line in options.listing.read_text().splitlines()]
    sizes = options.runs or [len(builds)]
    by_store, by_logs, by_pandas = ({runs: list[Cost]() for runs in sizes} for _ in range(3))
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        target = folder / "sets"
        listing = folder / "builds.jsonl"
        spans = folder / "spans.toml"
        spans.write_text(f"span_runs = {len(builds)}\n")
        aligned: list[str | Path] = ["--definition", spans] if options.aligned else []
        stores = {runs: (options.stores or folder) / f"data{runs}" for runs in sizes}
        for runs, data in stores.items():
            if not data.exists():  # in a process of its own: memory of this one counts in the peaks of its children
                run(sys.executable, "-m", "studies.many_runs", options.listing, options.logs, data, str(runs))
        build(target, "--data-path", stores[sizes[0]])  # compiles the modules
        for _ in range(options.rounds):  # all sizes in each round, so that other load affects them equally
            for runs, data in stores.items():
                measured = min(runs, MAX_PANDAS_RUNS)
                source: list[str | Path] = [*aligned, "--data-path", data]
                lines = (json.dumps(builds[number % len(builds)]) for number in range(measured))
                listing.write_text("".join(f"{line}\n" for line in lines))
                if runs == sizes[0] <= len(builds):
                    by_logs[runs].append(build(target, *source, "--listing", listing, "--logs", options.logs))
                built = build(target, *source)
                by_store[runs].append(add_records(target, runs, built) if options.records else built)
                if runs <= MAX_PANDAS_RUNS or runs == sizes[0]:
                    by_pandas[runs].append(run(sys.executable, PANDAS_SCRIPT, listing, options.logs, folder / "npz"))
    per_run = Cost(0.0, 0.0, 0.0)
    for runs in sizes:
        if by_pandas[runs]:
            pandas_cost = median_of(by_pandas[runs])
            measured = min(runs, MAX_PANDAS_RUNS)
            per_run = Cost(pandas_cost.wall_s / measured, pandas_cost.cpu_s / measured, pandas_cost.peak_mib)
        if by_logs[runs]:
            print(line_of("from logs", runs, median_of(by_logs[runs]), per_run))
        origin = "from packs to records" if options.records else "from packs"
        print(line_of(origin, runs, median_of(by_store[runs]), per_run))
    for few, many in pairwise(sizes):
        more_s = median_of(by_store[many]).wall_s - median_of(by_store[few]).wall_s
        print(f"of further runs, {few:,} to {many:,}: {(many - few) / more_s:,.0f} a second")


if __name__ == "__main__":
    main()
