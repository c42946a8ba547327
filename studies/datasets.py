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

OPPONENT = Path(__file__).with_name("by_pandas.py")
AT_MOST = 10_000
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
    """What `ciml dataset build` takes."""
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
        "--max-windows",
        "550",
    ]
    return run(sys.executable, "-m", "ciml.cli.main", "dataset", "build", *line, *more, "--target-data-path", target)


def with_records(target: Path, runs: int, done: Cost) -> Cost:
    """What it takes together with the normalised records of the same runs."""
    more = run(sys.executable, "-c", RECORDS, target, target / "records", str(runs))
    return Cost(done.wall_s + more.wall_s, done.cpu_s + more.cpu_s, max(done.peak_mib, more.peak_mib))


def told(what: str, runs: int, ours: Cost, per_run: Cost) -> str:
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
    parser.add_argument("--stores", type=Path, help="a folder that keeps the raw stores: they take minutes to fill")
    given = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    builds = [json.loads(line) for line in given.listing.read_text().splitlines()]
    sizes = given.runs or [len(builds)]
    by_store, by_logs, by_pandas = ({runs: list[Cost]() for runs in sizes} for _ in range(3))
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        target = folder / "sets"
        listing = folder / "builds.jsonl"
        spans = folder / "spans.toml"
        spans.write_text(f"span_runs = {len(builds)}\n")
        aligned: list[str | Path] = ["--definition", spans] if given.aligned else []
        stores = {runs: (given.stores or folder) / f"data{runs}" for runs in sizes}
        for runs, data in stores.items():
            if not data.exists():  # in a process of its own: what this one holds would count as its children's peak
                run(sys.executable, "-m", "studies.many_runs", given.listing, given.logs, data, str(runs))
        built(target, "--data-path", stores[sizes[0]])  # finds its modules compiled from now on
        for _ in range(given.rounds):  # all sizes in each: what the machine does meanwhile meets them alike
            for runs, data in stores.items():
                measured = min(runs, AT_MOST)
                line: list[str | Path] = [*aligned, "--data-path", data]
                listing.write_text("".join(f"{json.dumps(builds[at % len(builds)])}\n" for at in range(measured)))
                if runs == sizes[0] <= len(builds):
                    by_logs[runs].append(built(target, *line, "--listing", listing, "--logs", given.logs))
                done = built(target, *line)
                by_store[runs].append(with_records(target, runs, done) if given.records else done)
                if runs <= AT_MOST or runs == sizes[0]:
                    by_pandas[runs].append(run(sys.executable, OPPONENT, listing, given.logs, folder / "npz"))
    per_run = Cost(0.0, 0.0, 0.0)
    for runs in sizes:
        if by_pandas[runs]:
            opponent = of_rounds(by_pandas[runs])
            measured = min(runs, AT_MOST)
            per_run = Cost(opponent.wall_s / measured, opponent.cpu_s / measured, opponent.peak_mib)
        if by_logs[runs]:
            print(told("from logs", runs, of_rounds(by_logs[runs]), per_run))
        what = "from packs to records" if given.records else "from packs"
        print(told(what, runs, of_rounds(by_store[runs]), per_run))
    for few, many in pairwise(sizes):
        more_s = of_rounds(by_store[many]).wall_s - of_rounds(by_store[few]).wall_s
        print(f"of further runs, {few:,} to {many:,}: {(many - few) / more_s:,.0f} a second")


if __name__ == "__main__":
    main()
