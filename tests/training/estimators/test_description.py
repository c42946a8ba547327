"""Estimators as JSON: a description builds an equal estimator, and cannot run code of others."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import loguniform
from sklearn import feature_selection
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import FeatureAgglomeration
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV, SGDClassifier
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import (
    GridSearchCV,
    RandomizedSearchCV,
    RepeatedStratifiedKFold,
    StratifiedKFold,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    OneHotEncoder,
    PolynomialFeatures,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from ciml.errors import InvalidSettingError, UnknownEstimatorError
from ciml.limits import MAX_PARAMETER_ITEMS
from ciml.settings import parse_toml
from ciml.training.estimators.description import KerasFunction, build, describe, modules_of, packages_of
from ciml.training.estimators.names import find_class
from ciml.training.estimators.values import Decoder
from ciml.training.experiment import Experiment
from tests.training.estimators import user_models
from tests.training.estimators.user_models import MeanThreshold, Plain, Secretive, halved, network

OWN = user_models.__name__
KERNELS = "sklearn.gaussian_process.kernels"


def spec(kind: str, **parameters: Any) -> dict[str, Any]:
    """Return the description of an object of a class."""
    return {"class": kind, "parameters": parameters}


def _xgboost() -> Any:
    from xgboost import XGBClassifier

    return XGBClassifier(n_estimators=5, max_depth=2, eval_metric="logloss", random_state=3)


def _lightgbm() -> Any:
    from lightgbm import LGBMClassifier

    return LGBMClassifier(n_estimators=5, verbose=-1, min_child_samples=2, class_weight={0: 1.0, 1: 2.5})


def _columns() -> ColumnTransformer:
    parts = [
        ("scaled", StandardScaler(), [0, 1]),
        ("binned", KBinsDiscretizer(3, encode="onehot-dense", quantile_method="averaged_inverted_cdf"), slice(1, 3)),
        ("dropped", "drop", [3]),
    ]
    return ColumnTransformer(parts, remainder="passthrough", transformer_weights={"scaled": 2.0})


def _grid() -> GridSearchCV:
    steps = Pipeline([("scale", StandardScaler()), ("model", LogisticRegression())])
    grid = {"model__C": np.logspace(-1, 1, 3), "scale": [RobustScaler(), "passthrough"]}
    return GridSearchCV(steps, grid, cv=StratifiedKFold(2, shuffle=True, random_state=1), scoring="f1")


def _random_search() -> RandomizedSearchCV:
    space = {"C": loguniform(0.1, 10), "fit_intercept": [True, False]}
    cv = RepeatedStratifiedKFold(n_splits=2, n_repeats=2, random_state=5)
    return RandomizedSearchCV(LogisticRegression(), space, n_iter=3, cv=cv, random_state=2)


#: Estimators, each with the class and parameters of its description.
ESTIMATORS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "sklearn.linear_model:LogisticRegression": (
        lambda: LogisticRegression(C=0.1, max_iter=200),
        {"C": 0.1, "max_iter": 200},
    ),
    "sklearn.linear_model:SGDClassifier": (
        lambda: SGDClassifier(loss="log_loss", random_state=np.int64(3)),
        {"loss": "log_loss", "random_state": 3},
    ),
    "sklearn.linear_model:RidgeClassifierCV": (lambda: RidgeClassifierCV(alphas=[1.0, 2]), {"alphas": [1.0, 2]}),
    "sklearn.svm:SVC": (lambda: SVC(kernel="rbf", gamma=np.float64(0.5)), {"gamma": 0.5}),
    "sklearn.svm:LinearSVC": (
        lambda: LinearSVC(class_weight={0: 1, 1: 3}),
        {"class_weight": {"dict": [[0, 1], [1, 3]]}},
    ),
    "sklearn.naive_bayes:GaussianNB": (
        lambda: GaussianNB(priors=np.array([0.25, 0.75])),
        {"priors": {"array": [0.25, 0.75], "dtype": "float64"}},
    ),
    "sklearn.neighbors:KNeighborsClassifier": (
        lambda: KNeighborsClassifier(3, weights="distance", metric_params=None),
        {"n_neighbors": 3, "weights": "distance"},
    ),
    "sklearn.tree:DecisionTreeClassifier": (
        lambda: DecisionTreeClassifier(max_features=1.0, random_state=0),
        {"max_features": 1.0, "random_state": 0},
    ),
    "sklearn.ensemble:RandomForestClassifier": (
        lambda: RandomForestClassifier(20, max_features=1, random_state=1),
        {"n_estimators": 20, "max_features": 1, "random_state": 1},
    ),
    "sklearn.ensemble:ExtraTreesClassifier": (
        lambda: ExtraTreesClassifier(9, random_state=1),
        {"n_estimators": 9, "random_state": 1},
    ),
    "sklearn.ensemble:GradientBoostingClassifier": (
        lambda: GradientBoostingClassifier(n_estimators=4, random_state=1),
        {"n_estimators": 4, "random_state": 1},
    ),
    "sklearn.ensemble:HistGradientBoostingClassifier": (
        lambda: HistGradientBoostingClassifier(max_iter=5, monotonic_cst=[1, 0, 0, -1]),
        {"max_iter": 5, "monotonic_cst": [1, 0, 0, -1]},
    ),
    "sklearn.ensemble:AdaBoostClassifier": (
        lambda: AdaBoostClassifier(DecisionTreeClassifier(max_depth=2), n_estimators=3, random_state=0),
        {
            "estimator": spec("sklearn.tree:DecisionTreeClassifier", max_depth=2),
            "n_estimators": 3,
            "random_state": 0,
        },
    ),
    "sklearn.neural_network:MLPClassifier": (
        lambda: MLPClassifier((4, 2), max_iter=20, random_state=1),
        {"hidden_layer_sizes": [4, 2], "max_iter": 20, "random_state": 1},
    ),
    "sklearn.discriminant_analysis:LinearDiscriminantAnalysis": (lambda: LinearDiscriminantAnalysis(), {}),
    "sklearn.gaussian_process:GaussianProcessClassifier": (
        lambda: GaussianProcessClassifier(1.0 * RBF([1.0, 1, 1, 1]) + WhiteKernel(noise_level_bounds="fixed")),
        {
            "kernel": spec(
                f"{KERNELS}:Sum",
                k1=spec(
                    f"{KERNELS}:Product",
                    k1=spec(f"{KERNELS}:ConstantKernel"),
                    k2=spec(f"{KERNELS}:RBF", length_scale=[1.0, 1, 1, 1]),
                ),
                k2=spec(f"{KERNELS}:WhiteKernel", noise_level_bounds="fixed"),
            )
        },
    ),
    "sklearn.calibration:CalibratedClassifierCV": (
        lambda: CalibratedClassifierCV(LinearSVC(C=2), cv=3),
        {"cv": 3, "estimator": spec("sklearn.svm:LinearSVC", C=2)},
    ),
    "xgboost:XGBClassifier": (
        _xgboost,
        {"n_estimators": 5, "max_depth": 2, "eval_metric": "logloss", "random_state": 3},
    ),
    "lightgbm:LGBMClassifier": (
        _lightgbm,
        {
            "n_estimators": 5,
            "verbose": -1,
            "min_child_samples": 2,
            "class_weight": {"dict": [[0, 1.0], [1, 2.5]]},
        },
    ),
    f"{OWN}:MeanThreshold": (lambda: MeanThreshold(column=1), {"column": 1}),
    f"{OWN}:Plain": (lambda: Plain(0.25, columns=(2,)), {"share": 0.25, "columns": [2]}),
}

#: Further estimators, whose descriptions are only built again.
COMPOSED: list[Callable[[], Any]] = [
    lambda: make_pipeline(StandardScaler(), PCA(2), LogisticRegression()),
    lambda: Pipeline(
        [("impute", SimpleImputer(missing_values=float("nan"), add_indicator=True)), ("a", None), ("b", GaussianNB())]
    ),
    lambda: make_pipeline(FunctionTransformer(np.log1p), GaussianNB()),
    lambda: make_pipeline(FunctionTransformer(halved), GaussianNB()),
    lambda: make_pipeline(feature_selection.SelectKBest(feature_selection.mutual_info_classif, k=2), SVC()),
    lambda: make_pipeline(_columns(), LogisticRegression()),
    lambda: make_pipeline(RobustScaler(quantile_range=(10.0, 90.0)), SVC(class_weight="balanced")),
    lambda: make_pipeline(QuantileTransformer(n_quantiles=5), PolynomialFeatures((1, 2)), LogisticRegression()),
    lambda: make_pipeline(FeatureAgglomeration(2, pooling_func=np.max), GaussianNB()),
    lambda: make_pipeline(FeatureUnion([("a", PCA(1)), ("b", "passthrough")]), GaussianNB()),
    lambda: make_pipeline(StandardScaler(), MeanThreshold(1)),
    lambda: make_pipeline(StandardScaler(), KBinsDiscretizer(2, encode="ordinal", dtype=np.float32), GaussianNB()),
    lambda: VotingClassifier([("a", GaussianNB()), ("b", _xgboost()), ("c", "drop")], voting="soft", weights=[1, 2, 3]),
    lambda: StackingClassifier([("a", GaussianNB()), ("b", SVC())], LogisticRegression(), cv=StratifiedKFold(2)),
    lambda: BaggingClassifier(make_pipeline(StandardScaler(), LogisticRegression()), 3, random_state=1),
    lambda: feature_selection.RFE(LogisticRegression(), n_features_to_select=2),
    _grid,
    _random_search,
    lambda: make_pipeline(StandardScaler(), GaussianNB()).set_output(transform="default"),
    lambda: CalibratedClassifierCV(_lightgbm(), ensemble=False, cv=2),
]


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    """90 rows of four columns, and the class of each."""
    generator = np.random.default_rng(4)
    X = np.abs(generator.normal(size=(90, 4)))
    return X, (X[:, 0] + X[:, 1] * 0.5 + generator.normal(scale=0.2, size=90) > 1.1).astype(np.int64)


def _check_round_trip(make: Callable[[], Any], rows: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    X, y = rows
    description = describe(make())
    assert json.loads(json.dumps(description, allow_nan=False)) == description
    built = build(json.loads(json.dumps(description)), allowed=(OWN,))
    assert type(built) is type(make())
    assert describe(built) == description
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.random.seed(7)  # of estimators without a seed
        first = make().fit(X, y)
        np.random.seed(7)
        second = built.fit(X, y)
    method = "predict_proba" if hasattr(first, "predict_proba") else "decision_function"
    np.testing.assert_array_equal(getattr(first, method)(X), getattr(second, method)(X))
    return description


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_description_names_the_public_class_and_what_differs_from_its_defaults(
    name: str, rows: tuple[Any, Any]
) -> None:
    make, parameters = ESTIMATORS[name]
    description = _check_round_trip(make, rows)
    assert description == spec(name, **parameters)
    assert json.dumps(description["parameters"], sort_keys=True) == json.dumps(
        parameters, sort_keys=True
    )  # 1 is not 1.0


@pytest.mark.parametrize("make", COMPOSED)
def test_a_composed_estimator_is_built_again_with_equal_predictions(
    make: Callable[[], Any], rows: tuple[Any, Any]
) -> None:
    _check_round_trip(make, rows)


def test_columns_by_name_and_selector_are_described() -> None:
    columns = ColumnTransformer(
        [("a", OneHotEncoder(dtype=np.float32), ["usr[0]"]), ("b", "passthrough", make_column_selector("1m"))]
    )
    description = describe(columns)
    assert describe(build(description)) == description
    assert description["parameters"]["transformers"] == [
        ["a", spec("sklearn.preprocessing:OneHotEncoder", dtype={"type": "float32"}), ["usr[0]"]],
        ["b", "passthrough", spec("sklearn.compose:make_column_selector", pattern="1m")],
    ]


def test_people_write_bare_names_and_deep_parameters() -> None:
    written = spec(
        "Pipeline",
        steps=[["scale", {"class": "RobustScaler"}], ["model", {"class": "LogisticRegression"}]],
        scale__quantile_range=[5.0, 95.0],
        model__C=0.5,
    )
    steps = [("scale", RobustScaler(quantile_range=(5.0, 95.0))), ("model", LogisticRegression(C=0.5))]
    assert describe(build(written)) == describe(Pipeline(steps))
    nested = spec("GridSearchCV", estimator=written, param_grid={}, estimator__model__C=2.0)
    assert build(nested).estimator.named_steps["model"].C == 2.0


def test_the_documented_definition_is_built() -> None:
    text = (Path(__file__).parents[3] / "docs" / "experiments.md").read_text()
    (block,) = re.findall(r"^```toml\n(.*?)^```", text, re.S | re.M)
    experiment = Experiment.from_json(parse_toml(block, "docs/experiments.md"))
    model = build({"class": experiment.estimator, "parameters": experiment.parameters})
    assert (type(model.named_steps["scale"]).__name__, model.named_steps["model"].C) == ("StandardScaler", 0.1)
    for line in re.findall(r"^\| [^|]+ \| (`\{.*)\|$", text, re.M):
        for value in re.findall(r"`(\{[^`]*\})`", line):
            assert Decoder().decode(json.loads(value), "value") is not None


CANNOT: dict[str, tuple[Callable[[], Any], str]] = {
    "lambda": (
        lambda: make_pipeline(FunctionTransformer(lambda values: values), GaussianNB()),
        "parameters.steps[0][1].func: a lambda cannot be described; define a function in a module",
    ),
    "state": (
        lambda: make_pipeline(StandardScaler(), SGDClassifier(random_state=np.random.RandomState(0))),
        "parameters.steps[1][1].random_state: a RandomState has a state; give a whole number as the seed",
    ),
    "array": (
        lambda: GaussianNB(priors=np.zeros(MAX_PARAMETER_ITEMS + 1)),
        "parameters.priors: an array of 1,001 values",
    ),
    "class": (lambda: GaussianNB, "estimator: expected an object, got the class; write GaussianNB()"),
    "frozen": (
        lambda: make_pipeline(FrozenEstimator(GaussianNB())),
        "parameters.steps[0][1]: sklearn.frozen:FrozenEstimator holds a fitted",
    ),
    "cache": (
        lambda: Pipeline([("a", GaussianNB())], memory="/tmp/cache"),
        "parameters.memory: a cache stores pickles",
    ),
    "file": (lambda: GaussianNB(priors=Path("table.csv")), "parameters.priors: "),
    "scorer": (lambda: GridSearchCV(GaussianNB(), {}, scoring=make_scorer(accuracy_score)), "parameters.scoring: "),
    "attribute": (
        lambda: Secretive(),
        "estimator: a Secretive cannot be described: it has no get_params, and no attribute share",
    ),
    "fit": (lambda: StratifiedKFold(3), "estimator: a StratifiedKFold has no method fit"),
    "callback": (lambda: FunctionTransformer(np.load), "parameters.func: numpy:load is not an estimator or function"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_cannot_be_described_is_rejected_with_place_and_reason(case: str) -> None:
    make, message = CANNOT[case]
    with pytest.raises(InvalidSettingError) as error:
        describe(make())
    assert str(error.value).startswith(message)


def test_classes_of_a_script_or_a_function_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    class Local(MeanThreshold):
        pass

    with pytest.raises(InvalidSettingError, match="is not at the top level of a module"):
        describe(Local())
    script = type("Script", (MeanThreshold,), {"__module__": "__main__", "__init__": MeanThreshold.__init__})
    with pytest.raises(InvalidSettingError, match="class Script is defined in __main__; put it in a module"):
        describe(script())


def test_a_module_is_imported_only_if_it_or_its_package_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "described_models"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "trees.py").write_text(
        "from sklearn.tree import DecisionTreeClassifier\nclass Tree(DecisionTreeClassifier): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    description = spec("described_models.trees:Tree", max_depth=2)
    assert modules_of(description) == ("described_models.trees",)
    for allowed in ((), ("described",), ("described_models.trees.more",)):
        with pytest.raises(InvalidSettingError, match=r"module described_models\.trees is not allowed"):
            build(description, allowed)
    assert "described_models" not in sys.modules
    for allowed in (("described_models",), ("described_models.trees",)):
        assert describe(build(description, allowed)) == description


def test_packages_are_named_with_their_version_or_the_digest_of_their_source(rows: tuple[Any, Any]) -> None:
    description = describe(make_pipeline(FunctionTransformer(np.log1p), StandardScaler(), _xgboost()))
    xgboost = metadata.packages_distributions()["xgboost"][0]
    assert packages_of(description) == {
        "scikit-learn": metadata.version("scikit-learn"),
        xgboost: metadata.version(xgboost),
    }
    own = packages_of(describe(make_pipeline(FunctionTransformer(halved), GaussianNB())))
    assert own.keys() == {"scikit-learn", OWN}
    assert own[OWN].startswith("sha256:")
    assert packages_of(describe(network)).keys() == {OWN}


def test_a_class_is_found_by_its_bare_name() -> None:
    assert find_class("LogisticRegression") == "sklearn.linear_model:LogisticRegression"
    assert find_class("HalvingGridSearchCV") == "sklearn.model_selection:HalvingGridSearchCV"
    assert find_class("package.module:Name") == "package.module:Name"
    for name, message in {
        "LogisticRegresion": "did you mean LogisticRegression",
        "random_forrest": "did you mean random_forest",
        "StandardScaler": "predicts no probabilities",
        "IsolationForest": "predicts no probabilities",
        "LinearRegression": "predicts no probabilities",
        "os.system": "name a classifier of scikit-learn, or package.module:Name",
        "package.module:": "is not a name of the form",
    }.items():
        with pytest.raises(UnknownEstimatorError, match=message):
            find_class(name, ("random_forest", "dnn"))


def test_a_keras_model_is_its_architecture(rows: tuple[Any, Any]) -> None:
    from ciml.tensorflow import keras

    layers = keras().layers

    def make() -> Any:
        inputs = keras().Input((5, 3))
        hidden = layers.Conv1D(4, 3, activation="relu", kernel_regularizer="l2")(inputs * 2)
        pooled = [layers.GlobalAveragePooling1D()(hidden), layers.GlobalMaxPooling1D()(hidden)]
        outputs = layers.Dense(2, "softmax", name="softmax")(layers.Dropout(0.1)(layers.Concatenate()(pooled)))
        model = keras().Model(inputs, outputs)
        model.compile("adam", "mse")
        return model

    description = describe(make())
    assert describe(make()) == description  # whatever Keras has counted
    built = build(json.loads(json.dumps(description)), seed=3)
    assert describe(built) == description
    again = build(description, seed=3)
    other = build(description, seed=4)
    X = np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32)
    np.testing.assert_array_equal(built.predict(X, verbose=0), again.predict(X, verbose=0))
    assert np.abs(built.predict(X, verbose=0) - other.predict(X, verbose=0)).max() > 1e-3
    assert packages_of(description).keys() == {"keras"}
    with pytest.raises(
        InvalidSettingError, match="Lambda is not a layer that a config may name; build such a model in a"
    ):
        describe(keras().Sequential([keras().Input((2,)), layers.Lambda(lambda values: values)]))


def test_a_function_makes_a_keras_model() -> None:
    description = describe(KerasFunction(network, {"units": 3}))
    assert description == spec(f"{OWN}:network", units=3)
    built = build(description, (OWN,))
    assert describe(built) == description
    assert built((5, 2), 3).output_shape == (None, 3)
    assert describe(network) == spec(f"{OWN}:network")
