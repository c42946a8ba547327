"""Sets of classes: their coverage holds where it is stated, crepes gives the same, and no leak goes unseen."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ciml.datasets.definition import NO_OUTPUT_FEATURE, DatasetDefinition, ResolvedDefinition
from ciml.errors import CimlError, IntegrityError
from ciml.events.records import RunFacts
from ciml.serving.decimals import shortest_decimals
from ciml.training.calibration import sets as calibration_sets
from ciml.training.calibration.calibrate import calibrate
from ciml.training.calibration.calibrators import Isotonic, fit_calibrator
from ciml.training.calibration.sets import SHARE, job_groups, learned_ranges, make_rules, sets_by_crepes
from ciml.training.evaluation.candidate import verdict_figures
from ciml.training.experiment import Experiment
from ciml.transforms.examples.prepare import run_means
from ciml.verdict_rules import MAX_SCORES, LearnedRanges, VerdictRules, make_verdict, parts_outside, read_rules
from tests.tier import tries
from tests.training.calibration.scores import made_up

CLASSES = ("code", "machine")
RESOLVED = ResolvedDefinition(
    definition=DatasetDefinition(name="causes", class_label="cause"),
    columns=("load avg:1m",),
    features=("1m",),
    classes=CLASSES,
    windows=3,
)


def rules_of(
    said: NDArray[np.float32], labels: NDArray[np.int64], jobs: list[str], coverage: float = 0.9
) -> VerdictRules:
    return make_rules(said, labels, jobs, CLASSES, coverage=coverage, calibration={})


def test_a_class_that_is_rare_keeps_its_coverage_where_it_has_enough_runs() -> None:
    said, labels, _ = made_up(1500, bias=3.0, seed=3)
    fresh, fresh_labels, _ = made_up(20_000, bias=3.0, seed=4)
    rules = rules_of(said, labels, ["a"] * 1500)
    group = rules.groups[""]
    assert list(group.scores) == list(CLASSES)
    all_scores = tuple(sorted([*group.scores["code"], *group.scores["machine"]]))
    together = rules.replace(groups={"": group.replace(scores={"": all_scores})})
    kept, lost = (verdict_figures(one, fresh, fresh_labels, ["a"] * 20_000)["coverage"] for one in (rules, together))
    assert kept["by_class"]["machine"]["value"] > 0.85
    assert lost["value"] > 0.88  # all together they are covered, and machines are not:
    assert lost["by_class"]["machine"]["value"] < 0.6


@pytest.mark.parametrize(("runs", "expected"), [(19, ("code", "machine")), (20, ("machine",))])
def test_a_single_wrong_run_of_fewer_than_twenty_leaves_all_classes_possible(
    runs: int, expected: tuple[str, ...]
) -> None:
    said = np.tile(np.array([[0.02, 0.98]], np.float32), (runs, 1))
    labels = np.ones(runs, np.int64)
    labels[0] = 0
    rules = rules_of(said, labels, ["a"] * runs)
    assert rules.set_of(rules.groups[""], {"code": 0.02, "machine": 0.98}) == expected


def test_no_set_is_empty_where_the_model_is_surer_of_the_calibration_runs() -> None:
    said = np.tile(np.array([[0.03, 0.97]], np.float32), (30, 1))
    rules = rules_of(said, np.ones(30, np.int64), ["a"] * 30)
    unsure = {"code": 0.6, "machine": 0.4}
    assert rules.set_of(rules.groups[""], unsure) == ("code",)
    assert rules.replace(keeps_likely=False).set_of(rules.groups[""], unsure) == ()
    assert rules.set_of(rules.groups[""], {"code": 0.5, "machine": 0.5}) == CLASSES  # none is the most probable one


def mixed(seed: int, runs: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """Return answers and labels of runs, every second without an output: four in ten of their answers are wrong."""
    random = np.random.default_rng(seed)
    lacking = np.arange(runs) % 2 == 0
    labels = random.integers(0, 2, runs)
    likely = np.where(random.random(runs) < np.where(lacking, 0.6, 0.99), labels, 1 - labels)
    certain = np.where(lacking, random.uniform(0.5, 0.8, runs), random.uniform(0.8, 0.99, runs))
    said = np.stack([np.where(likely == 0, certain, 1 - certain), np.where(likely == 1, certain, 1 - certain)], axis=1)
    return said.astype(np.float32), labels.astype(np.int64), lacking


def test_the_coverage_holds_for_runs_with_and_without_an_output() -> None:
    said, labels, lacking = mixed(0, 600)
    together = rules_of(said, labels, ["a"] * 600)
    ranges = LearnedRanges(600, ("usr", NO_OUTPUT_FEATURE), (0.0, 0.0), (1.0, 10.0), 0.5)
    apart = make_rules(
        said, labels, ["a"] * 600, CLASSES, coverage=0.9, calibration={}, without_output=lacking
    ).replace(ranges=ranges)
    assert read_rules(json.dumps(apart.to_json()).encode(), CLASSES, ranges.features, "m") == apart
    fresh, fresh_labels, lacks = mixed(1, 10_000)
    means = np.stack([np.zeros(10_000), 10.0 * lacks], axis=1)
    shares = shortest_decimals(fresh)

    def coverage(rules: VerdictRules, some: NDArray[np.bool_]) -> float:
        figures = verdict_figures(rules, shares[some], fresh_labels[some], ["a"] * int(some.sum()), means[some])
        return float(figures["coverage"]["value"])

    assert coverage(together, lacks) < 0.87
    for some in (lacks, ~lacks):
        assert coverage(apart, some) == pytest.approx(0.9, abs=0.03) or coverage(apart, some) > 0.9


def test_runs_without_telemetry_are_compared_with_runs_whose_telemetry_was_withheld() -> None:
    said, labels, lacking = mixed(3, 60)
    withheld = np.full((60, 2), 0.5, np.float32)  # without telemetry, the model knows nothing
    rules = make_rules(
        said, labels, ["a"] * 60, CLASSES, coverage=0.9, calibration={}, without_output=lacking,
        without_telemetry=withheld,
    )  # fmt: skip
    assert rules.without_telemetry is not None
    assert rules.without_telemetry.runs == 30  # those with an output
    assert rules.without_telemetry.scores == {"": (0.5,) * 30}
    features = ("usr", "outcome:exit", NO_OUTPUT_FEATURE)
    rules = rules.replace(ranges=LearnedRanges(60, features, (5.0, 0.0, 0.0), (9.0, 1.0, 10.0), 0.5))
    assert read_rules(json.dumps(rules.to_json()).encode(), CLASSES, features, "m") == rules
    sure = {"code": 0.9, "machine": 0.1}
    verdict = make_verdict("a", sure, rules, np.array([0.0, 1.0, 0.0]), without_telemetry=True)
    assert (verdict.set, verdict.runs, verdict.outside) == (("code",), 30, None)  # 0 is no user CPU of the run
    assert make_verdict("a", sure, rules, np.array([0.0, 1.0, 0.0])).outside is not None
    strange = make_verdict("a", sure, rules, np.array([0.0, 9.0, 0.0]), without_telemetry=True)
    assert strange.outside is not None
    assert (strange.outside.feature, strange.cause, strange.without_telemetry) == ("outcome:exit", "unknown", True)


@pytest.mark.parametrize(("without", "expected"), [(19, False), (20, True), (41, True), (42, False)])
def test_few_runs_with_or_without_an_output_are_compared_with_all(without: int, expected: bool) -> None:
    said, labels, _ = mixed(2, 61)
    lacking = np.arange(61) < without
    rules = make_rules(said, labels, ["a"] * 61, CLASSES, coverage=0.9, calibration={}, without_output=lacking)
    assert (rules.without_output is not None) is expected
    assert rules.groups[""].runs == (61 - without if expected else 61)
    assert ("without_output" in rules.to_json()) is expected


@pytest.mark.parametrize(("rare", "own"), [(50, True), (49, False)])
def test_each_class_has_its_own_scores_only_where_every_class_has_fifty_runs(rare: int, own: bool) -> None:
    said, _, _ = made_up(200)
    labels = (np.arange(200) < rare).astype(np.int64)
    assert list(rules_of(said, labels, ["a"] * 200).groups[""].scores) == (list(CLASSES) if own else [""])


def test_a_job_with_enough_runs_is_compared_with_its_own() -> None:
    jobs = ["large"] * 400 + ["small"] * 60 + ["tiny"] * 40
    assert job_groups(jobs) == {"large"}
    assert job_groups(["large"] * 400 + ["small"] * 60) == set()  # the others would keep too few
    assert job_groups(["one"] * 200) == set()
    assert job_groups(["a"] * 150 + ["b"] * 140 + ["c"] * 130) == {"a", "b"}
    good, labels, _ = made_up(400, seed=5)
    bad, bad_labels, _ = made_up(100, 6.0, seed=6)
    rules = rules_of(np.concatenate([good, bad]), np.concatenate([labels, bad_labels]), jobs)
    assert {name: group.runs for name, group in rules.groups.items()} == {"": 100, "large": 400}
    assert rules.groups["large"].base_rate["code"] == pytest.approx((labels == 0).mean())
    fresh, fresh_labels, _ = made_up(5000, 6.0, seed=7)
    for job, least, most in (("small", 0.85, 0.95), ("new", 0.85, 0.95), ("large", 0.0, 0.85)):
        figures = verdict_figures(rules, fresh, fresh_labels, [job] * 5000)
        assert least < figures["coverage"]["value"] < most, job


def test_too_few_runs_exclude_nothing() -> None:
    said, labels = np.array([[1.0, 0.0]] * 10, np.float32), np.zeros(10, np.int64)
    rules = rules_of(said[:8], labels[:8], ["a"] * 8)
    figures = verdict_figures(rules, shortest_decimals(said[:8]), labels[:8], ["a"] * 8)
    assert (figures["abstained"]["value"], figures["set_sizes"]) == (1.0, {"0": 0, "1": 0, "2": 8})
    code = figures["causes"]["code"]
    assert (code["verdicts"], code["runs"]) == (0, 8)
    assert code["precision"] == {"value": None, "low": 0.0, "high": 1.0, "right": 0, "runs": 0, "independent": 0}
    rules = rules_of(said, labels, ["a"] * 10)
    assert rules.set_of(rules.groups[""], {"code": 1.0, "machine": 0.0}) == ("code",)


def test_precision_is_a_share_of_the_verdicts_and_recall_one_of_the_runs() -> None:
    said, labels = np.array([[1.0, 0.0]] * 10, np.float32), np.zeros(10, np.int64)
    rules = rules_of(said, labels, ["a"] * 10)
    code = verdict_figures(rules, shortest_decimals(said[:4]), np.array([0, 0, 0, 1]), ["a"] * 4)["causes"]["code"]
    assert [(code[name]["right"], code[name]["runs"]) for name in ("precision", "recall")] == [(3, 4), (3, 3)]


def test_of_many_runs_a_part_is_stored_and_the_coverage_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_sets, "MAX_SCORES", 700)
    assert MAX_SCORES == 5000
    said, labels, _ = made_up(3000, seed=8)
    rules = rules_of(said, labels, ["a"] * 3000)
    assert [len(scores) for scores in rules.groups[""].scores.values()] == [700, 700]
    assert rules.groups[""].runs == 3000
    fresh, fresh_labels, _ = made_up(20_000, seed=9)
    assert 0.87 < verdict_figures(rules, fresh, fresh_labels, ["a"] * 20_000)["coverage"]["value"] < 0.93
    assert rules == rules_of(said, labels, ["a"] * 3000)


@settings(max_examples=tries(60))
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 1), st.sampled_from("abc")), min_size=1, max_size=80),
    st.sampled_from([0.5, 0.8, 0.9, 0.99]),
)
def test_counting_gives_the_sets_of_crepes(runs: list[tuple[int, int, str]], coverage: float) -> None:
    """With many equal scores, groups and classes of all sizes."""
    first = np.array([share / 20 for share, _, _ in runs], np.float32)
    said = np.stack([first, 1 - first], axis=1)
    labels, jobs = np.array([label for _, label, _ in runs]), [job for _, _, job in runs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration_sets, "GROUP_RUNS", 10)
        patch.setattr(calibration_sets, "CLASS_RUNS", 4)
        rules = rules_of(said, labels, jobs, coverage)
    rules = read_rules(json.dumps(rules.to_json()).encode(), CLASSES, (), "x")
    by_crepes = sets_by_crepes(rules, said, jobs)
    for row, (job, shares) in enumerate(zip(jobs, shortest_decimals(said).tolist(), strict=True)):
        by_class = dict(zip(CLASSES, shares, strict=True))
        group = rules.compared_with(job)
        earlier = rules.replace(keeps_likely=False).set_of(group, by_class)
        assert [name in earlier for name in CLASSES] == by_crepes[row].tolist()
        is_likely = np.array(shares) == max(shares)
        assert [name in rules.set_of(group, by_class) for name in CLASSES] == (by_crepes[row] | is_likely).tolist()


def test_rules_that_crepes_contradicts_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    said, labels, _ = made_up(30)
    empty = np.zeros((30, 2), bool)
    monkeypatch.setattr(calibration_sets, "sets_by_crepes", lambda *_: empty)
    with pytest.raises(IntegrityError, match=r"the set of a calibration run of 'a' is .*, but crepes' is"):
        rules_of(said, labels, ["a"] * 30)


def facts(number: int, change: object = "") -> RunFacts:
    return RunFacts(
        run_id=f"zuul~{number}~1", build_uuid=str(number), build_name=f"job{number % 2}", change=str(change or number)
    )


def test_a_leak_of_the_test_set_is_refused_a_twin_of_its_change_too() -> None:
    said, labels, _ = made_up(50)
    dev, experiment = [facts(number) for number in range(50)], Experiment(calibration="auto")

    def fit(used: list[RunFacts]) -> Any:
        return calibrate(experiment, RESOLVED, dev, said, labels, used=used)

    assert fit([facts(number) for number in range(50, 80)]).rules is not None
    with pytest.raises(IntegrityError, match="run zuul~7~1 is of the same change as zuul~7~1, which the model learned"):
        fit([facts(60), dev[7]])
    with pytest.raises(IntegrityError, match="run zuul~7~1 is of the same change as zuul~99~1"):
        fit([facts(99, change="7")])


def test_an_isotonic_calibration_fits_half_of_the_changes_and_its_sets_the_other_half() -> None:
    said, labels, _ = made_up(120, 3.0, seed=12)
    dev = [facts(number, change=str(number // 2)) for number in range(120)]

    def fit(given_labels: NDArray[np.int64]) -> tuple[Isotonic, VerdictRules]:
        made = calibrate(Experiment(calibration="isotonic"), RESOLVED, dev, said, given_labels, used=[])
        assert isinstance(made.calibrator, Isotonic)
        assert made.rules is not None
        return made.calibrator, made.rules

    calibrator, rules = fit(labels)
    is_fitted = np.zeros(120, bool)  # whether the label of a run moves the lines
    for run in range(120):
        flipped, _ = fit(np.where(np.arange(120) == run, 1 - labels, labels))
        is_fitted[run] = any(not np.array_equal(*lines) for lines in zip(flipped.lines, calibrator.lines, strict=True))
    assert (is_fitted[::2] == is_fitted[1::2]).all()  # whole changes
    assert 40 < is_fitted.sum() < 80
    alone = fit_calibrator(said[is_fitted], labels[is_fitted], "isotonic")
    np.testing.assert_array_equal(alone.apply(said), calibrator.apply(said))
    others = np.flatnonzero(~is_fitted)
    jobs = [dev[run].build_name for run in others]
    assert rules.groups == rules_of(calibrator.apply(said)[others], labels[others], jobs).groups
    one_change = [facts(number, change="1") for number in range(120)]
    with pytest.raises(CimlError, match="isotonic needs dev runs of several changes"):
        calibrate(Experiment(calibration="isotonic"), RESOLVED, one_change, said, labels, used=[])


def test_a_calibration_describes_itself_and_needs_runs() -> None:
    said, labels, _ = made_up(300, 3.0, seed=14)
    dev = [facts(number) for number in range(300)]
    found = calibrate(Experiment(calibration="auto", coverage=0.8), RESOLVED, dev, said, labels, used=[])
    assert found.description["method"] == "temperature"
    assert (found.description["runs"], found.description["fitted_to"]) == (300, 300)
    assert found.description["log_loss"]["after"] < found.description["log_loss"]["before"] - 0.1
    assert found.rules is not None
    assert found.rules.coverage == 0.8
    asset = found.asset()
    assert asset is not None
    assert read_rules(asset, CLASSES, (), "x") == found.rules
    provider = RESOLVED.replace(definition=RESOLVED.definition.replace(class_label="provider"))
    assert calibrate(Experiment(calibration="auto"), provider, dev, said, labels, used=[]).asset() is None
    with pytest.raises(CimlError, match="calibration needs dev runs; give dev a weight"):
        calibrate(Experiment(calibration="auto"), RESOLVED, [], said[:0], labels[:0], used=[])


def by_loop(means: np.ndarray, changes: list[int]) -> LearnedRanges:
    distances = []
    for row, change in zip(means, changes, strict=True):
        others = means[[other != change for other in changes]]
        distances.append(float(parts_outside(row, others.min(axis=0), others.max(axis=0)).max()))
    rank = min(math.ceil(SHARE * (len(distances) + 1)), len(distances))
    low, high = tuple(means.min(axis=0).tolist()), tuple(means.max(axis=0).tolist())
    return LearnedRanges(len(means), ("a", "b"), low, high, sorted(distances)[rank - 1])


#: Of twenty runs, the limit is the largest distance, since the share is that of one run more.
TWENTY = [(number, number**2 % 11, number / 3) for number in range(1, 21)]
#: Two runs of a change far from all others do not vouch for each other.
FAR_TOGETHER = [(1, 1, 0.0), (2, 2, 0.0), (3, 3, 0.0), (4, 100, 0.0), (4, 101, 0.0)]


@example(TWENTY)
@example(FAR_TOGETHER)
@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(-4, 4), st.sampled_from([0.0, 1.5, 7.0])), min_size=2, max_size=70
    )
)
def test_each_run_is_compared_with_the_runs_of_other_changes(given_runs: list[tuple[int, int, float]]) -> None:
    means = np.array([[float(one), other] for _, one, other in given_runs])
    changes = [change for change, _, _ in given_runs]
    runs = [facts(number, change) for number, change in enumerate(changes)]
    found = learned_ranges(means, runs, ("a", "b"))
    if len(set(changes)) == 1:
        assert found is None
    else:
        assert found == by_loop(means, changes)


def test_means_are_of_the_windows_alone() -> None:
    inputs = np.array([[[1, 10], [3, 30], [0, 0]], [[5, 50], [6, 60], [10, 100]]], np.float32)
    assert run_means(inputs, np.array([2, 3])).tolist() == [[2, 20], [7, 70]]
