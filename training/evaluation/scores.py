"""Scores of an experiment's probabilities: by class, with intervals, beside trivial baselines.

`ciml.training.evaluation.metrics` serves the gate; these scores are for choosing estimators. The metrics are
those of scikit-learn, the intervals (95 %) percentiles of a bootstrap of the runs.

The figures of `ciml.training.evaluation.scores` for many resamples of the same runs at once.

A resample is a weight for each run: how often it was drawn. So runs are sorted once and not in each resample, and
scikit-learn's checks of its arguments, which take longer than the figures of a few hundred runs, are not repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ciml.intervals import CONFIDENCE
from ciml.training.evaluation.metrics import accuracy, evaluate

_CELLS = 1 << 22  # float64 of a block of weights: 32 MiB


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


RESAMPLES = 300
BY_CLASS = ("precision", "recall", "f1", "roc_auc", "pr_auc")
_NOTHING: Mapping[str, None] = {"value": None, "low": None, "high": None}
_MIN_SLICE = 20  # runs: the F1 of fewer is meaningless


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
    found = evaluate(probabilities, labels, classes, train_labels, slices)
    clean, predicted = answers(probabilities)
    figures = _with_intervals(clean, predicted, labels, RESAMPLES if resamples is None else resamples, seed)
    found["brier"] = figures.get("brier", dict(_NOTHING))
    found["macro"] = {name: figures.get(f"macro {name}", dict(_NOTHING)) for name in BY_CLASS}
    for label, name in enumerate(classes):
        class_figures = found["classes"][name]
        class_figures |= {figure: figures.get(f"{label} {figure}", dict(_NOTHING)) for figure in BY_CLASS}
        class_figures["share"] = class_figures["runs"] / len(labels) if len(labels) else None
    for name, values in (slices or {}).items():
        for value, class_figures in found["slices"][name].items():
            class_figures |= _slice(labels[np.array(values) == value], predicted[np.array(values) == value])
    return found


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


def _figures(probabilities: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the defined figures of some runs, by ``<label> <name>``, ``macro <name>`` and ``brier``."""
    from sklearn.metrics import average_precision_score, brier_score_loss, precision_recall_fscore_support
    from sklearn.metrics import roc_auc_score as roc_auc

    count = probabilities.shape[1]
    if not len(labels):
        return {}
    by_label = precision_recall_fscore_support(labels, predicted, labels=range(count), zero_division=0.0)
    out: dict[str, float] = {}
    for label in np.unique(labels).tolist():
        out |= {f"{label} {name}": float(by_label[index][label]) for index, name in enumerate(BY_CLASS[:3])}
        members = labels == label
        if not members.all():
            out[f"{label} roc_auc"] = float(roc_auc(members, probabilities[:, label]))
            out[f"{label} pr_auc"] = float(average_precision_score(members, probabilities[:, label]))
    for name in BY_CLASS:
        values = [value for key, value in out.items() if key.endswith(f" {name}")]
        if values:
            out[f"macro {name}"] = float(np.mean(values))
    out["brier"] = float(brier_score_loss(labels, probabilities, labels=list(range(count))))
    return out


def _with_intervals(
    probabilities: np.ndarray, predicted: np.ndarray, labels: np.ndarray, resamples: int, seed: int
) -> dict[str, dict[str, float | None]]:
    figures = _figures(probabilities, predicted, labels)
    blocks = [
        weighted_figures(probabilities, predicted, labels, weights)
        for weights in drawn_weights(len(labels), resamples if figures else 0, seed)
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
