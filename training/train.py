"""Trains an experiment on normalised TFRecord files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ciml.datasets.definition import ResolvedDefinition
from ciml.errors import NoTrainingDataError
from ciml.tensorflow import load_tensorflow
from ciml.training.data.materialise import Materialised
from ciml.training.data.snapshot import Role
from ciml.training.estimators import Rows, build_model
from ciml.training.estimators.networks import Batches, Resident, Streamed, Trained, fit_network
from ciml.training.experiment import Experiment

#: Inputs up to this size, bytes, are kept in memory; larger ones are read in each epoch.
_MAX_RESIDENT_BYTES = 1 << 30


def trained_roles(experiment: Experiment, *, dev_from_train: bool) -> tuple[Role, ...]:
    """Return the roles to train on; dev runs taken from train are included where nothing else needs them."""
    held_out = experiment.early_stopping is not None or experiment.calibration is not None
    return ("train", "dev") if dev_from_train and not held_out else ("train",)


def records(materialised: Materialised, resolved: ResolvedDefinition, *roles: Role) -> Any:
    """Return the examples of the given roles as a ``tf.data.Dataset`` of ({inputs, n_windows}, label), one an element.

    Its cardinality is asserted: a file with missing records is an error.
    """
    tf = load_tensorflow()
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
    dev_from_train: bool = True,
    tensorboard: Path | None = None,
) -> Trained:
    """Train the experiment's network. Deterministic.

    Args:
      experiment: the experiment to train.
      materialised: the normalised examples.
      resolved: their definition.
      dev_from_train: whether dev was taken from train. Without early stopping, those runs are trained on too.
      tensorboard: folder of TensorBoard event files; None writes none.

    Raises:
      NoTrainingDataError: if there are no training runs, or early stopping has no dev runs.
    """
    stopping = experiment.early_stopping is not None
    roles = trained_roles(experiment, dev_from_train=dev_from_train)
    count = sum(materialised.counts[role] for role in roles)
    if count == 0:
        raise NoTrainingDataError("no training runs")
    if stopping and materialised.counts["dev"] == 0:
        raise NoTrainingDataError(
            "early stopping needs dev runs, but the snapshot has none; give dev a weight in tdt_split"
        )
    model = build_model(experiment, resolved.windows, len(resolved.features), len(resolved.classes))
    batches: Batches
    if count * resolved.windows * len(resolved.features) * 4 <= _MAX_RESIDENT_BYTES:
        batches = Resident(_rows(materialised, resolved, *roles), experiment.batch_size, experiment.seed)
    else:
        read = records(materialised, resolved, *roles)
        counts = np.bincount(np.fromiter((int(label) for _, label in read.as_numpy_iterator()), np.int64))
        shuffled = read.shuffle(min(count, 50_000), seed=experiment.seed, reshuffle_each_iteration=True)
        batches = Streamed(shuffled, counts, experiment.batch_size)
    dev = _rows(materialised, resolved, "dev") if stopping else None
    return fit_network(experiment, model, batches, dev, tensorboard=tensorboard)


def _rows(materialised: Materialised, resolved: ResolvedDefinition, *roles: Role) -> Rows:
    """Read the normalised examples of the given roles, in the files' order."""
    batches = records(materialised, resolved, *roles).batch(1024).as_numpy_iterator()
    columns = zip(*((features["inputs"], features["n_windows"], labels) for features, labels in batches), strict=True)
    return Rows(*map(np.concatenate, columns))


def predict_in_memory(model: Any, materialised: Materialised, resolved: ResolvedDefinition, role: Role) -> np.ndarray:
    """Predict float32 [n, C] for the normalised examples of a role, in the files' order."""
    rows = records(materialised, resolved, role).batch(1024)
    parts = [np.asarray(model(inputs, training=False)) for inputs, _ in rows]
    return np.concatenate(parts) if parts else np.zeros((0, len(resolved.classes)), np.float32)
