"""Converts decision trees, forests and gradient boosting of scikit-learn, XGBoost and LightGBM.

Values are compared as each library compares them: scikit-learn's trees and XGBoost in float32, its histogram boosting
and LightGBM in float64. Leaves are added in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ciml.tensorflow import load_tensorflow
from ciml.training.conversion import forest
from ciml.training.conversion.forest import Nodes, joined, leaf_values
from ciml.training.conversion.linear import sigmoid_or_softmax
from ciml.training.conversion.step import DECISION, PREDICT, PREDICT_PROBA, Function, Step


def _tree_nodes(tree: Any) -> Nodes:
    """Return the nodes of a scikit-learn tree."""
    return Nodes(
        feature=tree.feature,
        threshold=tree.threshold,
        left=tree.children_left,
        right=tree.children_right,
        missing=np.where(tree.missing_go_to_left, forest.LEFT, forest.RIGHT),
        value=tree.value[:, 0, :],
        roots=np.array([0]),
        narrow=True,
    )


def joined_trees(members: Iterable[tuple[Any, np.ndarray | None, np.ndarray]], *, chosen: bool = False) -> Nodes:
    """Return the nodes of an ensemble's decision trees.

    Args:
      members: a fitted tree, the columns that it was given (int, None for all), and the matrix float64 [own classes,
        outputs] that its probabilities are multiplied by.
      chosen: whether a leaf counts as its most probable class alone.
    """
    trees = []
    for member, columns, matrix in members:
        nodes = _tree_nodes(member.tree_)
        value = np.eye(nodes.value.shape[1])[nodes.value.argmax(axis=1)] if chosen else nodes.value
        # A leaf names no column.
        feature = nodes.feature if columns is None else np.asarray(columns)[np.maximum(nodes.feature, 0)]
        trees.append(replace(nodes, feature=feature, value=value @ matrix))
    return joined(trees)


def _forest(step: Step) -> Function:
    """Convert a tree, or the average of a forest's trees."""
    estimator = step.estimator
    step.only(PREDICT_PROBA, PREDICT)
    step.require(estimator.n_outputs_ == 1, "it predicts several outputs")
    trees = getattr(estimator, "estimators_", [estimator])
    nodes = joined([_tree_nodes(tree.tree_) for tree in trees])
    values = leaf_values(step, nodes, estimator.n_features_in_)

    def average(x: Any) -> Any:
        tf = load_tensorflow()
        return tf.reduce_mean(values(x), axis=1)  # OpenVINO 2026.4 errs where it divides a sum of leaves

    return average


def _summed(step: Step, nodes: Nodes, classes: np.ndarray, columns: int) -> Function:
    """Return the sums of the leaves by class, float64 [n, C], of trees with one value.

    Args:
      step: collects the arrays.
      nodes: of all trees.
      classes: int [trees], to which column a tree adds.
      columns: the number of features.
    """
    values = leaf_values(step, nodes, columns)
    outputs = step.variables(np.eye(classes.max() + 1)[classes])

    def add(x: Any) -> Any:
        tf = load_tensorflow()
        return tf.matmul(values(x)[:, :, 0], outputs)

    return add


def _scores_or_probabilities(step: Step, scores: Function, link: Callable[[Any], Any] = sigmoid_or_softmax) -> Function:
    if step.method == DECISION:
        return scores
    step.only(PREDICT_PROBA)
    return lambda x: link(scores(x))


def _gradient_boosting(step: Step) -> Function:
    estimator = step.estimator
    stages = estimator.estimators_
    nodes = joined([_tree_nodes(tree.tree_) for tree in stages.ravel()])
    added = _summed(step, nodes, np.tile(np.arange(stages.shape[1]), len(stages)), estimator.n_features_in_)
    exponential = estimator.loss == "exponential"
    initial = None
    if not isinstance(estimator.init_, str):
        initial = step.child(estimator.init_, PREDICT_PROBA, "init")

    def scores(x: Any) -> Any:
        tf = load_tensorflow()
        total = added(x) * estimator.learning_rate
        if initial is None:
            return total
        narrow = tf.cast(tf.cast(x, tf.float32), tf.float64)  # the library rounds before its first stage too
        return total + _initial_scores(initial(narrow), exponential=exponential)

    def probabilities(values: Any) -> Any:
        return sigmoid_or_softmax(2 * values if exponential else values)

    return _scores_or_probabilities(step, scores, probabilities)


def _initial_scores(probabilities: Any, *, exponential: bool) -> Any:
    """Return the scores of the first stage, [n, 1] of two classes or [n, C], from its probabilities."""
    tf = load_tensorflow()
    epsilon = np.finfo(np.float64).eps
    clipped = tf.clip_by_value(probabilities, epsilon, 1 - epsilon)
    if clipped.shape[1] == 2:
        positive = clipped[:, 1:]
        return (tf.math.log(positive) - tf.math.log(1 - positive)) * (0.5 if exponential else 1)
    logarithms = tf.math.log(clipped)
    return logarithms - tf.reduce_mean(logarithms, axis=1, keepdims=True)


def _treelite_nodes(step: Step, model: Any, *, as_xgboost: bool) -> Iterator[Nodes]:
    """Yield the nodes of each tree of a treelite model."""
    for number in range(model.num_tree):
        tree = model.get_tree_accessor(number)
        step.require(not tree.get_field("has_categorical_split")[0], "it splits categories")
        left = tree.get_field("cleft")
        yield Nodes(
            feature=tree.get_field("split_index"),
            threshold=tree.get_field("threshold"),
            left=left,
            right=tree.get_field("cright"),
            missing=np.where(tree.get_field("default_left"), forest.LEFT, forest.RIGHT),
            value=tree.get_field("leaf_value").astype(np.float64)[:, np.newaxis],
            roots=np.array([0]),
            narrow=as_xgboost,
            strict=as_xgboost,
        )


