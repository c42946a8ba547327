"""Evaluating: what a model's probabilities are worth on runs that it did not learn from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from ciml.datasets.state import raw_store_by_name
from ciml.errors import IntegrityError
from ciml.events.records import RawFile, rows_of
from ciml.manifest.log import ManifestLog
from ciml.storage.open import Store
from training.data.snapshot import Snapshot, SnapshotRun

CONFIDENCE = 0.95
_BINS = 10
#: Columns whose sum at the first sample is the memory of the machine, which names a provider's flavours.
MEMORY = ("used", "free", "buff", "cach")


def wilson(right: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a share: (low, high); (0, 1) of nothing."""
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = right / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def accuracy(right: Sequence[bool] | np.ndarray) -> dict[str, Any]:
    """Accuracy with its interval: ``value``, ``low``, ``high``, ``right``, ``runs``."""
    total, count = len(right), int(np.sum(right))
    low, high = wilson(count, total)
    return {"value": count / total if total else None, "low": low, "high": high, "right": count, "runs": total}


def evaluate(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    train_labels: np.ndarray,
    slices: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Return the metrics of a model on held-out runs, as JSON. Numbers that cannot be had, without runs, are None.

    Args:
      probabilities: float [n, C].
      labels: int [n], the right classes.
      classes: names of the C classes.
      train_labels: int [m], the classes of the runs that were trained on; the base rate is their majority's.
      slices: by name a value for each run, such as its job; accuracy is given for each value.

    Raises:
      ValueError: when shapes do not fit.
    """
    n, count = len(labels), len(classes)
    if probabilities.shape != (n, count):
        raise ValueError(f"probabilities of shape {probabilities.shape} for {n} runs and {count} classes")
    finite = bool(np.isfinite(probabilities).all())
    clean = np.nan_to_num(probabilities.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    predicted = clean.argmax(axis=1) if n else np.zeros(0, np.int64)
    # a row that is not finite is no answer: it is wrong, whatever its largest number is
    right = (predicted == labels) & np.isfinite(probabilities).all(axis=1)
    majority = int(np.bincount(train_labels, minlength=count).argmax()) if len(train_labels) else 0
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    return {
        "runs": n,
        "trained_on": len(train_labels),
        "finite": finite,
        "accuracy": accuracy(right),
        "base_rate": {"class": classes[majority], **accuracy(labels == majority)},
        "classes": _by_class(labels, predicted, classes),
        "confusion": {"classes": list(classes), "rows_are_labels": confusion.tolist()},
        "log_loss": _log_loss(clean, labels),
        "calibration": _calibration(clean, right),
        "slices": {
            name: {value: accuracy(right[np.array(values) == value]) for value in sorted(set(values))}
            for name, values in (slices or {}).items()
        },
    }


def _by_class(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    from sklearn.metrics import precision_recall_fscore_support

    if len(labels) == 0:
        return {name: {"precision": None, "recall": None, "f1": None, "runs": 0} for name in classes}
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=range(len(classes)), zero_division=0.0
    )
    return {
        name: {
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "f1": float(f1[index]),
            "runs": int(support[index]),
        }
        for index, name in enumerate(classes)
    }


def _log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    if len(labels) == 0:
        return None
    given = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(given, 1e-7, 1.0)).mean())


def _calibration(probabilities: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Expected calibration error over ten bins of confidence, and the bins for a plot."""
    if len(right) == 0:
        return {"ece": None, "bins": []}
    confidence = probabilities.max(axis=1)
    place = np.clip((confidence * _BINS).astype(int), 0, _BINS - 1)
    bins, error = [], 0.0
    for index in range(_BINS):
        inside = place == index
        if runs := int(inside.sum()):
            mean, share = float(confidence[inside].mean()), float(right[inside].mean())
            error += runs / len(right) * abs(mean - share)
            bins.append({"low": index / _BINS, "runs": runs, "confidence": mean, "accuracy": share})
    return {"ece": error, "bins": bins}


def one_number_baseline(data: Store, snapshot: Snapshot) -> dict[str, Any] | None:
    """The accuracy of one number, to hold a model against: memory in all (used + free + buff + cach) of a run's first
    sample, and the class of the training run that is nearest in it.

    Returns:
      As `accuracy`; None where the telemetry has no such columns, or there is nothing to test on.
    """
    train, test = list(snapshot.runs("train", "dev")), list(snapshot.runs("test"))
    if not train or not test:
        return None
    totals = first_memory(raw_store_by_name(data, snapshot.dataset), [run.run_id for run in (*train, *test)])
    usable = np.isfinite(totals)
    known = np.flatnonzero(usable[: len(train)])
    if not known.size:
        return None
    labels = np.array([run.label for run in train])[known]
    order = np.argsort(totals[known], kind="stable")
    values, labels = totals[known][order], labels[order]
    right = []
    for run, total in zip(test, totals[len(train) :], strict=True):
        if not math.isfinite(total):
            right.append(False)
            continue
        after = min(int(np.searchsorted(values, total)), len(values) - 1)
        before = max(after - 1, 0)
        nearest = after if abs(values[after] - total) < abs(values[before] - total) else before
        right.append(bool(labels[nearest] == run.label))
    return {"name": "memory of the first sample, nearest training run", **accuracy(right)}


def first_memory(raw: Store, run_ids: Sequence[str]) -> np.ndarray:
    """used + free + buff + cach of each run's first sample, float64 [n]; NaN where a run has none.

    Raises:
      IntegrityError: where the raw manifest lacks a run.
    """
    from transforms.raw.write import read_runs

    files = raw_files(raw, set(run_ids))
    columns = [f"memory usage:{name}" for name in MEMORY]
    tables = read_runs(raw, [files[run_id] for run_id in run_ids], columns=columns)
    totals = np.full(len(run_ids), np.nan)
    for index, table in enumerate(tables):
        if table.num_rows == 0 or set(table.column_names) != set(columns):
            continue
        first = table.slice(0, 1).to_pylist()[0]
        if all(value is not None for value in first.values()):
            totals[index] = sum(first.values())
    return totals


def raw_files(raw: Store, run_ids: set[str]) -> dict[str, RawFile]:
    """Return the objects of runs in a raw store, by run id.

    Raises `IntegrityError` where the raw manifest lacks one.
    """
    found: dict[str, RawFile] = {}
    for _, delta in ManifestLog(raw).since(0):
        for record in rows_of(delta):  # the last row of a run is the one that is read
            if record["mention"]["run_id"] in run_ids:
                found[record["mention"]["run_id"]] = RawFile.from_json(record["file"])
    if missing := run_ids - set(found):
        raise IntegrityError(f"the raw manifest does not have the run {min(missing)}")
    return found


def slices_of(runs: Sequence[SnapshotRun]) -> dict[str, list[str]]:
    """What metrics are given for, apart: each job."""
    return {"job": [run.build_name for run in runs]}
