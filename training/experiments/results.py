"""Stored experiments and the stored results of their trials: file layout, creation and reading.

A trial is an experiment on one snapshot of a data set. `ciml.training.experiments.trials` runs trials and writes their
results. Every file is created exclusively and is deterministic, so a trial may be killed, repeated or run concurrently:

    experiments/<experiment>/experiment.json
    experiments/<experiment>/results/<data set>/<trial>/result.json             last: completes the trial
                                                        predictions-<digest>.parquet
                                                        on-<other data set>-<snapshot>.json
                                                        folds-<by>-<folds>.json

``<trial>`` is `ciml.training.experiment.refresh_key`: of the runs and of the experiment.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ciml.digest import canonical_json, sha256_json
from ciml.errors import CimlError, IntegrityError, UnknownExperimentError
from ciml.storage import Store
from ciml.storage.json_files import read_stored, seal
from ciml.training.estimators import ESTIMATORS, check_experiment, default_estimator, identified, modules_named
from ciml.training.estimators.description import describe
from ciml.training.evaluation.metrics import predicted_classes
from ciml.training.experiment import ALIASES, Experiment

if TYPE_CHECKING:
    from ciml.training.data.examples import InMemoryDataset

#: The file that completes a trial.
RESULT = "result.json"
_DEFINITION = "experiment.json"
_PREDICTIONS = re.compile(r"predictions-([0-9a-f]{16})\.parquet")


def experiment_of(estimator: Any, parameters: Mapping[str, Any] | None = None, name: str | None = None) -> Experiment:
    """Build an experiment of an estimator.

    Args:
      estimator: its name, an alias of the talk, or the estimator itself: an object with ``fit``, a Keras model, or a
        function (shape, classes) that returns one.
      parameters: keys of an experiment; of a built-in estimator of scikit-learn, others are its parameters.
      name: of the experiment; by default the estimator and a digest of all values.

    Raises:
      CimlError: an unknown estimator or parameter, or an estimator that cannot be described.
    """
    keys = dict(parameters or {})
    if not isinstance(estimator, str):
        if keys.get("parameters"):
            raise CimlError("parameters: the estimator has its own; set them there")
        description = describe(estimator)
        keys |= {"estimator": description["class"], "parameters": description["parameters"]}
    else:
        built_in = ESTIMATORS.get(ALIASES.get(estimator, estimator))
        if built_in is not None and "parameters" in built_in.keys:
            sklearn_names = keys.keys() - set(Experiment.__struct_fields__)
            sklearn_values = {key: keys.pop(key) for key in sorted(sklearn_names)}
            keys["parameters"] = {**keys.get("parameters", {}), **sklearn_values}
        keys["estimator"] = estimator
    experiment = Experiment.from_json({**keys, "name": name} if name else keys)
    experiment = identified(experiment, modules_named(experiment))
    if name:
        return experiment
    values = {key: value for key, value in experiment.to_json().items() if key != "name"}
    return experiment.replace(name=f"{experiment.estimator.rpartition(':')[2]}-{sha256_json(values)[:8]}")


def default_experiment() -> Experiment:
    """Return the experiment of a model of which nothing else is known, as `experiment_of` builds it."""
    return experiment_of(default_estimator())


def experiment_store(experiments: Store, name: str) -> Store:
    """Return the folder of an experiment. The name is validated, since it may come from a user."""
    Experiment.from_json({"name": name}, "experiment")
    return experiments.child(name)


def create_experiment(experiments: Store, experiment: Experiment, allow_modules: Collection[str] = ()) -> bool:
    """Store an experiment under its name; return False if it is stored already.

    Args:
      experiments: the folder of all experiments.
      experiment: the experiment, `ciml.training.estimators.identified`.
      allow_modules: see `ciml.training.estimators.estimator_of`.

    Raises:
      CimlError: if it is invalid, or a different one has that name.
    """
    check_experiment(experiment, allow_modules)
    store = experiment_store(experiments, experiment.name)
    if store.create(_DEFINITION, seal(canonical_json(experiment.to_json()))):
        return True
    old = load_experiment(experiments, experiment.name).to_json()
    new = experiment.to_json()
    differences = [f"{key} is {old.get(key)}, not {new.get(key)}" for key in old | new if old.get(key) != new.get(key)]
    if differences:
        raise CimlError(
            f"experiment {experiment.name!r} exists with other values: {'; '.join(differences)}; choose another name"
        )
    return False


def load_experiment(experiments: Store, name: str) -> Experiment:
    """Load a stored experiment. Raises `CimlError` for an unknown name."""
    store = experiment_store(experiments, name)
    value = read_stored(store, _DEFINITION)
    if value is None:
        raise UnknownExperimentError(f"no experiment {name!r} in {experiments.url()}; define it first")
    return Experiment.from_json(value, store.url(_DEFINITION))


def experiment_names(experiments: Store) -> list[str]:
    """Return the names of all experiments, sorted."""
    paths = (path.split("/") for path in experiments.list())
    return sorted(parts[0] for parts in paths if parts[1:] == [_DEFINITION])


def results_of(experiments: Store, name: str) -> list[dict[str, Any]]:
    """Return all results of an experiment, by data set, unordered within a data set."""
    store = experiment_store(experiments, name)
    results = [read_stored(store, path) for path in store.list("results") if path.endswith(f"/{RESULT}")]
    return [result for result in results if result is not None]


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for the test runs of a trial.

    Attributes:
      run_id: str [n].
      labels: int64 [n], positions in ``classes``.
      probabilities: float64 [n, C]; a run is unanswered if its row is not finite.
      classes: names of the C classes.
      changes: int64 [n], the change of each run; None in files of older versions.
    """

    run_id: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]
    changes: np.ndarray | None = None

    @property
    def right(self) -> np.ndarray:
        """Whether each run's class was the most probable one, bool [n]."""
        correct: np.ndarray = predicted_classes(self.probabilities) == self.labels
        return correct


@dataclass(frozen=True)
class StoredTrial:
    """A stored trial.

    Attributes:
      experiment, dataset: names.
      store: the trial's folder.
      result: of `ciml.training.experiments.trials.Trial.run`; None if it was only cross-validated, or was killed.
      elsewhere: of `ciml.training.experiments.trials.Trial.run_on`, by the name of the data set.
      folds: of `ciml.training.evaluation.cross_validation.cross_validate`, by the held-out facts.
      older: number of older results of this experiment on this data set.
    """

    experiment: str
    dataset: str
    store: Store
    result: Mapping[str, Any] | None
    elsewhere: tuple[Mapping[str, Any], ...]
    folds: tuple[Mapping[str, Any], ...]
    older: int = 0

    @property
    def snapshot(self) -> str:
        """The snapshot's digest; "" without a result."""
        return str(self.result["snapshot"]["digest"]) if self.result else ""

    @property
    def tested(self) -> bool:
        """Whether it has a result with at least one test run."""
        return self.result is not None and self.result["test"]["runs"] > 0

    def predictions(self) -> Predictions | None:
        """Read the predictions for the test runs; None if the file is missing.

        Raises:
          IntegrityError: if the file differs from the recorded one.
        """
        if self.result is None:
            return None
        name = str(self.result["predictions"])
        digest = _PREDICTIONS.fullmatch(name)
        if digest is None:
            raise IntegrityError(f"{self.store.url(RESULT)}: predictions: invalid file name {name!r:.100}")
        try:
            data = self.store.read(name)
        except FileNotFoundError:
            return None
        if hashlib.sha256(data).hexdigest()[:16] != digest[1]:
            raise IntegrityError(f"{self.store.url(name)} was altered: its digest differs")
        return _parse_predictions(data, tuple(self.result["test"]["confusion"]["classes"]))


#: A stored trial, and its predictions for the test runs; None if their file is missing.
TestedTrial = tuple[StoredTrial, Predictions | None]


def stored_trials(store: Store, experiments: Iterable[str], datasets: Sequence[str] = ()) -> list[StoredTrial]:
    """Return the latest trial of each experiment on each data set, by data set, then in the order of ``experiments``.

    The latest trial has the most spans, then the newest versions of them, then the newest normalisation. Of equal
    trials, the one whose snapshot most trials share is chosen: only figures of the same runs can be compared.

    Args:
      store: the folder of all experiments.
      experiments: names.
      datasets: names of the data sets; all by default.

    Raises:
      IntegrityError: if a file is not JSON.
    """
    by_dataset: dict[str, list[StoredTrial]] = {}
    for experiment in experiments:
        for trial in _trials_of(store, experiment, datasets):
            by_dataset.setdefault(trial.dataset, []).append(trial)
    latest = []
    for dataset in sorted(by_dataset):
        trials = by_dataset[dataset]
        snapshots = Counter(trial.snapshot for trial in trials)
        by_experiment: dict[str, list[StoredTrial]] = {}
        for trial in trials:
            by_experiment.setdefault(trial.experiment, []).append(trial)
        latest += [_latest(group, snapshots) for group in by_experiment.values()]
    return latest


def named_results(store: Store, names: Sequence[str] = (), dataset: str | None = None) -> list[TestedTrial]:
    """Return the latest results of some experiments with their predictions, in the order of the names.

    Args:
      store: the folder of all experiments.
      names: each ``EXPERIMENT`` or ``DATASET/EXPERIMENT``; by default all experiments with a result on ``dataset``.
      dataset: the data set of names without one; it may be omitted where these have results on one data set alone.

    Raises:
      CimlError: there is no such experiment or result, or several data sets are possible.
      IntegrityError: a stored file was altered.
    """
    if names:
        trials = _named_trials(store, [_trial_name(name, dataset or "") for name in names])
    elif dataset is None:
        raise UnknownExperimentError("no experiments: name some, or a data set for all that have a result on it")
    else:
        trials = [trial for trial in stored_trials(store, experiment_names(store), [dataset]) if trial.tested]
        if not trials:
            raise UnknownExperimentError(
                f"no result on {dataset} in {store.url()}: ciml experiment train --dataset {dataset}"
            )
    return [(trial, trial.predictions()) for trial in trials]


class _TrialName(NamedTuple):
    dataset: str
    experiment: str


def _trial_name(name: str, dataset: str) -> _TrialName:
    own_dataset, _, experiment = name.rpartition("/")
    return _TrialName(own_dataset or dataset, experiment)


def _named_trials(store: Store, names: Sequence[_TrialName]) -> list[StoredTrial]:
    """Return the tested trials of these names. A name without a data set means the only one with a result."""
    for name in names:
        load_experiment(store, name.experiment)
    experiments = dict.fromkeys(name.experiment for name in names)
    trials = {(trial.dataset, trial.experiment): trial for trial in stored_trials(store, experiments) if trial.tested}
    without_dataset = {name.experiment for name in names if not name.dataset}
    datasets = sorted({dataset for dataset, experiment in trials if experiment in without_dataset})
    if len(datasets) > 1:
        raise CimlError(f"results on several data sets, {', '.join(datasets)}: choose one, such as {datasets[0]}")
    only_dataset = datasets[0] if datasets else ""
    selected: dict[_TrialName, StoredTrial] = {}
    for name in names:
        key = name if name.dataset else name._replace(dataset=only_dataset)
        if key not in trials:
            raise _no_result(store, key)
        selected[key] = trials[key]
    return list(selected.values())


def _no_result(store: Store, name: _TrialName) -> UnknownExperimentError:
    place = f" on {name.dataset}" if name.dataset else ""
    return UnknownExperimentError(
        f"no result of {name.experiment}{place} in {store.url()}: ciml experiment train "
        f"--experiment {name.experiment} --dataset {name.dataset or 'NAME'}"
    )


def _trials_of(experiments: Store, experiment: str, datasets: Sequence[str]) -> Iterator[StoredTrial]:
    """Yield the trials of an experiment that have a result or folds."""
    store = experiment_store(experiments, experiment)
    files: dict[tuple[str, str], list[str]] = {}
    for path in store.list("results"):
        parts = path.split("/")
        if len(parts) == 4 and (not datasets or parts[1] in datasets):
            files.setdefault((parts[1], parts[2]), []).append(parts[3])
    for (dataset, trial), names in files.items():
        folder = store.child(f"results/{dataset}/{trial}")
        elsewhere = _read_all(folder, names, "on-")
        folds = _read_all(folder, names, "folds-")
        result = read_stored(folder, RESULT) if RESULT in names else None
        if result is not None or folds:
            yield StoredTrial(experiment, dataset, folder, result, elsewhere, folds)


def _read_all(folder: Store, names: Iterable[str], prefix: str) -> tuple[dict[str, Any], ...]:
    """Read the JSON files of a prefix, by name."""
    values = [read_stored(folder, name) for name in sorted(names) if name.startswith(prefix) and name.endswith(".json")]
    return tuple(value for value in values if value is not None)


def _latest(trials: Sequence[StoredTrial], snapshots: Mapping[str, int]) -> StoredTrial:
    """Return the latest trial of an experiment on a data set; see `stored_trials`.

    Args:
      trials: all of them.
      snapshots: number of trials on the data set by their snapshot, those of other experiments included.
    """
    latest = max(trials, key=lambda trial: (_age(trial), snapshots[trial.snapshot], trial.store.root))
    older = sum(trial.result is not None for trial in trials if trial is not latest)
    return replace(latest, older=older)


def _age(trial: StoredTrial) -> tuple[int, int, int]:
    """Return (spans, sum of their versions, version of the normalisation), which only grow; zeros without a result."""
    if trial.result is None:
        return 0, 0, 0
    spans = trial.result["snapshot"]["spans"]
    return len(spans), sum(version for _, version in spans), trial.result.get("normalisation", 1)


def encode_predictions(dataset: InMemoryDataset, positions: np.ndarray, probabilities: np.ndarray) -> bytes:
    """Encode predictions as Parquet, with a row for each run: id, label, change, and the probability of each class.

    An unanswered run has no predicted class.

    Args:
      dataset: the data set of the runs.
      positions: of the runs in the data set, int64 [n].
      probabilities: float [n, C].
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    classes = dataset.snapshot.resolved.classes
    runs = [dataset.facts[position] for position in positions]
    predicted = [classes[label] if label >= 0 else None for label in predicted_classes(probabilities)]
    by_class = {f"probability:{name}": probabilities[:, index] for index, name in enumerate(classes)}
    table = pa.table(
        {
            "run_id": pa.array([run.run_id for run in runs], pa.string()),
            "build_uuid": pa.array([run.build_uuid for run in runs], pa.string()),
            "build_name": pa.array([run.build_name for run in runs], pa.string()),
            "split": pa.array(dataset.roles[positions].tolist(), pa.string()),
            "label_name": pa.array([classes[label] for label in dataset.rows.labels[positions]], pa.string()),
            "predicted": pa.array(predicted, pa.string()),
            "change": pa.array(dataset.changes(positions).tolist(), pa.int64()),
            **{name: pa.array(column, pa.float64()) for name, column in by_class.items()},
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _parse_predictions(data: bytes, classes: tuple[str, ...]) -> Predictions:
    """Parse the test runs of a Parquet file of predictions."""
    from ciml.runs.arrow import read_parquet

    table = read_parquet(data)
    # By Python's lists: for numpy, Arrow imports pandas, which takes longer than all this.
    is_test = np.array(table["split"].to_pylist(), object) == "test"
    label_of = {name: label for label, name in enumerate(classes)}
    labels = [label_of[name] for name in table["label_name"].to_pylist()]
    probabilities = [table[f"probability:{name}"].to_pylist() for name in classes]
    return Predictions(
        np.array(table["run_id"].to_pylist(), object)[is_test],
        np.array(labels, np.int64)[is_test],
        np.array(probabilities, np.float64).reshape(len(classes), table.num_rows).T[is_test],
        classes,
        np.array(table["change"].to_pylist(), np.int64)[is_test] if "change" in table.column_names else None,
    )
