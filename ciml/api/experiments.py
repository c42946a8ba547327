"""Experiments of the estimators that callers pass."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ciml.api.types import Classifier, ExperimentKeys, NetworkFunction
from ciml.errors import CimlError

if TYPE_CHECKING:
    from ciml.data_root import DataRoot
    from ciml.training.experiment import Experiment

#: Returns (L, F) and C of a data set.
Shape = Callable[[], tuple[tuple[int, int], int]]


def experiment_for(
    estimator: str | Classifier | NetworkFunction | None, keys: ExperimentKeys, name: str | None, shape: Shape
) -> tuple[Experiment, tuple[str, ...]]:
    """Return the experiment of an estimator, and the modules that may be imported since the caller names them.

    A function of a notebook cannot be imported by its name, so it is called, and the Keras model identifies the
    experiment.

    Args:
      estimator: its name, the estimator itself, or a function (shape, classes) that returns a Keras model. None: that
        of `ciml.training.estimators.default_estimator`.
      keys: hyper-parameters.
      name: name of the experiment; None derives one.
      shape: of the data set, asked for only if it is needed.

    Raises:
      CimlError: the estimator cannot be described, or a key is invalid.
    """
    from ciml.training.estimators import default_estimator, modules_named
    from ciml.training.experiments.results import experiment_of

    _warn_of_sklearn_keys(keys)
    if estimator is None:
        estimator = default_estimator(keys)
    try:
        experiment = experiment_of(estimator, keys, name)
    except CimlError:
        if not inspect.isfunction(estimator):
            raise
        experiment = experiment_of(estimator(*shape()), keys, name)
    return experiment, modules_named(experiment)


def refreshed_experiment(
    root: DataRoot,
    model: str,
    estimator: str | Classifier | NetworkFunction | None,
    keys: ExperimentKeys,
    shape: Shape,
) -> tuple[Experiment | None, tuple[str, ...]]:
    """Return the experiment of a refresh, and the modules that may be imported since the caller names them.

    Args:
      root: the data root.
      model: name of the model.
      estimator: as for `experiment_for`. None: that of the model's last candidate, which ``keys`` change.
      keys: hyper-parameters.
      shape: of the data set, asked for only if it is needed.

    Returns:
      None and no modules if the caller names nothing: then the trainer chooses, as for the command.

    Raises:
      CimlError: the estimator cannot be described, a key is invalid, or the last candidate's estimator does not use it.
    """
    from ciml.serving.registry import Registry
    from ciml.training.estimators import check_experiment
    from ciml.training.experiment import Experiment
    from ciml.training.trainer import last_experiment

    if estimator is None:
        if not keys:
            return None, ()
        last = last_experiment(Registry(root, model))
        if last is not None:
            experiment = Experiment.from_json({**last.to_json(), **keys})
            check_experiment(experiment, is_refreshed=True)  # stored data names its modules, so none of them is allowed
            return experiment, ()
    # A named estimator has the default name of a file: the name is part of what makes a refresh new.
    return experiment_for(estimator, keys, "dnn", shape)


def _warn_of_sklearn_keys(keys: Mapping[str, object]) -> None:
    """Warn of parameters of scikit-learn that are given as keys of the experiment."""
    if extra := sorted(keys.keys() - ExperimentKeys.__annotations__.keys()):
        values = ", ".join(f"{name!r}: …" for name in extra)
        warnings.warn(f"use parameters={{{values}}} instead of {', '.join(extra)}", DeprecationWarning, stacklevel=5)
