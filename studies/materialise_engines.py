"""Materialise the same snapshot by one process, by two Beam workers and on Flink. Writes a table of docs/training.md.

    python -m studies.materialise_engines --examples 10000 --examples 100000 --results engines.json

Flink needs Java. It is embedded in Beam's job server, with threads of this process as workers ("Flink, one process"),
or has two TaskManagers with Python workers of their own ("Flink, two workers"). The examples are repeats of the real
runs of the tests. The start of workers counts; the start of Flink and importing TensorFlow into this process do not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ciml.training.data import materialise_beam

import apache_beam as beam  # isort: skip  (TensorFlow has to be set up first)
import pyarrow as pa
import tensorflow as tf
import tensorflow_transform.beam as tft_beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from ciml import engines
from ciml.pipelines.flink.submit import run_bounded
from ciml.storage import LocalStore, Store
from ciml.training.data.examples import file_tasks
from ciml.training.data.materialise import Materialised, materialise
from ciml.training.data.snapshot import ROLES, Snapshot
from ciml.training.normalise import Normalisation
from tests.bench import test_incremental as bench

SIZES = (10_000, 100_000, 400_000)
FLINKS = {"flink": "Flink, one process", "cluster": "Flink, two workers"}
_TASKS = "tasks.pickle"

Run = Callable[[Callable[[beam.Pipeline], Any]], None]


class ReadStored(beam.DoFn):
    """Read examples as `ReadRows` does, in a process that has to load the tasks."""

    def __init__(self, read: materialise_beam.ReadRows) -> None:
        super().__init__()
        self._read = read

    def setup(self) -> None:
        folder = self._read._folder
        if folder not in materialise_beam._tasks:
            materialise_beam._tasks[folder] = pickle.loads(Path(folder, _TASKS).read_bytes())

    def process(self, index: int) -> Iterator[pa.RecordBatch]:
        yield from self._read.process(index)


def read_shuffled(pipeline: beam.Pipeline, tasks: Sequence[int], read: materialise_beam.ReadRows) -> beam.PCollection:
    """Distribute the files over workers; in one process, the product does not."""
    return (
        pipeline
        | "files" >> beam.Create(tasks, reshuffle=True)
        | "read" >> beam.ParDo(ReadStored(read)).with_output_types(pa.RecordBatch)
    )


def run_on(run: Run, root: Store, snapshot: Snapshot, folder: Path, normalisation: Normalisation) -> None:
    """Replace `materialise_beam.run_pipeline`: build the same pipeline, and run it by several workers."""
    folder.joinpath(_TASKS).write_bytes(pickle.dumps(file_tasks(snapshot)))
    build = partial(
        materialise_beam.build_materialise,
        root=root,
        snapshot=snapshot,
        folder=folder.absolute(),
        normalisation=normalisation,
    )
    temp = tempfile.TemporaryDirectory(dir=folder, prefix="tmp-")
    with temp, tft_beam.Context(temp_dir=temp.name), patch.object(materialise_beam, "_read", read_shuffled):
        run(build)
    materialise_beam._tasks.clear()


def by_two_workers(build: Callable[[beam.Pipeline], Any]) -> None:
    """Run a pipeline by two processes of Beam's direct runner."""
    options = PipelineOptions(["--direct_num_workers=2", "--direct_running_mode=multi_processing"])
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=options)
    build(pipeline)
    pipeline.run().wait_until_finish()


