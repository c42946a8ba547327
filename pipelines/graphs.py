"""The pipelines' graphs in Beam's portable form, which every engine receives: example graphs, checks, and drawings.

No engine, broker or network is used. Each example of `PIPELINES` is wired by its production function, with example
inputs in place of run-time lookups: two partitions of `ci-events`, a deferred log that is due, a data set of one span.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_runner_api_pb2 as api
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import ExternalEnvironment, python_sdk_capabilities

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition
from ciml.datasets.state import ExampleFile, Position
from ciml.events.listing import Block, Reading
from ciml.events.records import Origin, PendingRun, RawFile, RunFacts, Trust
from ciml.kafka import KafkaOptions
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.storage import LocalStore
from ciml.transforms.examples.changes import SelectedRun
from ciml.transforms.examples.plan import SpanPlan, Step
from ciml.transforms.fetch.policy import FetchPolicy

_PRIMITIVES = common_urns.primitives
_COMBINES = common_urns.combine_components
#: Transforms that every engine knows. Engines execute the first three themselves, Python workers all others.
_KINDS = {
    _PRIMITIVES.IMPULSE.urn: "Impulse",
    _PRIMITIVES.FLATTEN.urn: "Flatten",
    _PRIMITIVES.GROUP_BY_KEY.urn: "GroupByKey",
    _PRIMITIVES.PAR_DO.urn: "ParDo",
    _PRIMITIVES.ASSIGN_WINDOWS.urn: "Window",
    _COMBINES.COMBINE_PER_KEY_PRECOMBINE.urn: "Combine",
    _COMBINES.COMBINE_PER_KEY_MERGE_ACCUMULATORS.urn: "Combine",
    _COMBINES.COMBINE_PER_KEY_EXTRACT_OUTPUTS.urn: "Combine",
    _COMBINES.COMBINE_GROUPED_VALUES.urn: "Combine",
}
_PYTHON_FUNCTIONS = (python_urns.PICKLED_DOFN_INFO, python_urns.KEY_WITH_NONE_DOFN)
_PYTHON_SDK = "beam:version:sdk_base:apache/beam_python"
_FOREIGN_URNS = ("external", "xlang", "schematransform", "org.apache.beam", "javasdk", "go:")

# Example inputs.
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
_PLAN = SpanPlan(
    1, 1, (SelectedRun(Position(1, 0), _FACTS, RawFile("runs/1", "0", 60, 1000), Trust(True, "gated", "p")),)
)
_STEP = Step(1, _RESOLVED, Position(1, 1), 1, (_PLAN,), {})


def portable(build: Callable[[beam.Pipeline], object]) -> api.Pipeline:
    """Return the portable form of the pipeline that ``build`` wires, without running it or using a network."""
    environment = ExternalEnvironment("localhost:50000", capabilities=python_sdk_capabilities())
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    build(pipeline)
    return pipeline.to_runner_api(default_environment=environment)


def as_text(name: str, proto: api.Pipeline) -> str:
    """Render a pipeline as text: a line for each stage, with the numbers of its inputs."""
    ordered = list(stages(proto))
    numbers = {stage.name: number for number, stage in enumerate(ordered, 1)}
    width = max(len(stage.kind) for stage in ordered)
    size = "unbounded" if is_unbounded(proto) else "bounded"
    foreign_lines = foreign_parts(proto)
    workers = "NOT ONLY PYTHON" if foreign_lines else "only Python workers"
    lines = [f"{name}: {size}, {len(ordered)} stages, {workers}"]
    for stage in ordered:
        inputs = f"  <- {', '.join(str(numbers[source]) for source in stage.inputs)}" if stage.inputs else ""
        lines.append(f"{numbers[stage.name]:>3}  {stage.kind:<{width}}  {stage.name}{inputs}")
    return "\n".join([*lines, *foreign_lines])


def as_dot(proto: api.Pipeline) -> str:
    """Render a pipeline for Graphviz, with composites as clusters."""
    from apache_beam.runners.render import PipelineRenderer, RenderOptions

    return str(PipelineRenderer(proto, RenderOptions([])).to_dot())


def is_unbounded(proto: api.Pipeline) -> bool:
    """Return whether the pipeline is unbounded."""
    collections = proto.components.pcollections.values()
    return any(collection.is_bounded == api.IsBounded.UNBOUNDED for collection in collections)


def foreign_parts(proto: api.Pipeline) -> list[str]:
    """Describe each stage or coder that needs more than Python workers, in a line.

    A stage expanded by another language runs in that language's environment, so an engine would need its containers; a
    stage that only some runners know (a Java source by its URN) would not run on the others.
    """
    parts = proto.components
    lines = []
    python_environments = {
        name
        for name, environment in parts.environments.items()
        if any(capability.startswith(_PYTHON_SDK) for capability in environment.capabilities)
    }
    for transform in parts.transforms.values():
        urn = transform.spec.urn
        stage = transform.unique_name or "pipeline"
        if transform.environment_id and transform.environment_id not in python_environments:
            lines.append(f"{stage}: its environment {transform.environment_id} is not Python's")
        if any(word in urn for word in _FOREIGN_URNS):
            lines.append(f"{stage}: {urn} is from another language")
        elif _is_executed(transform) and urn not in _KINDS:
            lines.append(f"{stage}: {urn} is not known to every engine")
        if urn == _PRIMITIVES.PAR_DO.urn:
            function = api.ParDoPayload.FromString(transform.spec.payload).do_fn.urn
            if function not in _PYTHON_FUNCTIONS:
                lines.append(f"{stage}: its function is {function}")
    for name, coder in parts.coders.items():
        if any(word in coder.spec.urn for word in _FOREIGN_URNS):
            lines.append(f"coder {name}: {coder.spec.urn} is from another language")
    return lines


class Stage(NamedTuple):
    """An executed stage: its name, its kind for people, and the names of the stages that it reads."""

    name: str
    kind: str
    inputs: tuple[str, ...]


def stages(proto: api.Pipeline) -> Iterator[Stage]:
    """Yield all executed stages, each after its inputs."""
    parts = proto.components.transforms
    producers: dict[str, str] = {}  # names of stages by their outputs

    def walk(identity: str) -> Iterator[str]:
        for child in parts[identity].subtransforms:
            yield from walk(child)
        if _is_executed(parts[identity]):
            yield identity

    ordered = [identity for root in proto.root_transform_ids for identity in walk(root)]
    for identity in ordered:
        producers.update(dict.fromkeys(parts[identity].outputs.values(), parts[identity].unique_name))
    for identity in ordered:
        transform = parts[identity]
        inputs = [producers[name] for name in sorted(transform.inputs.values()) if name in producers]
        yield Stage(transform.unique_name, _kind_of(transform), tuple(dict.fromkeys(inputs)))


def _kind_of(transform: api.PTransform) -> str:
    urn = transform.spec.urn
    kind = str(_KINDS.get(urn, urn))
    if urn == _PRIMITIVES.PAR_DO.urn:
        payload = api.ParDoPayload.FromString(transform.spec.payload)
        features = {
            "splittable": payload.restriction_coder_id,
            "state": payload.state_specs,
            "timers": payload.timer_family_specs,
        }
        used = [name for name, value in features.items() if value]
        kind += f" ({', '.join(used)})" if used else ""
    return kind


def _is_executed(transform: api.PTransform) -> bool:
    """Return whether an engine executes a transform: it is neither a composite nor an identity."""
    return not transform.subtransforms and not set(transform.outputs.values()) <= set(transform.inputs.values())


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
    from ciml.training.normalise import Normalisation

    runs = tuple(
        SnapshotRun(f"zuul~{number}~1", "train", "train", number % 2, "gated", "job", "0") for number in range(4)
    )
    files = {"train": (ExampleFile("span-1/version-1/train.parquet", "0", len(runs)),)}
    snapshot = Snapshot("example", _RESOLVED, "p", (SnapshotSpan(1, 1, files, runs),))
    shape = (_RESOLVED.windows, len(_RESOLVED.features))
    normalisation = Normalisation(np.zeros(shape), np.ones(shape))
    with tempfile.TemporaryDirectory(prefix="ciml-graph-") as folder, tft_beam.Context(temp_dir=folder):
        build_materialise(pipeline, _DATA.dataset("example").store, snapshot, Path("work"), normalisation)


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
