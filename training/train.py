"""Training: normalised TFRecord and an experiment become a model in memory."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ciml.definitions import ResolvedDefinition
from ciml.errors import CimlError
from training.experiment import Experiment
from training.materialise import Materialised
from training.models import build_model, optimizer_of
from training.runtime import keras, tensorflow
from training.snapshot import Role

#: Records up to this size are kept in memory, decoded, from the first epoch on.
_MAX_CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Trained:
    """A model, and how it came to be.

    Attributes:
      model: a Keras model from normalised ``inputs`` and ``n_windows`` to probabilities.
      history: per epoch ``loss``, ``accuracy`` and, with early stopping, ``val_loss`` and ``val_accuracy``.
      epochs: passes that were begun.
      steps: batches that were trained on.
      best_epoch: whose weights the model has, from 1; the last one without early stopping.
      runs: how many runs were trained on.
      seconds: wall clock.
    """

    model: Any
    history: Mapping[str, Sequence[float]]
    epochs: int
    steps: int
    best_epoch: int
    runs: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "history": {name: [round(float(value), 6) for value in values] for name, values in self.history.items()},
            "epochs": self.epochs,
            "steps": self.steps,
            "best_epoch": self.best_epoch,
            "runs": self.runs,
        }


def trained_roles(experiment: Experiment, *, carved: bool) -> tuple[Role, ...]:
    """Whose runs are trained on. Dev runs that were carved from train are, where no early stopping looks at them."""
    return ("train", "dev") if carved and experiment.early_stopping is None else ("train",)


def records(materialised: Materialised, resolved: ResolvedDefinition, *roles: Role) -> Any:
    """The examples of the given roles as a ``tf.data.Dataset`` of ({inputs, n_windows}, label), one an element.

    Its cardinality is asserted: a file that lost records ends training with an error, not with fewer runs.
    """
    tf = tensorflow()
    spec = {
        "inputs": tf.io.FixedLenFeature([resolved.windows, len(resolved.features)], tf.float32),
        "n_windows": tf.io.FixedLenFeature([], tf.int64),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }

    def parse(serialized: Any) -> Any:
        row = tf.io.parse_example(serialized, spec)
        return {"inputs": row["inputs"], "n_windows": tf.cast(row["n_windows"], tf.int32)}, row["label"]

    paths = [path for role in roles for path in materialised.paths(role)]
    count = sum(materialised.counts[role] for role in roles)
    dataset = tf.data.TFRecordDataset(paths).batch(256).map(parse).unbatch()
    return dataset.apply(tf.data.experimental.assert_cardinality(count))


def train(
    experiment: Experiment,
    materialised: Materialised,
    resolved: ResolvedDefinition,
    *,
    carved: bool = True,
    tensorboard: Path | None = None,
) -> Trained:
    """Trains the experiment's network. The same arguments give the same weights.

    Args:
      experiment: what to train.
      materialised: the normalised examples.
      resolved: their definition.
      carved: whether dev was carved from train. Without early stopping those runs are then trained on as well.
      tensorboard: where to write TensorBoard's event files; None for nowhere.

    Raises:
      CimlError: when there is nothing to train on, or early stopping has no dev runs to look at.
    """
    began = time.perf_counter()
    stopping = experiment.early_stopping is not None
    roles = trained_roles(experiment, carved=carved)
    count = sum(materialised.counts[role] for role in roles)
    if count == 0:
        raise CimlError("there is no run to train on")
    if stopping and materialised.counts["dev"] == 0:
        raise CimlError("early stopping needs dev runs, and the snapshot has none: give dev a weight in tdt_split")
    per_epoch = math.ceil(count / experiment.batch_size)
    steps = min(experiment.epochs * per_epoch, experiment.steps or experiment.epochs * per_epoch)
    # `fit` counts in whole epochs; with `steps` the last one is cut short, so the data is repeated and counted here.
    epochs, rest = divmod(steps, per_epoch)

    model = build_model(experiment, resolved.windows, len(resolved.features), len(resolved.classes))
    train_rows = records(materialised, resolved, *roles)
    if count * resolved.windows * len(resolved.features) * 4 <= _MAX_CACHE_BYTES:
        train_rows = train_rows.cache()
    batches = train_rows.shuffle(min(count, 50_000), seed=experiment.seed, reshuffle_each_iteration=True)
    batches = batches.batch(experiment.batch_size).prefetch(2)
    dev = records(materialised, resolved, "dev").batch(1024).cache() if stopping else None
    weights = _class_weights(experiment, materialised, resolved, roles)

    optimizer = optimizer_of(experiment, steps)

    def compiled(calls: int) -> None:
        model.compile(
            optimizer=optimizer,
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
            steps_per_execution=calls,  # a step of a small network is cheaper than a call from Python
        )

    callbacks = []
    if tensorboard is not None:
        callbacks.append(_event_files(tensorboard))
    if stopping:
        callbacks.append(
            keras().callbacks.EarlyStopping(
                "val_loss", patience=experiment.early_stopping, restore_best_weights=True, verbose=0
            )
        )
    options = {"validation_data": dev, "class_weight": weights, "callbacks": callbacks, "shuffle": False, "verbose": 0}
    history: dict[str, list[float]] = {}
    done = 0
    if epochs:
        compiled(per_epoch)
        fitted = model.fit(batches, epochs=epochs, **options)
        done = len(fitted.epoch)
        _extend(history, fitted.history)
    stopped = done < epochs
    if rest and not stopped:
        compiled(rest)
        fitted = model.fit(batches.take(rest), initial_epoch=epochs, epochs=epochs + 1, **options)
        _extend(history, fitted.history)
    total = done * per_epoch + (rest if rest and not stopped else 0)
    passes = len(history["loss"])
    best = int(np.argmin(history["val_loss"])) + 1 if stopping else passes
    return Trained(model, history, passes, total, best, count, time.perf_counter() - began)


def _event_files(folder: Path) -> Any:
    """A callback that writes each epoch's figures as TensorBoard reads them; its own needs TensorBoard installed."""
    tf = tensorflow()
    with tf.Graph().as_default():  # where such writers may be made
        writer = tf.compat.v1.summary.FileWriter(str(folder))

    def write(epoch: int, logs: Mapping[str, float]) -> None:
        values = [tf.compat.v1.Summary.Value(tag=name, simple_value=float(value)) for name, value in logs.items()]
        writer.add_summary(tf.compat.v1.Summary(value=values), epoch)
        writer.flush()

    return keras().callbacks.LambdaCallback(on_epoch_end=write)


def _extend(history: dict[str, list[float]], more: Mapping[str, Sequence[float]]) -> None:
    for name, values in more.items():
        history.setdefault(name, []).extend(float(value) for value in values)


def _class_weights(
    experiment: Experiment, materialised: Materialised, resolved: ResolvedDefinition, roles: Sequence[Role]
) -> dict[int, float] | None:
    if experiment.class_weights == "none":
        return None
    labels = np.fromiter((int(label) for _, label in records(materialised, resolved, *roles).as_numpy_iterator()), int)
    counts = np.bincount(labels, minlength=len(resolved.classes))
    present = np.count_nonzero(counts)
    return {index: float(len(labels) / (present * count)) for index, count in enumerate(counts) if count}


def predict_in_memory(model: Any, materialised: Materialised, resolved: ResolvedDefinition, role: Role) -> np.ndarray:
    """The model's probabilities float32 [n, C] for the normalised examples of a role, in the files' order."""
    rows = records(materialised, resolved, role).batch(1024)
    parts = [np.asarray(model(inputs, training=False)) for inputs, _ in rows]
    return np.concatenate(parts) if parts else np.zeros((0, len(resolved.classes)), np.float32)
