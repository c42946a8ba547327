"""Lines of figures: an interval where there is one, and no line of what a result does not have."""

from __future__ import annotations

from typing import Any

import pytest

from ciml.training.evaluation.text import Figures, fold_lines, other_lines, result_lines

NOTHING = {"value": None}
HALF = {"value": 0.5, "low": 0.25, "high": 0.75}
HIGH = {"value": 0.875, "low": 0.625, "high": 1.0}
CLASS = {"runs": 4, "precision": HIGH, "recall": {"value": 0.75}, "f1": HALF}
SCORES: dict[str, Any] = {
    "runs": 8,
    "accuracy": HIGH,
    "base_rate": {"class": "passed", **HALF},
    "macro": {"f1": HALF, "roc_auc": HIGH, "pr_auc": NOTHING},
    "brier": {"value": 0.125},
    "calibration": {"ece": 0.0625},
    "confusion": {"classes": ["failed"]},
    "classes": {"failed": CLASS, "passed": CLASS},
}
SCORE_LINES = [
    "8 runs: accuracy 0.875 (0.625 to 1.000), base rate 0.500 (passed)",
    "    macro F1 0.500 (0.250 to 0.750), ROC-AUC 0.875 (0.625 to 1.000), PR-AUC undefined",
    "    Brier 0.125, calibration error 0.062",
    "    failed: 4 runs, precision 0.875, recall 0.750, F1 0.500 (0.250 to 0.750)",
]
NUMBERS = {"duration": {"accuracy": {"value": 0.75}, "macro": {"f1": HALF}}}
BASELINE_LINE = "  duration alone: accuracy 0.750, macro F1 0.500 (0.250 to 0.750)"
RESULT = {
    "experiment": {"name": "net"},
    "dataset": "ci",
    "training": {"runs": 9, "epochs": 3, "steps": 12, "best_epoch": 2},
    "dev": None,
    "test": SCORES,
    "baselines": NUMBERS,
}
VERDICTS = {
    "runs": 8,
    "coverage": {"stated": 0.9, **HIGH},
    "abstained": HALF,
    "outside": {"value": 0.25},
    "causes": {"machine": {"verdicts": 3, "precision": HIGH, "recall": NOTHING}},
}
VERDICT_LINES = [
    "    verdicts: coverage 0.875 (0.625 to 1.000), stated 0.9; unknown 0.500 (0.250 to 0.750)",
    "    unlike the learned runs, and so unknown: 0.250",
    "    machine: 3 verdicts, precision 0.875 (0.625 to 1.000), recall undefined",
]
NOT_OUTSIDE = {"outside": {"value": 0.0}, "causes": {}}
#: Of a result on the test runs, without what a case adds.
TEST_LINES = [f"  test: {SCORE_LINES[0]}", *SCORE_LINES[1:]]


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, [*TEST_LINES, BASELINE_LINE]),
        ({"dev": SCORES}, [f"  dev: {SCORE_LINES[0]}", *SCORE_LINES[1:], *TEST_LINES, BASELINE_LINE]),
        ({"verdicts": VERDICTS}, [*TEST_LINES, *VERDICT_LINES, BASELINE_LINE]),
        ({"verdicts": VERDICTS | NOT_OUTSIDE}, [*TEST_LINES, VERDICT_LINES[0], BASELINE_LINE]),
        ({"verdicts": {"runs": 0}}, [*TEST_LINES, BASELINE_LINE]),
        ({"test": SCORES | {"runs": 0}}, ["  test: no runs", BASELINE_LINE]),
    ],
)
def test_a_result_is_printed_with_the_figures_that_it_has(changes: Figures, lines: list[str]) -> None:
    first, *others = result_lines({**RESULT, **changes})
    assert first == "net on ci: 9 runs, 3 epochs, 12 steps, the best of them 2"
    assert others == lines


def test_a_better_number_is_named_after_the_figures() -> None:
    number = {"accuracy": {"value": 0.9}, "macro": {"f1": HALF}}
    last = result_lines({**RESULT, "baselines": {"duration": number}})[-1]
    assert last == "  The duration of a run alone is right more often than this model: 0.900, net 0.875."


def test_another_data_set_is_printed_with_the_runs_that_were_left_out() -> None:
    other = {"dataset": "far", "left_out": {"other_class": 2, "dev": 0}, "test": SCORES, "baselines": NUMBERS}
    first, *others = other_lines(other)
    assert first == "the same on the test runs of far, without 2 other class"
    assert others == [*TEST_LINES, BASELINE_LINE]


def test_folds_are_printed_with_some_of_their_groups() -> None:
    fold = {"accuracy": HIGH, "base_rate": HALF, "held_out": [*"abcdef"]}
    mean = {"accuracy": HIGH, "f1": HALF}
    numbers = {"duration": {"mean": {"accuracy": HALF}, "pooled": {"macro": {"f1": HIGH}}}}
    result = {"by": "change", "folds": [fold, {**fold, "held_out": []}], "mean": mean, "pooled": SCORES}
    assert fold_lines({**result, "baselines": numbers}) == [
        "2 folds by change, test runs unread",
        "  fold 1  accuracy 0.875, base rate 0.500; held out a, b, c, d, e …",
        "  fold 2  accuracy 0.875, base rate 0.500",
        "  mean    accuracy 0.875 (0.625 to 1.000); macro F1 0.500 (0.250 to 0.750)",
        f"  pooled: {SCORE_LINES[0]}",
        *SCORE_LINES[1:],
        "  duration alone: mean accuracy 0.500 (0.250 to 0.750); pooled macro F1 0.875 (0.625 to 1.000)",
    ]
