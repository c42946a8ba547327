"""Train an experiment on a data set, evaluate the model, and store the results.

`Trial.run` evaluates on the test runs, `Trial.run_on` on another data set, and `Trial.cross_validate` on folds. A
result is computed once; a repeated call returns the stored result. `ciml.training.experiments.results` describes the
files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ciml.errors import CimlError, IntegrityError
from ciml.events.records import RunFacts
from ciml.progress import Progress
from ciml.storage import Store
from ciml.storage.json_files import read_stored, seal
from ciml.training.calibration.calibrate import Calibrated, calibrate, lacks_output
from ciml.training.calibration.sets import learned_ranges
from ciml.training.data.examples import InMemoryDataset
from ciml.training.data.snapshot import check_trainable
from ciml.training.estimators import Fitted, Rows, check_use, fit, inputs_for
from ciml.training.evaluation.baselines import COMPARED, NUMBERS, number_of, numbers_for, predict_by
from ciml.training.evaluation.candidate import calibration_figures
from ciml.training.evaluation.metrics import evaluate, scores
from ciml.training.experiment import NORMALISATION, Experiment, refresh_key
from ciml.training.experiments.results import RESULT, encode_predictions, experiment_store
from ciml.training.normalise import Normalisation
from ciml.training.train import trained_roles
from ciml.transforms.examples.prepare import run_means, subject_of, withhold_telemetry
from ciml.verdict_rules import LearnedRanges

_FORMAT = 1


class StoredResult(NamedTuple):
    """A result of a trial as stored.

    Attributes:
      value: JSON; see docs/experiments.md.
      is_new: whether this call computed it.
    """

    value: dict[str, Any]
    is_new: bool


@dataclass(frozen=True)
class Trial:
    """An experiment on a data set.

    Attributes:
      experiments: the folder of all experiments.
      experiment: the experiment to train.
      dataset: the examples of the data set.
      tensorboard: folder of a network's TensorBoard event files.
      progress: called after each epoch of a network.
      allow_modules: modules of estimators that may be imported; see `ciml.training.estimators.estimator_of`.
    """

    experiments: Store
    experiment: Experiment
    dataset: InMemoryDataset
    tensorboard: Path | None = None
    progress: Progress | None = None
    allow_modules: tuple[str, ...] = ()

    def run(self) -> StoredResult:
        """Train, and evaluate on the test runs, which `cross_validate` never uses."""
        return self._cached(RESULT, self._result)

    def run_on(self, other: InMemoryDataset) -> StoredResult:
        """Evaluate the model on the test runs of another data set.

        Runs of changes that the model was trained on, or that have dev runs of the trial, and runs of a class that the
        model does not have are omitted; ``left_out`` of the result counts them.

        Raises:
          CimlError: if the examples of the other data set have other features or another length.
        """
        _check_alike(self.dataset, other)
        name = f"on-{other.snapshot.dataset}-{other.snapshot.digest[:16]}.json"
        return self._cached(name, lambda: self._result_on(other))

    def cross_validate(self, folds: int, hold_out: tuple[str, ...], progress: Progress | None = None) -> StoredResult:
        """Cross-validate: see `ciml.training.evaluation.cross_validation.cross_validate`.

        Results are stored by the number of folds and by the facts in their given order.
        """
        from ciml.training.evaluation.cross_validation import cross_validate

        return self._cached(
            f"folds-{'+'.join(hold_out) or 'run'}-{folds}.json",
            lambda: cross_validate(
                self.experiment,
                self.dataset,
                folds=folds,
                hold_out=hold_out,
                progress=progress,
                allow_modules=self.allow_modules,
            ),
        )

    def _cached(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> StoredResult:
        """Return a stored result; compute and store it if there is none."""
        stored = read_stored(self.store, name)
        if stored is not None:
            return StoredResult(stored, False)
        data = json.dumps(compute(), indent=1, sort_keys=True, allow_nan=False).encode()
        is_new = self.store.create(name, seal(data))  # false if another process was first
        stored = read_stored(self.store, name)
        if stored is None:
            raise IntegrityError(f"{self.store.url(name)} was written, but is missing now")
        return StoredResult(stored, is_new)

    def _result(self) -> dict[str, Any]:
        """Compute the result of `run`, and store the predictions that it names."""
        snapshot = self.dataset.snapshot
        dev = self.dev_positions
        test = self.dataset.of("test")
        positions = np.concatenate([dev, test])
        rows = self.rows_at(positions)
        uncalibrated = self.fitted.predict(rows.inputs, rows.n_windows)
        probabilities = self._calibrate(uncalibrated)
        predictions = encode_predictions(self.dataset, positions, probabilities)
        predictions_name = f"predictions-{hashlib.sha256(predictions).hexdigest()[:16]}.parquet"
        self.store.create(predictions_name, predictions)
        test_probabilities = probabilities[len(dev) :]
        return {
            "format": _FORMAT,
            "experiment": self.experiment.to_json(),
            "normalisation": NORMALISATION,
            "dataset": snapshot.dataset,
            "snapshot": snapshot.summary(),
            "training": self.fitted.to_json(),
            "dev": self._scores(probabilities[: len(dev)], dev) if dev.size else None,
            "test": self._scores(test_probabilities, test),
            **self._calibration_figures(uncalibrated[len(dev) :], test_probabilities, test),
            "baselines": self._baselines(self.dataset, test, self.dataset.rows.labels[test]),
            "predictions": predictions_name,
        }

    def _result_on(self, other: InMemoryDataset) -> dict[str, Any]:
        """Compute the result of `run_on`."""
        classes = self.dataset.snapshot.resolved.classes
        train_subjects = {_subject_of(self.dataset.facts[position]) for position in self.train_positions}
        dev_subjects = {_subject_of(self.dataset.facts[position]) for position in self.dev_positions}
        test = other.of("test")
        untrained = [position for position in test if _subject_of(other.facts[position]) not in train_subjects]
        unseen = [position for position in untrained if _subject_of(other.facts[position]) not in dev_subjects]
        # Maps each label of the other data set to the model's label for the same class.
        own_label = {
            label: classes.index(name) for label, name in enumerate(other.snapshot.resolved.classes) if name in classes
        }
        positions = np.array(
            [position for position in unseen if int(other.rows.labels[position]) in own_label], np.int64
        )
        rows = self.rows_at(positions, other)
        labels = np.array([own_label[label] for label in rows.labels.tolist()], np.int64)
        probabilities = self._calibrate(self.fitted.predict(rows.inputs, rows.n_windows))
        return {
            "dataset": other.snapshot.dataset,
            "snapshot": other.snapshot.digest,
            "left_out": {
                "trained_on": len(test) - len(untrained),
                "dev": len(untrained) - len(unseen),
                "unknown_class": len(unseen) - len(positions),
            },
            "test": scores(
                probabilities, labels, classes, self._train_labels, other.slices(positions), other.changes(positions)
            ),
            "baselines": self._baselines(other, positions, labels),
        }

    @cached_property
    def store(self) -> Store:
        """The folder of the results."""
        snapshot = self.dataset.snapshot
        key = refresh_key(snapshot.digest, self.experiment)
        return experiment_store(self.experiments, self.experiment.name).child(f"results/{snapshot.dataset}/{key}")

    @cached_property
    def train_positions(self) -> np.ndarray:
        """Positions of the training runs in the data set, int64 [m]."""
        roles = trained_roles(self.experiment, dev_from_train=self.dataset.snapshot.dev_from_train)
        check_trainable(self.dataset.snapshot, *roles)
        return self.dataset.of(*roles)

    @property
    def _train_labels(self) -> np.ndarray:
        labels: np.ndarray = self.dataset.rows.labels[self.train_positions]
        return labels

    @cached_property
    def dev_positions(self) -> np.ndarray:
        """Positions of the dev runs that are not trained on, int64 [m]."""
        return np.setdiff1d(self.dataset.of("dev"), self.train_positions)

    def rows_at(self, positions: np.ndarray, dataset: InMemoryDataset | None = None) -> Rows:
        """Return the runs in the form that the estimator expects.

        Where it expects normalised inputs, they are normalised with the training split of this trial.

        Args:
          positions: of the runs in the data set, int64 [n].
          dataset: the data set; by default the trial's.
        """
        rows = (dataset or self.dataset).rows.take(positions)
        return inputs_for(self.experiment, self._normalisation, rows, self.allow_modules)

    @cached_property
    def _normalisation(self) -> Normalisation:
        return self.dataset.normalisation()

    @cached_property
    def fitted(self) -> Fitted:
        """The fitted model, trained on first use. It is not stored: training again gives the same model."""
        resolved = self.dataset.snapshot.resolved
        check_use(self.experiment, resolved, self.allow_modules)
        dev = None
        if self.experiment.early_stopping is not None:
            dev = self.rows_at(self.dev_positions)
            if not len(dev):
                raise CimlError("early stopping needs dev runs; give dev a weight in the data set's tdt_split")
        return fit(
            self.experiment,
            self.rows_at(self.train_positions),
            dev,
            len(resolved.classes),
            features=resolved.features,
            allow_modules=self.allow_modules,
            tensorboard=self.tensorboard,
            progress=self.progress,
        )

    @cached_property
    def calibrated(self) -> Calibrated | None:
        """The calibration, fitted to the dev runs on first use; None for an experiment without calibration."""
        if self.experiment.calibration is None:
            return None
        dev = self.dev_positions
        facts = self.dataset.facts
        rows = self.rows_at(dev)
        resolved = self.dataset.snapshot.resolved
        recorded = self.dataset.rows.take(dev)
        lacking = lacks_output(recorded.inputs, resolved.features)
        without_telemetry = None
        if lacking is not None:
            withheld = Rows(*withhold_telemetry(recorded.inputs, resolved), recorded.labels)
            normal = inputs_for(self.experiment, self._normalisation, withheld, self.allow_modules)
            without_telemetry = self.fitted.predict(normal.inputs, normal.n_windows)
        return calibrate(
            self.experiment,
            resolved,
            [facts[position] for position in dev],
            self.fitted.predict(rows.inputs, rows.n_windows),
            rows.labels,
            used=[facts[position] for position in [*self.train_positions, *self.dataset.of("test")]],
            ranges=self._ranges,
            without_output=lacking,
            without_telemetry=without_telemetry,
        )

    def _ranges(self) -> LearnedRanges | None:
        """Compute the ranges of features of the training runs and the dev runs."""
        positions = np.concatenate([self.train_positions, self.dev_positions])
        rows = self.dataset.rows.take(positions)
        facts = [self.dataset.facts[position] for position in positions]
        return learned_ranges(run_means(rows.inputs, rows.n_windows), facts, self.dataset.snapshot.resolved.features)

    def _calibrate(self, probabilities: np.ndarray) -> np.ndarray:
        return probabilities if self.calibrated is None else self.calibrated.calibrator.apply(probabilities)

    def _scores(self, probabilities: np.ndarray, positions: np.ndarray) -> dict[str, Any]:
        labels = self.dataset.rows.labels[positions]
        classes = self.dataset.snapshot.resolved.classes
        slices = self.dataset.slices(positions)
        return scores(probabilities, labels, classes, self._train_labels, slices, self.dataset.changes(positions))

    def _calibration_figures(
        self, uncalibrated: np.ndarray, calibrated: np.ndarray, test: np.ndarray
    ) -> dict[str, Any]:
        """Return the figures of the calibration, see docs/training.md; none without calibration.

        Args:
          uncalibrated: the model's probabilities for the test runs, float [n, C].
          calibrated: the same probabilities after calibration, float [n, C].
          test: positions of the n test runs.
        """
        if self.calibrated is None:
            return {}
        rows = self.dataset.rows.take(test)
        classes = self.dataset.snapshot.resolved.classes
        changes = self.dataset.changes(test)
        before = evaluate(uncalibrated, rows.labels, classes, self._train_labels, changes=changes)
        jobs = [self.dataset.facts[position].build_name for position in test]
        return calibration_figures(self.calibrated, before, calibrated, rows, jobs, changes)

    def _baselines(self, dataset: InMemoryDataset, positions: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """Return the scores of the one-number baselines, by name.

        Args:
          dataset: the data set of the tested runs.
          positions: of the n tested runs in the data set, int64 [n].
          labels: positions in the model's classes, int64 [n].
        """
        resolved = self.dataset.snapshot.resolved
        train_runs = [self.dataset.facts[position] for position in self.train_positions]
        tested_runs = [dataset.facts[position] for position in positions]
        changes = dataset.changes(positions)
        baselines: dict[str, Any] = {}
        for name in numbers_for(resolved.definition):
            train_values = number_of(self.dataset.raw, name, train_runs)
            tested_values = number_of(dataset.raw, name, tested_runs)
            if train_values is None or tested_values is None:
                continue
            probabilities = predict_by(name, train_values, self._train_labels, tested_values, len(resolved.classes))
            figures = scores(probabilities, labels, resolved.classes, self._train_labels, changes=changes)
            baselines[name] = {"what": NUMBERS[name]} | {key: figures[key] for key in COMPARED}
        return baselines


def _check_alike(own: InMemoryDataset, other: InMemoryDataset) -> None:
    """Raise `CimlError` if the model of a data set cannot predict examples of another."""
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


def _subject_of(run: RunFacts) -> str:
    """Return what a run is of: its change, or the run itself without one."""
    return subject_of(run.project, run.change, run.run_id)
