"""Calibrates a trained model on the dev runs of its snapshot, apart from those that it learned and is tested on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ciml.datasets.definition import ResolvedDefinition
from ciml.digest import canonical_json, sha256_json
from ciml.errors import CimlError, IntegrityError
from ciml.events.outcomes import CAUSE
from ciml.events.records import RunFacts
from ciml.storage import Store
from ciml.training.calibration.calibrators import LEAST, Calibrator, Isotonic, Temperature, learned_ranges, make_rules
from ciml.training.data.examples import file_tasks, read_facts, read_rows
from ciml.training.data.snapshot import Snapshot
from ciml.training.experiment import Experiment
from ciml.transforms.examples.prepare import run_means, split_of, subject_of
from ciml.verdict_rules import LearnedRanges, VerdictRules

_SALT = "ciml calibration"
#: An isotonic calibrator fits any rising line, and so fits the noise of fewer runs, or of fewer of one class.
ISOTONIC_RUNS = 1000
ISOTONIC_CLASS_RUNS = 100
#: Temperatures that are tried.
_COLDEST = 0.05
_HOTTEST = 20.0


@dataclass(frozen=True)
class Calibrated:
    """A fitted calibration.

    Attributes:
      calibrator: for the probabilities of the model.
      rules: of verdicts; None for a model of another label than the cause.
      description: how it was made, for reports: ``method``, its parameters, ``runs``, their digest, and ``log_loss`` of
        these runs ``before`` and ``after``, which is optimistic: the calibrator was fitted to them.
    """

    calibrator: Calibrator
    rules: VerdictRules | None
    description: dict[str, Any]

    def asset(self) -> bytes | None:
        """Return ``assets/verdicts.json`` of the model; None without rules."""
        return None if self.rules is None else canonical_json(self.rules.to_json()) + b"\n"


def calibrate(
    experiment: Experiment,
    resolved: ResolvedDefinition,
    runs: Sequence[RunFacts],
    probabilities: NDArray[np.floating],
    labels: NDArray[np.integer],
    *,
    used: Iterable[RunFacts],
    ranges: Callable[[], LearnedRanges | None] = lambda: None,
) -> Calibrated:
    """Fit the calibrator of an experiment, and the sets of verdicts where the label is a cause.

    An isotonic calibrator follows its runs so closely that the sets need others: it is fitted to the runs of half of
    the changes. A temperature changes no order of two classes' scores, so all runs serve both.

    Args:
      experiment: with a ``calibration``.
      resolved: the definition of the data set.
      runs: facts of the n dev runs.
      probabilities: float [n, C] that the model gave to them.
      labels: int [n].
      used: the runs that the model learned, and is tested on.
      ranges: computes those of the runs that it learned and of these; called where there are verdicts.

    Raises:
      CimlError: if there are no dev runs.
      IntegrityError: if a run, or another of its change, is among the ``used`` ones.
    """
    if not runs:
        raise CimlError("calibration needs dev runs; give dev a weight in the data set's tdt_split")
    _check_apart(runs, used)
    method = experiment.calibration or "auto"
    calibrator = fit_calibrator(probabilities, labels, method)
    unlearned = np.ones(len(runs), bool)
    if calibrator.method == "isotonic":
        unlearned = np.array(
            [split_of(run.project, run.change, run.run_id, _SALT, (1, 0, 1)) == "test" for run in runs]
        )
        if unlearned.all() or not unlearned.any():
            raise CimlError("calibration: isotonic needs dev runs of several changes; use temperature")
        calibrator = fit_calibrator(probabilities[~unlearned], labels[~unlearned], "isotonic")
    calibrated = calibrator.apply(probabilities)
    description = {
        **calibrator.to_json(),
        "runs": len(runs),
        "fitted_to": int((~unlearned).sum()) or len(runs),
        "digest": sha256_json(sorted(run.run_id for run in runs)),
        "log_loss": {"before": log_loss(probabilities, labels), "after": log_loss(calibrated, labels)},
    }
    if resolved.definition.class_label != CAUSE:
        return Calibrated(calibrator, None, description)
    rules = make_rules(
        calibrated[unlearned],
        labels[unlearned],
        [run.build_name for run, is_used in zip(runs, unlearned, strict=True) if is_used],
        resolved.classes,
        coverage=experiment.coverage,
        calibration=description,
    )
    return Calibrated(calibrator, rules.replace(ranges=ranges()), description)


def calibrate_on_dev(
    root: Store, snapshot: Snapshot, experiment: Experiment, probabilities: NDArray[np.floating]
) -> Calibrated:
    """Calibrate a model on the dev runs of its snapshot; see `calibrate`.

    Args:
      root: the folder of the snapshot's data set.
      snapshot: the model's.
      experiment: with a ``calibration``; then no dev run is trained on.
      probabilities: float [n, C] that the model gave to the dev runs, in the snapshot's order.
    """
    facts = read_facts(root, snapshot)
    dev = list(snapshot.runs("dev"))
    not_dev = snapshot.runs("train", "test")
    labels = np.array([run.label for run in dev], np.int64)
    return calibrate(
        experiment,
        snapshot.resolved,
        [facts[run.run_id] for run in dev],
        probabilities,
        labels,
        used=[facts[run.run_id] for run in not_dev],
        ranges=lambda: _ranges(root, snapshot, facts),
    )


def _ranges(root: Store, snapshot: Snapshot, facts: Mapping[str, RunFacts]) -> LearnedRanges | None:
    """Return the ranges of the runs that a calibrated model learned, and of those that calibrate it; file by file."""
    resolved = snapshot.resolved
    runs = list(snapshot.runs())
    means = []
    learned = list[RunFacts]()
    for task in file_tasks(snapshot, "train", "dev"):
        rows = read_rows(root, task, resolved)
        means.append(run_means(rows.inputs, rows.n_windows))
        learned += [facts[runs[ordinal].run_id] for ordinal in rows.ordinals.tolist()]
    return learned_ranges(np.concatenate(means), learned, resolved.features)


def _check_apart(runs: Sequence[RunFacts], used: Iterable[RunFacts]) -> None:
    subjects = {subject_of(run.project, run.change, run.run_id): run.run_id for run in runs}
    for run in used:
        if (twin := subjects.get(subject_of(run.project, run.change, run.run_id))) is not None:
            why = f"is of the same change as {run.run_id}, which the model learned or is tested on"
            raise IntegrityError(f"calibration: run {twin} {why}")


def fit_calibrator(
    probabilities: NDArray[np.floating],
    labels: NDArray[np.integer],
    method: Literal["auto", "temperature", "isotonic"] = "auto",
) -> Calibrator:
    """Fit a calibrator.

    Args:
      probabilities: float [n, C] of held-out runs; n at least 1.
      labels: int [n].
      method: ``auto`` takes ``isotonic`` for many runs (`ISOTONIC_RUNS`, `ISOTONIC_CLASS_RUNS` of each class), else
        ``temperature``.
    """
    if method == "auto":
        counts = np.bincount(labels, minlength=probabilities.shape[1])
        many = len(labels) >= ISOTONIC_RUNS and counts.min() >= ISOTONIC_CLASS_RUNS
        method = "isotonic" if many else "temperature"
    if method == "isotonic":
        return _isotonic(probabilities, labels)
    return _temperature(probabilities, labels)


def log_loss(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the mean negative logarithm of the probability of each run's own class."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(chosen, LEAST)).mean())


def _temperature(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> Temperature:
    """Return the temperature of the largest posterior density.

    A priori its logarithm has the standard normal density: ten runs that are all right, or all wrong, would otherwise
    have the temperature 0 or infinity. It weighs as much as a few runs.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    logits = np.log(np.maximum(probabilities.astype(np.float64), LEAST))
    own = logits[np.arange(len(labels)), labels]

    def cost(logarithm: float) -> float:
        scale = np.exp(-logarithm)
        return float((logsumexp(logits * scale, axis=1) - own * scale).sum() + logarithm**2 / 2)

    minimum = minimize_scalar(
        cost, bounds=(np.log(_COLDEST), np.log(_HOTTEST)), method="bounded", options={"xatol": 1e-6}
    )
    return Temperature(float(np.exp(minimum.x)))


def _isotonic(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> Isotonic:
    """Return a line for each class against all others. No probability becomes 0 or 1: n runs do not show that."""
    from sklearn.isotonic import IsotonicRegression

    least = 1 / (len(labels) + 2)
    lines = []
    for label in range(probabilities.shape[1]):
        fitted = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
        fitted.fit(np.maximum(probabilities[:, label].astype(np.float64), LEAST), (labels == label).astype(np.float64))
        x = fitted.X_thresholds_
        y = fitted.y_thresholds_
        if len(x) == 1:
            x = np.array([x[0], x[0] + 1.0])
            y = np.repeat(y, 2)
        lines.append(np.stack([x, y], axis=1).astype(np.float64))
    return Isotonic(tuple(lines))
