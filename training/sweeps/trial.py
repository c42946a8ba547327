"""One trial of a sweep: an experiment trained on a data set, scored on held-out runs, and perhaps pruned.

The test runs are never used: a sweep selects an experiment, which is then tested once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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

#: Called with a step, from 1, and the metric after it; True prunes the trial unless it was the last step.
Report = Callable[[int, float], bool]


class _Pruned(Exception):
    """Ends the training of a pruned trial."""


@dataclass
class Scored:
    """The scores of a trial.

    Attributes:
      pruned: whether it was pruned.
      value: the metric over all held-out runs, or when it was pruned.
      low: lower bound of the 95 % interval, or None.
      high: upper bound, or None.
      steps: reported (step, value).
      scores: ``accuracy``, ``f1`` and ``base_rate``; empty for a pruned trial.
      trained_on: training runs of the last fold.
      held_out: scored runs.
    """

    pruned: bool = False
    value: float | None = None
    low: float | None = None
    high: float | None = None
    steps: list[tuple[int, float]] = field(default_factory=list)
    scores: dict[str, float | None] = field(default_factory=dict)
    trained_on: int = 0
    held_out: int = 0


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


def score_trial(sweep: Sweep, experiment: Experiment, dataset: InMemoryDataset, report: Report) -> Scored:
    """Train and score a trial.

    Args:
      sweep: the sweep, with metric and folds.
      experiment: the experiment to train.
      dataset: the data set; its test runs are not used.
      report: called after each step.

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
    out = Scored()
    last = len(split.parts) if sweep.on == "folds" else experiment.epochs

    def record(step: int, given: np.ndarray, of: np.ndarray) -> None:
        out.value = _value(given, labels[of], classes, sweep.metric)
        out.steps.append((step, out.value))
        if report(step, out.value) and step < last:
            raise _Pruned

    for number, (learned, held) in enumerate(split.parts):
        out.trained_on = len(learned)
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
            out.pruned = True
            out.held_out = int(np.count_nonzero(is_scored)) or len(held)
            return out
    train_labels = labels if sweep.on == "folds" else labels[split.parts[0][0]]
    return _finished(out, answers[is_scored], labels[is_scored], classes, train_labels, sweep.metric)


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


def _finished(
    out: Scored, answers: np.ndarray, labels: np.ndarray, classes: Any, train_labels: np.ndarray, metric: Metric
) -> Scored:
    figures = scores(answers, labels, classes, train_labels, resamples=_resamples(metric))
    figure = _figure(figures, metric)
    if figure["value"] is None:
        raise CimlError(f"{metric} is undefined: only one class was held out")
    out.value = figure["value"]
    out.low = figure["low"]
    out.high = figure["high"]
    out.scores = {
        "accuracy": figures["accuracy"]["value"],
        "f1": figures["macro"]["f1"]["value"],
        "base_rate": figures["base_rate"]["value"],
    }
    out.held_out = figures["runs"]
    return out


def _value(answers: np.ndarray, labels: np.ndarray, classes: Any, metric: Metric) -> float:
    value = _figure(scores(answers, labels, classes, labels, resamples=0), metric)["value"]
    if value is None:
        raise CimlError(f"{metric} is undefined: only one class was held out")
    return float(value)


def _resamples(metric: Metric) -> int | None:
    """Return the number of bootstrap resamples; accuracy needs none, with Wilson's interval."""
    return 0 if metric in ("accuracy", "log_loss") else None


def _figure(found: dict[str, Any], metric: Metric) -> dict[str, float | None]:
    if metric == "log_loss":
        return {"value": found["log_loss"], "low": None, "high": None}
    figure = found[metric] if metric in ("accuracy", "brier") else found["macro"][metric]
    return {"value": figure["value"], "low": figure["low"], "high": figure["high"]}
