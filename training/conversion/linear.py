"""Converts linear classifiers, regressions and discriminant analysis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ciml.tensorflow import load_tensorflow
from ciml.training.conversion.step import (
    DECISION,
    PREDICT,
    PREDICT_PROBA,
    TRANSFORM,
    Function,
    Step,
    normalised,
    with_complement,
)


def linear_scores(step: Step, coefficients: Any, intercept: Any) -> Function:
    """Return the function x @ coefficients.T + intercept.

    Args:
      step: of the estimator.
      coefficients: float [outputs, k].
      intercept: float [outputs], or a number.
    """
    weights = np.atleast_2d(np.asarray(coefficients, np.float64)).T
    kernel = step.variables(np.ascontiguousarray(weights))
    offset = step.variables(np.broadcast_to(np.asarray(intercept, np.float64), weights.shape[1]).copy())

    def scores(x: Any) -> Any:
        tf = load_tensorflow()
        return tf.matmul(x, kernel) + offset

    return scores


def _scores(step: Step) -> Function:
    return linear_scores(step, step.estimator.coef_, step.estimator.intercept_)


def _decision(step: Step) -> Function:
    """Convert a classifier without probabilities."""
    step.only(DECISION)
    return _scores(step)


def _regression(step: Step) -> Function:
    step.only(PREDICT)
    return _scores(step)


def _with_probabilities(step: Step, link: Callable[[Any], Any]) -> Function:
    scores = _scores(step)
    if step.method == DECISION:
        return scores
    step.only(PREDICT_PROBA)
    return lambda x: link(scores(x))


def sigmoid_or_softmax(scores: Any) -> Any:
    """Return probabilities [n, C]: the sigmoid of one column of scores, or the softmax of C."""
    tf = load_tensorflow()
    return with_complement(tf.sigmoid(scores)) if scores.shape[1] == 1 else tf.nn.softmax(scores)


def _sigmoid_of_each(scores: Any) -> Any:
    """Return probabilities [n, C] of classifiers against the rest: normalised sigmoids."""
    tf = load_tensorflow()
    sigmoids = tf.sigmoid(scores)
    return with_complement(sigmoids) if scores.shape[1] == 1 else normalised(sigmoids)


def _modified_huber(scores: Any) -> Any:
    tf = load_tensorflow()
    ones = tf.ones_like(scores)
    clipped = (tf.minimum(tf.maximum(scores, -ones), ones) + 1) / 2
    return with_complement(clipped) if scores.shape[1] == 1 else normalised(clipped)


def _logistic(step: Step) -> Function:
    return _with_probabilities(step, sigmoid_or_softmax)


def _stochastic_gradient(step: Step) -> Function:
    return _with_probabilities(step, _modified_huber if step.estimator.loss == "modified_huber" else _sigmoid_of_each)


def _discriminant(step: Step) -> Function:
    if step.method == TRANSFORM:
        return _discriminant_axes(step)
    return _with_probabilities(step, sigmoid_or_softmax)


def _discriminant_axes(step: Step) -> Function:
    """Project to the axes of a linear discriminant analysis."""
    lda = step.estimator
    step.require(lda.solver != "lsqr", "the solver lsqr has no transform")
    # The number of axes is private in scikit-learn, and the transform cuts to it.
    axes = np.asarray(lda.scalings_, np.float64)[:, : lda._max_components]
    center = np.asarray(lda.xbar_, np.float64) if lda.solver == "svd" else np.zeros(len(axes))
    mean = step.variables(center)
    scores = linear_scores(step, axes.T, 0)
    return lambda x: scores(x - mean)


def _quadratic(step: Step) -> Function:
    """Convert a quadratic discriminant analysis: the log posterior of a normal distribution for each class."""
    qda = step.estimator
    step.only(DECISION, PREDICT_PROBA)
    pairs = zip(qda.rotations_, qda.scalings_, strict=True)
    axes = [step.variables(np.asarray(rotation) * np.asarray(scaling) ** -0.5) for rotation, scaling in pairs]
    means = step.variables(np.asarray(qda.means_, np.float64))
    volumes = np.array([np.log(scaling).sum() for scaling in qda.scalings_])
    offset = step.variables(np.log(qda.priors_) - 0.5 * volumes)

    def posteriors(x: Any) -> Any:
        tf = load_tensorflow()
        norms = [
            tf.reduce_sum(tf.square(tf.matmul(x - means[number], axis)), axis=1) for number, axis in enumerate(axes)
        ]
        return offset - 0.5 * tf.stack(norms, axis=1)

    def decide(x: Any) -> Any:
        values = posteriors(x)
        return values[:, 1:] - values[:, :1] if len(axes) == 2 else values

    def probabilities(x: Any) -> Any:
        tf = load_tensorflow()
        return tf.nn.softmax(posteriors(x))

    return decide if step.method == DECISION else probabilities


CONVERTERS = {
    "sklearn.linear_model": {
        "LogisticRegression": _logistic,
        "LogisticRegressionCV": _logistic,
        "SGDClassifier": _stochastic_gradient,
        "RidgeClassifier": _decision,
        "RidgeClassifierCV": _decision,
        "Perceptron": _decision,
        "PassiveAggressiveClassifier": _decision,
        "LinearRegression": _regression,
        "Ridge": _regression,
        "RidgeCV": _regression,
        "Lasso": _regression,
        "LassoCV": _regression,
        "ElasticNet": _regression,
        "ElasticNetCV": _regression,
    },
    "sklearn.svm": {"LinearSVC": _decision},
    "sklearn.discriminant_analysis": {
        "LinearDiscriminantAnalysis": _discriminant,
        "QuadraticDiscriminantAnalysis": _quadratic,
    },
}
