"""The figures of `ciml.training.evaluation.scores` for many resamples of the same runs at once.

A resample is a weight for each run: how often it was drawn. So runs are sorted once and not in each resample, and
scikit-learn's checks of its arguments, which take longer than the figures of a few hundred runs, are not repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

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
    actual, guessed = labels[:, None] == classes, predicted[:, None] == classes
    own, answered, right = weights @ actual, weights @ guessed, weights @ (actual & guessed)
    total = weights.sum(axis=1)
    by_class = {
        "precision": _share(right, np.maximum(answered, 1)),
        "recall": _share(right, own),
        "f1": _share(2 * right, own + answered),
        "roc_auc": np.full(own.shape, np.nan),
        "pr_auc": np.full(own.shape, np.nan),
    }
    for label in classes:
        areas = _areas(probabilities[:, label], actual[:, label], weights)
        by_class["roc_auc"][:, label], by_class["pr_auc"][:, label] = areas
    out: dict[str, np.ndarray] = {}
    for name, values in by_class.items():
        values[own == 0] = np.nan  # the class does not occur
        out |= {f"{label} {name}": values[:, label] for label in classes}
        known = np.isfinite(values)
        out[f"macro {name}"] = _share(np.where(known, values, 0).sum(axis=1), known.sum(axis=1))
    losses = np.square(probabilities - actual).sum(axis=1)
    out["brier"] = weights @ (losses / 2 if len(classes) == 2 else losses) / total
    return out


def _areas(scores: np.ndarray, own: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the areas below the ROC and the precision-recall curve, float64 [R]; nan with one class alone.

    Runs with the same score are one threshold.
    """
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.diff(-scores[order], prepend=-np.inf))
    found = np.add.reduceat(weights[:, order] * own[order], starts, axis=1)  # of the class, at each threshold
    others = np.add.reduceat(weights[:, order] * ~own[order], starts, axis=1)
    hits, misses = found.cumsum(axis=1), others.cumsum(axis=1)
    positive, negative = hits[:, -1], misses[:, -1]
    behind = negative[:, None] - misses + others / 2
    both = (positive > 0) & (negative > 0)
    roc = _share((found * behind).sum(axis=1), np.where(both, positive * negative, 0))
    precision = hits / np.maximum(hits + misses, 1)
    return roc, _share((found * precision).sum(axis=1), np.where(both, positive, 0))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole; nan where the whole is 0."""
    found: np.ndarray = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return found
