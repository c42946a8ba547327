"""A step of a conversion: a fitted estimator, the method to convert, and how its errors name it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ciml.errors import CimlError
from ciml.tensorflow import load_tensorflow

#: From a tensor float64 [n, k] to a tensor float64 [n, outputs].
Function = Callable[[Any], Any]

PREDICT_PROBA = "predict_proba"
DECISION = "decision_function"
TRANSFORM = "transform"
PREDICT = "predict"
METHODS = (PREDICT_PROBA, DECISION, TRANSFORM, PREDICT)

#: Classifiers whose ``predict`` need not be the class of the largest score: their converters decide.
_OWN_PREDICT = frozenset(
    {
        "FixedThresholdClassifier",
        "FrozenEstimator",
        "GridSearchCV",
        "NuSVC",
        "OneVsRestClassifier",
        "Pipeline",
        "RandomizedSearchCV",
        "SVC",
        "TunedThresholdClassifierCV",
    }
)
#: Their ``predict`` is the class of the largest probability, though they have scores.
_BY_PROBABILITY = frozenset({"BaggingClassifier", "LGBMClassifier"})


class ConversionError(CimlError):
    """An estimator, or a step of it, cannot be converted to TensorFlow operations. The message names the step."""


@dataclass
class Variables:
    """The arrays of converted estimators, as variables: a SavedModel stores them in a file and not in its graph.

    Attributes:
      all: the variables, none of them trainable. A ``tf.Module`` that holds this list saves them.
    """

    all: list[Any] = field(default_factory=list)

    def __call__(self, array: Any) -> Any:
        """Return the variable of a new array; its dtype is kept."""
        tf = load_tensorflow()
        variable = tf.Variable(np.asarray(array), trainable=False)
        self.all.append(variable)
        return variable


@dataclass(frozen=True)
class Step:
    """A fitted estimator on its way to a function.

    Attributes:
      estimator: the fitted estimator.
      method: the name of its method that is converted, one of `METHODS`.
      variables: collects its arrays.
      path: its place, such as ``step knn of Pipeline``; "" for the whole estimator.
      converters: by the name of a class, its public module and its converter.
    """

    estimator: Any
    method: str
    variables: Variables
    path: str
    converters: Mapping[str, tuple[str, Converter]]

    def function(self) -> Function:
        """Convert the estimator's method.

        Raises:
          ConversionError: naming the step that cannot be converted.
        """
        name = type(self.estimator).__name__
        module, converter = self.converters.get(name, ("", _unknown))
        # A subclass may override methods, so the exact class counts.
        if not module or not is_exactly(self.estimator, module, name):
            raise self.error()
        if not hasattr(self.estimator, self.method):
            raise self.error(f"it has no method {self.method}")
        if self.method == PREDICT and hasattr(self.estimator, "classes_") and name not in _OWN_PREDICT:
            return self._labels()
        return converter(self)

    def child(self, estimator: Any, method: str, place: str) -> Function:
        """Convert an estimator that this one holds.

        Args:
          estimator: the fitted one.
          method: one of `METHODS`.
          place: what it is here, such as ``step knn``.

        Raises:
          ConversionError: naming the step that cannot be converted.
        """
        path = f"{place} of {type(self.estimator).__name__}" + (f", {self.path}" if self.path else "")
        return replace(self, estimator=estimator, method=method, path=path).function()

    def error(self, reason: str = "") -> ConversionError:
        """Return the error of a step that cannot be converted."""
        name = type(self.estimator).__name__
        subject = f"the {self.path} ({name})" if self.path else name
        return ConversionError(
            f"{subject} cannot be converted to TensorFlow operations{f': {reason}' if reason else ''}; "
            "choose an estimator that can, see docs/training.md"
        )

    def require(self, condition: bool, reason: str) -> None:
        """Raise the error of this step unless a condition holds."""
        if not condition:
            raise self.error(reason)

    def only(self, *methods: str) -> None:
        """Raise the error of this step unless its method is one of some."""
        self.require(self.method in methods, f"its {self.method} has no conversion")

    def _labels(self) -> Function:
        """Return the predicted labels, float64 [n, 1]: the class of the largest score or probability."""
        by_score = hasattr(self.estimator, DECISION) and type(self.estimator).__name__ not in _BY_PROBABILITY
        method = DECISION if by_score else PREDICT_PROBA
        scores = replace(self, method=method).function()
        classes = np.asarray(self.estimator.classes_)
        self.require(classes.dtype.kind in "iufb", "its classes are not numbers")
        labels = self.variables(classes.astype(np.float64))

        def predict(x: Any) -> Any:
            tf = load_tensorflow()
            values = scores(x)
            if values.shape[1] == 1 < len(classes):
                positions = tf.cast(values[:, 0] > 0, tf.int64)
            else:
                positions = tf.argmax(values, axis=1)
            return tf.gather(labels, positions)[:, tf.newaxis]

        return predict


#: Converts the method of a step.
Converter = Callable[[Step], Function]


def is_exactly(estimator: Any, module: str, name: str) -> bool:
    """Return whether an object is an instance of a public class, and not of a subclass of it."""
    import sys

    return type(estimator) is getattr(sys.modules.get(module), name, None)


def _unknown(step: Step) -> Function:
    raise step.error()


def with_complement(positive: Any) -> Any:
    """Return float64 [n, 2] from the probability of the second class, [n, 1]."""
    tf = load_tensorflow()
    return tf.concat([1 - positive, positive], axis=1)


def normalised(values: Any) -> Any:
    """Divide rows [n, C] by their sums; a row of zeros becomes uniform."""
    tf = load_tensorflow()
    totals = tf.reduce_sum(values, axis=1, keepdims=True)
    uniform = tf.ones_like(values) / values.shape[1]
    return tf.where(totals == 0, uniform, values / tf.where(totals == 0, tf.ones_like(totals), totals))
