"""Predict as a topic processor: announcements of runs become predictions.

runs ─► predict (raw objects, the definition of the served version, the model server) ─► commit ─► publish

It loads no model: a model server does, which `ciml.serving.predict` queries. While no model is served, nothing is read
and the lag grows. This module does not import Beam, since supervisors use it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from ciml.data_root import DataRoot
from ciml.digest import canonical_json
from ciml.events.records import Batch, OffsetRange
from ciml.manifest.log import Delta, ManifestLog
from ciml.manifest.replica import LogReplica
from ciml.messages import Prediction
from ciml.pipelines.kafka.publish import Announcement, Share
from ciml.pipelines.processes import Shared
from ciml.pipelines.processor import BatchProcessor, Output, PipelineConfig, shared_replica
from ciml.serving.predict.log import Predicted, PredictionState, prediction_checkpoints, reconcile
from ciml.serving.predict.predictor import Predictor, PredictPolicy


@dataclass(frozen=True)
class PredictConfig(PipelineConfig):
    """Configuration of a predict pipeline.

    Attributes:
      data: the data root.
      server: ``host:port`` of the model server's gRPC.
      policy: the model to query, and how.
      runs_topic: topic of the runs' announcements.
      predictions_topic: topic for predictions; "" for none.
      commit_s: as of all pipelines; predictions do not wait as long as other results.
    """

    data: DataRoot
    server: str
    policy: PredictPolicy
    runs_topic: str = "runs"
    predictions_topic: str = "predictions"
    commit_s: float = field(default=1.0, kw_only=True)


_predictors = Shared[Predictor]()


def predictor(config: PredictConfig) -> Predictor:
    """Return the process's predictor, cached with its connection and definitions."""
    key = (config.data.url, config.server, config.policy)
    return _predictors.get(key, lambda: Predictor(config.data, config.server, config.policy))


def _source(model: str) -> bytes:
    return f"/ciml/models/{model}".encode()


def render_predictions(delta: Delta, model: str) -> Iterable[Announcement]:
    """Yield the messages of a delta about a model: CloudEvents in binary mode, with the prediction's id."""
    for prediction in delta["predictions"]:
        if prediction["model"] != model:
            continue
        headers = [
            ("ce_specversion", b"1.0"),
            ("ce_id", prediction["id"].encode()),
            ("ce_source", _source(model)),
            ("ce_type", b"dev.ciml.prediction.v1"),
            ("content-type", b"application/json"),
        ]
        value = cast(Prediction, {name: item for name, item in prediction.items() if name != "offset"})
        yield prediction["run_id"].encode(), canonical_json(value), headers


class PredictProcessor(BatchProcessor[PredictConfig, PredictionState, Predicted]):
    """The topic processor of one model. Others commit to the same manifest, and publish their own predictions."""

    name = "predictions"
    labels = ("Runs", "Predict")

    @property
    def topic(self) -> str:
        return self.config.runs_topic

    def replica(self) -> LogReplica[PredictionState]:
        predictions = self.config.data.predictions
        model = self.config.policy.model
        return shared_replica(
            predictions.root,
            f"predictions of {model}",
            lambda: LogReplica(ManifestLog(predictions), prediction_checkpoints(model)),
        )

    def read(self, batch: Batch) -> Predicted:
        return predictor(self.config).predict(batch)

    def empty_result(self, covers: OffsetRange) -> Predicted:
        return Predicted(covers)

    def reconcile(self, state: PredictionState, results: Sequence[Predicted], now_us: int) -> Delta | None:
        return reconcile(state, results, now_us)

    def outputs(self) -> Sequence[Output]:
        model = self.config.policy.model
        render = partial(render_predictions, model=model)
        return (Output(self.config.predictions_topic, render, Share(model, ("ce_source", _source(model)))),)

    def encode(self, result: Predicted) -> bytes:
        return canonical_json(result.to_json())

    def decode(self, data: bytes) -> Predicted:
        return Predicted.from_json(json.loads(data))
