"""Intervals of shares: against scipy, Newcombe's definition and exact coverage."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ciml.intervals import newcombe, wilson


@pytest.mark.parametrize(("right", "total"), [(0, 1), (1, 1), (5, 10), (37, 40), (0, 500), (499, 500)])
def test_wilson_is_scipys(right: int, total: int) -> None:
    want = binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert wilson(right, total) == pytest.approx((want.low, want.high), abs=1e-12)
    assert wilson(0, 0) == (0.0, 1.0)


def by_definition(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """Newcombe's method 10 as Altman (Statistics with Confidence, 2000, p. 52) writes it, on scipy's intervals."""
    runs = both + first + second + neither
    shares = []
    for right in (both + first, both + second):
        interval = binomtest(right, runs).proportion_ci(0.95, method="wilson")
        shares.append((right / runs, interval.low, interval.high))
    (p1, l1, u1), (p2, l2, u2) = shares
    a = (both + first) * (second + neither) * (both + second) * (first + neither)
    b = both * neither - first * second
    c = b - runs / 2 if b > runs / 2 else min(b, 0)
    phi = c / math.sqrt(a) if a else 0.0
    low = p1 - p2 - math.sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2)
    high = p1 - p2 + math.sqrt((p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2)
    return max(low, -1.0), min(high, 1.0)


@pytest.mark.parametrize("counts", [(36, 12, 2, 0), (20, 12, 2, 16), (18, 14, 0, 18), (3, 4, 5, 6), (0, 9, 0, 0)])
def test_the_paired_interval_is_newcombes(counts: tuple[int, int, int, int]) -> None:
    assert newcombe(*counts[:3], sum(counts)) == pytest.approx(by_definition(*counts), abs=1e-9)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_the_interval_holds_the_difference_and_turns_with_its_sign(pairs: list[tuple[bool, bool]]) -> None:
    one, two = (np.array(each, bool) for each in zip(*pairs, strict=True))
    both, first, second = int((one & two).sum()), int((one & ~two).sum()), int((two & ~one).sum())
    low, high = newcombe(both, first, second, len(one))
    difference = float(one.mean() - two.mean())
    assert -1 <= low <= difference + 1e-12
    assert difference - 1e-12 <= high <= 1
    assert low < high
    assert newcombe(both, second, first, len(one)) == (pytest.approx(-high), pytest.approx(-low))


def test_the_interval_covers_the_true_difference() -> None:
    """Over all outcomes of 16 runs, weighted by their probability, 95 % intervals hold the truth as often as that."""
    runs = 16
    outcomes = [counts for counts in product(range(runs + 1), repeat=3) if sum(counts) <= runs]
    intervals = {}
    for both, first, second in outcomes:
        intervals[both, first, second] = newcombe(both, first, second, runs)
    for chances in ((0.6, 0.2, 0.1, 0.1), (0.3, 0.3, 0.2, 0.2), (0.8, 0.1, 0.05, 0.05), (0.7, 0.05, 0.2, 0.05)):
        truth = chances[1] - chances[2]
        covered = 0.0
        for (both, first, second), (low, high) in intervals.items():
            counts = (both, first, second, runs - both - first - second)
            ways = math.factorial(runs) // math.prod(map(math.factorial, counts))
            if low <= truth <= high:
                covered += ways * math.prod(p**n for p, n in zip(chances, counts, strict=True))
        assert 0.93 < covered < 0.995, (chances, covered)
