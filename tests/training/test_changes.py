"""Intervals, bounds and tests of runs that are right or wrong together with the others of their change."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ciml.events.records import change_of
from ciml.intervals import wilson
from ciml.training.changes import design_effect, first_runs, number_changes
from ciml.training.evaluation.bootstrap import draw_weights
from ciml.training.evaluation.metrics import accuracy, evaluate, scores
from ciml.training.evaluation.paired import compare, compare_errors, compare_slices
from ciml.training.evaluation.sequential import AccuracyDrop, Arm
from tests.transforms.samples import make_facts

TRIALS = 200
JOBS = 8


def draw(rng: np.random.Generator, changes: int, together: float, worse: float = 0.0) -> tuple[np.ndarray, ...]:
    """Return whether a candidate and a champion are right on the runs of changes, bool [n], and the changes, int [n].

    Both are right on 0.85 of the runs, the candidate on ``worse`` less. Two runs of a change have the same answers with
    the probability ``together``, and independent ones otherwise.
    """
    shares = [0.79 - worse / 2, 0.06 - worse / 2, 0.06 + worse / 2, 0.09 + worse / 2]  # both, candidate, champion, none
    own = rng.choice(4, size=(changes, JOBS), p=shares)
    common = rng.choice(4, size=(changes, 1), p=shares)
    found = np.where(rng.random((changes, JOBS)) < np.sqrt(together), common, own).ravel()
    return found < 2, found % 2 == 0, np.repeat(np.arange(changes), JOBS)


def share_of_trials(holds: Callable[[np.ndarray, np.ndarray, np.ndarray], bool], *world: float) -> float:
    rng = np.random.default_rng(5)
    return sum(holds(*draw(rng, 50, *world)) for _ in range(TRIALS)) / TRIALS


@pytest.mark.parametrize("together", [0.0, 0.3, 1.0])
def test_the_interval_of_an_accuracy_holds_the_share_as_often_as_stated(together: float) -> None:
    def holds(right: np.ndarray, _: np.ndarray, changes: np.ndarray) -> bool:
        figures = accuracy(right, changes)
        return bool(figures["low"] <= 0.85 <= figures["high"])

    def holds_by_runs(right: np.ndarray, champion: np.ndarray, _: np.ndarray) -> bool:
        return holds(right, champion, np.arange(len(right)))

    assert share_of_trials(holds, together) >= 0.91
    assert share_of_trials(holds_by_runs, together) < 0.8 or together == 0.0


@pytest.mark.parametrize("together", [0.0, 0.3, 1.0])
def test_the_interval_of_a_difference_holds_it_as_often_as_stated(together: float) -> None:
    def holds(right: np.ndarray, champion: np.ndarray, changes: np.ndarray) -> bool:
        low, high = compare(right, champion, changes)["interval"]
        return bool(low <= 0.0 <= high)

    assert share_of_trials(holds, together) >= 0.92


@pytest.mark.parametrize("together", [0.0, 0.6])
def test_a_candidate_that_is_worse_by_the_tolerance_is_seldom_accepted(together: float) -> None:
    """By its bound at the confidence 0.8, it is accepted in one of five comparisons, and by runs in more."""

    def accepts(right: np.ndarray, champion: np.ndarray, changes: np.ndarray) -> bool:
        return bool(compare(right, champion, changes, confidence=0.8)["low"] >= -0.05)

    assert 0.1 < share_of_trials(accepts, together, 0.05) < 0.28


@pytest.mark.parametrize("together", [0.0, 0.6, 1.0])
def test_a_slice_of_equal_models_is_seldom_lost(together: float) -> None:
    def is_lost(right: np.ndarray, champion: np.ndarray, changes: np.ndarray, by: np.ndarray) -> bool:
        slices = {
            "job": [f"job-{run % 4}" for run in range(len(right))],
            "age": [f"{change // 17}" for change in changes],
        }
        return min(row["p"] for row in compare_slices(right, champion, slices, by)) <= 0.05

    assert share_of_trials(lambda *world: is_lost(*world, world[2]), together) <= 0.06
    if together:
        assert share_of_trials(lambda *world: is_lost(*world, np.arange(50 * JOBS)), together) > 0.15


def test_runs_that_are_all_right_count_as_their_changes() -> None:
    right, changes = np.ones(40, bool), np.repeat(np.arange(10), 4)
    assert accuracy(right, changes)["low"] == pytest.approx(wilson(10, 10)[0])
    assert accuracy(right)["low"] == wilson(40, 40)[0]
    only_job = {"job": ["unit"] * 40}
    found = scores(np.tile([1.0, 0.0], (40, 1)), np.zeros(40, int), ("a", "b"), np.zeros(1, int), only_job, changes)
    assert found["changes"] == 10
    for figure in (found["classes"]["a"]["recall"], found["macro"]["f1"], found["slices"]["job"]["unit"]):
        assert figure["low"] == pytest.approx(wilson(10, 10)[0])


def test_a_run_a_change_has_the_figures_of_independent_runs() -> None:
    rng = np.random.default_rng(1)
    right, champion = rng.random((2, 60)) < 0.8
    alone = rng.permutation(60) + 7
    assert accuracy(right, alone) == accuracy(right)
    assert compare(right, champion, alone) == compare(right, champion)
    errors, other = rng.random((2, 60))
    assert compare_errors(errors, other, alone)["high"] == pytest.approx(
        compare_errors(errors, other)["high"], abs=0.01
    )


def test_the_design_effect_is_the_size_of_changes_whose_runs_are_equal() -> None:
    values = np.repeat(np.random.default_rng(2).normal(size=200), 4)
    assert design_effect(values, np.repeat(np.arange(200), 4)) == pytest.approx(4.0)
    assert design_effect(values, np.arange(800)) == 1.0
    assert design_effect(np.zeros(0), None) == 1.0
    with pytest.raises(ValueError, match="changes of 2 runs"):
        design_effect(np.zeros(3), np.zeros(2, int))


def test_resamples_draw_whole_changes() -> None:
    changes = np.array([0, 1, 1, 2, 2, 2])
    (weights,) = draw_weights(changes, 50, seed=0)
    assert (weights[:, [1, 3, 3]] == weights[:, [2, 4, 5]]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()


def test_the_bound_of_errors_is_that_of_resampled_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    changes = np.repeat(np.arange(60), rng.integers(1, 9, size=60))
    errors = rng.normal(0.02, 0.1, size=60)[changes] + rng.normal(0, 0.05, size=len(changes))
    rows = [np.flatnonzero(changes == change) for change in range(60)]
    means = [errors[np.concatenate([rows[drawn] for drawn in rng.integers(60, size=60)])].mean() for _ in range(2000)]
    want = np.quantile(means, 0.8)
    for few in (100, 10):  # resamples, and the normal approximation of many changes
        monkeypatch.setattr("ciml.training.evaluation.paired._FEW", few)
        found = compare_errors(errors, np.zeros(len(errors)), changes)
        assert found["high"] == pytest.approx(want, abs=0.003)
        assert found["high"] > compare_errors(errors, np.zeros(len(errors)))["high"] + 0.003


def test_chance_explains_a_larger_calibration_error_of_runs_that_err_together() -> None:
    shares = np.tile([0.7, 0.3], (400, 1))
    labels = (np.arange(400) % 10 >= 7).astype(int)
    alone = evaluate(shares, labels, ("a", "b"), labels)["calibration"]
    together = evaluate(shares, np.sort(labels), ("a", "b"), labels, changes=np.repeat(np.arange(100), 4))[
        "calibration"
    ]
    assert together["ece"] == alone["ece"]
    assert together["chance"] == pytest.approx(2 * alone["chance"], rel=0.05)


def test_the_accuracy_at_the_gate_is_known_from_as_many_independent_runs() -> None:
    gate = Arm(190, 200)
    assert AccuracyDrop(gate, independent=50).least < AccuracyDrop(gate).least == AccuracyDrop(gate, 200).least


def test_what_stands_for_the_change_of_a_run() -> None:
    runs = [
        make_facts(1, project="nova", change="7"),
        make_facts(2, project="nova", change="7", patchset="2"),
        make_facts(3, project="glance", change="7"),
        make_facts(4, change="", head="a1"),
        make_facts(5, change="", head="a1"),
        make_facts(6, change=""),
        make_facts(7, change=""),
    ]
    numbers = number_changes(runs)
    assert len(set(numbers.tolist())) == 5
    assert first_runs(numbers).tolist() == [0, 2, 3, 5, 6]
    assert change_of(runs[5]) == runs[5].run_id
