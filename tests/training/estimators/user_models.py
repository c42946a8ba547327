"""Estimators of a user's: what ``--estimator tests.training.estimators.user_models:NAME`` names, if it is allowed."""

from __future__ import annotations

from os import system  # noqa: F401 - what a module imports is not allowed with it
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from ciml.tensorflow import keras


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


class Shares:
    """Predict the shares of the training runs' classes, moved by the mean of a run; not of scikit-learn's classes."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def fit(self, values: np.ndarray, labels: np.ndarray) -> Shares:
        self.classes_ = np.unique(labels)
        self.centres_ = np.stack([values[labels == label].mean(axis=0) for label in self.classes_])
        return self

    def predict_proba(self, values: np.ndarray) -> np.ndarray:
        distances = np.abs(values[:, None] - self.centres_).mean(axis=2)
        closeness = np.exp(-self.weight * (distances - distances.min(axis=1, keepdims=True)))
        shares: np.ndarray = closeness / closeness.sum(axis=1, keepdims=True)
        return shares


def network(shape: tuple[int, int], classes: int, units: int = 16) -> Any:
    """Return a Keras model of windows."""
    k = keras()
    layers = [k.Input(shape), k.layers.Flatten(), k.layers.Dense(units, "relu"), k.layers.Dense(classes, "softmax")]
    return k.Sequential(layers)


def logits(shape: tuple[int, int], classes: int, first: float = 1.0) -> Any:
    """Return a Keras model that does not return probabilities: for zeros, the first number and halves."""
    k = keras()
    bias = k.initializers.Constant([first, *[0.5] * (classes - 1)])
    return k.Sequential([k.Input(shape), k.layers.Flatten(), k.layers.Dense(classes, bias_initializer=bias)])
