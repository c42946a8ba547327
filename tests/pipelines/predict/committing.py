"""Commits to a manifest of predictions, without a service and its pipeline."""

from __future__ import annotations

from collections.abc import Iterable

from ciml.manifest.checkpoints import Limits
from ciml.manifest.log import ManifestLog
from ciml.manifest.replica import LogReplica
from ciml.serving.predict.log import Predicted, PredictionState, prediction_checkpoints, reconcile
from ciml.storage import Store


class Predictions(LogReplica[PredictionState]):
    """A replica of the manifest, for one model."""

    def __init__(self, predictions: Store, model: str, limits: Limits | None = None) -> None:
        super().__init__(ManifestLog(predictions), prediction_checkpoints(model), limits)

    def commit(self, ranges: Iterable[Predicted]) -> int | None:
        """Commit the uncovered part of ``ranges``. Return the version, or None if nothing was left."""
        predicted = list(ranges)
        return self.append(lambda state: reconcile(state, predicted, int(self.log.clock() * 1e6)))
