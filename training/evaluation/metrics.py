"""Figures of a model on held-out runs: `evaluate` for the gate, `scores` to choose estimators.

A run is unanswered if one of its probabilities is not finite. No class is predicted for it: it counts as wrong, and
no column of the confusion matrix has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ciml.intervals import wilson
from ciml.training.changes import design_effect, numbers_of
from ciml.training.evaluation.bootstrap import estimate_figures, squared_errors

#: Resamples of the bootstrap.
RESAMPLES = 300
#: Bins of the calibration error.
_BINS = 10
#: Least number of runs of a slice for its F1.
_MIN_SLICE_RUNS = 20

#: Figures by name and value of a slice.
_Slices = dict[str, dict[str, dict[str, Any]]]


def evaluate(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    train_labels: np.ndarray,
    slices: Mapping[str, Sequence[str]] | None = None,
    changes: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compute the figures of a model on held-out runs, as JSON. Undefined figures are None.

    Args:
      probabilities: float [n, C].
      labels: int [n], the right classes.
      classes: names of the C classes.
      train_labels: int [m], the classes of the training runs, whose majority gives the base rate.
      slices: by name a value for each run, such as its job; accuracy is computed for each value.
      changes: int64 [n], the change of each run, for the intervals; see `ciml.training.changes`.

    Raises:
      ValueError: if shapes do not match.
    """
    changes = numbers_of(changes, len(labels))
    figures = _common_figures(probabilities, labels, classes, train_labels, changes)
    predicted = predicted_classes(probabilities)
    right = predicted == labels
    return {
        **figures,
        "brier": float(squared_errors(probabilities, labels).mean()) if len(labels) else None,
        "classes": dict(zip(classes, _class_figures(labels, predicted, len(classes)), strict=True)),
        "slices": _by_slice(slices, lambda rows: accuracy(right[rows], changes[rows])),
    }


def _common_figures(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    train_labels: np.ndarray,
    changes: np.ndarray,
) -> dict[str, Any]:
    """Compute the figures that `evaluate` and `scores` share."""
    n = len(labels)
    count = len(classes)
    if probabilities.shape != (n, count):
        raise ValueError(f"probabilities of shape {probabilities.shape} for {n} runs and {count} classes")
    predicted = predicted_classes(probabilities)
    is_answered = predicted >= 0
    # An unanswered run has the largest log loss and no confidence.
    finite = np.where(is_answered[:, None], probabilities, 0.0).astype(np.float64)
    right = predicted == labels
    majority = int(np.bincount(train_labels, minlength=count).argmax()) if len(train_labels) else 0
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (labels[is_answered], predicted[is_answered]), 1)
    return {
        "runs": n,
        "changes": len(np.unique(changes)),
        "trained_on": len(train_labels),
        "finite": bool(is_answered.all()),
        "accuracy": accuracy(right, changes),
        "base_rate": {"class": classes[majority], **accuracy(labels == majority, changes)},
        "confusion": {"classes": list(classes), "rows_are_labels": confusion.tolist()},
        "log_loss": _log_loss(finite, labels),
        "calibration": _calibration(finite, right, changes),
    }


def predicted_classes(probabilities: np.ndarray) -> np.ndarray:
    """Return the most probable class of each run, int64 [n]; -1 for an unanswered run.

    Args:
      probabilities: float [n, C].
    """
    is_answered = np.isfinite(probabilities).all(axis=1)
    return np.where(is_answered, probabilities.argmax(axis=1), -1)


def prepare_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Return float64 [n, C], rows that sum to 1. The row of an unanswered run is uniform."""
    is_answered = predicted_classes(probabilities) >= 0
    prepared = np.where(is_answered[:, None], probabilities, 1 / probabilities.shape[1]).astype(np.float64)
    prepared /= np.maximum(prepared.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return prepared


def accuracy(right: Sequence[bool] | np.ndarray, changes: np.ndarray | None = None) -> dict[str, Any]:
    """Compute the accuracy with its 95 % interval.

    Args:
      right: bool [n], whether the model was right on each run.
      changes: int64 [n], or None; see `ciml.training.changes`.

    Returns:
      ``value``, ``low``, ``high``, ``right``, ``runs``, and ``independent``, the number of independent runs that would
      tell as much. The interval is Wilson's of that number.
    """
    total = len(right)
    count = int(np.sum(right))
    share = count / total if total else None
    effect = design_effect(np.asarray(right, np.float64) - (share or 0.0), changes)
    low, high = wilson(count / effect, total / effect)
    return {"value": share, "low": low, "high": high, "right": count, "runs": total, "independent": total / effect}


def _class_figures(labels: np.ndarray, predicted: np.ndarray, count: int) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and runs of each class; 0 if it is never predicted or does not occur."""
    figures = []
    for label in range(count):
        runs = int((labels == label).sum())
        predictions = int((predicted == label).sum())
        hits = int(((labels == label) & (predicted == label)).sum())
        denominators = {"precision": predictions, "recall": runs, "f1": (runs + predictions) / 2}
        shares = {name: hits / (denominator if hits else 1) for name, denominator in denominators.items()}
        figures.append({**(shares if len(labels) else dict.fromkeys(shares)), "runs": runs})
    return figures


def _log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    if len(labels) == 0:
        return None
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(chosen, 1e-7, 1.0)).mean())


