"""Normalising: the preprocessing function of tf.Transform, for training and, inside the exported model, for serving.

Per element of an example, over the training split: (x - mean) / (max - min), where a range of 0 counts as 1. Padded
zeros take part, as in the original. All of it is computed in float64: bytes need more digits than float32 has.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ciml.digest import sha256_json
from training.runtime import library_versions


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


def transform_digest() -> str:
    """Hex sha256 of all that an analysis depends on besides the data: this function's source and the libraries."""
    return sha256_json({"source": inspect.getsource(normalise), "libraries": library_versions()})
