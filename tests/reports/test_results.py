"""What is drawn of data sets and results, as numbers: against counts by hand, and against scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.intervals import wilson
from ciml.reports.dataset import views
from ciml.reports.dataset.read import _Selection, read_runs
from ciml.reports.drawing import Estimate
from ciml.reports.experiments.comparison import validated
from ciml.reports.experiments.views import (
    Bar,
    accuracy_bar,
    constant,
    curved,
    curves,
    errors_by_class,
    f1_bar,
    first_by,
    folded_confusion,
    slice_bars,
)
from ciml.storage import LocalStore
from ciml.training.evaluation.metrics import scores
from ciml.training.experiments.results import Predictions, StoredTrial
from tests.reports.scenes import runs

CLASSES = ("a", "b")


def predicted(labels: list[int], probabilities: Any, classes: tuple[str, ...] = CLASSES) -> Predictions:
    run_id = np.array([f"run-{number}" for number in range(len(labels))], object)
    return Predictions(run_id, np.array(labels, np.int64), np.array(probabilities, np.float64), classes)


def of_b(*sure: float) -> list[list[float]]:
    return [[1 - each, each] for each in sure]


def stored(name: str, found: Predictions, *, train: tuple[int, int] = (6, 2), dev: int = 0, **keys: Any) -> StoredTrial:
    """A trial with a result as `Trial.run` stores it, of such answers."""
    train_labels = np.repeat([0, 1], train)
    test = scores(found.probabilities, found.labels, found.classes, train_labels, keys.get("slices"), resamples=5)
    result = {
        "experiment": {"name": name, "estimator": "random_forest", "parameters": {}},
        "dataset": "tests",
        "snapshot": {
            "digest": keys.get("digest", "d"),
            "spans": [[1, 1]],
            "counts": {
                "train": {"a": train[0] - dev, "b": train[1]},
                "dev": {"a": dev, "b": 0},
                "test": {"a": 0, "b": 0},
            },
            "rules": {},
            "untrusted": {},
            "excluded": {},
        },
        "training": keys.get("training", {"runs": sum(train)}),
        "dev": None,
        "test": test,
        "baselines": keys.get("baselines", {}),
    }
    return StoredTrial(name, "tests", LocalStore("nowhere"), result, (), keys.get("folds", ()))


def test_curves_are_those_that_are_counted_by_hand():
    # by falling probability of b: right, wrong, right, wrong
    (b, a) = curves(predicted([1, 0, 1, 0], of_b(0.9, 0.8, 0.6, 0.1)))[::-1]
    assert (b.name, b.runs, b.share) == ("b", 2, 0.5)
    assert b.recall.tolist() == [0.0, 0.5, 0.5, 1.0, 1.0]
    assert b.precision.tolist() == [1.0, 1.0, 0.5, pytest.approx(2 / 3), 0.5]
    assert b.false_positive.tolist() == [0.0, 0.0, 0.5, 0.5, 1.0]
    assert b.true_positive.tolist() == [0.0, 0.5, 0.5, 1.0, 1.0]
    assert b.pr_auc == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert b.roc_auc == pytest.approx(0.75)
    assert (a.name, a.roc_auc) == ("a", pytest.approx(0.75))


def test_areas_are_those_of_the_scores_and_unanswered_runs_count_the_same():
    rng = np.random.default_rng(1)
    labels = rng.integers(3, size=2000)
    probabilities = rng.dirichlet([1, 1, 1], 2000) + 0.3 * np.eye(3)[labels]
    probabilities[:50] = np.nan
    classes = ("a", "b", "c")
    want = scores(probabilities, labels, classes, labels, resamples=0)["classes"]
    for each in curves(predicted(labels.tolist(), probabilities, classes)):
        assert each.pr_auc == pytest.approx(want[each.name]["pr_auc"]["value"])
        assert each.roc_auc == pytest.approx(want[each.name]["roc_auc"]["value"])
        assert each.share == want[each.name]["share"]
        assert len(each.recall) <= 400
        assert (each.recall[0], each.recall[-1]) == (0.0, 1.0)
        # as exact as a line may be
        area = np.sum(np.diff(each.recall) * each.precision[1:])
        assert area == pytest.approx(each.pr_auc, abs=0.01)


def test_an_empty_class_and_the_only_class_have_no_curve():
    assert curves(predicted([0, 0], of_b(0.2, 0.3))) == []
    found = predicted([0, 0, 2], np.full((3, 3), 1 / 3), ("a", "b", "c"))
    assert [each.name for each in curves(found, 1)] == ["a"]
    assert [each.name for each in curves(found)] == [found.classes[label] for label in curved(found)] == ["a", "c"]


def test_dev_runs_that_were_trained_on_are_in_the_base_rate():
    found = predicted([0, 1], of_b(0.1, 0.9))
    for trial in (stored("x", found), stored("x", found, dev=3)):
        assert constant(trial.result, trial.result["test"])["brier"]["value"] == pytest.approx((0.25**2 + 0.75**2) / 2)


def test_errors_by_class_are_counted_with_wilsons_interval():
    trial = stored("x", predicted([0] * 10 + [1] * 4, of_b(*[0.9] + [0.1] * 9, *[0.9] + [0.2] * 3)))
    baselines = {"duration": {"classes": {"a": {"runs": 10, "recall": {"value": 0.2}}, "b": {"runs": 0}}}}
    assert errors_by_class(trial.result["test"], baselines) == [
        Bar("b", Estimate(0.75, *wilson(3, 4)), 4, {}),
        Bar("a", Estimate(0.1, *wilson(1, 10)), 10, {"duration alone": 0.8}),
    ]
    assert (Estimate(0.1, 0.02, 0.4).percent, Estimate(0.1, 0.02, 0.4).interval) == ("2 to 40 %", "0.020 to 0.400")
    assert (Estimate(None, None, None).percent, Estimate(None, None, None).interval) == ("0 to 0 %", "–")


def test_a_large_matrix_has_its_rare_classes_together():
    confusion = {
        "classes": ["a", "b", "c", "d"],
        "rows_are_labels": [[5, 1, 0, 0], [0, 1, 1, 0], [2, 0, 7, 3], [0, 0, 1, 0]],
    }
    names, counts = folded_confusion(confusion, 3)
    assert names == ["a", "c", "2 others"]
    assert counts.tolist() == [[5, 0, 1], [2, 7, 3], [0, 2, 1]]
    names, counts = folded_confusion(confusion)
    assert (names, counts.tolist()) == (confusion["classes"], confusion["rows_are_labels"])


def test_bars_stand_beside_what_costs_nothing():
    baselines = {"memory": {"accuracy": {"value": 0.9}, "macro": {"f1": {"value": 0.8}}}}
    found = predicted([0, 0, 0, 1], of_b(0.1, 0.2, 0.9, 0.8))
    trial = stored("x", found, baselines=baselines, slices={"job": ["p", "p", "q", "q"], "cloud": ["k", "k", "k", "l"]})
    test = trial.result["test"]
    guess = constant(trial.result, test)
    assert accuracy_bar("x", test, baselines) == Bar(
        "x", Estimate(0.75, *wilson(3, 4)), 4, {"base rate": 0.75, "memory alone": 0.9}
    )
    f1 = f1_bar("x", test, baselines, guess)
    assert (f1.value, f1.beside["memory alone"]) == (test["macro"]["f1"]["value"], 0.8)
    assert f1.beside["base rate"] == pytest.approx(3 / 7)
    assert slice_bars(test["slices"]["job"]) == [
        Bar("p", Estimate(1.0, *wilson(2, 2)), 2, {"its most frequent class": 1.0}),
        Bar("q", Estimate(0.5, *wilson(1, 2)), 2, {"its most frequent class": 0.5}),
    ]
    # where each has one class alone, guessing it is no baseline but the answer
    assert [bar.beside for bar in slice_bars(test["slices"]["cloud"])] == [{}, {}]
    assert first_by([Bar("n", Estimate(None, None, None)), f1]) == f1
    assert first_by([]) is None


def fold(right: int, held_out: list[str]) -> dict[str, Any]:
    low, high = wilson(right, 10)
    accuracy = {"value": right / 10, "low": low, "high": high, "right": right, "runs": 10}
    return {"accuracy": accuracy, "base_rate": {"value": 0.5}, "f1": 0.4, "held_out": held_out}


def folds(*right: int, by: str = "job") -> dict[str, Any]:
    mean = {"value": float(np.mean(right)) / 10, "low": 0.1, "high": 0.9}
    pooled = {"runs": 10 * len(right), "base_rate": {"value": 0.45, "class": "a"}}
    each = [fold(count, [f"job-{number}"]) for number, count in enumerate(right)]
    return {"by": by, "folds": each, "mean": {"accuracy": mean, "f1": mean}, "pooled": pooled}


def test_cross_validations_are_compared_where_they_divide_alike():
    found = predicted([0, 1], of_b(0.1, 0.9))
    one = stored("one", found, folds=(folds(6, 8), folds(9, 9, by="run")))
    two, three = stored("two", found, folds=(folds(7, 9),)), stored("three", found, folds=(folds(1, 2, 3),))
    groups = validated([one, two, three])
    assert {kind: [name for name, _ in means] for kind, means in groups.items()} == {
        ("job", 2): ["two", "one"],
        ("job", 3): ["three"],
        ("run", 2): ["one"],
    }


def test_the_rarest_names_are_one_group_and_equals_go_by_name():
    groups = views.group_values(np.array(["b", "a", "c", "c", "", "d", "b"], object), limit=2)
    assert groups.names == ("b", "c", "3 others")
    assert groups.assigned.tolist() == [0, 2, 1, 1, 2, 2, 0]
    assert (groups.counts.tolist(), groups.named) == ([2, 2, 3], 2)
    groups = views.group_values(np.array(["b", "a", ""], object), limit=2)  # one too many is no group of its own
    assert (groups.names, groups.named) == (("a", "b", "unknown"), 3)


def test_classes_are_counted_by_split():
    scene = runs([[1]] * 5, [0, 0, 1, 0, 1], split=["train", "test", "train", "train", "dev"])
    assert views.count_by_split(scene, views.group_values(scene.class_name)).tolist() == [[2, 0, 1], [1, 1, 0]]


def test_lengths_are_shares_of_what_still_runs():
    scene = runs([[1, 1, 1, 1], [1, 1], [1], [1, 1]], [0, 0, 0, 1])
    times_s, share = views.running_shares(scene, views.group_values(scene.class_name))
    assert times_s.tolist() == [0, 10, 20, 30]
    assert share == pytest.approx(np.array([[1, 2 / 3, 1 / 3, 1 / 3], [1, 1, 0, 0]]))


def test_padding_is_no_part_of_a_course():
    scene = runs([[10, 30], [20, 50], [60], [1, 2, 3]], [0, 0, 0, 1])
    (course,) = views.compute_courses(scene, views.group_values(scene.class_name), [0])
    assert (course.feature, course.column, course.times_s.tolist()) == ("usr", "total cpu usage:usr", [0, 10, 20])
    assert course.runs.tolist() == [[3, 2, 0], [1, 1, 1]]
    # of three runs, two are too few for a mean; the class of one run has no more
    np.testing.assert_allclose(course.mean, [[30, np.nan, np.nan], [1, 2, 3]])
    np.testing.assert_allclose(course.low, [[15, np.nan, np.nan], [1, 2, 3]])
    np.testing.assert_allclose(course.high, [[40, np.nan, np.nan], [1, 2, 3]])


def test_long_courses_are_thinned_and_keep_their_times():
    scene = runs([np.arange(1000.0)] * 2, [0, 1])
    (course,) = views.compute_courses(scene, views.group_values(scene.class_name), [0])
    assert course.times_s[:3].tolist() == [0, 30, 60]
    assert course.mean[0].tolist() == list(range(0, 1000, 3))


def test_typical_runs_have_the_length_of_the_median():
    scene = runs([[1], [1, 1], [1, 1, 1], [1] * 9, [1]], [0, 0, 0, 0, 1])
    assert views.choose_typical_runs(scene, views.group_values(scene.class_name)) == [1, 2, 4]


def test_unrolled_examples_are_normalised_by_the_training_split():
    scene = runs([[10, 1], [30, 1], [50, 1]], [0, 1, 0], split=["train", "train", "test"])
    # window 0: mean 20, range 20; window 1: range 0 counts as 1
    np.testing.assert_allclose(views.unroll(scene, [0, 2]), [[-0.5, 0], [1.5, 0]])


def test_an_image_is_ordered_by_class_and_length():
    scene = runs([[1], [1, 1], [1, 1, 1], [1, 1]], [1, 0, 0, 1])
    found = views.make_image(scene, views.group_values(scene.class_name))
    assert (found.indices.tolist(), found.rows.tolist(), found.width) == ([3, 0, 2, 1], [2, 2], 3)
    np.testing.assert_array_equal(found.values, views.unroll(scene, found.indices))


def test_a_large_image_is_thinned_evenly_and_loses_no_class(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(views, "MOST_ROWS", 10)
    monkeypatch.setattr(views, "MOST_COLUMNS", 2)
    scene = runs([[1, 2, 3]] * 99 + [[4, 5, 6]], [0] * 99 + [1])
    found = views.make_image(scene, views.group_values(scene.class_name))
    assert found.rows.tolist() == [9, 1]
    assert found.indices.tolist() == [0, 12, 24, 37, 49, 61, 74, 86, 98, 99]
    # two columns of three windows: the mean of the first two, and the last
    assert found.width == 2
    np.testing.assert_allclose(found.values[-1], [0.99, 0.99], rtol=1e-6)


def test_days_without_runs_are_there_and_runs_without_a_day_are_not():
    scene = runs([[1]] * 4, [0, 0, 0, 1], day=["2026-02-27", "2026-03-01", "NaT", "2026-03-01"])
    found = views.make_calendar(scene, views.group_values(scene.class_name))
    assert found is not None
    assert [str(day) for day in found.starts] == ["2026-02-27", "2026-02-28", "2026-03-01"]
    assert (found.unit, found.counts.tolist(), found.undated) == ("day", [[1, 0, 1], [0, 0, 1]], 1)
    scene = runs([[1]] * 2, [0, 1], day=["NaT", "NaT"])
    assert views.make_calendar(scene, views.group_values(scene.class_name)) is None


@pytest.mark.parametrize(
    ("last", "unit", "starts", "counts"),
    [
        ("2026-06-01", "week", ["2026-02-23", "2026-03-02", "2026-06-01"], [2, 1, 1]),
        ("2028-01-31", "month", ["2026-03-01", "2026-04-01", "2028-01-01"], [3, 0, 1]),
    ],
)
def test_long_times_are_counted_by_week_then_by_month(last: str, unit: str, starts: list[str], counts: list[int]):
    # the 1st of March 2026 is a Sunday, the 2nd a Monday, the 1st of June too
    scene = runs([[1]] * 4, [0, 0, 0, 0], day=["2026-03-01", "2026-03-01", "2026-03-02", last])
    found = views.make_calendar(scene, views.group_values(scene.class_name))
    assert found is not None
    days = [str(day) for day in found.starts]
    assert (found.unit, [days[0], days[1], days[-1]]) == (unit, starts)
    assert [int(found.counts[0, days.index(start)]) for start in starts] == counts
    assert found.counts.sum() == 4


def test_what_is_read_is_what_the_data_set_holds(hostile_data: DataRoot):
    dataset = hostile_data.dataset("bad")
    reports: list[tuple[object, ...]] = []
    whole = read_runs(dataset, fact_names=["build_name", "who"], progress=lambda *report: reports.append(report))
    assert reports[-1][1] == reports[-1][2] == len(reports) - 1  # all files are reported as read
    assert (len(whole), whole.inputs.shape) == (24, (24, 5, 2))
    names = [whole.facts["build_name"], whole.facts["who"], whole.build_name, whole.class_name]
    assert {tuple(each.tolist()) for each in names} == {tuple(whole.class_name.tolist())}
    assert sorted(whole.n_windows.tolist()) == sorted([2, 3, 4, 5] * 6)
    train = whole.inputs[whole.split == "train"].astype(np.float64)
    np.testing.assert_allclose(whole.normalisation.mean, train.mean(axis=0))
    np.testing.assert_allclose(whole.normalisation.width, np.ptp(train, axis=0))
    number = int(whole.run_id[3].split("~")[1])
    assert str(whole.day[3]) == str(np.datetime64("1970-01-01") + number)
    assert whole.inputs[3, 0].tolist() == [10.0 * (number % 6), number]

    part = read_runs(dataset, max_values=10 * 7, seed=5)
    assert (len(part), len(part.sampled), part.inputs.shape) == (24, 7, (7, 5, 2))
    np.testing.assert_array_equal(part.inputs, whole.inputs[part.sampled])
    np.testing.assert_allclose(part.normalisation.mean, whole.normalisation.mean)
    assert read_runs(dataset, max_values=70, seed=5).sampled.tolist() == part.sampled.tolist()
    test = read_runs(dataset, splits=["test"])
    assert set(test.split) == {"test"}
    np.testing.assert_allclose(test.normalisation.mean, whole.normalisation.mean)


def test_only_the_runs_that_are_wanted_are_read(hostile_data: DataRoot):
    dataset = hostile_data.dataset("bad")
    whole = read_runs(dataset)
    some = read_runs(dataset, class_name="_hidden", min_windows=4)
    rows = [row for row in range(24) if whole.class_name[row] == "_hidden" and whole.n_windows[row] >= 4]
    assert rows
    assert some.run_id.tolist() == whole.run_id[rows].tolist()
    np.testing.assert_array_equal(some.inputs, whole.inputs[rows])
    np.testing.assert_allclose(some.normalisation.mean, whole.normalisation.mean)


def test_files_that_differ_from_the_manifest_are_an_error(hostile_data: DataRoot, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_Selection, "count", lambda selection, state: 25)
    with pytest.raises(IntegrityError, match="its files hold 24 matching examples, its manifest 25"):
        read_runs(hostile_data.dataset("bad"))
