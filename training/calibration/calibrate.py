"""Calibrates a trained model on dev runs: fits a calibrator, and the sets of classes that its verdicts need.

No change has runs both in the calibration and among the runs that the model learned or is tested on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ciml.datasets.definition import NO_OUTPUT_FEATURE, ResolvedDefinition
from ciml.digest import canonical_json, sha256_json
from ciml.errors import IntegrityError, NoTrainingDataError
from ciml.events.outcomes import CAUSE
from ciml.events.records import RunFacts
from ciml.storage import Store
from ciml.training.calibration.calibrators import Calibrator, fit_calibrator, log_loss
from ciml.training.calibration.sets import learned_ranges, make_rules
from ciml.training.data.examples import file_tasks, read_facts, read_rows, read_snapshot_examples
from ciml.training.data.snapshot import Snapshot
from ciml.training.experiment import Experiment
from ciml.transforms.examples.prepare import run_means, split_of, subject_of, withhold_telemetry
from ciml.verdict_rules import LearnedRanges, VerdictRules

#: Divides the dev runs for an isotonic calibrator.
_SALT = "ciml calibration"


@dataclass(frozen=True)
class Calibrated:
    """A fitted calibration.

    Attributes:
      calibrator: for the probabilities of the model.
      rules: of verdicts; None for a model of another label than the cause.
      description: for reports: ``method``, its parameters, ``runs``, their ``digest``, and their ``log_loss``
        ``before`` and ``after``. The loss after is optimistic: the calibrator was fitted to these runs.
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
    without_output: NDArray[np.bool_] | None = None,
    without_telemetry: NDArray[np.floating] | None = None,
) -> Calibrated:
    """Fit the calibrator of an experiment, and the sets of verdicts where the label is a cause.

    A temperature keeps the order of the scores of two classes, and there are two causes. So the sets are calibrated on
    the runs that it was fitted to. An isotonic calibrator follows its runs closely, so the sets need other runs: it is
    fitted to half of the changes.

    Args:
      experiment: with a ``calibration``.
      resolved: the definition of the data set.
      runs: facts of the n dev runs.
      probabilities: float [n, C] that the model gave to them.
      labels: int [n].
      used: the runs that the model learned, and is tested on.
      ranges: computes the ranges of the runs that it learned and of the dev runs; called only for a model of verdicts.
      without_output: bool [n], the dev runs without an output, by `lacks_output`.
      without_telemetry: float [n, C] that the model gave to the dev runs when it saw no telemetry of them, by
        `ciml.transforms.examples.prepare.withhold_telemetry`; None for a model without outputs.

    Raises:
      NoTrainingDataError: if there are no dev runs, or isotonic calibration has dev runs of one change.
      IntegrityError: if a run, or another of its change, is among the ``used`` ones.
    """
    if not runs:
        raise NoTrainingDataError("calibration needs dev runs; give dev a weight in the data set's tdt_split")
    _check_apart(runs, used)
    method = experiment.calibration or "auto"
    calibrator = fit_calibrator(probabilities, labels, method)
    for_sets = np.ones(len(runs), bool)
    fitted_to = len(runs)
    if calibrator.method == "isotonic":
        for_sets = np.array([split_of(run.project, run.change, run.run_id, _SALT, (1, 0, 1)) == "test" for run in runs])
        fitted_to = int((~for_sets).sum())
        if fitted_to in (0, len(runs)):
            raise NoTrainingDataError("calibration: isotonic needs dev runs of several changes; use temperature")
        calibrator = fit_calibrator(probabilities[~for_sets], labels[~for_sets], "isotonic")
    calibrated = calibrator.apply(probabilities)
    description = {
        **calibrator.to_json(),
        "runs": len(runs),
        "fitted_to": fitted_to,
        "digest": sha256_json(sorted(run.run_id for run in runs)),
        "log_loss": {"before": log_loss(probabilities, labels), "after": log_loss(calibrated, labels)},
    }
    if resolved.definition.class_label != CAUSE:
        return Calibrated(calibrator, None, description)
    learned = ranges()
    # Without ranges, a reader of the rules cannot tell runs without an output from others.
    lacking = None if learned is None or without_output is None else without_output[for_sets]
    rules = make_rules(
        calibrated[for_sets],
        labels[for_sets],
        [runs[row].build_name for row in np.flatnonzero(for_sets).tolist()],
        resolved.classes,
        coverage=experiment.coverage,
        calibration=description,
        without_output=lacking,
        without_telemetry=None if without_telemetry is None else calibrator.apply(without_telemetry)[for_sets],
    )
    return Calibrated(calibrator, rules.replace(ranges=learned), description)


