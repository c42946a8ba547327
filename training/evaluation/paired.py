"""Comparisons of two models on the same held-out runs: pairs say more than two shares with an interval each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ciml.intervals import newcombe
from ciml.training.evaluation.metrics import rows_by_value

#: Resamples of the bootstrap, whose seed is fixed.
_SAMPLES = 2000
#: Runs up to which the errors of runs are resampled.
_FEW = 2000


def compare(candidate_right: np.ndarray, champion_right: np.ndarray, *, confidence: float = 0.8) -> dict[str, Any]:
    """Compare two models, or a model and a baseline, on the same runs (paired).

    Args:
      candidate_right: bool [n], whether the candidate was right on each run.
      champion_right: bool [n], the same for the other model.
      confidence: of the one-sided lower bound.

    Returns:
      ``difference`` of the accuracies, its one-sided lower bound ``low`` at ``confidence``, its two-sided 95 %
      ``interval`` [low, high] (`ciml.intervals.newcombe`), ``runs``, ``only_candidate`` and ``only_champion`` (runs
      that only one model got right), and ``mcnemar``, the exact two-sided p-value of those two numbers.

    Raises:
      ValueError: if the lengths differ.
    """
    if candidate_right.shape != champion_right.shape:
        raise ValueError(f"{candidate_right.shape} answers of the candidate, {champion_right.shape} of the champion")
    n = len(candidate_right)
    if n == 0:
        undefined = dict.fromkeys(("difference", "low", "interval", "mcnemar"))
        return {**undefined, "runs": 0, "only_candidate": 0, "only_champion": 0}
    both = int((candidate_right & champion_right).sum())
    only_candidate = int((candidate_right & ~champion_right).sum())
    only_champion = int((~candidate_right & champion_right).sum())
    # The mean of a resample depends only on the number of times that -1, 0 and 1 are drawn.
    shares = [only_champion / n, 1 - (only_candidate + only_champion) / n, only_candidate / n]
    draws = np.random.default_rng(0).multinomial(n, shares, size=_SAMPLES)
    low = float(np.quantile((draws[:, 2] - draws[:, 0]) / n, 1 - confidence))
    return {
        "difference": (only_candidate - only_champion) / n,
        "low": low,
        "interval": list(newcombe(both, only_candidate, only_champion, n)),
        "runs": n,
        "only_candidate": only_candidate,
        "only_champion": only_champion,
        "mcnemar": _mcnemar(only_candidate, only_champion),
    }


def _mcnemar(better: int, worse: int) -> float:
    """Compute the exact two-sided p-value of McNemar's test."""
    from scipy.stats import binom

    return min(1.0, 2 * float(binom.cdf(min(better, worse), better + worse, 0.5)))


def compare_slices(
    candidate_right: np.ndarray,
    champion_right: np.ndarray,
    slices: Mapping[str, Sequence[str]],
    *,
    min_runs: int = 1,
) -> list[dict[str, Any]]:
    """Compare two models on each slice of the same runs, the slice on which the candidate does worst first.

    Args:
      candidate_right: bool [n].
      champion_right: bool [n].
      slices: by name a value for each run, such as its job; a value "" is not a slice.
      min_runs: slices with fewer runs are left out.

    Returns:
      For each slice ``slice``, ``value``, ``runs``, ``only_candidate``, ``only_champion``, and ``p``: how probable at
      least so many losses are if both models are equally good there (exact sign test), times the number of slices that
      are still compared (Holm 1979): among all slices of models that are equally good, one is below p by chance in at
      most a share p of comparisons.
    """
    from scipy.stats import binom

    is_better = candidate_right & ~champion_right
    is_worse = ~candidate_right & champion_right
    rows = [
        {
            "slice": name,
            "value": value,
            "runs": len(positions),
            "only_candidate": int(is_better[positions].sum()),
            "only_champion": int(is_worse[positions].sum()),
        }
        for name, values in slices.items()
        for value, positions in rows_by_value(values).items()
        if value and len(positions) >= min_runs
    ]
    better, worse = (np.array([row[name] for row in rows], int) for name in ("only_candidate", "only_champion"))
    p_values = binom.sf(worse - 1, better + worse, 0.5)
    order = np.argsort(p_values, kind="stable")
    corrected = np.minimum(np.maximum.accumulate(p_values[order] * np.arange(len(rows), 0, -1)), 1.0)
    return [{**rows[index], "p": p} for index, p in zip(order.tolist(), corrected.tolist(), strict=True)]


def compare_errors(
    candidate_errors: np.ndarray, champion_errors: np.ndarray, *, confidence: float = 0.8
) -> dict[str, Any]:
    """Compare the squared errors of two models' probabilities on the same runs.

    Args:
      candidate_errors: float64 [n], of `ciml.training.evaluation.bootstrap.squared_errors`.
      champion_errors: float64 [n], the same of the other model.
      confidence: of the one-sided upper bound.

    Returns:
      ``difference`` of the means, candidate minus champion, its one-sided upper bound ``high`` (bootstrap of the runs),
      and ``runs``; None without runs.
    """
    n = len(candidate_errors)
    if n == 0:
        return {"difference": None, "high": None, "runs": 0}
    differences = candidate_errors - champion_errors
    rows = np.random.default_rng(0).integers(n, size=(_SAMPLES, n)) if n <= _FEW else None
    if rows is None:  # the mean of many is normal, and the resamples would take much memory
        means = np.random.default_rng(0).normal(differences.mean(), differences.std() / math.sqrt(n), _SAMPLES)
    else:
        means = differences[rows].mean(axis=1)
    return {"difference": float(differences.mean()), "high": float(np.quantile(means, confidence)), "runs": n}
