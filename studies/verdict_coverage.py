"""Test whether conformal sets cover as often as stated. Writes the table of coverage in docs/verdicts.md.

    python -m studies.verdict_coverage FOLDER… [--splits 400]

A FOLDER is a recording (`studies.recordings`). Each split is one refresh: `split_of` with another salt decides
which changes are learned, calibrate or test. Calibration and figures are those of `ciml refresh`. The table also has
splits by run, and the exact distribution of such a coverage.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ciml.datasets.definition import ResolvedDefinition
from ciml.events.outcomes import CAUSES
from ciml.serving.decimals import shortest_decimals
from ciml.training.calibration.calibrate import calibrate
from ciml.training.estimators import Rows, fit, inputs_for
from ciml.training.evaluation.candidate import verdict_figures
from ciml.training.experiment import Experiment
from ciml.training.normalise import Normalisation
from ciml.transforms.examples.prepare import prepare_many, split_of
from studies.recordings import Recorded, read
from studies.verdicts import resolved_of
from tests.training.calibration.test_exact_coverage import exact

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Covered:
    """The result of one refresh: how many test runs were covered, of how many, after how many calibration runs."""

    covered: int
    tests: int
    calibrated: int


def refreshes(
    runs: Recorded, resolved: ResolvedDefinition, experiment: Experiment, splits: int, *, by_change: bool
) -> Iterator[Covered]:
    """Yield the result of each split that has runs of both classes to learn, and some to calibrate and to test."""
    facts, labels = runs.failed_facts, runs.labels
    inputs, n_windows, rejected = prepare_many([runs.tables[index] for index in runs.failed], resolved, facts)
    assert not rejected, rejected
    weights = resolved.definition.tdt_split
    if not by_change:
        facts = [run.replace(change="", project="") for run in facts]
    for salt in range(splits):
        part = np.array([split_of(run.project, run.change, run.run_id, f"coverage {salt}", weights) for run in facts])
        learned, dev, test = (np.flatnonzero(part == name) for name in ("train", "dev", "test"))
        if len(set(labels[learned])) < len(CAUSES) or not dev.size or not test.size:
            continue
        rows = Rows(inputs, n_windows, labels)
        normal = inputs_for(experiment, Normalisation.of(inputs[learned]), rows)
        fitted = fit(experiment, normal.take(learned), None, len(CAUSES))
        answers = [fitted.predict(split.inputs, split.n_windows) for split in (normal.take(dev), normal.take(test))]
        used = [facts[index] for index in (*learned, *test)]
        calibrated = calibrate(
            experiment, resolved, [facts[index] for index in dev], answers[0], labels[dev], used=used
        )
        assert calibrated.rules is not None
        shares = shortest_decimals(calibrated.calibrator.apply(answers[1]))
        figures = verdict_figures(calibrated.rules, shares, labels[test], [facts[index].build_name for index in test])
        yield Covered(round(figures["coverage"]["value"] * len(test)), len(test), len(dev))


def row(name: str, shares: np.ndarray, weights: np.ndarray, below: float) -> str:
    """Return a row of the table: of shares that are covered, float64 [n], with their weights, which sum to 1."""
    order = np.argsort(shares, kind="stable")
    values = shares[order]
    mass = np.cumsum(weights[order])
    places = np.minimum(np.searchsorted(mass, np.array(QUANTILES) - 1e-9), len(order) - 1)
    mean = float((shares * weights).sum())
    spread = float(np.sqrt(((shares - mean) ** 2 * weights).sum()))
    low = float(weights[shares < 11.5 / 18].sum())
    cells = " ".join(f"{values[place]:.2f}" for place in places)
    return f"| {name} | {mean:.3f} | {spread:.3f} | {cells} | {low:.3f} | {below:.3f} |"


def rows_of(name: str, found: list[Covered], coverage: float) -> list[str]:
    """Return the row of splits, and that of the exact distribution for the numbers of runs of these splits."""
    shares = np.array([refresh.covered / refresh.tests for refresh in found])
    chances = [exact(refresh.calibrated, refresh.tests, coverage) for refresh in found]
    below = [chance[: refresh.covered + 1].sum() <= 0.05 for refresh, chance in zip(found, chances, strict=True)]
    values = np.concatenate([np.arange(refresh.tests + 1) / refresh.tests for refresh in found])
    expected = np.mean([chance[np.cumsum(chance) <= 0.05].sum() for chance in chances])
    return [
        row(name, shares, np.full(len(found), 1 / len(found)), float(np.mean(below))),
        row("exact", values, np.concatenate(chances) / len(found), float(expected)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--splits", type=int, default=400)
    parser.add_argument("--estimator", default="svm", help="of the experiment")
    options = parser.parse_args()
    runs = read(options.folders)
    resolved = resolved_of(runs, range(len(runs.facts)))
    print("| splits | stated | mean | spread | 5, 25, 50, 75, 95 % | at most 0.61 | below the exact 5 % |")
    print("|---|---|---|---|---|---|---|")
    for coverage in (0.8, 0.9):
        experiment = Experiment(
            estimator=options.estimator, name="coverage", calibration="temperature", coverage=coverage
        )
        for by_change, name in ((True, "by change"), (False, "by run")):
            refreshed = list(refreshes(runs, resolved, experiment, options.splits, by_change=by_change))
            sizes = [
                int(np.median([getattr(refresh, key) for refresh in refreshed])) for key in ("calibrated", "tests")
            ]
            print("\n".join(rows_of(f"{coverage:.2f}, {name}", refreshed, coverage)))
            print(f"{len(refreshed)} splits; in the median {sizes[0]} runs calibrate and {sizes[1]} test", flush=True)
    for calibrated in (9, 12, 16, 20, 24, 30, 40):
        chance = exact(calibrated, 18, 0.8)[:12].sum()
        print(f"at most 11 of 18 after {calibrated} calibration runs: {chance:.3f}")


if __name__ == "__main__":
    main()
