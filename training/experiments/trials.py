"""Trials: a stored experiment, trained on a data set, and its results.

Every file is created exclusively and is deterministic, so a trial may be killed, repeated or run concurrently:

    experiments/<experiment>/experiment.json
    experiments/<experiment>/results/<data set>/<trial>/result.json             last: completes the trial
                                                        predictions-<digest>.parquet
                                                        on-<other data set>-<snapshot>.json
                                                        folds-<by>-<folds>.json

``<trial>`` is `ciml.training.experiment.refresh_key`: of the runs and of the experiment.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ciml.digest import canonical_json, sha256_json
from ciml.errors import CimlError, IntegrityError, UnknownExperimentError
from ciml.progress import Progress
from ciml.storage import Store
from ciml.storage.json_files import read_object, seal
from ciml.training.calibration.calibrate import Calibrated, calibrate
from ciml.training.calibration.calibrators import learned_ranges
from ciml.training.data.examples import InMemoryDataset
from ciml.training.data.snapshot import no_training_runs
from ciml.training.estimators import ESTIMATORS, Fitted, Rows, check_experiment, check_use, fit, inputs_for
from ciml.training.evaluation.baselines import COMPARED, NUMBERS, number_of, numbers_for, predict_by
from ciml.training.evaluation.candidate import calibration_figures
from ciml.training.evaluation.metrics import evaluate, scores
from ciml.training.experiment import ALIASES, NORMALISATION, Experiment, refresh_key
from ciml.training.normalise import Normalisation
from ciml.training.train import trained_roles
from ciml.transforms.examples.prepare import run_means
from ciml.verdict_rules import LearnedRanges

_FORMAT = 1
RESULT = "result.json"


def experiment_store(experiments: Store, name: str) -> Store:
    """Return the folder of an experiment. The name is validated, since it may come from a user."""
    Experiment.from_json({"name": name}, "experiment")
    return experiments.child(name)


def create_experiment(experiments: Store, experiment: Experiment) -> bool:
    """Store an experiment under its name; return False if it is stored already.

    Raises:
      CimlError: if it is invalid, or a different one has that name.
    """
    check_experiment(experiment)
    store = experiment_store(experiments, experiment.name)
    if store.create("experiment.json", seal(canonical_json(experiment.to_json()))):
        return True
    stored = load_experiment(experiments, experiment.name)
    old = stored.to_json()
    new = experiment.to_json()
    differ = [f"{key} is {old.get(key)}, not {new.get(key)}" for key in old | new if old.get(key) != new.get(key)]
    if differ:
        raise CimlError(
            f"experiment {experiment.name!r} exists with other values: {'; '.join(differ)}; choose another name"
        )
    return False


def experiment_of(estimator: str, parameters: Mapping[str, Any] | None = None, name: str | None = None) -> Experiment:
    """Return an experiment of an estimator.

    Args:
      estimator: its name, or an alias of the talk.
      parameters: keys of an experiment; others are parameters of scikit-learn's estimator.
      name: of the experiment; by default the estimator and a digest of all values.

    Raises:
      CimlError: an unknown estimator or parameter.
    """
    keys = dict(parameters or {})
    estimator_kind = ESTIMATORS.get(ALIASES.get(estimator, estimator))
    if estimator_kind is not None and not estimator_kind.network:
        fields = set(Experiment.__struct_fields__)
        sklearn_values = {key: keys.pop(key) for key in list(keys) if key not in fields}
        keys["parameters"] = {**keys.get("parameters", {}), **sklearn_values}
    experiment = Experiment.from_json({**keys, "estimator": estimator, **({"name": name} if name else {})})
    if name:
        return experiment
    values = {key: value for key, value in experiment.to_json().items() if key != "name"}
    return experiment.replace(name=f"{experiment.estimator}-{sha256_json(values)[:8]}")


def load_experiment(experiments: Store, name: str) -> Experiment:
    """Load a stored experiment. Raises `CimlError` for an unknown name."""
    store = experiment_store(experiments, name)
    value = read_stored(store, "experiment.json")
    if value is None:
        raise UnknownExperimentError(f"no experiment {name!r} in {experiments.url()}; define it first")
    return Experiment.from_json(value, store.url("experiment.json"))


def experiment_names(experiments: Store) -> list[str]:
    """Return the names of all experiments, sorted."""
    paths = (path.split("/") for path in experiments.list())
    return sorted(parts[0] for parts in paths if parts[1:] == ["experiment.json"])


def results_of(experiments: Store, name: str) -> list[dict[str, Any]]:
    """Return all results of an experiment, by data set, unordered within a data set."""
    store = experiment_store(experiments, name)
    paths = [path for path in store.list("results") if path.endswith(f"/{RESULT}")]
    return [result for path in paths if (result := read_stored(store, path)) is not None]


@dataclass(frozen=True)
class Trial:
    """An experiment on a data set.

    Attributes:
      experiments: the folder of all experiments.
      experiment: the experiment to train.
      dataset: the data set's examples.
      tensorboard: folder of a network's TensorBoard event files.
      progress: called after each epoch of a network.
    """

    experiments: Store
    experiment: Experiment
    dataset: InMemoryDataset
    tensorboard: Path | None = None
    progress: Progress | None = None

    @property
    def store(self) -> Store:
        """The folder of its results."""
        snapshot = self.dataset.snapshot
        key = refresh_key(snapshot.digest, self.experiment)
        return experiment_store(self.experiments, self.experiment.name).child(f"results/{snapshot.dataset}/{key}")

    @cached_property
    def learned(self) -> np.ndarray:
        """Positions of the training runs, int64 [m]."""
        roles = trained_roles(self.experiment, dev_from_train=self.dataset.snapshot.dev_from_train)
        positions = self.dataset.of(*roles)
        if not positions.size:
            raise no_training_runs(self.dataset.snapshot, self.dataset.of("test").size)
        return positions

    @cached_property
    def _normalisation(self) -> Normalisation:
        return self.dataset.normalisation()

    @property
    def watched(self) -> np.ndarray:
        """Positions of the dev runs that are not trained on."""
        return np.setdiff1d(self.dataset.of("dev"), self.learned)

    @cached_property
    def fitted(self) -> Fitted:
        """The fitted model, trained on first use. It is not stored, since the trial reproduces it."""
        resolved = self.dataset.snapshot.resolved
        check_use(self.experiment, resolved)
        dev = None
        if self.experiment.early_stopping is not None:
            dev = self.normal(self.watched)
            if not len(dev):
                raise CimlError("early stopping needs dev runs; give dev a weight in the data set's tdt_split")
        return fit(
            self.experiment,
            self.normal(self.learned),
            dev,
            len(resolved.classes),
            tensorboard=self.tensorboard,
            progress=self.progress,
        )

    @cached_property
    def calibrated(self) -> Calibrated | None:
        """The calibration, fitted on the dev runs on first use; None for an experiment without."""
        if self.experiment.calibration is None:
            return None
        dev = self.watched
        facts = self.dataset.facts
        rows = self.normal(dev)
        return calibrate(
            self.experiment,
            self.dataset.snapshot.resolved,
            [facts[position] for position in dev],
            self.fitted.predict(rows.inputs, rows.n_windows),
            rows.labels,
            used=[facts[position] for position in [*self.learned, *self.dataset.of("test")]],
            ranges=self._ranges,
        )

    def _ranges(self) -> LearnedRanges | None:
        """Return the ranges of the runs that the model learned, and of those that calibrate it."""
        positions = np.concatenate([self.learned, self.watched])
        rows = self.dataset.rows.take(positions)
        facts = [self.dataset.facts[position] for position in positions]
        return learned_ranges(run_means(rows.inputs, rows.n_windows), facts, self.dataset.snapshot.resolved.features)

    def _apply(self, answers: np.ndarray) -> np.ndarray:
        return answers if self.calibrated is None else self.calibrated.calibrator.apply(answers)

    def normal(self, positions: np.ndarray, other: InMemoryDataset | None = None) -> Rows:
        """Return runs (of another data set), normalised by this trial's training split if the estimator needs it."""
        return inputs_for(self.experiment, self._normalisation, (other or self.dataset).rows.take(positions))

    def run(self) -> tuple[dict[str, Any], bool]:
        """Train, test and store, or return the stored result. Only this method reads the test runs.

        Returns:
          The result, see docs/experiments.md, and whether it is new.
        """
        if (stored := read_stored(self.store, RESULT)) is not None:
            return stored, False
        snapshot = self.dataset.snapshot
        watched = self.watched
        test = self.dataset.of("test")
        positions = np.concatenate([watched, test])
        rows = self.normal(positions)
        uncalibrated = self.fitted.predict(rows.inputs, rows.n_windows)
        answers = self._apply(uncalibrated)
        table = _predictions(self.dataset, positions, answers)
        predictions = f"predictions-{hashlib.sha256(table).hexdigest()[:16]}.parquet"
        self.store.create(predictions, table)
        on_dev = answers[: len(watched)]
        on_test = answers[len(watched) :]
        result = {
            "format": _FORMAT,
            "experiment": self.experiment.to_json(),
            "normalisation": NORMALISATION,
            "dataset": snapshot.dataset,
            "snapshot": snapshot.summary(),
            "training": self.fitted.to_json(),
            "dev": self._scores(on_dev, watched) if watched.size else None,
            "test": self._scores(on_test, test),
            **self._calibration(uncalibrated[len(watched) :], on_test, test),
            "baselines": self._baselines(test),
            "predictions": predictions,
        }
        return self._keep(RESULT, result)

    def run_on(self, other: InMemoryDataset) -> tuple[dict[str, Any], bool]:
        """Evaluate the model on the test runs of another data set.

        Returns:
          The `scores`, with the number of omitted runs, and whether they are new.

        Raises:
          CimlError: if the examples of that data set have other features or another length.
        """
        definition = self.dataset.snapshot.resolved
        other_definition = other.snapshot.resolved
        _check_alike(self.dataset, other)
        name = f"on-{other.snapshot.dataset}-{other.snapshot.digest[:16]}.json"
        if (stored := read_stored(self.store, name)) is not None:
            return stored, False
        learned_runs = {self.dataset.facts[position].run_id for position in self.learned}
        test = other.of("test")
        fresh = [position for position in test if other.facts[position].run_id not in learned_runs]
        labels = {
            label: definition.classes.index(name)
            for label, name in enumerate(other_definition.classes)
            if name in definition.classes
        }
        positions = np.array([position for position in fresh if int(other.rows.labels[position]) in labels], np.int64)
        rows = self.normal(positions, other)
        right = np.array([labels[label] for label in rows.labels.tolist()], np.int64)
        figures = scores(
            self._apply(self.fitted.predict(rows.inputs, rows.n_windows)),
            right,
            definition.classes,
            self.dataset.rows.labels[self.learned],
            other.slices(positions),
        )
        result = {
            "dataset": other.snapshot.dataset,
            "snapshot": other.snapshot.digest,
            "left_out": {"trained_on": len(test) - len(fresh), "unknown_class": len(fresh) - len(positions)},
            "test": figures,
            "baselines": self._baselines(positions, other, right),
        }
        return self._keep(name, result)

    def cross_validate(
        self, folds: int, hold_out: tuple[str, ...], progress: Progress | None = None
    ) -> tuple[dict[str, Any], bool]:
        """Run and store `ciml.training.evaluation.cross_validation.cross_validate`; return it and whether it is new."""
        from ciml.training.evaluation.cross_validation import cross_validate

        name = f"folds-{'+'.join(hold_out) or 'run'}-{folds}.json"
        if (stored := read_stored(self.store, name)) is not None:
            return stored, False
        result = cross_validate(self.experiment, self.dataset, folds=folds, hold_out=hold_out, progress=progress)
        return self._keep(name, result)

    def _keep(self, name: str, value: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """Store a result exclusively; if one exists, return that."""
        new = self.store.create(name, seal(json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode()))
        stored = read_stored(self.store, name)
        if stored is None:
            raise IntegrityError(f"{self.store.url(name)} was written, but is missing now")
        return stored, new

    def _calibration(self, answers: np.ndarray, calibrated: np.ndarray, test: np.ndarray) -> dict[str, Any]:
        """Return what the result says of the calibration, see docs/training.md; nothing without one.

        Args:
          answers: float [n, C] of the test runs as the model gave them.
          calibrated: float [n, C], the same calibrated.
          test: positions of the n test runs.
        """
        if self.calibrated is None:
            return {}
        rows = self.dataset.rows.take(test)
        learned = self.dataset.rows.labels[self.learned]
        before = evaluate(answers, rows.labels, self.dataset.snapshot.resolved.classes, learned)
        jobs = [self.dataset.facts[position].build_name for position in test]
        return calibration_figures(self.calibrated, before, calibrated, rows, jobs)

    def _scores(self, answers: np.ndarray, positions: np.ndarray) -> dict[str, Any]:
        labels = self.dataset.rows.labels
        classes = self.dataset.snapshot.resolved.classes
        return scores(answers, labels[positions], classes, labels[self.learned], self.dataset.slices(positions))

    def _baselines(
        self, positions: np.ndarray, other: InMemoryDataset | None = None, labels: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Return the one-number baselines on the same runs, by name."""
        dataset = other or self.dataset
        resolved = self.dataset.snapshot.resolved
        learned = self.dataset.rows.labels[self.learned]
        baselines: dict[str, Any] = {}
        for name in numbers_for(resolved.definition):
            train_values = number_of(
                self.dataset.raw, name, [self.dataset.facts[position] for position in self.learned]
            )
            values = number_of(dataset.raw, name, [dataset.facts[position] for position in positions])
            if train_values is None or values is None:
                continue
            answers = predict_by(name, train_values, learned, values, len(resolved.classes))
            right = dataset.rows.labels[positions] if labels is None else labels
            figures = scores(answers, right, resolved.classes, learned)
            baselines[name] = {"what": NUMBERS[name]} | {key: figures[key] for key in COMPARED}
        return baselines


def _check_alike(own: InMemoryDataset, other: InMemoryDataset) -> None:
    shape = _shape(own)
    other_shape = _shape(other)
    for key, value in shape.items():
        if other_shape[key] != value:
            raise CimlError(
                f"data set {other.snapshot.dataset!r} cannot be evaluated: its {key} is {other_shape[key]}, "
                f"but the model takes {value}"
            )
    classes = own.snapshot.resolved.classes
    if not set(classes) & set(other.snapshot.resolved.classes):
        raise CimlError(f"data set {other.snapshot.dataset!r} has none of the classes {', '.join(classes)}")


def _shape(dataset: InMemoryDataset) -> dict[str, Any]:
    """Return the properties that examples must share with a model's training examples."""
    resolved = dataset.snapshot.resolved
    return {
        "features": list(resolved.features),
        "windows": resolved.windows,
        "sample_interval": resolved.definition.sample_interval,
        "sample_statistic": resolved.definition.sample_statistic,
        "aggregation_functions": list(resolved.definition.aggregation_functions),
    }


def read_stored(store: Store, name: str) -> dict[str, Any] | None:
    """Return a JSON object of a store, or None if it does not exist. Raises `IntegrityError` if it is damaged."""
    try:
        data = store.read(name)
    except FileNotFoundError:
        return None
    return read_object(data, store.url(name))


def _predictions(dataset: InMemoryDataset, positions: np.ndarray, answers: np.ndarray) -> bytes:
    """Return a Parquet file with a row for each run: its id, its label, and the probability of each class."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    classes = dataset.snapshot.resolved.classes
    runs = [dataset.facts[position] for position in positions]
    predicted = answers.argmax(axis=1) if len(answers) else np.zeros(0, np.int64)
    table = pa.table(
        {
            "run_id": pa.array([run.run_id for run in runs], pa.string()),
            "build_uuid": pa.array([run.build_uuid for run in runs], pa.string()),
            "build_name": pa.array([run.build_name for run in runs], pa.string()),
            "split": pa.array(dataset.roles[positions].tolist(), pa.string()),
            "label_name": pa.array([classes[label] for label in dataset.rows.labels[positions]], pa.string()),
            "predicted": pa.array([classes[label] for label in predicted], pa.string()),
            **{f"probability:{name}": pa.array(answers[:, index], pa.float64()) for index, name in enumerate(classes)},
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())
