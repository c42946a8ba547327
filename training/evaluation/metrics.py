"""Figures of a model's probabilities on held-out runs: `evaluate` for the gate, `scores` for choosing estimators.

`scores` adds figures by class with 95 % intervals, which are percentiles of a bootstrap of the runs. The figures equal
those of scikit-learn, but are computed for all resamples together: a resample is a weight of each run, the number of
times that it was drawn. So runs are sorted once, and scikit-learn does not check its arguments in each resample, which
would take longer than the figures. The figures themselves are those of a resample in which each run was drawn once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ciml.intervals import CONFIDENCE, wilson

#: Resamples of the bootstrap.
RESAMPLES = 300
#: Figures of each class against all others.
BY_CLASS = ("precision", "recall", "f1", "roc_auc", "pr_auc")
#: Bins of the calibration error.
_BINS = 10
#: Weights in memory at once, float64: 32 MiB.
_BLOCK_WEIGHTS = 1 << 22
#: Least number of runs of a slice for its F1.
_MIN_SLICE_RUNS = 20
_UNDEFINED: Mapping[str, None] = {"value": None, "low": None, "high": None}


def evaluate(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    train_labels: np.ndarray,
    slices: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Compute the figures of a model on held-out runs, as JSON. Undefined figures are None.

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
    # A row that is not finite counts as wrong.
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
        "classes": _by_class(confusion, classes),
        "confusion": {"classes": list(classes), "rows_are_labels": confusion.tolist()},
        "log_loss": _log_loss(clean, labels),
        "calibration": _calibration(clean, right),
        "slices": {
            name: {value: accuracy(right[np.array(values) == value]) for value in sorted(set(values))}
            for name, values in (slices or {}).items()
        },
    }


def accuracy(right: Sequence[bool] | np.ndarray) -> dict[str, Any]:
    """Compute the accuracy with its 95 % interval: ``value``, ``low``, ``high``, ``right``, ``runs``."""
    total = len(right)
    count = int(np.sum(right))
    low, high = wilson(count, total)
    return {"value": count / total if total else None, "low": low, "high": high, "right": count, "runs": total}


def _by_class(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return precision, recall, F1 and runs of each class; 0 where it is never predicted or does not occur."""
    hits = np.diag(confusion)
    runs = confusion.sum(axis=1)
    predictions = confusion.sum(axis=0)
    denominators = {"precision": predictions, "recall": runs, "f1": (runs + predictions) / 2}
    figures: dict[str, dict[str, Any]] = {name: {} for name in classes}
    for figure, denominator in denominators.items():
        shares = (hits / np.where(hits > 0, denominator, 1)).tolist()
        for name, share in zip(classes, shares, strict=True):
            figures[name][figure] = share if runs.any() else None
    for name, class_runs in zip(classes, runs.tolist(), strict=True):
        figures[name]["runs"] = class_runs
    return figures


def _log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    if len(labels) == 0:
        return None
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(chosen, 1e-7, 1.0)).mean())


