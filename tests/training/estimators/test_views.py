from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition
from ciml.tensorflow import load_tensorflow
from ciml.training.conversion.step import Variables
from ciml.training.estimators.boosted import BoostedViews
from ciml.training.estimators.summaries import STATISTICS, summarise, view_of
from ciml.training.estimators.views import VIEWS, Windows, graph_of, names_of, values_of
from ciml.transforms.examples.prepare import prepare_many
from tests.transforms.samples import corpus

Runs = tuple[np.ndarray, np.ndarray]
SUMMARISED = ("levels", "shapes")
COLUMNS = ("total cpu usage:usr", "load avg:1m", "memory usage:used")
ALLOWED_OPS = Path("serving/server/model/allowed_ops.toml")


@cache
def real(count: int = 40) -> Runs:
    """Return runs of the sample corpus in windows of 5 s."""
    resolved = ResolvedDefinition(
        definition=DatasetDefinition(name="real", sample_interval="5s"),
        columns=COLUMNS,
        features=COLUMNS,
        classes=("a", "b"),
        windows=150,
    )
    inputs, n_windows, _ = prepare_many(corpus(count)[1], resolved)
    return inputs, n_windows


def random_runs(kind: str, windows: int, features: int = 3, runs: int = 60) -> Runs:
    """Return runs of a kind that distinguishes one order of computation from another."""
    rng = np.random.default_rng(windows)
    shape = (runs, windows, features)
    n_windows = rng.integers(1, windows + 1, runs)
    if kind == "gamma":
        inputs = rng.gamma(1.0, 20.0, shape)
    elif kind == "constant":
        inputs = np.broadcast_to(rng.gamma(1.0, 1e9, (runs, 1, features)), shape)
    elif kind == "extreme":
        inputs = rng.choice([0.0, 1.0, -1.0, 1e-37, -3.4e38, 3.4e38, 1e-30, 5e9], shape)
    elif kind == "percentages":
        inputs = np.round(rng.integers(0, 200, shape) / 199 * 100, 2)
    else:  # one of five windows differs, so it is exactly two deviations away from the mean
        is_high = np.arange(windows) % 5 == rng.integers(0, 5, (runs, 1))
        inputs = is_high[:, :, None] * np.round(rng.random((runs, 1, features)) * 9, 1)
        n_windows = np.minimum(np.maximum(n_windows // 5 * 5, 5), windows)
    return inputs.astype(np.float32), n_windows.astype(np.int32)


def numbers(view: str, runs: Runs) -> np.ndarray:
    return summarise(*runs, view) if view in SUMMARISED else values_of(view, *runs)  # type: ignore[arg-type]


@cache
def graph(view: str, windows: int, features: int) -> Callable[..., Any]:
    """Return a function of the graph of a view, as an exported model contains it."""
    tf = load_tensorflow()
    signature = [tf.TensorSpec([None, windows, features], tf.float32), tf.TensorSpec([None], tf.int32)]

    def compute(inputs: Any, n_windows: Any) -> Any:
        if view in SUMMARISED:
            return view_of(inputs, n_windows, view, tf.experimental.numpy)  # type: ignore[arg-type]
        return graph_of(view, inputs, n_windows)  # type: ignore[arg-type]

    function: Callable[..., Any] = tf.function(compute, input_signature=signature).get_concrete_function()
    return function


def by_graph(view: str, runs: Runs) -> np.ndarray:
    tf = load_tensorflow()
    answers: np.ndarray = graph(view, *runs[0].shape[1:])(tf.constant(runs[0]), tf.constant(runs[1])).numpy()
    return answers


def test_names_and_values_of_the_flat_view():
    inputs = np.array([[[1.0, 5.0], [2.0, 6.0]], [[3.0, 7.0], [9.0, 9.0]]], np.float32)
    assert names_of("flat", ["usr", "1m"], 2) == ["usr_0", "usr_1", "1m_0", "1m_1", "n_windows"]
    flat = values_of("flat", inputs, np.array([2, 1], np.int32))
    assert flat.tolist() == [[1.0, 2.0, 5.0, 6.0, 2.0], [3.0, 9.0, 7.0, 9.0, 1.0]]


def test_the_padding_of_windows_is_nan():
    inputs = np.array([[[1.0, 5.0], [0.0, 0.0]]], np.float32)
    windows = values_of("windows", inputs, np.array([1], np.int32))
    np.testing.assert_array_equal(windows, [[[1.0, 5.0], [np.nan, np.nan]]])
    assert names_of("windows", ["usr", "1m"], 2) == ["usr", "1m"]


def _statistics(values: np.ndarray) -> Iterator[float]:
    """Yield the statistics of a column's own windows, by numpy's functions."""
    yield from (values.mean(), values.std())
    yield from np.quantile(values, [0.0, 0.1, 0.5, 0.9, 1.0])
    yield from (values[0], values[-1])
    yield np.abs(np.diff(values)).mean() if len(values) > 1 else 0.0


@pytest.mark.parametrize(
    "make", [real, lambda: random_runs("gamma", 9), lambda: random_runs("constant", 1)], ids=["real", "random", "one"]
)
def test_a_summary_has_the_statistics_of_the_runs_own_windows(make: Callable[[], Runs]):
    runs = make()
    expected = []
    for run, count in zip(*runs, strict=True):
        own = run[:count].astype(np.float64)
        expected.append([*(number for column in own.T for number in _statistics(column)), count])
    np.testing.assert_allclose(values_of("summary", *runs), expected, rtol=1e-12, atol=1e-12)
    names = names_of("summary", ["usr", "1m"], 9)
    assert (names[0], names[len(STATISTICS)], names[-1]) == ("usr_mean", "1m_mean", "n_windows")
    assert len(names_of("summary", COLUMNS, 9)) == len(expected[0])


@pytest.mark.parametrize("compute", [numbers, by_graph])
@pytest.mark.parametrize("view", ["windows", "summary", *SUMMARISED])
def test_neither_padding_nor_other_runs_have_an_effect(view: str, compute: Callable[[str, Runs], np.ndarray]):
    inputs, n_windows = random_runs("gamma", 9)
    expected = compute(view, (inputs, n_windows))
    disturbed = np.where(np.arange(9)[:, None] < n_windows[:, None, None], inputs, np.float32(np.nan))
    np.testing.assert_array_equal(compute(view, (disturbed, n_windows)), expected)
    for run in range(10):
        alone = compute(view, (inputs[run : run + 1], n_windows[run : run + 1]))
        np.testing.assert_array_equal(alone[0], expected[run])


KINDS = ("gamma", "constant", "extreme", "percentages", "two deviations")


@pytest.mark.parametrize("view", [*VIEWS, *SUMMARISED])
def test_the_graph_computes_what_numpy_computes(view: str):
    """Sums of 129 and 300 windows are halved; the lengths up to 9 have parts with and without a rest."""
    cases = [real(), *(random_runs(kind, windows) for windows in (1, 2, 9, 129, 300) for kind in KINDS)]
    for runs in cases:
        expected = numbers(view, runs)
        answers = by_graph(view, runs)
        assert answers.dtype == expected.dtype
        # Summaries are rounded to float32: a difference in the last digit of float64 is seen as one of float32.
        tolerance = 2.0**-23 if view in SUMMARISED else 1e-12
        np.testing.assert_allclose(answers, expected, rtol=tolerance, atol=1e-12)


@pytest.mark.parametrize("view", ["summary", *SUMMARISED])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_graph_and_numpy_agree_on_which_numbers_are_undefined(view: str, value: float):
    inputs, n_windows = random_runs("gamma", 9)
    inputs[:, 2, 1] = value
    runs = (inputs, n_windows)
    np.testing.assert_allclose(by_graph(view, runs), numbers(view, runs), rtol=2.0**-23, atol=1e-12)


@pytest.mark.parametrize("compute", [numbers, by_graph])
def test_a_number_of_windows_that_no_run_has_is_limited(compute: Callable[[str, Runs], np.ndarray]):
    inputs, _ = random_runs("gamma", 9, runs=4)
    impossible = compute("summary", (inputs, np.array([-(2**31), 0, 10, 2**31 - 1], np.int32)))
    np.testing.assert_array_equal(impossible, compute("summary", (inputs, np.array([1, 1, 9, 9], np.int32))))


@pytest.mark.parametrize("view", ["summary", *SUMMARISED])
def test_finite_inputs_give_finite_summaries_and_no_infinite_number(view: str):
    for kind in KINDS:
        computed = numbers(view, random_runs(kind, 9))
        assert not np.isinf(computed).any()
        assert view != "summary" or np.isfinite(computed).all()


@pytest.mark.parametrize("view", [*VIEWS, *SUMMARISED])
def test_the_model_server_allows_all_operations_of_a_view(view: str):
    allowed = {name for names in tomllib.loads(ALLOWED_OPS.read_text()).values() for name in names}
    definition = graph(view, 150, 3).graph.as_graph_def()  # type: ignore[attr-defined]
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    assert {node.op for node in nodes} - allowed == set()


#: Of the sample runs. They change only with a rule that experiments depend on.
DIGESTS = {"levels": "64f9bfac05e1d4f2", "shapes": "f598a65e11b08746"}


@pytest.mark.parametrize("view", SUMMARISED)
def test_the_summaries_of_the_sample_runs_stay_as_they_are(view: str):
    computed = numbers(view, real())
    without_noise = np.where(np.abs(computed) < 1e-12, np.float32(0), computed)
    assert hashlib.sha256(without_noise.tobytes()).hexdigest()[:16] == DIGESTS[view]


def test_the_graph_of_an_ensemble_predicts_as_its_members_do():
    """For runs that were learned, unseen ones of one window to 150, and extreme values."""
    tf = load_tensorflow()
    inputs, n_windows = real()
    learned = Windows(inputs, n_windows)
    labels = np.arange(len(inputs)) % 3
    parameters = {"max_iter": 8, "max_features": 0.3, "min_samples_leaf": 2}
    ensemble = BoostedViews({"levels": 2, "shapes": 1}, 0.7, parameters, seed=1).fit(learned, labels)
    probabilities = ensemble.graph(Variables())
    signature = [tf.TensorSpec([None, *inputs.shape[1:]], tf.float32), tf.TensorSpec([None], tf.int32)]
    function = tf.function(probabilities, input_signature=signature)
    for runs in (learned, *(random_runs(kind, 150) for kind in KINDS)):
        expected = ensemble.predict_proba(Windows(*runs))
        answers = function(tf.constant(runs[0]), tf.constant(runs[1])).numpy()
        np.testing.assert_allclose(answers, expected, rtol=0, atol=1e-9)
        assert len(np.unique(expected, axis=0)) > 1
