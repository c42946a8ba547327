from __future__ import annotations

import numpy as np
import pytest

from ciml.errors import CimlError
from ciml.training.estimators import Rows, check_experiment, fit
from ciml.training.estimators.summaries import View, columns_of, summarise
from ciml.training.experiment import Experiment


def of_one(view: View, *values: float, length: int = 12) -> np.ndarray:
    inputs = np.zeros((1, length, 1), np.float32)
    inputs[0, : len(values), 0] = values
    return summarise(inputs, np.array([len(values)], np.int32), view)[0]


def test_levels_are_those_of_numpy_over_the_runs_own_windows():
    values = [3.0, 0.5, 0.0, 0.0, 8.0, 1.25, 7.0]
    levels = of_one("levels", *values)
    steps = np.diff(values)
    expected = [
        *np.quantile(values, [0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1]),
        *(np.mean(values), np.std(values), values[0], values[-1]),
        *(np.abs(steps).mean(), np.sqrt((steps**2).mean())),
        *(2 / 7, 1 / 6, 0.5, 0.5),  # zeros, unmoved, smallest above zero, smallest step
    ]
    np.testing.assert_allclose(levels, expected, rtol=1e-6)


def test_ratios_stay_when_the_whole_machine_is_larger():
    rng = np.random.default_rng(1)
    inputs = (50 + rng.random((4, 20, 2)) * 100).astype(np.float32)
    n_windows = np.full(4, 20, np.int32)
    one, larger = (summarise(inputs * factor, n_windows, "levels")[:, -3:] for factor in (1, 4))
    means = inputs.mean(axis=1)
    np.testing.assert_allclose(one[:, 0], np.log(means[:, 0] / means[:, 1]), atol=1e-4)
    np.testing.assert_allclose(one, larger, atol=1e-4)


def test_ticks_and_tasks_are_recovered_from_recorded_numbers():
    ticks = np.arange(40, 80)
    shapes = of_one("shapes", *np.round(ticks / 199 * 100, 2), length=40)
    counts = shapes[-16:]
    assert counts.argmax() == 1  # 199
    assert counts[1] == pytest.approx(1 - 199 * 0.0001, abs=1e-6)
    load, decay, recorded = 0.0, np.exp(-5 / 60), []
    for _ in range(6):
        load = load * decay + 3.0 * (1 - decay)  # three tasks run all the time
        recorded += [load, load]
    tasks = of_one("shapes", *recorded)[-28:-16]
    np.testing.assert_allclose(tasks[:8], 3.0, rtol=1e-5)  # quantiles and mean
    assert tasks[9:11].tolist() == pytest.approx([5 / 11, 1.0])


def test_numbers_that_a_run_is_too_short_for_are_nan_and_none_is_infinite():
    levels, shapes = of_one("levels", 4.0), of_one("shapes", 4.0)
    assert not np.isinf([*levels, *shapes]).any()
    assert np.isnan(levels[-1])  # the smallest step
    assert (levels.size, shapes.size) == (19, 77)
    assert summarise(np.zeros((0, 5, 2), np.float32), np.zeros(0, np.int32), "levels").shape == (0, 41)


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ({"levels": -1}, "experiment: parameters.levels: invalid number of members -1; use 0 to 100"),
        ({"levels": 101}, "experiment: parameters.levels: invalid number of members 101; use 0 to 100"),
        ({"shapes": True}, "experiment: parameters.shapes: invalid number of members True; use 0 to 100"),
        ({"levels": 0, "shapes": 0}, "experiment: parameters: levels and shapes are both 0: the ensemble has no"),
        ({"columns": 0}, "experiment: parameters.columns: invalid share 0; use more than 0 and at most 1"),
        ({"columns": 1.01}, "experiment: parameters.columns: invalid share 1.01"),
        ({"columns": True}, "experiment: parameters.columns: invalid share True"),
        ({"trees": 3}, "boosted_summaries: .*unexpected keyword argument 'trees'"),
    ],
)
def test_a_wrong_ensemble_is_rejected(parameters: dict[str, float], line: str):
    with pytest.raises(CimlError, match=line):
        check_experiment(Experiment(estimator="boosted_summaries", parameters=parameters))


def test_it_distinguishes_machines_for_any_length_of_runs():
    """The same work on machines of 199 and of 200 ticks a second, for 20 to 60 s each."""
    rng = np.random.default_rng(2)
    labels, n_windows = np.arange(120) % 2, rng.integers(20, 61, 120).astype(np.int32)
    ticks = np.where(labels == 0, 199, 200)[:, None]
    inputs = np.round(rng.integers(2, 180, (120, 60)) / ticks * 100, 2).astype(np.float32)[:, :, None]
    rows = Rows(inputs, n_windows, labels)
    experiment = Experiment(estimator="boosted_summaries", parameters={"max_iter": 20})
    fitted = fit(experiment, rows.take(np.arange(80)), None, 2)
    answers = fitted.predict(inputs[80:], n_windows[80:])
    assert (answers.argmax(axis=1) == labels[80:]).all()


def test_a_member_uses_its_own_columns():
    inputs, n_windows = np.random.default_rng(3).random((5, 10, 4)).astype(np.float32), np.full(5, 10, np.int32)
    for view in ("levels", "shapes"):
        summary, of = summarise(inputs, n_windows, view), columns_of(view, 4)
        assert len(of) == summary.shape[1]
        part = summarise(inputs[:, :, [1, 3]], n_windows, view)
        np.testing.assert_array_equal(summary[:, np.isin(of, [1, 3]).all(axis=1)], part)
