"""Members of an ensemble differ in their seeds and columns, and all learn by the weights that they are given."""

from __future__ import annotations

from typing import Any

import numpy as np

from ciml.training.estimators.boosted import BoostedViews, boosted_summaries
from ciml.training.estimators.views import Windows
from ciml.training.experiment import Experiment

RNG = np.random.default_rng(0)
RUNS = Windows(RNG.gamma(1.0, 20.0, (80, 8, 6)).astype(np.float32), np.full(80, 8, np.int32))
LABELS = (np.arange(80) % 4 == 0).astype(np.int64)  # a quarter, which no feature tells


def fitted(weights: np.ndarray | None = None, class_weights: str = "none", **parameters: Any) -> BoostedViews:
    parameters = {"levels": 3, "shapes": 0, "max_iter": 2, **parameters}
    experiment = Experiment(estimator="boosted_summaries", parameters=parameters, class_weights=class_weights, seed=5)
    return boosted_summaries(experiment, 1).fit(RUNS, LABELS, weights)


def test_each_member_has_a_seed_and_columns_of_its_own() -> None:
    members = fitted(columns=0.5)._fitted
    assert [model.random_state for _, _, model in members] == [5, 6, 7]
    assert len({tuple(usable) for _, usable, _ in members}) == 3


def test_members_of_two_views_share_seeds_and_columns_in_order() -> None:
    """Other seeds would change trained models."""
    members = fitted(levels=2, shapes=2, columns=0.5)._fitted
    assert [(member.view, member.model.random_state) for member in members] == [
        ("levels", 5), ("levels", 6), ("shapes", 5), ("shapes", 6),
    ]  # fmt: skip


def test_members_learn_by_the_weights_of_runs_and_of_classes() -> None:
    share = fitted().predict_proba(RUNS)[:, 1].mean()
    heavy = np.where(LABELS == 1, 3.0, 1.0).astype(np.float32)
    for model in (fitted(heavy), fitted(class_weights="balanced")):  # as if half of the runs were of the class
        assert model.predict_proba(RUNS)[:, 1].mean() > share + 0.15
