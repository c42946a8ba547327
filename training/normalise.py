"""Normalises examples: tf.Transform's preprocessing function, for training and serving, and a numpy version.

Per element of an example, over the training split: (x - mean) / (max - min), where a range of 0 counts as 1. Padding
zeros are included, as in the original. Computed in float64: byte counts need more digits than float32 has.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ciml.digest import sha256_json
from training.runtime import library_versions


# Stored analyses are keyed by this function's source, docstring included (`transform_digest`): do not edit it.
def normalise(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessing function.

    Args:
      tensors: ``inputs`` float32 [batch, L, F], not normalised; any others are passed on as they are.

    Returns:
      The same names; ``inputs`` float32 [batch, L, F], normalised.
    """
    import tensorflow as tf
    import tensorflow_transform as tft

    values = tf.cast(tensors["inputs"], tf.float64)
    mean = tft.mean(values, reduce_instance_dims=False)
    low = tft.min(values, reduce_instance_dims=False)
    high = tft.max(values, reduce_instance_dims=False)
    width = high - low
    width = tf.where(tf.equal(width, 0.0), tf.ones_like(width), width)
    return {**tensors, "inputs": tf.cast((values - mean) / width, tf.float32)}


@dataclass(frozen=True)
class Normalisation:
    """The parameters of `normalise`, for arrays in memory.

    Attributes:
      mean: float64 [L, F].
      width: float64 [L, F], max - min, or 1 where that is 0.
    """

    mean: np.ndarray
    width: np.ndarray

    @classmethod
    def of(cls, inputs: np.ndarray) -> Normalisation:
        """Compute the parameters from training inputs float32 [n, L, F], n at least 1."""
        width = inputs.max(axis=0).astype(np.float64) - inputs.min(axis=0)
        return cls(inputs.mean(axis=0, dtype=np.float64), np.where(width == 0.0, 1.0, width))

    def apply(self, inputs: np.ndarray) -> np.ndarray:
        """Return inputs [n, L, F] normalised, float32."""
        normalised: np.ndarray = ((inputs - self.mean) / self.width).astype(np.float32)
        return normalised


def transform_digest() -> str:
    """Return the hex sha256 of the source of `normalise` and the library versions, on which an analysis depends."""
    return sha256_json({"source": inspect.getsource(normalise), "libraries": library_versions()})
