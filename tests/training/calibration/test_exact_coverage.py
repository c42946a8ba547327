"""The number of covered runs has the exact distribution of exchangeable runs: it varies much after few of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import betabinom

from ciml.events.outcomes import CAUSES
from ciml.serving.decimals import shortest_decimals
from ciml.training.calibration.calibrators import fit_calibrator
from ciml.training.calibration.sets import make_rules
from ciml.training.evaluation.candidate import verdict_figures

DRAWS = 400


def exact(calibrated: int, tests: int, coverage: float) -> np.ndarray:
    """Return the probability of each number of covered test runs, float64 [tests + 1], of exchangeable runs.

    The largest ``out`` scores are too unlikely. Given the calibration runs, the share that is covered has a beta
    distribution, so the number is beta-binomial.
    """
    out = int(np.ceil((calibrated + 1) * (1 - coverage) - 1e-9)) - 1
    numbers = np.arange(tests + 1)
    if out <= 0:
        return (numbers == tests).astype(float)
    found: np.ndarray = betabinom.pmf(numbers, tests, calibrated + 1 - out, out)
    return found


@pytest.mark.parametrize(
    ("calibrated", "tests", "coverage"),
    [
        (13, 18, 0.8),
        pytest.param(40, 25, 0.9, marks=pytest.mark.whole),
        (8, 9, 0.9),
    ],
)
def test_the_number_of_covered_runs_is_beta_binomial(calibrated: int, tests: int, coverage: float) -> None:
    chance = np.random.default_rng(1)
    covered = np.zeros(tests + 1)
    expected = exact(calibrated, tests, coverage)
    for _ in range(DRAWS):
        labels = chance.integers(0, 2, calibrated + tests)
        machine = 1 / (1 + np.exp(-chance.normal(2.0 * labels - 1.0, 1.5)))  # as a model may answer
        answers = np.stack([1 - machine, machine], axis=1).astype(np.float32)
        known, held = slice(0, calibrated), slice(calibrated, None)
        shares = fit_calibrator(answers[known], labels[known]).apply(answers)
        rules = make_rules(
            shares[known], labels[known], ["job"] * calibrated, CAUSES, coverage=coverage, calibration={}
        )
        figures = verdict_figures(rules, shortest_decimals(shares[held]), labels[held], ["job"] * tests)
        covered[figures["coverage"]["right"]] += 1 / DRAWS
        assert figures["coverage"]["p"] == pytest.approx(expected[: figures["coverage"]["right"] + 1].sum(), abs=1e-9)
    # The largest distance of two distributions of 400 draws is above 0.086 in one of 200 (Kolmogorov).
    assert np.abs(np.cumsum(covered) - np.cumsum(expected)).max() < 0.086
    assert expected @ np.arange(tests + 1) / tests >= coverage - 1e-9


def test_the_chance_of_a_coverage_is_that_of_all_lists_of_scores_together() -> None:
    """Those of a job, and those of all other jobs, each by class."""
    chance = np.random.default_rng(2)
    labels = np.arange(520) % 2
    jobs = ["large"] * 120 + [f"job{number}" for number in range(100)] + ["large"] * 200 + ["new"] * 100
    machine = 1 / (1 + np.exp(-chance.normal(2.0 * labels - 1.0, 1.5)))
    answers = np.stack([1 - machine, machine], axis=1).astype(np.float32)
    rules = make_rules(answers[:220], labels[:220], jobs[:220], CAUSES, coverage=0.8, calibration={})
    assert {name: len(group.scores) for name, group in rules.groups.items()} == {"": 2, "large": 2}
    figures = verdict_figures(rules, shortest_decimals(answers[220:]), labels[220:], jobs[220:])["coverage"]
    expected = np.ones(1)
    for calibrated, tests in ((60, 100), (60, 100), (50, 50), (50, 50)):
        expected = np.convolve(expected, exact(calibrated, tests, 0.8))
    assert 0.01 < figures["p"] < 0.99
    assert figures["p"] == pytest.approx(expected[: figures["right"] + 1].sum(), abs=1e-9)


def test_the_chance_of_a_coverage_is_that_of_the_first_run_of_each_change() -> None:
    chance = np.random.default_rng(3)
    labels = np.arange(140) % 2
    machine = 1 / (1 + np.exp(-chance.normal(2.0 * labels - 1.0, 1.5)))
    answers = shortest_decimals(np.stack([1 - machine, machine], axis=1).astype(np.float32))
    rules = make_rules(answers[:80], labels[:80], ["job"] * 80, CAUSES, coverage=0.8, calibration={})
    held, first = slice(80, None), slice(80, None, 6)
    changes = np.repeat(np.arange(10), 6)
    found = verdict_figures(rules, answers[held], labels[held], ["job"] * 60, changes=changes)["coverage"]
    expected = verdict_figures(rules, answers[first], labels[first], ["job"] * 10)["coverage"]
    assert (found["runs"], expected["runs"], found["p"]) == (60, 10, expected["p"])
    assert found["p"] != verdict_figures(rules, answers[held], labels[held], ["job"] * 60)["coverage"]["p"]
