"""Computes a candidate's figures for the gate, on the held-out runs of its snapshot."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ciml.data_root import StoredDataset
from ciml.errors import IntegrityError
from ciml.training.calibration.calibrate import Calibrated
from ciml.training.calibration.conformal import decimals
from ciml.training.data.examples import Examples, read_facts, read_snapshot_examples
from ciml.training.data.materialise import Materialised
from ciml.training.data.snapshot import Snapshot, SnapshotRun
from ciml.training.evaluation.baselines import by_number, gate_numbers, numbers_for
from ciml.training.evaluation.champion import Champion, right_answers
from ciml.training.evaluation.gate import GatePolicy, compare
from ciml.training.evaluation.metrics import accuracy, evaluate, sharpness
from ciml.training.evaluation.verdicts import verdict_figures
from ciml.training.experiment import Experiment
from ciml.training.export import Exported
from ciml.training.train import predict_in_memory, trained_roles
from ciml.transforms.examples.prepare import run_means

_LOG = logging.getLogger(__name__)


def assess(
    dataset: StoredDataset,
    snapshot: Snapshot,
    materialised: Materialised,
    model: Any,
    exported: Exported,
    experiment: Experiment,
    champion: Champion | None,
    gate: GatePolicy,
    calibrated: Calibrated | None = None,
) -> dict[str, Any]:
    """Compute a candidate's figures for `ciml.training.evaluation.gate.judge`.

    The exported model predicts from runs that are not normalised, as in serving. The model in memory predicts the same
    materialised runs and has to agree.

    Args:
      dataset: the snapshot's data set.
      snapshot: the training and test runs.
      materialised: its normalised examples.
      model: the Keras model in memory.
      exported: the exported model.
      experiment: the trained experiment.
      champion: the served model, evaluated on the same runs.
      gate: gives the confidence of the comparison.
      calibrated: the calibration in the exported model, of the model in memory; None without.
    """
    resolved = snapshot.resolved
    runs, test = read_snapshot_examples(dataset.store, snapshot, "test")
    answers = exported.predict(test.inputs, test.n_windows)
    uncalibrated = predict_in_memory(model, materialised, resolved, "test")
    in_memory = uncalibrated if calibrated is None else calibrated.calibrator.apply(uncalibrated)
    learned = list(snapshot.runs(*trained_roles(experiment, dev_from_train=snapshot.dev_from_train)))
    train_labels = np.array([run.label for run in learned], np.int64)
    counts, slices = Counter(run.label for run in learned), {"job": [run.build_name for run in runs]}
    right = (np.nan_to_num(answers).argmax(axis=1) == test.labels) & np.isfinite(answers).all(axis=1)
    figures: dict[str, Any] = {
        "evaluation": evaluate(answers, test.labels, resolved.classes, train_labels, slices),
        "class_counts": {name: counts[label] for label, name in enumerate(resolved.classes)},
        "disagreement": _difference(answers, in_memory),
        "latency_ms": exported.latency_ms(test.inputs, test.n_windows) if len(test) else None,
        "baselines": _baselines(dataset, snapshot, right, gate),
    }
    if calibrated is not None:
        before = evaluate(uncalibrated, test.labels, resolved.classes, train_labels)
        figures["calibration"] = {**calibrated.description, "before": sharpness(before)}
        if calibrated.rules is not None:
            jobs = [run.build_name for run in runs]
            means = run_means(test.inputs, test.n_windows)
            figures["verdicts"] = verdict_figures(calibrated.rules, decimals(answers), test.labels, jobs, means)
    if champion is not None:
        figures |= _against(dataset, champion, snapshot, runs, test, right, gate)
    return figures


def _against(
    dataset: StoredDataset,
    champion: Champion,
    snapshot: Snapshot,
    runs: Sequence[SnapshotRun],
    test: Examples,
    right: np.ndarray,
    gate: GatePolicy,
) -> dict[str, Any]:
    """Return the champion's accuracy on the same runs and the comparison; None for both if it cannot be evaluated."""
    try:
        champion_right = right_answers(dataset.raw(), champion, snapshot.resolved, runs, test)
    except IntegrityError as error:
        _LOG.warning("the champion cannot be evaluated: %s", error)
        return {"champion": None, "comparison": None}
    metrics = {"version": champion.version, "accuracy": accuracy(champion_right)}
    return {"champion": metrics, "comparison": compare(right, champion_right, confidence=gate.confidence)}


def _baselines(
    dataset: StoredDataset, snapshot: Snapshot, right: np.ndarray, gate: GatePolicy
) -> dict[str, dict[str, Any]]:
    """Return the accuracy of each number that the runs have, and its ``comparison`` with the candidate.

    Args:
      dataset: of the snapshot.
      snapshot: its training runs give the numbers.
      right: bool [n], whether the candidate was right on each test run.
      gate: gives the confidence of the comparison.
    """
    facts = read_facts(dataset.store, snapshot)
    own = numbers_for(snapshot.resolved.definition)
    baselines: dict[str, dict[str, Any]] = {}
    for number in gate_numbers(snapshot.resolved.definition):
        try:
            answers = by_number(number, dataset.raw(), snapshot, facts)
        except IntegrityError as error:
            if number in own:
                raise
            _LOG.warning("no comparison with the %s alone: %s", number, error)
            continue
        if answers is not None:
            comparison = compare(right[answers.tested], answers.right, confidence=gate.confidence)
            baselines[number] = {**answers.figures(), "comparison": comparison}
    return baselines


def _difference(one: np.ndarray, other: np.ndarray) -> float | None:
    """Return the largest difference of two models' probabilities; None if it is undefined."""
    if one.shape != other.shape or not one.size or not np.isfinite(one).all() or not np.isfinite(other).all():
        return None
    return float(np.abs(one.astype(np.float64) - other).max())
