"""Fits a calibrator to the probabilities that a model gave to runs it did not learn from."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ciml.training.calibration.calibrators import LEAST, Calibrator, Isotonic, Temperature

#: An isotonic calibrator fits any rising line, and so fits the noise of fewer runs, or of fewer of one class.
ISOTONIC_RUNS, ISOTONIC_CLASS_RUNS = 1000, 100
#: Temperatures that are tried.
_COLDEST, _HOTTEST = 0.05, 20.0


def fit_calibrator(
    probabilities: NDArray[np.floating],
    labels: NDArray[np.integer],
    method: Literal["auto", "temperature", "isotonic"] = "auto",
) -> Calibrator:
    """Fit a calibrator.

    Args:
      probabilities: float [n, C] of held-out runs; n at least 1.
      labels: int [n].
      method: ``auto`` takes ``isotonic`` for many runs (`ISOTONIC_RUNS`, `ISOTONIC_CLASS_RUNS` of each class), else
        ``temperature``.
    """
    if method == "auto":
        counts = np.bincount(labels, minlength=probabilities.shape[1])
        many = len(labels) >= ISOTONIC_RUNS and counts.min() >= ISOTONIC_CLASS_RUNS
        method = "isotonic" if many else "temperature"
    if method == "isotonic":
        return _isotonic(probabilities, labels)
    return _temperature(probabilities, labels)


def log_loss(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the mean negative logarithm of the probability of each run's own class."""
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(own, LEAST)).mean())


def _temperature(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> Temperature:
    """Return the temperature of the largest posterior density.

    A priori its logarithm has the standard normal density: ten runs that are all right, or all wrong, would otherwise
    have the temperature 0 or infinity. It weighs as much as a few runs.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    logits = np.log(np.maximum(probabilities.astype(np.float64), LEAST))
    own = logits[np.arange(len(labels)), labels]

    def cost(logarithm: float) -> float:
        scale = np.exp(-logarithm)
        return float((logsumexp(logits * scale, axis=1) - own * scale).sum() + logarithm**2 / 2)

    found = minimize_scalar(
        cost, bounds=(np.log(_COLDEST), np.log(_HOTTEST)), method="bounded", options={"xatol": 1e-6}
    )
    return Temperature(float(np.exp(found.x)))


def _isotonic(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> Isotonic:
    """Return a line for each class against all others. No probability becomes 0 or 1: n runs do not show that."""
    from sklearn.isotonic import IsotonicRegression

    least = 1 / (len(labels) + 2)
    lines = []
    for label in range(probabilities.shape[1]):
        fitted = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
        fitted.fit(np.maximum(probabilities[:, label].astype(np.float64), LEAST), (labels == label).astype(np.float64))
        x, y = fitted.X_thresholds_, fitted.y_thresholds_
        if len(x) == 1:
            x, y = np.array([x[0], x[0] + 1.0]), np.repeat(y, 2)
        lines.append(np.stack([x, y], axis=1).astype(np.float64))
    return Isotonic(tuple(lines))
