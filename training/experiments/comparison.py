"""Compares the results of experiments: their figures, and run by run their difference to the first result.

Two results are comparable if they were tested on the same runs with the same classes. Others keep their figures, and a
note says that they are not comparable.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ciml.training.evaluation import paired
from ciml.training.evaluation.text import beaten_by
from ciml.training.experiments.results import Predictions, StoredTrial, TestedTrial

Figures = Mapping[str, Any]

#: The class whose F1 stands for a result in a record.
FAILED_CLASS = "failed"
#: The notes of a row.
OTHER_RUNS = "other test runs"
NO_PREDICTIONS = "predictions are missing"


@dataclass(frozen=True)
class ComparisonRow:
    """A result in a comparison.

    Attributes:
      trial: the stored trial.
      result: its result.
      predictions: its predictions for the test runs; None if the file is missing.
      comparable: whether it has the test runs and the classes of the first result.
      paired: the figures of `ciml.training.evaluation.paired.compare`, with this result as the candidate and the first
        one as the champion. None for the first result, and where ``note`` gives a reason.
      note: why it is not compared run by run: `OTHER_RUNS` or `NO_PREDICTIONS`; else "".
    """

    trial: StoredTrial
    result: Figures
    predictions: Predictions | None
    comparable: bool = True
    paired: Figures | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.trial.experiment

    def record(self) -> dict[str, str | int | float | None]:
        """Return the row as one flat record; an unknown figure is None.

        ``f1`` is that of the class ``failed`` where the result has one, else the mean over the classes; ``f1_of`` says
        which.
        """
        test = self.result["test"]
        f1_of = FAILED_CLASS if FAILED_CLASS in test["classes"] else "macro"
        f1_figures = test["macro"] if f1_of == "macro" else test["classes"][f1_of]
        baseline = best_baseline(self.result)
        paired = self.paired or {}
        difference_low, difference_high = paired.get("interval") or (None, None)
        return {
            "experiment": self.name,
            "dataset": self.trial.dataset,
            "estimator": self.result["experiment"]["estimator"],
            "runs": test["runs"],
            **_interval_keys("accuracy", test["accuracy"]),
            "f1_of": f1_of,
            **_interval_keys("f1", f1_figures["f1"]),
            **_interval_keys("roc_auc", test["macro"]["roc_auc"]),
            "base_rate": test["base_rate"]["value"],
            "baseline": baseline,
            "baseline_accuracy": self.result["baselines"][baseline]["accuracy"]["value"] if baseline else None,
            "difference": paired.get("difference"),
            "difference_low": difference_low,
            "difference_high": difference_high,
            "mcnemar": paired.get("mcnemar"),
            "note": self.note,
        }


@dataclass(frozen=True)
class Comparison:
    """Results side by side; the first one is the one that others are compared with.

    Attributes:
      rows: in the order of `compare`.
    """

    rows: tuple[ComparisonRow, ...]

    @property
    def beaten(self) -> str:
        """A sentence if one number of a run is more accurate than every comparable experiment; else ""."""
        accuracies: dict[str, float] = {}
        baselines: dict[str, float] = {}
        for row in self.rows:
            if row.comparable:
                accuracies[row.name] = row.result["test"]["accuracy"]["value"]
                for number, baseline in row.result["baselines"].items():
                    baselines[number] = baseline["accuracy"]["value"]
        return beaten_by(accuracies, baselines)

    def records(self) -> list[dict[str, str | int | float | None]]:
        """Return a flat record for each row, such as for a data frame: see `ComparisonRow.record`."""
        return [row.record() for row in self.rows]


def compare(results: Sequence[TestedTrial]) -> Comparison:
    """Compare results with the first of them (pure). They may be of several data sets.

    Args:
      results: in the order of the comparison; those without test runs are omitted.

    Example:
      compare(named_results(data.experiments, ["forest", "wide"], "cpu-load")).records()
    """
    tested = _tested(results)
    digests = _test_digests(tested)
    rows: list[ComparisonRow] = []
    for (trial, predictions), digest in zip(tested, digests, strict=True):
        comparable = digest == digests[0]
        paired = None
        note = "" if comparable else OTHER_RUNS
        if rows and comparable:
            paired = _paired_figures(predictions, rows[0].predictions)
            note = NO_PREDICTIONS if paired is None else ""
        rows.append(ComparisonRow(trial, trial.result or {}, predictions, comparable, paired, note))
    return Comparison(tuple(rows))


def by_accuracy(results: Sequence[TestedTrial]) -> list[TestedTrial]:
    """Return the results with test runs, the most accurate first, then by macro F1.

    Those with other test runs than most come last.
    """
    tested = _tested(results)
    digests = _test_digests(tested)
    counts = Counter(digests)
    most_common = max(counts, key=lambda digest: (counts[digest], digest), default="")

    def rank(place: int) -> tuple[bool, float, float, str, str]:
        trial = tested[place][0]
        test = (trial.result or {})["test"]
        accuracy = test["accuracy"]["value"]
        macro_f1 = test["macro"]["f1"]["value"]
        return digests[place] != most_common, -accuracy, -macro_f1, trial.experiment, trial.dataset

    return [tested[place] for place in sorted(range(len(tested)), key=rank)]


def best_baseline(result: Figures) -> str | None:
    """Return the name of the one-number baseline with the highest accuracy; None without any."""
    baselines = result["baselines"]
    return max(baselines, key=lambda name: baselines[name]["accuracy"]["value"], default=None)


def _tested(results: Sequence[TestedTrial]) -> list[TestedTrial]:
    return [(trial, predictions) for trial, predictions in results if trial.tested]


def _test_digests(tested: Sequence[TestedTrial]) -> list[str]:
    """Return a digest of the test runs and classes of each result.

    Equal snapshots have equal test runs. So a result whose predictions are missing takes the digest of another result
    of its snapshot; without one, the snapshot stands for its runs.
    """
    by_snapshot = {
        trial.snapshot: _test_digest(predictions) for trial, predictions in tested if predictions is not None
    }
    return [by_snapshot.get(trial.snapshot, trial.snapshot) for trial, _ in tested]


def _test_digest(predictions: Predictions) -> str:
    lines = [
        f"{run_id}\0{predictions.classes[label]}\n"
        for run_id, label in zip(predictions.run_id, predictions.labels, strict=True)
    ]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _paired_figures(predictions: Predictions | None, first: Predictions | None) -> Figures | None:
    """Compare predictions with those of the first result; None if either is missing."""
    if predictions is None or first is None:
        return None
    order = np.argsort(predictions.run_id, kind="stable")
    first_right = first.right[np.argsort(first.run_id, kind="stable")]
    changes = None if predictions.changes is None else predictions.changes[order]
    return paired.compare(predictions.right[order], first_right, changes)


def _interval_keys(name: str, figure: Figures) -> dict[str, float | None]:
    return {name: figure["value"], f"{name}_low": figure["low"], f"{name}_high": figure["high"]}
