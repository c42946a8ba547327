"""An experiment: an estimator and its hyper-parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, field

from ciml.digest import sha256_json
from ciml.settings import Settings, check_name, seconds_of

#: Version of the rule of `ciml.training.normalise`. 1: a range of 0 counts as 1. 2: such an element becomes 0. Records
#: of version 1 do not name it.
NORMALISATION = 2
#: Coverage of the sets of verdicts, unless an experiment says otherwise.
COVERAGE = 0.9
#: Nesting of parameters: a search of a pipeline of a union of estimators has a dozen.
_MAX_DEPTH = 40
#: The estimator of a model of which nothing else is known: the best one of docs/tutorial.md. A file that names none
#: still means ``dnn``.
DEFAULT_ESTIMATOR = "random_forest"
#: A window or a half-life is below this: a thousand years.
_MAX_AGE_S = 1000 * 366 * 86_400.0
_CALIBRATION_KEYS = frozenset({"calibration", "coverage"})
#: Aliases of estimators. TensorFlow no longer has the classes of these names.
ALIASES = {"tf.estimator.DNNClassifier": "dnn", "DNNClassifier": "dnn", "tf.contrib.learn.SVM": "svm"}


class Experiment(Settings, frozen=True, kw_only=True):
    """An estimator and its hyper-parameters.

    Attributes:
      name: the experiment's name.
      estimator: a name of `ciml.training.estimators.ESTIMATORS`; the name of a class of scikit-learn; or
        ``package.module:name``, a class with its interface or a function (shape, classes) that returns a Keras model.
        ``tf.estimator.DNNClassifier`` means ``dnn``. `DEFAULT_ESTIMATOR` is that of commands without a file.
      hidden_layers: units (or filters) of each hidden layer. Two suffice for some hundred runs.
      activation: of the hidden layers.
      dropout: share of the units dropped before each hidden layer but the first.
      l2: factor of the squared weights in the loss. Some hundred runs of a hundred numbers need a large one.
      batch_norm: whether each hidden layer normalises its inputs over the batch.
      kernel_size: windows of a convolution's kernel.
      steps: largest number of batches; None for no limit.
      epochs: largest number of epochs. Training stops at the first limit reached.
      batch_size: runs in a step.
      optimizer: name of a Keras optimizer.
      learning_rate: initial learning rate.
      schedule: ``cosine`` lets the learning rate fall to zero over the steps; ``constant`` does not.
      early_stopping: epochs without a lower dev loss after which training stops; the best epoch is restored. None
        disables it: then dev runs that were taken from train are trained on too.
      class_weights: ``balanced`` weights a class by the inverse of its share, ``none`` does not.
      calibration: how probabilities are calibrated on dev runs, which are then not trained on: ``temperature``,
        ``isotonic``, or ``auto`` by the number of runs. None leaves the network's own.
      coverage: with ``calibration``: the share of runs whose class shall be in the set of a verdict.
      seed: of weights, order and dropout. Equal seed and snapshot give the same model.
      parameters: of a class or a function, by its own names; ``step__name`` for one of a part. An estimator among them
        is a table of ``class`` and ``parameters``.
      view: what a class of scikit-learn's interface gets of a run: ``windows``, ``flat`` or ``summary``; see
        `ciml.training.estimators.views`. None: what the estimator gets by default.
      packages: versions of the packages of a class, by name: part of what identifies the experiment.
      window: how old a run may be, counted back from the newest training run: ``90d``. Older ones are neither learned
        nor tested on. None: all runs.
      half_life: the age at which a training run weighs half as much as the newest one: ``30d``. Held-out runs have no
        weights. None: all weigh the same.
    """

    title: ClassVar[str] = "experiment"

    name: str = "dnn"
    estimator: str = "dnn"
    hidden_layers: tuple[int, ...] = (128, 64)
    activation: Literal["relu", "gelu", "tanh", "elu"] = "relu"
    dropout: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0
    l2: Annotated[float, Meta(ge=0.0)] = 2e-3
    batch_norm: bool = False
    kernel_size: Annotated[int, Meta(ge=1)] = 5
    steps: Annotated[int, Meta(ge=1)] | None = None
    epochs: Annotated[int, Meta(ge=1)] = 150
    batch_size: Annotated[int, Meta(ge=1)] = 64
    optimizer: Literal["adam", "adamw", "adagrad", "ftrl", "rmsprop", "sgd"] = "adam"
    learning_rate: Annotated[float, Meta(gt=0.0)] = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    early_stopping: Annotated[int, Meta(ge=1)] | None = None
    class_weights: Literal["none", "balanced"] = "none"
    calibration: Literal["auto", "temperature", "isotonic"] | None = None
    coverage: Annotated[float, Meta(ge=0.5, lt=1.0)] = COVERAGE
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    parameters: dict[str, Any] = field(default_factory=dict)
    view: Literal["windows", "flat", "summary"] | None = None
    packages: dict[str, str] = field(default_factory=dict)
    window: str | None = None
    half_life: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the keys; without those that older versions lack where they have no effect: digests stay the same."""
        value = super().to_json()
        unset = {key for key in ("view", "packages", "window", "half_life") if not value[key]}
        if not self.calibration:
            unset |= _CALIBRATION_KEYS
        return {key: item for key, item in value.items() if key not in unset}

    @classmethod
    def written(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        """Parse layers in the original's form, ``100/100/100``, and replace an estimator's alias."""
        keys = dict(value)
        if isinstance(layers := keys.get("hidden_layers"), str):
            parts = [part for part in layers.split("/") if part]
            keys["hidden_layers"] = [int(part) if part.isdecimal() else part for part in parts]
        if isinstance(estimator := keys.get("estimator"), str):
            keys["estimator"] = ALIASES.get(estimator, estimator)
        return keys

    def __post_init__(self) -> None:
        check_name(self.name)
        for key, value in (("learning_rate", self.learning_rate), ("l2", self.l2), *_leaves(self.parameters)):
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key}: expected a finite number")
        if self.calibration and self.early_stopping is not None:
            raise ValueError("calibration: is fitted on the dev runs, on which early_stopping chooses; leave out one")
        if not self.calibration and self.coverage != COVERAGE:
            raise ValueError("coverage: requires calibration")
        for key in ("window", "half_life"):
            if (text := getattr(self, key)) is not None:
                _check_age(key, text)
        if any(units < 1 for units in self.hidden_layers):
            raise ValueError("hidden_layers: each hidden layer needs at least one unit")


def _check_age(key: str, text: str) -> None:
    try:
        seconds = seconds_of(text)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    if not 0 < seconds < _MAX_AGE_S:
        raise ValueError(f"{key}: {text!r:.80} is not an age; choose one such as 90d")


def _leaves(value: Any, path: str = "parameters", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the values in a tree of JSON, each with its path. Raises `ValueError` for a tree that is too deep."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"{path:.80}: nested more than {_MAX_DEPTH} times")
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{path}.{name}", depth + 1)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}.{number}", depth + 1)
    else:
        yield path, value


def refresh_key(snapshot: str, experiment: Experiment) -> str:
    """Return the key of a candidate, from a snapshot's digest and an experiment. Equal keys mean equal models."""
    value = {"snapshot": snapshot, "experiment": experiment.to_json(), "normalisation": NORMALISATION}
    return sha256_json(value)[:24]


def metrics_path(refresh: str) -> str:
    """Return the path of a candidate's figures below its trainer's folder.

    Args:
      refresh: its `refresh_key`.
    """
    return f"metrics/{refresh}.json"
