"""Estimators that an experiment names by a class or a function: ``package.module:name``.

A class with the interface of scikit-learn is built from the experiment's parameters. A function (shape, classes,
parameters) returns a Keras model, as does the description of a Keras model.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import numpy as np

from ciml.errors import CimlError
from ciml.tensorflow import keras
from ciml.training.estimators import keras_models
from ciml.training.estimators.base import Estimator
from ciml.training.estimators.description import KerasFunction, build, modules_of, names_in
from ciml.training.estimators.names import find_class, import_allowed
from ciml.training.estimators.networks import Network, network_inputs
from ciml.training.estimators.scikit import ScikitEstimator
from ciml.training.experiment import Experiment

_SCIKIT_KEYS = frozenset(
    {"name", "estimator", "view", "parameters", "packages", "calibration", "coverage", "seed", "window", "half_life"}
)
_NETWORK_KEYS = _SCIKIT_KEYS | {
    *("steps", "epochs", "batch_size", "optimizer", "learning_rate", "schedule", "early_stopping", "class_weights"),
}
#: Largest distance from 1 of the sum of a network's probabilities.
_SUM_TOLERANCE = 1e-3


def named_estimator(name: str, experiment: Experiment, allow_modules: Collection[str] = ()) -> Estimator:
    """Return the estimator that an experiment names by a class or a function.

    Args:
      name: the full name of the experiment's estimator, by `ciml.training.estimators.names.find_class`.
      experiment: the experiment.
      allow_modules: modules that may be imported besides those of scikit-learn, xgboost, lightgbm and Keras.

    Raises:
      CimlError: the module may not be imported, or the experiment has an unsuitable view.
    """
    if name == keras_models.CLASS or not isinstance(import_allowed(name, allow_modules), type):
        if experiment.view not in (None, "windows"):
            raise CimlError(f"experiment: view: a Keras model gets windows, not {experiment.view}; remove the key")
        return Network(partial(_new_network, allow_modules=tuple(allow_modules)), _NETWORK_KEYS)
    description = {"class": name, "parameters": experiment.parameters}
    return ScikitEstimator(
        partial(_new_model, allow_modules=tuple(allow_modules)),
        _SCIKIT_KEYS,
        experiment.view or "flat",
        takes_frames=experiment.view != "windows" and _takes_frames(description),
        tries=False,
    )


def _takes_frames(description: dict[str, Any]) -> bool:
    """Return whether an estimator gets a DataFrame.

    All estimators of scikit-learn take one. A class of the user's may not, so it gets an array. xgboost and lightgbm
    reject names with characters that columns of telemetry have; they get an array unless a part selects columns.
    """
    classes = set(names_in(description))
    names_columns = "sklearn.compose:ColumnTransformer" in classes
    return not modules_of(description) and (names_columns or all(name.startswith("sklearn") for name in classes))


def _new_model(experiment: Experiment, smallest: int, allow_modules: Collection[str]) -> Any:
    """Build the estimator of a class. The experiment's seed replaces each ``random_state`` that is None."""
    model = build({"class": find_class(experiment.estimator), "parameters": experiment.parameters}, allow_modules)
    if hasattr(model, "get_params"):
        parameters = model.get_params(deep=True)
        unset = [name for name in parameters if name.split("__")[-1] == "random_state" and parameters[name] is None]
        if unset:
            model.set_params(**dict.fromkeys(unset, experiment.seed))
    return model


def _new_network(
    experiment: Experiment, windows: int, features: int, classes: int, allow_modules: Collection[str]
) -> Any:
    """Build the Keras model of a description, or of a function of (shape, classes)."""
    description = {"class": experiment.estimator, "parameters": experiment.parameters}
    model = build(description, allow_modules, experiment.seed)
    if isinstance(model, KerasFunction):
        try:
            model = model((windows, features), classes)
        except (TypeError, ValueError) as error:
            raise CimlError(f"{experiment.estimator}: {' '.join(str(error).split())}") from None
    if not isinstance(model, keras().Model):
        kind = type(model).__name__
        raise CimlError(
            f"{experiment.estimator} returned {kind}; a function (shape, classes) must return a Keras model"
        )
    return _adapted(experiment, model, windows, features, classes)


def _adapted(experiment: Experiment, model: Any, windows: int, features: int, classes: int) -> Any:
    """Return a model of ``inputs`` and ``n_windows`` that calls the user's with the inputs that it has.

    Raises:
      CimlError: for another shape of inputs, or outputs that are not probabilities of the classes.
    """
    k = keras()
    name = experiment.estimator
    inputs = network_inputs(k, windows, features)
    input_names = [tensor.name for tensor in model.inputs] if model.built else []
    try:
        answers = model(inputs) if set(input_names) == set(inputs) else model(inputs["inputs"])
    except (ValueError, TypeError) as error:
        raise CimlError(
            f"{name} does not take windows of the shape ({windows}, {features}), or a dictionary of inputs and "
            f"n_windows: {' '.join(str(error).split())}"
        ) from None
    if answers.shape[1:] == (1,) and classes == 2:
        answers = k.ops.concatenate([1.0 - answers, answers], axis=-1)
    if answers.shape[1:] != (classes,):
        raise CimlError(f"{name} returns the shape {answers.shape[1:]}; the data set has {classes} classes")
    adapted = k.Model(inputs, answers, name="named")
    zeros = {"inputs": np.zeros((1, windows, features), np.float32), "n_windows": np.ones(1, np.int32)}
    example = np.asarray(adapted(zeros, training=False))
    if not (example >= 0).all() or abs(example.sum() - 1) > _SUM_TOLERANCE:
        raise CimlError(f"{name} returns no probabilities: {example[0].tolist()}; end it with a softmax layer")
    return adapted
