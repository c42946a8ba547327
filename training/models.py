"""Estimators: Keras networks by name, built from an experiment and the shape of an example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ciml.errors import CimlError
from training.experiment import Experiment
from training.runtime import keras

#: From normalised ``inputs`` float32 [batch, L, F] and ``n_windows`` int32 [batch] to probabilities float32 [batch, C].
Builder = Callable[[Experiment, int, int, int], Any]

#: The estimators that experiments may name.
ESTIMATORS: dict[str, Builder] = {}


def estimator(name: str) -> Callable[[Builder], Builder]:
    """Registers a builder of a Keras model under a name."""

    def register(builder: Builder) -> Builder:
        if name in ESTIMATORS:
            raise ValueError(f"two estimators are named {name!r}")
        ESTIMATORS[name] = builder
        return builder

    return register


def build_model(experiment: Experiment, windows: int, features: int, classes: int) -> Any:
    """A fresh, compiled Keras model; its weights are given by the experiment's seed.

    Args:
      experiment: what to build.
      windows: L, windows (or functions) of an example.
      features: F.
      classes: C.

    Raises:
      CimlError: for an estimator that there is not.
    """
    builder = ESTIMATORS.get(experiment.estimator)
    if builder is None:
        known = ", ".join(sorted(ESTIMATORS))
        raise CimlError(f"estimator {experiment.estimator!r}: there is none of this name; known are {known}")
    keras().utils.set_random_seed(experiment.seed)
    return builder(experiment, windows, features, classes)


@estimator("dnn")
def _dnn(experiment: Experiment, windows: int, features: int, classes: int) -> Any:
    """Dense layers over the flattened inputs. Padding is seen as it is; ``n_windows`` is not."""
    k = keras()
    penalty = k.regularizers.L2(experiment.l2) if experiment.l2 else None
    inputs = k.Input((windows, features), name="inputs")
    n_windows = k.Input((), dtype="int32", name="n_windows")
    hidden = k.layers.Flatten()(inputs)
    for number, units in enumerate(experiment.hidden_layers):
        if experiment.batch_norm:
            hidden = k.layers.BatchNormalization(momentum=0.9)(hidden)
        if experiment.dropout and number:
            hidden = k.layers.Dropout(experiment.dropout, seed=experiment.seed + number)(hidden)
        hidden = k.layers.Dense(units, activation=experiment.activation, kernel_regularizer=penalty)(hidden)
    outputs = k.layers.Dense(classes, activation="softmax", kernel_regularizer=penalty, name="probabilities")(hidden)
    return k.Model({"inputs": inputs, "n_windows": n_windows}, outputs, name="dnn")


def optimizer_of(experiment: Experiment, steps: int) -> Any:
    """The experiment's optimizer, whose learning rate is laid out for ``steps`` batches."""
    optimizers = keras().optimizers
    rate: Any = experiment.learning_rate
    if experiment.schedule == "cosine":
        rate = optimizers.schedules.CosineDecay(experiment.learning_rate, max(steps, 1))
    kinds = {
        "adam": optimizers.Adam,
        "adamw": optimizers.AdamW,
        "adagrad": optimizers.Adagrad,
        "rmsprop": optimizers.RMSprop,
        "sgd": optimizers.SGD,
    }
    return kinds[experiment.optimizer](rate)
