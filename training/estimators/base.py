"""The interface of estimators: rows in, probabilities out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from typing import Self

#: Called after each epoch, from 1, with the network's present state. An exception from it ends the training.
Watch = Callable[[int, "Fitted"], None]


@dataclass(frozen=True)
class Rows:
    """Examples as arrays.

    Attributes:
      inputs: float32 [n, L, F]; normalised for estimators unless they summarise.
      n_windows: int32 [n], number of the run's own windows; the rest is padding.
      labels: int64 [n].
    """

    inputs: np.ndarray
    n_windows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray | slice) -> Self:
        """Select rows by position or by a mask."""
        return replace(self, **{name: values[rows] for name, values in vars(self).items()})


class Fitted(Protocol):
    """A fitted estimator."""

    def predict(self, inputs: np.ndarray, n_windows: np.ndarray) -> np.ndarray:
        """Predict float [n, C] from inputs float32 [n, L, F], prepared as for fitting, and n_windows int32 [n]."""

    def to_json(self) -> dict[str, Any]:
        """Return training details as JSON: the number of ``runs``, and the estimator's own figures."""


def class_weights(counts: np.ndarray) -> np.ndarray:
    """Return float32 [C]: inverse class shares, as scikit-learn's ``balanced``; 0 for a class without runs.

    Args:
      counts: int [C], the training runs of each class.
    """
    present = counts > 0
    weights = np.zeros(len(counts), np.float32)
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights
