"""Converted transformers compute what scikit-learn's compute."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from sklearn import decomposition, discriminant_analysis, feature_selection, impute, linear_model, preprocessing

from tests.tier import part
from tests.training.conversion.comparison import BOUND, COLUMNS, assert_equal, probes, training_data

TRANSFORMERS: dict[str, Callable[[], Any]] = {
    "standard scaler": preprocessing.StandardScaler,
    "standard scaler without mean": partial(preprocessing.StandardScaler, with_mean=False),
    "standard scaler without deviation": partial(preprocessing.StandardScaler, with_std=False),
    "range scaler": preprocessing.MinMaxScaler,
    "range scaler that clips": partial(preprocessing.MinMaxScaler, feature_range=(-1, 3), clip=True),
    "largest scaler": preprocessing.MaxAbsScaler,
    "largest scaler that clips": partial(preprocessing.MaxAbsScaler, clip=True),
    "robust scaler": preprocessing.RobustScaler,
    "robust scaler without center": partial(preprocessing.RobustScaler, with_centering=False),
    "unit length": preprocessing.Normalizer,
    "unit sum": partial(preprocessing.Normalizer, norm="l1"),
    "unit maximum": partial(preprocessing.Normalizer, norm="max"),
    "power": preprocessing.PowerTransformer,
    "power without scaling": partial(preprocessing.PowerTransformer, standardize=False),
    "quantiles": partial(preprocessing.QuantileTransformer, n_quantiles=50),
    "normal quantiles": partial(preprocessing.QuantileTransformer, n_quantiles=50, output_distribution="normal"),
    "bits": partial(preprocessing.Binarizer, threshold=0.3),
    "bins": partial(preprocessing.KBinsDiscretizer, encode="ordinal", quantile_method="averaged_inverted_cdf"),
    "bits of bins": partial(
        preprocessing.KBinsDiscretizer, 3, encode="onehot-dense", quantile_method="averaged_inverted_cdf"
    ),
    "two bins": partial(preprocessing.KBinsDiscretizer, 2, encode="ordinal", strategy="uniform"),
    "polynomials": partial(preprocessing.PolynomialFeatures, 3),
    "products": partial(preprocessing.PolynomialFeatures, 2, interaction_only=True, include_bias=False),
    "means for missing": impute.SimpleImputer,
    "medians for missing, marked": partial(impute.SimpleImputer, strategy="median", add_indicator=True),
    "a constant for zeros": partial(impute.SimpleImputer, strategy="constant", fill_value=-2, missing_values=0),
    "what is missing": impute.MissingIndicator,
    "all that is missing": partial(impute.MissingIndicator, features="all"),
    "identity": preprocessing.FunctionTransformer,
    "roots": partial(preprocessing.FunctionTransformer, np.sqrt),
    "logarithms": partial(preprocessing.FunctionTransformer, np.log1p),
    "inverse hyperbolic sines": partial(preprocessing.FunctionTransformer, np.arcsinh),
    "signs": partial(preprocessing.FunctionTransformer, np.sign),
    "columns that vary": partial(feature_selection.VarianceThreshold, 0.9),
    "best columns": partial(feature_selection.SelectKBest, k=2),
    "columns of a model": lambda: feature_selection.SelectFromModel(linear_model.LogisticRegression()),
    "columns by elimination": lambda: feature_selection.RFE(linear_model.LogisticRegression(), n_features_to_select=2),
    "principal components": partial(decomposition.PCA, 3),
    "white principal components": partial(decomposition.PCA, whiten=True),
    "singular vectors": partial(decomposition.TruncatedSVD, 2, algorithm="arpack"),
    "discriminant axes": discriminant_analysis.LinearDiscriminantAnalysis,
    "discriminant eigenvectors": partial(discriminant_analysis.LinearDiscriminantAnalysis, solver="eigen"),
}
#: They accept NaN.
WITH_MISSING = ("standard", "range", "largest", "robust", "power", "quantiles", "normal quantiles", "means", "medians")
WITH_MISSING += ("what is", "all that", "identity", "signs", "columns that")
#: They are for values that are not negative.
POSITIVE = ("roots", "logarithms")
#: Their values at 1e30 overflow, or lose all digits, in scikit-learn too.
USUAL = ("power", "polynomials", "products", "unit length")


@pytest.mark.parametrize("name", part(list(TRANSFORMERS), 0, 6))
def test_a_converted_transformer_computes_what_the_library_computes(name: str):
    missing = name.startswith(WITH_MISSING)
    rows, labels = training_data(3, missing)
    probe = probes(missing)
    if name in POSITIVE:
        probe = np.abs(probe)
    if name.startswith(USUAL):
        probe = probe[np.nanmax(np.abs(np.nan_to_num(probe)), axis=1) < 1e3]
    if name == "what is missing":
        probe[:, ~np.isnan(rows).any(axis=0)] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformer = TRANSFORMERS[name]().fit(rows, labels)
    assert_equal(transformer, "transform", probe, BOUND)


def test_positive_values_are_raised_to_a_power():
    rows = np.exp(training_data(3, False)[0])
    assert_equal(preprocessing.PowerTransformer("box-cox").fit(rows), "transform", rows, BOUND)


CATEGORIES = np.array([[1.0, 7.0, np.nan], [2.0, 5.0, 3.0], [4.0, 5.0, 3.0], [1.0, 5.0, 1.0]])
UNKNOWN = np.array([[9.0, 0.0, -1.0], [np.nan, 5.0, np.nan]])


@pytest.mark.parametrize(
    ("make", "rows"),
    [
        (partial(preprocessing.OneHotEncoder, sparse_output=False), CATEGORIES),
        (partial(preprocessing.OneHotEncoder, sparse_output=False, drop="first"), CATEGORIES),
        (partial(preprocessing.OneHotEncoder, sparse_output=False, drop="if_binary"), CATEGORIES),
        (partial(preprocessing.OneHotEncoder, sparse_output=False, handle_unknown="ignore"), UNKNOWN),
        (preprocessing.OrdinalEncoder, CATEGORIES),
        (partial(preprocessing.OrdinalEncoder, encoded_missing_value=-3), CATEGORIES),
        (
            partial(preprocessing.OrdinalEncoder, handle_unknown="use_encoded_value", unknown_value=-1),
            np.concatenate([CATEGORIES, UNKNOWN]),
        ),
    ],
)
def test_numbers_are_encoded_as_categories(make: Callable[[], Any], rows: np.ndarray):
    assert_equal(make().fit(CATEGORIES), "transform", rows, 0)


def test_a_column_that_is_always_missing_is_dropped_or_kept():
    rows = training_data(3, False)[0]
    rows[:, 2] = np.nan
    for keep, columns in ((False, COLUMNS - 1), (True, COLUMNS)):
        imputer = impute.SimpleImputer(keep_empty_features=keep).fit(rows)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn warns of the dropped column
            assert imputer.transform(rows).shape[1] == columns
            assert_equal(imputer, "transform", rows, BOUND)
