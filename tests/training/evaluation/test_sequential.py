"""The sequential comparison of a canary: right however often it is looked at, and able to see what is there."""

from __future__ import annotations

import copy
import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from ciml.training.evaluation import sequential
from ciml.training.evaluation.sequential import (
    AccuracyDrop,
    Arm,
    Bet,
    PairedBet,
    PairedComparison,
    SequentialComparison,
)
from studies.canary import Case, PairedCase, decide, decide_pairs

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


@pytest.mark.parametrize(("bet", "worse_by"), [(0, 0.0), (1, 0.02)])
def test_a_comparison_gains_nothing_on_average_where_its_hypothesis_holds(bet: int, worse_by: float) -> None:
    """Exactly, over all outcomes: so it bets on each run by the earlier ones alone, and on each once."""
    canaries = shadows = 0.0
    for outcomes in product((True, False), repeat=10):
        canary = SequentialComparison(level=1e-9)
        chance = 1.0
        for number, is_right in enumerate(outcomes):
            canary.add(is_canary=number % 2 == 1, is_right=is_right)
            share = 0.6 - worse_by * (number % 2)
            chance *= share if is_right else 1 - share
        canaries += chance * canary.evidence[bet]
    better, worse = 0.2 - worse_by / 2, 0.2 + worse_by / 2
    chances = {(True, True): 0.5, (False, False): 0.1, (True, False): better, (False, True): worse}
    for pairs in product(chances, repeat=5):
        shadow = PairedComparison(level=1e-9)
        for canary_is_right, stable_is_right in pairs:
            shadow.add(canary_is_right=canary_is_right, stable_is_right=stable_is_right)
        shadows += math.prod(map(chances.__getitem__, pairs)) * shadow.evidence[bet]
    assert max(canaries, shadows) <= 1 + 1e-9


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


@pytest.mark.parametrize(("decision", "bet"), [("rollback", 0), ("promote", 1)])
def test_a_decision_needs_the_evidence_of_its_level_and_no_more(decision: str, bet: int) -> None:
    """By Ville's inequality, the bets reach it with at most that probability if the decision is wrong."""
    canary_is_right = decision == "promote"
    canary, shadow = SequentialComparison(level=0.01), PairedComparison(level=0.01)
    for comparison in (canary, shadow):
        evidence = [1.0]
        while not comparison.decision:
            if isinstance(comparison, PairedComparison):
                comparison.add(canary_is_right=canary_is_right, stable_is_right=not canary_is_right)
            else:
                comparison.add(is_canary=False, is_right=not canary_is_right)
                comparison.add(is_canary=True, is_right=canary_is_right)
            evidence.append(comparison.evidence[bet])
        assert comparison.decision == decision
        assert evidence[-2] < 1 / 0.01 <= evidence[-1]


def test_half_of_the_level_is_that_of_the_gate_and_half_that_of_the_bets() -> None:
    drop = AccuracyDrop(Arm(9, 12), level=0.1)
    assert drop.least == pytest.approx(binomtest(9, 12).proportion_ci(0.9, "exact").low)
    evidence = [1.0]
    while not drop.is_shown:
        drop.add(is_right=False)
        evidence.append(drop.evidence)
    assert evidence[-2] < 2 / 0.1 <= evidence[-1]


def test_the_number_of_bets_on_a_version_grows_with_the_logarithm_of_its_runs() -> None:
    drop = AccuracyDrop(Arm(95, 100))
    bets = []
    for number in range(1, 20_001):
        drop.add(is_right=True)
        if number in (400, 20_000):
            bets.append(len(drop._log_wealth))
    assert bets == [20, 101]


def served(accuracies: np.ndarray, seed: int, gate: Arm) -> int:
    """Return after how many runs a drop is shown, whose accuracies are given run by run; 0 for never."""
    drop = AccuracyDrop(gate)
    for number, is_right in enumerate(np.random.default_rng(seed).random(len(accuracies)) < accuracies, 1):
        drop.add(is_right=bool(is_right))
        if drop.is_shown:
            return number
    return 0


