"""Estimators by name, behind one interface: `fit` takes rows and returns a `Fitted`.

Those of scikit-learn learn unrolled features (usr0 … usrL-1, 1m0 … 1mL-1) or summaries. A fitted one is not stored:
scikit-learn's formats run code when they are read. Experiment, snapshot and seed reproduce it. Its predictions and
metrics are stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ciml.datasets.definition import ResolvedDefinition
from ciml.errors import CimlError, NoTrainingDataError, UnknownEstimatorError
from ciml.events.outcomes import CAUSE
from ciml.progress import Progress
from ciml.tensorflow import seeded, threads
from ciml.training.estimators import boosted, networks
from ciml.training.estimators.base import Fitted, Rows, Watch
from ciml.training.experiment import Experiment
from ciml.training.normalise import Normalisation

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "Fitted",
    "Rows",
    "Watch",
    "build_model",
    "check_experiment",
    "check_use",
    "fit",
    "inputs_for",
]

_ALL = frozenset({"name", "estimator", "class_weights", "calibration", "coverage", "seed"})
_LOOP = frozenset(
    {"steps", "epochs", "batch_size", "optimizer", "learning_rate", "schedule", "early_stopping"}
    | {"hidden_layers", "dropout", "l2"}
)
_CALIBRATION_FOLDS = 5
_Features = Callable[[np.ndarray, np.ndarray], Any]

#: Parameters of scikit-learn that are keys of an experiment.
_OWN_KEYS = {"random_state": "seed", "class_weight": "class_weights", "n_iter_no_change": "early_stopping"}


@dataclass(frozen=True)
class Estimator:
    """An estimator for experiments.

    Attributes:
      build: for a network, a function of (experiment, L, F, C) that returns a Keras model; else of
        (experiment, runs of the smallest class) that returns an estimator of scikit-learn.
      keys: the keys of an experiment that it uses.
      network: whether it is a Keras network, which can be served.
      over_time: whether it uses the time axis, which aggregated examples lack.
      summarises: whether it computes summaries of the windows itself, from inputs that are not normalised.
    """

    build: Callable[..., Any]
    keys: frozenset[str]
    network: bool = False
    over_time: bool = False
    summarises: bool = False


def _svm(experiment: Experiment, smallest: int) -> Any:
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


def _random_forest(experiment: Experiment, smallest: int) -> Any:
    """Build a random forest."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_jobs=threads(), **_options(experiment, {"n_estimators": 300}))


def _hist_gradient_boosting(experiment: Experiment, smallest: int) -> Any:
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


#: Estimators by name.
ESTIMATORS: dict[str, Estimator] = {
    "dnn": Estimator(networks.dnn, _ALL | _LOOP | {"activation", "batch_norm"}, network=True),
    "cnn": Estimator(
        networks.cnn, _ALL | _LOOP | {"activation", "batch_norm", "kernel_size"}, network=True, over_time=True
    ),
    "gru": Estimator(networks.gru, _ALL | _LOOP, network=True, over_time=True),
    "svm": Estimator(_svm, _ALL | {"parameters"}),
    "random_forest": Estimator(_random_forest, _ALL | {"parameters"}),
    "hist_gradient_boosting": Estimator(_hist_gradient_boosting, _ALL | {"parameters", "early_stopping"}),
    "boosted_summaries": Estimator(boosted.boosted_summaries, _ALL | {"parameters"}, over_time=True, summarises=True),
}


def estimator_of(experiment: Experiment) -> Estimator:
    """Return the experiment's estimator. Raises `UnknownEstimatorError` for an unknown name."""
    estimator = ESTIMATORS.get(experiment.estimator)
    if estimator is None:
        names = ", ".join(sorted(ESTIMATORS))
        raise UnknownEstimatorError(f"unknown estimator {experiment.estimator!r}; choose from {names}")
    return estimator


def inputs_for(experiment: Experiment, normalisation: Normalisation, rows: Rows) -> Rows:
    """Return rows as the experiment's estimator takes them: normalised, or as recorded."""
    if estimator_of(experiment).summarises:
        return rows
    return Rows(normalisation.apply(rows.inputs), rows.n_windows, rows.labels)


def check_use(experiment: Experiment, dataset: ResolvedDefinition, *, served: bool = False) -> None:
    """Check that an experiment can use a data set.

    Args:
      experiment: the experiment to train.
      dataset: the data set's definition.
      served: whether the model is to be exported, which only networks can be.

    Raises:
      CimlError: with the remedy.
    """
    estimator = estimator_of(experiment)
    definition = dataset.definition
    if served and not estimator.network:
        raise CimlError(f"estimator {experiment.estimator!r} is not a network; only networks can be served")
    if served and definition.class_label == CAUSE and not experiment.calibration:
        raise CimlError(
            f"data set {definition.name!r} has causes, and a model without calibration gives no verdicts; set "
            'calibration = "auto" in the experiment'
        )
    if estimator.over_time and definition.aggregation_functions:
        raise CimlError(
            f"estimator {experiment.estimator} needs windows, but data set {definition.name!r} holds aggregations; "
            "choose another estimator"
        )


