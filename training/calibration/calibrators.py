"""Calibrators: maps from a model's probabilities to calibrated ones, and how they are fitted.

A calibrator has two forms: in numpy (``apply``), and as operations of a model's graph (``graph``). Both compute in
float64 and round once, so they agree in float32's last digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["temperature", "isotonic"]
#: The least probability before and after a calibration: the smallest normal float32. TensorFlow may round smaller ones
#: to 0.
LEAST = float(np.finfo(np.float32).tiny)
#: Least number of runs, and of runs of each class, for an isotonic calibrator. It fits any rising line, so with fewer
#: runs it fits their noise.
ISOTONIC_RUNS = 1000
ISOTONIC_CLASS_RUNS = 100
#: The range of temperatures.
_COLDEST = 0.05
_HOTTEST = 20.0


@dataclass(frozen=True)
class Temperature:
    """Divides the logits by a temperature; above 1 the answers become less certain. Keeps the order of the classes.

    Attributes:
      temperature: above 0.
      doubt: the part of an answer that is the same for all classes, below 1. It is that of one more run than the
        calibrator was fitted to: n runs support no probability of 0. Earlier calibrators have none.
    """

    temperature: float
    doubt: float = 0.0
    method: Method = "temperature"

    def apply(self, probabilities: NDArray[np.floating]) -> NDArray[np.float32]:
        """Calibrate probabilities [n, C]. Return float32 [n, C]; each row sums to 1."""
        logits = np.log(np.maximum(probabilities.astype(np.float64), LEAST)) / self.temperature
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        certain = (1 - self.doubt) * (shares / shares.sum(axis=1, keepdims=True))
        calibrated = np.maximum(certain + self.doubt / shares.shape[1], LEAST)
        return calibrated.astype(np.float32)  # type: ignore[no-any-return]

    def graph(self, probabilities: Any) -> Any:
        """Calibrate a tensor float32 [n, C] as `apply` does, by operations that a served model may have."""
        import tensorflow as tf

        logits = tf.math.log(tf.maximum(tf.cast(probabilities, tf.float64), LEAST)) / self.temperature
        shares = tf.exp(logits - tf.reduce_max(logits, axis=1, keepdims=True))
        certain = (1 - self.doubt) * (shares / tf.reduce_sum(shares, axis=1, keepdims=True))
        calibrated = certain + self.doubt / probabilities.shape[1]
        return tf.cast(tf.maximum(calibrated, LEAST), tf.float32)

    def to_json(self) -> dict[str, Any]:
        return {"method": self.method, "temperature": self.temperature, "doubt": self.doubt}

    def to_asset(self) -> dict[str, Any]:
        """Return the calibrator as JSON, for `calibrator_of`."""
        return self.to_json()


@dataclass(frozen=True)
class Isotonic:
    """Maps the probability of each class along its own rising line, then scales the row to a sum of 1.

    Attributes:
      lines: the points (x, y) of each class's line, float64 [k, 2], k at least 2. x rises from `LEAST`; y is above 0.
    """

    lines: tuple[NDArray[np.float64], ...]
    method: Method = "isotonic"

    def apply(self, probabilities: NDArray[np.floating]) -> NDArray[np.float32]:
        """Calibrate probabilities, as `Temperature.apply` does."""
        clipped = np.maximum(probabilities.astype(np.float64), LEAST)
        columns = [np.interp(values, *line.T) for line, values in zip(self.lines, clipped.T, strict=True)]
        mapped = np.stack(columns, axis=1)
        calibrated = mapped / mapped.sum(axis=1, keepdims=True)
        return calibrated.astype(np.float32)  # type: ignore[no-any-return]

    def graph(self, probabilities: Any) -> Any:
        """Calibrate a tensor, as `Temperature.graph` does."""
        import tensorflow as tf

        def interpolate(values: Any, line: NDArray[np.float64]) -> Any:
            x = tf.constant(line[:, 0], tf.float64)
            y = tf.constant(line[:, 1], tf.float64)
            segment = tf.clip_by_value(tf.searchsorted(x, values, side="right") - 1, 0, len(line) - 2)
            x_start = tf.gather(x, segment)
            y_start = tf.gather(y, segment)
            share = tf.clip_by_value((values - x_start) / (tf.gather(x, segment + 1) - x_start), 0.0, 1.0)
            return y_start + (tf.gather(y, segment + 1) - y_start) * share

        clipped = tf.maximum(tf.cast(probabilities, tf.float64), LEAST)
        mapped = tf.stack([interpolate(clipped[:, label], line) for label, line in enumerate(self.lines)], axis=1)
        return tf.cast(mapped / tf.reduce_sum(mapped, axis=1, keepdims=True), tf.float32)

    def to_json(self) -> dict[str, Any]:
        return {"method": self.method, "points": [len(line) for line in self.lines]}

    def to_asset(self) -> dict[str, Any]:
        """Return the calibrator as JSON, for `calibrator_of`."""
        return {"method": self.method, "lines": [line.tolist() for line in self.lines]}


#: A fitted calibrator.
Calibrator = Temperature | Isotonic


def calibrator_of(value: Any) -> Calibrator:
    """Read a calibrator that ``to_asset`` returned. Raises `ValueError` if it is malformed."""
    if not isinstance(value, dict) or value.get("method") not in ("temperature", "isotonic"):
        raise ValueError("calibrator: expected a method, temperature or isotonic")
    if value["method"] == "temperature":
        temperature = value.get("temperature")
        if not isinstance(temperature, float) or not _COLDEST <= temperature <= _HOTTEST:
            raise ValueError(f"calibrator: temperature: {temperature!r:.40} is not from {_COLDEST} to {_HOTTEST}")
        doubt = value.get("doubt", 0.0)
        if not isinstance(doubt, float) or not 0 <= doubt < 1:
            raise ValueError(f"calibrator: doubt: {doubt!r:.40} is not from 0 to below 1")
        return Temperature(temperature, doubt)
    lines = tuple(np.array(line, np.float64) for line in value.get("lines", ()))
    for line in lines:
        if line.ndim != 2 or line.shape[1] != 2 or len(line) < 2 or not np.isfinite(line).all():
            raise ValueError("calibrator: lines: expected points (x, y), two at least")
    return Isotonic(lines)


def fit_calibrator(
    probabilities: NDArray[np.floating],
    labels: NDArray[np.integer],
    method: Literal["auto", "temperature", "isotonic"] = "auto",
) -> Calibrator:
    """Fit a calibrator.

    Args:
      probabilities: float [n, C] of held-out runs; n at least 1.
      labels: int [n].
      method: ``auto`` means ``isotonic`` for at least `ISOTONIC_RUNS` runs, `ISOTONIC_CLASS_RUNS` of each class, and
        else ``temperature``.
    """
    if method == "auto":
        counts = np.bincount(labels, minlength=probabilities.shape[1])
        many = len(labels) >= ISOTONIC_RUNS and counts.min() >= ISOTONIC_CLASS_RUNS
        method = "isotonic" if many else "temperature"
    if method == "isotonic":
        return _fit_isotonic(probabilities, labels)
    return _fit_temperature(probabilities, labels)


def _fit_temperature(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> Temperature:
    """Fit the temperature of the largest posterior density.

    The prior of its logarithm is standard normal, and weighs as much as a few runs. Without a prior, ten runs that are
    all right, or all wrong, would have the temperature 0 or infinity. Trees that agree give a probability of 0. Without
    `Temperature.doubt`, one such run with the other class would cost as much as all others together, and the highest
    temperature would make every answer even.
    """
    from scipy.optimize import minimize_scalar

    doubt = 1 / (len(labels) + 1)

    def cost(log_temperature: float) -> float:
        """Return the negative logarithm of the posterior density, up to a constant."""
        calibrated = Temperature(float(np.exp(log_temperature)), doubt).apply(probabilities)
        return len(labels) * log_loss(calibrated, labels) + log_temperature**2 / 2

    minimum = minimize_scalar(
        cost, bounds=(np.log(_COLDEST), np.log(_HOTTEST)), method="bounded", options={"xatol": 1e-6}
    )
    return Temperature(float(np.exp(minimum.x)), doubt)


def _fit_isotonic(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> Isotonic:
    """Fit a line of each class against all others. No probability becomes 0 or 1, since n runs cannot support that."""
    from sklearn.isotonic import IsotonicRegression

    least = 1 / (len(labels) + 2)
    lines = []
    for label in range(probabilities.shape[1]):
        regression = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
        class_probabilities = np.maximum(probabilities[:, label].astype(np.float64), LEAST)
        regression.fit(class_probabilities, (labels == label).astype(np.float64))
        x = regression.X_thresholds_
        y = regression.y_thresholds_
        if len(x) == 1:  # a constant: interpolation needs two points
            x = np.array([x[0], x[0] + 1.0])
            y = np.repeat(y, 2)
        lines.append(np.stack([x, y], axis=1).astype(np.float64))
    return Isotonic(tuple(lines))


def log_loss(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the mean negative logarithm of the probability of each run's own class."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(chosen, LEAST)).mean())
