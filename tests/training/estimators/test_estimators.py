from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ciml.errors import CimlError
from ciml.tensorflow import load_tensorflow
from ciml.training.estimators import ESTIMATORS, Rows, check_experiment, fit
from ciml.training.estimators.base import class_weights
from ciml.training.experiment import Experiment
from tests.training.networks import build_model

L, F = 12, 3


#: Parameters that make an estimator fast.
SMALL = {
    "random_forest": {"n_estimators": 30},
    "hist_gradient_boosting": {"max_iter": 20},
    "boosted_summaries": {"max_iter": 20},
}


def experiment(name: str, **keys: Any) -> Experiment:
    small: dict[str, Any] = {"parameters": SMALL.get(name, {})}
    if ESTIMATORS[name].reports_epochs:
        small = {"hidden_layers": (8,), "epochs": 40, "learning_rate": 0.02, "l2": 0.0, "batch_size": 16}
    return Experiment.from_json({"estimator": name, **small, **keys})


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Return runs of 3 to 12 windows. Only runs of class 1 have an outlier window, at any position."""
    rng = np.random.default_rng(0)
    n = 120
    n_windows = rng.integers(3, L + 1, n).astype(np.int32)
    labels = np.arange(n) % 2
    inputs = rng.normal(0, 0.1, (n, L, F)).astype(np.float32)
    inputs[np.arange(n), rng.integers(0, n_windows), 0] += labels * 2.0
    inputs[np.arange(L) >= n_windows[:, None]] = -0.3  # zeros, normalised
    return Rows(inputs, n_windows, labels)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.whole if name in ("cnn", "gru") else ()) for name in sorted(ESTIMATORS)],
)
def test_each_learns_answers_in_probabilities_and_follows_from_the_seed(rows: Rows, name: str):
    fitted, again = (fit(experiment(name), rows, None, 3) for _ in range(2))
    answers = fitted.predict(rows.inputs, rows.n_windows)
    assert answers.shape == (120, 3)  # the third class was never seen
    np.testing.assert_allclose(answers.sum(axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(answers, again.predict(rows.inputs, rows.n_windows))
    assert (answers.argmax(axis=1) == rows.labels).mean() > 0.8
    assert answers[:, 2].max() < 0.5
    assert fitted.to_json()["runs"] == 120
    assert fitted.predict(rows.inputs[:0], rows.n_windows[:0]).shape == (0, 3)


@pytest.mark.parametrize(("name", "masks"), [("cnn", True), ("gru", True), ("dnn", False)])
def test_estimators_over_time_ignore_padding(rows: Rows, name: str, masks: bool):
    model = build_model(experiment(name, hidden_layers=(6, 6)), L, F, 2)
    other = rows.inputs.copy()
    other[np.arange(L) >= rows.n_windows[:, None]] = 7.0
    one, two = (np.asarray(model({"inputs": each, "n_windows": rows.n_windows})) for each in (rows.inputs, other))
    moved = rows.inputs + np.float32(0.5)
    three = np.asarray(model({"inputs": moved, "n_windows": rows.n_windows}))
    assert (np.abs(one - two).max() < 1e-6) == masks
    assert np.abs(one - three).max() > 1e-4


@pytest.mark.parametrize("name", ["cnn", "gru"])
def test_a_network_over_time_is_a_graph_that_can_be_exported_and_answers_a_run_without_windows(rows: Rows, name: str):
    tf = load_tensorflow()
    model = build_model(experiment(name), L, F, 2)

    @tf.function(input_signature=[tf.TensorSpec([None, L, F], tf.float32), tf.TensorSpec([None], tf.int32)])
    def serve(inputs: Any, n_windows: Any) -> Any:
        given = {"inputs": inputs, "n_windows": n_windows}
        return model.stateless_call(model.trainable_variables, model.non_trainable_variables, given, training=False)[0]

    n_windows = np.where(np.arange(120) == 5, 0, rows.n_windows).astype(np.int32)
    served, direct = serve(rows.inputs, n_windows), model({"inputs": rows.inputs, "n_windows": n_windows})
    assert np.isfinite(served).all()
    np.testing.assert_allclose(served, direct, atol=1e-6)


def test_weights_of_classes_are_scikits_and_help_the_rare_one(rows: Rows):
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 2], [90, 10])
    want = compute_class_weight("balanced", classes=np.array([0, 2]), y=labels)
    np.testing.assert_allclose(class_weights(np.bincount(labels))[[0, 2]], want, rtol=1e-6)
    assert class_weights(np.bincount(labels))[1] == 0.0
    rare = rows.take(np.flatnonzero((rows.labels == 0) | (np.arange(120) < 12)))
    for name in ("dnn", "svm", "random_forest", "hist_gradient_boosting"):
        plain, weighed = (
            fit(experiment(name, class_weights=kind), rare, None, 2).predict(rare.inputs, rare.n_windows)
            for kind in ("none", "balanced")
        )
        assert np.abs(plain - weighed).max() > 0, name


def test_early_stopping_of_boosting_uses_dev(rows: Rows):
    dev = Rows(rows.inputs[:40], rows.n_windows[:40], 1 - rows.labels[:40])  # inverted: dev loss never improves
    stopped = fit(experiment("hist_gradient_boosting", early_stopping=2), rows.take(np.arange(40, 120)), dev, 2)
    unstopped = fit(experiment("hist_gradient_boosting"), rows.take(np.arange(40, 120)), None, 2)
    assert stopped.model.n_iter_ < unstopped.model.n_iter_ == 20  # type: ignore[attr-defined]


def test_dev_runs_of_a_class_without_training_runs_do_not_count_as_another_one(rows: Rows):
    learned = rows.take(np.arange(40, 120))
    learned = Rows(learned.inputs, learned.n_windows, learned.labels * 2)  # of the classes 0 and 2
    labels = rows.labels[:40] * 2
    labels[:4] = [1, 3, 1, 3]
    dev = Rows(rows.inputs[:40], rows.n_windows[:40], labels)
    stopping = experiment("hist_gradient_boosting", early_stopping=2)
    both = (dev, dev.take(np.arange(4, 40)))
    answers = [fit(stopping, learned, runs, 4).predict(rows.inputs, rows.n_windows) for runs in both]
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"estimator": "forest"}, "unknown estimator 'forest'; .*; built in are dnn, cnn"),
        ({"estimator": "svm", "hidden_layers": "5"}, "experiment: hidden_layers: not used by estimator svm"),
        ({"estimator": "dnn", "parameters": {"C": 1}}, "experiment: parameters: not used by estimator dnn"),
        ({"estimator": "svm", "parameters": {"c": 1}}, r"svm: .*unexpected keyword argument 'c'"),
        ({"estimator": "svm", "parameters": {"C": -1.0}}, r"svm: The 'C' parameter of .* must be a float in the range"),
        ({"estimator": "random_forest", "parameters": {"random_state": 1}}, "parameters.random_state: use the exp"),
        ({"estimator": "random_forest", "early_stopping": 3}, "early_stopping: not used by estimator random"),
    ],
)
def test_an_invalid_experiment_is_reported_without_data(keys: dict[str, Any], line: str):
    with pytest.raises(CimlError, match=line) as error:
        check_experiment(Experiment.from_json(keys))
    assert "\n" not in str(error.value)


def test_the_originals_svm_is_one_and_few_runs_are_reported(rows: Rows):
    assert Experiment.from_json({"estimator": "tf.contrib.learn.SVM"}).estimator == "svm"
    few = rows.take(np.array([0, 2, 4, 1]))
    with pytest.raises(CimlError, match="svm needs at least two training runs of each class"):
        fit(experiment("svm"), few, None, 2)
    with pytest.raises(CimlError, match="svm needs training runs of at least two classes"):
        fit(experiment("svm"), rows.take(np.array([0, 2])), None, 2)
    beyond = {"bagging_fraction": 2.0, "bagging_freq": 1}
    with pytest.raises(CimlError, match=r"lightgbm:LGBMClassifier: .*bagging_fraction"):
        fit(Experiment(estimator="lightgbm:LGBMClassifier", parameters=beyond), rows, None, 2)
    with pytest.raises(CimlError, match="no training runs"):
        fit(experiment("dnn"), rows.take(np.array([], int)), None, 2)
    with pytest.raises(CimlError, match="hidden_layers: gru needs at least one layer"):
        build_model(experiment("gru", hidden_layers=()), L, F, 2)
