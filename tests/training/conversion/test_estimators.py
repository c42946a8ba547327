"""Converted estimators compute what their libraries compute; others are rejected by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import (
    calibration,
    compose,
    decomposition,
    discriminant_analysis,
    dummy,
    ensemble,
    feature_selection,
    frozen,
    impute,
    linear_model,
    model_selection,
    multiclass,
    naive_bayes,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    svm,
    tree,
)

from ciml.serving.server.model.graph import check_ops
from ciml.tensorflow import load_tensorflow
from ciml.training.conversion.functions import CONVERTERS, convert
from ciml.training.conversion.step import ConversionError, Variables, normalised
from tests.tier import part
from tests.training.conversion.comparison import (
    BOUND,
    COLUMNS,
    assert_equal,
    fitted,
    graph,
    methods,
    probes,
    training_data,
)


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
    "LightGBM with a steep sigmoid and without missing values": partial(_lightgbm, use_missing=False, sigmoid=2.0),
    "LightGBM forest": partial(_lightgbm, boosting_type="rf", bagging_freq=1, bagging_fraction=0.5),
    "LightGBM with dropped trees": partial(_lightgbm, boosting_type="dart"),
}


def _scaled(estimator: Any) -> Any:
    return pipeline.make_pipeline(preprocessing.StandardScaler(), estimator)


def _network(**parameters: Any) -> Any:
    return _scaled(neural_network.MLPClassifier((8, 4), max_iter=30, random_state=1, **parameters))


OTHERS: dict[str, Callable[[], Any]] = {
    "normal naive Bayes": naive_bayes.GaussianNB,
    "naive Bayes of counts": lambda: pipeline.make_pipeline(preprocessing.Binarizer(), naive_bayes.MultinomialNB()),
    "complement naive Bayes": lambda: pipeline.make_pipeline(preprocessing.Binarizer(), naive_bayes.ComplementNB()),
    "binary naive Bayes": partial(naive_bayes.BernoulliNB, binarize=0.2),
    "binary naive Bayes of bits": lambda: pipeline.make_pipeline(
        preprocessing.Binarizer(), naive_bayes.BernoulliNB(binarize=None)
    ),
    "class shares": dummy.DummyClassifier,
    "most frequent class": partial(dummy.DummyClassifier, strategy="most_frequent"),
    "constant class": partial(dummy.DummyClassifier, strategy="constant", constant=1),
    "network": _network,
    "network of sigmoids": partial(_network, activation="logistic"),
    "network of hyperbolic tangents": partial(_network, activation="tanh"),
    "network without activations": partial(_network, activation="identity"),
    "support vectors": lambda: _scaled(svm.SVC()),
    "support vectors by pairs": lambda: _scaled(svm.SVC(decision_function_shape="ovo")),
    "support vectors with a linear kernel": lambda: _scaled(svm.SVC(kernel="linear")),
    "support vectors with a cubic kernel": lambda: _scaled(svm.SVC(kernel="poly", coef0=0.5)),
    "support vectors with a sigmoid kernel": lambda: _scaled(svm.SVC(kernel="sigmoid", gamma=0.1)),
    "support vectors with a share of errors": lambda: _scaled(svm.NuSVC(nu=0.2)),
}


def _logistic() -> Any:
    return linear_model.LogisticRegression()


def _small_tree() -> Any:
    return tree.DecisionTreeClassifier(max_depth=3, random_state=1)


def _members() -> list[tuple[str, Any]]:
    return [("linear", _logistic()), ("tree", _small_tree())]


def _by_columns() -> Any:
    return compose.ColumnTransformer(
        [
            ("scaled", preprocessing.RobustScaler(), [4, 1]),
            ("same", "passthrough", slice(2, 3)),
            ("none", preprocessing.StandardScaler(), []),
            ("dropped", "drop", [0]),
        ],
        remainder=decomposition.PCA(1),
    )


def _union() -> Any:
    parts = [("same", "passthrough"), ("axes", decomposition.PCA(2)), ("dropped", "drop")]
    return pipeline.FeatureUnion(parts, transformer_weights={"axes": 0.5})


COMPOSED: dict[str, Callable[[], Any]] = {
    "gradient boosting": partial(ensemble.GradientBoostingClassifier, n_estimators=12, random_state=1),
    "gradient boosting from another estimator": lambda: ensemble.GradientBoostingClassifier(
        n_estimators=12, init=_small_tree()
    ),
    "pipeline": lambda: pipeline.Pipeline(
        [
            ("fill", impute.SimpleImputer(add_indicator=True)),
            ("none", "passthrough"),
            ("best", feature_selection.SelectKBest(k=3)),
            ("forest", ensemble.RandomForestClassifier(5, random_state=1)),
        ]
    ),
    "columns": lambda: pipeline.make_pipeline(_by_columns(), _logistic()),
    "union": lambda: pipeline.make_pipeline(_union(), _logistic()),
    "vote": lambda: ensemble.VotingClassifier(_members(), voting="soft"),
    "weighted vote": lambda: ensemble.VotingClassifier([*_members(), ("no", "drop")], voting="soft", weights=[1, 3, 1]),
    "stack": lambda: ensemble.StackingClassifier(_members(), cv=2),
    "stack with the inputs": lambda: ensemble.StackingClassifier(_members(), _small_tree(), cv=2, passthrough=True),
    "stack of labels and scores": lambda: ensemble.StackingClassifier(
        [("labels", linear_model.RidgeClassifier()), ("bits", naive_bayes.BernoulliNB())], _logistic(), cv=2
    ),
    "bag of trees": partial(ensemble.BaggingClassifier, max_features=3, max_samples=20, random_state=1),
    "bag of lines": lambda: ensemble.BaggingClassifier(_logistic(), 4, max_features=3, max_samples=12, random_state=1),
    "bag of labels": lambda: ensemble.BaggingClassifier(linear_model.RidgeClassifier(), 4, random_state=1),
    "adaptive boosting": partial(ensemble.AdaBoostClassifier, n_estimators=12, random_state=1),
    "adaptive boosting of lines": lambda: ensemble.AdaBoostClassifier(_logistic(), n_estimators=4),
    "calibrated by sigmoids": lambda: calibration.CalibratedClassifierCV(svm.LinearSVC(), cv=2),
    "calibrated by lines": lambda: calibration.CalibratedClassifierCV(_small_tree(), method="isotonic", cv=2),
    "calibrated by one line": lambda: calibration.CalibratedClassifierCV(
        linear_model.RidgeClassifier(), method="isotonic", cv=2, ensemble=False
    ),
    "calibrated by a temperature": lambda: calibration.CalibratedClassifierCV(_logistic(), method="temperature", cv=2),
    "calibrated probabilities": lambda: calibration.CalibratedClassifierCV(_small_tree(), method="temperature", cv=2),
    "one against the rest": lambda: multiclass.OneVsRestClassifier(_logistic()),
    "one tree against the rest": lambda: multiclass.OneVsRestClassifier(_small_tree()),
    "grid search": lambda: model_selection.GridSearchCV(_small_tree(), {"max_depth": [1, 2]}, cv=2),
    "random search": lambda: model_selection.RandomizedSearchCV(
        _logistic(), {"C": [0.1, 1]}, n_iter=2, cv=2, random_state=1
    ),
}
CLASSIFIERS = {**LINEAR, **TREES, **OTHERS, **COMPOSED}
#: They accept NaN.
WITH_MISSING = {*TREES, "pipeline"} - {"gradient boosting from zero", "tree of random splits"}
#: Their labels follow other rules than the largest score.
WITHOUT_LABELS = {name for name in CLASSIFIERS if name.startswith(("support vectors", "one "))}
#: XGBoost itself adds in float32; all others agree to the last digits of float64.
BOUNDS = {name: 3e-7 for name in TREES if name.startswith("XGBoost")}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", part(list(CLASSIFIERS), 0, 8))
def test_a_converted_classifier_computes_what_the_library_computes(name: str, classes: int):
    accepts_missing = name in WITH_MISSING
    for missing in {accepts_missing, accepts_missing and classes == 2}:  # learned with missing values, and without
        estimator = fitted(CLASSIFIERS[name], classes, missing)
        for method in methods(estimator):
            if method == "predict" and name in WITHOUT_LABELS:
                with pytest.raises(ConversionError, match="its predict has no conversion"):
                    graph(estimator, method)
                continue
            assert_equal(estimator, method, probes(accepts_missing), BOUNDS.get(name, BOUND))


@pytest.mark.parametrize("name", ["tree", "forest", "XGBoost"])
def test_values_next_to_a_threshold_are_rounded_as_the_library_rounds_them(name: str):
    rows = training_data(3, False)[0]
    estimator = CLASSIFIERS[name]().fit(rows, (rows[:, 0] > 0.5).astype(int))
    border = np.sort(rows[:, 0])[np.searchsorted(np.sort(rows[:, 0]), 0.5) - 1 :][:2]
    # Around the threshold, which lies between these two, in steps that float32 does not have.
    near = np.zeros((2001, COLUMNS))
    middle = np.float32(border.mean()) if name != "XGBoost" else np.float32(border[1])
    near[:, 0] = float(middle) + np.linspace(-2e-7, 2e-7, len(near))
    assert_equal(estimator, "predict_proba", near, 3e-7)


def test_an_infinite_value_is_none_that_is_missing():
    """What divides the missing values from all others is a threshold of infinity."""
    rows = np.array([[np.nan], [1.0], [2.0]] * 20)
    boosting = ensemble.HistGradientBoostingClassifier(max_iter=2, min_samples_leaf=1)
    estimator = boosting.fit(rows, np.isnan(rows[:, 0]))
    assert_equal(estimator, "predict_proba", np.array([[np.inf], [-np.inf], [np.nan], [3.0]]), BOUND)


def test_the_scores_of_the_exponential_loss_are_half_as_large():
    estimator = fitted(partial(ensemble.GradientBoostingClassifier, n_estimators=12, loss="exponential"), 2)
    for method in methods(estimator):
        assert_equal(estimator, method, probes(False), BOUND)


def test_an_estimator_that_was_fitted_on_float32_agrees_to_its_digits():
    """Gradient boosting gives its first estimator float32."""
    boosting = partial(ensemble.GradientBoostingClassifier, n_estimators=12, init=_logistic())
    assert_equal(fitted(boosting, 2), "predict_proba", probes(False), 1e-6)


def test_boosting_uses_the_trees_up_to_its_best_iteration():
    rows, labels = training_data(3, False)
    others = np.random.default_rng(0).permutation(labels)
    early = _xgboost(early_stopping_rounds=2).fit(rows, labels, eval_set=[(rows, others)], verbose=False)
    assert early.best_iteration + 1 < early.get_booster().num_boosted_rounds()
    assert_equal(early, "predict_proba", probes(True), 3e-7)


def test_columns_by_name_are_those_of_the_fitted_frame():
    import pandas as pd

    rows, labels = training_data(3, False)
    frame = pd.DataFrame(rows, columns=["usr", "sys", "1m", "used", "read"])
    columns = compose.ColumnTransformer(
        [("scaled", preprocessing.StandardScaler(), ["read", "sys"]), ("same", "passthrough", ["usr"])]
    )
    estimator = pipeline.make_pipeline(columns, _logistic()).fit(frame, labels)
    function, _ = graph(estimator, "predict_proba")
    np.testing.assert_allclose(function(rows).numpy(), estimator.predict_proba(frame), rtol=0, atol=BOUND)


def test_a_frozen_estimator_and_a_threshold_have_the_probabilities_of_their_estimator():
    inner = fitted(_logistic, 2)
    rows, labels = training_data(2, False)
    frozen_one = frozen.FrozenEstimator(inner)
    assert_equal(frozen_one, "predict_proba", rows, BOUND)
    assert_equal(frozen_one, "predict", rows, BOUND)
    threshold = model_selection.FixedThresholdClassifier(inner, threshold=0.8).fit(rows, labels)
    assert_equal(threshold, "predict_proba", rows, BOUND)
    with pytest.raises(ConversionError, match=r"FixedThresholdClassifier .*: its predict has no conversion"):
        graph(threshold, "predict")


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


class LogisticRegression(linear_model.LogisticRegression):
    """A subclass of the same name: it could override any method."""


def _categories() -> Any:
    rows, labels = training_data(3, False)
    rows = np.abs(np.round(rows))
    return _lightgbm(min_data_per_group=1, cat_smooth=0).fit(rows[:, 3:4], labels, categorical_feature=[0])


def _histograms_of_categories() -> Any:
    rows, labels = training_data(3, False)
    boosting = ensemble.HistGradientBoostingClassifier(max_iter=2, categorical_features=[3])
    return boosting.fit(np.abs(np.round(rows)), labels)


class _Doubling:
    """A step of someone's own."""

    def fit(self, rows: Any, labels: Any = None) -> _Doubling:
        return self

    def transform(self, rows: np.ndarray) -> np.ndarray:
        return rows * 2


