"""The champion is right about a run if it names the run's class, by whatever definition it was trained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ciml.training.evaluation import candidate
from ciml.training.evaluation.metrics import predicted_classes

CLASSES = ("failed", "passed")
#: Of four runs; the champion has no answer for the last one.
ANSWERS = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [np.nan, np.nan]], np.float32)
LABELS = (0, 1, 1, 0)


@pytest.mark.parametrize(
    ("classes", "right"), [(CLASSES, [True, True, False, False]), (CLASSES[::-1], [False, False, True, False])]
)
def test_a_champion_is_right_where_it_names_the_class_of_a_run(
    monkeypatch: pytest.MonkeyPatch, classes: tuple[str, ...], right: list[bool]
) -> None:
    resolved: Any = SimpleNamespace(classes=CLASSES)
    runs: Any = [SimpleNamespace(label=label) for label in LABELS]
    examples: Any = SimpleNamespace(inputs=np.zeros((4, 1, 1)), n_windows=np.ones(4))
    champion: Any = SimpleNamespace(folder="models/m/1")
    raw: Any = None
    model = SimpleNamespace(definition=SimpleNamespace(classes=classes), predict=lambda *_: ANSWERS)
    monkeypatch.setattr(candidate, "load_exported", lambda _: model)
    monkeypatch.setattr(candidate, "_predict_from_raw", lambda *_: ANSWERS)  # by the champion's own definition
    answers = candidate.champion_probabilities(raw, champion, resolved, runs, examples)
    assert (predicted_classes(answers) == LABELS).tolist() == right
    np.testing.assert_array_equal(answers, ANSWERS[:, [classes.index(name) for name in CLASSES]])
    model.definition = resolved
    by_own_classes = candidate.champion_probabilities(raw, champion, resolved, runs, examples)
    assert (predicted_classes(by_own_classes) == LABELS).tolist() == [True, True, False, False]


def test_a_champion_that_prefers_an_unknown_class_has_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(definition=SimpleNamespace(classes=("lost", "passed", "failed")))
    own = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [np.nan] * 3], np.float32)
    monkeypatch.setattr(candidate, "load_exported", lambda _: model)
    monkeypatch.setattr(candidate, "_predict_from_raw", lambda *_: own)
    given: Any = SimpleNamespace(classes=CLASSES, folder="models/m/1")
    answers = candidate.champion_probabilities(given, given, given, (), given)
    np.testing.assert_array_equal(answers, np.array([[np.nan] * 2, [0.3, 0.5], [np.nan] * 2], np.float32))
