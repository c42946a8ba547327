"""One-number baselines: predictions from a single number of a run, to compare a model with.

Failures end early and timeouts late; a machine's memory identifies its provider. A model that does not beat such a
baseline has learned nothing beyond that number.

A number may be missing for a run. In an array of numbers or probabilities, NaN stands for what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ciml.datasets.definition import DatasetDefinition
from ciml.errors import CimlError, IntegrityError
from ciml.events.records import RunFacts
from ciml.manifest.log import ManifestLog
from ciml.runs.run_log import stored_rows
from ciml.storage import Store
from ciml.training.data.snapshot import Snapshot
from ciml.training.evaluation.metrics import predicted_classes

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


def first_memory(raw: Store, run_ids: Sequence[str]) -> np.ndarray:
    """Read used + free + buff + cach of each run's first sample, float64 [n]; NaN where a value or a column is missing.

    ``buff`` may be missing: dool has none, since its ``cach`` contains it.

    Raises:
      IntegrityError: if the raw manifest lacks a run.
    """
    from ciml.runs.reader import read_runs

    rows = stored_rows(ManifestLog(raw), run_ids)
    columns = [f"memory usage:{name}" for name in MEMORY]
    # With the time, since the rows of a log without memory could not be counted otherwise.
    tables = read_runs(raw, [rows[run_id].file for run_id in run_ids], columns=["time", *columns])
    return np.array([_memory_of(table.drop_columns("time")) for table in tables], np.float64)


def _memory_of(table: pa.Table) -> float:
    """Return the sum of the memory columns in the first row of a run's telemetry, NaN if it is missing."""
    needed_columns = {f"memory usage:{name}" for name in MEMORY if name != "buff"}
    if table.num_rows == 0 or not needed_columns <= set(table.column_names):
        return math.nan
    values = table.slice(0, 1).to_pylist()[0].values()
    return math.nan if None in values else sum(values)


def _read_memory(raw: Store | None, runs: Sequence[RunFacts]) -> np.ndarray:
    return np.full(len(runs), np.nan) if raw is None else first_memory(raw, [run.run_id for run in runs])


def _read_duration(raw: Store | None, runs: Sequence[RunFacts]) -> np.ndarray:
    times_us = np.array([(run.start_us, run.end_us) for run in runs], np.float64).reshape(-1, 2)  # None becomes NaN
    return (times_us[:, 1] - times_us[:, 0]) / 1e6


def _make_nearest_run() -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(1)


def _make_tree() -> Any:
    from sklearn.tree import DecisionTreeClassifier

    return DecisionTreeClassifier(min_samples_leaf=_MIN_LEAF_RUNS, random_state=0)


class _Baseline(NamedTuple):
    """A number of a run, and how to predict from it.

    Attributes:
      number: description of the number.
      predictor: description of the predictor.
      read: returns the number of each run, float64 [n], from the raw store if there is one, and the facts of the runs.
      make_classifier: returns an untrained scikit-learn classifier.
      reads_objects: whether ``read`` reads an object of the raw store for each run, which takes long for many runs.
    """

    number: str
    predictor: str
    read: Callable[[Store | None, Sequence[RunFacts]], np.ndarray]
    make_classifier: Callable[[], Any]
    reads_objects: bool = False


_DURATION = _Baseline(
    "seconds from a run's start to its end", "duration, small decision tree", _read_duration, _make_tree
)
_MEMORY = _Baseline(
    "used + free + buff + cach of a run's first sample",
    "memory of the first sample, nearest training run",
    _read_memory,
    _make_nearest_run,
    reads_objects=True,
)
_BASELINES = {"duration": _DURATION, "memory": _MEMORY}
#: Descriptions of the available numbers.
NUMBERS = {name: baseline.number for name, baseline in _BASELINES.items()}
#: Descriptions of the predictor of each number.
PREDICTORS = {name: baseline.predictor for name, baseline in _BASELINES.items()}


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
        values = _BASELINES[number].read(raw, runs)
    except IntegrityError:
        return None  # experiments need the examples only, and work without the raw store
    return values if np.isfinite(values).any() else None


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
    probabilities = np.full((len(test), classes), np.nan)
    is_trainable = np.isfinite(train)
    is_answerable = np.isfinite(test)
    if is_trainable.any() and is_answerable.any():
        classifier = _BASELINES[number].make_classifier()
        classifier.fit(train[is_trainable, np.newaxis], labels[is_trainable])
        probabilities[is_answerable] = 0.0  # of classes without training runs, which scikit-learn does not know
        answers = classifier.predict_proba(test[is_answerable, np.newaxis])
        probabilities[np.ix_(is_answerable, classifier.classes_)] = answers
    return probabilities


class NumberAnswers(NamedTuple):
    """The answers by one number for a snapshot's test runs.

    Attributes:
      positions: int64 [n], the positions of the predicted runs among the test runs: of runs that have the number.
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
      None if no training run has the number, or no test run.

    Raises:
      IntegrityError: if the raw manifest lacks a run whose memory is asked for.
    """
    train_runs = list(snapshot.runs("train", "dev"))
    test_runs = list(snapshot.runs("test"))
    if not train_runs or not test_runs:
        return None
    baseline = _BASELINES[number]
    limit = MAX_MEMORY_RUNS if baseline.reads_objects else max(len(train_runs), len(test_runs))
    train = [train_runs[position] for position in _spread(len(train_runs), limit)]
    test_positions = _spread(len(test_runs), limit)
    test = [test_runs[position] for position in test_positions]
    numbers = baseline.read(raw, [facts[run.run_id] for run in (*train, *test)])
    train_numbers, test_numbers = np.split(numbers, [len(train)])
    has_number = np.isfinite(test_numbers)
    if not np.isfinite(train_numbers).any() or not has_number.any():
        return None
    train_labels = np.array([run.label for run in train])
    probabilities = predict_by(number, train_numbers, train_labels, test_numbers, len(snapshot.resolved.classes))
    is_right = predicted_classes(probabilities) == [run.label for run in test]
    return NumberAnswers(test_positions[has_number], is_right[has_number])


def _spread(count: int, most: int) -> np.ndarray:
    """Return at most ``most`` of ``count`` positions, evenly spread, int64."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
