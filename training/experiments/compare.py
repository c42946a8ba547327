"""Compares results of experiments: the figures of each, and run by run its difference to the first one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ciml.training.evaluation import gate
from ciml.training.evaluation.metrics import paired_interval
from ciml.training.evaluation.text import beaten_by
from ciml.training.experiments.results import Predictions, Stored

Figures = Mapping[str, Any]
#: A result, and its predictions for the test runs, None where their file is missing.
Tested = tuple[Stored, Predictions | None]

#: The class whose F1 stands for a result where it is known; else it is the mean over the classes.
FAILED = "failed"
OTHER_RUNS = "other test runs"
NO_PREDICTIONS = "predictions are missing"


@dataclass(frozen=True)
class Compared:
    """An experiment of a comparison, on the test runs of one data set.

    Attributes:
      trial: the stored trial.
      result: its result.
      predictions: its predictions for the test runs; None if the file is missing.
      same_runs: whether it was tested on the same runs as the first one, with the same classes.
      against: `ciml.training.evaluation.gate.compare` with it as the candidate and the first one as the champion, but
        ``low`` and ``high`` bound the difference by 95 %; None for the first one, and where ``note`` says why.
      note: why it is not compared run by run; "" else.
    """

    trial: Stored
    result: Figures
    predictions: Predictions | None
    same_runs: bool = True
    against: Figures | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.trial.experiment

    def record(self) -> dict[str, str | int | float | None]:
        """Return its figures as one flat row; an unknown figure is None."""
        test = self.result["test"]
        baseline = best_baseline(self.result)
        f1_of = FAILED if FAILED in test["classes"] else "macro"
        f1 = test["classes"][FAILED]["f1"] if f1_of == FAILED else test["macro"]["f1"]
        against = self.against or {}
        return {
            "experiment": self.name,
            "dataset": self.trial.dataset,
            "estimator": self.result["experiment"]["estimator"],
            "runs": test["runs"],
            **_figure("accuracy", test["accuracy"]),
            "f1_of": f1_of,
            **_figure("f1", f1),
            **_figure("roc_auc", test["macro"]["roc_auc"]),
            "base_rate": test["base_rate"]["value"],
            "baseline": baseline,
            "baseline_accuracy": self.result["baselines"][baseline]["accuracy"]["value"] if baseline else None,
            "difference": against.get("difference"),
            "difference_low": against.get("low"),
            "difference_high": against.get("high"),
            "mcnemar": against.get("mcnemar"),
            "note": self.note,
        }


@dataclass(frozen=True)
class Comparison:
    """Experiments beside each other; the first one is the one that others are compared with.

    Attributes:
      rows: in the order of `compare`.
    """

    rows: tuple[Compared, ...]

    @property
    def beaten(self) -> str:
        """A sentence if one number of a run is more accurate than every experiment; else "".

        Only experiments with the test runs of the first one count.
        """
        alike = [row for row in self.rows if row.same_runs]
        accuracies = {row.name: row.result["test"]["accuracy"]["value"] for row in alike}
        baselines = {
            name: baseline["accuracy"]["value"] for row in alike for name, baseline in row.result["baselines"].items()
        }
        return beaten_by(accuracies, baselines)

    def records(self) -> list[dict[str, str | int | float | None]]:
        """Return a flat row for each experiment, such as for a data frame: see `Compared.record`."""
        return [row.record() for row in self.rows]


def compare(results: Sequence[Tested]) -> Comparison:
    """Compare results with the first of them (pure).

    Results of several data sets can be compared too, if their test runs and classes are the same.

    Args:
      results: in the order of the comparison; those without tested runs are omitted.

    Returns:
      The comparison. A result with other test runs than the first one has its figures, but no difference.

    Example:
      compare(named_results(data.experiments, ["forest", "wide"], "cpu-load")).records()
    """
    tested = [
        (trial, trial.result, predictions)
        for trial, predictions in results
        if trial.result and trial.result["test"]["runs"]
    ]
    if not tested:
        return Comparison(())
    sets = _test_sets([(trial, predictions) for trial, _, predictions in tested])
    first = tested[0][2]
    rows = []
    for place, (trial, result, predictions) in enumerate(tested):
        same = sets[place] == sets[0]
        against = _against(predictions, first) if place and same else None
        note = "" if same else OTHER_RUNS
        if place and same and against is None:
            note = NO_PREDICTIONS
        rows.append(Compared(trial, result, predictions, same, against, note))
    return Comparison(tuple(rows))


def by_accuracy(results: Sequence[Tested]) -> list[Tested]:
    """Return the results that were tested, the most accurate first; of equal ones that with the higher macro F1.

    Those with other test runs than most come last.
    """
    tested = [(trial, predictions) for trial, predictions in results if trial.result and trial.result["test"]["runs"]]
    sets = _test_sets(tested)
    counts = Counter(sets)
    usual = max(counts, key=lambda each: (counts[each], each), default="")

    def rank(place: int) -> tuple[Any, ...]:
        trial = tested[place][0]
        test = (trial.result or {})["test"]
        differs = sets[place] != usual
        return differs, -test["accuracy"]["value"], -test["macro"]["f1"]["value"], trial.experiment, trial.dataset

    return [tested[place] for place in sorted(range(len(tested)), key=rank)]


def best_baseline(result: Figures) -> str | None:
    """Return the name of the one-number baseline with the highest accuracy; None without any."""
    return max(result["baselines"], key=lambda name: result["baselines"][name]["accuracy"]["value"], default=None)


def _test_sets(tested: Sequence[Tested]) -> list[str]:
    """Return a text for each result; equal ones mean equal test runs and classes.

    Equal snapshots have equal test runs. So a result whose predictions are missing is that of its snapshot.
    """
    digests = {trial.snapshot: _runs_digest(predictions) for trial, predictions in tested if predictions is not None}
    return [digests.get(trial.snapshot, trial.snapshot) for trial, _ in tested]


def _runs_digest(found: Predictions) -> str:
    lines = sorted(
        f"{run_id}\0{found.classes[label]}\n" for run_id, label in zip(found.run_id, found.labels, strict=True)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _against(found: Predictions | None, first: Predictions | None) -> Figures | None:
    if found is None or first is None:
        return None
    right, first_right = (
        predictions.right[np.argsort(predictions.run_id, kind="stable")] for predictions in (found, first)
    )
    low, high = paired_interval(right, first_right)
    return {**gate.compare(right, first_right), "low": low, "high": high}


def _figure(name: str, value: Figures) -> dict[str, float | None]:
    return {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
