"""Estimators with the interface of scikit-learn: those built in, and any other class by its name.

An estimator gets a view of each run (`ciml.training.estimators.views`). ``unrolled``, the view of the talk, is that of
the built-in estimators unless an experiment names another one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ciml.errors import CimlError, NoTrainingDataError
from ciml.tensorflow import estimator_threads, load_tensorflow
from ciml.training.estimators.base import Graph, Rows, Training, present_classes, spread, spread_graph
from ciml.training.estimators.views import RECORDED, UNROLLED, AnyView, graph_of, names_of, values_of
from ciml.training.experiment import Experiment

if TYPE_CHECKING:
    from ciml.training.conversion.step import Variables

_CALIBRATION_FOLDS = 5
#: Runs that are predicted at a time.
_PREDICTION_BATCH = 8192


@dataclass(frozen=True)
class ScikitEstimator:
    """An estimator with ``fit`` and ``predict_proba`` or ``decision_function``; see `ciml.training.estimators.base`.

    Attributes:
      build: a function of (experiment, runs of the smallest class) that returns a new one.
      keys: see `Estimator`.
      view: the view of a run that it gets.
      takes_frames: whether it gets a pandas DataFrame, whose columns have names. Not of *unrolled* or *recorded*.
      tries: whether an experiment is checked by fitting a dozen rows: scikit-learn validates parameters in ``fit``.
    """

    build: Callable[[Experiment, int], Any]
    keys: frozenset[str]
    view: AnyView = UNROLLED
    takes_frames: bool = False
    tries: bool = True
    reports_epochs = False
    streams = False

    @property
    def normalises(self) -> bool:
        return self.view == UNROLLED

    @property
    def over_time(self) -> bool:
        return self.view in ("windows", "summary", RECORDED)

    def for_view(self, view: AnyView | None) -> Self:
        """Return the estimator on another view; None keeps its own."""
        return self if view is None else replace(self, view=view)

    def load(self) -> None:
        import sklearn.base  # noqa: F401

    def takes_weights(self, experiment: Experiment) -> bool:
        return _weights_argument(self.build(experiment, _CALIBRATION_FOLDS)) is not None

    def check(self, experiment: Experiment) -> None:
        if not self.tries:
            self.build(experiment, 1)
            return
        labels = np.arange(12) % 2
        rows = Rows(np.random.default_rng(0).random((12, 2, 2), np.float32), np.full(12, 2, np.int32), labels)
        self.fit(experiment, Training(rows, rows if experiment.early_stopping else None, 2))

    def fit(self, experiment: Experiment, training: Training) -> FittedScikit:
        train = training.train
        present, labels, counts = present_classes(experiment, train.labels)
        names: tuple[str, ...] = ()
        if self.takes_frames:
            names = tuple(names_of(self.view, training.feature_names(), train.inputs.shape[1]))
        further: dict[str, Any] = {}
        try:
            if training.dev is not None:
                dev = training.dev.take(np.isin(training.dev.labels, present))  # the model cannot answer other classes
                values = features(self.view, names, dev.inputs, dev.n_windows)
                further = {"X_val": values, "y_val": np.searchsorted(present, dev.labels)}
            model = self.build(experiment, int(counts.min()))
            if train.weights is not None:
                further[_weights_argument(model) or "sample_weight"] = train.sample_weights()
            model.fit(features(self.view, names, train.inputs, train.n_windows), labels, **further)
        except (CimlError, ImportError):  # a missing library is named with its extra
            raise
        except Exception as error:  # noqa: BLE001 - lightgbm, xgboost and a user's class raise of all kinds
            text = " ".join(str(error).split()) or type(error).__name__
            raise CimlError(f"{experiment.estimator}: {text}") from None
        return FittedScikit(model, self.view, names, present, training.classes, len(train))


@dataclass(frozen=True)
class FittedScikit:
    """A fitted estimator, as `ciml.training.estimators.base.Fitted`.

    Attributes:
      model: the estimator; it knows the P present classes as 0 … P - 1.
      view: the view of a run that it gets.
      names: of the view's columns, for an estimator that gets a DataFrame; else none.
      present: int64 [P], the classes that training runs have.
      classes: C.
      runs: number of training runs.
    """

    model: Any
    view: AnyView
    names: tuple[str, ...]
    present: np.ndarray
    classes: int
    runs: int

    def predict(self, inputs: np.ndarray, n_windows: np.ndarray) -> np.ndarray:
        answers = np.zeros((len(inputs), len(self.present)))
        for start in range(0, len(inputs), _PREDICTION_BATCH):
            rows = slice(start, start + _PREDICTION_BATCH)
            answers[rows] = _probabilities(self.model, features(self.view, self.names, inputs[rows], n_windows[rows]))
        return spread(answers, self.present, self.classes)

    def graph(self, variables: Variables) -> Graph:
        if self.view == RECORDED:
            return spread_graph(self.model.graph(variables), self.present, self.classes)
        from ciml.training.conversion.functions import convert

        tf = load_tensorflow()
        method = _method_of(self.model)
        answer = convert(self.model, method, variables)

        def answers(inputs: Any, n_windows: Any) -> Any:
            scores = answer(tf.cast(graph_of(self.view, inputs, n_windows), tf.float64))
            return scores if method == "predict_proba" else _squashed(scores)

        return spread_graph(answers, self.present, self.classes)

    def to_json(self) -> dict[str, Any]:
        return {"runs": self.runs}


def features(view: AnyView, names: tuple[str, ...], inputs: np.ndarray, n_windows: np.ndarray) -> Any:
    """Return the view of some runs, as a DataFrame if the columns have names."""
    values = values_of(view, inputs, n_windows)
    if not names:
        return values
    import pandas as pd

    return pd.DataFrame(values, columns=list(names), copy=False)


def _weights_argument(model: Any) -> str | None:
    """Return the argument of ``fit`` for the weights of runs; None for an estimator that takes none."""
    from sklearn.pipeline import Pipeline
    from sklearn.utils.validation import has_fit_parameter

    if isinstance(model, Pipeline):
        name, last = model.steps[-1]
        argument = _weights_argument(last)
        return None if argument is None else f"{name}__{argument}"
    inner = getattr(model, "estimator", None)  # one that takes no weights would be fitted without them
    if hasattr(inner, "fit") and _weights_argument(inner) is None:
        return None
    return "sample_weight" if has_fit_parameter(model, "sample_weight") else None


def _method_of(model: Any) -> str:
    """Return the method that answers: ``predict_proba``, or ``decision_function`` where there is none."""
    for method in ("predict_proba", "decision_function"):
        if hasattr(model, method):
            return method
    raise CimlError(
        f"{type(model).__name__} has neither predict_proba nor decision_function: it cannot give probabilities; "
        "choose a classifier"
    )


def _probabilities(model: Any, values: Any) -> np.ndarray:
    """Return probabilities float64 [n, P] of a view of n runs."""
    if _method_of(model) == "predict_proba":
        return np.asarray(model.predict_proba(values), np.float64)
    from scipy.special import expit, softmax

    scores = np.asarray(model.decision_function(values), np.float64)
    if scores.ndim == 1:
        shares: np.ndarray = np.stack([expit(-scores), expit(scores)], axis=1)
    else:
        shares = softmax(scores, axis=1)
    return shares


def _squashed(scores: Any) -> Any:
    """Do as `_probabilities` does for the tensors of a decision function, float64 [n] or [n, P]."""
    tf = load_tensorflow()
    if scores.shape.rank == 1 or scores.shape[-1] == 1:
        score = tf.reshape(scores, [-1])
        return tf.stack([tf.sigmoid(-score), tf.sigmoid(score)], axis=1)
    return tf.nn.softmax(scores, axis=1)


def svm(experiment: Experiment, smallest: int) -> Any:
    """Build a linear support vector machine, as in the original.

    Platt's sigmoid, fitted on held-out folds, turns its margins into probabilities.
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import StratifiedKFold
    from sklearn.svm import LinearSVC

    if smallest < 2:
        raise NoTrainingDataError("svm needs at least two training runs of each class to calibrate probabilities")
    machine = LinearSVC(**_options(experiment, {"max_iter": 10_000}))
    folds = StratifiedKFold(min(_CALIBRATION_FOLDS, smallest), shuffle=True, random_state=experiment.seed)
    return CalibratedClassifierCV(machine, cv=folds, ensemble=False)


def random_forest(experiment: Experiment, smallest: int) -> Any:
    """Build a random forest."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_jobs=estimator_threads(), **_options(experiment, {"n_estimators": 300}))


def hist_gradient_boosting(experiment: Experiment, smallest: int) -> Any:
    """Build histogram gradient boosting. Early stopping uses dev."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    patience = experiment.early_stopping
    stopping: dict[str, Any] = {"early_stopping": patience is not None}
    if patience is not None:
        stopping["n_iter_no_change"] = patience
    return HistGradientBoostingClassifier(**_options(experiment, stopping))


def _options(experiment: Experiment, defaults: dict[str, Any]) -> dict[str, Any]:
    weights = {} if experiment.class_weights == "none" else {"class_weight": experiment.class_weights}
    return {**defaults, **experiment.parameters, **weights, "random_state": experiment.seed}
