from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from ciml.errors import CimlError
from ciml.training.evaluation.gate import GatePolicy, decide
from ciml.training.evaluation.metrics import accuracy, compare, evaluate

POLICY = GatePolicy()
CLASSES = ("a", "b")
WITHOUT_INTERVAL = {"difference": 0.1, "low": 0.0, "runs": 9}


def answers(right: int, total: int) -> np.ndarray:
    """Return bool [total]: the first ``right`` are true."""
    return np.arange(total) < right


def figures(right: int = 90, total: int = 100, **more: Any) -> dict[str, Any]:
    """Return the figures of a candidate with ``right`` correct predictions of equally frequent classes."""
    labels = np.arange(total) % 2
    predicted = np.where(answers(right, total), labels, 1 - labels)
    probabilities = np.eye(2)[predicted] * 0.8 + 0.1
    given = {
        "evaluation": evaluate(probabilities, labels, CLASSES, np.array([0, 1, 0])),
        "class_counts": {"a": 50, "b": 50},
        "disagreement": 1e-7,
        "latency_ms": 0.3,
        "baselines": {},
    }
    return given | more


def beside(right: int, by_number: int, total: int = 100, **more: Any) -> dict[str, Any]:
    """Return the figures of a candidate beside those of the duration alone on the same runs."""
    number_right = answers(by_number, total)
    comparison = compare(answers(right, total), number_right)
    baseline = {"name": "duration, small decision tree", **accuracy(number_right), "comparison": comparison}
    return figures(right, total, baselines={"duration": baseline}, **more)


def against(right: int, champion: int, total: int = 100) -> dict[str, Any]:
    comparison = compare(answers(right, total), answers(champion, total))
    return figures(right, total, champion={"accuracy": {"value": champion / total}}, comparison=comparison)


def test_a_good_first_model_is_blessed_and_says_why():
    decision = decide(figures(), POLICY, has_champion=False)
    assert decision.blessed
    assert decision.reasons == (
        "accuracy 0.900 (at least 0.826) beats the base rate 0.500",
        "no number of the runs to compare with",
        "no champion to compare with",
    )
    assert decision.metrics["accuracy"]["right"] == 90
    json.dumps(decision.to_json(), allow_nan=False)


def test_a_gate_that_is_not_wired_is_closed():
    assert not decide(None, POLICY, has_champion=False).blessed
    decision = decide({}, POLICY, has_champion=False)
    assert decision.reasons == (
        "0 held-out runs are too few; at least 20 are needed",
        "some probabilities are not finite",
        "the number of training runs by class is missing",
        "the accuracy or the base rate is missing",
        "the one-number baselines are missing",
        "the exported model differs from the trained one by an unknown amount, at most 1e-05 is allowed",
        "one run takes an unknown amount ms, at most 50 ms is allowed",
    )


PAIRED = ("difference", "low", "interval", "runs")
#: Paths of the figures that a decision needs.
NEEDED = [
    ("evaluation",),
    ("evaluation", "runs"),
    ("evaluation", "finite"),
    ("evaluation", "accuracy"),
    ("evaluation", "accuracy", "value"),
    ("evaluation", "accuracy", "low"),
    ("evaluation", "base_rate"),
    ("evaluation", "base_rate", "value"),
    ("class_counts",),
    ("class_counts", "a"),
    ("class_counts", "b"),
    ("disagreement",),
    ("latency_ms",),
    ("baselines",),
    ("baselines", "duration"),
    ("baselines", "duration", "value"),
    ("baselines", "duration", "comparison"),
    *(("baselines", "duration", "comparison", name) for name in PAIRED),
    ("verdicts",),
    ("verdicts", "abstained"),
    ("verdicts", "abstained", "value"),
    ("verdicts", "abstained", "runs"),
    ("comparison",),
    *(("comparison", name) for name in PAIRED),
]
ABSENT = "absent"
NONSENSE = (ABSENT, None, math.nan, -math.inf, "0.5", [0.1, math.nan], [0.1], {"x": 0.1}, True)
NOT_NEEDED = [
    (("evaluation", "finite"), True),
    (("verdicts",), ABSENT),
    (("baselines", "duration"), ABSENT),
    (("class_counts", "a"), ABSENT),
    (("class_counts", "b"), ABSENT),
]


@pytest.mark.parametrize("path", NEEDED, ids=".".join)
def test_a_figure_that_is_missing_or_nonsense_is_a_reason_against_the_candidate(path: tuple[str, ...]):
    comparison = compare(answers(90, 100), answers(85, 100))
    given = beside(90, 85, verdicts={"abstained": accuracy(answers(20, 100))}, comparison=comparison)
    assert decide(given, POLICY, has_champion=True).blessed
    for value in NONSENSE:
        changed = copy.deepcopy(given)
        parent = changed
        for name in path[:-1]:
            parent = parent[name]
        parent[path[-1]] = value
        if value is ABSENT:
            del parent[path[-1]]
        if (path, value) not in NOT_NEEDED:
            assert not decide(changed, POLICY, has_champion=True).blessed, value


