"""Figures of a model's probabilities on held-out runs: `evaluate` for the gate, `scores` for choosing estimators.

`scores` adds figures by class with 95 % intervals, which are percentiles of a bootstrap of the runs. The figures equal
those of scikit-learn. A resample is a weight for each run: how often it was drawn. So runs are sorted once and not in
each resample, and scikit-learn's checks of its arguments, which take longer than the figures of a few hundred runs, are
not repeated. The figures themselves are those of a resample in which each run was drawn once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ciml.intervals import CONFIDENCE, wilson

_BINS = 10
_CELLS = 1 << 22  # float64 of a block of weights: 32 MiB
RESAMPLES = 300
BY_CLASS = ("precision", "recall", "f1", "roc_auc", "pr_auc")
_MIN_SLICE = 20  # runs: the F1 of fewer is meaningless


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

    def distance(margin: float, other: float) -> float:
        return math.sqrt(max(margin * margin - 2 * phi * margin * other + other * other, 0.0))

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
        "classes": _by_class(confusion, classes),
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


def _by_class(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return precision, recall and F1 of each class; 0 where a class is never predicted or does not occur."""
    hits = np.diag(confusion)
    runs = confusion.sum(axis=1)
    answers = confusion.sum(axis=0)
    wholes = {"precision": answers, "recall": runs, "f1": (runs + answers) / 2}
    shares = {name: hits / np.where(hits > 0, whole, 1) for name, whole in wholes.items()}
    return {
        name: {
            **{figure: float(share[label]) if runs.any() else None for figure, share in shares.items()},
            "runs": int(runs[label]),
        }
        for label, name in enumerate(classes)
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


def drawn_weights(count: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw resamples of ``count`` runs. Yield blocks of float64 [resamples, count]: how often each run was drawn."""
    rng = np.random.default_rng(seed)
    block = max(1, _CELLS // max(count, 1))
    for start in range(0, resamples, block):
        drawn = (rng.integers(count, size=count) for _ in range(start, min(start + block, resamples)))
        yield np.array([np.bincount(rows, minlength=count) for rows in drawn], np.float64)


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
    actual = labels[:, None] == classes
    guessed = predicted[:, None] == classes
    class_weight = weights @ actual
    answered = weights @ guessed
    right = weights @ (actual & guessed)
    total = weights.sum(axis=1)
    by_class = {
        "precision": _share(right, np.maximum(answered, 1)),
        "recall": _share(right, class_weight),
        "f1": _share(2 * right, class_weight + answered),
        "roc_auc": np.full(class_weight.shape, np.nan),
        "pr_auc": np.full(class_weight.shape, np.nan),
    }
    for label in classes:
        areas = _areas(probabilities[:, label], actual[:, label], weights)
        by_class["roc_auc"][:, label], by_class["pr_auc"][:, label] = areas
    out: dict[str, np.ndarray] = {}
    for name, values in by_class.items():
        values[class_weight == 0] = np.nan  # the class does not occur
        out |= {f"{label} {name}": values[:, label] for label in classes}
        finite = np.isfinite(values)
        out[f"macro {name}"] = _share(np.where(finite, values, 0).sum(axis=1), finite.sum(axis=1))
    losses = np.square(probabilities - actual).sum(axis=1)
    out["brier"] = weights @ (losses / 2 if len(classes) == 2 else losses) / total
    return out


def _areas(scores: np.ndarray, own: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the areas below the ROC and the precision-recall curve, float64 [R]; nan with one class alone.

    Runs with the same score are one threshold.
    """
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.diff(-scores[order], prepend=-np.inf))
    positives = np.add.reduceat(weights[:, order] * own[order], starts, axis=1)  # of the class, at each threshold
    negatives = np.add.reduceat(weights[:, order] * ~own[order], starts, axis=1)
    hits = positives.cumsum(axis=1)
    misses = negatives.cumsum(axis=1)
    positive = hits[:, -1]
    negative = misses[:, -1]
    behind = negative[:, None] - misses + negatives / 2
    both = (positive > 0) & (negative > 0)
    roc = _share((positives * behind).sum(axis=1), np.where(both, positive * negative, 0))
    precision = hits / np.maximum(hits + misses, 1)
    return roc, _share((positives * precision).sum(axis=1), np.where(both, positive, 0))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole; nan where the whole is 0."""
    shares: np.ndarray = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return shares


_NOTHING: Mapping[str, None] = {"value": None, "low": None, "high": None}


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
    """Compute the figures of `ciml.training.evaluation.metrics.evaluate` and more, with ``value``, ``low`` and
    ``high``:

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
    result["brier"] = figures.get("brier", dict(_NOTHING))
    result["macro"] = {name: figures.get(f"macro {name}", dict(_NOTHING)) for name in BY_CLASS}
    for label, name in enumerate(classes):
        class_figures = result["classes"][name]
        class_figures |= {figure: figures.get(f"{label} {figure}", dict(_NOTHING)) for figure in BY_CLASS}
        class_figures["share"] = class_figures["runs"] / len(labels) if len(labels) else None
    for name, values in (slices or {}).items():
        for value, class_figures in result["slices"][name].items():
            class_figures |= _slice(labels[np.array(values) == value], predicted[np.array(values) == value])
    return result


def answers(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prepare probabilities for scoring: a row that is not finite counts as wrong, as in `evaluate`.

    Args:
      probabilities: float [n, C].

    Returns:
      float64 [n, C], rows that sum to 1, uniform without an answer; int64 [n], the class, -1 without.
    """
    answered = np.isfinite(probabilities).all(axis=1)
    clean = np.where(answered[:, None], probabilities, 1 / probabilities.shape[1]).astype(np.float64)
    clean /= np.maximum(clean.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return clean, np.where(answered, clean.argmax(axis=1), -1)


def _with_intervals(
    probabilities: np.ndarray, predicted: np.ndarray, labels: np.ndarray, resamples: int, seed: int
) -> dict[str, dict[str, float | None]]:
    if not len(labels):
        return {}
    everyone = weighted_figures(probabilities, predicted, labels, np.ones((1, len(labels))))
    figures = {name: float(values[0]) for name, values in everyone.items() if np.isfinite(values[0])}
    blocks = [
        weighted_figures(probabilities, predicted, labels, weights)
        for weights in drawn_weights(len(labels), resamples, seed)
    ]
    edges = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    out: dict[str, dict[str, float | None]] = {}
    for name, value in figures.items():
        drawn = np.concatenate([block[name] for block in blocks] or [np.zeros(0)])
        drawn = drawn[np.isfinite(drawn)]  # some resamples lack a class
        low, high = np.quantile(drawn, edges).tolist() if len(drawn) else (None, None)
        out[name] = {"value": value, "low": low, "high": high}
    return out


def _slice(labels: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    from sklearn.metrics import f1_score

    figures: dict[str, Any] = {"majority": accuracy(labels == np.bincount(labels).argmax())["value"]}
    if len(labels) >= _MIN_SLICE and len(present := np.unique(labels)) > 1:
        figures["f1"] = float(f1_score(labels, predicted, labels=present, average="macro", zero_division=0.0))
    return figures
