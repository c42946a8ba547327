"""The predict service: predictions for runs that ingest announces. See `ciml.pipelines.predict`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ciml.errors import EngineError
from ciml.metrics import Family
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.pipelines.predict import PredictConfig, PredictProcessor, predictor
from ciml.services.service import NotReadyError, TopicService
from ciml.serving.client import NotServedError
from ciml.serving.predict.log import PredictionState, prediction_families
from ciml.serving.registry import SHADOW

_NEEDS_PROCESS = (
    "a candidate predicts in the service's own process, since its files are on this machine; use --engine micro-batches"
)


class PredictService(TopicService[PredictionState]):
    """Predicts for announced runs. Reads nothing while no version is served, or the last candidate cannot be loaded."""

    poll_s = 0.5
    retry_s = (0.5, 0.5)
    stall_s = 180.0  # more than the client's time limit for a model server that does not answer
    creates_topic = True

    def __init__(self, config: PredictConfig) -> None:
        super().__init__(f"ciml-predict-{config.stream.replace('/', '-')}", PredictProcessor(config))
        if config.candidate:
            self.excludes_flink = _NEEDS_PROCESS

    def run(self, work: Sequence[PartitionRead]) -> None:
        try:
            super().run(work)
        except NotServedError as error:
            raise NotReadyError(str(error)) from error

    def ready(self) -> str:
        config: PredictConfig = self.processor.config
        try:
            return predictor(config).source.ready()
        except NotServedError as error:
            if config.candidate:
                raise NotReadyError(str(error)) from error
            model = config.policy.model
            if config.policy.label == SHADOW:
                raise NotReadyError(f"{model} has no shadow: ciml models promote {model} --label {SHADOW}") from None
            raise NotReadyError(f"no version of {model} is served; push a model first (ciml refresh)") from None
        except EngineError as error:
            raise NotReadyError(str(error)) from error

    def counts(self, state: PredictionState) -> dict[str, int]:
        predicted = {
            f"by {model} {version}": number
            for (model, version), number in sorted(state.predicted.items())
            if state.includes(model)
        }
        return predicted | dict(sorted(state.unpredictable.items()))

    def families(self, state: PredictionState) -> Iterable[Family]:
        return prediction_families(state)
