"""Cross-validation by run, or with whole groups held out, so that similar runs are never on both sides.

It uses train and dev runs only: choosing an estimator by it does not read the test runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ciml.errors import CimlError
from ciml.intervals import CONFIDENCE
from ciml.progress import Progress
from ciml.training.calibration.calibrators import fit_calibrator
from ciml.training.data.examples import InMemoryDataset, facts_of
from ciml.training.estimators import Fitted, fit, inputs_for
from ciml.training.evaluation.baselines import COMPARED, NUMBERS, number_of, numbers_for, predict_by
from ciml.training.evaluation.metrics import scores
from ciml.training.experiment import Experiment
from ciml.training.normalise import Normalisation

#: Called with an epoch, from 1, and a function that returns the held-out runs' probabilities at that epoch.
OnEpoch = Callable[[int, Callable[[], np.ndarray]], None]


@dataclass(frozen=True)
class CVSplit:
    """The folds of a cross-validation, or a single split of runs.

    Attributes:
      positions: positions of the runs in the data set, int64 [n].
      parts: for each fold the training and the held-out runs, int64 indices into ``positions``.
      groups: str [n], the group with which each run is held out; None without groups.
      dev: whether early stopping uses the held-out runs; else it uses the dev runs among the training runs.
    """

    positions: np.ndarray
    parts: tuple[tuple[np.ndarray, np.ndarray], ...]
    groups: np.ndarray | None = None
    dev: bool = False


def divide(dataset: InMemoryDataset, *, folds: int, hold_out: Sequence[str] = (), seed: int = 0) -> CVSplit:
    """Split the train and dev runs; see `cross_validate`."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    positions = dataset.of("train", "dev")
    labels = dataset.rows.labels[positions]
    groups = _groups(dataset, positions, hold_out) if hold_out else None
    parts = folds if groups is None else min(folds, len(np.unique(groups)))
    smallest = np.bincount(labels)
    if parts < 2 or len(labels) < parts or (groups is None and smallest[smallest > 0].max() < parts):
        unit = f"groups of {'+'.join(hold_out)}" if hold_out else "runs of a class"
        raise CimlError(f"cross-validation: {len(labels)} runs have too few {unit} for {folds} folds; use fewer folds")
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    divided = kind(parts, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels, groups)
    return CVSplit(positions, tuple(divided), groups)


