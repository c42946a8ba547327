"""The figures of the bench of verdicts, on answers that are written down by hand; and what a fold may see."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from ciml.events.outcomes import FAILED
from ciml.events.records import RunFacts
from studies.recordings import Recorded, read
from studies.verdicts import (
    Fold,
    Verdicts,
    by_base_rate,
    differences,
    features_of,
    figures,
    fold_of_later_runs,
    folds_of,
    label_noise,
    reliability,
    verdicts_by,
)
from tests.corpus import CORPUS

CODE, MACHINE, UNKNOWN = 0, 1, 2
ANY = [
    RunFacts(run_id=f"zuul~{number}~1", build_uuid=str(number), build_name="unit", change=str(number))
    for number in range(36)
]


@pytest.fixture(scope="module")
def runs() -> Recorded:
    return read([CORPUS])


def test_the_corpus_knows_causes_and_has_reruns(runs: Recorded) -> None:
    noise = label_noise(runs)
    assert (noise["failed"], noise["known"], noise["by reruns alone"]) == (159, 136, 13)
    assert noise["both"] == 51 == sum(noise[key] for key in noise if key.startswith("known "))
    assert Counter(runs.labels.tolist()) == {CODE: 50, MACHINE: 99}
    forbidden = {"patch", "trouble", "trouble_s", "cause", "fault"}
    assert not any(forbidden & set(run.labels) for run in runs.facts)  # no feature may know them


@pytest.mark.whole
def test_a_fold_sees_no_held_out_change(runs: Recorded) -> None:
    runs = runs.of(range(200))
    labels, groups = runs.labels, runs.failed_groups
    held = np.zeros(len(labels), int)
    for _, fold in folds_of(runs, 2, 1):
        parts = [set(groups[some]) for some in (fold.learned, fold.dev, fold.held)]
        assert all(not one & other for one, other in combinations(parts, 2))
        assert fold.learned.size + fold.dev.size + fold.held.size == len(labels)
        assert fold.inputs.shape == (len(labels), 1, len(fold.features))
        held[fold.held] += 1
    assert set(held) == {1}
    hidden = set(groups[fold.held])  # of the last fold: its profiles are those of a store without its changes
    visible = runs.of([at for at in range(len(runs.facts)) if runs.groups[at] not in hidden])
    _, _, _, profiles = features_of(visible, range(len(visible.facts)))
    assert fold.profiles is not None
    assert fold.profiles.to_json() == profiles.to_json()


def test_nothing_is_learned_from_later_runs(runs: Recorded) -> None:
    ends = np.array([run.end_us for run in runs.facts])
    since_us = int(ends[runs.groups == runs.groups[runs.failed[60]]].min())
    passed_later = [run.outcome not in FAILED and (run.end_us or 0) >= since_us for run in runs.facts]
    failed = ends[runs.failed]
    one, other = (fold for _, fold in fold_of_later_runs(runs, since_us, 2))
    for fold in (one, other):
        assert sorted(fold.held) == np.flatnonzero(failed >= since_us).tolist()
        assert sorted([*fold.learned, *fold.dev]) == np.flatnonzero(failed < since_us).tolist()
    assert set(one.dev) != set(other.dev)
    without = runs.of([at for at, left_out in enumerate(passed_later) if not left_out])
    _, same = next(fold_of_later_runs(without, since_us, 1))
    assert np.array_equal(one.inputs, same.inputs)  # profiles of earlier runs alone
    with pytest.raises(ValueError, match="has runs before and after"):
        next(fold_of_later_runs(runs, since_us + 1, 1))


def test_figures_count_the_answers_of_all_repeats() -> None:
    labels = np.array([CODE, CODE, MACHINE, MACHINE])
    code = np.array([[0.9, 0.2, 0.4, 0.1], [0.9, 0.6, 0.7, 0.1]])
    said = np.array([[CODE, MACHINE, UNKNOWN, MACHINE], [CODE, UNKNOWN, CODE, MACHINE]])
    inside = np.array([[True, False, True, True], [True, True, False, True]])
    outside = np.array([[False, False, True, False], [False, False, False, False]])
    given = Verdicts(np.stack([code, 1 - code], axis=2), said, inside, outside)
    found = figures(given, labels, np.array(list("abcd")))
    values = {name: value for name, (value, _, _) in found.items()}
    assert values == {
        "accuracy": 6 / 8,
        "code precision": 3 / 4, "code recall": 3 / 4, "machine precision": 3 / 4, "machine recall": 3 / 4,
        "sure code precision": 2 / 3, "sure code recall": 2 / 4,
        "sure machine precision": 2 / 3, "sure machine recall": 2 / 4,
        "decided rightly": 4 / 8, "unknown": 2 / 8, "outside": 1 / 8, "coverage": 6 / 8,
        "brier": pytest.approx(2 * (0.1**2 * 4 + 0.8**2 + 0.4**2 * 2 + 0.7**2) / 8),
    }  # fmt: skip
    assert all(low <= value <= high for value, low, high in found.values())
    assert found["accuracy"][1] < 0.75 < found["accuracy"][2]
    together = figures(given, labels, np.array(list("aaaa")))
    assert together["accuracy"] == (0.75, 0.75, 0.75)  # one change: nothing to resample


def test_differences_are_those_of_the_same_runs() -> None:
    labels = np.array([CODE, CODE, MACHINE, MACHINE])
    code = np.array([[0.9, 0.2, 0.4, 0.1]])
    nowhere = np.zeros((1, 4), bool)
    first = Verdicts(np.stack([code, 1 - code], axis=2), np.array([[CODE, CODE, MACHINE, MACHINE]]), ~nowhere, nowhere)
    said = np.array([[CODE, MACHINE, UNKNOWN, MACHINE]])
    second = Verdicts(np.stack([1 - code, code], axis=2), said, nowhere, nowhere)
    less = {name: value for name, (value, _, _) in differences(first, second, labels, np.array(list("abcd"))).items()}
    brier = np.array([0.1, 0.8, 0.4, 0.1]) ** 2 - np.array([0.9, 0.2, 0.6, 0.9]) ** 2
    assert less == {
        "accuracy": 2 / 4, "brier": pytest.approx(2 * brier.mean()),
        "decided rightly": 2 / 4, "unknown": -1 / 4, "coverage": 1.0,
    }  # fmt: skip
    value, low, high = differences(first, first, labels, np.array(list("abcd")))["brier"]
    assert (value, low, high) == (0.0, 0.0, 0.0)


def test_reliability_compares_what_was_said_with_what_was_right() -> None:
    labels = np.array([CODE, CODE, MACHINE, MACHINE])
    code = np.array([[0.9, 0.4, 0.3, 0.2]])
    said, inside, outside = np.zeros((1, 4), int), np.ones((1, 4), bool), np.zeros((1, 4), bool)
    found = Verdicts(np.stack([code, 1 - code], axis=2), said, inside, outside)
    low, high = reliability(found, labels, bins=2)
    assert low == pytest.approx((2, 0.65, 0.5))
    assert high == pytest.approx((2, 0.85, 1.0))


def test_a_base_rate_is_no_verdict() -> None:
    labels = np.array([CODE, MACHINE, MACHINE] * 12)
    inputs = np.zeros((36, 1, 1), np.float32)
    learned, dev, held = np.arange(12), np.arange(12, 30), np.arange(30, 36)
    fold = Fold(learned, dev, held, inputs, np.ones(36, np.int32), ("usr",))
    found = verdicts_by(by_base_rate, [(0, fold)], labels, ANY, 0.9)
    assert found.probability[0, held].argmax(axis=1).tolist() == [MACHINE] * 6
    assert found.said[0, held].tolist() == [UNKNOWN] * 6  # both classes are too common to be left out
    assert found.inside[0, held].all()


def test_a_held_out_run_unlike_the_others_has_no_verdict() -> None:
    labels = np.array([CODE, MACHINE] * 18)
    inputs = np.random.default_rng(0).uniform(0, 1, (36, 1, 1)).astype(np.float32)
    learned, dev, held = np.arange(12), np.arange(12, 30), np.arange(30, 36)
    inputs[33] = 20.0
    fold = Fold(learned, dev, held, inputs, np.ones(36, np.int32), ("usr",))

    def sure(fold: Fold, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        right = np.eye(2)[labels] * 0.8 + 0.1
        return right[fold.dev], right[fold.held]

    found = verdicts_by(sure, [(0, fold)], labels, ANY, 0.9)
    assert found.said[0, held].tolist() == [CODE, MACHINE, CODE, UNKNOWN, CODE, MACHINE]
    assert np.flatnonzero(found.outside).tolist() == [33]
    without = verdicts_by(sure, [(0, fold)], labels, ANY, 0.9, outside=False)
    assert without.said[0, 33] == MACHINE
