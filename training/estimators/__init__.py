"""Estimators by name, behind one interface: `fit` takes rows and gives what predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ciml.datasets.definition import ResolvedDefinition
from ciml.errors import CimlError
from training.estimators import boosted, networks, scikit
from training.estimators.base import Fitted, Progress, Rows, Watch
from training.experiment import Experiment
from training.normalise import Normalisation
from training.runtime import keras

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "Fitted",
    "Progress",
    "Rows",
    "Watch",
    "build_model",
    "check_experiment",
    "check_use",
    "fit",
    "inputs_for",
]

_ALL = frozenset({"name", "estimator", "class_weights", "seed"})
_LOOP = frozenset(
    {"steps", "epochs", "batch_size", "optimizer", "learning_rate", "schedule", "early_stopping"}
    | {"hidden_layers", "dropout", "l2"}
)


#: Parameters of scikit-learn that an experiment has keys for.
_OWN_KEYS = {"random_state": "seed", "class_weight": "class_weights", "n_iter_no_change": "early_stopping"}


@dataclass(frozen=True)
class Estimator:
    """An estimator that experiments may name.

    Attributes:
      build: of a network, from (experiment, L, F, C) to a Keras model; else as in `training.estimators.scikit`.
      keys: the keys of an experiment that mean something to it.
      network: whether it is a Keras network: those can be served.
      over_time: whether it looks along the time axis, so that an example has to hold windows.
      summarises: whether it sums the windows up itself: it is given what was recorded, not normalised.
    """

    build: Callable[..., Any]
    keys: frozenset[str]
    network: bool = False
    over_time: bool = False
    summarises: bool = False


#: The estimators by name.
ESTIMATORS: dict[str, Estimator] = {
    "dnn": Estimator(networks.dnn, _ALL | _LOOP | {"activation", "batch_norm"}, network=True),
    "cnn": Estimator(
        networks.cnn, _ALL | _LOOP | {"activation", "batch_norm", "kernel_size"}, network=True, over_time=True
    ),
    "gru": Estimator(networks.gru, _ALL | _LOOP, network=True, over_time=True),
    "svm": Estimator(scikit.svm, _ALL | {"parameters"}),
    "random_forest": Estimator(scikit.random_forest, _ALL | {"parameters"}),
    "hist_gradient_boosting": Estimator(scikit.hist_gradient_boosting, _ALL | {"parameters", "early_stopping"}),
    "boosted_summaries": Estimator(boosted.boosted_summaries, _ALL | {"parameters"}, over_time=True, summarises=True),
}


def estimator_of(experiment: Experiment) -> Estimator:
    """Return the experiment's estimator. Raises `CimlError` where there is none of this name."""
    found = ESTIMATORS.get(experiment.estimator)
    if found is None:
        known = ", ".join(sorted(ESTIMATORS))
        raise CimlError(f"estimator {experiment.estimator!r}: there is none of this name; known are {known}")
    return found


def inputs_for(experiment: Experiment, normalisation: Normalisation, rows: Rows) -> Rows:
    """Rows as the experiment's estimator takes them: normalised, or as they were recorded."""
    if estimator_of(experiment).summarises:
        return rows
    return Rows(normalisation.apply(rows.inputs), rows.n_windows, rows.labels)


def check_use(experiment: Experiment, dataset: ResolvedDefinition, *, served: bool = False) -> None:
    """Find what keeps an experiment from a data set.

    Args:
      experiment: what to train.
      dataset: the data set's definition.
      served: whether the model is to be exported, which networks alone can be.

    Raises:
      CimlError: one line that says what to do.
    """
    estimator, definition = estimator_of(experiment), dataset.definition
    if served and not estimator.network:
        raise CimlError(f"estimator {experiment.estimator!r} is no network: only those can be exported and served")
    if estimator.over_time and definition.aggregation_functions:
        raise CimlError(
            f"{experiment.estimator} looks along the time axis, and the data set {definition.name!r} holds "
            "aggregations in place of windows: take another estimator"
        )


def check_experiment(experiment: Experiment) -> None:
    """Find what is wrong with an experiment before there are data.

    Raises:
      CimlError: for an unknown estimator, a key that means nothing to it, or a parameter that it does not take.
    """
    estimator = estimator_of(experiment)
    usual = Experiment()
    for key in Experiment.__struct_fields__:
        if key not in estimator.keys and getattr(experiment, key) != getattr(usual, key):
            raise CimlError(f"experiment: {key}: means nothing to the estimator {experiment.estimator}; leave it out")
    for parameter, key in _OWN_KEYS.items():
        if parameter in experiment.parameters:
            raise CimlError(f"experiment: parameters.{parameter}: say {key}, a key of the experiment itself")
    if not estimator.network:
        labels = np.arange(12) % 2  # a dozen rows: scikit-learn checks parameters when it fits
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
    """Fit the experiment's estimator. The same arguments give the same one.

    Args:
      experiment: what to fit.
      train: what to fit on, by `inputs_for`.
      dev: what early stopping looks at, the same; None without.
      classes: C.
      tensorboard: where a network writes TensorBoard's event files; None for nowhere.
      progress: told of each pass of a network.
      watch: called after each pass of a network; what it raises ends the training.

    Raises:
      CimlError: when there is nothing to fit on, or the estimator cannot be fitted on it.
    """
    estimator = estimator_of(experiment)
    if len(train) == 0:
        raise CimlError("there is no run to train on")
    if not estimator.network:
        features = boosted.Windows if estimator.summarises else scikit.unrolled
        return scikit.fit_scikit(experiment, train, dev, classes, estimator.build, features)
    from training.estimators.loop import Resident, fit_network

    _, windows, features = train.inputs.shape
    model = build_model(experiment, windows, features, classes)
    batches = Resident(train, experiment.batch_size, experiment.seed)
    return fit_network(experiment, model, batches, dev, tensorboard=tensorboard, progress=progress, watch=watch)


def build_model(experiment: Experiment, windows: int, features: int, classes: int) -> Any:
    """Return a fresh Keras model; its weights are given by the experiment's seed.

    Args:
      experiment: what to build.
      windows: L, windows (or functions) of an example.
      features: F.
      classes: C.

    Raises:
      CimlError: for an estimator that there is not, or that is no network.
    """
    estimator = estimator_of(experiment)
    if not estimator.network:
        raise CimlError(f"estimator {experiment.estimator!r} is no network: only those can be exported and served")
    keras().utils.set_random_seed(experiment.seed)
    return estimator.build(experiment, windows, features, classes)
