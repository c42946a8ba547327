"""Cross-validation by run, or by groups of similar runs, which are held out together.

It uses train and dev runs only, so that an estimator can be chosen without the test runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ciml.errors import CimlError
from ciml.intervals import CONFIDENCE, wilson
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
      parts: for each fold the training runs and the held-out runs, int64 indices into ``positions``.
      groups: str [n], the group with which each run is held out; None without groups.
      dev: whether the held-out runs are the dev runs. Then early stopping uses them, else the dev runs among the
        training runs.
    """

    positions: np.ndarray
    parts: tuple[tuple[np.ndarray, np.ndarray], ...]
    groups: np.ndarray | None = None
    dev: bool = False


def cross_validate(
    experiment: Experiment,
    dataset: InMemoryDataset,
    *,
    folds: int = 5,
    hold_out: Sequence[str] = (),
    progress: Progress | None = None,
    allow_modules: Collection[str] = (),
) -> dict[str, Any]:
    """Train on all folds but one, for each fold, and score on that one.

    Args:
      experiment: the experiment to train. Early stopping uses the dev runs among the training runs.
      dataset: the data set whose train and dev runs are split.
      folds: number of folds, at most the number of groups.
      hold_out: facts whose values are never on both sides: ``flavour``, ``change``, ``job``; several facts group runs
        with equal values of all. A run without the fact is a group of its own. By default each run is a group.
      progress: called after each fold.
      allow_modules: see `ciml.training.estimators.estimator_of`.

    Returns:
      JSON: ``folds`` (``accuracy``, ``base_rate``, ``f1`` and ``held_out`` groups of each), ``mean`` (over folds, with
      a 95 % interval), ``pooled`` (the `scores` of every run by the model that had not seen it), and
      ``baselines``: for each baseline number ``mean`` and ``pooled`` over the same folds.

    Raises:
      CimlError: for too few runs or groups.
    """
    split = split_folds(dataset, folds=folds, hold_out=hold_out, seed=experiment.seed)
    labels = dataset.rows.labels[split.positions]
    classes = dataset.snapshot.resolved.classes
    answers = np.zeros((len(labels), len(classes)))
    for number, (_, held_out) in enumerate(split.parts):
        answers[held_out] = predict_fold(experiment, dataset, split, number, allow_modules=allow_modules)
        if progress is not None:
            progress("folds", number + 1, len(split.parts))
    fold_figures, figures = _figures(answers, split, labels, classes, dataset.slices(split.positions))
    fold_scores = [
        {
            "accuracy": fold["accuracy"],
            "base_rate": fold["base_rate"],
            "f1": fold["macro"]["f1"]["value"],
            "held_out": [] if split.groups is None else sorted(set(split.groups[held_out].tolist())),
        }
        for fold, (_, held_out) in zip(fold_figures, split.parts, strict=True)
    ]
    baselines = {}
    for name, baseline_answers in predict_by_numbers(dataset, split):
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
        scores(answers[held_out], labels[held_out], classes, labels[train], resamples=0)
        for train, held_out in split.parts
    ]
    accuracies = [fold["accuracy"]["value"] for fold in folds]
    f1s = [fold["macro"]["f1"]["value"] for fold in folds]
    mean = {"accuracy": _mean(accuracies, len(labels)), "f1": _mean(f1s, len(labels))}
    return folds, {"mean": mean, "pooled": scores(answers, labels, classes, labels, slices)}


