"""One-number baselines: predictions from a single number of a run, to compare a model with.

Failures end early and timeouts late; a machine's memory identifies its provider. A model that does not beat such a
baseline has learned nothing beyond that number.
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
from ciml.training.evaluation.metrics import predicted_classes

#: Descriptions of the available numbers.
NUMBERS = {
    "duration": "seconds from a run's start to its end",
    "memory": "used + free + buff + cach of a run's first sample",
}
#: Descriptions of the predictor of each number.
PREDICTORS = {
    "duration": "duration, small decision tree",
    "memory": "memory of the first sample, nearest training run",
}
#: The figures of `ciml.training.evaluation.metrics.scores` that a result stores for a baseline.
COMPARED = ("accuracy", "macro", "classes", "brier")
#: Columns whose sum at the first sample is the machine's memory, which identifies a provider's flavours.
MEMORY = ("used", "free", "buff", "cach")
#: Most training runs, and most test runs, whose memory is read for the gate: each is an object of the raw store.
MAX_MEMORY_RUNS = 5000
#: Least number of runs in a leaf of the tree: smaller leaves would memorise single runs.
_MIN_LEAF_RUNS = 5
#: The default number by label.
_DEFAULT_NUMBERS = {"status": "duration", "provider": "memory", "provider-region": "memory", "node_provider": "memory"}


def numbers_for(definition: DatasetDefinition) -> tuple[str, ...]:
    """Return the baseline numbers of a data set: the one it defines, the default one for its label, or all."""
    if definition.baseline == "none":
        return ()
    number = definition.baseline or _DEFAULT_NUMBERS.get(definition.class_label)
    return (number,) if number else tuple(NUMBERS)


def gate_numbers(definition: DatasetDefinition) -> tuple[str, ...]:
    """Return the numbers that the gate compares a candidate with: all of them, that of the data set first.

    A definition cannot omit a number. Only the gate's policy can accept that a number beats a model.
    """
    numbers = numbers_for(definition)
    return (*numbers, *(name for name in NUMBERS if name not in numbers))


def number_of(raw: Store | None, number: str, runs: Sequence[RunFacts]) -> np.ndarray | None:
    """Return a number of each run, float64 [n], NaN where it is missing.

    Args:
      raw: the raw store of the runs, for their memory; None for a data set that was built directly from logs.
      number: one of `NUMBERS`.
      runs: facts of the n runs.

    Returns:
      None if no run has the number, or the raw store that it needs is not available.
    """
    if number not in NUMBERS:
        raise CimlError(f"unknown baseline {number!r}; choose from {', '.join(NUMBERS)}")
    try:
        values = _values(raw, number, runs)
    except IntegrityError:
        return None  # experiments need the examples only, and work without the raw store
    return values if np.isfinite(values).any() else None


def _values(raw: Store | None, number: str, runs: Sequence[RunFacts]) -> np.ndarray:
    """Return a number of each run, float64 [n], NaN where it is missing."""
    if number == "memory":
        return np.full(len(runs), np.nan) if raw is None else first_memory(raw, [run.run_id for run in runs])
    times_us = np.array([(run.start_us, run.end_us) for run in runs], np.float64).reshape(-1, 2)  # None becomes NaN
    return (times_us[:, 1] - times_us[:, 0]) / 1e6


def first_memory(raw: Store, run_ids: Sequence[str]) -> np.ndarray:
    """Read used + free + buff + cach of each run's first sample, float64 [n]; NaN where a value or a column is missing.

    ``buff`` may be missing: dool has none, since its ``cach`` contains it.

    Raises:
      IntegrityError: if the raw manifest lacks a run.
    """
    from ciml.runs.reader import read_runs

    files = files_of(ManifestLog(raw), run_ids)
    columns = [f"memory usage:{name}" for name in MEMORY]
    tables = read_runs(raw, [files[run_id] for run_id in run_ids], columns=columns)
    totals = np.full(len(run_ids), np.nan)
    for index, table in enumerate(tables):
        missing_columns = set(columns) - set(table.column_names)
        if table.num_rows == 0 or missing_columns - {"memory usage:buff"}:
            continue
        first_sample = table.slice(0, 1).to_pylist()[0]
        if None not in first_sample.values():
            totals[index] = sum(first_sample.values())
    return totals


def predict_by(number: str, train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int) -> np.ndarray:
    """Predict probabilities from one number: memory by the nearest training run, duration by a small tree.

    Args:
      number: one of `NUMBERS`.
      train: float64 [m], the number of each training run; NaN where it is missing.
      labels: int64 [m], their labels.
      test: float64 [n], the number of each test run; NaN where it is missing.
      classes: C.

    Returns:
      float64 [n, C]; NaN for a run without the number, and for all runs if no training run has it.
    """
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.tree import DecisionTreeClassifier

    answers = np.full((len(test), classes), np.nan)
    train_has_number = np.isfinite(train)
    test_has_number = np.isfinite(test)
    if not train_has_number.any() or not test_has_number.any():
        return answers
    model = (
        KNeighborsClassifier(1)
        if number == "memory"
        else DecisionTreeClassifier(min_samples_leaf=_MIN_LEAF_RUNS, random_state=0)
    )
    model.fit(train[train_has_number][:, None], labels[train_has_number])
    # scikit-learn knows only the classes of the training runs.
    probabilities = np.zeros((int(test_has_number.sum()), classes))
    probabilities[:, model.classes_] = model.predict_proba(test[test_has_number][:, None])
    answers[test_has_number] = probabilities
    return answers


class NumberAnswers(NamedTuple):
    """The answers by one number for a snapshot's test runs.

    Attributes:
      positions: int64 [n], the positions of the predicted runs among the test runs.
      right: bool [n], whether the answer is right.
    """

    positions: np.ndarray
    right: np.ndarray


def predict_test_runs(
    number: str, raw: Store, snapshot: Snapshot, facts: Mapping[str, RunFacts]
) -> NumberAnswers | None:
    """Predict a snapshot's test runs by one number of the run, with `predict_by`.

    Args:
      number: one of `NUMBERS`.
      raw: the raw store of the runs, for their memory. It reads at most `MAX_MEMORY_RUNS` training runs, and test runs.
      snapshot: its train and dev runs are learned from, its test runs are predicted.
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
    train = [train[position] for position in _spread(len(train), limit)]
    positions = _spread(len(test), limit)
    test = [test[position] for position in positions]
    values = _values(raw, number, [facts[run.run_id] for run in (*train, *test)])
    train_values = values[: len(train)]
    if not np.isfinite(train_values).any():
        return None
    labels = np.array([run.label for run in train])
    answers = predict_by(number, train_values, labels, values[len(train) :], len(snapshot.resolved.classes))
    right = predicted_classes(answers) == [run.label for run in test]
    return NumberAnswers(positions, right)


def _spread(count: int, most: int) -> np.ndarray:
    """Return at most ``most`` of ``count`` positions, evenly spread, int64."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
