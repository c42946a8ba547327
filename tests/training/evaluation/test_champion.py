"""The champion on the runs of a candidate; `tests/training/test_refresh.py` compares its answers on real runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ciml.training.changes import number_changes
from ciml.training.data.examples import Examples
from ciml.training.evaluation import candidate
from ciml.training.evaluation.bootstrap import squared_errors
from ciml.training.evaluation.gate import GatePolicy
from ciml.training.evaluation.metrics import accuracy, predicted_classes
from ciml.training.evaluation.paired import compare, compare_errors, compare_slices
from tests.transforms.samples import make_facts

CLASSES = ("failed", "passed")


def test_a_champion_that_prefers_an_unknown_class_has_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(definition=SimpleNamespace(classes=("lost", "passed", "failed")))
    own = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [np.nan] * 3], np.float32)
    monkeypatch.setattr(candidate, "load_exported", lambda _: model)
    monkeypatch.setattr(candidate, "_predict_from_raw", lambda *_: own)
    given: Any = SimpleNamespace(classes=CLASSES, folder="models/m/1")
    answers = candidate.champion_probabilities(given, given, given, (), given)
    np.testing.assert_array_equal(answers, np.array([[np.nan] * 2, [0.3, 0.5], [np.nan] * 2], np.float32))


def test_each_comparison_of_the_gate_counts_the_changes_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    facts = [
        make_facts(
            run, change=str(run // 6), build_name=f"job-{run % 6}", source=f"ci-{run % 2}", end_us=run * 1_000_000
        )
        for run in range(120)
    ]
    labels = rng.integers(2, size=120)
    answers, other = rng.random((2, 20, 2)).repeat(6, axis=1).reshape(2, 120, 2)
    monkeypatch.setattr(candidate, "champion_probabilities", lambda *_: other)
    numbers = SimpleNamespace(positions=np.arange(100), right=rng.random(100) < 0.5)
    monkeypatch.setattr(candidate, "predict_test_runs", lambda *_: numbers)
    monkeypatch.setattr(candidate, "gate_numbers", lambda _: ["memory"])
    monkeypatch.setattr(candidate, "numbers_for", lambda _: ["memory"])
    given: Any = SimpleNamespace(
        raw=lambda: None, resolved=SimpleNamespace(definition=None), version=1, folder="models/m/1"
    )
    changes = number_changes(facts)
    assert len(set(changes.tolist())) == 20
    right, other_right = (predicted_classes(shares) == labels for shares in (answers, other))
    policy = GatePolicy()
    test = Examples(np.zeros((120, 1, 1), np.float32), np.ones(120, np.int32), labels, np.arange(120))
    found = candidate._champion_figures(given, given, given, (), facts, test, answers, policy)
    assert found["champion"]["accuracy"] == accuracy(other_right, changes)
    comparison = found["comparison"]
    assert comparison.items() >= compare(right, other_right, changes).items()
    assert comparison["brier"] == compare_errors(
        squared_errors(answers, labels), squared_errors(other, labels), changes
    )
    by_source = {"source": [run.source for run in facts]}
    assert comparison["sources"] == compare_slices(right, other_right, by_source, changes, min_runs=20)
    assert comparison["slices"] != compare_slices(right, other_right, candidate._slices(facts))
    assert comparison["slices"] == compare_slices(right, other_right, candidate._slices(facts), changes)
    baseline = candidate._baselines(given, given, {}, right, changes, policy)["memory"]
    assert baseline.items() >= accuracy(numbers.right, changes[:100]).items()
    assert baseline["comparison"] == compare(right[:100], numbers.right, changes[:100])