@pytest.mark.parametrize("above", [0.0, 0.05])
def test_the_bets_on_a_version_gain_nothing_on_average_while_it_is_as_good(
    monkeypatch: pytest.MonkeyPatch, above: float
) -> None:
    """The expected wealth after each run, over all outcomes of twelve runs with four starts, is at most 1."""
    monkeypatch.setattr(sequential, "_STARTS", 3)
    expected = np.zeros(12)
    share = AccuracyDrop(Arm(9, 12)).least + above

    def add_runs(earlier: AccuracyDrop, chance: float) -> None:
        for is_right, likelihood in ((True, share), (False, 1 - share)):
            drop = copy.deepcopy(earlier)
            drop.add(is_right=is_right)
            expected[drop.served.runs - 1] += chance * likelihood * drop.evidence
            if drop.served.runs < len(expected):
                add_runs(drop, chance * likelihood)

    add_runs(AccuracyDrop(Arm(9, 12)), 1.0)
    assert expected.max() <= 1 + 1e-9
    assert expected[-1] < 1 if above else expected[-1] == pytest.approx(1)


def test_a_drop_is_shown_even_after_a_thousand_good_runs() -> None:
    gate = Arm(right=190, runs=200)
    falls = np.repeat([0.95, 0.75], [1000, 400])
    found = [served(falls, seed, gate) for seed in range(20)]
    assert all(1000 < number < 1300 for number in found)


def test_a_version_that_is_as_good_as_at_the_gate_is_seldom_called_worse() -> None:
    """The accuracy at the gate is itself drawn, since it is known from few runs."""
    random = np.random.default_rng(0)
    gates = [Arm(int(random.binomial(40, 0.9)), 40) for _ in range(60)]
    assert sum(served(np.full(800, 0.9), seed, gate) > 0 for seed, gate in enumerate(gates)) <= 3


def test_without_a_right_run_at_the_gate_no_version_is_worse() -> None:
    assert not served(np.zeros(100), 0, Arm(0, 20))
    assert not served(np.zeros(100), 0, Arm())


counts = st.fixed_dictionaries({-1: st.integers(0, 30), 0: st.integers(0, 300), 1: st.integers(0, 30)})


@settings(max_examples=300, deadline=None)
@given(counts, shares, st.floats(0, 1), st.sampled_from([(0.0, 1), (-0.02, -1), (-0.2, -1)]))
def test_a_bet_on_pairs_gains_nothing_on_average_where_its_hypothesis_holds(
    counts: dict[int, int], differing: float, better: float, kind: tuple[float, int]
) -> None:
    shift, sign = kind
    of = {1: differing * better, -1: differing * (1 - better), 0: 1 - differing}
    if sign * (of[1] - of[-1] - shift) < 0:
        return  # the hypothesis does not hold
    expected = 0.0
    for difference, probability in of.items():
        bet = PairedBet(shift, sign)
        bet.add(counts, difference)
        expected += probability * math.exp(bet.log_wealth)
    assert expected <= 1 + 1e-9


def test_pairs_decide_sooner_than_a_share_of_the_runs() -> None:
    worse = [decide_pairs(PairedCase(0.9, 0.85, 0.03), seed, 12_000) for seed in range(20)]
    assert {decision for decision, _ in worse} == {"rollback"}
    assert np.median([runs for _, runs in worse]) < 1_000
    better = [decide_pairs(PairedCase(0.9, 0.97, 0.01), seed, 3_000)[0] for seed in range(10)]
    assert better == ["promote"] * 10


def test_equal_answers_show_that_a_shadow_is_not_worse() -> None:
    comparison = PairedComparison()
    for index in range(1_000):
        comparison.add(canary_is_right=index % 10 > 0, stable_is_right=index % 10 > 0)
    assert comparison.decision == "promote"
    assert comparison.canary == comparison.stable == Arm(900, 1_000)
