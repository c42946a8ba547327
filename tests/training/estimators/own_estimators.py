"""Estimators of a user, in a module that a description may name only if it is allowed."""

from __future__ import annotations

from os import system  # noqa: F401 - what a module imports is not allowed with it
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin


class MeanThreshold(ClassifierMixin, BaseEstimator):
    """Splits rows at the mean of one column."""

    def __init__(self, column: int = 0, scale: float = 1.0) -> None:
        self.column = column
        self.scale = scale

    def fit(self, X: np.ndarray, y: np.ndarray) -> MeanThreshold:  # noqa: N803
        self.classes_ = np.unique(y)
        self.threshold_ = float(np.mean(X[:, self.column]))
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        second = 1 / (1 + np.exp(-self.scale * (X[:, self.column] - self.threshold_)))
        return np.column_stack([1 - second, second])


class Plain:
    """A classifier without scikit-learn."""

    def __init__(self, share: float = 0.5, *, columns: tuple[int, ...] = (0, 1)) -> None:
        self.share = share
        self.columns = columns

    def fit(self, X: np.ndarray, y: np.ndarray) -> Plain:  # noqa: N803
        self.mean_ = y.mean()
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        return np.tile([1 - self.mean_, self.mean_], (len(X), 1))


class Secretive:
    """A classifier that does not say how it was made."""

    def __init__(self, share: float = 0.5) -> None:
        self.hidden = share

    def fit(self, X: np.ndarray, y: np.ndarray) -> Secretive:  # noqa: N803
        return self


def halved(values: np.ndarray) -> np.ndarray:
    """Return half of the values."""
    return values / 2


def small_network(shape: tuple[int, int], classes: int, units: int = 4) -> Any:
    """Make a Keras model of one hidden layer."""
    from ciml.tensorflow import keras

    layers = keras().layers
    outputs = [layers.Flatten(), layers.Dense(units, "relu"), layers.Dense(classes, "softmax")]
    return keras().Sequential([keras().Input(shape), *outputs])
