"""Drift between two sets of examples: which features drifted, where, and by how much.

A *slice* is all runs, those of a job, of a provider, or of a job on a provider. Within a slice both sides are weighted
equally by cell (job, provider, flavour, class), so a changed mix of runs has no effect here. The comparison uses the
rank of a run among the N = r + c runs of its cell, r before and c after. Without drift, the distance of the two
distributions of ranks has a variance proportional to N² / (r·c·(N - 1)). A cell is weighted by its inverse, at which
cells of any sizes together have the most power. So the two-sample tests are unchanged, with the sum H of the weights as
their size, which for one cell is about r·c / (r + c). A cell that one side lacks has no weight.

PSI measures how much a distribution drifted, KS whether that is significant. A finding needs both.

Changes of unit: a distribution that became a well-known multiple of itself with the same shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ciml.transforms.drift.statistics import Cell, Series, Statistics, middles

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
    scales = []
    for size, name in _FACTORS.items():
        for factor, sign in ((size, "×"), (1 / size, "÷")):
            if ratios.size and np.abs(np.log(ratios / factor)).max() <= _EXPONENT * math.log(size):
                scales.append((_distance(values, before, after, factor), f"{sign} {name}"))
    if not scales:
        return None
    distance, name = min(scales)
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


_ROUNDS = 20  # limit of slices per feature
_BIN_RUNS = 10  # minimum of runs per bin of PSI, while there are three bins


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
    """The runs of a job on a provider; None means all of them."""

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
    """Two statistics over one list of cells: runs before and after, int64 [C] each."""

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
        """float64 [C]: r·c·(N - 1) / N² for r runs before and c after, N together; 0 for a cell of one side."""
        both = np.maximum(self.before + self.after, 1)
        weights: np.ndarray = self.before * self.after * (both - 1) / both**2
        return weights


@dataclass(frozen=True, eq=False)
class Pair:
    """A series on both sides: for each of K entries its cell, its index in ``values`` (ascending), and its runs."""

    values: np.ndarray
    before: tuple[np.ndarray, np.ndarray, np.ndarray]
    after: tuple[np.ndarray, np.ndarray, np.ndarray]

    @classmethod
    def of(cls, sides: Sides, before: Statistics, after: Statistics, name: str) -> Pair:
        number = {cell: index for index, cell in enumerate(sides.cells)}
        sides_found: list[tuple[Series, np.ndarray]] = []
        for side in (before, after):
            index = np.array([number[cell] for cell in side.cells], np.int64)
            sides_found.append((side.series[name], index[side.series[name].cell]))
        bucket = np.unique(np.concatenate([series.bucket for series, _ in sides_found]))
        entries = [(cell, np.searchsorted(bucket, series.bucket), series.runs) for series, cell in sides_found]
        return cls(middles(bucket), *entries)

    @cached_property
    def ranked(self) -> Pair:
        """The same runs with ranks instead of values.

        A run's rank is its position among the runs of its cell, of both sides, from 0 to 1. So cells with different
        values can be compared together: a small drift in each of them shifts all of the ranks.
        """
        size = self.values.size
        keys, inverse = np.unique(
            np.concatenate([cell * size + positions for cell, positions, _ in (self.before, self.after)]),
            return_inverse=True,
        )
        runs = np.bincount(inverse, np.concatenate([self.before[2], self.after[2]]), keys.size)
        cell = keys // size if size else keys
        below = np.cumsum(runs) - runs
        rank = (below - below[np.searchsorted(cell, cell)] + runs / 2) / np.bincount(cell, runs)[cell]
        levels, level = np.unique(rank, return_inverse=True)
        first = self.before[0].size
        ranks = level[inverse[:first]], level[inverse[first:]]
        sides = zip((self.before, self.after), ranks, strict=True)
        return Pair(levels, *((cells, positions, weights) for (cells, _, weights), positions in sides))


def parts_of(sides: Sides, min_runs: int) -> tuple[list[Part], list[Slice]]:
    """Return the slices with enough runs on both sides, the widest first, and those with too few.

    A slice with the same runs as a wider one is left out, as is one with runs of one side only.
    """
    shared = (sides.before > 0) & (sides.after > 0)
    jobs = np.array([cell.build_name for cell in sides.cells], object)
    providers = np.array([cell.provider for cell in sides.cells], object)
    shared_cells = [cell for cell, both in zip(sides.cells, shared, strict=True) if both]
    slices = [Slice()]
    slices += [Slice(build_name=name) for name in sorted({cell.build_name for cell in shared_cells})]
    slices += [Slice(provider=name) for name in sorted({cell.provider for cell in shared_cells})]
    slices += [Slice(*names) for names in sorted({cell[:2] for cell in shared_cells})]
    digests: set[bytes] = set()
    parts = []
    few = []
    for slice_ in slices:
        cells = shared.copy()
        if slice_.build_name is not None:
            cells &= jobs == slice_.build_name
        if slice_.provider is not None:
            cells &= providers == slice_.provider
        if (key := cells.tobytes()) in digests:
            continue
        digests.add(key)
        part = Part(slice_, cells, int(sides.before[cells].sum()), int(sides.after[cells].sum()))
        if min(part.runs_before, part.runs_after) >= min_runs:
            parts.append(part)
        else:
            few.append(slice_)
    return parts, few


def measure_slices(pair: Pair, sides: Sides, parts: Sequence[Part]) -> list[Measure]:
    """Compare the ranks of one series in each of some slices, cells equally weighted on both sides."""
    rows = []
    means = []
    for part in parts:
        before, after = distributions(pair.ranked, sides, part)
        rows.append((before, after, part.runs_before, part.runs_after, float(sides.weights[part.cells].sum())))
        means.append([float(shares @ pair.values) for shares in distributions(pair, sides, part)])
    return _measures(rows, means)


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
    means = [float(before @ pair.values), float(after @ pair.values)]
    return _measures([(before, after, n, m, n * m / max(n + m, 1))], [means])[0]


def _distribution(pair: Pair, entries: tuple[np.ndarray, np.ndarray, np.ndarray], weight: np.ndarray) -> np.ndarray:
    """Return the share of each value, float64 [values], where a run of a cell has weight ``weight`` [C]."""
    cell, index, runs = entries
    shares: np.ndarray = np.bincount(index, runs * weight[cell], pair.values.size)
    return shares


def _measures(
    rows: Sequence[tuple[np.ndarray, np.ndarray, int, int, float]], means: Sequence[Sequence[float]]
) -> list[Measure]:
    psi = [psi_of(before, after, n, m, weight) for before, after, n, m, weight in rows]
    ks = [ks_distance(before, after) for before, after, *_ in rows]
    p = ks_p(np.array(ks), np.array([weight for *_, weight in rows]))
    return [Measure(psi[index], ks[index], float(p[index]), row[4], *means[index]) for index, row in enumerate(rows)]


def ks_distance(before: np.ndarray, after: np.ndarray) -> float:
    """Return the largest distance of two distributions, given as shares of the same ascending values."""
    return float(np.abs(np.cumsum(before - after)).max(initial=0.0))


def ks_p(distance: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return p of two-sample KS distances by the asymptotic formula of `scipy.stats.ks_2samp`.

    Ties and cells increase it: the test is conservative.
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
    bin_ = np.clip((middle * bins).astype(np.int64), 0, bins - 1)
    used = np.unique(bin_)
    counts = ((before, runs_before), (after, runs_after))
    p, q = ((np.bincount(bin_, shares, bins)[used] * runs + 0.5) / (runs + 0.5 * used.size) for shares, runs in counts)
    return float(np.sum((q - p) * np.log(q / p)))


class DriftedSlice(NamedTuple):
    """A slice with drift. ``rest``: without the runs of slices reported before."""

    part: Part
    measure: Measure
    rest: bool


def drifted_slices(
    parts: Sequence[Part],
    sides: Sides,
    measure: Callable[[Sequence[Part]], list[Measure]],
    drifted: Callable[[Measure], bool],
    min_runs: int,
) -> Iterator[DriftedSlice]:
    """Yield the fewest slices that explain the drift.

    The slice with the clearest drift (the largest KS · √H) is reported, its runs are left out, and the rest is examined
    again: a drifted job is reported once, and not again for its provider and for all runs.
    """
    remaining = list(parts)
    for reported in range(_ROUNDS):
        measured = zip(remaining, measure(remaining), strict=True)
        drifted_parts = [
            DriftedSlice(part, slice_measure, reported > 0)
            for part, slice_measure in measured
            if drifted(slice_measure)
        ]
        if not drifted_parts:
            return
        best = max(drifted_parts, key=lambda one: one.measure.ks * one.measure.weight**0.5)
        yield best
        remaining = list(_without(remaining, best.part.cells, sides, min_runs))


def _without(parts: Sequence[Part], cells: np.ndarray, sides: Sides, min_runs: int) -> Iterator[Part]:
    for part in parts:
        remaining = part.cells & ~cells
        runs = int(sides.before[remaining].sum()), int(sides.after[remaining].sum())
        if min(runs) >= min_runs:
            yield Part(part.slice, remaining, *runs)