@pytest.mark.parametrize("name", ["tolerance", "baseline_tolerance", "above_base_rate", "min_decided", "confidence"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_threshold_that_is_not_finite_is_no_policy(name: str, value: float):
    """No candidate is worse than NaN."""
    with pytest.raises(CimlError, match=f"{name}: expected a finite number"):
        GatePolicy(**{name: value})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (figures(55), "accuracy 0.550 (at least 0.452) does not beat the base rate 0.500"),
        (figures(17, 18), "18 held-out runs are too few; at least 20 are needed"),
        (figures(class_counts={"a": 50, "b": 0}), "too few training runs of b"),
        (
            figures(disagreement=2e-5),
            "the exported model differs from the trained one by 2e-05, at most 1e-05 is allowed",
        ),
        (figures(latency_ms=80.0), "one run takes 80 ms, at most 50 ms is allowed"),
    ],
)
def test_each_fault_alone_closes_it(change: dict[str, Any], line: str):
    decision = decide(change, POLICY, has_champion=False)
    assert not decision.blessed
    assert decision.reasons == (line,)


def test_a_candidate_at_a_threshold_passes_and_one_just_beyond_is_rejected():
    low, base_rate = figures()["evaluation"]["accuracy"]["low"], 0.5
    bound = against(80, 85)["comparison"]["low"]
    number_bound = beside(84, 85)["baselines"]["duration"]["comparison"]["low"]
    unsure = {"abstained": accuracy(answers(75, 100))}
    for change, at, beyond in (
        (figures(), {"min_test_runs": 100}, {"min_test_runs": 101}),
        (figures(), {"min_class_runs": 50}, {"min_class_runs": 51}),
        (figures(), {"above_base_rate": low - base_rate - 1e-9}, {"above_base_rate": low - base_rate}),
        (figures(), {"max_disagreement": 1e-7}, {"max_disagreement": 0.99e-7}),
        (figures(), {"max_latency_ms": 0.3}, {"max_latency_ms": 0.29}),
        (figures(verdicts=unsure), {"min_decided": 0.25}, {"min_decided": 0.26}),
        (against(80, 85), {"tolerance": -bound}, {"tolerance": -bound - 1e-9}),
        (beside(84, 85), {"baseline_tolerance": -number_bound}, {"baseline_tolerance": -number_bound - 1e-9}),
    ):
        has_champion = "comparison" in change
        assert decide(change, GatePolicy(**at), has_champion=has_champion).blessed, at
        assert not decide(change, GatePolicy(**beyond), has_champion=has_champion).blessed, beyond


@pytest.mark.parametrize(
    ("right", "champion", "blessed"), [(90, 85, True), (85, 85, True), (84, 85, True), (80, 85, False), (70, 90, False)]
)
def test_no_worse_than_the_champion_on_the_same_runs(right: int, champion: int, blessed: bool):
    decision = decide(against(right, champion), POLICY, has_champion=True)
    assert decision.blessed is blessed
    assert f"{(right - champion) / 100:+.3f} against the champion on the same 100 runs" in decision.reasons[-1]


@pytest.mark.parametrize(
    ("right", "by_number", "total", "blessed"),
    [
        (90, 85, 100, True),
        (85, 85, 100, True),
        (84, 85, 100, True),  # a run is noise
        (80, 85, 100, False),  # may be worse by more than the tolerance
        (970, 1000, 1000, False),  # worse by less than the tolerance, and beyond noise
        (999, 1000, 1000, True),
    ],
)
def test_a_candidate_that_one_number_beats_is_rejected(right: int, by_number: int, total: int, blessed: bool):
    decision = decide(beside(right, by_number, total), POLICY, has_champion=False)
    assert decision.blessed is blessed
    (line,) = (line for line in decision.reasons if "duration" in line)
    difference, share = (right - by_number) / total, by_number / total
    assert line.startswith(f"{difference:+.3f} against the duration alone ({share:.3f}) on the same {total} runs")
    assert ("may be worse" in line or "one number beats it" in line) is not blessed


