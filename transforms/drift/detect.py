"""Detect drift between two sets of examples: which features drifted, where, and by how much.

A *slice* is all runs, those of a job, of a provider, or of a job on a provider. Within a slice both sides are weighted
equally by *cell* (job, provider, flavour, class), so a changed mix of runs has no effect here.

The comparison uses the rank of a run among the N = r + c runs of its cell, r before and c after. Without drift, the
distance of the two distributions of ranks has a variance proportional to N² / (r·c·(N - 1)). A cell is weighted by the
inverse of that, at which cells of any sizes together have the most power. So the usual two-sample tests apply, with the
sum H of the weights as their size; for one cell, H is about r·c / (r + c).

PSI measures how much a distribution drifted, KS whether that is significant. A finding needs both. `unit_of` recognises
a change of unit: the distribution became a well-known multiple of itself, with the same shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ciml.transforms.drift.statistics import Cell, Statistics, middles

#: Limit of reported slices per feature.
_MAX_SLICES = 20
#: Minimum of runs per bin of PSI, unless there are only three bins.
_BIN_RUNS = 10
#: Factors between units, and their names. Those of 1000 and 1024 are too close to be distinguished.
_FACTORS = {
    8.0: "8",
    60.0: "60",
    100.0: "100",
    512.0: "512",
    1e3 * math.sqrt(1.024): "1000 or 1024",
    3600.0: "3600",
    4096.0: "4096",
    1e6 * 1.024: "1000² or 1024²",
    1e9 * math.sqrt(1.024**3): "1000³ or 1024³",
}
#: A change of unit must make the distributions so many times closer.
_MIN_IMPROVEMENT = 3.0
#: Then they must pass a test with this probability, or be this close for any number of runs: a change of unit rarely
#: comes alone.
_UNIT_ALPHA = 0.01
_UNIT_DISTANCE = 0.1
#: Relative difference of equal values: it covers factors with the same name and the width of a bucket.
_SLACK = 0.05
#: Quantiles of the values other than 0. With an unchanged shape, each is multiplied by the factor.
_QUANTILES = np.array([0.25, 0.5, 0.75])
#: Tolerance of their ratios, as a share of the factor's logarithm: 6.5 to 9.9 for 8, 520 to 1960 for 1000 or 1024.
_RATIO_TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class DriftPolicy:
    """Thresholds of drift.

    Attributes:
      psi: drift from this PSI on; below 0.1 is commonly considered stable.
      psi_large: large drift from this PSI on: retrain the model.
      alpha: probability of any finding in a comparison without drift, shared by all of its tests.
      min_runs: minimum of runs on each side of a slice.
      share: change of a column's share of a slice's runs that counts as a new or lost column.
    """

    psi: float = 0.1
    psi_large: float = 0.25
    alpha: float = 0.01
    min_runs: int = 30
    share: float = 0.05


class Slice(NamedTuple):
    """The runs of a job on a provider; None means all jobs or all providers."""

    build_name: str | None = None
    provider: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A slice of a comparison: its cells on both sides, bool [C], and the numbers of their runs."""

    slice: Slice
    cells: np.ndarray
    runs_before: int
    runs_after: int


class Measure(NamedTuple):
    """The drift of a feature in a slice.

    Attributes:
      psi: population stability index.
      ks: the largest distance of the two distributions, 0 to 1.
      p: probability of such a distance without drift, not corrected for the number of tests.
      weight: H, the size of the comparison: about n·m / (n + m) for one cell.
      before, after: means of the runs' means, equally weighted.
    """

    psi: float
    ks: float
    p: float
    weight: float
    before: float
    after: float


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """The runs of both sides by cell, int64 [C] before and after."""

    cells: tuple[Cell, ...]
    before: np.ndarray
    after: np.ndarray

    @classmethod
    def of(cls, before: Statistics, after: Statistics) -> Sides:
        cells = tuple(sorted({*before.cells, *after.cells}))
        number = {cell: index for index, cell in enumerate(cells)}
        runs = []
        for side in (before, after):
            counts = np.zeros(len(cells), np.int64)
            counts[[number[cell] for cell in side.cells]] = side.runs
            runs.append(counts)
        return cls(cells, *runs)

    @property
    def weights(self) -> np.ndarray:
        """The weights of cells, float64 [C]; 0 for a cell of one side only."""
        both = np.maximum(self.before + self.after, 1)
        weights: np.ndarray = self.before * self.after * (both - 1) / both**2
        return weights


