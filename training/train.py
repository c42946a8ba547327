"""Trains an experiment on the runs of a snapshot: on normalised TFRecord files, or on the rows as recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ciml.datasets.definition import ResolvedDefinition
from ciml.errors import NoTrainingDataError
from ciml.storage import Store
from ciml.tensorflow import load_tensorflow
from ciml.training.data.examples import read_snapshot_examples
from ciml.training.data.materialise import Materialised
from ciml.training.data.snapshot import Role, Snapshot
from ciml.training.estimators import Fitted, Rows, Training, estimator_of
from ciml.training.estimators.networks import Streamed
from ciml.training.experiment import Experiment

#: Inputs up to this size, bytes, are kept in memory; larger ones are read in each epoch.
_MAX_RESIDENT_BYTES = 1 << 30
#: Of larger ones, so many runs are shuffled at a time, if they fit into that memory.
_MAX_SHUFFLED_RUNS = 50_000


def trained_roles(experiment: Experiment, *, dev_from_train: bool) -> tuple[Role, ...]:
    """Return the roles to train on; dev runs taken from train are included where nothing else needs them."""
    held_out = experiment.early_stopping is not None or experiment.calibration is not None
    return ("train", "dev") if dev_from_train and not held_out else ("train",)


def records(
    materialised: Materialised, resolved: ResolvedDefinition, *roles: Role, weights: np.ndarray | None = None
) -> Any:
    """Return the examples of the given roles as a ``tf.data.Dataset`` of ({inputs, n_windows}, label), one an element.

    Its cardinality is asserted: a file with missing records is an error.

    Args:
      materialised: the files.
      resolved: their definition.
      roles: of the examples.
      weights: float32 [runs of the snapshot]: the features then have ``weights``, too.
    """
    tf = load_tensorflow()
    spec = {
        "inputs": tf.io.FixedLenFeature([resolved.windows, len(resolved.features)], tf.float32),
        "n_windows": tf.io.FixedLenFeature([], tf.int64),
        "label": tf.io.FixedLenFeature([], tf.int64),
        "ordinal": tf.io.FixedLenFeature([], tf.int64),
    }

    def parse(serialized: Any) -> Any:
        row = tf.io.parse_example(serialized, spec)
        features = {"inputs": row["inputs"], "n_windows": tf.cast(row["n_windows"], tf.int32)}
        if weights is not None:
            features["weights"] = tf.gather(tf.constant(weights), row["ordinal"])
        return features, row["label"]

    paths = [path for role in roles for path in materialised.paths(role)]
    count = sum(materialised.counts[role] for role in roles)
    dataset = tf.data.TFRecordDataset(paths).batch(256).map(parse).unbatch()
    return dataset.apply(tf.data.experimental.assert_cardinality(count))


class TrainingRows(Protocol):
    """The rows of a snapshot as its estimator takes them."""

    @property
    def counts(self) -> Mapping[Role, int]:
        """The number of rows by role."""

    def rows(self, *roles: Role) -> Rows:
        """Read the rows of the given roles."""

    def streamed(self, *roles: Role) -> Any:
        """Return the rows as `records` does; None if only `rows` is possible."""


@dataclass(frozen=True)
class NormalisedRows:
    """`TrainingRows` of materialised files, in the files' order.

    Attributes:
      materialised: the files.
      resolved: their definition.
      weights: `Snapshot.weights`.
    """

    materialised: Materialised
    resolved: ResolvedDefinition
    weights: np.ndarray | None = None

    @property
    def counts(self) -> Mapping[Role, int]:
        return self.materialised.counts

    def rows(self, *roles: Role) -> Rows:
        batches = self.streamed(*roles).batch(1024).as_numpy_iterator()
        shape = (0, self.resolved.windows, len(self.resolved.features))
        none = {name: np.zeros(0, np.float32) for name in ("weights",) if self.weights is not None}
        parts = [
            ({"inputs": np.zeros(shape, np.float32), "n_windows": np.zeros(0, np.int32), **none}, np.zeros(0, int))
        ]
        parts += list(batches)
        features = {name: np.concatenate([part[name] for part, _ in parts]) for name in parts[0][0]}
        return Rows(labels=np.concatenate([labels for _, labels in parts]), **features)

    def streamed(self, *roles: Role) -> Any:
        return records(self.materialised, self.resolved, *roles, weights=self.weights)


@dataclass(frozen=True)
class RecordedRows:
    """`TrainingRows` of a data set as they were recorded, in the snapshot's order."""

    store: Store
    snapshot: Snapshot

    @cached_property
    def counts(self) -> Mapping[Role, int]:
        return Counter(run.role for run in self.snapshot.runs())

    def rows(self, *roles: Role) -> Rows:
        return read_snapshot_examples(self.store, self.snapshot, *roles)[1]

    def streamed(self, *roles: Role) -> Any:
        return None


