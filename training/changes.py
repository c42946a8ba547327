"""Runs of a change are right or wrong together: how many independent runs they are worth.

Figures are computed of all runs, and their intervals by the changes of the runs: a change of forty jobs tells hardly
more about a model than one of two. ``changes`` is int64 [n], the change of each run; runs without a change have a
number of their own. Where it is None, every run is a change of its own, and the intervals are those of independent
runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ciml.events.records import RunFacts, change_of

#: Weight of the imagined change in `design_effect`, found by simulation: see docs/decisions.md.
_IMAGINED = 0.1


def number_changes(runs: Sequence[RunFacts]) -> np.ndarray:
    """Return the number of each run's change, int64 [n], from 0."""
    return numbers_of(np.array([change_of(run) for run in runs], object), len(runs))


def numbers_of(changes: np.ndarray | None, runs: int) -> np.ndarray:
    """Return the changes of ``runs`` runs, numbered from 0 without gaps, int64 [n]."""
    if changes is None:
        return np.arange(runs)
    if len(changes) != runs:
        raise ValueError(f"changes of {len(changes)} runs, but there are {runs} runs")
    numbers: np.ndarray = np.unique(changes, return_inverse=True)[1]
    return numbers


def design_effect(deviations: np.ndarray, changes: np.ndarray | None) -> float:
    """Return how many times larger the variance of a mean is than that of independent runs, at least 1 (Kish 1965).

    It is the sum of the squared sums by change, divided by the sum of the squares. Few deviations, such as those of a
    model that is nearly always right, do not show whether the runs of a change deviate together. So a small weight is
    given to an imagined change of average size whose runs do: without any deviation, the runs count as their changes.

    Args:
      deviations: float64 [n], of each run from the mean.
      changes: int64 [n], or None.

    Example:
      design_effect(right - right.mean(), changes)  # right: bool [n]; 4.0 for changes of four equal runs
    """
    numbers = numbers_of(changes, len(deviations))
    if not len(numbers):
        return 1.0
    sizes = np.bincount(numbers)
    size = float((sizes * sizes).sum() / len(numbers))  # of the change of an average run
    sums = np.bincount(numbers, weights=deviations)
    together = float((sums * sums).sum()) + _IMAGINED * size * size
    return max(1.0, together / (float((deviations * deviations).sum()) + _IMAGINED * size))


def first_runs(changes: np.ndarray) -> np.ndarray:
    """Return the row of the first run of each change, int64, in ascending order."""
    return np.sort(np.unique(changes, return_index=True)[1])
