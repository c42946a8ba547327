"""`convert` a fitted estimator to a function of TensorFlow operations, by a table of classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ciml.errors import CimlError
from ciml.training.conversion import classifiers, composition, linear, preprocessing, trees
from ciml.training.conversion.step import METHODS, Converter, Function, Step, Variables

_TABLES: tuple[Mapping[str, Mapping[str, Converter]], ...] = (
    linear.CONVERTERS,
    trees.CONVERTERS,
    classifiers.CONVERTERS,
    preprocessing.CONVERTERS,
    composition.CONVERTERS,
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