def check_experiment(experiment: Experiment) -> None:
    """Check an experiment without data.

    Raises:
      CimlError: for an unknown estimator, an unused key, or an invalid parameter.
    """
    estimator = estimator_of(experiment)
    usual = Experiment()
    for key in Experiment.__struct_fields__:
        if key not in estimator.keys and getattr(experiment, key) != getattr(usual, key):
            raise CimlError(f"experiment: {key}: not used by estimator {experiment.estimator}; remove it")
    for parameter, key in _OWN_KEYS.items():
        if parameter in experiment.parameters:
            raise CimlError(f"experiment: parameters.{parameter}: use the experiment's key {key}")
    if not estimator.network:
        labels = np.arange(12) % 2  # a dozen rows: scikit-learn validates parameters in fit
        rows = Rows(np.random.default_rng(0).random((12, 1, 2), np.float32), np.ones(12, np.int32), labels)
        fit(experiment, rows, rows if experiment.early_stopping else None, 2)


def fit(
    experiment: Experiment,
    train: Rows,
    dev: Rows | None,
    classes: int,
    *,
    tensorboard: Path | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Fitted:
    """Fit the experiment's estimator. Deterministic.

    Args:
      experiment: the experiment to fit.
      train: training rows of `inputs_for`.
      dev: rows for early stopping of `inputs_for`; None without.
      classes: C.
      tensorboard: folder of a network's TensorBoard event files; None writes none.
      progress: called after each epoch of a network.
      watch: called after each epoch of a network; an exception from it ends the training.

    Raises:
      CimlError: if there is no training run, or fitting fails.
    """
    estimator = estimator_of(experiment)
    if len(train) == 0:
        raise NoTrainingDataError("no training runs")
    if not estimator.network:
        features = boosted.Windows if estimator.summarises else _unrolled
        return _fit_scikit(experiment, train, dev, classes, estimator.build, features)
    _, windows, features = train.inputs.shape
    model = build_model(experiment, windows, features, classes)
    batches = networks.Resident(train, experiment.batch_size, experiment.seed)
    return networks.fit_network(
        experiment, model, batches, dev, tensorboard=tensorboard, progress=progress, watch=watch
    )


def build_model(experiment: Experiment, windows: int, features: int, classes: int) -> Any:
    """Build a new Keras model whose weights follow from the experiment's seed.

    Args:
      experiment: the experiment to build.
      windows: L, windows (or functions) of an example.
      features: F.
      classes: C.

    Raises:
      CimlError: for an unknown estimator, or one that is not a network.
    """
    estimator = estimator_of(experiment)
    if not estimator.network:
        raise CimlError(f"estimator {experiment.estimator!r} is not a network; only networks can be served")
    with seeded(experiment.seed):
        return estimator.build(experiment, windows, features, classes)


@dataclass(frozen=True)
class _FittedScikit:
    """A fitted estimator of scikit-learn, as `Fitted`."""

    model: Any
    features: _Features
    classes: int
    runs: int

    def predict(self, inputs: np.ndarray, n_windows: np.ndarray) -> np.ndarray:
        answers = np.zeros((len(inputs), self.classes))
        if len(inputs):
            answers[:, self.model.classes_] = self.model.predict_proba(self.features(inputs, n_windows))
        return answers

    def to_json(self) -> dict[str, Any]:
        return {"runs": self.runs}


def _fit_scikit(
    experiment: Experiment,
    train: Rows,
    dev: Rows | None,
    classes: int,
    build: Any,
    features: _Features,
) -> _FittedScikit:
    """Fit an estimator of scikit-learn, or of `ciml.training.estimators.boosted`.

    Args:
      experiment: its ``parameters`` are passed to the estimator.
      train: n rows, normalised.
      dev: rows for early stopping.
      classes: C.
      build: `Estimator.build`.
      features: computes the estimator's input from inputs float32 [n, L, F] and n_windows int32 [n].

    Raises:
      NoTrainingDataError: if a class has too few runs.
      CimlError: for an invalid parameter.
    """
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
    return _FittedScikit(model, features, classes, len(train))


def _unrolled(inputs: np.ndarray, n_windows: np.ndarray) -> np.ndarray:
    """Reshape [n, L, F] to [n, F * L], feature by feature."""
    return inputs.transpose(0, 2, 1).reshape(len(inputs), -1)
