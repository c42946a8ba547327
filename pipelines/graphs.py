"""The pipelines' graphs as engines receive them, built without an engine, a broker or a network.

Each is wired by its production function, with example inputs in place of run-time lookups: two partitions of
`ci-events`, a deferred log that is due, a data set of one span.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import apache_beam as beam

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition
from ciml.datasets.state import ExampleFile
from ciml.events.listing import Block, Reading
from ciml.events.records import Origin, PendingRun, RawFile, RunFacts, Trust
from ciml.kafka.options import KafkaOptions
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.storage import LocalStore
from ciml.transforms.examples.plan import SelectedRun, SpanPlan, Step
from ciml.transforms.fetch.policy import FetchPolicy

_DATA = DataRoot(LocalStore("data"))
_KAFKA = KafkaOptions("kafka:9092")
_READS = (PartitionRead("ci-events", "T", 0, 0, None), PartitionRead("ci-events", "T", 1, 1200, None))
_BOUNDED = (PartitionRead("ci-events", "T", 0, 0, 500), PartitionRead("ci-events", "T", 1, 1200, 1300))
_RUNS = (PartitionRead("runs", "R", 0, 0, None),)
_FACTS = RunFacts("zuul~1~1", "1", "job", outcome="success", source="zuul", start_us=0, end_us=1)
_RESOLVED = ResolvedDefinition(
    definition=DatasetDefinition(name="example", sample_interval="10s", class_label="status", max_windows=5),
    columns=("total cpu usage:usr", "load avg:1m"),
    features=("usr", "1m"),
    classes=("passed", "failed"),
    windows=5,
)
_PLAN = SpanPlan(1, 1, (SelectedRun((1, 0), _FACTS, RawFile("runs/1", "0", 60, 1000), Trust(True, "gated", "p")),))
_STEP = Step(1, _RESOLVED, (1, 1), 1, (_PLAN,), {})


def _ingest(pipeline: beam.Pipeline, reads: tuple[PartitionRead, ...], due: tuple[PendingRun, ...] = ()) -> None:
    from ciml.pipelines.ingest.committer import IngestConfig
    from ciml.pipelines.ingest.pipeline import build_ingest

    fetch = FetchPolicy(hosts=("logs.example.org",))
    build_ingest(pipeline, IngestConfig(_DATA.raw, kafka=_KAFKA, fetch=fetch), reads, due)


def _predict(pipeline: beam.Pipeline) -> None:
    from ciml.pipelines.predict import PredictConfig, PredictProcessor
    from ciml.pipelines.processor_beam import build_processor
    from ciml.serving.predict.predictor import PredictPolicy

    config = PredictConfig(_DATA, "models:8500", PredictPolicy("example"), kafka=_KAFKA)
    build_processor(pipeline, PredictProcessor(config), _RUNS)


def _backfill(pipeline: beam.Pipeline) -> None:
    from ciml.pipelines.backfill.beam import build_backfill
    from ciml.pipelines.backfill.plan import BackfillConfig, Work

    reading = Reading(source="backfill", logs="/logs")
    works = [Work(Block(0, 1000, 0, 100_000, b""), ((0, 1000),))]
    build_backfill(pipeline, BackfillConfig(_DATA.raw, reading), "listing.jsonl", "0", works, spread=True)


def _dataset(pipeline: beam.Pipeline) -> None:
    from ciml.pipelines.datasets.beam import build_spans

    build_spans(pipeline, _DATA.raw, _DATA.dataset("example").store, [_STEP], "results")


def _dataset_alone(pipeline: beam.Pipeline) -> None:
    from ciml.pipelines.datasets.build import PlannedUpdate

    PlannedUpdate(_DATA.raw, _DATA.dataset("example").store, (_STEP,)).build(pipeline)


def _materialise(pipeline: beam.Pipeline) -> None:
    from ciml.tensorflow import load_tensorflow

    load_tensorflow()  # must be configured before tf.Transform imports it
    import tensorflow_transform.beam as tft_beam

    from ciml.training.data.materialise_beam import build_materialise
    from ciml.training.data.snapshot import Snapshot, SnapshotRun, SnapshotSpan

    runs = tuple(
        SnapshotRun(f"zuul~{number}~1", "train", "train", number % 2, "gated", "job", "0") for number in range(4)
    )
    files = {"train": (ExampleFile("span-1/version-1/train.parquet", "0", len(runs)),)}
    snapshot = Snapshot("example", _RESOLVED, "p", (SnapshotSpan(1, 1, files, runs),))
    with tempfile.TemporaryDirectory(prefix="ciml-graph-") as folder, tft_beam.Context(temp_dir=folder):
        build_materialise(pipeline, _DATA.dataset("example").store, snapshot, Path("work"), None)


#: Graphs by name: (function that wires it, description).
PIPELINES: dict[str, tuple[Callable[[beam.Pipeline], None], str]] = {
    "ingest": (partial(_ingest, reads=_READS), "ciml ingest on Flink or Dataflow, unbounded"),
    "ingest-micro-batch": (
        partial(_ingest, reads=_BOUNDED, due=(PendingRun(Origin("ci-events", 0, 7), "e", _FACTS),)),
        "ciml ingest --engine micro-batches, one batch",
    ),
    "predict": (_predict, "ciml predict stream, unbounded"),
    "backfill": (_backfill, "ciml backfill --runner, one of its pipelines"),
    "dataset": (_dataset, "ciml dataset update --runner, building spans"),
    "dataset-alone": (_dataset_alone, "ciml dataset build|update --runner dataflow, with their commit"),
    "materialise": (_materialise, "ciml refresh, normalising examples with tf.Transform"),
}
