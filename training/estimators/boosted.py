"""Gradient boosting over summaries of a run's windows, see `ciml.training.estimators.summaries`.

The members are `HistGradientBoostingClassifier`s, some over the levels and some over the shapes. Those over one view
have different seeds. Each split of a tree considers a random share of the numbers. The members' probabilities are
averaged, because members with different errors generalise better together to unseen machines and jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, get_args

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


class _Member(NamedTuple):
    """A fitted member: a classifier of some numbers of a view.

    Attributes:
      view: the view.
      numbers: int64 [k], the positions of its numbers.
      model: a `HistGradientBoostingClassifier` of float32 [n, k].
    """

    view: View
    numbers: np.ndarray
    model: Any


class BoostedViews:
    """An ensemble over views of runs, with scikit-learn's interface.

    Attributes:
      members: how many boosters there are over each view.
      column_share: share of the columns that a member uses. They are drawn for each member of a view; the first member
        of each view has the same seed and the same columns, as have the second ones, and so on.
      parameters: parameters of each `HistGradientBoostingClassifier`.
      seed: of the first member of each view; each further member has the next one.
      classes_: int64 [C], the classes of the training runs.
    """

    def __init__(self, members: dict[View, int], column_share: float, parameters: dict[str, Any], seed: int):
        self.members = members
        self.column_share = column_share
        self.parameters = parameters
        self.seed = seed
        self.classes_ = np.zeros(0, np.int64)
        self._fitted: list[_Member] = []

    def fit(self, runs: Windows, labels: np.ndarray, sample_weight: np.ndarray | None = None) -> BoostedViews:
        """Fit all members on labels int64 [n], and perhaps weights float32 [n]."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        views = self._views(runs)

        def fit(view: View, index: int) -> _Member:
            values = views[view]
            drawn = self._drawn_numbers(view, index, runs.inputs.shape[2])
            usable = drawn[~np.isnan(values[:, drawn]).all(axis=0)]  # all runs are too short for the other numbers
            model = HistGradientBoostingClassifier(**self.parameters, random_state=self.seed + index)
            return _Member(view, usable, model.fit(values[:, usable], labels, sample_weight))

        with _one_thread():
            self._fitted = [fit(view, index) for view, count in self.members.items() for index in range(count)]
        self.classes_ = np.unique(labels)
        return self

    def predict_proba(self, runs: Windows) -> np.ndarray:
        """Return the mean of the members' probabilities, float64 [n, C]."""
        views = self._views(runs)
        with _one_thread():
            answers = [member.model.predict_proba(views[member.view][:, member.numbers]) for member in self._fitted]
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
        members = []
        for index, (view, numbers, model) in enumerate(self._fitted):
            predict = convert(model, "predict_proba", variables, f"member {index} of boosted_summaries")
            members.append((view, variables(numbers), predict))
        used = sorted({member.view for member in self._fitted})

        def probabilities(inputs: Any, n_windows: Any) -> Any:
            views = {view: view_of(inputs, n_windows, view, tf.experimental.numpy) for view in used}
            answers = [
                predict(tf.cast(tf.gather(views[view], numbers, axis=1), tf.float64))
                for view, numbers, predict in members
            ]
            return tf.add_n(answers) / len(answers)

        return probabilities

    def _drawn_numbers(self, view: View, index: int, columns: int) -> np.ndarray:
        """Return the positions of the numbers of a view that its member uses, int64 [k]: those of the drawn columns."""
        draw = np.random.default_rng([self.seed, index])
        chosen = draw.choice(columns, max(1, round(self.column_share * columns)), replace=False)
        return np.flatnonzero(np.isin(columns_of(view, columns), chosen).all(axis=1))

    def _views(self, runs: Windows) -> dict[View, np.ndarray]:
        return {view: summarise(*runs, view) for view, count in self.members.items() if count}


def boosted_summaries(experiment: Experiment, _smallest: int) -> BoostedViews:
    """Build the ensemble of an experiment, for any number of runs in its smallest class.

    Its inputs are not normalised, since ratios and ticks need the recorded numbers.

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
    share = options.pop("columns")
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1:
        raise CimlError(f"experiment: parameters.columns: invalid share {share!r}; use more than 0 and at most 1")
    weights = {} if experiment.class_weights == "none" else {"class_weight": experiment.class_weights}
    return BoostedViews(members, share, {"early_stopping": False, **options, **weights}, experiment.seed)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit boosting to one thread.

    Threads spin while they wait for each other at every split. On a busy machine, that is many times slower than one
    thread.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="openmp"):
        yield
