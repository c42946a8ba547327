"""Predict: announcements on the topic `runs` to predictions, their manifest and the topic `predictions`.

runs ─► predict (raw objects, the definition of the served version, the model server) ─► commit ─► publish

Offsets are committed with the predictions, so a batch that is read again changes nothing. While no model is served,
nothing is read and the lag grows.

Predictions: announcements on the topic `runs` to predictions, their manifest and the topic `predictions`.

Uses `ciml.serving.predict`. It loads no model: a model server does.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import apache_beam as beam

from ciml.data_root import DataRoot
from ciml.digest import canonical_json
from ciml.events.records import Batch
from ciml.kafka.options import KafkaOptions, ReadOptions
from ciml.manifest.checkpoints import Limits
from ciml.manifest.log import Delta, ManifestLog
from ciml.manifest.replica import LogReplica
from ciml.messages import Prediction
from ciml.pipelines.ingest.pipeline import Gather
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.pipelines.kafka.publish import Announcement, Projection, Share, projection
from ciml.pipelines.kafka.source import ReadFromKafka
from ciml.serving.predict.log import Predicted, PredictionState, predictions_of_model, reconcile
from ciml.serving.predict.predictor import Predictor, PredictPolicy
from ciml.storage import Store
from ciml.transforms.ingest.beam import COMMIT
from ciml.transforms.ingest.run_stages import keep_error

_KEY = "predictions"


@dataclass(frozen=True)
class PredictConfig:
    """Configuration of a predict pipeline.

    Attributes:
      data: the data root.
      kafka: connection to the broker.
      server: ``host:port`` of the model server's gRPC.
      policy: the model to query, and how.
      runs_topic: topic of the runs' announcements.
      predictions_topic: topic for predictions; "" for none.
      read: how partitions are read. The served version is queried once a batch.
      cycle_messages: most announcements in a micro-batch, which a kill loses at most.
      commit_s: longest wait of a batch of predictions for others before the commit, on Flink.
      commit_batches: number of waiting batches that triggers a commit.
      maintains: whether the committing stage also maintains the manifest, where no supervisor does.
    """

    data: DataRoot
    kafka: KafkaOptions
    server: str
    policy: PredictPolicy
    runs_topic: str = "runs"
    predictions_topic: str = "predictions"
    read: ReadOptions = field(default_factory=ReadOptions)
    cycle_messages: int = 2000
    commit_s: float = 1.0
    commit_batches: int = 20
    maintains: bool = False

    def projection(self) -> Projection | None:
        """Return the process's projection for the predictions of its model; other models publish their own."""
        if not self.predictions_topic:
            return None
        share = Share(self.policy.model, ("ce_source", _source(self.policy.model)))
        render = partial(render_predictions, model=self.policy.model)
        return projection(ManifestLog(self.data.predictions), self.predictions_topic, render, self.kafka, share)


class PredictionCommitter(LogReplica[PredictionState]):
    """A replica of the predictions' manifest that commits to it for one model. Thread-safe."""

    def __init__(
        self, predictions: Store, model: str, clock: Callable[[], float] = time.time, limits: Limits | None = None
    ) -> None:
        super().__init__(ManifestLog(predictions, clock=clock), predictions_of_model(model), limits)

    def commit(self, ranges: Iterable[Predicted]) -> int | None:
        """Commit the uncovered part of ``ranges``. Return the version, or None if nothing was left."""
        predicted = list(ranges)
        return self.append(lambda state: reconcile(state, predicted, int(self.log.clock() * 1e6)))


_committers: dict[tuple[int, str, str], PredictionCommitter] = {}
_predictors: dict[tuple[int, str, str, PredictPolicy], Predictor] = {}
_lock = threading.Lock()


def committer(predictions: Store, model: str) -> PredictionCommitter:
    """Return the process's committer of a model's predictions below a folder."""
    key = (os.getpid(), predictions.root, model)
    with _lock:
        return _committers.setdefault(key, PredictionCommitter(predictions, model))


def predictor(config: PredictConfig) -> Predictor:
    """Return the process's predictor, cached with its connection and definitions."""
    key = (os.getpid(), config.data.url, config.server, config.policy)
    with _lock:
        if key not in _predictors:
            _predictors[key] = Predictor(config.data, config.server, config.policy)
        return _predictors[key]


def _source(model: str) -> bytes:
    return f"/ciml/models/{model}".encode()


def render_predictions(delta: Delta, model: str) -> Iterable[Announcement]:
    """Yield the messages of a delta about a model: CloudEvents in binary mode, with the prediction's id."""
    for one in delta["predictions"]:
        if one["model"] != model:
            continue
        headers = [
            ("ce_specversion", b"1.0"),
            ("ce_id", one["id"].encode()),
            ("ce_source", _source(model)),
            ("ce_type", b"dev.ciml.prediction.v1"),
            ("content-type", b"application/json"),
        ]
        value = cast(Prediction, {name: item for name, item in one.items() if name != "offset"})
        yield one["run_id"].encode(), canonical_json(value), headers


class Predict(beam.DoFn):
    """Batches of announcements -> (key, their predictions, serialised)."""

    def __init__(self, config: PredictConfig) -> None:
        self._config = config

    def process(self, batch: Batch) -> Iterator[tuple[str, bytes]]:
        with keep_error():
            yield _KEY, canonical_json(predictor(self._config).predict(batch).to_json())


class CommitPredictions(beam.DoFn):
    """(key, serialised ranges) -> the version that commits them; nothing if all were committed before."""

    def __init__(self, config: PredictConfig) -> None:
        self._config = config

    def process(self, element: tuple[str, Iterable[bytes]]) -> Iterator[int]:
        committing = committer(self._config.data.predictions, self._config.policy.model)
        with keep_error():
            with COMMIT.timed("predictions"):
                version = committing.commit(Predicted.from_json(json.loads(one)) for one in element[1])
            if self._config.maintains:
                committing.maintain()
        if version is not None:
            yield version


class PublishPredictions(beam.DoFn):
    """Publishes all commits that were not published. The incoming version is only a trigger."""

    def __init__(self, config: PredictConfig) -> None:
        self._config = config

    def process(self, version: int) -> Iterator[int]:
        with keep_error():
            publisher = self._config.projection()
            if publisher is not None:
                publisher.announce()
        yield version


def build_predict(
    pipeline: beam.Pipeline, config: PredictConfig, reads: Sequence[PartitionRead]
) -> beam.PCollection[int]:
    """Wire a predict pipeline: bounded if the ``reads`` are, else unbounded. Return the committed versions."""
    bounded = all(read.end is not None for read in reads)
    predicted = (
        pipeline
        | "Runs" >> ReadFromKafka(config.kafka, reads, config.read)
        | "Predict" >> beam.ParDo(Predict(config)).with_output_types(tuple[str, bytes])
    )
    gathered = predicted | (
        beam.GroupByKey() if bounded else "Gather" >> beam.ParDo(Gather(config.commit_s, config.commit_batches))
    )
    return (
        gathered
        | "Commit" >> beam.ParDo(CommitPredictions(config))
        | "Publish" >> beam.ParDo(PublishPredictions(config))
    )