REJECTED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "another class": (
        lambda: fitted(neighbors.KNeighborsClassifier),
        "predict_proba",
        "KNeighborsClassifier cannot be converted to TensorFlow operations; choose an estimator that can, see "
        "docs/training.md",
    ),
    "a subclass": (lambda: fitted(LogisticRegression), "predict_proba", "LogisticRegression cannot be converted"),
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
    "a step": (
        lambda: fitted(lambda: pipeline.Pipeline([("scale", _Doubling()), ("forest", _small_tree())])),
        "predict_proba",
        r"the step scale of Pipeline \(_Doubling\) cannot be converted to TensorFlow operations; choose",
    ),
    "an estimator of a step": (
        lambda: fitted(
            lambda: pipeline.Pipeline(
                [("vote", ensemble.VotingClassifier([("knn", neighbors.KNeighborsClassifier())], voting="soft"))]
            )
        ),
        "predict_proba",
        r"the estimator knn of VotingClassifier, step vote of Pipeline \(KNeighborsClassifier\) cannot be converted",
    ),
    "a vote by labels": (
        lambda: fitted(lambda: ensemble.VotingClassifier(_members())),
        "predict_proba",
        "VotingClassifier .*: it has no method predict_proba;",
    ),
    "a kernel of one's own": (
        lambda: fitted(partial(svm.SVC, kernel=lambda rows, others: rows @ others.T)),
        "decision_function",
        "SVC .*: its kernel is a function or a matrix;",
    ),
    "random guesses": (
        lambda: fitted(partial(dummy.DummyClassifier, strategy="stratified")),
        "predict_proba",
        "DummyClassifier .*: its strategy stratified is random;",
    ),
    "a function of one's own": (
        lambda: preprocessing.FunctionTransformer(np.sin).fit(training_data(3, False)[0]),
        "transform",
        "FunctionTransformer .*: its function is none of numpy.log1p, .*numpy.abs",
    ),
    "texts": (
        lambda: preprocessing.OneHotEncoder().fit([["gate"], ["check"]]),
        "transform",
        "OneHotEncoder .*: its categories are not numbers;",
    ),
    "rare categories": (
        lambda: preprocessing.OneHotEncoder(min_frequency=3).fit([[1]]),
        "transform",
        "OneHotEncoder .*: it has infrequent categories;",
    ),
    "labels that are texts": (
        lambda: tree.DecisionTreeClassifier().fit([[0], [1]], ["gate", "check"]),
        "predict",
        "DecisionTreeClassifier .*: its classes are not numbers;",
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


def test_a_row_of_zeros_has_equal_probabilities() -> None:
    values = load_tensorflow().constant([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 2.0, 0.0]], "float64")
    assert normalised(values).numpy().tolist() == [[0.25] * 4, [0.25, 0.25, 0.5, 0.0]]
