"""`convert` a fitted estimator to a function of TensorFlow operations, by a table of classes.

The estimators that hold others are here: pipelines, unions of columns, ensembles, calibration and searches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ciml.errors import CimlError
from ciml.tensorflow import load_tensorflow
from ciml.training.conversion import linear, preprocessing, trees
from ciml.training.conversion.forest import leaf_values
from ciml.training.conversion.linear import sigmoid_or_softmax
from ciml.training.conversion.preprocessing import interpolation
from ciml.training.conversion.step import (
    DECISION,
    METHODS,
    PREDICT,
    PREDICT_PROBA,
    TRANSFORM,
    Converter,
    Function,
    Step,
    Variables,
    is_exactly,
    normalised,
    with_complement,
)
from ciml.training.conversion.trees import joined_trees


def _mean(functions: Sequence[Function], weights: Any = None) -> Function:
    """Return the weighted mean of functions."""
    shares = np.ones(len(functions)) if weights is None else np.asarray(weights, np.float64)
    total = float(shares.sum())

    def average(x: Any) -> Any:
        tf = load_tensorflow()
        values = [function(x) * float(share) for function, share in zip(functions, shares, strict=True)]
        return tf.add_n(values) / total

    return average


def _concatenated(functions: Sequence[Function]) -> Function:
    def concatenate(x: Any) -> Any:
        tf = load_tensorflow()
        return tf.concat([function(x) for function in functions], axis=1) if functions else x[:, :0]

    return concatenate


def _unchanged(x: Any) -> Any:
    return x


def _pipeline(step: Step) -> Function:
    *transformers, (last_name, last) = step.estimator.steps
    functions = [
        step.child(transformer, TRANSFORM, f"step {name}")
        for name, transformer in transformers
        if transformer is not None and transformer != "passthrough"
    ]
    if last is not None and last != "passthrough":
        functions.append(step.child(last, step.method, f"step {last_name}"))

    def run(x: Any) -> Any:
        values = x
        for function in functions:
            values = function(values)
        return values

    return run


def _union(step: Step) -> Function:
    step.only(TRANSFORM)
    union = step.estimator
    weights = union.transformer_weights or {}

    def weighted(function: Function, weight: float | None) -> Function:
        return function if weight is None else lambda x: function(x) * weight

    functions = [
        weighted(
            _unchanged if transformer == "passthrough" else step.child(transformer, TRANSFORM, f"transformer {name}"),
            weights.get(name),
        )
        for name, transformer in union.transformer_list
        if transformer != "drop"
    ]
    return _concatenated(functions)


def _by_columns(step: Step) -> Function:
    """Convert a transformer of chosen columns. Names of columns are positions in the data that it was fitted on."""
    step.only(TRANSFORM)
    transformer = step.estimator
    positions = transformer._transformer_to_input_indices
    functions = [
        _of_columns(step, part, name, positions[name])
        for name, part, _ in transformer.transformers_
        if part != "drop" and len(positions[name])
    ]
    return _concatenated(functions)


def _of_columns(step: Step, part: Any, name: str, positions: Any) -> Function:
    tf = load_tensorflow()
    function = _unchanged if part == "passthrough" else step.child(part, TRANSFORM, f"transformer {name}")
    columns = step.variables(np.asarray(positions, np.int32))
    return lambda x: function(tf.gather(x, columns, axis=1))


def _vote(step: Step) -> Function:
    """Convert a vote by probabilities."""
    step.only(PREDICT_PROBA)
    ensemble = step.estimator
    functions = [
        step.child(estimator, PREDICT_PROBA, f"estimator {name}")
        for (name, _), estimator in zip(_present(ensemble), ensemble.estimators_, strict=True)
    ]
    return _mean(functions, ensemble._weights_not_none)


def _present(ensemble: Any) -> list[tuple[str, Any]]:
    return [(name, estimator) for name, estimator in ensemble.estimators if not isinstance(estimator, str)]


def _stack(step: Step) -> Function:
    stack = step.estimator
    binary = len(stack.classes_) == 2

    def inputs(name: str, estimator: Any, method: str) -> Function:
        function = step.child(estimator, method, f"estimator {name}")
        # Of two probabilities that add to 1, the final estimator gets the second.
        return (lambda x: function(x)[:, 1:]) if binary and method == PREDICT_PROBA else function

    triples = zip(_present(stack), stack.estimators_, stack.stack_method_, strict=True)
    functions = [inputs(name, estimator, method) for (name, _), estimator, method in triples]
    if stack.passthrough:
        functions.append(_unchanged)
    first = _concatenated(functions)
    if step.method == TRANSFORM:
        return first
    final = step.child(stack.final_estimator_, step.method, "final_estimator")
    return lambda x: final(first(x))


def _bagging(step: Step) -> Function:
    bagging = step.estimator
    step.only(PREDICT_PROBA, DECISION)
    members = bagging.estimators_
    features = bagging.estimators_features_
    classes = len(bagging.classes_)
    if step.method == PREDICT_PROBA and _are_trees(members):
        trees = [(tree, columns, _placed(tree, classes)) for tree, columns in zip(members, features, strict=True)]
        values = leaf_values(step, joined_trees(trees), bagging.n_features_in_)

        def average(x: Any) -> Any:
            tf = load_tensorflow()
            return tf.reduce_mean(values(x), axis=1)

        return average
    pairs = enumerate(zip(members, features, strict=True))
    return _mean([_member(step, number, member, columns, classes) for number, (member, columns) in pairs])


def _are_trees(members: Sequence[Any]) -> bool:
    return all(is_exactly(member, "sklearn.tree", "DecisionTreeClassifier") for member in members)


def _placed(estimator: Any, classes: int) -> np.ndarray:
    """Return the matrix that places an estimator's classes, which are positions, among all: [own classes, classes]."""
    return np.eye(classes)[np.asarray(estimator.classes_, np.int64)]


