"""Normalising: the preprocessing function of tf.Transform, for training and, inside the exported model, for serving;
and the same of arrays in memory, for experiments.

Per element of an example, over the training split: (x - mean) / (max - min), where a range of 0 counts as 1. Padded
zeros take part, as in the original. All of it is computed in float64: bytes need more digits than float32 has.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ciml.digest import sha256_json
from training.runtime import library_versions


def normalise(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preprocessing function.

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
    """What `normalise` computes with, of arrays in memory.

    Attributes:
      mean: float64 [L, F].
      width: float64 [L, F], max - min, 1 where that is 0.
    """

    mean: np.ndarray
    width: np.ndarray

    @classmethod
    def of(cls, inputs: np.ndarray) -> Normalisation:
        """By the training runs' inputs float32 [n, L, F], n at least 1."""
        width = inputs.max(axis=0).astype(np.float64) - inputs.min(axis=0)
        return cls(inputs.mean(axis=0, dtype=np.float64), np.where(width == 0.0, 1.0, width))

    def apply(self, inputs: np.ndarray) -> np.ndarray:
        """Inputs [n, L, F], normalised, float32."""
        normalised: np.ndarray = ((inputs - self.mean) / self.width).astype(np.float32)
        return normalised


def transform_digest() -> str:
    """Hex sha256 of all that an analysis depends on besides the data: this function's source and the libraries."""
    return sha256_json({"source": inspect.getsource(normalise), "libraries": library_versions()})
