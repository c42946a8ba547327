"""Converted estimators compute what their libraries compute; others are rejected by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import discriminant_analysis, ensemble, linear_model, neighbors, svm, tree

from ciml.serving.server.model.graph import check_ops
from ciml.tensorflow import load_tensorflow
from ciml.training.conversion.functions import CONVERTERS, convert
from ciml.training.conversion.step import ConversionError, Variables
from tests.tier import part

COLUMNS = 5


def _xgboost(**parameters: Any) -> Any:
    from xgboost import XGBClassifier

    return XGBClassifier(n_estimators=12, max_depth=4, n_jobs=1, **parameters)


def _xgboost_forest() -> Any:
    from xgboost import XGBRFClassifier

    return XGBRFClassifier(n_estimators=12, max_depth=4, n_jobs=1)


def _lightgbm(**parameters: Any) -> Any:
    from lightgbm import LGBMClassifier

    return LGBMClassifier(n_estimators=12, verbose=-1, n_jobs=1, **parameters)


LINEAR: dict[str, Callable[[], Any]] = {
    "logistic regression": linear_model.LogisticRegression,
    "logistic regression with a chosen penalty": partial(linear_model.LogisticRegressionCV, Cs=3, cv=2),
    "stochastic gradient of the logistic loss": partial(linear_model.SGDClassifier, loss="log_loss", random_state=1),
    "stochastic gradient of Huber's loss": partial(linear_model.SGDClassifier, loss="modified_huber", random_state=1),
    "stochastic gradient of the hinge": partial(linear_model.SGDClassifier, random_state=1),
    "ridge": linear_model.RidgeClassifier,
    "ridge with a chosen penalty": linear_model.RidgeClassifierCV,
    "perceptron": partial(linear_model.Perceptron, random_state=1),
    "linear support vectors": partial(svm.LinearSVC, random_state=1),
    "linear discriminant": discriminant_analysis.LinearDiscriminantAnalysis,
    "linear discriminant of eigenvectors": partial(
        discriminant_analysis.LinearDiscriminantAnalysis, solver="eigen", shrinkage=0.2
    ),
    "quadratic discriminant": partial(discriminant_analysis.QuadraticDiscriminantAnalysis, reg_param=0.1),
}
TREES: dict[str, Callable[[], Any]] = {
    "tree": partial(tree.DecisionTreeClassifier, random_state=1),
    "tree of random splits": partial(tree.ExtraTreeClassifier, random_state=1),
    "tree without a split": partial(tree.DecisionTreeClassifier, min_samples_leaf=1000),
    "forest": partial(ensemble.RandomForestClassifier, 12, random_state=1),
    "forest of random splits": partial(ensemble.ExtraTreesClassifier, 12, random_state=1),
    "histogram boosting": partial(ensemble.HistGradientBoostingClassifier, max_iter=12, random_state=1),
    "gradient boosting from zero": partial(ensemble.GradientBoostingClassifier, n_estimators=12, init="zero"),
    "XGBoost": _xgboost,
    "XGBoost without weights of trees": partial(_xgboost, booster="dart", rate_drop=0.5),
    "XGBoost with zeros missing": partial(_xgboost, missing=0),
    "XGBoost forest": _xgboost_forest,
    "LightGBM": _lightgbm,
    "LightGBM with zeros missing": partial(_lightgbm, zero_as_missing=True),
    "LightGBM without missing values": partial(_lightgbm, use_missing=False),
    "LightGBM forest": partial(_lightgbm, boosting_type="rf", bagging_freq=1, bagging_fraction=0.5),
    "LightGBM with dropped trees": partial(_lightgbm, boosting_type="dart"),
}
CLASSIFIERS = {**LINEAR, **TREES}
#: They accept NaN.
WITH_MISSING = {name for name in TREES if "gradient boosting" not in name and name != "tree of random splits"}
#: XGBoost itself adds in float32; all others agree to the last digits of float64.
BOUNDS = {name: 3e-7 for name in TREES if name.startswith("XGBoost")}
BOUND = 1e-12


def training_data(classes: int, missing: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return rows float64 [240, COLUMNS] with repeated values, zeros and, if asked for, NaN; and their labels."""
    random = np.random.default_rng(classes)
    rows = random.normal(size=(240, COLUMNS))
    rows[:, 3] = np.round(rows[:, 3])
    rows[random.random(240) < 0.3, 4] = 0
    labels = (rows[:, 0] + rows[:, 1] > 0).astype(int)
    if classes == 3:
        labels[rows[:, 2] > 0.7] = 2
    if missing:
        rows[random.random(rows.shape) < 0.2] = np.nan
    return rows, labels


def probes(missing: bool) -> np.ndarray:
    """Return rows to compare: of usual values, of all magnitudes, of thresholds hit exactly, and with NaN."""
    random = np.random.default_rng(9)
    usual = random.normal(size=(80, COLUMNS))
    magnitudes = 10.0 ** random.integers(-30, 30, size=(80, COLUMNS))
    rows = np.concatenate([usual, usual * magnitudes, np.round(usual), training_data(3, False)[0][:40], usual[:1] * 0])
    if missing:
        rows[random.random(rows.shape) < 0.2] = np.nan
        rows = np.concatenate([rows, np.full((1, COLUMNS), np.nan)])
    return rows


