"""Cross-validation: by run, or with whole groups held out, so that a model cannot know a run's twins.

It looks at the runs that are trained on alone: choosing an estimator by it leaves the test runs unread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ciml.errors import CimlError
from training.baselines import NUMBERS, number_of, numbers_for, predict_by
from training.estimators import Progress, fit, inputs_for
from training.evaluate import CONFIDENCE
from training.experiment import Experiment
from training.material import Material, facts_of
from training.normalise import Normalisation
from training.scores import scores


def cross_validate(
    experiment: Experiment,
    material: Material,
    *,
    folds: int = 5,
    hold_out: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains on all folds but one, again and again, and scores each on the one.

    Args:
      experiment: what to train. With early stopping, it looks at the dev runs among those that are trained on.
      material: its train and dev runs are what is divided.
      folds: how many parts; at most as many as there are groups.
      hold_out: facts whose values are never on both sides: ``flavour``, ``change``, ``job``; of several, a group is
        what has the same of all. A run without the fact is a group of its own. Without, each run stands for itself.
      progress: told of each fold.

    Returns:
      JSON: ``folds`` (``accuracy``, ``base_rate``, ``f1`` and the ``held_out`` groups of each), ``mean`` (of the folds,
      with Student's 95 % interval), ``pooled``: the `scores` of every run by the model that had not seen it, and
      ``baselines``: by each number that the data set is held against, ``mean`` and ``pooled`` over the same folds.

    Raises:
      CimlError: for too few runs or groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    places = material.of("train", "dev")
    rows, classes = material.rows.take(places), material.snapshot.resolved.classes
    groups = _groups(material, places, hold_out)
    parts = min(folds, len(np.unique(groups))) if hold_out else folds
    smallest = np.bincount(rows.labels)
    if parts < 2 or len(rows) < parts or (not hold_out and smallest[smallest > 0].max() < parts):
        what = f"groups of {'+'.join(hold_out)}" if hold_out else "runs of a class"
        raise CimlError(f"cross-validation: {len(rows)} runs have too few {what} for {folds} folds")
    kind = StratifiedGroupKFold if hold_out else StratifiedKFold
    told, answers = [], np.zeros((len(rows), len(classes)))
    numbers, parted = _numbers(material, places), []
    by_number = {name: np.full(answers.shape, np.nan) for name in numbers}
    divided = kind(parts, shuffle=True, random_state=experiment.seed).split(
        rows.inputs, rows.labels, groups if hold_out else None
    )
    for number, (learned, held) in enumerate(divided):
        answers[held] = _held_out(experiment, material, places, learned, held)
        for name, values in numbers.items():
            by_number[name][held] = predict_by(name, values[learned], rows.labels[learned], values[held], len(classes))
        parted.append(held)
        found = scores(answers[held], rows.labels[held], classes, rows.labels[learned], resamples=0)
        told.append(
            {
                "accuracy": found["accuracy"],
                "base_rate": found["base_rate"],
                "f1": found["macro"]["f1"]["value"],
                "held_out": sorted(set(groups[held].tolist())) if hold_out else [],
            }
        )
        if progress is not None:
            progress(number + 1, parts)
    return {
        "by": "+".join(hold_out) or "run",
        "folds": told,
        "mean": {
            "accuracy": _mean([each["accuracy"]["value"] for each in told]),
            "f1": _mean([each["f1"] for each in told]),
        },
        "pooled": scores(answers, rows.labels, classes, rows.labels, material.slices(places)),
        "baselines": {name: _baseline(name, found, parted, rows.labels, classes) for name, found in by_number.items()},
    }


def _numbers(material: Material, places: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers that the data set is held against, float64 [n] each; those that no run has are left out."""
    runs = [material.mentions[place] for place in places]
    found = {name: number_of(material.raw, name, runs) for name in numbers_for(material.snapshot.resolved.definition)}
    return {name: values for name, values in found.items() if values is not None}


def _baseline(
    name: str, answers: np.ndarray, parts: Sequence[np.ndarray], labels: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """What one number does in the same folds."""
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


def _groups(material: Material, places: np.ndarray, hold_out: Sequence[str]) -> np.ndarray:
    runs = [material.mentions[place] for place in places]
    facts = [facts_of(runs, name) for name in hold_out]
    for name, values in zip(hold_out, facts, strict=True):
        if not any(values):
            raise CimlError(f"cross-validation: no run of {material.snapshot.dataset!r} has a {name} to hold out")
    together = ["/".join(values) if all(values) else "" for values in zip(*facts, strict=True)] or [""] * len(runs)
    return np.array([value or run.run_id for value, run in zip(together, runs, strict=True)])


def _held_out(
    experiment: Experiment, material: Material, places: np.ndarray, learned: np.ndarray, held: np.ndarray
) -> np.ndarray:
    """The probabilities of the runs ``held``, by a model of the runs ``learned``, which alone it is normalised by."""
    rows = material.rows.take(places)
    normal = inputs_for(experiment, Normalisation.of(rows.inputs[learned]), rows)
    dev = None
    if experiment.early_stopping is not None:
        looked_at = material.roles[places][learned] == "dev"
        if not looked_at.any():
            raise CimlError("cross-validation: early stopping needs dev runs in each fold")
        dev, learned = normal.take(learned[looked_at]), learned[~looked_at]
    fitted = fit(experiment, normal.take(learned), dev, len(material.snapshot.resolved.classes))
    return fitted.predict(normal.inputs[held], normal.n_windows[held])


def _mean(values: Sequence[float]) -> dict[str, float]:
    """The mean of the folds. Student's interval takes them as independent, which they are not quite."""
    from scipy.stats import sem, t

    mean, error = float(np.mean(values)), float(sem(values))
    half = error * float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return {"value": mean, "low": mean - half, "high": mean + half}