def _member(step: Step, number: int, member: Any, features: Any, classes: int) -> Function:
    """Return a member of a bag: of its columns, and with a value for each class."""
    tf = load_tensorflow()
    place = f"estimator {number}"
    columns = step.variables(np.asarray(features, np.int32))
    if step.method == PREDICT_PROBA and not hasattr(member, PREDICT_PROBA):
        label = step.child(member, PREDICT, place)
        numbers = step.variables(np.arange(float(classes)))
        return lambda x: tf.cast(label(tf.gather(x, columns, axis=1)) == numbers, tf.float64)
    function = step.child(member, step.method, place)
    if step.method == DECISION or len(member.classes_) == classes:
        return lambda x: function(tf.gather(x, columns, axis=1))
    placed = step.variables(_placed(member, classes))
    return lambda x: tf.matmul(function(tf.gather(x, columns, axis=1)), placed)


def _adaptive_boosting(step: Step) -> Function:
    step.only(PREDICT_PROBA, DECISION)
    boosting = step.estimator
    classes = len(boosting.classes_)
    step.require(classes > 1, "it learned a single class")
    weights = boosting.estimator_weights_[: len(boosting.estimators_)]
    # Weights are divided here because OpenVINO 2026.4 errs where it divides a sum of leaves.
    votes = list(_votes(step, weights / boosting.estimator_weights_.sum()))

    def scores(x: Any) -> Any:
        tf = load_tensorflow()
        values = tf.add_n([vote(x) for vote in votes])
        return values[:, 1:] - values[:, :1] if classes == 2 else values

    if step.method == DECISION:
        return scores
    return lambda x: sigmoid_or_softmax(scores(x) / (1 if classes == 2 else classes - 1))


def _votes(step: Step, weights: np.ndarray) -> Iterator[Function]:
    """Yield functions whose sum is the votes for each class, [n, C]: of all trees, or of each estimator."""
    tf = load_tensorflow()
    boosting = step.estimator
    members = boosting.estimators_
    labels = np.asarray(boosting.classes_)
    classes = len(labels)
    # A vote for a class counts against each other one.
    votes = (np.eye(classes) * classes - 1) / (classes - 1)
    if _are_trees(members):
        trees = []
        for tree, weight in zip(members, weights, strict=True):
            placed = votes[np.searchsorted(labels, tree.classes_)] * weight
            trees.append((tree, None, placed))
        values = leaf_values(step, joined_trees(trees, chosen=True), boosting.n_features_in_)
        yield lambda x: tf.reduce_sum(values(x), axis=1)
        return
    step.require(labels.dtype.kind in "iufb", "its classes are not numbers")
    numbers = step.variables(labels.astype(np.float64))
    for number, (member, weight) in enumerate(zip(members, weights, strict=True)):
        label = step.child(member, PREDICT, f"estimator {number}")
        table = step.variables(votes * weight)
        yield _table_of(label, numbers, table)


def _table_of(label: Function, numbers: Any, table: Any) -> Function:
    tf = load_tensorflow()
    return lambda x: tf.matmul(tf.cast(label(x) == numbers, tf.float64), table)


def _calibrated(step: Step) -> Function:
    step.only(PREDICT_PROBA)
    members = step.estimator.calibrated_classifiers_
    return _mean([_calibrated_member(step, member) for member in members])


def _calibrated_member(step: Step, member: Any) -> Function:
    """Convert a classifier with its calibrators."""
    classes = len(member.classes)
    method = DECISION if hasattr(member.estimator, DECISION) else PREDICT_PROBA
    scores = step.child(member.estimator, method, "estimator")
    if member.method == "temperature":
        return _with_temperature(scores, method, float(member.calibrators[0].beta_))
    places = np.searchsorted(member.classes, member.estimator.classes_)
    curves = [_calibrator(step, calibrator) for calibrator in member.calibrators]

    def probabilities(x: Any) -> Any:
        tf = load_tensorflow()
        values = scores(x)
        if classes == 2:
            return with_complement(curves[0](values[:, -1])[:, tf.newaxis])
        columns = [tf.zeros_like(values[:, 0])] * classes
        for column, (place, curve) in enumerate(zip(places, curves, strict=True)):
            columns[place] = curve(values[:, column])
        return normalised(tf.stack(columns, axis=1))

    return probabilities