class Entries(NamedTuple):
    """K values of one side: int64 [K] cell, position in `Pair.values`, and number of runs."""

    cell: np.ndarray
    position: np.ndarray
    runs: np.ndarray


@dataclass(frozen=True, eq=False)
class Pair:
    """A series on both sides: its distinct values, float64 ascending, and which runs have them."""

    values: np.ndarray
    before: Entries
    after: Entries

    @classmethod
    def of(cls, sides: Sides, before: Statistics, after: Statistics, name: str) -> Pair:
        buckets = np.unique(np.concatenate([side.series[name].bucket for side in (before, after)]))
        number = {cell: index for index, cell in enumerate(sides.cells)}
        entries = []
        for side in (before, after):
            series = side.series[name]
            cells = np.array([number[cell] for cell in side.cells], np.int64)
            entries.append(Entries(cells[series.cell], np.searchsorted(buckets, series.bucket), series.runs))
        return cls(middles(buckets), *entries)

    @cached_property
    def ranked(self) -> Pair:
        """The same runs with ranks instead of values.

        A run's rank is its position among the runs of its cell, of both sides, from 0 to 1. So cells with different
        values can be compared together: a small drift in each of them shifts all of the ranks.
        """
        size = self.values.size
        keys_of_sides = [side.cell * size + side.position for side in (self.before, self.after)]
        keys, inverse = np.unique(np.concatenate(keys_of_sides), return_inverse=True)
        runs = np.bincount(inverse, np.concatenate([self.before.runs, self.after.runs]), keys.size)
        cell = keys // size if size else keys
        below = np.cumsum(runs) - runs
        rank = (below - below[np.searchsorted(cell, cell)] + runs / 2) / np.bincount(cell, runs)[cell]
        levels, level = np.unique(rank, return_inverse=True)
        before, after = np.split(level[inverse], [self.before.cell.size])
        return Pair(levels, self.before._replace(position=before), self.after._replace(position=after))


def cells_of(slice_: Slice, sides: Sides) -> np.ndarray:
    """Return which cells have runs of a slice on both sides, bool [C]."""
    cells: np.ndarray = (sides.before > 0) & (sides.after > 0)
    for name, field in ((slice_.build_name, "build_name"), (slice_.provider, "provider")):
        if name is not None:
            cells &= np.array([getattr(cell, field) == name for cell in sides.cells], bool)
    return cells


def parts_of(sides: Sides, min_runs: int) -> tuple[list[Part], list[Slice]]:
    """Return the slices with enough runs on both sides, the widest first, and those with too few.

    A slice with the same runs as a wider one is left out, as is one with runs of one side only.
    """
    shared_cells = [sides.cells[index] for index in np.flatnonzero(cells_of(Slice(), sides))]
    slices = [Slice()]
    slices += [Slice(build_name=name) for name in sorted({cell.build_name for cell in shared_cells})]
    slices += [Slice(provider=name) for name in sorted({cell.provider for cell in shared_cells})]
    slices += [Slice(*names) for names in sorted({cell[:2] for cell in shared_cells})]
    masks: set[bytes] = set()
    parts = []
    small_slices = []
    for slice_ in slices:
        cells = cells_of(slice_, sides)
        mask = cells.tobytes()
        if mask in masks:
            continue
        masks.add(mask)
        part = Part(slice_, cells, int(sides.before[cells].sum()), int(sides.after[cells].sum()))
        if min(part.runs_before, part.runs_after) >= min_runs:
            parts.append(part)
        else:
            small_slices.append(slice_)
    return parts, small_slices


def measure_slices(pair: Pair, sides: Sides, parts: Sequence[Part]) -> list[Measure]:
    """Compare the ranks of one series in each of some slices, cells equally weighted on both sides."""
    comparisons = []
    for part in parts:
        shares = distributions(pair, sides, part)
        weight = float(sides.weights[part.cells].sum())
        ranks = distributions(pair.ranked, sides, part)
        comparisons.append(_Comparison(*ranks, part.runs_before, part.runs_after, weight, _means(pair, shares)))
    return _measure(comparisons)


