"""Keras networks, and their training: an epoch of any number of batches is one call of a compiled function.

The networks are small: a step takes less time than Python and tf.data need to launch it. So data that fit into memory
stay there as tensors, and TensorFlow's own loop gathers each batch by a permutation. XLA saves an eighth of each step
but compiles for most of a second, so it is not used.

A network takes normalised ``inputs`` float32 [batch, L, F] and ``n_windows`` int32 [batch], and returns probabilities
float32 [batch, C]. Networks over time mask the padding, by ``n_windows``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from ciml.errors import CimlError, NoTrainingDataError
from ciml.progress import Progress
from ciml.tensorflow import keras, load_tensorflow, seeded
from ciml.training.estimators.base import Graph, Rows, Training, Watch, class_weights
from ciml.training.experiment import Experiment

if TYPE_CHECKING:
    from ciml.training.conversion.step import Variables

#: Runs that are predicted at a time.
_PREDICTION_BATCH = 1024

#: Takes a batch (inputs, n_windows, labels, and the weights of the runs or None); returns the sum of its losses and the
#: number of correct predictions.
Step = Callable[[Any, Any, Any, Any], tuple[Any, Any]]


@dataclass(frozen=True)
class Trained:
    """A trained network and details of its training.

    Attributes:
      model: a Keras model from normalised ``inputs`` and ``n_windows`` to probabilities.
      history: per epoch ``loss``, ``accuracy`` and, with early stopping, ``val_loss`` and ``val_accuracy``.
      epochs: number of epochs; the number of steps may cut the last one short.
      steps: number of batches.
      best_epoch: the epoch, from 1, of the model's weights; the last one without early stopping.
      runs: number of training runs.
      seconds: wall clock of the training.
    """

    model: Any
    history: Mapping[str, Sequence[float]]
    epochs: int
    steps: int
    best_epoch: int
    runs: int
    seconds: float

    def predict(self, inputs: np.ndarray, n_windows: np.ndarray) -> np.ndarray:
        """Predict probabilities float32 [n, C] of normalised inputs float32 [n, L, F] and n_windows int32 [n]."""
        answers = np.zeros((len(inputs), self.model.output_shape[-1]), np.float32)
        for start in range(0, len(inputs), _PREDICTION_BATCH):
            rows = slice(start, start + _PREDICTION_BATCH)
            answers[rows] = self.model({"inputs": inputs[rows], "n_windows": n_windows[rows]}, training=False)
        return answers

    def graph(self, variables: Variables) -> Graph:
        # Own variables: an export contains no Keras objects and no optimizer.
        trainable = [variables(weight.numpy()) for weight in self.model.trainable_variables]
        fixed = [variables(weight.numpy()) for weight in self.model.non_trainable_variables]

        def probabilities(inputs: Any, n_windows: Any) -> Any:
            rows = {"inputs": inputs, "n_windows": n_windows}
            return self.model.stateless_call(trainable, fixed, rows, training=False)[0]

        return probabilities

    def to_json(self) -> dict[str, Any]:
        history = {name: [round(float(value), 6) for value in values] for name, values in self.history.items()}
        return {"history": history} | {name: getattr(self, name) for name in ("epochs", "steps", "best_epoch", "runs")}


@dataclass(frozen=True)
class Network:
    """A Keras network as an estimator; see `ciml.training.estimators.base.Estimator`.

    Attributes:
      build: a function of (experiment, L, F, C) that returns a new Keras model.
      keys: see `Estimator`.
      over_time: see `Estimator`.
    """

    build: Callable[[Experiment, int, int, int], Any]
    keys: frozenset[str]
    over_time: bool = False
    normalises = True
    reports_epochs = True
    streams = True

    def load(self) -> None:
        keras()

    def takes_weights(self, experiment: Experiment) -> bool:
        return True

    def check(self, experiment: Experiment) -> None:
        pass  # the shape of the inputs decides whether it can be built

    def new_model(self, experiment: Experiment, windows: int, features: int, classes: int) -> Any:
        """Build a Keras model whose weights follow from the experiment's seed; see `build`."""
        with seeded(experiment.seed):
            return self.build(experiment, windows, features, classes)

    def fit(self, experiment: Experiment, training: Training) -> Trained:
        train = training.train
        batches = Resident(train, experiment.batch_size, experiment.seed) if isinstance(train, Rows) else train
        return fit_network(
            experiment,
            self.new_model(experiment, batches.shape[0], batches.shape[1], training.classes),
            batches,
            training.dev,
            tensorboard=training.tensorboard,
            progress=training.progress,
            watch=training.watch,
        )


