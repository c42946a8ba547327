"""Changes of unit: a distribution that became a well-known multiple of itself with the same shape."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ciml.transforms.drift.detect import ks_p

#: Factors between units, and their names. Those of 1000 and 1024 are too close to be distinguished.
_FACTORS = {
    8.0: "8", 60.0: "60", 100.0: "100", 512.0: "512", 1e3 * math.sqrt(1.024): "1000 or 1024",
    3600.0: "3600", 4096.0: "4096", 1e6 * 1.024: "1000² or 1024²", 1e9 * math.sqrt(1.024**3): "1000³ or 1024³",
}  # fmt: skip
_SLACK = 0.05  # relative difference within which values are equal: covers the named factors and a bucket
_BETTER = 3.0  # so many times closer than before
_ALPHA = 0.01
_NEAR = 0.1  # or this close, for any number of runs: a change of unit rarely comes alone
_QUANTILES = np.array(
    [0.25, 0.5, 0.75]
)  # of values other than 0; each must be multiplied by the factor if the shape is unchanged
_EXPONENT = 0.1  # ± a tenth of the factor's logarithm: 6.5 to 9.9 for 8, 520 to 1960 for 1000 or 1024


class Unit(NamedTuple):
    """``factor`` is the median of the quantiles' ratios; ``name`` is the nearest known one, with ``÷`` or ``×``."""

    factor: float
    name: str


def unit_of(values: np.ndarray, before: np.ndarray, after: np.ndarray, weight: float) -> Unit | None:
    """Detect whether ``after`` is ``before`` in another unit.

    Args:
      values: float64 [K] ascending.
      before, after: their shares on each side.
      weight: the size of the comparison, `ciml.transforms.drift.detect.Measure.weight`.

    Returns:
      The best fitting factor, if the two then match like samples of one distribution; else None.
    """
    was = _distance(values, before, after, 1.0)
    ratios = _ratios(values, before, after)
    found = []
    for size, name in _FACTORS.items():
        for factor, sign in ((size, "×"), (1 / size, "÷")):
            if ratios.size and np.abs(np.log(ratios / factor)).max() <= _EXPONENT * math.log(size):
                found.append((_distance(values, before, after, factor), f"{sign} {name}"))
    if not found:
        return None
    distance, name = min(found)
    alike = distance <= _NEAR or float(ks_p(np.array([distance]), np.array([weight]))[0]) > _ALPHA
    return Unit(float(np.median(ratios)), name) if alike and distance * _BETTER <= was else None


def _ratios(values: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the ratio of each quantile, float64; none where a sign changed."""
    quantiles = []
    for shares in (before, after):
        below = np.cumsum(np.where(values == 0, 0.0, shares))
        quantiles.append(values[np.minimum(np.searchsorted(below, _QUANTILES * below[-1:]), values.size - 1)])
    old, new = quantiles
    if (old * new <= 0).any():
        return np.zeros(0)
    ratios: np.ndarray = new / old
    return ratios


def _distance(values: np.ndarray, before: np.ndarray, after: np.ndarray, factor: float) -> float:
    """Return the KS distance of ``before`` times ``factor`` from ``after``; values within the slack are equal."""
    scaled = values * factor
    return max(_excess(scaled, before, values, after), _excess(values, after, scaled, before))


def _excess(x: np.ndarray, p: np.ndarray, y: np.ndarray, q: np.ndarray) -> float:
    """Return the largest excess of cumulative ``p`` over ``q``, with ``q`` evaluated beyond the slack."""
    reach = np.concatenate([[0.0], np.cumsum(q)])[np.searchsorted(y, x + _SLACK * np.abs(x), side="right")]
    return float((np.cumsum(p) - reach).max(initial=0.0))
