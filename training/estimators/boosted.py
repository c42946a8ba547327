"""Gradient boosting over summaries of a run's windows, see `ciml.training.estimators.summaries`.

The members are `HistGradientBoostingClassifier`s with different seeds, some over the levels and some over the shapes;
each split of a tree considers a share of the numbers. Their probabilities are averaged: members with different errors
generalise better to unseen machines and jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np

from ciml.errors import CimlError
from ciml.tensorflow import load_tensorflow
from ciml.training.conversion.step import Variables
from ciml.training.estimators.summaries import View, columns_of, summarise, view_of
from ciml.training.estimators.views import Windows
from ciml.training.experiment import Experiment

#: Default parameters: the number of members over each view; the rest is scikit-learn's.
DEFAULTS = {
    "levels": 2,
    "shapes": 2,
    "columns": 1.0,
    "max_iter": 100,
    "learning_rate": 0.1,
    "max_leaf_nodes": 15,
    "max_features": 0.3,
}


class BoostedViews:
    """An ensemble over views of runs, with scikit-learn's interface.

    Attributes:
      members: number of boosters by view.
      columns: share of the columns that each member uses, drawn for each.
      parameters: parameters of each `HistGradientBoostingClassifier`.
      seed: the members' seeds follow from it.
      classes_: int64 [C], the classes of the training runs.
    """

    def __init__(self, members: dict[View, int], columns: float, parameters: dict[str, Any], seed: int):
        self.members = members
        self.columns = columns
        self.parameters = parameters
        self.seed = seed
        self.classes_ = np.zeros(0, np.int64)
        self._fitted: list[tuple[View, np.ndarray, Any]] = []

    def fit(self, runs: Windows, labels: np.ndarray, sample_weight: np.ndarray | None = None) -> BoostedViews:
        """Fit all members on labels int64 [n], and perhaps weights float32 [n]."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        views = self._views(runs)

        def member(view: View, number: int) -> tuple[View, np.ndarray, Any]:
            values = views[view]
            drawn = self._drawn_numbers(view, number, runs.inputs.shape[2])
            usable = drawn[~np.isnan(values[:, drawn]).all(axis=0)]  # all runs are too short for the other numbers
            model = HistGradientBoostingClassifier(**self.parameters, random_state=self.seed + number)
            return view, usable, model.fit(values[:, usable], labels, sample_weight)

        with _one_thread():
            self._fitted = [member(view, index) for view, count in self.members.items() for index in range(count)]
        self.classes_ = np.unique(labels)
        return self

    def predict_proba(self, runs: Windows) -> np.ndarray:
        """Return the mean of the members' probabilities, float64 [n, C]."""
        views = self._views(runs)

        with _one_thread():
            answers = [model.predict_proba(views[view][:, usable]) for view, usable, model in self._fitted]
        mean: np.ndarray = np.mean(answers, axis=0)
        return mean

    def graph(self, variables: Variables) -> Callable[[Any, Any], Any]:
        """Convert the fitted ensemble to TensorFlow operations.

        Args:
          variables: collects the members' arrays.

        Returns:
          A function from inputs float32 [n, L, F], not normalised, and n_windows int32 [n] to the probabilities of
          `predict_proba`, float64 [n, C].
        """
        from ciml.training.conversion.functions import convert

        tf = load_tensorflow()
        members = [
            (
                view,
                variables(usable),
                convert(model, "predict_proba", variables, f"member {number} of boosted_summaries"),
            )
            for number, (view, usable, model) in enumerate(self._fitted)
        ]
        used = {view for view, _, _ in members}

        def probabilities(inputs: Any, n_windows: Any) -> Any:
            views = {view: view_of(inputs, n_windows, view, tf.experimental.numpy) for view in sorted(used)}
            answers = [
                predict(tf.cast(tf.gather(views[view], usable, axis=1), tf.float64))
                for view, usable, predict in members
            ]
            return tf.add_n(answers) / len(answers)

        return probabilities

    def _drawn_numbers(self, view: View, number: int, columns: int) -> np.ndarray:
        """Return the positions of the numbers of a view that a member uses, int64 [numbers]."""
        draw = np.random.default_rng([self.seed, number])
        chosen = draw.choice(columns, max(1, round(self.columns * columns)), replace=False)
        return np.flatnonzero(np.isin(columns_of(view, columns), chosen).all(axis=1))

    def _views(self, runs: Windows) -> dict[View, np.ndarray]:
        return {view: summarise(*runs, view) for view, count in self.members.items() if count}


def boosted_summaries(experiment: Experiment, smallest: int) -> BoostedViews:
    """Build the ensemble of an experiment. Its inputs are as recorded, since ratios and ticks need those numbers.

    Raises:
      CimlError: for an invalid number of members or share of columns.
    """
    options: dict[str, Any] = {**DEFAULTS, **experiment.parameters}
    members: dict[View, Any] = {view: options.pop(view) for view in get_args(View)}
    for view, count in members.items():
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= 100:
            raise CimlError(f"experiment: parameters.{view}: invalid number of members {count!r}; use 0 to 100")
    if not any(members.values()):
        raise CimlError("experiment: parameters: levels and shapes are both 0: the ensemble has no members")
    columns = options.pop("columns")
    if not isinstance(columns, int | float) or not 0 < columns <= 1:
        raise CimlError(f"experiment: parameters.columns: invalid share {columns!r}; use more than 0 and at most 1")
    weights = {} if experiment.class_weights == "none" else {"class_weight": experiment.class_weights}
    return BoostedViews(members, columns, {"early_stopping": False, **options, **weights}, experiment.seed)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit boosting to one thread.

    Threads spin while they wait for each other at every split: on a busy machine, that is many times slower than one
    thread. Concurrent members would also share Python's warning filters.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="openmp"):
        yield
