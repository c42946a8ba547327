"""What every estimator takes and gives: rows in, probabilities out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

#: Told how many passes are done, of how many.
Progress = Callable[[int, int], None]

#: Told after each epoch, from 1, the network as it is then. What it raises ends the training.
Watch = Callable[[int, "Fitted"], None]


@dataclass(frozen=True)
class Rows:
    """Examples as arrays.

    Attributes:
      inputs: float32 [n, L, F]; normalised where an estimator is given them.
      n_windows: int32 [n], how many of the L windows are the run's own.
      labels: int64 [n].
    """

    inputs: np.ndarray
    n_windows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> Rows:
        """Some of the rows, by position or as a mask."""
        return Rows(self.inputs[rows], self.n_windows[rows], self.labels[rows])


class Fitted(Protocol):
    """A fitted estimator."""

    def predict(self, inputs: np.ndarray, n_windows: np.ndarray) -> np.ndarray:
        """Probabilities float [n, C] of inputs float32 [n, L, F], as they were for fitting, and n_windows int32 [n]."""

    def to_json(self) -> dict[str, Any]:
        """Return how it came to be: ``runs`` that were fitted on, and what else the estimator tells."""


def class_weights(counts: np.ndarray) -> np.ndarray:
    """float32 [C], the inverse of each class's share, as scikit-learn's ``balanced``; 0 for a class without runs.

    Args:
      counts: int [C], the training runs of each class.
    """
    present = counts > 0
    weights = np.zeros(len(counts), np.float32)
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights
