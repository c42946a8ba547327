"""Figures of studies: shares with their intervals, and tables of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 2000


def share_with_interval(top: np.ndarray, bottom: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """Return the share of the sums of ``top`` and ``bottom`` [n], with its interval by a bootstrap of groups."""
    names, index = np.unique(groups, return_inverse=True)
    tops = np.bincount(index, top)
    bottoms = np.bincount(index, bottom)
    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = (drawn @ tops) / (drawn @ bottoms)
        value = tops.sum() / bottoms.sum() if bottoms.sum() else np.nan
    resampled = resampled[np.isfinite(resampled)]
    low, high = np.quantile(resampled, (0.025, 0.975)) if resampled.size else (np.nan, np.nan)
    return float(value), float(low), float(high)


def table(rows: Mapping[str, Mapping[str, tuple[float, float, float]]], names: Sequence[str]) -> str:
    """Return a table in Markdown."""
    lines = [f"| method | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for method, figures_of_method in rows.items():
        cells = (
            f"{value:.2f} ({low:.2f}–{high:.2f})" for value, low, high in (figures_of_method[name] for name in names)
        )
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)