def _calibration(probabilities: np.ndarray, right: np.ndarray, changes: np.ndarray) -> dict[str, Any]:
    """Compute the expected calibration error over `_BINS` bins of confidence, and the bins that have runs.

    A calibrated model has an error, too, since bins hold few runs. ``chance`` is what 95 of 100 calibrated models with
    these confidences stay below (consistency resampling, Bröcker and Smith 2007). It is that of independent runs, times
    the root of the `design_effect`.
    """
    if len(right) == 0:
        return {"ece": None, "chance": None, "bins": []}
    confidence = probabilities.max(axis=1)
    bin_of = np.clip((confidence * _BINS).astype(int), 0, _BINS - 1)
    bins = []
    error = 0.0
    for index in range(_BINS):
        is_in_bin = bin_of == index
        runs = int(is_in_bin.sum())
        if runs == 0:
            continue
        mean = float(confidence[is_in_bin].mean())
        share = float(right[is_in_bin].mean())
        error += runs / len(right) * abs(mean - share)
        bins.append({"low": index / _BINS, "runs": runs, "confidence": mean, "accuracy": share})
    effect = design_effect(right - confidence, changes)
    return {"ece": error, "chance": _chance_error(confidence, bin_of) * math.sqrt(effect), "bins": bins}


def _chance_error(confidence: np.ndarray, bin_of: np.ndarray) -> float:
    """Return the 95 % quantile of the calibration error of calibrated models with these confidences."""
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(RESAMPLES):
        surplus = (rng.random(len(confidence)) < confidence) - confidence
        surplus_of_bin = np.bincount(bin_of, weights=surplus)  # right runs beyond the confidence
        errors.append(np.abs(surplus_of_bin).sum() / len(confidence))
    return float(np.quantile(errors, 0.95))


def _by_slice(
    slices: Mapping[str, Sequence[str]] | None, figures_of: Callable[[np.ndarray], dict[str, Any]]
) -> _Slices:
    """Compute figures for each value of each slice. ``figures_of`` is called with the rows of the value's runs."""
    return {
        name: {value: figures_of(rows) for value, rows in rows_by_value(values).items()}
        for name, values in (slices or {}).items()
    }


def rows_by_value(values: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the rows that have each value, int64 [n], by value in ascending order."""
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(value, []).append(row)
    return {value: np.array(rows[value]) for value in sorted(rows)}


def calibration_quality(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of `evaluate` that a calibration changes: ``log_loss`` and ``calibration``."""
    return {name: figures[name] for name in ("log_loss", "calibration")}


def scores(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    train_labels: np.ndarray,
    slices: Mapping[str, Sequence[str]] | None = None,
    changes: np.ndarray | None = None,
    *,
    resamples: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute the figures of `evaluate`, but with other ``classes`` and ``slices``, and ``macro`` and ``brier``.

    - ``classes``: of each class against all others its ``runs``, its ``share`` of the runs, which is the PR-AUC of a
      random guess, and ``precision``, ``recall``, ``f1``, ``roc_auc``, ``pr_auc``, each with ``value``, ``low`` and
      ``high``;
    - ``macro``: the mean of each of these five over the classes that occur, with its interval;
    - ``brier``: the mean squared error of the probabilities, with its interval; for two classes that of one;
    - ``slices``: the accuracy, the share of the most frequent class, ``majority``, and, with enough runs of several
      classes, the macro ``f1`` as a number.

    The areas and ``brier`` take an unanswered run's probabilities as equal.

    Args:
      probabilities: float [n, C].
      labels: int [n].
      classes: names of the C classes.
      train_labels: int [m], of the training runs.
      slices: by name a value for each run.
      changes: int64 [n], the change of each run, for the intervals; see `ciml.training.changes`.
      resamples: of the bootstrap, `RESAMPLES` by default; 0 for no intervals, then ``low`` and ``high`` are None.
      seed: of the bootstrap.

    Returns:
      JSON. Undefined figures, such as a ROC-AUC with a single class, are None.

    Raises:
      ValueError: if shapes do not match.
    """
    changes = numbers_of(changes, len(labels))
    figures = _common_figures(probabilities, labels, classes, train_labels, changes)
    predicted = predicted_classes(probabilities)
    prepared = prepare_probabilities(probabilities)
    count = RESAMPLES if resamples is None else resamples
    estimates = estimate_figures(prepared, predicted, labels, changes, count, seed)
    class_figures = {}
    for label, name in enumerate(classes):
        runs = int((labels == label).sum())
        share = runs / len(labels) if len(labels) else None
        class_figures[name] = {**estimates.by_class[label], "runs": runs, "share": share}
    return {
        **figures,
        "classes": class_figures,
        "macro": estimates.macro,
        "brier": estimates.brier,
        "slices": _by_slice(slices, lambda rows: _slice_figures(labels[rows], predicted[rows], changes[rows])),
    }


def _slice_figures(labels: np.ndarray, predicted: np.ndarray, changes: np.ndarray) -> dict[str, Any]:
    counts = np.bincount(labels)
    figures = {**accuracy(labels == predicted, changes), "majority": int(counts.max()) / len(labels)}
    by_class = _class_figures(labels, predicted, len(counts))
    f1s = [class_figures["f1"] for class_figures in by_class if class_figures["runs"]]
    if len(labels) >= _MIN_SLICE_RUNS and len(f1s) > 1:
        figures["f1"] = sum(f1s) / len(f1s)
    return figures
