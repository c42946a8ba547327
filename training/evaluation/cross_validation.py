"""Cross-validation by run, or with whole groups held out, so that similar runs are never on both sides.

It uses train and dev runs only: choosing an estimator by it does not read the test runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ciml.errors import CimlError
from training.data.in_memory import InMemoryDataset, facts_of
from training.estimators import Fitted, Progress, fit, inputs_for
from training.evaluation.baselines import NUMBERS, number_of, numbers_for, predict_by
from training.evaluation.metrics import CONFIDENCE
from training.evaluation.scores import scores
from training.experiment import Experiment
from training.normalise import Normalisation

#: Called with an epoch, from 1, and a function that returns the held-out runs' probabilities at that epoch.
Look = Callable[[int, Callable[[], np.ndarray]], None]


@dataclass(frozen=True)
class CVSplit:
    """One or several divisions of runs into learned and held-out ones.

    Attributes:
      places: positions of the runs in the data set, int64 [n].
      parts: for each fold the learned and the held-out runs, int64, by position in ``places``.
      groups: str [n], the group with which each run is held out; None without groups.
      dev: whether early stopping uses the held-out runs; else it uses the dev runs among the learned ones.
    """

    places: np.ndarray
    parts: tuple[tuple[np.ndarray, np.ndarray], ...]
    groups: np.ndarray | None = None
    dev: bool = False


def divide(material: InMemoryDataset, *, folds: int, hold_out: Sequence[str] = (), seed: int = 0) -> CVSplit:
    """Split the train and dev runs; see `cross_validate`."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    places = material.of("train", "dev")
    labels = material.rows.labels[places]
    groups = _groups(material, places, hold_out) if hold_out else None
    parts = folds if groups is None else min(folds, len(np.unique(groups)))
    smallest = np.bincount(labels)
    if parts < 2 or len(labels) < parts or (groups is None and smallest[smallest > 0].max() < parts):
        what = f"groups of {'+'.join(hold_out)}" if hold_out else "runs of a class"
        raise CimlError(f"cross-validation: {len(labels)} runs have too few {what} for {folds} folds; use fewer folds")
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    divided = kind(parts, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels, groups)
    return CVSplit(places, tuple(divided), groups)


def cross_validate(
    experiment: Experiment,
    material: InMemoryDataset,
    *,
    folds: int = 5,
    hold_out: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train on all folds but one, for each fold, and score on that one.

    Args:
      experiment: the experiment to train. Early stopping uses the dev runs among the learned ones.
      material: the data set whose train and dev runs are split.
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
    division = divide(material, folds=folds, hold_out=hold_out, seed=experiment.seed)
    rows, classes = material.rows.take(division.places), material.snapshot.resolved.classes
    told, answers, parts = [], np.zeros((len(rows), len(classes))), [held for _, held in division.parts]
    for number, (learned, held) in enumerate(division.parts):
        answers[held] = held_out(experiment, material, division, number)
        found = scores(answers[held], rows.labels[held], classes, rows.labels[learned], resamples=0)
        told.append(
            {
                "accuracy": found["accuracy"],
                "base_rate": found["base_rate"],
                "f1": found["macro"]["f1"]["value"],
                "held_out": [] if division.groups is None else sorted(set(division.groups[held].tolist())),
            }
        )
        if progress is not None:
            progress(number + 1, len(division.parts))
    return {
        "by": "+".join(hold_out) or "run",
        "folds": told,
        "mean": {
            "accuracy": _mean([each["accuracy"]["value"] for each in told]),
            "f1": _mean([each["f1"] for each in told]),
        },
        "pooled": scores(answers, rows.labels, classes, rows.labels, material.slices(division.places)),
        "baselines": {
            name: _baseline(name, found, parts, rows.labels, classes)
            for name, found in by_one_number(material, division)
        },
    }


def by_one_number(material: InMemoryDataset, division: CVSplit) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the held-out runs' probabilities by each one-number baseline.

    Args:
      material: the runs.
      division: their split.

    Yields:
      Name of each baseline number that any run has, and float64 [n, C]: NaN for a run without the number, or one that
      is never held out.
    """
    labels, resolved = material.rows.labels[division.places], material.snapshot.resolved
    runs = [material.mentions[place] for place in division.places]
    for name in numbers_for(resolved.definition):
        values = number_of(material.raw, name, runs)
        if values is None:
            continue
        answers = np.full((len(labels), len(resolved.classes)), np.nan)
        for learned, held in division.parts:
            answers[held] = predict_by(name, values[learned], labels[learned], values[held], len(resolved.classes))
        yield name, answers


def _baseline(
    name: str, answers: np.ndarray, parts: Sequence[np.ndarray], labels: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Return a one-number baseline's figures over the same folds."""
    by_fold = [scores(answers[held], labels[held], classes, labels, resamples=0) for held in parts]
    pooled = scores(answers, labels, classes, labels)
    return {
        "what": NUMBERS[name],
        "mean": {
            "accuracy": _mean([each["accuracy"]["value"] for each in by_fold]),
            "f1": _mean([each["macro"]["f1"]["value"] for each in by_fold]),
        },
        "pooled": {key: pooled[key] for key in ("accuracy", "macro", "classes", "brier")},
    }


def _groups(material: InMemoryDataset, places: np.ndarray, hold_out: Sequence[str]) -> np.ndarray:
    runs = [material.mentions[place] for place in places]
    facts = [facts_of(runs, name) for name in hold_out]
    for name, values in zip(hold_out, facts, strict=True):
        if not any(values):
            raise CimlError(f"cross-validation: no run of {material.snapshot.dataset!r} has the fact {name!r}")
    together = ["/".join(values) if all(values) else "" for values in zip(*facts, strict=True)] or [""] * len(runs)
    return np.array([value or run.run_id for value, run in zip(together, runs, strict=True)])


def held_out(
    experiment: Experiment, material: InMemoryDataset, division: CVSplit, number: int, look: Look | None = None
) -> np.ndarray:
    """Train on a fold's learned runs, normalised by these alone, and predict its held-out runs.

    Args:
      experiment: what to train.
      material: the runs.
      division: their split.
      number: the fold's number.
      look: called after each epoch of a network; an exception from it ends the training.
    """
    rows, (learned, held) = material.rows.take(division.places), division.parts[number]
    normal = inputs_for(experiment, Normalisation.of(rows.inputs[learned]), rows)
    dev, asked = None, normal.take(held)
    if experiment.early_stopping is not None:
        looked_at = material.roles[division.places][learned] == "dev"
        if division.dev:
            dev = asked
        elif looked_at.any():
            dev, learned = normal.take(learned[looked_at]), learned[~looked_at]
        else:
            raise CimlError("cross-validation: early stopping needs dev runs in each fold; use fewer folds")
    classes = len(material.snapshot.resolved.classes)

    def watch(epoch: int, model: Fitted) -> None:
        if look is not None:
            look(epoch, partial(model.predict, asked.inputs, asked.n_windows))

    fitted = fit(experiment, normal.take(learned), dev, classes, watch=watch)
    return fitted.predict(asked.inputs, asked.n_windows)


def _mean(values: Sequence[float]) -> dict[str, float]:
    """Return the mean of the folds' shares with Student's interval, clipped to 0 and 1.

    The interval assumes independent folds, which is an approximation.
    """
    from scipy.stats import sem, t

    mean, error = float(np.mean(values)), float(sem(values))
    half = error * float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return {"value": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half)}