def _calibration(probabilities: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Compute the expected calibration error over ten bins of confidence, and the bins for a plot."""
    if len(right) == 0:
        return {"ece": None, "bins": []}
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
    return {"ece": error, "bins": bins}


def sharpness(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of `evaluate` that a calibration changes."""
    return {name: figures[name] for name in ("log_loss", "calibration")}


def scores(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    train_labels: np.ndarray,
    slices: Mapping[str, Sequence[str]] | None = None,
    *,
    resamples: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute the figures of `evaluate`, and more, each with ``value``, ``low`` and ``high``.

    - in ``classes``, of each class against all others: ``precision``, ``recall``, ``f1``, ``roc_auc``, ``pr_auc``, and
      its ``share`` of the runs, which is the PR-AUC of a random guess;
    - ``macro``: the mean of each of these over the classes that occur;
    - ``brier``: the mean squared error of the probabilities; for two classes that of one;
    - in ``slices``: the share of its most frequent class, ``majority``, and, with enough runs, the
      macro ``f1`` as a number.

    Args:
      probabilities: float [n, C].
      labels: int [n].
      classes: names of the C classes.
      train_labels: int [m], of the training runs.
      slices: by name a value for each run.
      resamples: of the bootstrap, `RESAMPLES` by default; 0 for no intervals, then ``low`` and ``high`` are None.
      seed: of the bootstrap.

    Returns:
      JSON. Undefined figures, such as a ROC-AUC with a single class, are None.

    Raises:
      ValueError: if shapes do not match.
    """
    result = evaluate(probabilities, labels, classes, train_labels, slices)
    clean, predicted = answers(probabilities)
    figures = _with_intervals(clean, predicted, labels, RESAMPLES if resamples is None else resamples, seed)

    def figure(name: str) -> dict[str, float | None]:
        return figures.get(name, dict(_UNDEFINED))

    result["brier"] = figure("brier")
    result["macro"] = {name: figure(f"macro {name}") for name in BY_CLASS}
    for label, class_name in enumerate(classes):
        class_figures = result["classes"][class_name]
        class_figures |= {name: figure(f"{label} {name}") for name in BY_CLASS}
        class_figures["share"] = class_figures["runs"] / len(labels) if len(labels) else None
    for slice_name, values in (slices or {}).items():
        for value, slice_figures in result["slices"][slice_name].items():
            is_in_slice = np.array(values) == value
            slice_figures |= _slice_figures(labels[is_in_slice], predicted[is_in_slice])
    return result


def answers(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prepare probabilities for scoring: a row that is not finite counts as wrong, as in `evaluate`.

    Args:
      probabilities: float [n, C].

    Returns:
      float64 [n, C], rows that sum to 1, uniform for a row that is not finite; and int64 [n], the class, -1 for it.
    """
    is_finite = np.isfinite(probabilities).all(axis=1)
    clean = np.where(is_finite[:, None], probabilities, 1 / probabilities.shape[1]).astype(np.float64)
    clean /= np.maximum(clean.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return clean, np.where(is_finite, clean.argmax(axis=1), -1)


def _with_intervals(
    probabilities: np.ndarray, predicted: np.ndarray, labels: np.ndarray, resamples: int, seed: int
) -> dict[str, dict[str, float | None]]:
    """Return ``value``, ``low`` and ``high`` of the defined figures of `weighted_figures`."""
    if not len(labels):
        return {}
    unweighted = weighted_figures(probabilities, predicted, labels, np.ones((1, len(labels))))
    blocks = [
        weighted_figures(probabilities, predicted, labels, weights)
        for weights in drawn_weights(len(labels), resamples, seed)
    ]
    edges = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    figures: dict[str, dict[str, float | None]] = {}
    for name, (value,) in unweighted.items():
        if not np.isfinite(value):
            continue
        resampled = np.concatenate([block[name] for block in blocks] or [np.zeros(0)])
        resampled = resampled[np.isfinite(resampled)]  # some resamples lack a class
        low, high = np.quantile(resampled, edges).tolist() if len(resampled) else (None, None)
        figures[name] = {"value": float(value), "low": low, "high": high}
    return figures


def drawn_weights(count: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw resamples of ``count`` runs. Yield blocks of weights float64 [resamples, count]."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_WEIGHTS // max(count, 1))
    for start in range(0, resamples, block):
        draws = (rng.integers(count, size=count) for _ in range(start, min(start + block, resamples)))
        yield np.array([np.bincount(rows, minlength=count) for rows in draws], np.float64)


def weighted_figures(
    probabilities: np.ndarray, predicted: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> Mapping[str, np.ndarray]:
    """Compute figures for each resample.

    Args:
      probabilities: float64 [n, C].
      predicted: int [n], -1 for no answer.
      labels: int [n].
      weights: float64 [R, n], whole numbers.

    Returns:
      float64 [R] by ``<label> <name>``, ``macro <name>`` and ``brier``; nan where a figure is undefined.
    """
    classes = np.arange(probabilities.shape[1])
    is_label = labels[:, None] == classes
    is_prediction = predicted[:, None] == classes
    label_weights = weights @ is_label
    prediction_weights = weights @ is_prediction
    right_weights = weights @ (is_label & is_prediction)
    areas = [_areas(probabilities[:, label], is_label[:, label], weights) for label in classes]
    by_class = {
        "precision": _divide(right_weights, np.maximum(prediction_weights, 1)),
        "recall": _divide(right_weights, label_weights),
        "f1": _divide(2 * right_weights, label_weights + prediction_weights),
        "roc_auc": np.stack([area.roc for area in areas], axis=1),
        "pr_auc": np.stack([area.precision_recall for area in areas], axis=1),
    }
    figures: dict[str, np.ndarray] = {}
    for name, values in by_class.items():
        values[label_weights == 0] = np.nan  # the class does not occur
        for label in classes:
            figures[f"{label} {name}"] = values[:, label]
        is_defined = np.isfinite(values)
        figures[f"macro {name}"] = _divide(np.where(is_defined, values, 0).sum(axis=1), is_defined.sum(axis=1))
    losses = np.square(probabilities - is_label).sum(axis=1)
    figures["brier"] = weights @ (losses / 2 if len(classes) == 2 else losses) / weights.sum(axis=1)
    return figures


class _Areas(NamedTuple):
    """The areas below the ROC and the precision-recall curve, float64 [R]; nan with one class alone."""

    roc: np.ndarray
    precision_recall: np.ndarray


def _areas(scores: np.ndarray, is_label: np.ndarray, weights: np.ndarray) -> _Areas:
    """Compute the areas of a class for each resample. Runs with the same score are one threshold.

    Args:
      scores: float64 [n], the probabilities of the class.
      is_label: bool [n], whether a run is of the class.
      weights: float64 [R, n].
    """
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.diff(-scores[order], prepend=-np.inf))
    # [R, thresholds]: runs of the class, and others, at each threshold; then all down to it.
    positives = np.add.reduceat(weights[:, order] * is_label[order], starts, axis=1)
    negatives = np.add.reduceat(weights[:, order] * ~is_label[order], starts, axis=1)
    true_positives = positives.cumsum(axis=1)
    false_positives = negatives.cumsum(axis=1)
    all_positives = true_positives[:, -1]
    all_negatives = false_positives[:, -1]
    has_both = (all_positives > 0) & (all_negatives > 0)
    ranked_below = all_negatives[:, None] - false_positives + negatives / 2
    precision = true_positives / np.maximum(true_positives + false_positives, 1)
    return _Areas(
        _divide((positives * ranked_below).sum(axis=1), np.where(has_both, all_positives * all_negatives, 0)),
        _divide((positives * precision).sum(axis=1), np.where(has_both, all_positives, 0)),
    )


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole; nan where the whole is 0."""
    shares: np.ndarray = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return shares


def _slice_figures(labels: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    from sklearn.metrics import f1_score

    figures: dict[str, Any] = {"majority": accuracy(labels == np.bincount(labels).argmax())["value"]}
    present = np.unique(labels)
    if len(labels) >= _MIN_SLICE_RUNS and len(present) > 1:
        figures["f1"] = float(f1_score(labels, predicted, labels=present, average="macro", zero_division=0.0))
    return figures


def paired_interval(right: np.ndarray, other_right: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return an interval (low, high) of the difference of two accuracies on the same runs; (-1, 1) for no runs.

    It is Newcombe's interval (1998, method 10): Wilson's intervals of both, combined by their correlation. Unlike that
    of a bootstrap, its width is above 0 if both are right on the same runs.

    Args:
      right: bool [n], whether the first was right on each run.
      other_right: bool [n], the same for the second; the difference is the first's accuracy minus its.
      confidence: of the interval.
    """
    n = len(right)
    if n == 0:
        return -1.0, 1.0
    count = int(np.sum(right))
    other_count = int(np.sum(other_right))
    both = int(np.sum(right & other_right))
    neither = n - count - other_count + both
    margins = math.sqrt(float(count * (n - count)) * float(other_count * (n - other_count)))
    covariance = float(both * neither - (count - both) * (other_count - both))
    if covariance > 0:  # Newcombe's correction: a positive correlation narrows the interval, so it is reduced
        covariance = max(covariance - n / 2, 0.0)
    correlation = covariance / margins if margins else 0.0

    def distance(margin: float, other_margin: float) -> float:
        return math.sqrt(max(margin**2 - 2 * correlation * margin * other_margin + other_margin**2, 0.0))

    share = count / n
    other_share = other_count / n
    low, high = wilson(count, n, confidence)
    other_low, other_high = wilson(other_count, n, confidence)
    difference = share - other_share
    return (
        max(-1.0, difference - distance(share - low, other_high - other_share)),
        min(1.0, difference + distance(high - share, other_share - other_low)),
    )
