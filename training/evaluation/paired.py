"""Comparisons of two models on the same held-out runs: pairs say more than two shares with an interval each.

Runs of a change are right or wrong together, so bounds, intervals and tests count changes, see
`ciml.training.changes`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ciml.intervals import newcombe
from ciml.training.changes import design_effect, numbers_of
from ciml.training.evaluation.metrics import rows_by_value

#: Resamples of the bootstrap, whose seed is fixed.
_SAMPLES = 2000
#: Changes up to which the errors of runs are resampled.
_FEW = 2000


def compare(
    candidate_right: np.ndarray,
    champion_right: np.ndarray,
    changes: np.ndarray | None = None,
    *,
    confidence: float = 0.8,
) -> dict[str, Any]:
    """Compare two models, or a model and a baseline, on the same runs (paired).

    Args:
      candidate_right: bool [n], whether the candidate was right on each run.
      champion_right: bool [n], the same for the other model.
      changes: int64 [n], the change of each run, or None.
      confidence: of the one-sided lower bound.

    Returns:
      ``difference`` of the accuracies, its one-sided lower bound ``low`` at ``confidence``, its two-sided 95 %
      ``interval`` [low, high] (`ciml.intervals.newcombe`), ``runs``, ``changes``, ``only_candidate`` and
      ``only_champion`` (runs that only one model got right), and ``mcnemar``, the exact two-sided p-value of the
      changes on which one model got more runs right.

    Raises:
      ValueError: if the lengths differ.
    """
    if candidate_right.shape != champion_right.shape:
        raise ValueError(f"{candidate_right.shape} answers of the candidate, {champion_right.shape} of the champion")
    n = len(candidate_right)
    if n == 0:
        undefined = dict.fromkeys(("difference", "low", "interval", "mcnemar"))
        return {**undefined, "runs": 0, "changes": 0, "only_candidate": 0, "only_champion": 0}
    both = int((candidate_right & champion_right).sum())
    only_candidate = int((candidate_right & ~champion_right).sum())
    only_champion = int((~candidate_right & champion_right).sum())
    gains = candidate_right.astype(np.float64) - champion_right
    numbers = numbers_of(changes, n)
    gain_by_change = np.bincount(numbers, weights=gains)
    effect = design_effect(gains - gains.mean(), changes)
    return {
        "difference": (only_candidate - only_champion) / n,
        "low": _low_of_mean(gain_by_change, np.bincount(numbers), confidence),
        "interval": list(newcombe(both / effect, only_candidate / effect, only_champion / effect, n / effect)),
        "runs": n,
        "changes": len(gain_by_change),
        "only_candidate": only_candidate,
        "only_champion": only_champion,
        "mcnemar": _mcnemar(int((gain_by_change > 0).sum()), int((gain_by_change < 0).sum())),
    }


def _low_of_mean(sums: np.ndarray, sizes: np.ndarray, confidence: float) -> float:
    """Return the one-sided lower bound of the mean of runs by a bootstrap of changes.

    Args:
      sums: float64 [C], of the runs of each change.
      sizes: int64 [C], number of runs of each change.
      confidence: of the bound.
    """
    # The mean of a resample depends only on how often changes of the same sum and size are drawn.
    kinds, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(sums), counts / len(sums), size=_SAMPLES)
    return float(np.quantile((draws @ kinds[:, 0]) / (draws @ kinds[:, 1]), 1 - confidence))


def _mcnemar(better: int, worse: int) -> float:
    """Compute the exact two-sided p-value of McNemar's test."""
    from scipy.stats import binom

    return min(1.0, 2 * float(binom.cdf(min(better, worse), better + worse, 0.5)))


def compare_slices(
    candidate_right: np.ndarray,
    champion_right: np.ndarray,
    slices: Mapping[str, Sequence[str]],
    changes: np.ndarray | None = None,
    *,
    min_runs: int = 1,
) -> list[dict[str, Any]]:
    """Compare two models on each slice of the same runs, the slice on which the candidate does worst first.

    Args:
      candidate_right: bool [n].
      champion_right: bool [n].
      slices: by name a value for each run, such as its job; a value "" is not a slice.
      changes: int64 [n], the change of each run, or None.
      min_runs: slices with fewer runs are left out.

    Returns:
      For each slice ``slice``, ``value``, ``runs``, ``only_candidate``, ``only_champion``, and ``p``: how probable at
      least so many lost changes are if both models are equally good there (exact sign test; a change is lost if the
      candidate gets fewer of its runs right), times the number of slices that are still compared (Holm 1979): among all
      slices of models that are equally good, one is below p by chance in at most a share p of comparisons.
    """
    from scipy.stats import binom

    gains = candidate_right.astype(np.int64) - champion_right
    numbers = numbers_of(changes, len(gains))
    rows = []
    losses_and_wins = []
    for name, values in slices.items():
        for value, positions in rows_by_value(values).items():
            if not value or len(positions) < min_runs:
                continue
            of_slice = gains[positions]
            by_change = np.bincount(numbers_of(numbers[positions], len(positions)), weights=of_slice)
            only = {"only_candidate": int((of_slice > 0).sum()), "only_champion": int((of_slice < 0).sum())}
            rows.append({"slice": name, "value": value, "runs": len(positions), **only})
            losses_and_wins.append(((by_change < 0).sum(), (by_change > 0).sum()))
    losses, wins = np.array(losses_and_wins, np.int64).reshape(-1, 2).T
    p_values = binom.sf(losses - 1, losses + wins, 0.5)
    order = np.argsort(p_values, kind="stable")
    corrected = np.minimum(np.maximum.accumulate(p_values[order] * np.arange(len(rows), 0, -1)), 1.0)
    return [{**rows[index], "p": p} for index, p in zip(order.tolist(), corrected.tolist(), strict=True)]


def compare_errors(
    candidate_errors: np.ndarray,
    champion_errors: np.ndarray,
    changes: np.ndarray | None = None,
    *,
    confidence: float = 0.8,
) -> dict[str, Any]:
    """Compare the squared errors of two models' probabilities on the same runs.

    Args:
      candidate_errors: float64 [n], of `ciml.training.evaluation.bootstrap.squared_errors`.
      champion_errors: float64 [n], the same of the other model.
      changes: int64 [n], the change of each run, or None.
      confidence: of the one-sided upper bound.

    Returns:
      ``difference`` of the means, candidate minus champion, its one-sided upper bound ``high`` (bootstrap of the
      changes),
      and ``runs``; None without runs.
    """
    n = len(candidate_errors)
    if n == 0:
        return {"difference": None, "high": None, "runs": 0}
    differences = candidate_errors - champion_errors
    mean = float(differences.mean())
    numbers = numbers_of(changes, n)
    sums = np.bincount(numbers, weights=differences)
    sizes = np.bincount(numbers)
    count = len(sums)
    if count <= _FEW:
        drawn = np.random.default_rng(0).integers(count, size=(_SAMPLES, count))
        means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    else:  # the mean of many is normal, and the resamples would take much memory
        error = math.sqrt(float(np.square(sums - mean * sizes).sum())) / n
        means = np.random.default_rng(0).normal(mean, error, _SAMPLES)
    return {"difference": mean, "high": float(np.quantile(means, confidence)), "runs": n}