class Batches(Protocol):
    """The training runs in batches, in a different order in each epoch.

    Attributes:
      counts: int64 [C], runs by class, up to the last class with runs.
      batch_size: runs per step.
      shape: (L, F) of a run.
    """

    counts: np.ndarray
    batch_size: int
    shape: tuple[int, int]

    def compiled(self, step: Step) -> Callable[[int, int], tuple[Any, Any, int]]:
        """Return a function of an epoch (from 0) and a number of batches.

        It returns the sums of ``step``'s results and the number of runs.
        """


class Resident:
    """`Batches` of rows in memory."""

    def __init__(self, rows: Rows, batch_size: int, seed: int) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.counts = np.bincount(rows.labels)
        self.shape = rows.inputs.shape[1:]

    def order(self, epoch: int) -> np.ndarray:
        """Return the permutation int32 [n] of an epoch, a function of seed and epoch."""
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.rows)).astype(np.int32)

    def compiled(self, step: Step) -> Callable[[int, int], tuple[Any, Any, int]]:
        tf = load_tensorflow()
        size = self.batch_size
        inputs, n_windows, labels = map(tf.constant, (self.rows.inputs, self.rows.n_windows, self.rows.labels))
        weights = self.rows.sample_weights()

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)], autograph=False)
        def run(order: Any) -> Any:
            def body(position: Any, loss: Any, right: Any) -> Any:
                rows = order[position : position + size]
                batch_loss, batch_right = step(
                    tf.gather(inputs, rows),
                    tf.gather(n_windows, rows),
                    tf.gather(labels, rows),
                    None if weights is None else tf.gather(tf.constant(weights), rows),
                )
                return position + size, loss + batch_loss, right + batch_right

            start = (tf.constant(0), tf.constant(0.0), tf.constant(0.0))
            return tf.while_loop(lambda position, *_: position < tf.size(order), body, start, parallel_iterations=1)[1:]

        def epoch(number: int, batches: int) -> tuple[Any, Any, int]:
            order = self.order(number)[: batches * size]
            return *run(order), len(order)

        return epoch


class Streamed:
    """`Batches` of rows that do not fit into memory and are read from disk in each epoch.

    Args:
      rows: a ``tf.data.Dataset`` of ({inputs, n_windows}, label), one run per element, in a different order at each
        iteration. The features may have ``weights``, with a mean of 1.
      counts: int64 [C].
      batch_size: runs per step.
    """

    def __init__(self, rows: Any, counts: np.ndarray, batch_size: int) -> None:
        self.shape = tuple(rows.element_spec[0]["inputs"].shape)
        self.batches = rows.batch(batch_size).prefetch(2)
        self.counts = counts
        self.batch_size = batch_size

    def compiled(self, step: Step) -> Callable[[int, int], tuple[Any, Any, int]]:
        tf = load_tensorflow()

        @tf.function(input_signature=[tf.TensorSpec([], tf.int64)], autograph=False)
        def run(batches: Any) -> Any:
            def add(sums: Any, batch: Any) -> Any:
                features, labels = batch
                loss, right = step(features["inputs"], features["n_windows"], labels, features.get("weights"))
                return sums[0] + loss, sums[1] + right, sums[2] + tf.size(labels)

            start = (tf.constant(0.0), tf.constant(0.0), tf.constant(0))
            return self.batches.take(batches).reduce(start, add)

        def epoch(number: int, batches: int) -> tuple[Any, Any, int]:
            loss, right, count = run(np.int64(batches))
            return loss, right, int(count)

        return epoch


