"""Data for estimators, and the comparison of a converted one with its library."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

from ciml.serving.server.model.graph import check_ops
from ciml.tensorflow import load_tensorflow
from ciml.training.conversion.functions import convert
from ciml.training.conversion.step import Variables

COLUMNS = 5
#: Largest difference: of probabilities, and of other values relative to them.
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


def _nodes(graph: Any) -> Any:
    """Return the nodes of a graph or of a function in its library."""
    return graph.node if hasattr(graph, "node") else graph.node_def


def assert_equal(estimator: Any, method: str, rows: np.ndarray, bound: float) -> None:
    expected = np.asarray(getattr(estimator, method)(rows), np.float64).reshape(len(rows), -1)
    function, _ = graph(estimator, method)
    definition = function.get_concrete_function().graph.as_graph_def()
    check_ops(MetaGraphDef(graph_def=definition))
    operations = {node.op for part in (definition, *definition.library.function) for node in _nodes(part)}
    assert "Bitcast" not in operations  # OpenVINO cannot convert it
    computed = function(rows).numpy()
    assert computed.shape == expected.shape
    np.testing.assert_allclose(computed, expected, rtol=0 if method == "predict_proba" else bound, atol=bound)
    np.testing.assert_allclose(function(rows[:1]).numpy(), computed[:1], rtol=bound, atol=bound)
    assert function(rows[:0]).shape == (0, expected.shape[1])
