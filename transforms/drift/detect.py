"""Drift: what moved between two sets of examples, where, and by how much.

A *slice* is all runs, those of a job, of a provider, or of a job on a provider. Within a slice both sides are weighted
alike, by cell (job, provider, flavour, class), so that another mix of runs moves nothing here. What is compared is the
rank of a run among the N = r + c runs of its cell, r before and c after. Where nothing moved, the distance of the two
distributions of ranks has a variance that goes with N² / (r·c·(N - 1)); a cell weighs by its inverse, at which cells of
any sizes together tell most. So the two-sample tests stay what they are, with the sum H of the weights as their size,
which for one cell is about r·c / (r + c). A cell that one side lacks says nothing.

PSI says how much a distribution moved, KS whether that is more than chance. Only what both say is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from transforms.drift.statistics import Cell, Series, Statistics, middles

_ROUNDS = 20  # so many places are named of one feature
_BIN_RUNS = 10  # a bin of PSI stands for at least so many runs, as far as there are three bins


@dataclass(frozen=True, slots=True)
class DriftPolicy:
    """When something has moved.

    Attributes:
      psi: from this on a distribution has moved; below 0.1 is taken for stable everywhere that PSI is used.
      psi_large: from this on it has moved much: a model is to be trained anew.
      alpha: the chance that a comparison in which nothing moved tells of anything, shared by all of its tests.
      min_runs: with fewer runs on a side, a slice is too small to say anything of.
      share: a column has come or gone in a slice when its share of the runs changed by so much.
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
    """A slice of a comparison: its cells that both sides have, bool [C], and how many runs those are."""

    slice: Slice
    cells: np.ndarray
    runs_before: int
    runs_after: int


class Measure(NamedTuple):
    """A feature in a slice, before and after.

    Attributes:
      psi: population stability index.
      ks: the largest distance of the two distributions, 0 to 1.
      p: of a distance as large as that without any drift; not corrected for the number of tests.
      weight: H, the size of the comparison: about n·m / (n + m) for one cell.
      before, after: means of the runs' means, weighted alike.
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
        """float64 [C]: r·c·(N - 1) / N² for r runs before and c after, N together; 0 for a cell that one side lacks."""
        both = np.maximum(self.before + self.after, 1)
        weights: np.ndarray = self.before * self.after * (both - 1) / both**2
        return weights


@dataclass(frozen=True, eq=False)
class Pair:
    """A series on both sides: for each of K entries its cell, its place among ``values`` (ascending), and its runs."""

    values: np.ndarray
    before: tuple[np.ndarray, np.ndarray, np.ndarray]
    after: tuple[np.ndarray, np.ndarray, np.ndarray]

    @classmethod
    def of(cls, sides: Sides, before: Statistics, after: Statistics, name: str) -> Pair:
        number = {cell: index for index, cell in enumerate(sides.cells)}
        found: list[tuple[Series, np.ndarray]] = []
        for side in (before, after):
            place = np.array([number[cell] for cell in side.cells], np.int64)
            found.append((side.series[name], place[side.series[name].cell]))
        bucket = np.unique(np.concatenate([series.bucket for series, _ in found]))
        entries = [(cell, np.searchsorted(bucket, series.bucket), series.runs) for series, cell in found]
        return cls(middles(bucket), *entries)

    @cached_property
    def ranked(self) -> Pair:
        """The same runs with their ranks in place of their values.

        A run's rank is its place among the runs of its own cell, of both sides, from 0 to 1. So cells whose values lie
        far apart can be looked at together: what moves a little in each of them moves all of the ranks.
        """
        size = self.values.size
        keys, place = np.unique(
            np.concatenate([cell * size + at for cell, at, _ in (self.before, self.after)]), return_inverse=True
        )
        runs = np.bincount(place, np.concatenate([self.before[2], self.after[2]]), keys.size)
        cell = keys // size if size else keys
        below = np.cumsum(runs) - runs
        rank = (below - below[np.searchsorted(cell, cell)] + runs / 2) / np.bincount(cell, runs)[cell]
        levels, level = np.unique(rank, return_inverse=True)
        first = self.before[0].size
        places = level[place[:first]], level[place[first:]]
        sides = zip((self.before, self.after), places, strict=True)
        return Pair(levels, *((cells, at, each) for (cells, _, each), at in sides))


def parts_of(sides: Sides, min_runs: int) -> tuple[list[Part], list[Slice]]:
    """Return the slices that have enough runs on both sides, the widest first, and those that have too few.

    A slice that holds the same runs as a wider one is left out, as one that holds runs of one side alone.
    """
    shared = (sides.before > 0) & (sides.after > 0)
    jobs = np.array([cell.build_name for cell in sides.cells], object)
    providers = np.array([cell.provider for cell in sides.cells], object)
    known = [cell for cell, both in zip(sides.cells, shared, strict=True) if both]
    slices = [Slice()]
    slices += [Slice(build_name=name) for name in sorted({cell.build_name for cell in known})]
    slices += [Slice(provider=name) for name in sorted({cell.provider for cell in known})]
    slices += [Slice(*names) for names in sorted({cell[:2] for cell in known})]
    seen: set[bytes] = set()
    parts, few = [], []
    for one in slices:
        cells = shared.copy()
        if one.build_name is not None:
            cells &= jobs == one.build_name
        if one.provider is not None:
            cells &= providers == one.provider
        if (key := cells.tobytes()) in seen:
            continue
        seen.add(key)
        part = Part(one, cells, int(sides.before[cells].sum()), int(sides.after[cells].sum()))
        if min(part.runs_before, part.runs_after) >= min_runs:
            parts.append(part)
        else:
            few.append(one)
    return parts, few


def measure_slices(pair: Pair, sides: Sides, parts: Sequence[Part]) -> list[Measure]:
    """Compare the ranks of one series in each of some slices, cells weighted alike on both sides."""
    rows, means = [], []
    for part in parts:
        before, after = distributions(pair.ranked, sides, part)
        rows.append((before, after, part.runs_before, part.runs_after, float(sides.weights[part.cells].sum())))
        means.append([float(shares @ pair.values) for shares in distributions(pair, sides, part)])
    return _measures(rows, means)


def distributions(pair: Pair, sides: Sides, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """The shares of the pair's values in a slice, before and after, float64 [values] each, cells weighted alike."""
    weights = np.where(part.cells, sides.weights, 0.0)
    weights /= max(float(weights.sum()), np.finfo(float).tiny)
    return (
        _distribution(pair, pair.before, weights / np.maximum(sides.before, 1)),
        _distribution(pair, pair.after, weights / np.maximum(sides.after, 1)),
    )


