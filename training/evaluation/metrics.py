"""Evaluates a model's probabilities on held-out runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ciml.intervals import CONFIDENCE, wilson

_BINS = 10


def paired_interval(right: np.ndarray, other_right: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return an interval (low, high) of the difference of two accuracies on the same runs; (-1, 1) for no runs.

    It is Newcombe's (1998, method 10): Wilson's intervals of both, combined by their correlation. Unlike a bootstrap,
    it is not of width 0 where both are right on the same runs.

    Args:
      right: bool [n], whether the first was right on each run.
      other_right: bool [n], the same for the second; the difference is the first's accuracy minus its.
      confidence: of the interval.
    """
    n = len(right)
    if n == 0:
        return -1.0, 1.0
    both = int(np.sum(right & other_right))
    first = int(np.sum(right))
    second = int(np.sum(other_right))
    neither = n - first - second + both
    (low, high) = wilson(first, n, confidence)
    (other_low, other_high) = wilson(second, n, confidence)
    share = first / n
    variance = second / n
    margins = math.sqrt(float(first * (n - first)) * float(second * (n - second)))
    covariance = float(both * neither - (first - both) * (second - both))
    if covariance > 0:  # Newcombe's correction: a positive correlation narrows the interval, so take it cautiously
        covariance = max(covariance - n / 2, 0.0)
    phi = covariance / margins if margins else 0.0

    def distance(one: float, two: float) -> float:
        return math.sqrt(max(one * one - 2 * phi * one * two + two * two, 0.0))

    difference = share - variance
    return (
        max(-1.0, difference - distance(share - low, other_high - variance)),
        min(1.0, difference + distance(high - share, variance - other_low)),
    )


def accuracy(right: Sequence[bool] | np.ndarray) -> dict[str, Any]:
    """Return the accuracy with its interval: ``value``, ``low``, ``high``, ``right``, ``runs``."""
    total = len(right)
    count = int(np.sum(right))
    low, high = wilson(count, total)
    return {"value": count / total if total else None, "low": low, "high": high, "right": count, "runs": total}


def evaluate(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    train_labels: np.ndarray,
    slices: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Return the metrics of a model on held-out runs, as JSON. Undefined figures are None.

    Args:
      probabilities: float [n, C].
      labels: int [n], the right classes.
      classes: names of the C classes.
      train_labels: int [m], the classes of the training runs, whose majority gives the base rate.
      slices: by name a value for each run, such as its job; accuracy is computed for each value.

    Raises:
      ValueError: if shapes do not match.
    """
    n = len(labels)
    count = len(classes)
    if probabilities.shape != (n, count):
        raise ValueError(f"probabilities of shape {probabilities.shape} for {n} runs and {count} classes")
    finite = bool(np.isfinite(probabilities).all())
    clean = np.nan_to_num(probabilities.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    predicted = clean.argmax(axis=1) if n else np.zeros(0, np.int64)
    # a row that is not finite counts as wrong
    right = (predicted == labels) & np.isfinite(probabilities).all(axis=1)
    majority = int(np.bincount(train_labels, minlength=count).argmax()) if len(train_labels) else 0
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    return {
        "runs": n,
        "trained_on": len(train_labels),
        "finite": finite,
        "accuracy": accuracy(right),
        "base_rate": {"class": classes[majority], **accuracy(labels == majority)},
        "classes": _by_class(labels, predicted, classes),
        "confusion": {"classes": list(classes), "rows_are_labels": confusion.tolist()},
        "log_loss": _log_loss(clean, labels),
        "calibration": _calibration(clean, right),
        "slices": {
            name: {value: accuracy(right[np.array(values) == value]) for value in sorted(set(values))}
            for name, values in (slices or {}).items()
        },
    }


def sharpness(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return those figures of `evaluate` that a calibration changes, for uncalibrated probabilities beside others."""
    return {name: figures[name] for name in ("log_loss", "calibration")}


def _by_class(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    from sklearn.metrics import precision_recall_fscore_support

    if len(labels) == 0:
        return {name: {"precision": None, "recall": None, "f1": None, "runs": 0} for name in classes}
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=range(len(classes)), zero_division=0.0
    )
    return {
        name: {
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "f1": float(f1[index]),
            "runs": int(support[index]),
        }
        for index, name in enumerate(classes)
    }


def _log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    if len(labels) == 0:
        return None
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(chosen, 1e-7, 1.0)).mean())


def _calibration(probabilities: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Return the expected calibration error over ten bins of confidence, and the bins for a plot."""
    if len(right) == 0:
        return {"ece": None, "bins": []}
    confidence = probabilities.max(axis=1)
    bin_of = np.clip((confidence * _BINS).astype(int), 0, _BINS - 1)
    bins = []
    error = 0.0
    for index in range(_BINS):
        inside = bin_of == index
        if runs := int(inside.sum()):
            mean = float(confidence[inside].mean())
            share = float(right[inside].mean())
            error += runs / len(right) * abs(mean - share)
            bins.append({"low": index / _BINS, "runs": runs, "confidence": mean, "accuracy": share})
    return {"ece": error, "bins": bins}