def _mean(values: Sequence[float], runs: int) -> dict[str, float]:
    """Compute the mean of the folds' shares with Student's interval, or Wilson's where that is wider.

    Student's interval assumes independent folds, which is an approximation. It has no width if all folds are alike; so
    it is widened to Wilson's interval of the mean as a share of all runs.
    """
    from scipy.stats import sem, t

    mean = float(np.mean(values))
    half = float(sem(values) * t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    low, high = wilson(mean * runs, runs)
    return {"value": mean, "low": min(low, max(0.0, mean - half)), "high": max(high, min(1.0, mean + half))}


def split_folds(dataset: InMemoryDataset, *, folds: int, hold_out: Sequence[str] = (), seed: int = 0) -> CVSplit:
    """Split the train and dev runs; see `cross_validate`."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if folds < 2:
        raise CimlError(f"cross-validation: folds: {folds} is too few; use at least 2")
    positions = dataset.of("train", "dev")
    labels = dataset.rows.labels[positions]
    groups = _groups(dataset, positions, hold_out) if hold_out else None
    parts = folds if groups is None else min(folds, len(np.unique(groups)))
    too_few_of_classes = groups is None and np.bincount(labels, minlength=1).max() < parts
    if parts < 2 or len(labels) < parts or too_few_of_classes:
        unit = f"groups of {'+'.join(hold_out)}" if hold_out else "runs of a class"
        raise CimlError(f"cross-validation: {len(labels)} runs have too few {unit} for {folds} folds; use fewer folds")
    splitter_class = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = splitter_class(parts, shuffle=True, random_state=seed)
    return CVSplit(positions, tuple(splitter.split(np.zeros(len(labels)), labels, groups)), groups)


def _groups(dataset: InMemoryDataset, positions: np.ndarray, hold_out: Sequence[str]) -> np.ndarray:
    """Return the group of each run, str [n]: its values of the facts, or its run id if one of them is missing."""
    runs = [dataset.facts[position] for position in positions]
    columns = [facts_of(runs, name) for name in hold_out]
    for name, values in zip(hold_out, columns, strict=True):
        if not any(values):
            raise CimlError(
                f"cross-validation: no run of {dataset.snapshot.dataset!r} has the fact {name!r}; "
                "hold out another one, or none"
            )
    groups = []
    for run, *values in zip(runs, *columns, strict=True):
        groups.append("/".join(values) if all(values) else run.run_id)
    return np.array(groups)


def predict_fold(
    experiment: Experiment,
    dataset: InMemoryDataset,
    split: CVSplit,
    number: int,
    on_epoch: OnEpoch | None = None,
    allow_modules: Collection[str] = (),
) -> np.ndarray:
    """Train on a fold's training runs, normalised by these alone, and predict its held-out runs, float [n, C].

    The dev runs among the training runs are not trained on if early stopping or the calibration needs them.

    Args:
      experiment: the experiment to train.
      dataset: the runs.
      split: their split.
      number: the fold's number.
      on_epoch: called after each epoch of a network; an exception from it ends the training.
      allow_modules: see `ciml.training.estimators.estimator_of`.
    """
    train, held_out = split.parts[number]
    rows = dataset.rows.take(split.positions)
    inputs = inputs_for(experiment, Normalisation.of(rows.inputs[train]), rows, allow_modules)
    held_out_rows = inputs.take(held_out)
    is_dev = dataset.roles[split.positions][train] == "dev"
    dev_rows = inputs.take(train[is_dev])
    stopping_rows = None
    if experiment.calibration is not None:
        if split.dev or not len(dev_rows):
            raise CimlError(
                "cross-validation: calibration needs dev runs in each fold; use fewer folds, or leave it out"
            )
        train = train[~is_dev]
    elif experiment.early_stopping is not None and split.dev:
        stopping_rows = held_out_rows
    elif experiment.early_stopping is not None:
        if not len(dev_rows):
            raise CimlError("cross-validation: early stopping needs dev runs in each fold; use fewer folds")
        stopping_rows = dev_rows
        train = train[~is_dev]

    def watch(epoch: int, model: Fitted) -> None:
        if on_epoch is not None:
            on_epoch(epoch, partial(model.predict, held_out_rows.inputs, held_out_rows.n_windows))

    resolved = dataset.snapshot.resolved
    fitted = fit(
        experiment,
        inputs.take(train),
        stopping_rows,
        len(resolved.classes),
        features=resolved.features,
        allow_modules=allow_modules,
        watch=watch,
    )
    answers = fitted.predict(held_out_rows.inputs, held_out_rows.n_windows)
    if experiment.calibration is None:
        return answers
    dev_answers = fitted.predict(dev_rows.inputs, dev_rows.n_windows)
    return fit_calibrator(dev_answers, dev_rows.labels, experiment.calibration).apply(answers)


def predict_by_numbers(dataset: InMemoryDataset, split: CVSplit) -> Iterator[tuple[str, np.ndarray]]:
    """Predict the held-out runs by each one-number baseline.

    Args:
      dataset: the runs.
      split: their split.

    Yields:
      The name of each baseline number that any run has, and probabilities float64 [n, C]. They are NaN for a run
      without the number, and for one that is never held out.
    """
    labels = dataset.rows.labels[split.positions]
    resolved = dataset.snapshot.resolved
    runs = [dataset.facts[position] for position in split.positions]
    for name in numbers_for(resolved.definition):
        values = number_of(dataset.raw, name, runs)
        if values is None:
            continue
        answers = np.full((len(labels), len(resolved.classes)), np.nan)
        for train, held_out in split.parts:
            answers[held_out] = predict_by(name, values[train], labels[train], values[held_out], len(resolved.classes))
        yield name, answers