@contextmanager
def running_engines(names: Sequence[str], home: Path) -> Iterator[dict[str, Run | None]]:
    """Start what the engines need; yield the function of each, None for `materialise` itself."""
    runs: dict[str, Run | None] = {"one process": None, "two Beam workers": by_two_workers}
    flinks = [kind for kind, name in FLINKS.items() if name in names]
    settings = engines.Settings(tied=True, task_managers=2, slots=1, flink_heap_mb=1024)
    # Each exchange of a batch needs 16 MB of a TaskManager; those of `ciml up cluster` have too little for 30 of them.
    network = patch("ciml.engines.flink.cluster._NETWORK_MB", 768)
    with network, engines.start(flinks, home=home, settings=settings) as running:
        if "cluster" in flinks:
            urls = running.cluster
            flags = [f"--environment_config={urls['workers']}", "--environment_type=EXTERNAL", "--parallelism=2"]
            runs[FLINKS["cluster"]] = lambda build: run_bounded(
                build, "flink", urls["jobs"], "materialise", extra=flags
            )
        if "flink" in flinks:
            runs[FLINKS["flink"]] = lambda build: run_bounded(build, "flink", running.flink, "materialise")
        yield {name: runs[name] for name in names}


def written(folder: Path, number: int) -> tuple[LocalStore, Snapshot]:
    """Write a data set of a number of examples."""
    resolved = bench.resolved_definition()
    store = LocalStore(str(folder))
    spans = tuple(bench.write(store, resolved, span) for span in range(1, max(1, number // bench.RUNS) + 1))
    return store, Snapshot("bench", resolved, "p", spans)


def records_digest(made: Materialised) -> str:
    """Return a digest of the set of records."""
    digests: list[bytes] = []
    for role in ROLES:
        records = tf.data.TFRecordDataset(made.paths(role)).as_numpy_iterator()
        digests += [hashlib.sha256(role.encode() + record).digest() for record in records]
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


@dataclass
class Measured:
    """Seconds of an engine, the machine's load after each run, and digests of the records."""

    engine: str
    examples: int
    seconds: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    records: list[str] = field(default_factory=list)


def measure(folder: Path, number: int, repeats: int, runs: Mapping[str, Run | None]) -> list[Measured]:
    """Materialise a number of examples by each engine; engines alternate."""
    store, snapshot = written(folder / f"dataset-{number}", number)
    rows = [Measured(name, number) for name in runs]
    for repeat in range(repeats):
        for row in rows if repeat % 2 == 0 else rows[::-1]:
            run = runs[row.engine]
            replaced = materialise_beam.run_pipeline if run is None else partial(run_on, run)
            began_s = time.monotonic()
            with patch.object(materialise_beam, "run_pipeline", replaced):
                made = materialise(store, snapshot, folder / "made")
            row.seconds.append(round(time.monotonic() - began_s, 1))
            row.load.append(round(os.getloadavg()[0], 1))
            row.records.append(records_digest(made))
            print(f"{row.engine}, {number:,}: {row.seconds[-1]} s", file=sys.stderr, flush=True)
    digests = {digest for row in rows for digest in row.records}
    if len(digests) > 1:
        print(f"{number:,} examples: the records differ: {digests}", file=sys.stderr)
    return rows


def main() -> None:
    names = ("one process", "two Beam workers", *FLINKS.values())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, action="append", help=f"Number of examples (default: {SIZES}).")
    parser.add_argument(
        "--engine", choices=names, action="append", help="Engine to measure (default: the first three)."
    )
    parser.add_argument("--repeats", type=int, default=3, help="Runs of each engine (default: 3).")
    parser.add_argument("--results", type=Path, help="JSON file for the results.")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    print(f"{os.cpu_count()} cores; medians of {options.repeats}, in seconds, and the ratio to one process")
    chosen = options.engine or list(names[:3])
    print(f"| examples | {' | '.join(chosen)} |\n|" + "---|" * (len(chosen) + 1))
    with tempfile.TemporaryDirectory() as place, running_engines(chosen, Path(place, "home")) as runs:
        for number in options.examples or SIZES:
            rows = measure(Path(place), number, options.repeats, runs)
            medians = [statistics.median(row.seconds) for row in rows]
            cells = " | ".join(f"{median:.1f} ({median / medians[0]:.2f})" for median in medians)
            print(f"| {number:,} | {cells} |", flush=True)
            results += map(asdict, rows)
            if options.results:
                options.results.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    from studies import materialise_engines  # workers import the stages by this name

    materialise_engines.main()
