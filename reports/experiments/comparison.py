"""Rank the experiments on one data set and compare them run by run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.experiments.views import Bar, Figures, constant, errors_by_class, right
from training.evaluation.gate import compare
from training.experiments.results import Predictions, Stored


@dataclass(frozen=True)
class Standing:
    """An experiment in a ranking on the test runs of one data set.

    Attributes:
      trial: the stored trial.
      result: its result.
      predictions: its predictions; None if the file is missing.
      guess: `constant` of the result.
      same_runs: whether it was tested on the same runs as the best experiment, so that figures are comparable.
      against: `training.evaluation.gate.compare` with the best experiment; None for the best one itself, and if it is
        undefined.
    """

    trial: Stored
    result: Figures
    predictions: Predictions | None
    guess: Figures
    same_runs: bool = True
    against: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """Return the experiment's name."""
        return self.trial.experiment


def standings(trials: Sequence[tuple[Stored, Predictions | None]]) -> list[Standing]:
    """Rank tested experiments by accuracy, then by macro F1.

    Experiments that were tested on other runs than most come last.
    """
    tested = [(trial, trial.result, found) for trial, found in trials if trial.result and trial.result["test"]["runs"]]
    if not tested:
        return []
    digests = [trial.snapshot for trial, _, _ in tested]
    usual = max(digests, key=lambda digest: (digests.count(digest), digest))
    order = sorted(
        tested,
        key=lambda each: (
            each[0].snapshot != usual,
            -each[1]["test"]["accuracy"]["value"],
            -each[1]["test"]["macro"]["f1"]["value"],
            each[0].experiment,
        ),
    )
    best = order[0][2]
    return [
        Standing(
            trial,
            result,
            found,
            constant(result, result["test"]),
            trial.snapshot == usual,
            _against(found, best) if rank and trial.snapshot == usual else None,
        )
        for rank, (trial, result, found) in enumerate(order)
    ]


def _against(found: Predictions | None, best: Predictions | None) -> Mapping[str, Any] | None:
    if found is None or best is None or not np.array_equal(found.run_id, best.run_id):
        return None
    return compare(right(found), right(best))


def errors_of(found: Sequence[Standing], most_classes: int) -> dict[str, dict[str, Bar]]:
    """Return errors by class and experiment, for the ``most_classes`` classes with the most runs."""
    by_name = {
        one.name: {bar.name: bar for bar in errors_by_class(one.result["test"], one.result["baselines"])}
        for one in found
    }
    classes = found[0].result["test"]["classes"]
    order = sorted(
        (name for name, one in classes.items() if one["runs"]), key=lambda name: (-classes[name]["runs"], name)
    )
    return {
        name: {experiment: bars[name] for experiment, bars in by_name.items() if name in bars}
        for name in order[:most_classes]
    }


@dataclass(frozen=True)
class Validated:
    """Cross-validation results of experiments with the same kind of folds.

    Attributes:
      by: the groups that were held out together; ``run`` for none.
      folds: number of folds.
      means: (experiment, `training.evaluation.cross_validation.cross_validate` result), by falling mean accuracy.
    """

    by: str
    folds: int
    means: tuple[tuple[str, Figures], ...]


def validated(trials: Sequence[Stored]) -> list[Validated]:
    """Return the cross-validations on one data set, by held-out groups and number of folds."""
    found: dict[tuple[str, int], list[tuple[str, Figures]]] = {}
    for trial in trials:
        for each in trial.folds:
            found.setdefault((each["by"], len(each["folds"])), []).append((trial.experiment, each))
    return [
        Validated(by, folds, tuple(sorted(means, key=lambda one: (-one[1]["mean"]["accuracy"]["value"], one[0]))))
        for (by, folds), means in sorted(found.items())
    ]