def lacks_output(inputs: NDArray[np.floating], features: Sequence[str]) -> NDArray[np.bool_] | None:
    """Return which runs have no output, bool [n]; None if the features have no output.

    Args:
      inputs: float [n, L, F], not normalised.
      features: names of the F features.
    """
    if NO_OUTPUT_FEATURE not in features:
        return None
    is_lacking: NDArray[np.bool_] = inputs[:, 0, list(features).index(NO_OUTPUT_FEATURE)] > 0
    return is_lacking


def calibrate_on_dev(
    root: Store,
    snapshot: Snapshot,
    experiment: Experiment,
    probabilities: NDArray[np.floating],
    predict: Callable[[NDArray[np.float32], NDArray[np.int32]], NDArray[np.floating]] | None = None,
) -> Calibrated:
    """Calibrate a model on the dev runs of its snapshot; see `calibrate`.

    Args:
      root: the folder of the snapshot's data set.
      snapshot: the model's.
      experiment: with a ``calibration``; then no dev run is trained on.
      probabilities: float [n, C] that the model gave to the dev runs, in the snapshot's order.
      predict: the model: from inputs [n, L, F], not normalised, and n_windows [n] to float [n, C]. Without it, the
        model gives no verdicts on runs without telemetry.
    """
    facts = read_facts(root, snapshot)
    dev = list(snapshot.runs("dev"))
    labels = np.array([run.label for run in dev], np.int64)
    features = snapshot.resolved.features
    lacking = without_telemetry = None
    if NO_OUTPUT_FEATURE in features:
        inputs = read_snapshot_examples(root, snapshot, "dev")[1].inputs
        lacking = lacks_output(inputs, features)
        without_telemetry = None if predict is None else predict(*withhold_telemetry(inputs, snapshot.resolved))
    return calibrate(
        experiment,
        snapshot.resolved,
        [facts[run.run_id] for run in dev],
        probabilities,
        labels,
        used=[facts[run.run_id] for run in snapshot.runs("train", "test")],
        ranges=lambda: _ranges(root, snapshot, facts),
        without_output=lacking,
        without_telemetry=without_telemetry,
    )


def _ranges(root: Store, snapshot: Snapshot, facts: Mapping[str, RunFacts]) -> LearnedRanges | None:
    """Compute the ranges of the train and dev runs. One file at a time is in memory."""
    resolved = snapshot.resolved
    runs = list(snapshot.runs())
    means = []
    run_facts: list[RunFacts] = []
    for task in file_tasks(snapshot, "train", "dev"):
        rows = read_rows(root, task, resolved)
        means.append(run_means(rows.inputs, rows.n_windows))
        run_facts += [facts[runs[ordinal].run_id] for ordinal in rows.ordinals.tolist()]
    return learned_ranges(np.concatenate(means), run_facts, resolved.features)


def _check_apart(runs: Sequence[RunFacts], used: Iterable[RunFacts]) -> None:
    run_by_subject = {subject_of(run.project, run.change, run.run_id): run.run_id for run in runs}
    for used_run in used:
        run_id = run_by_subject.get(subject_of(used_run.project, used_run.change, used_run.run_id))
        if run_id is not None:
            raise IntegrityError(
                f"calibration: run {run_id} is of the same change as {used_run.run_id}, "
                "which the model learned or is tested on"
            )
