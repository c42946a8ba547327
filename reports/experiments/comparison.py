"""Several experiments on one data set: their errors by class, and their cross-validations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.experiments.views import Bar, Figures, errors_by_class
from training.experiments.compare import Compared
from training.experiments.results import Stored


def errors_of(found: Sequence[Compared], most_classes: int) -> dict[str, dict[str, Bar]]:
    """Class -> experiment -> its errors there; of so many classes, those of the most runs."""
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
    """What cross-validating came to, of experiments that were divided the same way.

    Attributes:
      by: what was held out together; ``run`` for nothing.
      folds: how many.
      means: (experiment, `training.evaluation.cross_validation.cross_validate` result), by falling mean accuracy.
    """

    by: str
    folds: int
    means: tuple[tuple[str, Figures], ...]


def validated(trials: Sequence[Stored]) -> list[Validated]:
    """The cross-validations of some experiments on one data set, by what was held out and by the number of folds."""
    found: dict[tuple[str, int], list[tuple[str, Figures]]] = {}
    for trial in trials:
        for each in trial.folds:
            found.setdefault((each["by"], len(each["folds"])), []).append((trial.experiment, each))
    return [
        Validated(by, folds, tuple(sorted(means, key=lambda one: (-one[1]["mean"]["accuracy"]["value"], one[0]))))
        for (by, folds), means in sorted(found.items())
    ]
