"""Cross-validate by run, or by groups of similar runs that are held out together.

Only train and dev runs are used, so that an estimator can be chosen without the test runs.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ciml.errors import CimlError, NoTrainingDataError
from ciml.intervals import CONFIDENCE, wilson
from ciml.progress import Progress
from ciml.training.calibration.calibrators import fit_calibrator
from ciml.training.data.examples import InMemoryDataset, facts_of
from ciml.training.estimators import Fitted, fit, inputs_for
from ciml.training.evaluation.baselines import COMPARED, NUMBERS, number_of, numbers_for, predict_by
from ciml.training.evaluation.metrics import scores
from ciml.training.evaluation.text import listed
from ciml.training.experiment import Experiment
from ciml.training.normalise import Normalisation

#: Called with an epoch, from 1, and a function that predicts the held-out runs with the model of that epoch.
OnEpoch = Callable[[int, Callable[[], np.ndarray]], None]


class Fold(NamedTuple):
    """A fold: int64 indices into `CVSplit.positions`."""

    train: np.ndarray
    held_out: np.ndarray


@dataclass(frozen=True)
class CVSplit:
    """The folds of a cross-validation, or a single split of runs.

    Attributes:
      positions: positions of the runs in the data set, int64 [n].
      folds: at least one.
      groups: str [n], the group with which each run is held out; None without groups.
      held_out_is_dev: whether the held-out runs are the dev runs. If so, early stopping uses the held-out runs;
        otherwise it uses the dev runs among the training runs.
    """

    positions: np.ndarray
    folds: tuple[Fold, ...]
    groups: np.ndarray | None = None
    held_out_is_dev: bool = False


def cross_validate(
    experiment: Experiment,
    dataset: InMemoryDataset,
    *,
    folds: int = 5,
    hold_out: Sequence[str] = (),
    progress: Progress | None = None,
    allow_modules: Collection[str] = (),
) -> dict[str, Any]:
    """Train a model for each fold on the runs of the other folds, and score it on the fold.

    Args:
      experiment: the experiment to train. Early stopping uses the dev runs among the training runs.
      dataset: the data set whose train and dev runs are split.
      folds: number of folds, at least 2. With fewer groups than folds, each group is a fold.
      hold_out: facts to group by, such as ``flavour``, ``change`` or ``job``: runs with equal values are never split
        between training and held-out runs. Several facts group by all their values. A run that lacks a fact is a
        group of its own; without ``hold_out``, so is each run.
      progress: called after each fold.
      allow_modules: see `ciml.training.estimators.estimator_of`.

    Returns:
      JSON with ``folds``, ``mean``, ``pooled`` and ``baselines``. ``folds`` has ``accuracy``, ``base_rate``, ``f1`` and
      the ``held_out`` groups of each fold. ``mean`` is over the folds, with 95 % intervals. ``pooled`` has the `scores`
      of all runs, each by the model that was not trained on it. ``baselines`` has ``mean`` and ``pooled`` of each
      baseline number on the same folds.

    Raises:
      CimlError: if there are too few runs or groups.
    """
    split = split_folds(dataset, folds=folds, hold_out=hold_out, seed=experiment.seed)
    labels = dataset.rows.labels[split.positions]
    classes = dataset.snapshot.resolved.classes
    probabilities = np.zeros((len(labels), len(classes)))
    for number, fold in enumerate(split.folds):
        probabilities[fold.held_out] = predict_fold(experiment, dataset, split, number, allow_modules=allow_modules)
        if progress is not None:
            progress("folds", number + 1, len(split.folds))
    changes = dataset.changes(split.positions)
    by_fold = _scores_by_fold(probabilities, split, labels, classes, changes)
    fold_figures = [
        {
            "accuracy": figures["accuracy"],
            "base_rate": figures["base_rate"],
            "f1": figures["macro"]["f1"]["value"],
            "held_out": [] if split.groups is None else sorted(set(split.groups[fold.held_out].tolist())),
        }
        for figures, fold in zip(by_fold, split.folds, strict=True)
    ]
    baselines = {}
    for name, answers in predict_by_numbers(dataset, split):
        baseline_by_fold = _scores_by_fold(answers, split, labels, classes, changes)
        pooled = scores(answers, labels, classes, labels, changes=changes)
        baselines[name] = {
            "what": NUMBERS[name],
            "mean": _means(baseline_by_fold, pooled["accuracy"]["independent"]),
            "pooled": {key: pooled[key] for key in COMPARED},
        }
    pooled = scores(probabilities, labels, classes, labels, dataset.slices(split.positions), changes)
    return {
        "by": "+".join(hold_out) or "run",
        "folds": fold_figures,
        "mean": _means(by_fold, pooled["accuracy"]["independent"]),
        "pooled": pooled,
        "baselines": baselines,
    }


def _scores_by_fold(
    probabilities: np.ndarray, split: CVSplit, labels: np.ndarray, classes: Sequence[str], changes: np.ndarray
) -> list[dict[str, Any]]:
    """Return the `scores` of the held-out runs of each fold, without bootstrap intervals."""
    return [
        scores(
            probabilities[held_out], labels[held_out], classes, labels[train], changes=changes[held_out], resamples=0
        )
        for train, held_out in split.folds
    ]


def _means(by_fold: Sequence[Mapping[str, Any]], runs: float) -> dict[str, dict[str, float]]:
    """Return the mean accuracy and macro F1 over the folds, with intervals.

    Args:
      by_fold: scores of each fold.
      runs: number of independent runs that would tell as much as all runs.
    """
    return {
        "accuracy": _mean_with_interval([figures["accuracy"]["value"] for figures in by_fold], runs),
        "f1": _mean_with_interval([figures["macro"]["f1"]["value"] for figures in by_fold], runs),
    }


def _mean_with_interval(values: Sequence[float], runs: float) -> dict[str, float]:
    """Return the mean of the folds' values with Student's interval, or with Wilson's interval where that is wider.

    Student's interval assumes independent folds, which is an approximation, and has no width if all folds are equal.
    Wilson's interval treats the mean as a share of all runs. An F1 score is not a share, so there it is a heuristic.
    """
    from scipy.stats import sem, t

    mean = float(np.mean(values))
    half = float(sem(values) * t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    low, high = wilson(mean * runs, runs)
    return {"value": mean, "low": min(low, max(0.0, mean - half)), "high": max(high, min(1.0, mean + half))}


def split_folds(dataset: InMemoryDataset, *, folds: int, hold_out: Sequence[str] = (), seed: int = 0) -> CVSplit:
    """Split the train and dev runs into folds. Arguments and errors are those of `cross_validate`."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if folds < 2:
        raise CimlError(f"cross-validation: folds: {folds} is too few; use at least 2")
    positions = dataset.of("train", "dev")
    labels = dataset.rows.labels[positions]
    groups = _groups(dataset, positions, hold_out) if hold_out else None
    n_folds = folds if groups is None else min(folds, len(np.unique(groups)))
    runs_of_largest_class = np.bincount(labels, minlength=1).max()
    if n_folds < 2 or runs_of_largest_class < n_folds:
        lacking = f"groups of {'+'.join(hold_out)}" if n_folds < 2 else "runs of a class"
        raise CimlError(
            f"cross-validation: {len(labels)} runs have too few {lacking} for {folds} folds; use fewer folds"
        )
    splitter_class = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = splitter_class(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # some folds hold none of it out
        parts = list(splitter.split(np.zeros(len(labels)), labels, groups))
    parts_with_runs = [Fold(train, held_out) for train, held_out in parts if held_out.size]  # groups may be uneven
    for train, held_out in parts_with_runs:
        if len(np.unique(labels[train])) < 2:
            without = f"without {listed(np.unique(groups[held_out]).tolist())}, " if groups is not None else ""
            raise NoTrainingDataError(f"cross-validation: {without}the training runs of a fold have a single class")
    return CVSplit(positions, tuple(parts_with_runs), groups)


def _groups(dataset: InMemoryDataset, positions: np.ndarray, hold_out: Sequence[str]) -> np.ndarray:
    """Return the name of each run's group, str [n]: the values of the facts, or the run id if a value is missing."""
    runs = [dataset.facts[position] for position in positions]
    columns = [facts_of(runs, name) for name in hold_out]
    for name, values in zip(hold_out, columns, strict=True):
        if not any(values) and name != "change":  # runs without a change stand for themselves, as in the splits
            raise CimlError(
                f"cross-validation: no run of {dataset.snapshot.dataset!r} has the fact {name!r}; "
                "hold out another one, or none"
            )
    keys = [tuple(values) if all(values) else (run.run_id,) for run, *values in zip(runs, *columns, strict=True)]
    frequencies = Counter(map("/".join, set(keys)))
    # Values may contain a slash: ("a/b", "c") and ("a", "b/c") are different groups.
    names = {key: "/".join(key) if frequencies["/".join(key)] == 1 else " / ".join(map(repr, key)) for key in keys}
    return np.array([names[key] for key in keys])


def predict_fold(
    experiment: Experiment,
    dataset: InMemoryDataset,
    split: CVSplit,
    number: int,
    on_epoch: OnEpoch | None = None,
    allow_modules: Collection[str] = (),
) -> np.ndarray:
    """Train on the training runs of a fold, normalised by these alone, and predict the held-out runs, float [n, C].

    Dev runs among the training runs are set aside if early stopping or the calibration needs them.

    Args:
      experiment: the experiment to train.
      dataset: the runs.
      split: the folds.
      number: index of the fold.
      on_epoch: called after each epoch of a network; an exception from it ends the training.
      allow_modules: see `ciml.training.estimators.estimator_of`.

    Raises:
      CimlError: if early stopping or the calibration needs dev runs, and the fold has none.
    """
    fold = split.folds[number]
    rows = dataset.rows.take(split.positions)
    inputs = inputs_for(experiment, Normalisation.of(rows.inputs[fold.train]), rows, allow_modules)
    held_out_rows = inputs.take(fold.held_out)
    train, tuning = _roles(experiment, split, fold, dataset.roles[split.positions] == "dev")
    tuning_rows = inputs.take(tuning)

    def watch(epoch: int, model: Fitted) -> None:
        if on_epoch is not None:
            on_epoch(epoch, partial(model.predict, held_out_rows.inputs, held_out_rows.n_windows))

    resolved = dataset.snapshot.resolved
    fitted = fit(
        experiment,
        inputs.take(train),
        None if experiment.early_stopping is None else tuning_rows,
        len(resolved.classes),
        features=resolved.features,
        allow_modules=allow_modules,
        watch=watch,
    )
    probabilities = fitted.predict(held_out_rows.inputs, held_out_rows.n_windows)
    if experiment.calibration is None:
        return probabilities
    tuning_probabilities = fitted.predict(tuning_rows.inputs, tuning_rows.n_windows)
    return fit_calibrator(tuning_probabilities, tuning_rows.labels, experiment.calibration).apply(probabilities)


class _Roles(NamedTuple):
    """Roles of runs in a fold: int64 indices into `CVSplit.positions`.

    Attributes:
      train: runs that the model is trained on.
      tuning: runs that stop the training early, or that the calibration is fitted to; empty if there is neither.
    """

    train: np.ndarray
    tuning: np.ndarray


def _roles(experiment: Experiment, split: CVSplit, fold: Fold, is_dev: np.ndarray) -> _Roles:
    """Set dev runs aside if early stopping or the calibration needs them. ``is_dev``: bool [n]."""
    dev = fold.train[is_dev[fold.train]]
    if experiment.early_stopping is None and experiment.calibration is None:
        return _Roles(fold.train, dev[:0])
    if experiment.early_stopping is not None and split.held_out_is_dev:
        return _Roles(fold.train, fold.held_out)
    if not dev.size:
        need = "early stopping" if experiment.calibration is None else "calibration"
        raise CimlError(f"cross-validation: {need} needs dev runs in each fold; use fewer folds, or leave it out")
    return _Roles(fold.train[~is_dev[fold.train]], dev)


def predict_by_numbers(dataset: InMemoryDataset, split: CVSplit) -> Iterator[tuple[str, np.ndarray]]:
    """Predict the held-out runs by each one-number baseline.

    Args:
      dataset: the runs.
      split: the folds.

    Yields:
      The name of each baseline number that any run has, and probabilities float64 [n, C]. They are NaN for a run
      without the number, and for a run that is never held out.
    """
    labels = dataset.rows.labels[split.positions]
    resolved = dataset.snapshot.resolved
    runs = [dataset.facts[position] for position in split.positions]
    for name in numbers_for(resolved.definition):
        values = number_of(dataset.raw, name, runs)
        if values is None:
            continue
        answers = np.full((len(labels), len(resolved.classes)), np.nan)
        for train, held_out in split.folds:
            answers[held_out] = predict_by(name, values[train], labels[train], values[held_out], len(resolved.classes))
        yield name, answers