def distributions(pair: Pair, sides: Sides, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of the pair's values in a slice, before and after, float64 [values] each, equally weighted."""
    weights = np.where(part.cells, sides.weights, 0.0)
    weights /= max(float(weights.sum()), np.finfo(float).tiny)
    return (
        _distribution(pair, pair.before, weights / np.maximum(sides.before, 1)),
        _distribution(pair, pair.after, weights / np.maximum(sides.after, 1)),
    )


def measure_pooled(pair: Pair, sides: Sides) -> Measure:
    """Compare one series of all runs unweighted, including the effect of the mix."""
    n = int(sides.before.sum())
    m = int(sides.after.sum())
    before = _distribution(pair, pair.before, np.full(len(sides.cells), 1 / max(n, 1)))
    after = _distribution(pair, pair.after, np.full(len(sides.cells), 1 / max(m, 1)))
    comparison = _Comparison(before, after, n, m, n * m / max(n + m, 1), _means(pair, (before, after)))
    return _measure([comparison])[0]


def _means(pair: Pair, shares: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    before, after = shares
    return float(before @ pair.values), float(after @ pair.values)


def _distribution(pair: Pair, entries: Entries, weight: np.ndarray) -> np.ndarray:
    """Return the share of each value, float64 [values], if a run of a cell has weight ``weight`` [C]."""
    shares: np.ndarray = np.bincount(entries.position, entries.runs * weight[entries.cell], pair.values.size)
    return shares


class _Comparison(NamedTuple):
    """Two distributions to compare: shares of the same values, numbers of runs, H, and the means of the runs' means."""

    before: np.ndarray
    after: np.ndarray
    runs_before: int
    runs_after: int
    weight: float
    means: tuple[float, float]


def _measure(comparisons: Sequence[_Comparison]) -> list[Measure]:
    """Measure comparisons; the p of all are computed in one call."""
    distances = [ks_distance(comparison.before, comparison.after) for comparison in comparisons]
    p = ks_p(np.array(distances), np.array([comparison.weight for comparison in comparisons])).tolist()
    measures = []
    for comparison, distance, chance in zip(comparisons, distances, p, strict=True):
        before, after, runs_before, runs_after, weight, means = comparison
        psi = psi_of(before, after, runs_before, runs_after, weight)
        measures.append(Measure(psi, distance, chance, weight, *means))
    return measures


def ks_distance(before: np.ndarray, after: np.ndarray) -> float:
    """Return the largest distance of two distributions, given as shares of the same ascending values."""
    return float(np.abs(np.cumsum(before - after)).max(initial=0.0))


def ks_p(distance: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return p of two-sample KS distances by the asymptotic formula of `scipy.stats.ks_2samp`.

    Ties and cells increase p, so the test is conservative.
    """
    from scipy.stats import kstwo

    p: np.ndarray = np.clip(kstwo.sf(distance, np.maximum(np.round(weight), 1)), 0.0, 1.0)
    return p


def psi_of(before: np.ndarray, after: np.ndarray, runs_before: int, runs_after: int, weight: float) -> float:
    """Return the population stability index of two distributions, given as shares of the same ascending values.

    The bins are tenths of ``before``, fewer for few runs. A value belongs to the tenth that contains the middle of its
    share, so a value of many runs is never merged with its neighbours. Each bin counts half a run more than it has, so
    that an empty one does not give infinity.
    """
    bins = int(np.clip(weight // _BIN_RUNS, 3, 10))
    middle = np.cumsum(before) - before / 2
    bin_of = np.clip((middle * bins).astype(np.int64), 0, bins - 1)
    used = np.unique(bin_of)
    p = (np.bincount(bin_of, before, bins)[used] * runs_before + 0.5) / (runs_before + 0.5 * used.size)
    q = (np.bincount(bin_of, after, bins)[used] * runs_after + 0.5) / (runs_after + 0.5 * used.size)
    return float(np.sum((q - p) * np.log(q / p)))


class DriftedSlice(NamedTuple):
    """A slice with drift. ``rest``: without the runs of slices that were reported before."""

    part: Part
    measure: Measure
    rest: bool


def drifted_slices(
    parts: Sequence[Part],
    sides: Sides,
    measure: Callable[[Sequence[Part]], list[Measure]],
    is_drift: Callable[[Measure], bool],
    min_runs: int,
) -> Iterator[DriftedSlice]:
    """Yield the fewest slices that explain the drift.

    The slice with the clearest drift (the largest KS · √H) is reported. Then its runs are left out, and the other runs
    are examined again. So a drifted job is reported once, and not again for its provider and for all runs.
    """
    remaining = list(parts)
    for reported in range(_MAX_SLICES):
        candidates = [
            DriftedSlice(part, part_measure, rest=reported > 0)
            for part, part_measure in zip(remaining, measure(remaining), strict=True)
            if is_drift(part_measure)
        ]
        if not candidates:
            return
        clearest = max(candidates, key=lambda drifted: drifted.measure.ks * drifted.measure.weight**0.5)
        yield clearest
        remaining = list(_without(remaining, clearest.part.cells, sides, min_runs))


def _without(parts: Sequence[Part], cells: np.ndarray, sides: Sides, min_runs: int) -> Iterator[Part]:
    for part in parts:
        remaining = part.cells & ~cells
        runs = int(sides.before[remaining].sum()), int(sides.after[remaining].sum())
        if min(runs) >= min_runs:
            yield Part(part.slice, remaining, *runs)


class Unit(NamedTuple):
    """A change of unit.

    Attributes:
      factor: as measured, the median of the quantiles' ratios.
      name: the nearest known factor, with ``×`` or ``÷``.
    """

    factor: float
    name: str


def unit_of(values: np.ndarray, before: np.ndarray, after: np.ndarray, weight: float) -> Unit | None:
    """Detect whether ``after`` is ``before`` in another unit.

    Args:
      values: float64 [K] ascending.
      before, after: their shares on each side.
      weight: the size of the comparison, `Measure.weight`.

    Returns:
      The best fitting factor, if the two then match like samples of one distribution; else None.
    """
    ratios = _quantile_ratios(values, before, after)
    if not ratios.size:
        return None
    candidates = []
    for size, name in _FACTORS.items():
        for factor, sign in ((size, "×"), (1 / size, "÷")):
            if np.abs(np.log(ratios / factor)).max() <= _RATIO_TOLERANCE * math.log(size):
                candidates.append((_distance(values, before, after, factor), f"{sign} {name}"))
    if not candidates:
        return None
    distance, name = min(candidates)
    is_closer = distance * _MIN_IMPROVEMENT <= _distance(values, before, after, 1.0)
    p = float(ks_p(np.array([distance]), np.array([weight]))[0])
    is_equal = distance <= _UNIT_DISTANCE or p > _UNIT_ALPHA
    return Unit(float(np.median(ratios)), name) if is_closer and is_equal else None


def _quantile_ratios(values: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the ratio of each quantile, float64; an empty array if a sign changed."""
    quantiles = []
    for shares in (before, after):
        cumulative = np.cumsum(np.where(values == 0, 0.0, shares))
        index = np.searchsorted(cumulative, _QUANTILES * cumulative[-1:])
        quantiles.append(values[np.minimum(index, values.size - 1)])
    old, new = quantiles
    return np.zeros(0) if (old * new <= 0).any() else np.asarray(new / old)


def _distance(values: np.ndarray, before: np.ndarray, after: np.ndarray, factor: float) -> float:
    """Return the KS distance of ``before``, scaled by ``factor``, to ``after``; values within the slack are equal."""
    scaled = values * factor
    return max(_excess(scaled, before, values, after), _excess(values, after, scaled, before))


def _excess(x: np.ndarray, p: np.ndarray, y: np.ndarray, q: np.ndarray) -> float:
    """Return the largest excess of cumulative ``p`` over ``q``, with ``q`` evaluated beyond the slack."""
    reach = np.concatenate([[0.0], np.cumsum(q)])[np.searchsorted(y, x + _SLACK * np.abs(x), side="right")]
    return float((np.cumsum(p) - reach).max(initial=0.0))
