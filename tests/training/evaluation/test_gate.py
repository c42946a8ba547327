from __future__ import annotations

import copy
import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from ciml.errors import CimlError
from ciml.training.evaluation.gate import GatePolicy, decide
from ciml.training.evaluation.metrics import accuracy, evaluate
from ciml.training.evaluation.paired import compare, compare_errors, compare_slices

CLASSES = ("a", "b")


def answers(right: int, total: int) -> np.ndarray:
    """Return bool [total]: the first ``right`` are true."""
    return np.arange(total) < right


def figures(right: int = 90, total: int = 100, **more: Any) -> dict[str, Any]:
    """Return the figures of a candidate with ``right`` correct predictions of equally frequent classes."""
    labels = np.arange(total) % 2
    predicted = np.where(answers(right, total), labels, 1 - labels)
    sure = min(max(right / max(total, 1), 0.51), 0.99)  # as often as it is right
    evaluation = evaluate(np.eye(2)[predicted] * (2 * sure - 1) + 1 - sure, labels, CLASSES, np.array([0, 1, 0]))
    counts = {"a": 50, "b": 50}
    given = {"evaluation": evaluation, "class_counts": counts, "disagreement": 1e-7, "latency_ms": 0.3, "baselines": {}}
    return given | {"stability": accuracy(answers(total, total))} | more


def beside(right: int, by_number: int, total: int = 100, **more: Any) -> dict[str, Any]:
    """Return the figures of a candidate beside those of the duration alone on the same runs."""
    number_right = answers(by_number, total)
    comparison = compare(answers(right, total), number_right)
    baseline = {"name": "duration, small decision tree", **accuracy(number_right), "comparison": comparison}
    return figures(right, total, baselines={"duration": baseline}, **more)


