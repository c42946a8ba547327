"""Estimators behind one interface: `fit` takes rows and returns a `Fitted`.

An experiment names a built-in estimator (`ESTIMATORS`), a class with the interface of scikit-learn, or a Keras model.
No other room asks which kind an estimator is: `estimator_of` returns what it uses and how it behaves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ciml.datasets.definition import ResolvedDefinition
from ciml.errors import CimlError, NoTrainingDataError
from ciml.events.outcomes import CAUSE
from ciml.progress import Progress
from ciml.training.estimators import keras_models, networks, scikit
from ciml.training.estimators.base import Estimator, Fitted, Rows, Training, Watch
from ciml.training.estimators.boosted import boosted_summaries
from ciml.training.estimators.description import build, has_parameter, modules_of, packages_of
from ciml.training.estimators.named import named_estimator
from ciml.training.estimators.names import find_class
from ciml.training.estimators.views import RECORDED
from ciml.training.experiment import DEFAULT_ESTIMATOR, Experiment
from ciml.training.normalise import Normalisation

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "Fitted",
    "Rows",
    "Training",
    "Watch",
    "check_experiment",
    "check_use",
    "default_estimator",
    "estimator_of",
    "fit",
    "identified",
    "inputs_for",
    "modules_named",
    "reseeded",
    "takes_parameter",
    "used_keys",
]

_AGES = frozenset({"window", "half_life"})
_ALL = _AGES | {"name", "estimator", "class_weights", "calibration", "coverage", "seed"}
_LOOP = frozenset(
    {"steps", "epochs", "batch_size", "optimizer", "learning_rate", "schedule", "early_stopping"}
    | {"hidden_layers", "dropout", "l2"}
)
_SCIKIT = _ALL | {"parameters", "view"}

#: Seeds of an experiment are below this number.
_SEEDS = 2**31
#: Parameters that are seeds.
_SEED_NAMES = frozenset({"random_state", "seed"})

#: Parameters of scikit-learn that are keys of an experiment with a built-in estimator.
_OWN_KEYS = {"random_state": "seed", "class_weight": "class_weights", "n_iter_no_change": "early_stopping"}

#: The built-in estimators by name.
ESTIMATORS: dict[str, Estimator] = {
    "dnn": networks.Network(networks.dnn, _ALL | _LOOP | {"activation", "batch_norm"}),
    "cnn": networks.Network(networks.cnn, _ALL | _LOOP | {"activation", "batch_norm", "kernel_size"}, over_time=True),
    "gru": networks.Network(networks.gru, _ALL | _LOOP, over_time=True),
    "svm": scikit.ScikitEstimator(scikit.svm, _SCIKIT),
    "random_forest": scikit.ScikitEstimator(scikit.random_forest, _SCIKIT),
    "hist_gradient_boosting": scikit.ScikitEstimator(scikit.hist_gradient_boosting, _SCIKIT | {"early_stopping"}),
    "boosted_summaries": scikit.ScikitEstimator(boosted_summaries, _ALL | {"parameters"}, RECORDED),
}


def default_estimator(keys: Collection[str] = ()) -> str:
    """Return the name of the estimator where none is named: ``dnn`` if a key is one of networks, else a random forest.

    Args:
      keys: the keys of an experiment that are given.
    """
    network_keys = frozenset(ESTIMATORS["dnn"].keys).difference(ESTIMATORS[DEFAULT_ESTIMATOR].keys)
    return DEFAULT_ESTIMATOR if network_keys.isdisjoint(keys) else "dnn"


def estimator_of(experiment: Experiment, allow_modules: Collection[str] = ()) -> Estimator:
    """Return the experiment's estimator.

    Args:
      experiment: names it.
      allow_modules: modules of classes and functions that may be imported; those of scikit-learn, xgboost, lightgbm and
        Keras may be in any case. The experiment may come from stored data, so its own names allow nothing.

    Raises:
      UnknownEstimatorError: there is no such estimator.
      CimlError: its module may not be imported.
    """
    estimator = ESTIMATORS.get(experiment.estimator)
    if estimator is None:
        return named_estimator(find_class(experiment.estimator, ESTIMATORS), experiment, allow_modules)
    if isinstance(estimator, scikit.ScikitEstimator):
        return estimator.for_view(experiment.view)
    return estimator


def identified(experiment: Experiment, allow_modules: Collection[str] = ()) -> Experiment:
    """Return the experiment with its class's full name, and the versions of the packages that its classes come from.

    Both are part of what identifies the experiment: another version of a package may train another model.

    Raises:
      UnknownEstimatorError: there is no such estimator.
      CimlError: a module may not be imported, or a parameter is unknown.
    """
    if experiment.estimator in ESTIMATORS:
        return experiment
    name = find_class(experiment.estimator, ESTIMATORS)
    description = {"class": name, "parameters": experiment.parameters}
    if name != keras_models.CLASS:
        build(description, allow_modules)  # imports the modules
    return experiment.replace(estimator=name, packages=packages_of(description))


def modules_named(experiment: Experiment) -> tuple[str, ...]:
    """Return the modules that an experiment names, which its author allows by that. Not for one from stored data."""
    if experiment.estimator in ESTIMATORS:
        return ()
    return modules_of({"class": experiment.estimator, "parameters": experiment.parameters})


def reseeded(experiment: Experiment) -> Experiment:
    """Return the experiment with the next seed, also where its parameters set one, such as ``random_state=42``."""
    return experiment.replace(
        seed=_next_seed(experiment.seed),
        parameters={name: _reseeded(name, value) for name, value in experiment.parameters.items()},
    )


def _reseeded(name: str, value: Any) -> Any:
    """Return a parameter with the next seeds in it, at any depth."""
    if isinstance(value, dict):
        return {key: _reseeded(key, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_reseeded("", item) for item in value]
    return _next_seed(value) if name in _SEED_NAMES and type(value) is int else value


def _next_seed(seed: int) -> int:
    return (seed + 1) % _SEEDS


def takes_parameter(experiment: Experiment, name: str, allow_modules: Collection[str] = ()) -> bool:
    """Return whether the experiment's estimator can have a parameter: of a class, whether its constructor names it.

    Args:
      experiment: its estimator, and the parameters with the parts of which ``name`` may be one.
      name: ``C``, or ``step__C`` for one of a part.
      allow_modules: see `estimator_of`.
    """
    if experiment.estimator in ESTIMATORS:
        return True
    full_name = find_class(experiment.estimator, ESTIMATORS)
    return has_parameter({"class": full_name, "parameters": experiment.parameters}, name, allow_modules)


def used_keys(experiment: Mapping[str, Any]) -> frozenset[str]:
    """Return the keys of a stored experiment that its estimator uses, or at least has values for. Imports nothing.

    Args:
      experiment: as JSON.
    """
    estimator = ESTIMATORS.get(experiment["estimator"])
    if estimator is not None:
        return frozenset(estimator.keys)
    usual = Experiment().to_json()
    return frozenset(key for key, value in experiment.items() if key == "seed" or value != usual.get(key))


def inputs_for(
    experiment: Experiment, normalisation: Normalisation, rows: Rows, allow_modules: Collection[str] = ()
) -> Rows:
    """Return rows as the experiment's estimator takes them: normalised, or as recorded."""
    if not estimator_of(experiment, allow_modules).normalises:
        return rows
    return replace(rows, inputs=normalisation.apply(rows.inputs))


