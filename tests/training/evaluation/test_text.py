"""What ``ciml refresh`` prints of a candidate's figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ciml.training.evaluation.metrics import accuracy, compare
from ciml.training.evaluation.text import beaten_by, figure_lines


def share(right: int, runs: int = 50) -> dict[str, Any]:
    return accuracy(np.arange(runs) < right)


def test_a_refresh_prints_both_baselines_abstention_and_coverage_with_intervals() -> None:
    comparison = compare(np.arange(50) < 40, np.arange(50) < 44)
    metrics = {
        "evaluation": {"accuracy": share(40), "base_rate": {"class": "machine", **share(33)}},
        "baselines": {"duration": {"name": "a tree", **share(44), "comparison": comparison}},
        "verdicts": {"runs": 50, "abstained": share(20), "coverage": {"stated": 0.9, **share(46)}},
    }
    low, high = comparison["interval"]
    assert low < -0.08 < high < 0.01
    assert figure_lines(metrics) == [
        "accuracy 0.800 (0.670 to 0.888) on 50 held-out runs; base rate 0.660 (0.522 to 0.776)",
        f"duration alone 0.880 (0.762 to 0.944); the model against it -0.080 ({low:+.3f} to {high:+.3f})",
        "abstention 0.400 (0.276 to 0.538); coverage 0.920 (0.812 to 0.968), stated 0.9",
    ]


def test_the_metrics_of_earlier_versions_are_printed_too() -> None:
    baselines = {"memory": {"name": "memory", **share(44)}}
    metrics = {"evaluation": {"accuracy": share(40), "base_rate": {"value": 0.3}}, "baselines": baselines}
    assert figure_lines(metrics) == [
        "accuracy 0.800 (0.670 to 0.888) on 50 held-out runs; base rate 0.300",
        "memory alone 0.880 (0.762 to 0.944)",
    ]
    assert figure_lines({}) == []


@pytest.mark.parametrize(
    ("accuracies", "baselines"), [({}, {"duration": 0.9}), ({"a": 0.9}, {}), ({"a": 0.9}, {"duration": 0.9})]
)
def test_no_sentence_where_no_number_beats_a_model(accuracies: dict[str, float], baselines: dict[str, float]) -> None:
    assert beaten_by(accuracies, baselines) == ""
