"""Intervals of shares: how far a count of runs supports a proportion."""

from __future__ import annotations

import math
from statistics import NormalDist

CONFIDENCE = 0.95


def wilson(right: float, total: float) -> tuple[float, float]:
    """Return Wilson's 95 % score interval (low, high) of a share; (0, 1) for a total of 0.

    Args:
      right: number of runs that count; it may be a sum of probabilities.
      total: number of runs.

    Example:
      wilson(17, 20)  # (0.640, 0.948)
    """
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share = right / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # Exact at the ends, where rounding would leave an interval of 0 runs just above 0.
    low = max(0.0, (middle - half) / scale) if right > 0 else 0.0
    high = min(1.0, (middle + half) / scale) if right < total else 1.0
    return low, high


def newcombe(both: float, first_alone: float, second_alone: float, total: float) -> tuple[float, float]:
    """Return a 95 % interval (low, high) of the difference of two shares of the same runs; (-1, 1) for a total of 0.

    It is Newcombe's interval (1998, method 10): Wilson's intervals of both shares, combined by their correlation.
    Unlike that of a bootstrap, its width is above 0 if both shares count the same runs.

    Args:
      both: number of runs that both shares count; this and the others may be numbers of independent runs.
      first_alone: number of runs that only the first share counts.
      second_alone: number of runs that only the second share counts; the difference is first minus second.
      total: number of runs.
    """
    if total == 0:
        return -1.0, 1.0
    first = both + first_alone
    second = both + second_alone
    neither = total - both - first_alone - second_alone
    # Not below 0, where rounding would take a share of numbers that are not whole beyond 1.
    margins = math.sqrt(max(first * (total - first), 0.0) * max(second * (total - second), 0.0))
    covariance = both * neither - first_alone * second_alone
    if covariance > 0:  # Newcombe's correction: a positive correlation narrows the interval, so it is reduced
        covariance = max(covariance - total / 2, 0.0)
    correlation = covariance / margins if margins else 0.0

    def distance(first_margin: float, second_margin: float) -> float:
        squared = first_margin**2 - 2 * correlation * first_margin * second_margin + second_margin**2
        return math.sqrt(max(squared, 0.0))

    first_share = first / total
    second_share = second / total
    first_low, first_high = wilson(first, total)
    second_low, second_high = wilson(second, total)
    difference = first_share - second_share
    return (
        max(-1.0, difference - distance(first_share - first_low, second_high - second_share)),
        min(1.0, difference + distance(first_high - first_share, second_share - second_low)),
    )
