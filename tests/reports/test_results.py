"""What is drawn of results, as numbers: held against what is counted by hand, and against scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ciml.intervals import wilson
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


def test_the_base_rate_of_every_figure_is_that_of_one_answer_for_all():
    # 6 and 2 were trained on; of the test runs three are a, one b
    trial = stored("x", predicted([0, 0, 0, 1], of_b(0.9, 0.2, 0.1, 0.8)))
    guess = constant(trial.result, trial.result["test"])
    assert guess["accuracy"]["value"] == trial.result["test"]["base_rate"]["value"] == 0.75
    assert guess["macro"]["f1"]["value"] == pytest.approx((2 * 0.75 / 1.75) / 2)
    assert guess["macro"]["recall"]["value"] == 0.5
    assert guess["macro"]["precision"]["value"] == 0.75 / 2
    assert guess["macro"]["roc_auc"]["value"] == 0.5
    assert guess["classes"]["b"]["pr_auc"]["value"] == 0.25
    assert guess["brier"]["value"] == pytest.approx((3 * 0.25**2 + 0.75**2) / 4)
    assert guess["log_loss"] == pytest.approx(-(3 * np.log(0.75) + np.log(0.25)) / 4)


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
