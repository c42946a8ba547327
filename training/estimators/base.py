"""The interface of estimators: rows in, probabilities out, and a graph that gives the same probabilities."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ciml.errors import NoTrainingDataError
from ciml.progress import Progress
from ciml.tensorflow import load_tensorflow
from ciml.training.experiment import Experiment

if TYPE_CHECKING:
    from typing import Self

    from ciml.training.conversion.step import Variables

#: Called after each epoch, from 1, with the network's present state. An exception from it ends the training.
Watch = Callable[[int, "Fitted"], None]
#: From tensors ``inputs`` float32 [batch, L, F] and ``n_windows`` int32 [batch] to probabilities float [batch, C].
Graph = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Rows:
    """Examples as arrays.

    Attributes:
      inputs: float32 [n, L, F]; normalised for estimators that take them so.
      n_windows: int32 [n], number of the run's own windows; the rest is padding.
      labels: int64 [n].
      weights: float32 [n], how much each counts in a training; None if all count the same.
    """

    inputs: np.ndarray
    n_windows: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray | slice) -> Self:
        """Select rows by position or by a mask."""
        return replace(self, **{name: values[rows] for name, values in vars(self).items() if values is not None})

    def sample_weights(self) -> np.ndarray | None:
        """Return the weights with a mean of 1, so that they change no learning rate; None without weights."""
        return None if self.weights is None else (self.weights / self.weights.mean()).astype(np.float32)


class Fitted(Protocol):
    """A fitted estimator. Its inputs are prepared as for fitting: `Estimator.normalises` says whether normalised."""

    def predict(self, inputs: np.ndarray, n_windows: np.ndarray) -> np.ndarray:
        """Predict float [n, C] from inputs float32 [n, L, F] and n_windows int32 [n]."""

    def graph(self, variables: Variables) -> Graph:
        """Return the same function as TensorFlow operations, for an export.

        Args:
          variables: keeps the arrays of the function, so that the export stores each once.

        Raises:
          ConversionError: a step of the estimator has no conversion; the message names it.
        """

    def to_json(self) -> dict[str, Any]:
        """Return training details as JSON: the number of ``runs``, and the estimator's own figures."""


@dataclass(frozen=True)
class Training:
    """What `Estimator.fit` gets besides the experiment.

    Attributes:
      train: training rows; for an estimator that streams, perhaps `ciml.training.estimators.networks.Batches`.
      dev: rows for early stopping; None without.
      classes: C.
      features: names of the F columns, for estimators that get a DataFrame; by default their numbers.
      tensorboard: folder of TensorBoard event files, for an estimator that reports epochs; None writes none.
      progress: called after each epoch.
      watch: called after each epoch; an exception from it ends the training.
    """

    train: Any
    dev: Rows | None
    classes: int
    features: tuple[str, ...] = ()
    tensorboard: Path | None = None
    progress: Progress | None = None
    watch: Watch | None = None

    def feature_names(self) -> tuple[str, ...]:
        """Return the names of the F columns."""
        return self.features or tuple(map(str, range(self.train.inputs.shape[2])))


class Estimator(Protocol):
    """An estimator that experiments can name."""

    @property
    def keys(self) -> Collection[str]:
        """The keys of an experiment that it uses."""

    @property
    def normalises(self) -> bool:
        """Whether its inputs are normalised before it gets them."""

    @property
    def over_time(self) -> bool:
        """Whether it uses the time axis, which aggregated examples lack."""

    @property
    def reports_epochs(self) -> bool:
        """Whether it trains in epochs, and calls ``watch`` after each."""

    @property
    def streams(self) -> bool:
        """Whether it can learn from rows that do not fit into memory."""

    def load(self) -> None:
        """Import the estimator's library, which takes seconds that are not part of its fitting."""

    def takes_weights(self, experiment: Experiment) -> bool:
        """Return whether it takes weights of training runs."""

    def check(self, experiment: Experiment) -> None:
        """Raise `CimlError` for an invalid parameter of the experiment; needs no data."""

    def fit(self, experiment: Experiment, training: Training) -> Fitted:
        """Fit deterministically. Raises `NoTrainingDataError` for too few runs, `CimlError` if fitting fails."""


def present_classes(experiment: Experiment, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the P classes that training runs have, int64 [P]; each run's position in them [n]; their counts [P].

    Raises:
      NoTrainingDataError: the runs have a single class.
    """
    present, positions, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(present) < 2:
        raise NoTrainingDataError(f"{experiment.estimator} needs training runs of at least two classes")
    return present, positions, counts


def spread(answers: np.ndarray, present: np.ndarray, classes: int) -> np.ndarray:
    """Return probabilities float64 [n, C] of answers float [n, P] for the P classes that training runs have."""
    probabilities = np.zeros((len(answers), classes))
    probabilities[:, present] = answers
    return probabilities


def spread_graph(answers: Graph, present: np.ndarray, classes: int) -> Graph:
    """Return `spread` of a graph's answers for the P present classes."""
    tf = load_tensorflow()
    position = np.full(classes, len(present), np.int32)
    position[present] = np.arange(len(present), dtype=np.int32)

    def probabilities(inputs: Any, n_windows: Any) -> Any:
        padded = tf.pad(answers(inputs, n_windows), [[0, 0], [0, 1]])  # the column of the classes that are not present
        return tf.gather(padded, position, axis=1)

    return probabilities


def class_weights(counts: np.ndarray) -> np.ndarray:
    """Return float32 [C]: inverse class shares, as scikit-learn's ``balanced``; 0 for a class without runs.

    Args:
      counts: int [C], the training runs of each class.
    """
    present = counts > 0
    weights = np.zeros(len(counts), np.float32)
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights
