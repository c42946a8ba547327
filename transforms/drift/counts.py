"""Detect drift of counts: the mix of jobs, providers, flavours and classes; new and lost groups and columns.

The tests of columns and groups are exact, so they have no minimum of runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ciml.transforms.drift.detect import Measure, Part, Sides
from ciml.transforms.drift.statistics import Cell

#: Expected runs in a category of the chi-squared test; rarer categories are pooled.
_MIN_EXPECTED = 5.0

#: Number of runs by job, provider, and their columns in log order.
Columns = Mapping[tuple[str, str, tuple[str, ...]], int]


def add_columns(parts: Iterable[Columns]) -> Columns:
    """Return the sums of several counts of columns."""
    total: Counter[tuple[str, str, tuple[str, ...]]] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)


def columns_to_json(columns: Columns) -> dict[str, Any]:
    """Encode each tuple of columns once, with its number of runs by job and provider."""
    layouts = sorted({layout for _, _, layout in columns})
    groups = [[job, provider, layouts.index(layout), runs] for (job, provider, layout), runs in sorted(columns.items())]
    return {"layouts": [list(layout) for layout in layouts], "groups": groups}


def columns_from_json(value: Mapping[str, Any]) -> Columns:
    """Decode `columns_to_json`. Raises `ValueError`, `KeyError`, `TypeError` or `IndexError` for invalid data."""
    layouts = [tuple(layout) for layout in value["layouts"]]
    return {(job, provider, layouts[layout]): int(runs) for job, provider, layout, runs in value["groups"]}


@dataclass(frozen=True, slots=True, eq=False)
class Presence:
    """The presence of columns in runs.

    Attributes:
      sides: the runs by (job, provider); flavour and class are ignored.
      columns: by name, the number of runs of each cell that have the column, before and after, int64 [C] each.
    """

    sides: Sides
    columns: Mapping[str, tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of(cls, before: Columns, after: Columns) -> Presence:
        cells = tuple(sorted({Cell(job, provider, "", "") for job, provider, _ in (*before, *after)}))
        number = {(cell.build_name, cell.provider): index for index, cell in enumerate(cells)}
        names = dict.fromkeys(name for _, _, layout in (*before, *after) for name in layout)
        columns = {name: (np.zeros(len(cells), np.int64), np.zeros(len(cells), np.int64)) for name in names}
        totals = np.zeros(len(cells), np.int64), np.zeros(len(cells), np.int64)
        for side, counts in enumerate((before, after)):
            for (job, provider, layout), runs in counts.items():
                cell = number[job, provider]
                totals[side][cell] += runs
                for name in layout:
                    columns[name][side][cell] += runs
        return cls(Sides(cells, *totals), columns)

    def varies(self, name: str, part: Part) -> bool:
        """Return whether only some runs of a cell of the part have the column; otherwise it cannot have drifted."""
        with_column = np.add(*self.columns[name])
        runs = self.sides.before + self.sides.after
        return bool(((with_column > 0) & (with_column < runs) & part.cells).any())

    def measure(self, name: str, parts: Sequence[Part]) -> list[Measure]:
        """Measure the share of runs with a column in each part, a slice of the cells.

        A cell has the same weight on both sides. p is exact: the probability that so many of the runs in ``after`` have
        the column if, in each cell, the runs with the column are drawn at random. The PSI is NaN.
        """
        with_before, with_after = self.columns[name]
        sides = self.sides
        measures = []
        for part in parts:
            weights = np.where(part.cells, sides.weights, 0.0)
            total = max(float(weights.sum()), np.finfo(float).tiny)
            before = float((weights * with_before / np.maximum(sides.before, 1)).sum() / total)
            after = float((weights * with_after / np.maximum(sides.after, 1)).sum() / total)
            cells = np.flatnonzero(part.cells)
            p = exact_p(sides.before[cells], sides.after[cells], with_before[cells], with_after[cells])
            distance = abs(after - before)
            measures.append(Measure(psi=float("nan"), ks=distance, p=p, weight=total, before=before, after=after))
        return measures


def exact_p(before: np.ndarray, after: np.ndarray, with_before: np.ndarray, with_after: np.ndarray) -> float:
    """Return p of Fisher's exact test over strata, two-sided (twice the smaller tail).

    Args:
      before, after: runs of each stratum on each side, int64 [n].
      with_before, with_after: number of these with the column, int64 [n].
    """
    from scipy.stats import hypergeom

    with_column = with_before + with_after
    runs = before + after
    is_open = (with_column > 0) & (with_column < runs)  # in another stratum, all or none have it: nothing is random
    pmf = np.ones(1)  # of the number with the column in ``after``, minus ``least``
    least = 0
    strata = np.stack([before, after, with_column], axis=1)[is_open]
    for n, m, k in strata.tolist():
        stratum_least = max(0, k - n)
        pmf = np.convolve(pmf, hypergeom.pmf(np.arange(stratum_least, min(k, m) + 1), n + m, k, m))
        least += stratum_least
    index = int(with_after[is_open].sum()) - least
    return min(1.0, 2.0 * float(min(pmf[: index + 1].sum(), pmf[index:].sum())))


class Mix(NamedTuple):
    """A comparison of the shares of categories.

    Attributes:
      psi: population stability index.
      p: of the chi-squared test.
      grown: the category whose share grew most.
      before, after: its shares.
    """

    psi: float
    p: float
    grown: str
    before: float
    after: float


def mix_of(before: Mapping[str, int], after: Mapping[str, int]) -> Mix | None:
    """Compare the counts of categories by PSI and p of the chi-squared test; None for a single category.

    Categories with fewer than five expected runs on a side are pooled.
    """
    from scipy.stats import chi2_contingency

    names = sorted({*before, *after})
    table = np.array([[side.get(name, 0) for name in names] for side in (before, after)], float)
    runs = table.sum(axis=1)
    if len(names) < 2 or not runs.all():
        return None
    shares = table / runs[:, None]
    grown = int((shares[1] - shares[0]).argmax())
    is_rare = table.sum(axis=0) * runs.min() / runs.sum() < _MIN_EXPECTED
    if is_rare.sum() > 1:
        table = np.concatenate([table[:, ~is_rare], table[:, is_rare].sum(axis=1, keepdims=True)], axis=1)
    if table.shape[1] < 2:
        return None
    # Half a run more in each category, as Jeffreys' prior adds (Krichevsky and Trofimov 1981): a category that one side
    # lacks then has a finite PSI.
    p, q = (table + 0.5) / (runs + 0.5 * table.shape[1])[:, None]
    psi = float(np.sum((q - p) * np.log(q / p)))
    chance = float(chi2_contingency(table, correction=False).pvalue)
    return Mix(psi=psi, p=chance, grown=names[grown], before=shares[0, grown], after=shares[1, grown])


class Group(NamedTuple):
    """A job, provider, flavour or class that one side lacks.

    Attributes:
      name: its name.
      before, after: its runs on each side, one of which is 0.
      p: the probability that one side lacks it by chance.
    """

    name: str
    before: int
    after: int
    p: float


def one_sided_groups(before: Mapping[str, int], after: Mapping[str, int]) -> list[Group]:
    """Return the categories that only one side has, sorted by name."""
    from scipy.stats import hypergeom

    n = sum(before.values())
    m = sum(after.values())
    groups = []
    for name in sorted(before.keys() ^ after.keys()):
        runs_before = before.get(name, 0)
        runs_after = after.get(name, 0)
        runs = runs_before + runs_after
        side = m if runs_after else n
        p = float(hypergeom.pmf(runs, n + m, runs, side))
        groups.append(Group(name, runs_before, runs_after, p))
    return groups
