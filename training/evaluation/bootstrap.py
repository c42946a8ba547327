"""Figures of a model by class, with 95 % intervals: percentiles of a bootstrap of the changes of the runs.

Where all resamples give the same share, they say nothing of its error, and Wilson's interval takes their place.

The figures equal those of scikit-learn, but all resamples are computed together: a resample gives each run a weight,
the number of times that its change was drawn. So runs are sorted once, and no arguments are checked in each resample,
which would take longer than the figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ciml.intervals import CONFIDENCE, wilson
from ciml.training.changes import design_effect

#: Figures of each class against all others.
BY_CLASS = ("precision", "recall", "f1", "roc_auc", "pr_auc")
#: Weights in memory at a time, float64: 32 MiB.
_BLOCK_WEIGHTS = 1 << 22

#: A figure as JSON: ``value``, ``low`` and ``high``. All are None if the figure is undefined.
Figure = dict[str, float | None]


class Estimates(NamedTuple):
    """Figures with their intervals. ``by_class`` has the figures of each class, by name; ``macro`` their means."""

    by_class: list[dict[str, Figure]]
    macro: dict[str, Figure]
    brier: Figure


class ResampledFigures(NamedTuple):
    """The figures of R resamples; nan where a figure is undefined.

    Attributes:
      by_class: float64 [R, C] for each name of `BY_CLASS`.
      macro: float64 [R] for each name: the means over the classes that occur.
      brier: float64 [R], the mean squared error of the probabilities; for two classes that of one.
    """

    by_class: Mapping[str, np.ndarray]
    macro: Mapping[str, np.ndarray]
    brier: np.ndarray


def estimate_figures(
    probabilities: np.ndarray,
    predicted: np.ndarray,
    labels: np.ndarray,
    changes: np.ndarray,
    resamples: int,
    seed: int,
) -> Estimates:
    """Compute figures with their intervals; without runs, all are undefined.

    Args:
      probabilities: float64 [n, C], rows that sum to 1.
      predicted: int [n], -1 for an unanswered run.
      labels: int [n].
      changes: int [n], the number of each run's change, from 0 without gaps.
      resamples: number of them; 0 for no intervals.
      seed: of the bootstrap.
    """
    classes = range(probabilities.shape[1])
    if not len(labels):
        undefined = _estimate(np.array([np.nan]))
        return Estimates(
            [dict.fromkeys(BY_CLASS, undefined) for _ in classes], dict.fromkeys(BY_CLASS, undefined), undefined
        )
    # The first entry of every array is the figure itself: that of a resample in which each run was drawn once.
    blocks = [resampled_figures(probabilities, predicted, labels, np.ones((1, len(labels))))]
    for weights in draw_weights(changes, resamples, seed):
        blocks.append(resampled_figures(probabilities, predicted, labels, weights))
    by_class = {name: np.concatenate([block.by_class[name] for block in blocks]) for name in BY_CLASS}
    macro = {name: np.concatenate([block.macro[name] for block in blocks]) for name in BY_CLASS}
    return Estimates(
        [
            {name: _estimate_share(values[:, label], changes[labels == label]) for name, values in by_class.items()}
            for label in classes
        ],
        {name: _estimate_share(values, changes) for name, values in macro.items()},
        _estimate(np.concatenate([block.brier for block in blocks])),
    )


def _estimate(values: np.ndarray) -> Figure:
    """Return a figure with its interval, from the figure itself followed by those of the resamples."""
    if not np.isfinite(values[0]):
        return {"value": None, "low": None, "high": None}
    resampled = values[1:]
    resampled = resampled[np.isfinite(resampled)]  # some resamples lack a class
    low = None
    high = None
    if len(resampled):
        low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    return {"value": float(values[0]), "low": low, "high": high}


def _estimate_share(values: np.ndarray, changes: np.ndarray) -> Figure:
    """Do as `_estimate`. Equal resamples, such as those of runs that are all right, have Wilson's interval instead.

    Args:
      values: see `_estimate`.
      changes: int [m], those of the runs of which the figure is a share.
    """
    figure = _estimate(values)
    value = figure["value"]
    if value is not None and figure["low"] == figure["high"] == value:
        independent = len(changes) / design_effect(np.zeros(len(changes)), changes)
        low, high = wilson(value * independent, independent)
        return {"value": value, "low": low, "high": high}
    return figure


def draw_weights(changes: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw resamples of changes. Yield blocks of weights of their runs, float64 [resamples, n].

    Args:
      changes: int [n], the number of each run's change, from 0 without gaps.
      resamples: number of them.
      seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)
    count = int(changes.max()) + 1
    block = max(1, _BLOCK_WEIGHTS // len(changes))
    for start in range(0, resamples, block):
        draws = (rng.integers(count, size=count) for _ in range(start, min(start + block, resamples)))
        weights = np.array([np.bincount(drawn, minlength=count) for drawn in draws], np.float64)
        yield weights[:, changes]


def resampled_figures(
    probabilities: np.ndarray, predicted: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> ResampledFigures:
    """Compute the figures of each resample.

    Args:
      probabilities: float64 [n, C].
      predicted: int [n], -1 for an unanswered run.
      labels: int [n].
      weights: float64 [R, n], whole numbers.
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
    macro: dict[str, np.ndarray] = {}
    for name, values in by_class.items():
        values[label_weights == 0] = np.nan  # the class does not occur
        is_defined = np.isfinite(values)
        macro[name] = _divide(np.where(is_defined, values, 0).sum(axis=1), is_defined.sum(axis=1))
    brier = weights @ squared_errors(probabilities, labels) / weights.sum(axis=1)
    return ResampledFigures(by_class, macro, brier)


def squared_errors(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the squared error of each run's probabilities, float64 [n], whose mean is the Brier score (Brier 1950).

    Args:
      probabilities: float [n, C]; for two classes the error is that of one. A row that is not finite has no probability
        for any class.
      labels: int [n].
    """
    count = probabilities.shape[1]
    finite = np.where(np.isfinite(probabilities).all(axis=1)[:, None], probabilities, 0.0).astype(np.float64)
    errors: np.ndarray = np.square(finite - np.eye(count)[labels]).sum(axis=1)
    return errors / 2 if count == 2 else errors


class _Areas(NamedTuple):
    """The areas under the ROC and the precision-recall curve, float64 [R]; nan with one class alone."""

    roc: np.ndarray
    precision_recall: np.ndarray


def _areas(class_probabilities: np.ndarray, is_label: np.ndarray, weights: np.ndarray) -> _Areas:
    """Compute the areas of a class for each resample. Runs with the same probability share a threshold.

    Args:
      class_probabilities: float64 [n].
      is_label: bool [n], whether a run is of the class.
      weights: float64 [R, n].
    """
    order = np.argsort(-class_probabilities, kind="stable")
    threshold_starts = np.flatnonzero(np.diff(-class_probabilities[order], prepend=-np.inf))
    # [R, thresholds]: the runs of the class, and the other runs, at each threshold; then down to each threshold.
    positives = np.add.reduceat(weights[:, order] * is_label[order], threshold_starts, axis=1)
    negatives = np.add.reduceat(weights[:, order] * ~is_label[order], threshold_starts, axis=1)
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
