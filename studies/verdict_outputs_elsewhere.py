"""Measure verdicts from outputs on runs that differ from the learned ones. Writes tables of docs/verdicts.md.

    python -m studies.verdict_outputs_elsewhere missing FOLDER…
    python -m studies.verdict_outputs_elsewhere later FOLDER… --since 2026-11-30
    python -m studies.verdict_outputs_elsewhere logdx FOLDER… --logdx CHECKOUT

A FOLDER is a recording (`studies.recordings`), or the unpacked sample runs; runs need no output.

- ``missing`` compares runs with an output, runs without, and runs whose output, or whose telemetry, is withheld when
  they are predicted.
- ``later`` holds out the runs of a day and later ones. Nothing is learned from them.
- ``logdx`` applies models that learned the recordings to the failed jobs of other projects of ``eyuansu62/LogDx``,
  without telemetry. A person judged their causes by the descriptions of the cases (`studies/logdx_causes.jsonl`).
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ciml.datasets.definition import LOG_FEATURES, LOG_PREFIX, is_of_telemetry
from ciml.events.outcomes import CAUSES
from ciml.events.records import RunFacts
from ciml.training.experiment import Experiment
from ciml.transforms.logs.features import output_features
from ciml.transforms.logs.ranking import scan
from studies.figures import table
from studies.recordings import EXAMPLES, Recorded, day_us, read
from studies.verdict_outputs import DEV_OF, TELEMETRY, figures_of, read_outputs, with_outputs
from studies.verdicts import (
    BASELINES,
    NETWORK,
    Answer,
    Fold,
    Verdicts,
    by_base_rate,
    by_duration,
    by_experiment,
    by_outcome,
    divide,
    folds_by,
    verdicts_by,
    verdicts_of_fold,
)

COLUMNS = (
    "macro-F1",
    *(f"{name} {term}" for name in CAUSES for term in ("precision", "recall")),
    "unknown",
    "coverage",
)
Folds = Sequence[tuple[int, Fold]]
#: The judged cases of LogDx.
CASES = Path(__file__).with_name("logdx_causes.jsonl")


@dataclass(frozen=True)
class Bench:
    """What the comparisons share.

    Attributes:
      runs: the recorded runs.
      has_output: bool [failed].
      folds: with the features of outputs.
    """

    runs: Recorded
    has_output: np.ndarray
    folds: Folds

    @classmethod
    def of(cls, folders: Sequence[Path], since_us: int | None, folds: int, repeats: int) -> Bench:
        """Read recordings."""
        runs = read(folders)
        outputs = read_outputs(folders)
        has_output = np.array([run.build_uuid in outputs for run in runs.failed_facts])
        plain = folds_by(runs, since_us, folds, repeats, DEV_OF)
        return cls(runs, has_output, list(with_outputs(runs, outputs, plain)))

    def verdicts(self, answer: Answer, folds: Folds, coverage: float, **options: Any) -> Verdicts:
        """Return the verdicts of a method; the options are those of `verdicts_by`."""
        return verdicts_by(answer, folds, self.runs.labels, self.runs.failed_facts, coverage, **options)

    def figures(self, verdicts: Verdicts, some: np.ndarray) -> dict[str, tuple[float, float, float]]:
        """Return the figures of some of the failed runs."""
        return figures_of(verdicts.of(some), self.runs.labels[some], self.runs.failed_groups[some])


def withheld(folds: Folds) -> Folds:
    """Return folds whose held-out runs have no output, after all else was made with outputs."""
    return [(repeat, replace(fold, inputs=_without_output(fold, fold.held))) for repeat, fold in folds]


def _without_output(fold: Fold, rows: np.ndarray) -> np.ndarray:
    columns = [fold.features.index(name) for name in LOG_FEATURES]
    inputs = fold.inputs.copy()
    is_window = np.arange(inputs.shape[1])[None, :] < fold.n_windows[rows, None]
    for column, value in zip(columns, output_features(None), strict=True):
        inputs[rows, :, column] = value * is_window
    return inputs


def without_telemetry(fold: Fold) -> Fold:
    """Return a fold without the telemetry of all runs but the learned ones."""
    rows = np.concatenate([fold.dev, fold.held])
    is_known = np.array([not is_of_telemetry(feature) for feature in fold.features])
    inputs = fold.inputs.copy()
    inputs[rows] = 0
    inputs[rows, 0] = np.where(is_known, fold.inputs[rows, 0], 0)
    n_windows = fold.n_windows.copy()
    n_windows[rows] = 1
    return replace(fold, inputs=inputs, n_windows=n_windows)


def missing(
    bench: Bench, experiment: Experiment, only: str
) -> Iterator[tuple[str, dict[str, tuple[float, float, float]]]]:
    """Yield the figures of runs with an output, without one, and with one that is withheld."""
    with_output = np.flatnonzero(bench.has_output)
    without = np.flatnonzero(~bench.has_output)
    every = np.arange(len(bench.runs.labels))
    telemetry = by_experiment(experiment, (*TELEMETRY, "outcome:"))
    for name, answer, folds, rows in (
        ("all runs: base rate", by_base_rate, bench.folds, every),
        ("all runs: duration", by_duration(bench.runs), bench.folds, every),
        ("all runs: exit status and timeout", by_outcome, bench.folds, every),
        ("all runs: telemetry and outcome", telemetry, bench.folds, every),
        ("all runs: output alone", by_experiment(experiment, (LOG_PREFIX,)), bench.folds, every),
        ("all runs: all three", by_experiment(experiment), bench.folds, every),
        ("with an output: telemetry and outcome", telemetry, bench.folds, with_output),
        ("with an output: output alone", by_experiment(experiment, (LOG_PREFIX,)), bench.folds, with_output),
        ("with an output: all three", by_experiment(experiment), bench.folds, with_output),
        ("without: telemetry and outcome", telemetry, bench.folds, without),
        ("without: all three", by_experiment(experiment), bench.folds, without),
        ("withheld: all three", by_experiment(experiment), withheld(bench.folds), with_output),
    ):
        outside = not any(part in name for part in BASELINES)
        if re.search(only, name):
            yield name, bench.figures(bench.verdicts(answer, folds, experiment.coverage, outside=outside), rows)
    name = "telemetry withheld: all three"
    if re.search(only, name):
        verdicts = bench.verdicts(by_experiment(experiment), bench.folds, experiment.coverage, hide=without_telemetry)
        yield name, bench.figures(verdicts, with_output)


def later(
    bench: Bench, experiment: Experiment, only: str
) -> Iterator[tuple[str, dict[str, tuple[float, float, float]]]]:
    """Yield the figures of the later runs, by method."""
    held = np.unique(np.concatenate([fold.held for _, fold in bench.folds]))
    facts = bench.runs.failed_facts
    logistic = NETWORK.replace(hidden_layers=())
    for name, answer in {
        "base rate": by_base_rate,
        "duration": by_duration(bench.runs),
        "exit status and timeout": by_outcome,
        "telemetry and outcome": by_experiment(experiment, (*TELEMETRY, "outcome:")),
        "output": by_experiment(experiment, (LOG_PREFIX,)),
        "output, telemetry and outcome: the example": by_experiment(experiment),
        "output, logistic regression": by_experiment(logistic, (LOG_PREFIX,)),
        "all three, logistic regression": by_experiment(logistic),
    }.items():
        if not re.search(only, name):
            continue
        verdicts = bench.verdicts(answer, bench.folds, experiment.coverage, outside=name not in BASELINES)
        yield name, bench.figures(verdicts, held)
        wrong = (verdicts.probability.argmax(axis=2)[:, held] != bench.runs.labels[held]).sum(axis=0)
        builds = [facts[row].build_uuid for row in held]
        print(name, "wrong:", [(build, int(count)) for build, count in zip(builds, wrong, strict=True) if count])


def logdx(bench: Bench, experiment: Experiment, checkout: Path, repeats: int) -> Iterator[str]:
    """Yield a row a case: its cause, what its output names, and the verdicts of models that learned all recordings."""
    cases = [json.loads(line) for line in CASES.read_text().splitlines()]
    rows = np.array(
        [output_features(scan((checkout / "cases" / case["case"] / "raw.log").read_bytes())) for case in cases]
    )
    answers = np.zeros((len(cases), len(CAUSES) + 1), int)
    facts = [*bench.runs.failed_facts, *(RunFacts(case["case"], case["case"], "other") for case in cases)]
    causes = [CAUSES.index(case["cause"]) if case["cause"] else 0 for case in cases]
    labels = np.concatenate([bench.runs.labels, causes])
    for fold in _folds_of_cases(bench, rows.astype(np.float32), repeats):
        answer = by_experiment(experiment, (LOG_PREFIX,))
        for row, _, verdict in verdicts_of_fold(answer, fold, labels, facts, experiment.coverage):
            place = CAUSES.index(verdict.cause) if verdict.cause in CAUSES else len(CAUSES)
            answers[row - len(bench.runs.labels), place] += 1
    for case, row, counts in zip(cases, rows, answers, strict=True):
        reason = LOG_FEATURES[int(row.argmax())].removeprefix(LOG_PREFIX)
        yield f"| {case['case']} | {case['cause'] or 'neither'} | {reason} | {' | '.join(map(str, counts))} |"


def _folds_of_cases(bench: Bench, rows: np.ndarray, repeats: int) -> Iterator[Fold]:
    """Yield folds that hold out the cases: features of outputs alone, other changes for the calibration in each."""
    for repeat in range(repeats):
        fold = next(fold for number, fold in bench.folds if number == repeat)
        columns = [fold.features.index(name) for name in LOG_FEATURES]
        learned_rows = fold.inputs[:, :1, columns]
        visible = np.flatnonzero(bench.has_output)
        learned, dev = divide(visible, bench.runs.labels, bench.runs.failed_groups, repeat, DEV_OF)
        inputs = np.concatenate([learned_rows, rows[:, None, :]])
        held = np.arange(len(learned_rows), len(inputs))
        yield Fold(learned, dev, held, inputs, np.ones(len(inputs), np.int32), LOG_FEATURES)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", choices=("missing", "later", "logdx"))
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--since", type=day_us, help="of later: the first day (UTC) that is held out")
    parser.add_argument("--logdx", type=Path, metavar="CHECKOUT")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="a regular expression over the names of methods, but of logdx")
    options = parser.parse_args()
    experiment = Experiment.load(EXAMPLES / "cause-experiment.toml")
    folds = 2 if options.comparison == "logdx" else 5  # of the first, only what is known of the runs is used
    bench = Bench.of(options.folders, options.since, folds, options.repeats)
    print(f"{len(bench.runs.labels)} failed runs, {bench.has_output.sum()} with an output")
    if options.comparison == "logdx":
        print("| case | cause | names | code | machine | unknown |\n|---|---|---|---|---|---|")
        for line in logdx(bench, experiment, options.logdx, options.repeats):
            print(line)
        return
    rows = {}
    for name, figures in (missing if options.comparison == "missing" else later)(bench, experiment, options.only):
        rows[name] = figures
        print(name, {key: round(value[0], 3) for key, value in figures.items()}, flush=True)
    print(table(rows, COLUMNS))


if __name__ == "__main__":
    main()
