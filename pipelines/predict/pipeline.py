"""Predict: announcements on the topic `runs` to predictions, their manifest and the topic `predictions`.

runs ─► predict (raw objects, the definition of the served version, the model server) ─► commit ─► publish

Offsets are committed with the predictions, as everywhere: a batch that is read again changes nothing. While no model
is served nothing is read, and the lag says so.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import apache_beam as beam

from ciml.data_root import DataRoot
from ciml.digest import canonical_json
from ciml.events.records import Batch
from ciml.manifest.checkpoints import Limits
from ciml.manifest.log import Delta, ManifestLog
from ciml.manifest.replica import LogReplica
from ciml.storage.open import Store
from pipelines.ingest.pipeline import Gather
from pipelines.kafka.client import KafkaOptions
from pipelines.kafka.publish import Announcement, Projection, projection
from pipelines.kafka.source import PartitionRead, ReadFromKafka, ReadOptions
from serving.predict.log import PREDICTIONS, Predicted, PredictionState, reconcile
from serving.predict.predictor import Predictor, PredictPolicy
from transforms.ingest.errors import keep_error
from transforms.ingest.timings_beam import COMMIT

_KEY = "predictions"


@dataclass(frozen=True)
class PredictConfig:
    """What a predict is made of.

    Attributes:
      data: the data root.
      kafka: how to reach the broker.
      server: ``host:port`` of the model server's gRPC.
      policy: which model is asked, and how.
      runs_topic: where runs are announced.
      predictions_topic: where predictions are published; "" for nowhere.
      read: how partitions are read; a batch is one look for the served version, and as many calls as it needs.
      cycle_messages: the most announcements that one micro-batch takes: what a kill costs at most.
      commit_s: the longest that a batch of predictions waits for others before it is committed, on Flink.
      commit_batches: how many do not wait any longer.
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

    def projection(self) -> Projection | None:
        """What publishes predictions, in this process."""
        if not self.predictions_topic:
            return None
        return projection(ManifestLog(self.data.predictions), self.predictions_topic, render_predictions, self.kafka)


class PredictionCommitter(LogReplica[PredictionState]):
    """The predictions' manifest and what its deltas add up to. Safe to use from threads."""

    def __init__(
        self, predictions: Store, clock: Callable[[], float] = time.time, limits: Limits | None = None
    ) -> None:
        super().__init__(ManifestLog(predictions, clock=clock), PREDICTIONS, limits)

    def commit(self, ranges: Iterable[Predicted]) -> int | None:
        """Commit what of ``ranges`` is not covered yet; return the version, or None where nothing was left."""
        whole = list(ranges)
        return self.append(lambda state: reconcile(state, whole, int(self.log.clock() * 1e6)))


_committers: dict[tuple[int, str], PredictionCommitter] = {}
_predictors: dict[tuple[int, str, str, PredictPolicy], Predictor] = {}
_lock = threading.Lock()


def committer(predictions: Store) -> PredictionCommitter:
    """Return the process's committer of predictions below a folder."""
    with _lock:
        return _committers.setdefault((os.getpid(), predictions.root), PredictionCommitter(predictions))


def predictor(config: PredictConfig) -> Predictor:
    """The process's predictor: a connection and the definitions are kept."""
    key = (os.getpid(), config.data.url, config.server, config.policy)
    with _lock:
        if key not in _predictors:
            _predictors[key] = Predictor(config.data, config.server, config.policy)
        return _predictors[key]


def render_predictions(delta: Delta) -> Iterable[Announcement]:
    """Yield the messages of a delta: CloudEvents in binary mode, whose id is the prediction's."""
    for one in delta["predictions"]:
        headers = [
            ("ce_specversion", b"1.0"),
            ("ce_id", one["id"].encode()),
            ("ce_source", f"/ciml/models/{one['model']}".encode()),
            ("ce_type", b"dev.ciml.prediction.v1"),
            ("content-type", b"application/json"),
        ]
        value = {name: item for name, item in one.items() if name != "offset"}
        yield one["run_id"].encode(), canonical_json(value), headers


class Predict(beam.DoFn):
    """Batches of announcements -> (key, what became of them, sealed)."""

    def __init__(self, config: PredictConfig) -> None:
        self._config = config

    def process(self, batch: Batch) -> Iterator[tuple[str, bytes]]:
        with keep_error():
            yield _KEY, canonical_json(predictor(self._config).predict(batch).to_json())


class CommitPredictions(beam.DoFn):
    """(key, sealed ranges) -> the version that holds them; nothing where all of it was committed before."""

    def __init__(self, config: PredictConfig) -> None:
        self._config = config

    def process(self, element: tuple[str, Iterable[bytes]]) -> Iterator[int]:
        with keep_error(), COMMIT.timed("predictions"):
            version = committer(self._config.data.predictions).commit(
                Predicted.from_json(json.loads(one)) for one in element[1]
            )
        if version is not None:
            yield version


class PublishPredictions(beam.DoFn):
    """Publishes what is committed and was not published. The version that comes in is only the occasion."""

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
    """Wire a predict: bounded where the ``reads`` are, else for ever. Return the versions that were committed."""
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