def train(
    experiment: Experiment,
    source: TrainingRows,
    resolved: ResolvedDefinition,
    *,
    dev_from_train: bool = True,
    allow_modules: Collection[str] = (),
    tensorboard: Path | None = None,
) -> Fitted:
    """Train the experiment's estimator. Deterministic.

    Args:
      experiment: the experiment to train.
      source: the examples, normalised if the estimator takes them so.
      resolved: their definition.
      dev_from_train: whether dev was taken from train. Without early stopping, those runs are trained on too.
      allow_modules: see `ciml.training.estimators.estimator_of`.
      tensorboard: folder of TensorBoard event files; None writes none.

    Raises:
      NoTrainingDataError: if there are no training runs, or early stopping has no dev runs.
    """
    stopping = experiment.early_stopping is not None
    roles = trained_roles(experiment, dev_from_train=dev_from_train)
    count = sum(source.counts[role] for role in roles)
    if count == 0:
        raise NoTrainingDataError("no training runs")
    if stopping and source.counts["dev"] == 0:
        raise NoTrainingDataError(
            "early stopping needs dev runs, but the snapshot has none; give dev a weight in tdt_split"
        )
    estimator = estimator_of(experiment, allow_modules)
    rows: Any = None
    if estimator.streams and count * resolved.windows * len(resolved.features) * 4 > _MAX_RESIDENT_BYTES:
        rows = _streamed(source.streamed(*roles), count, experiment)
    if rows is None:
        rows = source.rows(*roles)
    dev = source.rows("dev") if stopping else None
    classes = len(resolved.classes)
    return estimator.fit(experiment, Training(rows, dev, classes, resolved.features, tensorboard))


def _streamed(read: Any, count: int, experiment: Experiment) -> Streamed | None:
    """Return rows that do not fit into memory, in batches; None if they can only be read as a whole."""
    if read is None:
        return None
    counts = np.bincount(np.fromiter((int(label) for _, label in read.as_numpy_iterator()), np.int64))
    if "weights" in read.element_spec[0]:
        mean = np.mean([float(features["weights"]) for features, _ in read.as_numpy_iterator()])
        read = read.map(lambda features, label: ({**features, "weights": features["weights"] / mean}, label))
    run_bytes = 4 * read.element_spec[0]["inputs"].shape.num_elements()
    buffer = max(1, min(count, _MAX_SHUFFLED_RUNS, _MAX_RESIDENT_BYTES // run_bytes))
    shuffled = read.shuffle(buffer, seed=experiment.seed, reshuffle_each_iteration=True)
    return Streamed(shuffled, counts, experiment.batch_size)


def predict_in_memory(fitted: Fitted, source: TrainingRows, role: Role) -> np.ndarray:
    """Predict float [n, C] for the examples of a role, in the source's order."""
    rows = source.rows(role)
    return fitted.predict(rows.inputs, rows.n_windows)