def fit_network(
    experiment: Experiment,
    model: Any,
    batches: Batches,
    dev: Rows | None,
    *,
    tensorboard: Path | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Trained:
    """Train a network in place. Deterministic.

    Args:
      experiment: its hyper-parameters.
      model: a new Keras model.
      batches: the training runs.
      dev: rows for early stopping; None without.
      tensorboard: folder of TensorBoard event files.
      progress: called after each epoch.
      watch: called after each epoch; an exception from it ends the training.

    Raises:
      CimlError: if the runs have a single class, or the weights diverge.
    """
    started_s = time.perf_counter()
    if np.count_nonzero(batches.counts) < 2:
        raise NoTrainingDataError(f"{experiment.estimator} needs training runs of at least two classes")
    count = int(batches.counts.sum())
    steps_per_epoch = math.ceil(count / batches.batch_size)
    most_steps = experiment.epochs * steps_per_epoch
    steps = min(most_steps, experiment.steps or most_steps)
    optimizer = optimizer_of(experiment, steps)
    model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    optimizer.build(model.trainable_variables)
    weights = class_weights(batches.counts) if experiment.class_weights == "balanced" else None
    run_epoch = batches.compiled(_step(model, optimizer, weights))
    evaluate_dev = _dev_evaluation(model, dev) if dev is not None else None
    write_events = _event_files(tensorboard) if tensorboard is not None else None

    history: dict[str, list[float]] = {}
    steps_done = 0
    best: _Best | None = None
    epochs = math.ceil(steps / steps_per_epoch)

    def trained(best_epoch: int) -> Trained:
        seconds = time.perf_counter() - started_s
        return Trained(model, history, len(history["loss"]), steps_done, best_epoch, count, seconds)

    for epoch in range(1, epochs + 1):
        epoch_steps = min(steps_per_epoch, steps - steps_done)
        loss, right, runs = run_epoch(epoch - 1, epoch_steps)
        steps_done += epoch_steps
        figures = {"accuracy": float(right) / runs, "loss": float(loss) / runs}
        if evaluate_dev is not None:
            figures |= evaluate_dev()
        if not all(map(math.isfinite, figures.values())):
            raise CimlError(
                f"experiment {experiment.name!r}: the loss is not finite after epoch {epoch}; use a "
                f"learning_rate below {experiment.learning_rate:g}"
            )
        for name, value in figures.items():
            history.setdefault(name, []).append(value)
        if write_events is not None:
            write_events(epoch - 1, figures)
        if progress is not None:
            progress("epochs", epoch, epochs)
        if watch is not None:
            watch(epoch, trained(epoch))
        if evaluate_dev is None:
            continue
        if best is None or figures["val_loss"] < best.loss:
            best = _Best(epoch, figures["val_loss"], model.get_weights())
        elif experiment.early_stopping is not None and epoch - best.epoch >= experiment.early_stopping:
            break
    if best is None:
        return trained(len(history["loss"]))
    model.set_weights(best.weights)
    return trained(best.epoch)


class _Best(NamedTuple):
    """The epoch, from 1, with the lowest loss on the dev runs so far, that loss, and the weights after it."""

    epoch: int
    loss: float
    weights: Sequence[Any]


def _loss(labels: Any, answers: Any) -> Any:
    return keras().losses.sparse_categorical_crossentropy(labels, answers)


def _step(model: Any, optimizer: Any, weights: np.ndarray | None) -> Step:
    """Return a function that trains the model on a batch; ``weights`` float32 [C] are those of the classes."""
    tf = load_tensorflow()

    def step(inputs: Any, n_windows: Any, labels: Any, run_weights: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            answers = model({"inputs": inputs, "n_windows": n_windows}, training=True)
            losses = _loss(labels, answers)
            if weights is not None:
                losses *= tf.gather(tf.constant(weights), labels)
            if run_weights is not None:
                losses *= run_weights
            loss = tf.reduce_mean(losses) + sum(model.losses)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        right = tf.equal(tf.argmax(answers, axis=-1), labels)
        return loss * tf.cast(tf.size(labels), tf.float32), tf.reduce_sum(tf.cast(right, tf.float32))

    return step


def _dev_evaluation(model: Any, dev: Rows) -> Callable[[], dict[str, float]]:
    """Return a function that evaluates the model's current weights on the dev runs."""
    tf = load_tensorflow()
    inputs, n_windows, labels = map(tf.constant, (dev.inputs, dev.n_windows, dev.labels))

    @tf.function(autograph=False)
    def run() -> Any:
        loss = tf.constant(0.0)
        right = tf.constant(0.0)
        for start in range(0, len(dev), _PREDICTION_BATCH):
            rows = slice(start, start + _PREDICTION_BATCH)
            answers = model({"inputs": inputs[rows], "n_windows": n_windows[rows]}, training=False)
            loss += tf.reduce_sum(_loss(labels[rows], answers))
            right += tf.reduce_sum(tf.cast(tf.equal(tf.argmax(answers, axis=-1), labels[rows]), tf.float32))
        return loss / len(dev) + sum(model.losses), right / len(dev)

    def evaluate() -> dict[str, float]:
        loss, right = run()
        return {"val_accuracy": float(right), "val_loss": float(loss)}

    return evaluate


def _event_files(folder: Path) -> Callable[[int, Mapping[str, float]], None]:
    """Return a function that writes the figures of an epoch as TensorBoard events.

    Keras's own callback needs TensorBoard installed.
    """
    tf = load_tensorflow()
    with tf.Graph().as_default():  # summary writers need graph mode
        writer = tf.compat.v1.summary.FileWriter(str(folder))

    def write(epoch: int, figures: Mapping[str, float]) -> None:
        values = [tf.compat.v1.Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        writer.add_summary(tf.compat.v1.Summary(value=values), epoch)
        writer.flush()

    return write


def dnn(experiment: Experiment, windows: int, features: int, classes: int) -> Any:
    """Build dense layers over the flattened inputs, padding included; ``n_windows`` is not used."""
    k = keras()
    inputs = network_inputs(k, windows, features)

    def dense(number: int, units: int, hidden: Any) -> Any:
        return k.layers.Dense(units, activation=experiment.activation, **_penalty(k, experiment))(hidden)

    return _model(k, experiment, inputs, _hidden(k, experiment, k.layers.Flatten()(inputs["inputs"]), dense), classes)


def cnn(experiment: Experiment, windows: int, features: int, classes: int) -> Any:
    """Build 1-D convolutions over time, one for each of ``hidden_layers``.

    The output is the mean and maximum of each filter over the run's own windows. Padding is reset to zero after each
    layer, so that its length has no effect.
    """
    k = keras()
    inputs = network_inputs(k, windows, features)
    mask = k.ops.expand_dims(k.ops.cast(_own_windows(k, inputs, windows), "float32"), -1)

    def convolution(number: int, filters: int, hidden: Any) -> Any:
        settings = {"padding": "same", "activation": experiment.activation, **_penalty(k, experiment)}
        return mask * k.layers.Conv1D(filters, experiment.kernel_size, **settings)(hidden)

    hidden = _hidden(k, experiment, inputs["inputs"] * mask, convolution)
    lengths = k.ops.sum(mask, axis=1)
    mean = k.ops.sum(hidden, axis=1) / k.ops.maximum(lengths, 1.0)
    highest = k.ops.max(hidden + (mask - 1.0) * 1e9, axis=1) * k.ops.minimum(lengths, 1.0)
    return _model(k, experiment, inputs, k.ops.concatenate([mean, highest], axis=-1), classes)


def gru(experiment: Experiment, windows: int, features: int, classes: int) -> Any:
    """Build recurrent layers over time, one for each of ``hidden_layers``.

    The output is the last layer's state after the run's own windows.
    """
    if not experiment.hidden_layers:
        raise CimlError("experiment: hidden_layers: gru needs at least one layer")
    k = keras()
    inputs = network_inputs(k, windows, features)
    mask = _own_windows(k, inputs, windows)

    def recurrent(number: int, units: int, hidden: Any) -> Any:
        last = number == len(experiment.hidden_layers) - 1
        return k.layers.GRU(units, return_sequences=not last, **_penalty(k, experiment))(hidden, mask=mask)

    return _model(k, experiment, inputs, _hidden(k, experiment, inputs["inputs"], recurrent), classes)


def network_inputs(k: Any, windows: int, features: int) -> dict[str, Any]:
    return {
        "inputs": k.Input((windows, features), name="inputs"),
        "n_windows": k.Input((), dtype="int32", name="n_windows"),
    }


def _own_windows(k: Any, inputs: Mapping[str, Any], windows: int) -> Any:
    """Return bool [batch, L]: whether a window is the run's own, not padding."""
    return k.ops.greater(k.ops.expand_dims(inputs["n_windows"], -1), k.ops.arange(windows, dtype="int32"))


def _penalty(k: Any, experiment: Experiment) -> dict[str, Any]:
    """Return the layer's argument for the penalty of large weights."""
    return {"kernel_regularizer": k.regularizers.L2(experiment.l2)} if experiment.l2 else {}


def _hidden(k: Any, experiment: Experiment, hidden: Any, layer: Callable[[int, int, Any], Any]) -> Any:
    """Apply the hidden layers, with batch normalisation and dropout before each.

    Args:
      k: Keras.
      experiment: the sizes of the layers.
      hidden: the first layer's input.
      layer: applies a layer, by its number and size, to its input.
    """
    for number, units in enumerate(experiment.hidden_layers):
        if experiment.batch_norm:
            hidden = k.layers.BatchNormalization(momentum=0.9)(hidden)
        if experiment.dropout and number:
            hidden = k.layers.Dropout(experiment.dropout, seed=experiment.seed + number)(hidden)
        hidden = layer(number, units, hidden)
    return hidden


def _model(k: Any, experiment: Experiment, inputs: dict[str, Any], hidden: Any, classes: int) -> Any:
    output = k.layers.Dense(classes, activation="softmax", name="probabilities", **_penalty(k, experiment))
    return k.Model(inputs, output(hidden), name=experiment.estimator)


def optimizer_of(experiment: Experiment, steps: int) -> Any:
    """Return the experiment's optimizer with a learning-rate schedule for ``steps`` batches."""
    optimizers = keras().optimizers
    rate: Any = experiment.learning_rate
    if experiment.schedule == "cosine":
        rate = optimizers.schedules.CosineDecay(experiment.learning_rate, max(steps, 1))
    return type(optimizers.get(experiment.optimizer))(rate)
