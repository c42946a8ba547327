"""Estimators of a user's: what ``--estimator tests.training.estimators.user_models:NAME`` names."""

from __future__ import annotations

from typing import Any

import numpy as np

from ciml.tensorflow import keras


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
