"""One-number baselines: predictions from a single number of a run, to compare a model with.

Failures end early and timeouts late; a machine's memory identifies its provider. A model that does not beat such a
baseline has learned nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ciml.datasets.definition import DatasetDefinition
from ciml.errors import CimlError, IntegrityError
from ciml.events.records import RunFacts
from ciml.manifest.log import ManifestLog
from ciml.runs.run_log import files_of
from ciml.storage import Store
from ciml.training.data.snapshot import Snapshot

#: The available numbers and their descriptions.
NUMBERS = {
    "duration": "seconds from a run's start to its end",
    "memory": "used + free + buff + cach of a run's first sample",
}
#: The figures of `ciml.training.evaluation.metrics` that are stored of a baseline.
COMPARED = ("accuracy", "macro", "classes", "brier")
#: Columns whose sum at the first sample is the machine's memory, which identifies a provider's flavours.
MEMORY = ("used", "free", "buff", "cach")
#: What predicts by each number.
PREDICTORS = {
    "duration": "duration, small decision tree",
    "memory": "memory of the first sample, nearest training run",
}
#: Training runs, and test runs, whose memory is read for the gate: each is an object of the raw store.
MAX_MEMORY_RUNS = 5000
_MIN_LEAF = 5  # runs: smaller leaves would memorise single runs
#: The usual number by label: failures end early and timeouts late; providers have certain memory sizes.
_USUAL = {"status": "duration", "provider": "memory", "provider-region": "memory", "node_provider": "memory"}


def numbers_for(definition: DatasetDefinition) -> tuple[str, ...]:
    """Return the baseline numbers of a data set: its own, the usual one for its label, or all."""
    if definition.baseline is not None:
        return () if definition.baseline == "none" else (definition.baseline,)
    usual = _USUAL.get(definition.class_label)
    return (usual,) if usual else tuple(NUMBERS)


def gate_numbers(definition: DatasetDefinition) -> tuple[str, ...]:
    """Return the numbers that a candidate of the gate is compared with: all, that of the data set first.

    A definition cannot leave a number out: only the gate's policy accepts that one beats a model.
    """
    numbers = numbers_for(definition)
    return (*numbers, *(name for name in NUMBERS if name not in numbers))


def number_of(raw: Store | None, name: str, runs: Sequence[RunFacts]) -> np.ndarray | None:
    """Return a number of each run, float64 [n], NaN where it is missing.

    Args:
      raw: the raw store of the runs, for their memory; None if not available.
      name: one of `NUMBERS`.
      runs: facts of the n runs.

    Returns:
      None if no run has it: without a raw store, or without its columns.
    """
    if name not in NUMBERS:
        raise CimlError(f"unknown baseline {name!r}; choose from {', '.join(NUMBERS)}")
    if name == "memory" and raw is None:
        return None  # the data set was built directly from logs
    try:
        values = _values(raw, name, runs)
    except IntegrityError:
        return None  # the raw store is not available; experiments need the examples only
    return values if np.isfinite(values).any() else None


def _values(raw: Store | None, number: str, runs: Sequence[RunFacts]) -> np.ndarray:
    """Return a number of each run, float64 [n], NaN where it is missing. Memory needs the raw store."""
    if number == "memory" and raw is not None:
        return first_memory(raw, [run.run_id for run in runs])
    times_us = np.array([(run.start_us, run.end_us) for run in runs], np.float64).reshape(-1, 2)  # None becomes NaN
    return (times_us[:, 1] - times_us[:, 0]) / 1e6


def predict_by(number: str, train: np.ndarray, labels: np.ndarray, tested: np.ndarray, classes: int) -> np.ndarray:
    """Predict probabilities from one number: memory by the nearest training run, duration by a small tree.

    Args:
      number: one of `NUMBERS`.
      train: float64 [m], of the training runs.
      labels: int64 [m].
      tested: float64 [n].
      classes: C.

    Returns:
      float64 [n, C]; NaN for a run without the number.
    """
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.tree import DecisionTreeClassifier

    answers = np.full((len(tested), classes), np.nan)
    finite = np.isfinite(train)
    answerable = np.isfinite(tested)
    if not finite.any() or not answerable.any():
        return answers
    nearest = number == "memory"
    model = KNeighborsClassifier(1) if nearest else DecisionTreeClassifier(min_samples_leaf=_MIN_LEAF, random_state=0)
    model.fit(train[finite][:, None], labels[finite])
    shares = np.zeros((int(answerable.sum()), classes))
    shares[:, model.classes_] = model.predict_proba(tested[answerable][:, None])
    answers[answerable] = shares
    return answers


class ByNumber(NamedTuple):
    """The answers of `predict_by` one number on a snapshot's test runs.

    Attributes:
      tested: int64 [n], the places of the predicted runs among the test runs.
      right: bool [n], whether the answer is right.
    """

    tested: np.ndarray
    right: np.ndarray


def by_number(number: str, raw: Store, snapshot: Snapshot, facts: Mapping[str, RunFacts]) -> ByNumber | None:
    """Predict a snapshot's test runs by one number of the run.

    Args:
      number: one of `NUMBERS`.
      raw: the raw store of the runs, for their memory; `MAX_MEMORY_RUNS` at most are read of each of the two roles.
      snapshot: its train and dev runs give the numbers, its test runs are predicted.
      facts: the facts of these runs by run id.

    Returns:
      None if no training run has the number, or there are no test runs.

    Raises:
      IntegrityError: if the raw manifest lacks a run whose memory is asked for.
    """
    train = list(snapshot.runs("train", "dev"))
    test = list(snapshot.runs("test"))
    if not train or not test:
        return None
    limit = MAX_MEMORY_RUNS if number == "memory" else max(len(train), len(test))
    learned = [train[place] for place in _spread(len(train), limit)]
    tested = _spread(len(test), limit)
    tested_runs = [test[place] for place in tested]
    values = _values(raw, number, [facts[run.run_id] for run in (*learned, *tested_runs)])
    train_values = values[: len(learned)]
    if not np.isfinite(train_values).any():
        return None
    labels = np.array([run.label for run in learned])
    answers = predict_by(number, train_values, labels, values[len(learned) :], len(snapshot.resolved.classes))
    right = (answers.argmax(axis=1) == [run.label for run in tested_runs]) & np.isfinite(answers).all(axis=1)
    return ByNumber(tested, right)


def _spread(count: int, most: int) -> np.ndarray:
    """Return at most ``most`` of ``count`` places, evenly spread, int64."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def first_memory(raw: Store, run_ids: Sequence[str]) -> np.ndarray:
    """Return used + free + buff + cach of each run's first sample, float64 [n]; NaN where missing.

    dool has no ``buff``: its ``cach`` contains it. Other columns must be there.

    Raises:
      IntegrityError: if the raw manifest lacks a run.
    """
    from ciml.runs.reader import read_runs

    files = files_of(ManifestLog(raw), run_ids)
    columns = [f"memory usage:{name}" for name in MEMORY]
    tables = read_runs(raw, [files[run_id] for run_id in run_ids], columns=columns)
    totals = np.full(len(run_ids), np.nan)
    for index, table in enumerate(tables):
        if table.num_rows == 0 or not set(columns) - set(table.column_names) <= {"memory usage:buff"}:
            continue
        first = table.slice(0, 1).to_pylist()[0]
        if all(value is not None for value in first.values()):
            totals[index] = sum(first.values())
    return totals
