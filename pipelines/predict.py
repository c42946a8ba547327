"""Predict as a topic processor: announcements of runs become predictions.

runs ─► predict (raw objects, the definition of the model, the model) ─► commit ─► publish

The model is a version that a model server has loaded, or the last candidate of a trainer, which this process loads.
While there is none, nothing is read and the lag grows. This module does not import Beam, since supervisors use it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from ciml.data_root import DataRoot
from ciml.digest import canonical_json
from ciml.errors import IntegrityError
from ciml.events.records import Batch, OffsetRange
from ciml.manifest.log import Delta, ManifestLog
from ciml.manifest.replica import LogReplica
from ciml.messages import CandidatePrediction, Prediction
from ciml.pipelines.kafka.publish import Announcement, Share
from ciml.pipelines.processes import Shared
from ciml.pipelines.processor import BatchProcessor, Output, PipelineConfig, shared_replica
from ciml.serving.predict.log import (
    Predicted,
    PredictionState,
    candidate_stream,
    is_of_candidate,
    prediction_checkpoints,
    reconcile,
    shadow_stream,
    stream_of,
)
from ciml.serving.predict.predictor import Announcement as Run
from ciml.serving.predict.predictor import Predictor, PredictPolicy
from ciml.serving.predict.sources import ModelSource, ServedVersions
from ciml.serving.registry import CANARY, SHADOW
from ciml.verdicts.evidence.output import evidence_of_output

_log = logging.getLogger(__name__)

#: Time for reading the outputs of runs that the failure signatures do not have yet, before a prediction, s.
_EXPLAIN_S = 0.1
#: Types of CloudEvents.
PREDICTION = b"dev.ciml.prediction.v1"
CANDIDATE_PREDICTION = b"dev.ciml.candidate.prediction.v1"


@dataclass(frozen=True)
class PredictConfig(PipelineConfig):
    """Configuration of a predict pipeline.

    Attributes:
      data: the data root.
      server: ``host:port`` of the model server's gRPC; "" for candidates.
      policy: the model to query, and how.
      candidate: whether its last candidate predicts, and not a served version.
      allow_modules: modules that a kept estimator may import, besides those of its library.
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
    candidate: bool = field(default=False, kw_only=True)
    allow_modules: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def stream(self) -> str:
        """The name of its stream in the manifest; see `ciml.serving.predict.log.stream_of`."""
        if self.policy.label == SHADOW:
            return shadow_stream(self.policy.model)
        return candidate_stream(self.policy.model) if self.candidate else self.policy.model


_predictors = Shared[Predictor]()


def predictor(config: PredictConfig) -> Predictor:
    """Return the process's predictor, cached with its connection or model, and definitions."""
    key = (config.data.url, config.server, config.policy, config.candidate, config.allow_modules)
    explain = partial(explain_output, config.data)

    def make() -> Predictor:
        canary = _served(config, CANARY) if config.policy.canary_share else None
        return Predictor(config.data, model_source(config), config.policy, explain=explain, canary=canary)

    return _predictors.get(key, make)


def explain_output(data: DataRoot, run: Run) -> dict[str, Any]:
    """Return what the stored output of an announced run shows, as the field ``output`` of a prediction's record.

    Nothing for a run without an output, or with a damaged one: its verdict does not depend on it.

    Raises:
      EngineError: the store does not answer.
    """
    if run.facts is None or run.output is None or run.output.missing:
        return {}
    try:
        evidence = evidence_of_output(data, run.facts, run.output, budget_s=_EXPLAIN_S)
    except IntegrityError as error:
        _log.warning("run %.200s: no evidence of its output: %s", run.run_id, error)
        return {}
    return {"output": evidence.record()}


def model_source(config: PredictConfig) -> ModelSource:
    """Return the source of the model that a configuration names."""
    policy = config.policy
    if config.candidate:
        from ciml.training.candidate_source import Candidates

        return Candidates(config.data, policy.model, config.allow_modules)
    return _served(config, policy.label)


def _served(config: PredictConfig, label: str) -> ServedVersions:
    policy = config.policy
    return ServedVersions(config.data, config.server, policy.model, label, policy.client)


def _source(stream: str) -> bytes:
    return f"/ciml/models/{stream}".encode()


def render_predictions(delta: Delta, stream: str) -> Iterable[Announcement]:
    """Yield the messages of a delta in a stream: CloudEvents in binary mode, with the prediction's id."""
    for prediction in delta["predictions"]:
        if stream_of(prediction) != stream:
            continue
        headers = [
            ("ce_specversion", b"1.0"),
            ("ce_id", prediction["id"].encode()),
            ("ce_source", _source(stream)),
            ("ce_type", CANDIDATE_PREDICTION if is_of_candidate(prediction) else PREDICTION),
            ("content-type", b"application/json"),
        ]
        message = {name: item for name, item in prediction.items() if name != "offset"}
        value = cast(Prediction | CandidatePrediction, message)
        yield prediction["run_id"].encode(), canonical_json(value), headers


class PredictProcessor(BatchProcessor[PredictConfig, PredictionState, Predicted]):
    """The topic processor of one stream. Others commit to the same manifest, and publish their own predictions."""

    name = "predictions"
    labels = ("Runs", "Predict")

    @property
    def topic(self) -> str:
        return self.config.runs_topic

    def replica(self) -> LogReplica[PredictionState]:
        predictions = self.config.data.predictions
        stream = self.config.stream
        return shared_replica(
            predictions.root,
            f"predictions of {stream}",
            lambda: LogReplica(ManifestLog(predictions), prediction_checkpoints(stream)),
        )

    def read(self, batch: Batch) -> Predicted:
        return predictor(self.config).predict(batch)

    def empty_result(self, covers: OffsetRange) -> Predicted:
        return Predicted(covers)

    def reconcile(self, state: PredictionState, results: Sequence[Predicted], now_us: int) -> Delta | None:
        return reconcile(state, results, now_us)

    def outputs(self) -> Sequence[Output]:
        if self.config.policy.label == SHADOW:
            return ()  # its answers are compared, and not published
        stream = self.config.stream
        render = partial(render_predictions, stream=stream)
        return (Output(self.config.predictions_topic, render, Share(stream, ("ce_source", _source(stream)))),)

    def encode(self, result: Predicted) -> bytes:
        return canonical_json(result.to_json())

    def decode(self, data: bytes) -> Predicted:
        return Predicted.from_json(json.loads(data))
