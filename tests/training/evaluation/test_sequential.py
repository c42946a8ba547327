"""The sequential comparison of a canary: right however often it is looked at, and able to see what is there."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.training.evaluation.sequential import Arm, Bet, SequentialComparison
from studies.canary import Case, decide

shares = st.floats(0.02, 0.98)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(1, 4), shares, shares,
    st.sampled_from([(0.0, 1), (-0.02, -1), (-0.2, -1)]),
)  # fmt: skip
def test_a_bet_gains_nothing_on_average_where_its_hypothesis_holds(
    right: int, wrong: int, stable_right: int, stable_wrong: int, runs: int, share: float, stable_share: float,
    kind: tuple[float, int],
) -> None:  # fmt: skip
    """The expected wealth after a block, over all of its outcomes, is at most 1: so Ville's inequality holds."""
    shift, sign = kind
    share = max(share, stable_share + shift) if sign > 0 else min(share, stable_share + shift)
    if not 0 < share < 1:
        return
    canary, stable = Arm(right, right + wrong), Arm(stable_right, stable_right + stable_wrong)
    expected = 0.0
    for is_right, successes in product((True, False), range(runs + 1)):
        bet = Bet(shift, sign)
        bet.add(canary, stable, is_right, Arm(successes, runs))
        ways = math.comb(runs, successes) * stable_share**successes * (1 - stable_share) ** (runs - successes)
        expected += (share if is_right else 1 - share) * ways * math.exp(bet.log_wealth)
    assert expected <= 1 + 1e-6


def test_a_canary_that_is_five_points_worse_is_rolled_back() -> None:
    decisions = [decide(Case(0.9, 0.85, 0.5), seed, 12_000) for seed in range(20)]
    assert {decision for decision, _ in decisions} == {"rollback"}
    assert 500 < np.median([runs for _, runs in decisions]) < 5_000


def test_an_equal_canary_is_seldom_rolled_back_though_each_run_is_looked_at() -> None:
    decisions = [decide(Case(0.9, 0.9, 0.5), seed, 3_000)[0] for seed in range(60)]
    assert decisions.count("rollback") <= 6  # 3 are expected at most


def test_a_better_canary_is_promoted() -> None:
    decisions = [decide(Case(0.9, 0.97, 0.5), seed, 3_000)[0] for seed in range(10)]
    assert decisions == ["promote"] * 10


def test_nothing_is_decided_without_both() -> None:
    comparison = SequentialComparison()
    for _ in range(2_000):
        comparison.add(is_canary=True, is_right=False)
    assert (comparison.decision, comparison.evidence, comparison.canary.runs) == ("", (1.0, 1.0), 2_000)


def test_after_a_decision_runs_are_only_counted() -> None:
    comparison = SequentialComparison()
    for _ in range(100):
        comparison.add(is_canary=False, is_right=True)
        comparison.add(is_canary=True, is_right=False)
    evidence = comparison.evidence
    assert comparison.decision == "rollback"
    for _ in range(500):
        comparison.add(is_canary=False, is_right=False)
        comparison.add(is_canary=True, is_right=True)
    assert (comparison.decision, comparison.evidence) == ("rollback", evidence)
    assert comparison.canary == Arm(500, 600)


@pytest.mark.parametrize(("level", "decision"), [(0.5, "rollback"), (1e-12, "")])
def test_the_level_is_the_evidence_that_is_needed(level: float, decision: str) -> None:
    comparison = SequentialComparison(level=level)
    for _ in range(8):
        comparison.add(is_canary=False, is_right=True)
        comparison.add(is_canary=True, is_right=False)
    assert comparison.decision == decision
