"""One trial of a sweep: an experiment trained on a data set, scored on held-out runs, and perhaps pruned.

The test runs are never used: a sweep selects an experiment, which is then tested once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ciml.errors import CimlError, NoTrainingDataError
from ciml.training.data.examples import InMemoryDataset
from ciml.training.estimators import check_experiment, check_use
from ciml.training.evaluation.baselines import NUMBERS
from ciml.training.evaluation.cross_validation import CVSplit, by_one_number, divide, held_out
from ciml.training.evaluation.scores import scores
from ciml.training.experiment import Experiment
from ciml.training.sweeps.definition import Metric, Sweep
from ciml.training.sweeps.study import Outcome

#: Called with a step, from 1, and the metric after it; True prunes the trial unless it was the last step.
Report = Callable[[int, float], bool]


class _Pruned(Exception):
    """Ends the training of a pruned trial."""


def cv_split(sweep: Sweep, dataset: InMemoryDataset) -> CVSplit:
    """Split the runs of a data set for a sweep: into folds, or into train and dev.

    Raises:
      CimlError: if there are too few runs.
    """
    if sweep.on == "folds":
        return divide(dataset, folds=sweep.folds, hold_out=sweep.hold_out, seed=sweep.seed)
    positions = dataset.of("train", "dev")
    dev = dataset.roles[positions] == "dev"
    if not dev.any() or dev.all():
        raise NoTrainingDataError(f"data set {dataset.snapshot.dataset!r} has no training runs, or no dev runs")
    return CVSplit(positions, ((np.flatnonzero(~dev), np.flatnonzero(dev)),), dev=True)


def score_trial(
    sweep: Sweep, experiment: Experiment, dataset: InMemoryDataset, begun: Outcome, report: Report
) -> Outcome:
    """Train and score a trial.

    Args:
      sweep: the sweep, with metric and folds.
      experiment: the experiment to train.
      dataset: the data set; its test runs are not used.
      begun: the trial.
      report: called after each step.

    Returns:
      The ``complete`` trial, or the ``pruned`` one with its last value.

    Raises:
      CimlError: if it cannot be trained, or the metric is undefined.
    """
    check_experiment(experiment)
    check_use(experiment, dataset.snapshot.resolved)
    split = cv_split(sweep, dataset)
    labels = dataset.rows.labels[split.positions]
    classes = dataset.snapshot.resolved.classes
    answers = np.zeros((len(labels), len(classes)))
    is_scored = np.zeros(len(labels), bool)
    steps: list[tuple[int, float]] = []
    last = len(split.parts) if sweep.on == "folds" else experiment.epochs

    def record(step: int, given: np.ndarray, rows: np.ndarray) -> None:
        figures = scores(given, labels[rows], classes, labels[rows], resamples=0)
        value = _defined(figures, sweep.metric)["value"] or 0.0
        steps.append((step, value))
        if report(step, value) and step < last:
            raise _Pruned

    for number, (learned, held) in enumerate(split.parts):
        on_epoch = None
        if sweep.on == "dev":

            def on_epoch(epoch: int, ask: Callable[[], np.ndarray], held: np.ndarray = held) -> None:
                if epoch % sweep.report_epochs == 0:
                    record(epoch, ask(), held)

        try:
            answers[held] = held_out(experiment, dataset, split, number, on_epoch)
            is_scored[held] = True
            if sweep.on == "folds":
                record(number + 1, answers[is_scored], is_scored)
        except _Pruned:
            return begun.replace(
                state="pruned",
                value=steps[-1][1],
                steps=tuple(steps),
                trained_on=len(learned),
                held_out=int(np.count_nonzero(is_scored)) or len(held),
            )
    train_labels = labels if sweep.on == "folds" else labels[split.parts[0][0]]
    resamples = _resamples(sweep.metric)
    figures = scores(answers[is_scored], labels[is_scored], classes, train_labels, resamples=resamples)
    shown = {"accuracy": figures["accuracy"], "f1": figures["macro"]["f1"], "base_rate": figures["base_rate"]}
    return begun.replace(
        state="complete",
        **_defined(figures, sweep.metric),
        steps=tuple(steps),
        scores={name: figure["value"] for name, figure in shown.items()},
        trained_on=len(split.parts[-1][0]),
        held_out=figures["runs"],
    )


def one_number(sweep: Sweep, dataset: InMemoryDataset) -> dict[str, Any]:
    """Return the one-number baselines on the same splits: ``value``, ``low`` and ``high`` by name; may be empty."""
    split = cv_split(sweep, dataset)
    baselines = {}
    labels = dataset.rows.labels[split.positions]
    classes = dataset.snapshot.resolved.classes
    rows = np.sort(np.concatenate([held for _, held in split.parts]))
    for name, answers in by_one_number(dataset, split):
        figures = scores(answers[rows], labels[rows], classes, labels, resamples=_resamples(sweep.metric))
        baselines[name] = {"what": NUMBERS[name], **_figure(figures, sweep.metric)}
    return baselines


def _defined(figures: dict[str, Any], metric: Metric) -> dict[str, float | None]:
    """Return `_figure`. Raises `CimlError` if its value is undefined."""
    figure = _figure(figures, metric)
    if figure["value"] is None:
        raise CimlError(f"{metric} is undefined: only one class was held out")
    return figure


def _resamples(metric: Metric) -> int | None:
    """Return the number of bootstrap resamples; accuracy needs none, with Wilson's interval."""
    return 0 if metric in ("accuracy", "log_loss") else None


def _figure(figures: dict[str, Any], metric: Metric) -> dict[str, float | None]:
    if metric == "log_loss":
        return {"value": figures["log_loss"], "low": None, "high": None}
    figure = figures[metric] if metric in ("accuracy", "brier") else figures["macro"][metric]
    return {"value": figure["value"], "low": figure["low"], "high": figure["high"]}
