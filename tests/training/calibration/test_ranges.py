"""The ranges of learned runs: by a plain loop, and how often runs like them, and unlike them, are outside."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.events.records import RunFacts
from ciml.training.calibration.sets import SHARE, learned_ranges
from ciml.transforms.examples.prepare import run_means
from ciml.verdict_rules import LearnedRanges, parts_outside


def runs_of(changes: list[int]) -> list[RunFacts]:
    return [
        RunFacts(run_id=f"zuul~{number}~1", build_uuid=str(number), build_name="unit", change=str(change))
        for number, change in enumerate(changes)
    ]


def by_loop(means: np.ndarray, changes: list[int]) -> LearnedRanges:
    distances = []
    for row, change in zip(means, changes, strict=True):
        others = means[[other != change for other in changes]]
        distances.append(float(parts_outside(row, others.min(axis=0), others.max(axis=0)).max()))
    rank = min(math.ceil(SHARE * (len(distances) + 1)), len(distances))
    low, high = tuple(means.min(axis=0).tolist()), tuple(means.max(axis=0).tolist())
    return LearnedRanges(len(means), ("a", "b"), low, high, sorted(distances)[rank - 1])


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(-4, 4), st.sampled_from([0.0, 1.5, 7.0])), min_size=2, max_size=70
    )
)
def test_each_run_is_compared_with_the_runs_of_other_changes(given_runs: list[tuple[int, int, float]]) -> None:
    means = np.array([[float(one), other] for _, one, other in given_runs])
    changes = [change for change, _, _ in given_runs]
    found = learned_ranges(means, runs_of(changes), ("a", "b"))
    if len(set(changes)) == 1:
        assert found is None
    else:
        assert found == by_loop(means, changes)


@pytest.mark.parametrize("learned", [40, 400])
def test_of_runs_like_the_learned_ones_few_are_outside_and_of_others_most(learned: int) -> None:
    random = np.random.default_rng(learned)
    shares = []
    for _ in range(40):
        means = random.gamma(2.0, 10.0, (learned, 12))
        ranges = learned_ranges(means, runs_of(list(range(learned))), [str(number) for number in range(12)])
        assert ranges is not None
        fresh = random.gamma(2.0, 10.0, (500, 12))
        shares.append(np.mean([ranges.outside(row) is not None for row in fresh]))
        fresh[:, 7] += 500
        assert all(ranges.outside(row) is not None for row in fresh)
    stated = max(1 - SHARE, 1 / (learned + 1))
    assert 0.2 * stated < np.mean(shares) < 1.2 * stated


def test_runs_of_one_change_are_compared_together() -> None:
    """Two runs of a change far from all others do not vouch for each other."""
    means = np.array([[1.0], [2.0], [3.0], [100.0], [101.0]])
    alone = learned_ranges(means, runs_of([1, 2, 3, 4, 5]), ["a"])
    together = learned_ranges(means, runs_of([1, 2, 3, 4, 4]), ["a"])
    assert alone is not None
    assert together is not None
    assert (alone.limit, together.limit) == (pytest.approx(1 / 99), 49.0)


def test_means_are_of_the_windows_alone() -> None:
    inputs = np.array([[[1, 10], [3, 30], [0, 0]], [[5, 50], [6, 60], [10, 100]]], np.float32)
    assert run_means(inputs, np.array([2, 3])).tolist() == [[2, 20], [7, 70]]