def _treelite_scores(step: Step, model: Any, *, as_xgboost: bool = False) -> Function:
    header = model.get_header_accessor()
    nodes = joined(list(_treelite_nodes(step, model, as_xgboost=as_xgboost)))
    added = _summed(step, nodes, header.get_field("class_id"), step.estimator.n_features_in_)
    base = step.variables(header.get_field("base_scores"))
    return lambda x: added(x) + base


def _histogram_boosting(step: Step) -> Function:
    import treelite

    estimator = step.estimator
    step.require(estimator.is_categorical_ is None, "it has categorical features")
    return _scores_or_probabilities(step, _treelite_scores(step, treelite.sklearn.import_model(estimator)))


def _xgboost(step: Step) -> Function:
    import treelite

    estimator = step.estimator
    booster = estimator.get_booster()
    step.require(estimator.booster in (None, "gbtree", "dart"), f"its booster is {estimator.booster}")
    objective = str(estimator.objective)
    step.require(objective in ("binary:logistic", "multi:softprob", "multi:softmax"), f"its objective is {objective}")
    step.require(estimator.multi_strategy != "multi_output_tree", "its leaves are vectors")
    if booster.attr("best_iteration") is not None:  # set by early stopping
        booster = booster[: estimator.best_iteration + 1]
    scores = _treelite_scores(step, treelite.frontend.from_xgboost(booster), as_xgboost=True)
    marker = float(estimator.missing)

    def with_missing(x: Any) -> Any:
        tf = load_tensorflow()
        narrow = tf.cast(x, tf.float32)
        return scores(tf.where(narrow == np.float32(marker), tf.constant(np.nan, x.dtype), x))

    return _scores_or_probabilities(step, scores if np.isnan(marker) else with_missing)


def _lightgbm(step: Step) -> Function:
    """Convert a LightGBM model, from its own description of the trees: treelite does not read what is missing."""
    estimator = step.estimator
    model = estimator.booster_.dump_model()
    kind, *settings = model["objective"].split()
    options = dict(setting.split(":", 1) for setting in settings if ":" in setting)
    step.require(kind in ("binary", "multiclass", "multiclassova"), f"its objective is {kind}")
    trees = model["tree_info"]
    nodes = joined([_lightgbm_nodes(step, tree["tree_structure"]) for tree in trees])
    outputs = model["num_tree_per_iteration"]
    added = _summed(step, nodes, np.arange(len(trees)) % outputs, estimator.n_features_in_)
    # The probabilities of a random forest are those of its average tree; its scores are sums.
    averaged = model["average_output"] and step.method == PREDICT_PROBA
    scale = outputs / len(trees) if averaged else 1.0
    slope = float(options.get("sigmoid", 1))

    def link(scores: Any) -> Any:
        tf = load_tensorflow()
        if kind == "multiclassova":
            return tf.sigmoid(slope * scores)
        return sigmoid_or_softmax(slope * scores) if kind == "binary" else tf.nn.softmax(scores)

    return _scores_or_probabilities(step, lambda x: added(x) * scale, link)


_LIGHTGBM_MISSING = {
    ("None", False): forest.AS_ZERO,
    ("None", True): forest.AS_ZERO,
    ("Zero", False): forest.ZERO_RIGHT,
    ("Zero", True): forest.ZERO_LEFT,
    ("NaN", False): forest.RIGHT,
    ("NaN", True): forest.LEFT,
}


def _lightgbm_nodes(step: Step, root: Any) -> Nodes:
    """Return the nodes of a tree that LightGBM describes as nested objects."""
    rows: list[tuple[int, float, int, int, int, float]] = []
    pending = [(root, -1, 0)]
    children: dict[tuple[int, int], int] = {}
    while pending:
        node, parent, side = pending.pop()
        children[parent, side] = len(rows)
        if "split_feature" not in node:
            step.require("leaf_const" not in node, "its leaves are linear models")
            rows.append((0, 0.0, -1, -1, forest.LEFT, node["leaf_value"]))
            continue
        step.require(node["decision_type"] == "<=", "it splits categories")
        missing = _LIGHTGBM_MISSING[node["missing_type"], node["default_left"]]
        pending += [(node["left_child"], len(rows), 0), (node["right_child"], len(rows), 1)]
        rows.append((node["split_feature"], node["threshold"], 0, 0, missing, 0.0))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    feature, threshold, left, right, missing_kinds, value = columns
    for (parent, side), position in children.items():
        if parent >= 0:
            (right if side else left)[parent] = position
    return Nodes(feature, threshold, left, right, missing_kinds, value[:, np.newaxis], np.array([0]))


CONVERTERS = {
    "sklearn.tree": {
        "DecisionTreeClassifier": _forest,
        "DecisionTreeRegressor": _forest,
        "ExtraTreeClassifier": _forest,
        "ExtraTreeRegressor": _forest,
    },
    "sklearn.ensemble": {
        "RandomForestClassifier": _forest,
        "RandomForestRegressor": _forest,
        "ExtraTreesClassifier": _forest,
        "ExtraTreesRegressor": _forest,
        "GradientBoostingClassifier": _gradient_boosting,
        "HistGradientBoostingClassifier": _histogram_boosting,
    },
    "xgboost": {"XGBClassifier": _xgboost, "XGBRFClassifier": _xgboost},
    "lightgbm": {"LGBMClassifier": _lightgbm},
}
