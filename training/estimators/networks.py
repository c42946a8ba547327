"""Keras networks, built from an experiment and the shape of an example.

Each takes normalised ``inputs`` float32 [batch, L, F] and ``n_windows`` int32 [batch], and returns probabilities
float32 [batch, C]. Networks over time mask the padding, by ``n_windows``.
"""

from __future__ import annotations

from typing import Any

from ciml.errors import CimlError
from ciml.training.experiment import Experiment
from ciml.training.runtime import keras


def dnn(experiment: Experiment, windows: int, features: int, classes: int) -> Any:
    """Build dense layers over the flattened inputs, padding included; ``n_windows`` is not used."""
    k = keras()
    inputs, n_windows = _inputs(k, windows, features)
    hidden = k.layers.Flatten()(inputs)
    for number, units in enumerate(experiment.hidden_layers):
        hidden = _between(k, experiment, number, hidden)
        hidden = k.layers.Dense(units, activation=experiment.activation, kernel_regularizer=_penalty(k, experiment))(
            hidden
        )
    return _model(k, experiment, inputs, n_windows, hidden, classes)


def cnn(experiment: Experiment, windows: int, features: int, classes: int) -> Any:
    """Build 1-D convolutions over time, one for each of ``hidden_layers``.

    The output is the mean and maximum of each filter over the run's own windows. Padding is reset to zero after each
    layer, so that its length has no effect.
    """
    k = keras()
    inputs, n_windows = _inputs(k, windows, features)
    own = k.ops.expand_dims(k.ops.cast(_own_windows(k, n_windows, windows), "float32"), -1)
    hidden = inputs * own
    for number, filters in enumerate(experiment.hidden_layers):
        hidden = _between(k, experiment, number, hidden)
        hidden = own * k.layers.Conv1D(
            filters,
            experiment.kernel_size,
            padding="same",
            activation=experiment.activation,
            kernel_regularizer=_penalty(k, experiment),
        )(hidden)
    count = k.ops.maximum(k.ops.sum(own, axis=1), 1.0)
    mean = k.ops.sum(hidden, axis=1) / count
    highest = k.ops.max(hidden + (own - 1.0) * 1e9, axis=1) * k.ops.minimum(k.ops.sum(own, axis=1), 1.0)
    return _model(k, experiment, inputs, n_windows, k.ops.concatenate([mean, highest], axis=-1), classes)


def gru(experiment: Experiment, windows: int, features: int, classes: int) -> Any:
    """Build recurrent layers over time, one for each of ``hidden_layers``.

    The output is the last layer's state after the run's own windows.
    """
    if not experiment.hidden_layers:
        raise CimlError("experiment: hidden_layers: gru needs at least one layer")
    k = keras()
    inputs, n_windows = _inputs(k, windows, features)
    own = _own_windows(k, n_windows, windows)
    hidden = inputs
    for number, units in enumerate(experiment.hidden_layers):
        if experiment.dropout and number:
            hidden = k.layers.Dropout(experiment.dropout, seed=experiment.seed + number)(hidden)
        last = number == len(experiment.hidden_layers) - 1
        hidden = k.layers.GRU(units, return_sequences=not last, kernel_regularizer=_penalty(k, experiment))(
            hidden, mask=own
        )
    return _model(k, experiment, inputs, n_windows, hidden, classes)


def _inputs(k: Any, windows: int, features: int) -> tuple[Any, Any]:
    return k.Input((windows, features), name="inputs"), k.Input((), dtype="int32", name="n_windows")


def _own_windows(k: Any, n_windows: Any, windows: int) -> Any:
    """Return bool [batch, L]: whether a window is the run's own, not padding."""
    return k.ops.greater(k.ops.expand_dims(n_windows, -1), k.ops.arange(windows, dtype="int32"))


def _penalty(k: Any, experiment: Experiment) -> Any:
    return k.regularizers.L2(experiment.l2) if experiment.l2 else None


def _between(k: Any, experiment: Experiment, number: int, hidden: Any) -> Any:
    """Apply batch normalisation and dropout before a hidden layer."""
    if experiment.batch_norm:
        hidden = k.layers.BatchNormalization(momentum=0.9)(hidden)
    if experiment.dropout and number:
        hidden = k.layers.Dropout(experiment.dropout, seed=experiment.seed + number)(hidden)
    return hidden


def _model(k: Any, experiment: Experiment, inputs: Any, n_windows: Any, hidden: Any, classes: int) -> Any:
    penalty = _penalty(k, experiment)
    outputs = k.layers.Dense(classes, activation="softmax", kernel_regularizer=penalty, name="probabilities")(hidden)
    return k.Model({"inputs": inputs, "n_windows": n_windows}, outputs, name=experiment.estimator)


def optimizer_of(experiment: Experiment, steps: int) -> Any:
    """Return the experiment's optimizer with a learning-rate schedule for ``steps`` batches."""
    optimizers = keras().optimizers
    rate: Any = experiment.learning_rate
    if experiment.schedule == "cosine":
        rate = optimizers.schedules.CosineDecay(experiment.learning_rate, max(steps, 1))
    kinds = {
        "adam": optimizers.Adam,
        "adamw": optimizers.AdamW,
        "adagrad": optimizers.Adagrad,
        "ftrl": optimizers.Ftrl,
        "rmsprop": optimizers.RMSprop,
        "sgd": optimizers.SGD,
    }
    return kinds[experiment.optimizer](rate)
