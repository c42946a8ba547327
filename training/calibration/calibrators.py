"""Calibrators: functions from a model's probabilities to calibrated ones, in numpy and in a model's graph.

Both forms compute in float64 and round once, so they agree in float32's last digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Method = Literal["temperature", "isotonic"]

#: The least probability, before and after: the smallest normal float32. TensorFlow may take smaller ones for 0.
LEAST = float(np.finfo(np.float32).tiny)


class Calibrator(Protocol):
    """A fitted calibrator."""

    @property
    def method(self) -> Method:
        """Its kind."""

    def apply(self, probabilities: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return calibrated probabilities float32 [n, C], rows that sum to 1, of probabilities [n, C]."""

    def graph(self, probabilities: Any) -> Any:
        """Return the same for a tensor float32 [n, C], as TensorFlow operations that a served model may have."""

    def to_json(self) -> dict[str, Any]:
        """Return its parameters."""


@dataclass(frozen=True)
class Temperature:
    """Divides the logits by a temperature; above 1 the answers become less certain. Keeps the order of the classes.

    Attributes:
      temperature: above 0.
    """

    temperature: float
    method: Method = "temperature"

    def apply(self, probabilities: NDArray[np.floating]) -> NDArray[np.float32]:
        logits = np.log(np.maximum(probabilities.astype(np.float64), LEAST)) / self.temperature
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        calibrated = np.maximum(shares / shares.sum(axis=1, keepdims=True), LEAST)
        return calibrated.astype(np.float32)  # type: ignore[no-any-return]

    def graph(self, probabilities: Any) -> Any:
        import tensorflow as tf

        logits = tf.math.log(tf.maximum(tf.cast(probabilities, tf.float64), LEAST)) / self.temperature
        shares = tf.exp(logits - tf.reduce_max(logits, axis=1, keepdims=True))
        shares = shares / tf.reduce_sum(shares, axis=1, keepdims=True)
        return tf.cast(tf.maximum(shares, LEAST), tf.float32)

    def to_json(self) -> dict[str, Any]:
        return {"method": self.method, "temperature": self.temperature}


@dataclass(frozen=True)
class Isotonic:
    """Maps the probability of each class by a rising line of its own, then scales the row to a sum of 1.

    Attributes:
      lines: for each class the points (x, y), float64 [k, 2] with rising x from `LEAST`, and y above 0; k at least 2.
    """

    lines: tuple[NDArray[np.float64], ...]
    method: Method = "isotonic"

    def apply(self, probabilities: NDArray[np.floating]) -> NDArray[np.float32]:
        given = np.maximum(probabilities.astype(np.float64), LEAST)
        columns = []
        for line, values in zip(self.lines, given.T, strict=True):
            x, y = line.T
            at = np.clip(np.searchsorted(x, values, side="right") - 1, 0, len(x) - 2)
            share = np.clip((values - x[at]) / (x[at + 1] - x[at]), 0.0, 1.0)
            columns.append(y[at] + (y[at + 1] - y[at]) * share)
        mapped = np.stack(columns, axis=1)
        calibrated = mapped / mapped.sum(axis=1, keepdims=True)
        return calibrated.astype(np.float32)  # type: ignore[no-any-return]

    def graph(self, probabilities: Any) -> Any:
        import tensorflow as tf

        given = tf.maximum(tf.cast(probabilities, tf.float64), LEAST)
        columns = []
        for number, line in enumerate(self.lines):
            x, y = (tf.constant(each, tf.float64) for each in line.T)
            values = given[:, number]
            at = tf.clip_by_value(tf.searchsorted(x, values, side="right") - 1, 0, len(line) - 2)
            x_at, y_at = tf.gather(x, at), tf.gather(y, at)
            share = tf.clip_by_value((values - x_at) / (tf.gather(x, at + 1) - x_at), 0.0, 1.0)
            columns.append(y_at + (tf.gather(y, at + 1) - y_at) * share)
        mapped = tf.stack(columns, axis=1)
        return tf.cast(mapped / tf.reduce_sum(mapped, axis=1, keepdims=True), tf.float32)

    def to_json(self) -> dict[str, Any]:
        return {"method": self.method, "points": [len(line) for line in self.lines]}
