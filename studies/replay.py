"""Measure an update of causes, and the start of a stream with neighbours. Writes the last lines of docs/manifests.md.

    python -m studies.replay [--runs N]

The raw manifest has N runs in deltas of 200; a third of them failed, in 40 places. Each measurement is a process of its
own, without a bookmark and with the bookmark of an earlier process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.datasets.state import DatasetState, Position
from ciml.digest import canonical_json
from ciml.events.records import Origin, Outcome, RawFile, RunFacts, Trust
from ciml.pipelines.datasets.update import StoredRuns
from ciml.serving.predict import answers
from ciml.serving.predict.answers import StoredNeighbours
from ciml.transforms.examples.changes import BOOKMARK, History, bookmarks_of
from ciml.transforms.examples.plan import Plan

_DELTA = 200
#: Runs that wait for their span.
_WAITING = 1000
DEFINITION = DatasetDefinition.from_json(
    {"name": "cause", "class_label": "cause", "context": ["neighbours"], "span_runs": 100_000}
)


def write(data: DataRoot, runs: int) -> int:
    """Write the manifest; return its last version."""
    chance = random.Random(1)
    names = ("repeats", "corrections", "ignored", "dead_letters", "deferred", "closes")
    for version in range(1, runs // _DELTA + 1):
        rows = []
        for number in range((version - 1) * _DELTA, version * _DELTA):
            end_us = 1_780_000_000_000_000 + number * 6_000_000
            facts = RunFacts(
                f"zuul~{number:032x}~1",
                f"{number:032x}",
                f"job-{chance.randrange(50)}",
                "finished",
                outcome=chance.choice(["success", "success", "failure"]),
                source="zuul",
                pipeline="check",
                project=f"openstack/project-{chance.randrange(100)}",
                change=str(800_000 + number // 12),
                patchset="2",
                branch="main",
                provider=f"cloud-{chance.randrange(40)}",
                start_us=end_us - 900_000_000,
                end_us=end_us,
                log_url=f"https://logs.example.org/{number:032x}/dstat.csv.gz",
                labels={"exit_code": "1"},
            )
            file = RawFile(f"runs/job=j/date=2026-06-01/{number}.parquet", f"{number:064x}", 900, 60_000)
            origin = Origin("ci-events", 0, number)
            rows.append(
                Outcome("run", origin, f"zuul {number}", facts, trust=Trust(True, "gate", "0"), file=file).to_json()
            )
        offsets = {"ci-events": {"id": "", "partitions": {"0": [[(version - 1) * _DELTA, version * _DELTA]]}}}
        delta = {"time_us": 0, "version": version, "runs": rows, "offsets": offsets, **{name: [] for name in names}}
        data.raw.create(f"_manifest/{version:012d}.json", canonical_json(delta))
    return runs // _DELTA


def update(data: DataRoot, version: int) -> None:
    """Plan an update of a data set whose spans end some runs before the last version."""
    raw = StoredRuns(data.raw).log
    dataset = data.dataset("cause")
    state = DatasetState()
    state.definition = DEFINITION
    state.cursor = Position(version - _WAITING // _DELTA + 1, 0)
    state.corrections_to = state.cursor[0]
    plan = Plan(state, raw, _never, History(DEFINITION, {}, bookmarks_of(DEFINITION, dataset.store, raw)))
    assert list(plan.steps()) == []
    assert plan.waiting == _WAITING


def _never(runs: Any) -> Any:
    raise AssertionError("no span is complete")


def start(data: DataRoot, version: int) -> None:
    """Ask for the neighbours of a run, as the first batch of a stream does."""
    neighbours = StoredNeighbours(data, saves_bookmark=True).of([f"zuul~{version * _DELTA - 1:032x}~1"])
    assert len(neighbours) == 1


def timed(work: Callable[[DataRoot, int], None], data: DataRoot, version: int) -> tuple[float, float]:
    """Run work in a process of its own; return its seconds of CPU and its largest memory, MiB."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(work, data.url, version, theirs))
    process.start()
    cost: tuple[float, float] = ours.recv()
    process.join()
    return cost


def _work(work: Callable[[DataRoot, int], None], path: str, version: int, pipe: Any) -> None:
    started = time.process_time()
    work(DataRoot.open(path), version)
    pipe.send((time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = DataRoot.open(folder)
        version = write(data, options.runs)
        files = {
            update: Path(folder, "datasets", "cause", BOOKMARK),
            start: Path(folder, "predictions", answers.BOOKMARK),
        }
        for work, file in files.items():
            first = timed(work, data, version)
            second = timed(work, data, version)
            print(
                json.dumps(
                    {
                        "work": work.__name__,
                        "runs": options.runs,
                        "bookmark_mb": round(file.stat().st_size / 1e6, 1),
                        "without": {"cpu_s": round(first[0], 2), "mib": round(first[1])},
                        "with": {"cpu_s": round(second[0], 2), "mib": round(second[1])},
                    }
                )
            )


if __name__ == "__main__":
    main()
