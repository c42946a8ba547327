"""Normalises examples, in numpy and in the graph of tf.Transform and of served models.

Per element of an example, over the training split: (x - mean) / (max - min). An element whose range is 0, or a rounding
(`NEGLIGIBLE`), carries no information and becomes 0, whatever its value is. Padding zeros are included, as in the
original. Computed in float64: byte counts need more digits than float32 has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

#: A range of at most this share of max(|x|, 1) is a rounding: four units of float32's last place.
NEGLIGIBLE = 2.0**-21


@dataclass(frozen=True)
class Normalisation:
    """The rule with its parameters.

    Attributes:
      mean: float64 [L, F].
      width: float64 [L, F], max - min; 0 where that is a rounding, so that the element becomes 0.
    """

    mean: np.ndarray
    width: np.ndarray

    @classmethod
    def of(cls, inputs: np.ndarray) -> Normalisation:
        """Compute the parameters from training inputs float32 [n, L, F], n at least 1."""
        return cls.of_range(inputs.mean(axis=0, dtype=np.float64), inputs.min(axis=0), inputs.max(axis=0))

    @classmethod
    def of_range(cls, mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> Normalisation:
        """Compute the parameters from mean, minimum and maximum of the training inputs, each [L, F]."""
        width = high.astype(np.float64) - low
        size = np.maximum(np.maximum(np.abs(low), np.abs(high)), 1.0)
        return cls(mean, np.where(width > NEGLIGIBLE * size, width, 0.0))

    def apply(self, inputs: np.ndarray) -> np.ndarray:
        """Return inputs [n, L, F] normalised, float32."""
        informative = self.width > 0.0
        distance = np.subtract(inputs, self.mean, out=np.zeros(inputs.shape), where=informative)
        normalised: np.ndarray = np.divide(distance, self.width, out=distance, where=informative).astype(np.float32)
        return normalised

    def graph(self, inputs: Any) -> Any:
        """Return `apply` of a tensor float32 [n, L, F]."""
        from ciml.tensorflow import load_tensorflow

        tf = load_tensorflow()
        informative = self.width > 0.0
        width = np.where(informative, self.width, 1.0)
        shares = (tf.cast(inputs, tf.float64) - np.asarray(self.mean, np.float64)) / width
        return tf.cast(tf.where(informative, shares, tf.zeros_like(shares)), tf.float32)
