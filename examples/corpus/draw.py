"""Draws the sample runs beside this file from a larger listing of the same shape, the same ones every time.

    python examples/corpus/draw.py LISTING_FOLDER [TARGET_FOLDER]

``LISTING_FOLDER`` holds ``builds.jsonl`` and the logs that it names. Of ten jobs, every (provider, job) gets its share
of the population; within it a keyed hash of the run's id decides, with runs of `MIN_ROWS` samples before shorter ones.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections import defaultdict
from pathlib import Path

RUNS = 960
MIN_ROWS = 30  # shorter runs have one to three windows of 10 s: little to say anything about a machine
#: Ten of the collection's eighteen jobs, so that each has enough runs on each of the 55 flavours.
JOBS = (
    "hadoop-aggregation", "hadoop-join", "hadoop-pagerank", "hadoop-scan", "hadoop-terasort",
    "spark-aggregation", "spark-bayes", "spark-join", "spark-pagerank", "spark-terasort",
)  # fmt: skip


def rank(uuid: str) -> str:
    """The order of runs within a (provider, job): a hash, so that neither time nor flavour decides."""
    return hashlib.sha256(f"ciml examples {uuid}".encode()).hexdigest()


def shares(population: dict[tuple[str, str], int], total: int) -> dict[tuple[str, str], int]:
    """``total`` divided in the population's proportions by largest remainders."""
    everything = sum(population.values())
    exact = {cell: total * count / everything for cell, count in population.items()}
    share = {cell: int(value) for cell, value in exact.items()}
    by_remainder = sorted(exact, key=lambda cell: (share[cell] - exact[cell], cell))
    for cell in by_remainder[: total - sum(share.values())]:
        share[cell] += 1
    return share


def draw(builds: list[dict], total: int = RUNS, min_rows: int = MIN_ROWS) -> list[dict]:
    """The drawn lines of the listing, in order of (end time, run id)."""
    cells: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for build in builds:
        if build["build_name"] not in JOBS:
            continue
        cells[build["node_provider"], build["build_name"]].append(build)
    drawn: list[dict] = []
    for cell, share in shares({cell: len(runs) for cell, runs in cells.items()}, total).items():
        drawn += sorted(cells[cell], key=lambda build: (build["rows"] < min_rows, rank(build["build_uuid"])))[:share]
    return sorted(drawn, key=lambda build: (build["end_time"], build["build_uuid"]))


def main(source: Path, target: Path) -> None:
    builds = [json.loads(line) for line in (source / "builds.jsonl").read_text().splitlines()]
    drawn = draw(builds)
    for build in drawn:
        path = target / build["log_path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / build["log_path"], path)
    (target / "builds.jsonl").write_text("".join(json.dumps(build) + "\n" for build in drawn))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent)
