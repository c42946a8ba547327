"""Converts transformers of columns: scalers, imputers, encoders, selections and projections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ciml.tensorflow import load_tensorflow
from ciml.training.conversion.linear import linear_scores
from ciml.training.conversion.step import TRANSFORM, Function, Step


def _scaled(step: Step, center: Any, scale: Any) -> Function:
    """Return (x - center) / scale; None leaves either out."""
    step.only(TRANSFORM)
    subtracted = None if center is None else step.variables(np.asarray(center, np.float64))
    divisor = None if scale is None else step.variables(np.asarray(scale, np.float64))

    def transform(x: Any) -> Any:
        shifted = x if subtracted is None else x - subtracted
        return shifted if divisor is None else shifted / divisor

    return transform


def _standard_scaler(step: Step) -> Function:
    scaler = step.estimator
    return _scaled(step, scaler.mean_ if scaler.with_mean else None, scaler.scale_ if scaler.with_std else None)


def _robust_scaler(step: Step) -> Function:
    return _scaled(step, step.estimator.center_, step.estimator.scale_)


def _clipped(x: Any, low: float, high: float) -> Any:
    tf = load_tensorflow()
    # A NaN stays one, as in numpy.clip.
    return tf.where(tf.math.is_nan(x), x, tf.clip_by_value(x, low, high))


def _largest_scaler(step: Step) -> Function:
    scale = _scaled(step, None, step.estimator.scale_)
    return (lambda x: _clipped(scale(x), -1, 1)) if step.estimator.clip else scale


def _range_scaler(step: Step) -> Function:
    step.only(TRANSFORM)
    scaler = step.estimator
    scale = step.variables(np.asarray(scaler.scale_, np.float64))
    offset = step.variables(np.asarray(scaler.min_, np.float64))
    low, high = (float(limit) for limit in scaler.feature_range)

    def transform(x: Any) -> Any:
        scaled = x * scale + offset
        return _clipped(scaled, low, high) if scaler.clip else scaled

    return transform


def _normalizer(step: Step) -> Function:
    step.only(TRANSFORM)
    norm = step.estimator.norm

    def transform(x: Any) -> Any:
        tf = load_tensorflow()
        size = tf.abs(x)
        if norm == "max":
            length = tf.reduce_max(size, axis=1, keepdims=True)
        elif norm == "l1":
            length = tf.reduce_sum(size, axis=1, keepdims=True)
        else:
            length = tf.sqrt(tf.reduce_sum(tf.square(size), axis=1, keepdims=True))
        return x / tf.where(length == 0, tf.ones_like(length), length)

    return transform


def _binarizer(step: Step) -> Function:
    step.only(TRANSFORM)
    tf = load_tensorflow()
    return lambda x: tf.cast(x > step.estimator.threshold, tf.float64)


def _power(step: Step) -> Function:
    step.only(TRANSFORM)
    transformer = step.estimator
    exponents = step.variables(np.asarray(transformer.lambdas_, np.float64))
    power = _box_cox if transformer.method == "box-cox" else _yeo_johnson
    if not transformer.standardize:
        return lambda x: power(x, exponents)
    scale = step.child(transformer._scaler, TRANSFORM, "scaler")
    return lambda x: scale(power(x, exponents))


def _power_of(logarithm: Any, exponent: Any) -> Any:
    """Return (exp(exponent * logarithm) - 1) / exponent, whose limit for exponent 0 is the logarithm."""
    tf = load_tensorflow()
    limit = tf.abs(exponent) < np.finfo(np.float64).eps
    divisor = tf.where(limit, tf.ones_like(exponent), exponent)
    return tf.where(limit, logarithm, tf.math.expm1(exponent * logarithm) / divisor)


def _box_cox(x: Any, exponents: Any) -> Any:
    tf = load_tensorflow()
    return _power_of(tf.math.log(x), exponents)


def _yeo_johnson(x: Any, exponents: Any) -> Any:
    tf = load_tensorflow()
    # Each branch is given numbers in its range; a NaN reaches the second one.
    positive = _power_of(tf.math.log1p(tf.maximum(x, tf.zeros_like(x))), exponents)
    negative = -_power_of(tf.math.log1p(-tf.where(x >= 0, tf.zeros_like(x), x)), 2 - exponents)
    return tf.where(x >= 0, positive, negative)


#: As scikit-learn's ``BOUNDS_THRESHOLD``.
_QUANTILE_TOLERANCE = 1e-7


def _quantiles(step: Step) -> Function:
    """Convert the map to quantiles: the mean of the lines that approach repeated quantiles from below and above."""
    step.only(TRANSFORM)
    normal = step.estimator.output_distribution == "normal"
    quantiles = step.variables(np.ascontiguousarray(step.estimator.quantiles_.T))
    references = step.variables(np.asarray(step.estimator.references_, np.float64))

    def transform(x: Any) -> Any:
        tf = load_tensorflow()
        values = tf.transpose(x)
        number = tf.where(tf.math.is_nan(values), quantiles[:, :1], values)
        lowest = quantiles[:, :1]
        highest = quantiles[:, -1:]
        inside = 0.5 * (
            _interpolated(number, quantiles, references, "right") + _interpolated(number, quantiles, references, "left")
        )
        margin = _QUANTILE_TOLERANCE
        at_top = number + margin > highest if normal else number == highest
        at_bottom = number - margin < lowest if normal else number == lowest
        inside = tf.where(at_top, tf.ones_like(inside), inside)
        inside = tf.where(at_bottom, tf.zeros_like(inside), inside)
        if normal:
            edge = margin - np.spacing(1)
            limits = tf.math.ndtri(tf.constant([edge, 1 - edge], tf.float64))
            inside = tf.clip_by_value(tf.math.ndtri(inside), limits[0], limits[1])
        return tf.transpose(tf.where(tf.math.is_nan(values), values, inside))

    return transform


def _interpolated(values: Any, points: Any, heights: Any, side: str) -> Any:
    """Interpolate linearly between points, as ``numpy.interp``.

    Args:
      values: float64 [k, n], without NaN.
      points: float64 [k, m], ascending in each row.
      heights: float64 [m].
      side: "right" takes the last of equal points as the beginning of a line, "left" the first as its end.
    """
    tf = load_tensorflow()
    last = points.shape[1] - 1
    if last == 0:
        return tf.ones_like(values) * heights[0]
    clipped = tf.clip_by_value(values, points[:, :1], points[:, -1:])
    upper = tf.searchsorted(points, clipped, side=side)
    low = tf.clip_by_value(upper - 1, 0, last - 1)
    high = low + 1
    start = tf.gather(points, low, batch_dims=1)
    width = tf.gather(points, high, batch_dims=1) - start
    share = tf.where(
        width > 0, (clipped - start) / tf.where(width > 0, width, tf.ones_like(width)), tf.ones_like(width)
    )
    bottom = tf.gather(heights, low)
    return bottom + share * (tf.gather(heights, high) - bottom)


def interpolation(step: Step, points: Any, heights: Any) -> Function:
    """Return the piecewise linear function through points, constant outside, of a column float64 [n]."""
    ascending = step.variables(np.asarray(points, np.float64)[np.newaxis, :])
    values = step.variables(np.asarray(heights, np.float64))
    return lambda x: _interpolated(x[np.newaxis, :], ascending, values, "right")[0]


def _missing(x: Any, marker: Any) -> Any:
    tf = load_tensorflow()
    return tf.math.is_nan(x) if np.isnan(marker) else x == float(marker)


def _require_number(step: Step, value: Any, name: str) -> None:
    step.require(isinstance(value, int | float | np.number), f"{name} is {value!r}, which is not a number")


def _imputer(step: Step) -> Function:
    step.only(TRANSFORM)
    imputer = step.estimator
    _require_number(step, imputer.missing_values, "missing_values")
    try:
        statistics = np.asarray(imputer.statistics_).astype(np.float64)
    except ValueError:
        raise step.error("its values are not numbers") from None
    columns = np.arange(len(statistics)) if imputer.keep_empty_features else np.flatnonzero(~np.isnan(statistics))
    take = _columns(step, columns)
    values = step.variables(statistics[columns])
    indicator = step.child(imputer.indicator_, TRANSFORM, "indicator") if imputer.add_indicator else None

    def transform(x: Any) -> Any:
        tf = load_tensorflow()
        selected = take(x)
        filled = tf.where(_missing(selected, imputer.missing_values), values, selected)
        return filled if indicator is None else tf.concat([filled, indicator(x)], axis=1)

    return transform


def _missing_indicator(step: Step) -> Function:
    step.only(TRANSFORM)
    tf = load_tensorflow()
    marker = step.estimator.missing_values
    _require_number(step, marker, "missing_values")
    take = _columns(step, step.estimator.features_)
    return lambda x: tf.cast(_missing(take(x), marker), tf.float64)


def _columns(step: Step, positions: Any) -> Function:
    """Return the selection of columns by their positions."""
    tf = load_tensorflow()
    chosen = step.variables(np.asarray(positions, np.int32))
    return lambda x: tf.gather(x, chosen, axis=1)


def _selection(step: Step) -> Function:
    step.only(TRANSFORM)
    return _columns(step, step.estimator.get_support(indices=True))


def _bins(step: Step) -> Function:
    step.only(TRANSFORM)
    tf = load_tensorflow()
    binning = step.estimator
    inner = [np.asarray(edges[1:-1], np.float64) for edges in binning.bin_edges_]
    # No value reaches an edge that is NaN.
    padded = np.full((len(inner), max(map(len, inner)) or 1), np.nan)
    for row, edges in zip(padded, inner, strict=True):
        row[: len(edges)] = edges
    limits = step.variables(padded)

    def ordinals(x: Any) -> Any:
        return tf.reduce_sum(tf.cast(x[:, :, tf.newaxis] >= limits, tf.float64), axis=2)

    if binning.encode == "ordinal":
        return ordinals
    encode = step.child(binning._encoder, TRANSFORM, "encoder")
    return lambda x: encode(ordinals(x))


def _numeric_categories(step: Step) -> list[np.ndarray]:
    """Return the categories of each column. Rejects texts, and categories that are summarised as infrequent."""
    encoder = step.estimator
    step.only(TRANSFORM)
    step.require(encoder.min_frequency is None and encoder.max_categories is None, "it has infrequent categories")
    categories = [np.asarray(values) for values in encoder.categories_]
    step.require(all(values.dtype.kind in "iufb" for values in categories), "its categories are not numbers")
    return [values.astype(np.float64) for values in categories]


def _equal(values: Any, categories: Any) -> Any:
    tf = load_tensorflow()
    return (values == categories) | (tf.math.is_nan(values) & tf.math.is_nan(categories))


def _one_hot(step: Step) -> Function:
    tf = load_tensorflow()
    categories = _numeric_categories(step)
    dropped = step.estimator.drop_idx_
    kept_categories = [
        np.delete(values, [] if dropped is None or dropped[column] is None else [dropped[column]])
        for column, values in enumerate(categories)
    ]
    take = _columns(step, np.repeat(np.arange(len(kept_categories)), [len(values) for values in kept_categories]))
    values = step.variables(np.concatenate(kept_categories))
    return lambda x: tf.cast(_equal(take(x), values), tf.float64)


def _ordinal(step: Step) -> Function:
    tf = load_tensorflow()
    encoder = step.estimator
    categories = _numeric_categories(step)
    tables = [step.variables(values) for values in categories]
    missing = encoder.encoded_missing_value
    codes = [
        step.variables(np.where(np.isnan(values), missing, np.arange(float(len(values))))) for values in categories
    ]
    unknown = np.nan if encoder.unknown_value is None else float(encoder.unknown_value)

    def transform(x: Any) -> Any:
        columns = []
        for number, (table, code) in enumerate(zip(tables, codes, strict=True)):
            match = _equal(x[:, number, tf.newaxis], table)
            encoded = tf.gather(code, tf.argmax(tf.cast(match, tf.int32), axis=1))
            columns.append(tf.where(tf.reduce_any(match, axis=1), encoded, tf.constant(unknown, tf.float64)))
        return tf.stack(columns, axis=1)

    return transform


def _polynomials(step: Step) -> Function:
    """Convert powers and products: each output multiplies as many columns as its degree; column 0 is a one."""
    step.only(TRANSFORM)
    tf = load_tensorflow()
    powers = np.asarray(step.estimator.powers_)
    degree = max(int(powers.sum(axis=1).max(initial=0)), 1)
    factors = np.zeros((len(powers), degree), np.int32)
    for row, power in zip(factors, powers, strict=True):
        columns = np.repeat(np.arange(1, powers.shape[1] + 1), power)
        row[: len(columns)] = columns
    tables = [_columns(step, column) for column in factors.T]

    def transform(x: Any) -> Any:
        with_one = tf.concat([tf.ones_like(x[:, :1]), x], axis=1)
        product = tables[0](with_one)
        for table in tables[1:]:
            product *= table(with_one)
        return product

    return transform


def _projection(step: Step) -> Function:
    """Convert a principal component analysis."""
    step.only(TRANSFORM)
    analysis = step.estimator
    components = np.asarray(analysis.components_, np.float64)
    # Subtracted after the product, in the library's order: with large means the digits depend on it.
    projected = linear_scores(step, components, -(np.asarray(analysis.mean_, np.float64) @ components.T))
    if not analysis.whiten:
        return projected
    deviations = np.sqrt(np.asarray(analysis.explained_variance_, np.float64))
    scale = step.variables(np.maximum(deviations, np.finfo(np.float64).eps))
    return lambda x: projected(x) / scale


def _singular_vectors(step: Step) -> Function:
    step.only(TRANSFORM)
    return linear_scores(step, step.estimator.components_, 0)


def _numpy_functions() -> Sequence[tuple[Any, Callable[[Any], Any]]]:
    """Return functions of numpy with their counterparts in TensorFlow."""
    tf = load_tensorflow()
    return (
        (None, lambda x: x),
        (np.log1p, tf.math.log1p),
        (np.log, tf.math.log),
        (np.exp, tf.math.exp),
        (np.expm1, tf.math.expm1),
        (np.sqrt, tf.math.sqrt),
        (np.square, tf.math.square),
        (np.abs, tf.math.abs),
        (np.sign, lambda x: tf.where(tf.math.is_nan(x), x, tf.math.sign(x))),
        (np.tanh, tf.math.tanh),
        (np.arcsinh, tf.math.asinh),
    )


def _function(step: Step) -> Function:
    step.only(TRANSFORM)
    transformer = step.estimator
    step.require(not transformer.kw_args, "it has kw_args")
    for function, converted in _numpy_functions():
        if transformer.func is function:
            return converted
    names = ", ".join(f"numpy.{function.__name__}" for function, _ in _numpy_functions() if function is not None)
    raise step.error(f"its function is none of {names}")


_SELECTIONS = (
    "GenericUnivariateSelect",
    "RFE",
    "RFECV",
    "SelectFdr",
    "SelectFpr",
    "SelectFromModel",
    "SelectFwe",
    "SelectKBest",
    "SelectPercentile",
    "SequentialFeatureSelector",
    "VarianceThreshold",
)
CONVERTERS = {
    "sklearn.preprocessing": {
        "Binarizer": _binarizer,
        "FunctionTransformer": _function,
        "KBinsDiscretizer": _bins,
        "MaxAbsScaler": _largest_scaler,
        "MinMaxScaler": _range_scaler,
        "Normalizer": _normalizer,
        "OneHotEncoder": _one_hot,
        "OrdinalEncoder": _ordinal,
        "PolynomialFeatures": _polynomials,
        "PowerTransformer": _power,
        "QuantileTransformer": _quantiles,
        "RobustScaler": _robust_scaler,
        "StandardScaler": _standard_scaler,
    },
    "sklearn.impute": {"MissingIndicator": _missing_indicator, "SimpleImputer": _imputer},
    "sklearn.decomposition": {"IncrementalPCA": _projection, "PCA": _projection, "TruncatedSVD": _singular_vectors},
    "sklearn.feature_selection": dict.fromkeys(_SELECTIONS, _selection),
}
