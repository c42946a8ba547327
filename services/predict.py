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


class PredictService(TopicService[PredictionState]):
    """Predicts for announced runs. Reads nothing while no version is served."""

    poll_s = 0.5
    retry_s = (0.5, 0.5)
    stall_s = 180.0  # more than the client's time limit for a model server that does not answer
    creates_topic = True

    def __init__(self, config: PredictConfig) -> None:
        super().__init__(f"ciml-predict-{config.policy.model}", PredictProcessor(config))

    def run(self, work: Sequence[PartitionRead]) -> None:
        try:
            super().run(work)
        except NotServedError as error:
            raise NotReadyError(str(error)) from error

    def ready(self) -> str:
        config: PredictConfig = self.processor.config
        policy = config.policy
        try:
            return f"version {predictor(config).client.served_version(policy.label)}"
        except NotServedError:
            raise NotReadyError(f"no version of {policy.model} is served; push a model first (ciml refresh)") from None
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
