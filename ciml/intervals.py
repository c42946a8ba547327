"""Intervals of shares: how far a count of runs supports a proportion."""

from __future__ import annotations

import math
from statistics import NormalDist

CONFIDENCE = 0.95


def wilson(right: float, total: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return Wilson's score interval (low, high) of a share; (0, 1) for a total of 0.

    Args:
      right: of the total; a mean probability of ``total`` runs times their number counts as well.
      total: number of runs.
      confidence: of the interval, between its two ends.

    Example:
      wilson(17, 20)  # (0.640, 0.948)
    """
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = right / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
