"""Experiments of the estimators that callers pass."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ciml.api.types import Classifier, ExperimentKeys, NetworkFunction
from ciml.errors import CimlError

if TYPE_CHECKING:
    from ciml.training.experiment import Experiment

#: Returns (L, F) and C of a data set.
Shape = Callable[[], tuple[tuple[int, int], int]]


def experiment_for(
    estimator: str | Classifier | NetworkFunction, keys: ExperimentKeys, name: str | None, shape: Shape
) -> tuple[Experiment, tuple[str, ...]]:
    """Return the experiment of an estimator, and the modules that may be imported since the caller names them.

    A function of a notebook cannot be imported by its name, so it is called, and the Keras model identifies the
    experiment.

    Args:
      estimator: its name, the estimator itself, or a function (shape, classes) that returns a Keras model.
      keys: hyper-parameters.
      name: name of the experiment; None derives one.
      shape: of the data set, asked for only if it is needed.

    Raises:
      CimlError: the estimator cannot be described, or a key is invalid.
    """
    from ciml.training.estimators import modules_named
    from ciml.training.experiments.results import experiment_of

    _warn_of_sklearn_keys(keys)
    try:
        experiment = experiment_of(estimator, keys, name)
    except CimlError:
        if not inspect.isfunction(estimator):
            raise
        experiment = experiment_of(estimator(*shape()), keys, name)
    return experiment, modules_named(experiment)


def _warn_of_sklearn_keys(keys: Mapping[str, object]) -> None:
    """Warn of parameters of scikit-learn that are given as keys of the experiment."""
    if others := sorted(keys.keys() - ExperimentKeys.__annotations__.keys()):
        values = ", ".join(f"{name!r}: …" for name in others)
        warnings.warn(f"use parameters={{{values}}} instead of {', '.join(others)}", DeprecationWarning, stacklevel=5)
