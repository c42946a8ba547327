"""Calibrators: a known miscalibration is found, the order stays, rows sum to 1, and the graph says the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ciml.training.calibration.calibrators import (
    ISOTONIC_CLASS_RUNS,
    ISOTONIC_RUNS,
    LEAST,
    Calibrator,
    Isotonic,
    Temperature,
    calibrator_of,
    fit_calibrator,
    log_loss,
)
from tests.tier import tries
from tests.training.calibration.scores import expected_error, made_up


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_temperature_of_a_known_miscalibration_is_found(temperature: float, classes: int) -> None:
    said, labels, _ = made_up(4000, temperature, classes=classes)
    fitted = fit_calibrator(said, labels, "temperature")
    assert isinstance(fitted, Temperature)
    assert fitted.temperature == pytest.approx(temperature, rel=0.12)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_an_overconfident_model_is_calibrated_on_runs_that_were_not_fitted(method: Any) -> None:
    said, labels, _ = made_up(3000, 3.0, seed=1)
    fresh, fresh_labels, fresh_true = made_up(20_000, 3.0, seed=2)
    calibrated = fit_calibrator(said, labels, method).apply(fresh)
    assert expected_error(fresh, fresh_labels) > 0.1
    assert expected_error(calibrated, fresh_labels) < 0.025
    assert log_loss(calibrated, fresh_labels) < log_loss(fresh, fresh_labels) - 0.2
    assert np.abs(calibrated - fresh_true).mean() < 0.03


def test_the_method_follows_from_the_number_of_runs_and_of_each_class() -> None:
    said, labels, _ = made_up(ISOTONIC_RUNS, 2.0)
    assert fit_calibrator(said, labels).method == "isotonic"
    assert fit_calibrator(said[1:], labels[1:]).method == "temperature"
    rare = np.zeros_like(labels)
    rare[: ISOTONIC_CLASS_RUNS - 1] = 1
    assert fit_calibrator(said, rare).method == "temperature"
    assert fit_calibrator(said, np.where(np.arange(ISOTONIC_RUNS) < ISOTONIC_CLASS_RUNS, 1, 0)).method == "isotonic"


def test_few_runs_that_are_all_right_or_all_wrong_make_no_extreme_temperature() -> None:
    said = np.tile(np.array([[0.99, 0.01]], np.float32), (5, 1))
    for labels, low, high in ((np.zeros(5, np.int64), 0.5, 1), (np.ones(5, np.int64), 2, 15)):
        fitted = fit_calibrator(said, labels, "temperature")
        assert isinstance(fitted, Temperature)
        assert low < fitted.temperature < high


def test_two_answers_that_are_surely_wrong_leave_the_others_certain() -> None:
    said = np.array([[0.0, 1.0]] * 2 + [[1.0, 0.0]] * 4 + [[0.03, 0.97]] * 6 + [[0.98, 0.02]] * 6, np.float32)
    labels = np.array([0] * 2 + [0] * 4 + [1] * 6 + [0] * 6)
    calibrated = fit_calibrator(said, labels, "temperature").apply(said)
    assert calibrated[:2, 0].tolist() == pytest.approx([1 / 38] * 2)
    assert calibrated[2:].max(axis=1).min() > 0.85


def test_a_temperature_of_an_earlier_version_has_no_doubt() -> None:
    assert calibrator_of({"method": "temperature", "temperature": 2.0}) == Temperature(2.0)
    assert calibrator_of(Temperature(2.0, 0.1).to_asset()) == Temperature(2.0, 0.1)
    for doubt in (1.0, -0.1, "0.1"):
        with pytest.raises(ValueError, match="doubt"):
            calibrator_of({"method": "temperature", "temperature": 2.0, "doubt": doubt})


def test_an_isotonic_line_never_says_0_or_1() -> None:
    said = np.stack([np.linspace(1, 0, 50), np.linspace(0, 1, 50)], axis=1).astype(np.float32)
    calibrated = fit_calibrator(said, (np.arange(50) >= 25).astype(np.int64), "isotonic").apply(said)
    assert calibrated.min() == np.float32(1 / 52)
    constant = np.full((50, 2), 0.5, np.float32)
    labels = (np.arange(50) < 10).astype(np.int64)
    np.testing.assert_allclose(fit_calibrator(constant, labels, "isotonic").apply(said), [[0.8, 0.2]] * 50, rtol=1e-6)


def calibrators() -> st.SearchStrategy[Calibrator]:
    def line(points: list[tuple[float, float]]) -> NDArray[np.float64]:
        x, y = (sorted(each) for each in zip(*points, strict=True))
        return np.array([x, y], np.float64).T

    point = st.tuples(st.floats(0, 1, width=32).map(lambda each: max(each, LEAST)), st.floats(0.001, 0.999))
    lines = st.lists(point, min_size=2, max_size=8, unique_by=lambda each: each[0]).map(line)
    temperature = st.tuples(st.floats(0.05, 20), st.floats(0, 0.5)).map(lambda pair: Temperature(*pair))
    return temperature | st.tuples(lines, lines, lines).map(Isotonic)


def rows() -> st.SearchStrategy[NDArray[np.float32]]:
    """Probabilities float32 [n, 3] as a softmax in float32 gives them, with zeros and ones."""
    weight = st.sampled_from([0.0, 1e-38, 1e-30, 1.0]) | st.floats(0, 1, width=32)
    row = st.tuples(weight, weight, weight).filter(lambda each: sum(each) > 1e-6)
    return st.lists(row, min_size=1, max_size=6).map(
        lambda found: (np.array(found, np.float32) / np.sum(found, axis=1, keepdims=True)).astype(np.float32)
    )


@settings(max_examples=tries(150))
@given(calibrators(), rows())
def test_rows_sum_to_1_the_order_of_classes_stays_and_the_graph_gives_the_same(
    calibrator: Calibrator, given_rows: NDArray[np.float32]
) -> None:
    import tensorflow as tf

    found = calibrator.apply(given_rows)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(axis=1, dtype=np.float64), 1, atol=3e-7)
    in_graph = calibrator.graph(tf.constant(given_rows))
    assert in_graph.dtype == tf.float32
    np.testing.assert_array_max_ulp(in_graph.numpy(), found, maxulp=1)
    if calibrator.method == "temperature":
        for before, after in zip(given_rows, found, strict=True):
            for one, other in ((0, 1), (0, 2), (1, 2)):
                assert (after[one] - after[other]) * np.sign(before[one] - before[other]) >= 0
                assert before[one] != before[other] or after[one] == after[other]
