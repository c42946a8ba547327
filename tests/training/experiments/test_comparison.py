"""Comparisons: run by run with the first result; other test runs are not compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ciml.intervals import newcombe, wilson
from ciml.storage import LocalStore
from ciml.training.evaluation.metrics import scores
from ciml.training.evaluation.paired import compare as pair
from ciml.training.experiments.comparison import NO_PREDICTIONS, OTHER_RUNS, ComparisonRow, by_accuracy, compare
from ciml.training.experiments.results import Predictions, StoredTrial
from tests.reports.test_results import of_b, predicted, stored

LABELS = [0] * 12 + [1] * 8
GOOD = predicted(LABELS, of_b(*[0.1] * 12, *[0.9] * 6, *[0.1] * 2))
POOR = predicted(LABELS, of_b(*[0.9] * 9, *[0.1] * 3, *[0.9] * 7, 0.1))
LUCKY = predicted([0, 1], of_b(0.1, 0.9))
FOLDS_ONLY = StoredTrial("folds", "tests", LocalStore("nowhere"), None, (), ())


def test_each_is_compared_with_the_first_in_the_order_given() -> None:
    trials = [(stored("poor", POOR), POOR), (FOLDS_ONLY, None), (stored("good", GOOD), GOOD)]
    poor, good = compare(trials).rows
    assert (poor.name, poor.paired, good.name) == ("poor", None, "good")
    # of 20 runs, good alone gets 9 right, poor alone 1: 11 of 1,024 splits are as uneven as that to one side
    assert good.paired is not None
    assert (good.paired["only_candidate"], good.paired["only_champion"]) == (9, 1)
    assert good.paired["difference"] == pytest.approx(0.4)
    assert good.paired["mcnemar"] == pytest.approx(2 * 11 / 1024)
    both = int((GOOD.right & POOR.right).sum())
    counts = both, int(GOOD.right.sum()) - both, int(POOR.right.sum()) - both, len(LABELS)
    assert good.paired["interval"] == list(newcombe(*counts))


def test_they_are_ordered_by_accuracy_and_those_of_other_runs_are_last() -> None:
    lucky = stored("lucky", LUCKY, digest="other")
    trials = [
        (stored("poor", POOR), POOR), (lucky, LUCKY), (stored("good", GOOD), GOOD), (stored("gone", GOOD), None),
        (FOLDS_ONLY, None),
    ]  # fmt: skip
    found = compare(by_accuracy(trials)).rows
    assert [(one.name, one.comparable, one.note) for one in found] == [
        ("gone", True, ""), ("good", True, NO_PREDICTIONS), ("poor", True, NO_PREDICTIONS),
        ("lucky", False, OTHER_RUNS),
    ]  # fmt: skip
    assert [one.paired for one in found] == [None] * 4  # the first one's predictions are missing
    best, poorer, other = compare(by_accuracy(trials[:3])).rows
    assert (best.name, poorer.name, other.note) == ("good", "poor", OTHER_RUNS)
    assert poorer.paired is not None
    assert poorer.paired["difference"] == pytest.approx(-0.4)
    assert (compare([]).rows, by_accuracy([])) == ((), [])


def test_other_snapshots_are_compared_where_their_test_runs_are_the_same() -> None:
    """An exclusion of a training run, or another resolution, leaves the test runs as they are."""

    def with_poor(found: Predictions) -> ComparisonRow:
        trial = replace(stored("good", found, digest="x"), dataset="minutes")
        return compare([(stored("poor", POOR), POOR), (trial, found)]).rows[1]

    order = np.random.default_rng(0).permutation(20)
    shuffled = Predictions(GOOD.run_id[order], GOOD.labels[order], GOOD.probabilities[order], GOOD.classes)
    good = with_poor(shuffled)
    assert good.paired is not None
    assert (good.comparable, good.paired["difference"]) == (True, pytest.approx(0.4))
    # the same runs with another label, or other classes, are other test runs
    assert with_poor(predicted([1, *LABELS[1:]], GOOD.probabilities)).note == OTHER_RUNS
    assert with_poor(predicted(LABELS, GOOD.probabilities, ("a", "c"))).note == OTHER_RUNS


def test_runs_of_a_change_are_one_observation_of_a_comparison_whatever_their_order() -> None:
    """Predictions of older versions do not name the changes."""
    changes = np.repeat(np.arange(5), 4)
    order = np.random.default_rng(0).permutation(20)
    good = Predictions(GOOD.run_id[order], GOOD.labels[order], GOOD.probabilities[order], GOOD.classes, changes[order])
    trials = [(stored("poor", POOR), POOR), (stored("good", good), good), (stored("older", GOOD), GOOD)]
    _, new, old = compare(trials).rows
    assert new.paired == pair(GOOD.right, POOR.right, changes)
    assert old.paired == pair(GOOD.right, POOR.right)
    assert (new.paired["changes"], old.paired["changes"]) == (5, 20)


def baselines_of(**accuracies: float) -> dict[str, Any]:
    return {
        name: {"accuracy": {"value": value}, "macro": {"f1": {"value": 0.5}}, "classes": {}}
        for name, value in accuracies.items()
    }


def test_a_sentence_says_that_one_number_beats_every_model() -> None:
    beaten = baselines_of(duration=0.6, memory=0.95)
    trials = [(stored("poor", POOR, baselines=beaten), POOR), (stored("good", GOOD, baselines=beaten), GOOD)]
    assert compare(trials).beaten == (
        "The memory of a run alone is right more often than every model: 0.950, good 0.900."
    )
    assert compare(trials[:1]).beaten.startswith("The memory of a run alone is right more often than this model")
    equal = baselines_of(duration=0.9)
    assert compare([(stored("good", GOOD, baselines=equal), GOOD)]).beaten == ""
    lucky = stored("lucky", LUCKY, digest="other", baselines=beaten)
    assert compare([(stored("good", GOOD), GOOD), (lucky, LUCKY)]).beaten == ""  # of other test runs
    assert compare([]).beaten == ""


def test_a_record_has_the_figures_of_the_result() -> None:
    baselines = baselines_of(duration=0.6, memory=0.7)
    trial = stored("good", GOOD, baselines=baselines)
    assert trial.result is not None
    test = trial.result["test"]
    (record,) = compare([(trial, GOOD)]).records()
    figures = {key: test["macro"][key] for key in ("f1", "roc_auc")}
    ends = (("", "value"), ("_low", "low"), ("_high", "high"))
    assert record == {
        "experiment": "good", "dataset": "tests", "estimator": "random_forest", "runs": 20, "accuracy": 0.9,
        "accuracy_low": wilson(18, 20)[0], "accuracy_high": wilson(18, 20)[1], "f1_of": "macro",
        **{f"{key}{end}": figure[name] for key, figure in figures.items() for end, name in ends},
        "base_rate": 0.6, "baseline": "memory", "baseline_accuracy": 0.7, "difference": None, "difference_low": None,
        "difference_high": None, "mcnemar": None, "note": "",
    }  # fmt: skip
    failed = predicted(LABELS, GOOD.probabilities, ("passed", "failed"))
    labels = np.array([0] * 6 + [1] * 2)
    result = dict(trial.result) | {"test": scores(failed.probabilities, failed.labels, failed.classes, labels)}
    (record,) = compare([(replace(trial, result=result), failed)]).records()
    assert (record["f1_of"], record["f1"]) == ("failed", pytest.approx(2 * 6 / (2 * 6 + 0 + 2)))
    assert record["f1_low"] == result["test"]["classes"]["failed"]["f1"]["low"]