def _calibrator(step: Step, calibrator: Any) -> Callable[[Any], Any]:
    """Convert the calibrator of a class: float64 [n] to probabilities [n]."""
    if hasattr(calibrator, "X_thresholds_"):
        return interpolation(step, calibrator.X_thresholds_, calibrator.y_thresholds_)
    step.require(hasattr(calibrator, "a_"), f"it has no conversion of {type(calibrator).__name__}")
    tf = load_tensorflow()
    return lambda values: tf.sigmoid(-(float(calibrator.a_) * values + float(calibrator.b_)))


#: That scikit-learn adds to a probability before it takes the logarithm.
_TEMPERATURE_EPSILON = 1e-12


def _with_temperature(scores: Function, method: str, inverse: float) -> Function:
    def probabilities(x: Any) -> Any:
        tf = load_tensorflow()
        values = scores(x)
        if method == PREDICT_PROBA:
            values = tf.math.log(values + _TEMPERATURE_EPSILON)
        elif values.shape[1] == 1:
            values = tf.concat([-values, values], axis=1)
        return tf.nn.softmax(inverse * values)

    return probabilities


def _one_against_rest(step: Step) -> Function:
    step.only(PREDICT_PROBA, DECISION)
    estimator = step.estimator
    step.require(not estimator.multilabel_, "it predicts several labels")
    pairs = enumerate(estimator.estimators_)
    functions = [step.child(member, step.method, f"estimator {number}") for number, member in pairs]
    scores = _concatenated([_last_column(function) for function in functions])
    if step.method == DECISION:
        return scores
    if len(functions) == 1:
        return lambda x: with_complement(scores(x))

    def probabilities(x: Any) -> Any:
        tf = load_tensorflow()
        values = scores(x)
        return tf.math.divide_no_nan(values, tf.reduce_sum(values, axis=1, keepdims=True))

    return probabilities


def _last_column(function: Function) -> Function:
    return lambda x: function(x)[:, -1:]


def _holder(attribute: str) -> Converter:
    """Return the converter of an estimator that answers as the one in its attribute does."""

    def convert(step: Step) -> Function:
        return step.child(getattr(step.estimator, attribute), step.method, attribute)

    return convert


def _threshold(step: Step) -> Function:
    step.only(PREDICT_PROBA, DECISION)  # its labels depend on the threshold
    return step.child(step.estimator.estimator_, step.method, "estimator_")


_HOLDERS: Mapping[str, Mapping[str, Converter]] = {
    "sklearn.pipeline": {"FeatureUnion": _union, "Pipeline": _pipeline},
    "sklearn.compose": {"ColumnTransformer": _by_columns},
    "sklearn.ensemble": {
        "AdaBoostClassifier": _adaptive_boosting,
        "BaggingClassifier": _bagging,
        "StackingClassifier": _stack,
        "VotingClassifier": _vote,
    },
    "sklearn.calibration": {"CalibratedClassifierCV": _calibrated},
    "sklearn.multiclass": {"OneVsRestClassifier": _one_against_rest},
    "sklearn.model_selection": {
        "FixedThresholdClassifier": _threshold,
        "GridSearchCV": _holder("best_estimator_"),
        "RandomizedSearchCV": _holder("best_estimator_"),
        "TunedThresholdClassifierCV": _threshold,
    },
    "sklearn.frozen": {"FrozenEstimator": _holder("estimator")},
}


_TABLES: tuple[Mapping[str, Mapping[str, Converter]], ...] = (
    linear.CONVERTERS,
    trees.CONVERTERS,
    preprocessing.CONVERTERS,
    _HOLDERS,
)
#: By the name of a class, its public module and its converter. Anything else is rejected by name.
CONVERTERS: dict[str, tuple[str, Converter]] = {
    name: (module, converter)
    for table in _TABLES
    for module, converters in table.items()
    for name, converter in converters.items()
}


def convert(estimator: Any, method: str, variables: Variables, path: str = "") -> Function:
    """Convert a method of a fitted estimator to a function of TensorFlow operations.

        variables = Variables()
        probabilities = convert(forest, "predict_proba", variables)
        probabilities(tf.constant(rows, tf.float64))

    Create variables outside of a ``tf.function``; call the returned function in one.

    Args:
      estimator: fitted, of a class that docs/training.md lists.
      method: ``predict_proba``, ``decision_function``, ``transform`` or ``predict``.
      variables: collects the estimator's arrays; save ``variables.all`` with the function.
      path: the estimator's place for errors, such as ``step knn of Pipeline``.

    Returns:
      A function from float64 [n, k] to float64 [n, outputs]. Outputs are the classes in the order of ``classes_``,
      a single column for ``decision_function`` of two classes and for ``predict``, or the transformed columns. It may
      be called with no rows, and computes NaN where the library would reject a value.

    Raises:
      ConversionError: the estimator, or a step of it, cannot be converted; the message names it.
    """
    if method not in METHODS:
        raise CimlError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
    return Step(estimator, method, variables, path, CONVERTERS).function()