def compared(right: int, champion: int, total: int = 100) -> dict[str, Any]:
    """Return the comparison with a champion that is right on the first ``champion`` runs, half of each of two jobs."""
    pair = answers(right, total), answers(champion, total)
    jobs = {"job": ["even", "odd"] * (total // 2) + ["even"] * (total % 2)}
    errors = np.full(total, 0.1)
    return {
        **compare(*pair),
        "sources": [],
        "brier": compare_errors(errors, errors),
        "slices": compare_slices(*pair, jobs),
    }


def against(right: int, champion: int, total: int = 100) -> dict[str, Any]:
    comparison = compared(right, champion, total)
    return figures(right, total, champion={"accuracy": {"value": champion / total}}, comparison=comparison)


def abstaining(on: int, total: int, covered: int | None = None, p: float = 1.0) -> dict[str, Any]:
    coverage = {"stated": 0.9, **accuracy(answers(total if covered is None else covered, total)), "p": p}
    return {"runs": total, "abstained": accuracy(answers(on, total)), "coverage": coverage}


def decided(given: Any, **policy: Any) -> tuple[bool, tuple[str, ...]]:
    """Return whether the gate blesses a candidate, and its reasons."""
    has_champion = "comparison" in (given or {})
    decision = decide(given, GatePolicy(**policy), has_champion=has_champion)
    json.dumps(decision.to_json(), allow_nan=False)
    return decision.blessed, decision.reasons


def test_a_good_first_model_is_blessed_and_says_why():
    assert decided(figures()) == (
        True,
        (
            "accuracy 0.900 (at least 0.826) beats the base rate 0.500",
            "no number of the runs to compare with",
            "no champion to compare with",
        ),
    )


MISSING = (
    "0 held-out runs are too few; at least 20 are needed, 20 more",
    "some probabilities are not finite",
    "the number of training runs by class is missing",
    "the accuracy or the base rate is missing",
    "the one-number baselines are missing",
    "the calibration error or the Brier score is missing",
    "the exported model differs from the trained one by an unknown amount, at most 1e-05 is allowed",
    "one run takes an unknown amount ms, at most 50 ms is allowed",
    "the agreement with a model of another seed is missing",
)
WITHOUT_INTERVAL = {"difference": 0.1, "low": 0.0, "runs": 9}
BARE = {"duration": {**accuracy(answers(5, 9)), "comparison": WITHOUT_INTERVAL}}


@pytest.mark.parametrize(
    ("given", "reasons"),
    [
        (None, ["the candidate was not evaluated"]),
        ({}, MISSING),
        (figures(55), ["accuracy 0.550 (at least 0.452) does not beat the base rate 0.500"]),
        (figures(17, 18), ["18 held-out runs are too few; at least 20 are needed, 2 more"]),
        (figures(class_counts={"a": 50, "b": 0}), ["too few training runs of b"]),
        (
            figures(disagreement=2e-5),
            ["the exported model differs from the trained one by 2e-05, at most 1e-05 is allowed"],
        ),
        (figures(latency_ms=80.0), ["one run takes 80 ms, at most 50 ms is allowed"]),
        (figures(latency_ms=-1.0), ["one run takes -1 ms, at most 50 ms is allowed"]),
        (figures(baselines=BARE), ["the comparison with the duration alone lacks figures"]),
        (figures(comparison=WITHOUT_INTERVAL), ["the comparison with the champion lacks figures"]),
        (
            figures(verdicts=abstaining(37, 46)),
            ["it decides 9 of 46 held-out runs (0.196); at least 0.2 are needed"],
        ),
        (
            figures(verdicts=abstaining(0, 100, covered=80, p=0.002)),
            ["its sets hold the class of 80 of 100 held-out runs; 0.9 is stated (p = 0.002)"],
        ),
        (
            figures(stability=accuracy(answers(69, 100))),
            ["a model of another seed agrees on 69 of 100 held-out runs (0.690); at least 0.7 is needed"],
        ),
        (
            figures(comparison=compared(90, 90) | {"brier": {"difference": 0.04, "high": 0.06}}),
            [
                "Brier score +0.040 against the champion (at most +0.060; less is better): may be worse by more than "
                "0.05"
            ],
        ),
    ],
)
def test_each_fault_alone_closes_it(given: dict[str, Any] | None, reasons: list[str]):
    assert decided(given) == (False, tuple(reasons))


PAIRED = ("difference", "low", "interval", "runs")
#: Paths of the figures that a decision needs.
NEEDED = [
    "evaluation", "evaluation.runs", "evaluation.finite", "evaluation.accuracy", "evaluation.accuracy.value",
    "evaluation.accuracy.low", "evaluation.base_rate", "evaluation.base_rate.value", "class_counts", "class_counts.a",
    "class_counts.b", "disagreement", "latency_ms", "baselines", "baselines.duration", "baselines.duration.value",
    "baselines.duration.comparison", *(f"baselines.duration.comparison.{name}" for name in PAIRED), "verdicts",
    "verdicts.abstained", "verdicts.abstained.value", "verdicts.abstained.runs", "verdicts.coverage",
    "verdicts.coverage.stated", "verdicts.coverage.right", "verdicts.coverage.runs", "verdicts.coverage.p",
    "comparison",
    *(f"comparison.{name}" for name in PAIRED), "comparison.brier", "comparison.brier.difference",
    "comparison.brier.high", "comparison.slices", "comparison.sources", "evaluation.brier", "evaluation.calibration",
    "evaluation.calibration.ece", "evaluation.calibration.chance", "stability", "stability.value", "stability.right",
    "stability.runs",
]  # fmt: skip
ABSENT = "absent"
NONSENSE = (ABSENT, None, math.nan, -math.inf, "0.5", [0.1, math.nan], [0.1], {"x": 0.1}, True)
NOT_NEEDED = [("evaluation.finite", True)]
NOT_NEEDED += [(path, ABSENT) for path in ("verdicts", "baselines.duration", "class_counts.a", "class_counts.b")]


@pytest.mark.parametrize("path", NEEDED)
def test_a_figure_that_is_missing_or_nonsense_is_a_reason_against_the_candidate(path: str):
    given = beside(90, 85, verdicts=abstaining(20, 100, covered=92), comparison=compared(90, 85))
    assert decided(given)[0]
    *parents, last = path.split(".")
    for value in NONSENSE:
        changed = copy.deepcopy(given)
        parent = changed
        for name in parents:
            parent = parent[name]
        parent[last] = value
        if value is ABSENT:
            del parent[last]
        if (path, value) not in NOT_NEEDED:
            assert not decide(changed, GatePolicy(), has_champion=True).blessed, value


@pytest.mark.parametrize("name", ["tolerance", "baseline_tolerance", "above_base_rate", "min_decided", "confidence"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_threshold_that_is_not_finite_is_no_policy(name: str, value: float):
    """No candidate is worse than NaN."""
    with pytest.raises(CimlError, match=f"{name}: expected a finite number"):
        GatePolicy(**{name: value})


def test_a_candidate_at_a_threshold_passes_and_one_just_beyond_is_rejected():
    margin = figures()["evaluation"]["accuracy"]["low"] - 0.5
    bound = against(80, 85)["comparison"]["low"]
    number_bound = beside(84, 85)["baselines"]["duration"]["comparison"]["low"]
    worse = compare_errors(np.full(100, 0.3), np.full(100, 0.2))
    for change, name, passes, fails in (
        (figures(), "min_test_runs", 100, 101),
        (figures(), "min_class_runs", 50, 51),
        (figures(), "above_base_rate", margin - 1e-9, margin),
        (figures(), "max_disagreement", 1e-7, 0.99e-7),
        (figures(), "max_latency_ms", 0.3, 0.29),
        (figures(verdicts=abstaining(75, 100)), "min_decided", 0.25, 0.26),
        (against(80, 85), "tolerance", -bound, -bound - 1e-9),
        (beside(84, 85), "baseline_tolerance", -number_bound, -number_bound - 1e-9),
        (figures(verdicts=abstaining(0, 100, covered=80, p=0.002)), "coverage_level", 0.0019, 0.002),
        (figures(stability=accuracy(answers(69, 100))), "min_agreement", 0.69, 0.7),
        (figures(stability=None), "min_agreement", 0.0, 0.1),
        (figures(comparison=compared(90, 90) | {"brier": worse}), "brier_tolerance", worse["high"], 0.099),
    ):
        assert [decided(change, **{name: value})[0] for value in (passes, fails)] == [True, False], name


@pytest.mark.parametrize(
    ("right", "champion", "blessed"), [(90, 85, True), (85, 85, True), (84, 85, True), (80, 85, False), (70, 90, False)]
)
def test_no_worse_than_the_champion_on_the_same_runs(right: int, champion: int, blessed: bool):
    found, reasons = decided(against(right, champion))
    assert found is blessed
    assert any(f"{(right - champion) / 100:+.3f} against the champion on the same 100 runs" in line for line in reasons)


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
    found, reasons = decided(beside(right, by_number, total))
    assert found is blessed
    (line,) = (line for line in reasons if "duration" in line)
    difference, share = (right - by_number) / total, by_number / total
    assert line.startswith(f"{difference:+.3f} against the duration alone ({share:.3f}) on the same {total} runs")
    assert ("may be worse" in line or "one number beats it" in line) is not blessed


def test_a_number_that_few_runs_have_is_not_compared() -> None:
    baseline = {"value": 1.0, "comparison": compare(answers(18, 19), answers(19, 19))}
    blessed, reasons = decided(figures(baselines={"duration": baseline}))
    assert blessed
    assert not any("duration" in reason for reason in reasons)
    assert not decided(figures(baselines={"duration": baseline}), min_test_runs=19)[0]


def test_a_policy_accepts_by_name_that_one_number_beats_the_model_or_may():
    given = beside(70, 95)
    for policy in ({}, {"accept_baselines": ("memory",)}, {"tolerance": 1.0}):  # the tolerance is that of the champion
        assert not decided(given, **policy)[0]
    blessed, reasons = decided(given, accept_baselines=("duration",))
    assert blessed
    assert reasons[1].endswith("(one number beats it, and the policy accepts that of duration)")
    given = beside(10, 11, 20)
    comparison = given["baselines"]["duration"]["comparison"]
    assert comparison["low"] < -0.05 < 0 < comparison["interval"][1]
    _, (reason,) = decided(given, above_base_rate=-1.0)
    assert reason.endswith("(at least -0.100): may be worse by more than 0.05")
    blessed, reasons = decided(given, above_base_rate=-1.0, accept_baselines=("duration",))
    assert blessed
    assert reasons[1].endswith("(may be worse by more than 0.05, and the policy accepts that of duration)")


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
        blessed, reasons = decided(figures(evaluation=evaluation, baselines=baselines))
        assert not blessed
        assert any("does not beat the base rate" in line for line in reasons)
        assert any("duration alone" in line for line in reasons)


def test_comparison_is_paired():
    one = np.array([True] * 60 + [False] * 10 + [True] * 20 + [False] * 10)
    other = np.array([True] * 60 + [True] * 10 + [False] * 20 + [False] * 10)
    found = compare(one, other)
    assert found["difference"] == pytest.approx(0.1)
    assert (found["only_candidate"], found["only_champion"], found["runs"]) == (20, 10, 100)
    assert found["mcnemar"] == pytest.approx(binomtest(10, 30).pvalue)
    # compared with a bootstrap of the pairs themselves
    rows = np.random.default_rng(5).integers(0, 100, (4000, 100))
    drawn = (one[rows].astype(int) - other[rows].astype(int)).mean(axis=1)
    assert found["low"] == pytest.approx(np.quantile(drawn, 0.2), abs=0.011)
    same = compare(answers(5, 9), answers(5, 9))
    assert (same["difference"], same["low"], same["mcnemar"]) == (0.0, 0.0, 1.0)
    assert compare(answers(0, 0), answers(0, 0))["low"] is None
    assert compare(answers(3000, 5000), answers(0, 5000))["mcnemar"] == 0.0
    with pytest.raises(ValueError, match="answers of the candidate"):
        compare(answers(1, 3), answers(1, 4))


def test_each_check_is_recorded_with_its_figures() -> None:
    decision = decide(against(90, 85), GatePolicy(), has_champion=True)
    checks = {check["check"]: (check["passed"], check["reason"]) for check in decision.metrics["checks"]}
    assert checks == {
        "held-out runs": (True, "100, at least 20 are needed"),
        "classes": (True, "training runs: 50 of a, 50 of b"),
        "base rate": (True, "accuracy 0.900 (at least 0.826) beats the base rate 0.500"),
        "one number": (True, "no number of the runs to compare with"),
        "calibration": (True, "calibration error 0.000, of which chance explains 0.060; Brier score 0.090"),
        "export": (True, "the exported model differs from the trained one by 1e-07, at most 1e-05 is allowed"),
        "latency": (True, "one run takes 0.3 ms, at most 50 ms is allowed"),
        "stability": (True, "a model of another seed agrees on 100 of 100 held-out runs (1.000)"),
        "champion": (True, "+0.050 against the champion on the same 100 runs (at least +0.030)"),
        "sources": (True, "the runs to compare have one source, or none has enough of them"),
        "champion's Brier score": (True, "Brier score +0.000 against the champion (at most +0.000; less is better)"),
        "slices": (
            True,
            "on job even it loses 0 and gains 2 of 50 runs against the champion (p = 1, corrected)",
        ),
    }


def test_a_candidate_that_is_worse_on_one_job_alone_is_rejected() -> None:
    """It is as good as the champion on average: chance would explain that, but not twelve losses of twelve."""
    total = 200
    jobs = ["small" if run < 20 else "large" for run in range(total)]
    champion = np.arange(total) % 10 != 9
    candidate = champion.copy()
    candidate[:12] = False
    candidate[20:140] = True
    pair = candidate, champion
    comparison = compared(90, 90) | compare(*pair) | {"slices": compare_slices(*pair, {"job": jobs})}
    given = figures(comparison=comparison)
    expected = "on job small it loses 11 and gains 0 of 20 runs against the champion (p = 0.00098, corrected)"
    assert comparison["difference"] >= 0
    assert decided(given) == (False, (f"{expected}: worse beyond chance",))
    assert decided(given, slice_level=0.0)[0]
    assert decided(given, slice_level=0.0009)[0]


def test_a_source_that_lies_cannot_hide_what_another_one_loses() -> None:
    """The candidate has learned the wrong labels of 40 runs of another source, and loses 4 of 60."""
    sources = ["zuul"] * 60 + ["other"] * 40
    champion = np.array([True] * 60 + [False] * 40)
    candidate = np.array([False] * 4 + [True] * 56 + [True] * 40)
    by_source = compare_slices(candidate, champion, {"source": sources}, min_runs=20)
    assert [(entry["value"], entry["runs"], entry["only_champion"], entry["p"]) for entry in by_source] == [
        ("zuul", 60, 4, 2 * 0.5**4), ("other", 40, 0, 1.0),
    ]  # fmt: skip
    comparison = compared(90, 90) | compare(candidate, champion) | {"sources": by_source}
    blessed, reasons = decided(figures(comparison=comparison))
    assert not blessed
    assert reasons == (
        "on source zuul it loses 4 and gains 0 of 60 runs against the champion (p = 0.12, corrected): "
        "worse by more than 0.05, and beyond chance",
    )
    assert decided(figures(comparison=comparison), tolerance=4 / 60)[0]
    assert decided(figures(comparison=comparison | {"sources": by_source[1:]}))[0]
    for broken in ([*by_source[1:], {"source": "zuul"}], ["zuul"], "zuul", None):
        assert not decided(figures(comparison=comparison | {"sources": broken}))[0]


def test_a_loss_on_one_of_many_sources_that_chance_explains_does_not_reject_a_candidate() -> None:
    """Two losses of 20 runs on one of ten sources, and eight losses on another one."""
    sources = [f"source{run % 10}" for run in range(200)]
    champion = np.ones(200, bool)
    for lost, blessed in ((2, True), (8, False)):
        candidate = ~np.isin(np.arange(200), [10 * run + 3 for run in range(lost)])
        by_source = compare_slices(candidate, champion, {"source": sources}, min_runs=20)
        given = figures(comparison=compared(90, 90) | {"sources": by_source})
        assert decided(given)[0] is blessed
        assert by_source[0]["p"] == min(1.0, 10 * 0.5**lost)


def test_slices_with_too_few_runs_are_left_out_before_the_correction() -> None:
    right = np.ones(50, bool)
    sources = {"source": ["a"] * 30 + ["b"] * 20}
    counted = compare_slices(~right, right, sources, min_runs=21)
    assert [(entry["value"], entry["runs"], entry["p"]) for entry in counted] == [("a", 30, 0.5**30)]
    assert compare_slices(right[:0], right[:0], {"source": []}, min_runs=20) == []


def test_many_runs_and_many_jobs_are_compared_in_linear_time() -> None:
    """Sums of binomial coefficients, or a pass over all runs for each job, would take minutes."""
    first = answers(50_000, 100_000)
    assert compare(first, ~first)["mcnemar"] == 1.0
    jobs = [f"job{number}" for number in range(50_000)] * 2
    assert len(compare_slices(first, ~first, {"job": jobs})) == 50_000
    assert (
        len(evaluate(np.full((100_000, 2), 0.5), first.astype(int), CLASSES, first, {"job": jobs})["slices"]["job"])
        == 50_000
    )


def test_slices_are_compared_as_holm_says() -> None:
    """The p-values are those of scipy, the smallest times the number of slices, the next one times one less."""
    rng = np.random.default_rng(3)
    pair = rng.random(300) < 0.5, rng.random(300) < 0.6
    jobs = [f"job{number}" for number in rng.integers(4, size=300)]
    compared_slices = compare_slices(*pair, {"job": jobs, "provider": [""] * 300})
    assert [row["runs"] for row in compared_slices] == [jobs.count(row["value"]) for row in compared_slices]
    plain = [
        binomtest(row["only_champion"], row["only_champion"] + row["only_candidate"], alternative="greater").pvalue
        for row in compared_slices
    ]
    assert plain == sorted(plain)
    corrected = np.maximum.accumulate([min(p * (4 - index), 1.0) for index, p in enumerate(plain)])
    assert [row["p"] for row in compared_slices] == pytest.approx(corrected)


def test_a_bound_of_errors_is_that_of_a_bootstrap() -> None:
    rng = np.random.default_rng(5)
    first, second = rng.random(400), rng.random(400) + 0.02
    compared_errors = compare_errors(first, second, confidence=0.8)
    spread = (first - second).std() / 20
    assert compared_errors["difference"] == pytest.approx((first - second).mean())
    assert compared_errors["high"] == pytest.approx((first - second).mean() + 0.8416 * spread, abs=0.003)
    many = compare_errors(np.tile(first, 100), np.tile(second, 100), confidence=0.8)
    assert many["high"] - many["difference"] == pytest.approx(0.8416 * spread / 10, rel=0.1)


def test_a_candidate_that_is_sure_and_often_wrong_is_rejected() -> None:
    labels = np.arange(100) % 2
    predicted = np.where(answers(75, 100), labels, 1 - labels)
    sure = evaluate(np.eye(2)[predicted] * 0.98 + 0.01, labels, CLASSES, np.array([0, 1, 0]))
    reason = "calibration error 0.240, of which chance explains 0.020; Brier score 0.245: at most 0.15 more is allowed"
    assert decided(figures(evaluation=sure)) == (False, (reason,))


def test_chance_explains_the_calibration_error_of_a_calibrated_model() -> None:
    rng = np.random.default_rng(1)
    beyond = 0
    for _ in range(200):
        share = rng.uniform(0.5, 1, 60)
        labels = (rng.random(60) > share).astype(int)
        calibration = evaluate(np.column_stack([share, 1 - share]), labels, CLASSES, labels)["calibration"]
        beyond += calibration["ece"] > calibration["chance"]
    assert 2 <= beyond <= 20  # 5 % of 200 are expected


def test_a_bound_of_few_changes_names_their_number() -> None:
    given = beside(90, 80)
    given["evaluation"] |= {"changes": 25}
    given["baselines"]["duration"]["comparison"] |= {"changes": 25}
    reasons = decide(given, GatePolicy(), has_champion=False).reasons
    assert "accuracy 0.900 (at least 0.826, by 25 changes) beats the base rate 0.500" in reasons
    assert any(", by 25 changes)" in reason for reason in reasons if "duration" in reason)


def test_the_chance_of_a_calibration_error_needs_memory_for_one_resample() -> None:
    labels = np.zeros(20_000, int)
    tracemalloc.start()
    try:
        evaluate(np.full((20_000, 2), 0.5), labels, CLASSES, labels)
        assert tracemalloc.get_traced_memory()[1] < 200 * len(labels)  # 2,400 bytes a run for all resamples
    finally:
        tracemalloc.stop()


def test_too_few_held_out_runs_are_counted_and_a_cross_validation_is_shown() -> None:
    pooled = {"accuracy": accuracy(answers(45, 60)), "base_rate": {"class": "a", **accuracy(answers(30, 60))}}
    reason = (
        "18 held-out runs are too few; at least 20 are needed, 2 more; cross-validated over 60 runs, its accuracy is "
        "0.750 (0.628 to 0.842), the base rate 0.500"
    )
    assert decided(figures(17, 18, cross_validated=pooled)) == (False, (reason,))
