"""Estimates the span since which a feature has drifted: the change point of its values, span by span.

The value of a span is the mean rank of its runs, each among all runs of its cell, so a changed mix of runs has no
effect. The change point divides the spans into two groups with the least squared deviations from the groups' means
(`ruptures`; Truong, Oudre and Vayatis 2020, https://doi.org/10.1016/j.sigpro.2019.107299). Whether there is drift at
all is decided by `ciml.transforms.drift.detect`: any values have such a point.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from ciml.transforms.drift.compare import Finding, Report
from ciml.transforms.drift.detect import Pair, Sides, Slice, cells_of
from ciml.transforms.drift.statistics import Cell, Statistics, middles


def with_change_points(report: Report, spans: Iterable[tuple[int, Statistics]]) -> Report:
    """Return the report with `Finding.since` of each drift of a feature, except among "all others".

    Args:
      report: the result of a comparison.
      spans: number and statistics of each span of both sides, in the order of time. Only read if there is such a drift.
    """
    drifts = [finding for finding in report.findings if finding.kind in ("unit", "shift") and not finding.rest]
    if not drifts:
        return report
    before, after = report.before.statistics, report.after.statistics
    sides = Sides.of(before, after)
    ranks = [_Ranks(finding, sides, Pair.of(sides, before, after, finding.what)) for finding in drifts]
    numbers = []
    values: list[list[float]] = []
    for number, statistics in spans:
        numbers.append(number)
        values.append([rank.mean_of(statistics) for rank in ranks])
    indices = [change_point(np.array(column)) for column in zip(*values, strict=True)]
    since = {finding: None if index is None else numbers[index] for finding, index in zip(drifts, indices, strict=True)}
    return replace(report, findings=tuple(replace(finding, since=since.get(finding)) for finding in report.findings))


def change_point(values: np.ndarray) -> int | None:
    """Return the index of the first value after the change; None with fewer than two known values.

    Args:
      values: float64 [n], in the order of time; NaN for an unknown one.

    Example:
      >>> change_point(np.array([0.5, 0.4, np.nan, 0.9, 0.8]))
      3
    """
    known = np.flatnonzero(~np.isnan(values))
    if known.size < 2:
        return None
    import ruptures  # takes long, and most comparisons find no drift

    search = ruptures.Binseg(model="l2", min_size=1, jump=1).fit(values[known])
    return int(known[search.predict(n_bkps=1)[0]])


class _Ranks:
    """The ranks of a feature's values, for each cell of a finding's slice."""

    def __init__(self, finding: Finding, sides: Sides, pair: Pair) -> None:
        self._name = finding.what
        self._values = pair.values
        cells = cells_of(Slice(finding.build_name, finding.provider), sides)
        self._number: dict[Cell, int] = {sides.cells[index]: int(index) for index in np.flatnonzero(cells)}
        entries, ranked = (
            [np.concatenate(parts) for parts in zip(side.before[:2], side.after[:2], strict=True)]
            for side in (pair, pair.ranked)
        )
        keys, first = np.unique(self._keys(*entries), return_index=True)
        self._known_keys = keys
        self._rank_of_key = pair.ranked.values[ranked[1][first]]

    def _keys(self, cell: np.ndarray, position: np.ndarray) -> np.ndarray:
        keys: np.ndarray = cell * self._values.size + position
        return keys

    def mean_of(self, statistics: Statistics) -> float:
        """Return the mean rank of the runs of a span, 0 to 1; NaN if none is in the slice."""
        series = statistics.series[self._name]
        number = np.array([self._number.get(cell, -1) for cell in statistics.cells], np.int64)
        is_in = number[series.cell] >= 0
        if not is_in.any():
            return float("nan")
        position = np.searchsorted(self._values, middles(series.bucket[is_in]))
        ranks = self._rank_of_key[np.searchsorted(self._known_keys, self._keys(number[series.cell[is_in]], position))]
        return float(np.average(ranks, weights=series.runs[is_in]))