def check_use(
    experiment: Experiment, dataset: ResolvedDefinition, allow_modules: Collection[str] = (), *, served: bool = False
) -> None:
    """Check that an experiment can use a data set.

    Args:
      experiment: the experiment to train.
      dataset: the data set's definition.
      allow_modules: see `estimator_of`.
      served: whether the model is to be exported.

    Raises:
      CimlError: with the remedy.
    """
    estimator = estimator_of(experiment, allow_modules)
    definition = dataset.definition
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
    if experiment.half_life and not estimator.takes_weights(experiment):
        raise CimlError(
            f"experiment {experiment.name!r}: half_life: estimator {experiment.estimator} takes no weights of runs; "
            "use window instead, or choose another estimator"
        )


def _check_packages(experiment: Experiment, allow_modules: Collection[str]) -> None:
    """Raise `CimlError` if an experiment was defined with other versions of packages: it would be another model."""
    present = identified(experiment, allow_modules).packages if experiment.packages else {}
    for name, version in experiment.packages.items():
        if present.get(name) != version:
            raise CimlError(
                f"experiment {experiment.name!r} was defined with {name} {version:.20}, but {present.get(name)!s:.20} "
                "is installed; define it again under another name"
            )


def check_experiment(
    experiment: Experiment, allow_modules: Collection[str] = (), *, is_refreshed: bool = False
) -> None:
    """Check an experiment without data.

    Args:
      experiment: the experiment.
      allow_modules: see `estimator_of`.
      is_refreshed: whether it is for a refresh. Elsewhere, runs are held out whatever their age, so that a window or a
        half-life would be ignored.

    Raises:
      CimlError: for an unknown estimator, an unused key, or an invalid parameter.
    """
    estimator = estimator_of(experiment, allow_modules)
    usual = Experiment()
    for key in Experiment.__struct_fields__:
        if key in _AGES and not is_refreshed and getattr(experiment, key) is not None:
            raise CimlError(f"experiment: {key}: only a refresh uses it; remove it")
        if key not in estimator.keys and getattr(experiment, key) != getattr(usual, key):
            raise CimlError(f"experiment: {key}: not used by estimator {experiment.estimator}; remove it")
    if experiment.estimator in ESTIMATORS:
        for parameter, key in _OWN_KEYS.items():
            if parameter in experiment.parameters:
                raise CimlError(f"experiment: parameters.{parameter}: use the experiment's key {key}")
    estimator.check(experiment)


def fit(
    experiment: Experiment,
    train: Rows,
    dev: Rows | None,
    classes: int,
    *,
    features: tuple[str, ...] = (),
    allow_modules: Collection[str] = (),
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
      features: names of the F columns, for an estimator that gets a DataFrame; by default their numbers.
      allow_modules: see `estimator_of`.
      tensorboard: folder of a network's TensorBoard event files; None writes none.
      progress: called after each epoch of a network.
      watch: called after each epoch of a network; an exception from it ends the training.

    Raises:
      CimlError: if there is no training run, or fitting fails.
    """
    if len(train) == 0:
        raise NoTrainingDataError("no training runs")
    _check_packages(experiment, allow_modules)
    training = Training(train, dev, classes, features, tensorboard, progress, watch)
    return estimator_of(experiment, allow_modules).fit(experiment, training)
