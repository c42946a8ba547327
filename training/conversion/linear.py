"""Converts linear classifiers and regressions, discriminant analysis, naive Bayes, support vectors, networks of layers,
and constant predictions.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
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


def _softmax_of(step: Step, scores: Function) -> Function:
    step.only(PREDICT_PROBA)

    def probabilities(x: Any) -> Any:
        tf = load_tensorflow()
        return tf.nn.softmax(scores(x))

    return probabilities


def _normal_bayes(step: Step) -> Function:
    bayes = step.estimator
    means = step.variables(np.asarray(bayes.theta_, np.float64))
    variances = step.variables(np.asarray(bayes.var_, np.float64))
    offset = step.variables(np.log(bayes.class_prior_) - 0.5 * np.log(2 * np.pi * bayes.var_).sum(axis=1))

    def scores(x: Any) -> Any:
        tf = load_tensorflow()
        distances = [
            tf.reduce_sum(tf.square(x - means[number]) / variances[number], axis=1) for number in range(means.shape[0])
        ]
        return offset - 0.5 * tf.stack(distances, axis=1)

    return _softmax_of(step, scores)


def _multinomial_bayes(step: Step) -> Function:
    bayes = step.estimator
    return _softmax_of(step, linear_scores(step, bayes.feature_log_prob_, bayes.class_log_prior_))


def _complement_bayes(step: Step) -> Function:
    bayes = step.estimator
    prior = bayes.class_log_prior_ if len(bayes.classes_) == 1 else 0
    return _softmax_of(step, linear_scores(step, bayes.feature_log_prob_, prior))


def _binary_bayes(step: Step) -> Function:
    bayes = step.estimator
    absent = np.log(1 - np.exp(bayes.feature_log_prob_))
    scores = linear_scores(step, bayes.feature_log_prob_ - absent, bayes.class_log_prior_ + absent.sum(axis=1))
    if bayes.binarize is None:
        return _softmax_of(step, scores)
    tf = load_tensorflow()
    return _softmax_of(step, lambda x: scores(tf.cast(x > bayes.binarize, tf.float64)))


def _constant(step: Step) -> Function:
    step.only(PREDICT_PROBA)
    dummy = step.estimator
    step.require(dummy.n_outputs_ == 1, "it predicts several outputs")
    step.require(dummy.strategy not in ("stratified", "uniform"), f"its strategy {dummy.strategy} is random")
    if dummy.strategy == "prior":
        row = np.asarray(dummy.class_prior_, np.float64)
    elif dummy.strategy == "most_frequent":
        row = np.eye(dummy.n_classes_)[np.argmax(dummy.class_prior_)]
    else:
        row = (np.asarray(dummy.classes_) == dummy.constant).astype(np.float64)
    probabilities = step.variables(row)

    def predict(x: Any) -> Any:
        tf = load_tensorflow()
        return tf.ones([tf.shape(x)[0], 1], tf.float64) * probabilities

    return predict


def _activation(name: str) -> Callable[[Any], Any]:
    tf = load_tensorflow()
    activations: dict[str, Callable[[Any], Any]] = {
        "identity": tf.identity,
        "relu": tf.nn.relu,
        "logistic": tf.sigmoid,
        "tanh": tf.tanh,
    }
    return activations[name]


def _network(step: Step) -> Function:
    """Convert a network of dense layers."""
    step.only(PREDICT_PROBA)
    network = step.estimator
    binary = network.out_activation_ == "logistic"
    step.require(not binary or len(network.classes_) == 2, "it predicts several labels")
    activation = _activation(network.activation)
    # A layer holds its weights as [inputs, outputs].
    pairs = zip(network.coefs_, network.intercepts_, strict=True)
    layers = [linear_scores(step, weights.T, bias) for weights, bias in pairs]

    def probabilities(x: Any) -> Any:
        values = x
        for layer in layers[:-1]:
            values = activation(layer(values))
        return sigmoid_or_softmax(layers[-1](values))

    return probabilities


def _kernel(step: Step) -> Callable[[Any, Any], Any]:
    """Return the kernel of support vectors: float64 [n, k] and [m, k] to [n, m]."""
    machine = step.estimator
    name = machine.kernel
    step.require(name in ("linear", "poly", "rbf", "sigmoid"), "its kernel is a function or a matrix")
    # The value of gamma="scale" is private in scikit-learn.
    gamma = float(machine._gamma)

    def evaluate(x: Any, vectors: Any) -> Any:
        tf = load_tensorflow()
        if name == "rbf":
            # Distances stay as they are, and keep more digits, when both are moved to the vectors' mean.
            center = tf.reduce_mean(vectors, axis=0)
            moved = x - center
            centred = vectors - center
            squares = tf.reduce_sum(tf.square(moved), axis=1, keepdims=True) + tf.reduce_sum(tf.square(centred), axis=1)
            distances = squares - 2 * tf.matmul(moved, centred, transpose_b=True)
            return tf.exp(-gamma * tf.maximum(distances, tf.zeros_like(distances)))
        products = tf.matmul(x, vectors, transpose_b=True)
        if name == "linear":
            return products
        scaled = gamma * products + machine.coef0
        return tf.tanh(scaled) if name == "sigmoid" else scaled ** float(machine.degree)

    return evaluate


def _support_vectors(step: Step) -> Function:
    """Convert the decision function: of each pair of classes, and from these the votes and confidences of each."""
    step.require(step.method != PREDICT_PROBA, "its probabilities are estimated apart; use CalibratedClassifierCV")
    step.only(DECISION)
    machine = step.estimator
    kernel = _kernel(step)
    vectors = step.variables(np.asarray(machine.support_vectors_, np.float64))
    scores = linear_scores(step, _pair_weights(machine), machine.intercept_)
    classes = len(machine.classes_)
    by_pair = classes == 2 or machine.decision_function_shape == "ovo"
    pairs = np.array(list(combinations(range(classes), 2)))
    first = step.variables(np.eye(classes)[pairs[:, 0]])
    second = step.variables(np.eye(classes)[pairs[:, 1]])

    def decide(x: Any) -> Any:
        tf = load_tensorflow()
        margins = scores(kernel(x, vectors))
        if by_pair:
            return margins
        lost = tf.cast(margins < 0, tf.float64)
        votes = tf.matmul(1 - lost, first) + tf.matmul(lost, second)
        confidences = tf.matmul(margins, first) - tf.matmul(margins, second)
        return votes + confidences / (3 * (tf.abs(confidences) + 1))

    return decide


def _pair_weights(machine: Any) -> np.ndarray:
    """Return the weights of the support vectors in each pair of classes, float64 [pairs, vectors].

    LIBSVM stores for a vector of class i its weights against the other classes: row j-1 against a later class j, and
    row j against an earlier one.
    """
    dual = np.asarray(machine.dual_coef_, np.float64)
    if len(machine.classes_) == 2:
        return dual
    ends = np.cumsum(machine.n_support_)
    groups = [slice(end - size, end) for end, size in zip(ends, machine.n_support_, strict=True)]
    pairs = list(combinations(range(len(groups)), 2))
    weights = np.zeros((len(pairs), dual.shape[1]))
    for row, (earlier, later) in zip(weights, pairs, strict=True):
        row[groups[earlier]] = dual[later - 1, groups[earlier]]
        row[groups[later]] = dual[earlier, groups[later]]
    return weights


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
    "sklearn.discriminant_analysis": {
        "LinearDiscriminantAnalysis": _discriminant,
        "QuadraticDiscriminantAnalysis": _quadratic,
    },
    "sklearn.naive_bayes": {
        "BernoulliNB": _binary_bayes,
        "ComplementNB": _complement_bayes,
        "GaussianNB": _normal_bayes,
        "MultinomialNB": _multinomial_bayes,
    },
    "sklearn.dummy": {"DummyClassifier": _constant},
    "sklearn.neural_network": {"MLPClassifier": _network},
    "sklearn.svm": {"LinearSVC": _decision, "NuSVC": _support_vectors, "SVC": _support_vectors},
}
