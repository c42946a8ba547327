"""Several experiments on one data set: their errors by class, and their cross-validations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ciml.reports.experiments.views import Bar, Figures, errors_by_class
from ciml.training.experiments.compare import Compared
from ciml.training.experiments.results import Stored


def errors_of(found: Sequence[Compared], most_classes: int) -> dict[str, dict[str, Bar]]:
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
      means: (experiment, `ciml.training.evaluation.cross_validation.cross_validate` result), by falling mean accuracy.
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