def fitted(make: Callable[[], Any], classes: int = 3, missing: bool = False) -> Any:
    rows, labels = training_data(classes, missing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make().fit(rows, labels)


def graph(estimator: Any, method: str) -> tuple[Any, Variables]:
    """Return the converted method as a ``tf.function``, and its variables."""
    tf = load_tensorflow()
    variables = Variables()
    function = convert(estimator, method, variables)
    signature = [tf.TensorSpec([None, estimator.n_features_in_], tf.float64)]
    return tf.function(function, input_signature=signature, autograph=False), variables


def methods(estimator: Any) -> Iterator[str]:
    yield from (name for name in ("predict_proba", "decision_function", "predict") if hasattr(estimator, name))


def assert_equal(estimator: Any, method: str, rows: np.ndarray, bound: float) -> None:
    expected = np.asarray(getattr(estimator, method)(rows), np.float64).reshape(len(rows), -1)
    function, _ = graph(estimator, method)
    computed = function(rows).numpy()
    assert computed.shape == expected.shape
    np.testing.assert_allclose(computed, expected, rtol=0 if method == "predict_proba" else bound, atol=bound)
    np.testing.assert_allclose(function(rows[:1]).numpy(), computed[:1], rtol=bound, atol=bound)
    assert function(rows[:0]).shape == (0, expected.shape[1])


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", part(list(CLASSIFIERS), 0))
def test_a_converted_classifier_computes_what_the_library_computes(name: str, classes: int):
    for missing in {False, name in WITH_MISSING}:
        estimator = fitted(CLASSIFIERS[name], classes, missing)
        for method in methods(estimator):
            assert_equal(estimator, method, probes(name in WITH_MISSING), BOUNDS.get(name, BOUND))


def test_boosting_uses_the_trees_up_to_its_best_iteration():
    rows, labels = training_data(3, False)
    others = np.random.default_rng(0).permutation(labels)
    early = _xgboost(early_stopping_rounds=2).fit(rows, labels, eval_set=[(rows, others)], verbose=False)
    assert early.best_iteration + 1 < early.get_booster().num_boosted_rounds()
    assert_equal(early, "predict_proba", probes(True), 3e-7)


@pytest.mark.parametrize("name", ["forest", "LightGBM", "quadratic discriminant"])
def test_a_saved_model_computes_the_same_and_holds_only_operations_that_the_server_allows(name: str, tmp_path: Path):
    from tensorflow.core.protobuf import saved_model_pb2

    tf = load_tensorflow()
    estimator = fitted(CLASSIFIERS[name])
    module = tf.Module()
    module.serve, variables = graph(estimator, "predict_proba")
    module.variables_ = variables.all
    tf.saved_model.save(module, str(tmp_path), signatures=module.serve)
    rows = probes(False)
    (computed,) = tf.saved_model.load(str(tmp_path)).signatures["serving_default"](tf.constant(rows)).values()
    np.testing.assert_allclose(computed.numpy(), estimator.predict_proba(rows), rtol=0, atol=BOUND)
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((tmp_path / "saved_model.pb").read_bytes())
    check_ops(saved.meta_graphs[0])
    assert (tmp_path / "saved_model.pb").stat().st_size < 100_000


class _Subclass(linear_model.LogisticRegression):
    """It could override any method."""


def _categories() -> Any:
    rows, labels = training_data(3, False)
    rows = np.abs(np.round(rows))
    return _lightgbm(min_data_per_group=1, cat_smooth=0).fit(rows[:, 3:4], labels, categorical_feature=[0])


def _histograms_of_categories() -> Any:
    rows, labels = training_data(3, False)
    boosting = ensemble.HistGradientBoostingClassifier(max_iter=2, categorical_features=[3])
    return boosting.fit(np.abs(np.round(rows)), labels)


REJECTED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "another class": (
        lambda: fitted(neighbors.KNeighborsClassifier),
        "predict_proba",
        "KNeighborsClassifier cannot be converted to TensorFlow operations; choose an estimator that can, see "
        "docs/training.md",
    ),
    "a subclass": (lambda: fitted(_Subclass), "predict_proba", "_Subclass cannot be converted"),
    "no probabilities": (
        lambda: fitted(linear_model.RidgeClassifier),
        "predict_proba",
        "RidgeClassifier cannot be converted to TensorFlow operations: it has no method predict_proba;",
    ),
    "categories of LightGBM": (_categories, "predict_proba", "LGBMClassifier .*: it splits categories;"),
    "linear trees": (
        lambda: fitted(partial(_lightgbm, linear_tree=True)),
        "predict_proba",
        "LGBMClassifier .*: its leaves are linear models;",
    ),
    "categories of scikit-learn": (
        _histograms_of_categories,
        "predict_proba",
        "HistGradientBoostingClassifier .*: it has categorical features;",
    ),
    "a linear booster": (
        lambda: fitted(partial(_xgboost, booster="gblinear")),
        "predict_proba",
        "XGBClassifier .*: its booster is gblinear;",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_what_has_no_conversion_is_rejected_by_name(case: str):
    make, method, message = REJECTED[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator = make()
    with pytest.raises(ConversionError, match=message):
        convert(estimator, method, Variables())


def test_every_class_of_the_table_is_public_and_documented():
    import importlib

    document = (Path(__file__).parents[3] / "docs/training.md").read_text()
    for name, (module, _) in CONVERTERS.items():
        assert hasattr(importlib.import_module(module), name)
        assert f"`{name}`" in document, name