def cross_validate(
    experiment: Experiment,
    dataset: InMemoryDataset,
    *,
    folds: int = 5,
    hold_out: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train on all folds but one, for each fold, and score on that one.

    Args:
      experiment: the experiment to train. Early stopping uses the dev runs among the training runs.
      dataset: the data set whose train and dev runs are split.
      folds: number of folds, at most the number of groups.
      hold_out: facts whose values are never on both sides: ``flavour``, ``change``, ``job``; several facts group runs
        with equal values of all. A run without the fact is a group of its own. By default each run is a group.
      progress: called after each fold.

    Returns:
      JSON: ``folds`` (``accuracy``, ``base_rate``, ``f1`` and ``held_out`` groups of each), ``mean`` (over folds, with
      Student's 95 % interval), ``pooled`` (the `scores` of every run by the model that had not seen it), and
      ``baselines``: for each baseline number ``mean`` and ``pooled`` over the same folds.

    Raises:
      CimlError: for too few runs or groups.
    """
    split = divide(dataset, folds=folds, hold_out=hold_out, seed=experiment.seed)
    labels = dataset.rows.labels[split.positions]
    classes = dataset.snapshot.resolved.classes
    answers = np.zeros((len(labels), len(classes)))
    for number, (_, held) in enumerate(split.parts):
        answers[held] = held_out(experiment, dataset, split, number)
        if progress is not None:
            progress("folds", number + 1, len(split.parts))
    fold_figures, figures = _figures(answers, split, labels, classes, dataset.slices(split.positions))
    fold_scores = [
        {
            "accuracy": fold["accuracy"],
            "base_rate": fold["base_rate"],
            "f1": fold["macro"]["f1"]["value"],
            "held_out": [] if split.groups is None else sorted(set(split.groups[held].tolist())),
        }
        for fold, (_, held) in zip(fold_figures, split.parts, strict=True)
    ]
    baselines = {}
    for name, baseline_answers in by_one_number(dataset, split):
        _, baseline = _figures(baseline_answers, split, labels, classes)
        pooled = {key: baseline["pooled"][key] for key in COMPARED}
        baselines[name] = {"what": NUMBERS[name], "mean": baseline["mean"], "pooled": pooled}
    return {"by": "+".join(hold_out) or "run", "folds": fold_scores, **figures, "baselines": baselines}


def _figures(
    answers: np.ndarray,
    split: CVSplit,
    labels: np.ndarray,
    classes: Sequence[str],
    slices: Mapping[str, Sequence[str]] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the figures of each fold, and ``mean`` over the folds and ``pooled`` of all runs."""
    folds = [
        scores(answers[held], labels[held], classes, labels[learned], resamples=0) for learned, held in split.parts
    ]
    accuracies = [fold["accuracy"]["value"] for fold in folds]
    f1s = [fold["macro"]["f1"]["value"] for fold in folds]
    mean = {"accuracy": _mean(accuracies), "f1": _mean(f1s)}
    return folds, {"mean": mean, "pooled": scores(answers, labels, classes, labels, slices)}


def by_one_number(dataset: InMemoryDataset, split: CVSplit) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the held-out runs' probabilities by each one-number baseline.

    Args:
      dataset: the runs.
      split: their split.

    Yields:
      Name of each baseline number that any run has, and float64 [n, C]: NaN for a run without the number, or one that
      is never held out.
    """
    labels = dataset.rows.labels[split.positions]
    resolved = dataset.snapshot.resolved
    runs = [dataset.facts[position] for position in split.positions]
    for name in numbers_for(resolved.definition):
        values = number_of(dataset.raw, name, runs)
        if values is None:
            continue
        answers = np.full((len(labels), len(resolved.classes)), np.nan)
        for learned, held in split.parts:
            answers[held] = predict_by(name, values[learned], labels[learned], values[held], len(resolved.classes))
        yield name, answers


def _groups(dataset: InMemoryDataset, positions: np.ndarray, hold_out: Sequence[str]) -> np.ndarray:
    runs = [dataset.facts[position] for position in positions]
    facts = [facts_of(runs, name) for name in hold_out]
    for name, values in zip(hold_out, facts, strict=True):
        if not any(values):
            raise CimlError(f"cross-validation: no run of {dataset.snapshot.dataset!r} has the fact {name!r}")
    together = ["/".join(values) if all(values) else "" for values in zip(*facts, strict=True)] or [""] * len(runs)
    return np.array([value or run.run_id for value, run in zip(together, runs, strict=True)])


def held_out(
    experiment: Experiment, dataset: InMemoryDataset, split: CVSplit, number: int, on_epoch: OnEpoch | None = None
) -> np.ndarray:
    """Train on a fold's training runs, normalised by these alone, and predict its held-out runs.

    With a calibration, the dev runs among the training runs are kept apart for it.

    Args:
      experiment: the experiment to train.
      dataset: the runs.
      split: their split.
      number: the fold's number.
      on_epoch: called after each epoch of a network; an exception from it ends the training.
    """
    rows = dataset.rows.take(split.positions)
    (learned, held) = split.parts[number]
    normal = inputs_for(experiment, Normalisation.of(rows.inputs[learned]), rows)
    dev = None
    tested = normal.take(held)
    is_dev = dataset.roles[split.positions][learned] == "dev"
    apart = learned[is_dev]  # for the calibration
    if experiment.calibration is not None:
        if split.dev or not is_dev.any():
            raise CimlError(
                "cross-validation: calibration needs dev runs in each fold; use fewer folds, or leave it out"
            )
        learned = learned[~is_dev]
    if experiment.early_stopping is not None:
        if split.dev:
            dev = tested
        elif is_dev.any():
            dev = normal.take(learned[is_dev])
            learned = learned[~is_dev]
        else:
            raise CimlError("cross-validation: early stopping needs dev runs in each fold; use fewer folds")
    classes = len(dataset.snapshot.resolved.classes)

    def watch(epoch: int, model: Fitted) -> None:
        if on_epoch is not None:
            on_epoch(epoch, partial(model.predict, tested.inputs, tested.n_windows))

    fitted = fit(experiment, normal.take(learned), dev, classes, watch=watch)
    answers = fitted.predict(tested.inputs, tested.n_windows)
    if experiment.calibration is None:
        return answers
    remaining = normal.take(apart)
    on_dev = fitted.predict(remaining.inputs, remaining.n_windows)
    return fit_calibrator(on_dev, remaining.labels, experiment.calibration).apply(answers)


def _mean(values: Sequence[float]) -> dict[str, float]:
    """Return the mean of the folds' shares with Student's interval, clipped to 0 and 1.

    The interval assumes independent folds, which is an approximation.
    """
    from scipy.stats import sem, t

    mean = float(np.mean(values))
    half = float(sem(values) * t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return {"value": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half)}
