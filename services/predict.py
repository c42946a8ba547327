"""The predict service: predictions for runs that ingest announces. See `ciml.pipelines.predict`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ciml.errors import EngineError
from ciml.metrics import Family
from ciml.pipelines.kafka.broker import Listing, make_topic
from ciml.pipelines.kafka.plan import PartitionRead, bases
from ciml.pipelines.predict import PredictConfig, build_predict, committer, predictor
from ciml.services.service import NotReadyError, Progress, TopicService
from ciml.serving.client import NotServedError
from ciml.serving.predict.log import Predicted, PredictionState, prediction_families

if TYPE_CHECKING:
    import apache_beam as beam


class PredictService(TopicService[PredictionState]):
    """Predicts for announced runs. Reads nothing while no version is served."""

    poll_s = 0.5
    retry_s = (0.5, 0.5)
    stall_s = 180.0  # more than the client's time limit for a model server that does not answer

    def __init__(self, config: PredictConfig) -> None:
        model = config.policy.model
        committing = committer(config.data.predictions, model)
        super().__init__(f"ciml-predict-{model}", config, config.runs_topic, committing, config.cycle_messages)

    def plan(self, ends: Mapping[int, int] | None = None, *, bounded: bool = True) -> Sequence[PartitionRead] | None:
        with self.committing.state() as state:
            return self.reads(state, ends, bounded=bounded) or None

    def build(self, pipeline: beam.Pipeline, work: Sequence[PartitionRead]) -> object:
        return build_predict(pipeline, self.config, work)

    def run(self, work: Sequence[PartitionRead]) -> None:
        try:
            super().run(work)
        except NotServedError as error:
            raise NotReadyError(str(error)) from error

    def ready(self) -> str:
        policy = self.config.policy
        try:
            return f"version {predictor(self.config).client.served_version(policy.label)}"
        except NotServedError:
            raise NotReadyError(f"no version of {policy.model} is served; push a model first (ciml refresh)") from None
        except EngineError as error:
            raise NotReadyError(str(error)) from error

    def _list(self) -> Listing:
        if self._seen is None:  # with the settings of ingest's announcer, which may start later
            make_topic(self.config.kafka, self.topic, 1, {"retention.ms": "-1", "cleanup.policy": "delete"})
        return super()._list()

    def cover_bases(self, listing: Listing) -> None:
        with self.committing.state() as state:
            expired = [Predicted(batch.covers) for batch in bases(state, listing) if batch.covers]
        if expired:
            committer(self.config.data.predictions, self.config.policy.model).commit(expired)

    def progress(self, state: PredictionState) -> Progress:
        counts = {
            f"by {model} {version}": number
            for (model, version), number in sorted(state.predicted.items())
            if state.counts(model)
        }
        counts |= dict(sorted(state.unpredictable.items()))
        facts = {"version": state.version, "last_commit_us": state.time_us or None, "counts": counts}
        return Progress(state.version, facts=facts)

    def families(self, state: PredictionState) -> Iterable[Family]:
        return prediction_families(state)