def test_a_policy_accepts_by_name_that_one_number_beats_the_model():
    given = beside(70, 95)
    assert not decide(given, POLICY, has_champion=False).blessed
    assert not decide(given, GatePolicy(accept_baselines=("memory",)), has_champion=False).blessed
    assert not decide(given, GatePolicy(tolerance=1.0), has_champion=False).blessed  # that of the champion
    decision = decide(given, GatePolicy(accept_baselines=("duration",)), has_champion=False)
    assert decision.blessed
    assert decision.reasons[1].endswith("(one number beats it, and the policy accepts that of duration)")
    assert decision.metrics["baselines"]["duration"]["value"] == 0.95


def test_a_number_that_may_be_better_is_not_said_to_beat_the_model():
    given = beside(10, 11, 20)
    comparison = given["baselines"]["duration"]["comparison"]
    assert comparison["low"] < -0.05 < 0 < comparison["interval"][1]
    policy = GatePolicy(above_base_rate=-1.0)
    (reason,) = decide(given, policy, has_champion=False).reasons
    assert reason.endswith("(at least -0.100): may be worse by more than 0.05")
    accepted = decide(given, replace(policy, accept_baselines=("duration",)), has_champion=False)
    assert accepted.blessed
    assert accepted.reasons[1].endswith("(may be worse by more than 0.05, and the policy accepts that of duration)")


def test_a_comparison_without_figures_is_named():
    baselines = {"duration": {**accuracy(answers(5, 9)), "comparison": WITHOUT_INTERVAL}}
    (reason,) = decide(figures(baselines=baselines), POLICY, has_champion=False).reasons
    assert reason == "the comparison with the duration alone lacks figures"
    decision = decide(figures(comparison=WITHOUT_INTERVAL), POLICY, has_champion=True)
    assert decision.reasons == ("the comparison with the champion lacks figures",)
    assert not decide(figures(), POLICY, has_champion=True).blessed


def test_a_model_with_constant_features_or_permuted_labels_is_rejected():
    rng = np.random.default_rng(0)
    labels = (np.arange(400) % 4 == 0).astype(int)
    constant = np.tile([0.75, 0.25], (400, 1))
    by_chance = np.eye(2)[rng.permutation(labels)]
    by_duration = np.where(rng.uniform(size=400) < 0.85, labels, 1 - labels) == labels
    for probabilities in (constant, by_chance):
        right = probabilities.argmax(axis=1) == labels
        baselines = {"duration": {**accuracy(by_duration), "comparison": compare(right, by_duration)}}
        evaluation = evaluate(probabilities, labels, CLASSES, labels)
        decision = decide(figures(evaluation=evaluation, baselines=baselines), POLICY, has_champion=False)
        assert not decision.blessed
        assert any("does not beat the base rate" in line for line in decision.reasons)
        assert any("duration alone" in line for line in decision.reasons)


@pytest.mark.parametrize(("decided", "blessed"), [(1, False), (9, False), (10, True), (46, True)])
def test_a_model_that_abstains_on_nearly_all_runs_is_rejected(decided: int, blessed: bool):
    given = figures(verdicts={"runs": 46, "abstained": accuracy(answers(46 - decided, 46))})
    decision = decide(given, POLICY, has_champion=False)
    assert decision.blessed is blessed
    (line,) = (line for line in decision.reasons if "of 46" in line)
    assert line.startswith(f"it decides {decided} of 46 held-out runs ({decided / 46:.3f})")
    assert decide(given, GatePolicy(min_decided=0.0), has_champion=False).blessed


def test_comparison_is_paired():
    one = np.array([True] * 60 + [False] * 10 + [True] * 20 + [False] * 10)
    other = np.array([True] * 60 + [True] * 10 + [False] * 20 + [False] * 10)
    found = compare(one, other)

    assert found["difference"] == pytest.approx(0.1)
    assert (found["only_candidate"], found["only_champion"], found["runs"]) == (20, 10, 100)
    assert found["mcnemar"] == pytest.approx(binomtest(10, 30).pvalue)
    assert found == compare(one, other)
    # compared with a bootstrap of the pairs themselves
    rng = np.random.default_rng(5)
    rows = rng.integers(0, 100, (4000, 100))
    drawn = (one[rows].astype(int) - other[rows].astype(int)).mean(axis=1)
    assert found["low"] == pytest.approx(np.quantile(drawn, 0.2), abs=0.011)


def test_comparison_of_the_same_answers_of_none_and_of_many():
    same = compare(answers(5, 9), answers(5, 9))
    assert (same["difference"], same["low"], same["mcnemar"]) == (0.0, 0.0, 1.0)
    assert compare(answers(0, 0), answers(0, 0))["low"] is None
    many = compare(answers(3000, 5000), answers(0, 5000))
    assert many["mcnemar"] == 0.0
    with pytest.raises(ValueError, match="answers of the candidate"):
        compare(answers(1, 3), answers(1, 4))
