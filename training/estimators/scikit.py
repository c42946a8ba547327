"""Estimators of scikit-learn over unrolled features (usr0 … usrL-1, 1m0 … 1mL-1) or summaries.

A fitted estimator is not stored: scikit-learn's formats run code when they are read. Experiment, snapshot and seed
reproduce it. Its predictions and metrics are stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ciml.errors import CimlError, NoTrainingDataError
from ciml.tensorflow import threads
from ciml.training.estimators.base import Rows
from ciml.training.experiment import Experiment

#: Computes an estimator's input from inputs float32 [n, L, F] and n_windows int32 [n].
Features = Callable[[np.ndarray, np.ndarray], Any]

_CALIBRATION_FOLDS = 5


@dataclass(frozen=True)
class FittedScikit:
    """A fitted estimator of scikit-learn, as `ciml.training.estimators.base.Fitted`."""

    model: Any
    features: Features
    classes: int
    runs: int
    seconds: float

    def predict(self, inputs: np.ndarray, n_windows: np.ndarray) -> np.ndarray:
        answers = np.zeros((len(inputs), self.classes))
        if len(inputs):
            answers[:, self.model.classes_] = self.model.predict_proba(self.features(inputs, n_windows))
        return answers

    def to_json(self) -> dict[str, Any]:
        return {"runs": self.runs}


def fit_scikit(
    experiment: Experiment, train: Rows, dev: Rows | None, classes: int, build: Any, features: Features
) -> FittedScikit:
    """Fit an estimator of this module or of `ciml.training.estimators.boosted`.

    Args:
      experiment: its ``parameters`` are passed to the estimator.
      train: n rows, normalised.
      dev: rows for early stopping.
      classes: C.
      build: a builder such as the functions below.
      features: `unrolled`, or the builder's own function.

    Raises:
      NoTrainingDataError: if a class has too few runs.
      CimlError: for an invalid parameter.
    """
    start = time.perf_counter()
    counts = np.bincount(train.labels, minlength=classes)
    if np.count_nonzero(counts) < 2:
        raise NoTrainingDataError(f"{experiment.estimator} needs training runs of at least two classes")
    further: dict[str, Any] = {}
    if dev is not None:
        further = {"X_val": features(dev.inputs, dev.n_windows), "y_val": dev.labels}
    try:
        model = build(experiment, int(counts[counts > 0].min()))
        model.fit(features(train.inputs, train.n_windows), train.labels, **further)
    except (TypeError, ValueError) as error:
        raise CimlError(f"{experiment.estimator}: {' '.join(str(error).split())}") from None
    return FittedScikit(model, features, classes, len(train), time.perf_counter() - start)


def svm(experiment: Experiment, smallest: int) -> Any:
    """Build a linear support vector machine, as in the original.

    Platt's sigmoid, fitted on held-out folds, turns its margins into probabilities.
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import StratifiedKFold
    from sklearn.svm import LinearSVC

    if smallest < 2:
        raise NoTrainingDataError("svm needs at least two training runs of each class to calibrate probabilities")
    machine = LinearSVC(**_options(experiment, {"max_iter": 10_000}))
    folds = StratifiedKFold(min(_CALIBRATION_FOLDS, smallest), shuffle=True, random_state=experiment.seed)
    return CalibratedClassifierCV(machine, cv=folds, ensemble=False)


def random_forest(experiment: Experiment, smallest: int) -> Any:
    """Build a random forest."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_jobs=threads(), **_options(experiment, {"n_estimators": 300}))


def hist_gradient_boosting(experiment: Experiment, smallest: int) -> Any:
    """Build histogram gradient boosting. Early stopping uses dev."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    patience = experiment.early_stopping
    stopping: dict[str, Any] = {"early_stopping": patience is not None}
    if patience is not None:
        stopping["n_iter_no_change"] = patience
    return HistGradientBoostingClassifier(**_options(experiment, stopping))


def _options(experiment: Experiment, defaults: dict[str, Any]) -> dict[str, Any]:
    weights = {} if experiment.class_weights == "none" else {"class_weight": experiment.class_weights}
    return {**defaults, **experiment.parameters, **weights, "random_state": experiment.seed}


def unrolled(inputs: np.ndarray, n_windows: np.ndarray) -> np.ndarray:
    """Reshape [n, L, F] to [n, F * L], feature by feature."""
    return inputs.transpose(0, 2, 1).reshape(len(inputs), -1)