def measure_pooled(pair: Pair, sides: Sides) -> Measure:
    """Compare one series of all runs as they are, with whatever the mix did to them."""
    n, m = int(sides.before.sum()), int(sides.after.sum())
    before = _distribution(pair, pair.before, np.full(len(sides.cells), 1 / max(n, 1)))
    after = _distribution(pair, pair.after, np.full(len(sides.cells), 1 / max(m, 1)))
    means = [float(before @ pair.values), float(after @ pair.values)]
    return _measures([(before, after, n, m, n * m / max(n + m, 1))], [means])[0]


def _distribution(pair: Pair, entries: tuple[np.ndarray, np.ndarray, np.ndarray], weight: np.ndarray) -> np.ndarray:
    """Return the share of each value, float64 [values], where a run of a cell weighs ``weight`` [C]."""
    cell, place, runs = entries
    shares: np.ndarray = np.bincount(place, runs * weight[cell], pair.values.size)
    return shares


def _measures(
    rows: Sequence[tuple[np.ndarray, np.ndarray, int, int, float]], means: Sequence[Sequence[float]]
) -> list[Measure]:
    psi = [psi_of(before, after, n, m, weight) for before, after, n, m, weight in rows]
    ks = [ks_distance(before, after) for before, after, *_ in rows]
    p = ks_p(np.array(ks), np.array([weight for *_, weight in rows]))
    return [Measure(psi[at], ks[at], float(p[at]), row[4], *means[at]) for at, row in enumerate(rows)]


def ks_distance(before: np.ndarray, after: np.ndarray) -> float:
    """Return the largest distance of two distributions, given as shares of the same ascending values."""
    return float(np.abs(np.cumsum(before - after)).max(initial=0.0))


def ks_p(distance: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """p of two-sample KS distances by the asymptotic formula, as `scipy.stats.ks_2samp` has it.

    Ties and cells make it larger than it is: it errs on the quiet side.
    """
    from scipy.stats import kstwo

    p: np.ndarray = np.clip(kstwo.sf(distance, np.maximum(np.round(weight), 1)), 0.0, 1.0)
    return p


def psi_of(before: np.ndarray, after: np.ndarray, runs_before: int, runs_after: int, weight: float) -> float:
    """Return the population stability index of two distributions, given as shares of the same ascending values.

    The bins are tenths of ``before``, fewer for few runs: a value is in the tenth that the middle of its own share
    falls into, so a value that many runs have is never thrown together with what lies beside it. Each bin counts half
    a run more than it has, so that an empty one is no infinity.
    """
    bins = int(np.clip(weight // _BIN_RUNS, 3, 10))
    middle = np.cumsum(before) - before / 2
    place = np.clip((middle * bins).astype(np.int64), 0, bins - 1)
    used = np.unique(place)
    counts = ((before, runs_before), (after, runs_after))
    p, q = ((np.bincount(place, shares, bins)[used] * runs + 0.5) / (runs + 0.5 * used.size) for shares, runs in counts)
    return float(np.sum((q - p) * np.log(q / p)))


class Place(NamedTuple):
    """A slice in which something moved. ``rest``: without the runs of places that were told before."""

    part: Part
    measure: Measure
    rest: bool


def places(
    parts: Sequence[Part],
    sides: Sides,
    measure: Callable[[Sequence[Part]], list[Measure]],
    moved: Callable[[Measure], bool],
    min_runs: int,
) -> Iterator[Place]:
    """Yield the fewest slices that account for what moved.

    The slice in which it shows most clearly (the largest KS · √H) is told, its runs are left out, and the rest is
    looked at again: a job that moved is told once, and not again for its provider and for all runs.
    """
    left = list(parts)
    for told in range(_ROUNDS):
        found = [Place(part, each, told > 0) for part, each in zip(left, measure(left), strict=True) if moved(each)]
        if not found:
            return
        best = max(found, key=lambda place: place.measure.ks * place.measure.weight**0.5)
        yield best
        left = list(_without(left, best.part.cells, sides, min_runs))


def _without(parts: Sequence[Part], cells: np.ndarray, sides: Sides, min_runs: int) -> Iterator[Part]:
    for part in parts:
        rest = part.cells & ~cells
        runs = int(sides.before[rest].sum()), int(sides.after[rest].sum())
        if min(runs) >= min_runs:
            yield Part(part.slice, rest, *runs)
