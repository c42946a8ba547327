"""Trials: an experiment, trained on a data set, evaluated, and stored.

`Trial.run` gives the result on the test runs, `Trial.run_on` that on another data set, and `Trial.cross_validate` that
of folds. Each is computed once: a repeated call returns the stored one. The files are those of
`ciml.training.experiments.results`.
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

from ciml.errors import CimlError, IntegrityError
from ciml.progress import Progress
from ciml.storage import Store
from ciml.storage.json_files import read_stored, seal
from ciml.training.calibration.calibrate import Calibrated, calibrate, lacks_output
from ciml.training.calibration.sets import learned_ranges
from ciml.training.data.examples import InMemoryDataset
from ciml.training.data.snapshot import no_training_runs
from ciml.training.estimators import Fitted, Rows, check_use, fit, inputs_for
from ciml.training.evaluation.baselines import COMPARED, NUMBERS, number_of, numbers_for, predict_by
from ciml.training.evaluation.candidate import calibration_figures
from ciml.training.evaluation.metrics import evaluate, predicted_classes, scores
from ciml.training.experiment import NORMALISATION, Experiment, refresh_key
from ciml.training.experiments.results import RESULT, experiment_store
from ciml.training.normalise import Normalisation
from ciml.training.train import trained_roles
from ciml.transforms.examples.prepare import run_means, withhold_telemetry
from ciml.verdict_rules import LearnedRanges

_FORMAT = 1


@dataclass(frozen=True)
class Trial:
    """An experiment on a data set.

    Attributes:
      experiments: the folder of all experiments.
      experiment: the experiment to train.
      dataset: the data set's examples.
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

    def run(self) -> tuple[dict[str, Any], bool]:
        """Train, test and store, or return the stored result. Only this method reads the test runs.

        Returns:
          The result, see docs/experiments.md, and whether it is new.
        """
        stored = read_stored(self.store, RESULT)
        if stored is not None:
            return stored, False
        snapshot = self.dataset.snapshot
        dev = self.dev_positions
        test = self.dataset.of("test")
        positions = np.concatenate([dev, test])
        rows = self.rows_at(positions)
        uncalibrated = self.fitted.predict(rows.inputs, rows.n_windows)
        answers = self._calibrate(uncalibrated)
        predictions = _predictions_file(self.dataset, positions, answers)
        predictions_name = f"predictions-{hashlib.sha256(predictions).hexdigest()[:16]}.parquet"
        self.store.create(predictions_name, predictions)
        test_answers = answers[len(dev) :]
        result = {
            "format": _FORMAT,
            "experiment": self.experiment.to_json(),
            "normalisation": NORMALISATION,
            "dataset": snapshot.dataset,
            "snapshot": snapshot.summary(),
            "training": self.fitted.to_json(),
            "dev": self._scores(answers[: len(dev)], dev) if dev.size else None,
            "test": self._scores(test_answers, test),
            **self._calibration_figures(uncalibrated[len(dev) :], test_answers, test),
            "baselines": self._baselines(self.dataset, test, self.dataset.rows.labels[test]),
            "predictions": predictions_name,
        }
        return self._store(RESULT, result)

    def run_on(self, other: InMemoryDataset) -> tuple[dict[str, Any], bool]:
        """Evaluate the model on the test runs of another data set.

        Runs that the model was trained on, the trial's dev runs, and runs of a class that the model does not have are
        omitted and counted.

        Returns:
          The `scores`, with the number of omitted runs, and whether they are new.

        Raises:
          CimlError: if the examples of that data set have other features or another length.
        """
        _check_alike(self.dataset, other)
        name = f"on-{other.snapshot.dataset}-{other.snapshot.digest[:16]}.json"
        stored = read_stored(self.store, name)
        if stored is not None:
            return stored, False
        classes = self.dataset.snapshot.resolved.classes
        train_runs = {self.dataset.facts[position].run_id for position in self.train_positions}
        dev_runs = {self.dataset.facts[position].run_id for position in self.dev_positions}
        test = other.of("test")
        untrained = [position for position in test if other.facts[position].run_id not in train_runs]
        unseen = [position for position in untrained if other.facts[position].run_id not in dev_runs]
        # The label of the model's class by the other data set's label of the same class.
        own_label = {
            label: classes.index(name) for label, name in enumerate(other.snapshot.resolved.classes) if name in classes
        }
        positions = np.array(
            [position for position in unseen if int(other.rows.labels[position]) in own_label], np.int64
        )
        rows = self.rows_at(positions, other)
        labels = np.array([own_label[label] for label in rows.labels.tolist()], np.int64)
        answers = self._calibrate(self.fitted.predict(rows.inputs, rows.n_windows))
        result = {
            "dataset": other.snapshot.dataset,
            "snapshot": other.snapshot.digest,
            "left_out": {
                "trained_on": len(test) - len(untrained),
                "dev": len(untrained) - len(unseen),
                "unknown_class": len(unseen) - len(positions),
            },
            "test": scores(answers, labels, classes, self._train_labels, other.slices(positions)),
            "baselines": self._baselines(other, positions, labels),
        }
        return self._store(name, result)

    def cross_validate(
        self, folds: int, hold_out: tuple[str, ...], progress: Progress | None = None
    ) -> tuple[dict[str, Any], bool]:
        """Run and store `ciml.training.evaluation.cross_validation.cross_validate`; return it and whether it is new."""
        from ciml.training.evaluation.cross_validation import cross_validate

        name = f"folds-{'+'.join(hold_out) or 'run'}-{folds}.json"
        stored = read_stored(self.store, name)
        if stored is not None:
            return stored, False
        result = cross_validate(
            self.experiment,
            self.dataset,
            folds=folds,
            hold_out=hold_out,
            progress=progress,
            allow_modules=self.allow_modules,
        )
        return self._store(name, result)

    @property
    def store(self) -> Store:
        """The folder of its results."""
        snapshot = self.dataset.snapshot
        key = refresh_key(snapshot.digest, self.experiment)
        return experiment_store(self.experiments, self.experiment.name).child(f"results/{snapshot.dataset}/{key}")

    @cached_property
    def train_positions(self) -> np.ndarray:
        """Positions of the training runs in the data set, int64 [m]."""
        roles = trained_roles(self.experiment, dev_from_train=self.dataset.snapshot.dev_from_train)
        positions = self.dataset.of(*roles)
        if not positions.size:
            raise no_training_runs(self.dataset.snapshot, self.dataset.of("test").size)
        return positions

    @property
    def _train_labels(self) -> np.ndarray:
        labels: np.ndarray = self.dataset.rows.labels[self.train_positions]
        return labels

    @property
    def dev_positions(self) -> np.ndarray:
        """Positions of the dev runs that are not trained on."""
        return np.setdiff1d(self.dataset.of("dev"), self.train_positions)

    def rows_at(self, positions: np.ndarray, dataset: InMemoryDataset | None = None) -> Rows:
        """Return runs as the estimator takes them: normalised by this trial's training split, if it needs that.

        Args:
          positions: int64 [n].
          dataset: that of the positions; by default the trial's.
        """
        rows = (dataset or self.dataset).rows.take(positions)
        return inputs_for(self.experiment, self._normalisation, rows, self.allow_modules)

    @cached_property
    def _normalisation(self) -> Normalisation:
        return self.dataset.normalisation()

    @cached_property
    def fitted(self) -> Fitted:
        """The fitted model, trained on first use. It is not stored, since the trial reproduces it."""
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
        """The calibration, fitted on the dev runs on first use; None for an experiment without."""
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
        """Compute the ranges of the runs that the model learned, and of those that calibrate it."""
        positions = np.concatenate([self.train_positions, self.dev_positions])
        rows = self.dataset.rows.take(positions)
        facts = [self.dataset.facts[position] for position in positions]
        return learned_ranges(run_means(rows.inputs, rows.n_windows), facts, self.dataset.snapshot.resolved.features)

    def _calibrate(self, answers: np.ndarray) -> np.ndarray:
        return answers if self.calibrated is None else self.calibrated.calibrator.apply(answers)

    def _scores(self, answers: np.ndarray, positions: np.ndarray) -> dict[str, Any]:
        labels = self.dataset.rows.labels[positions]
        classes = self.dataset.snapshot.resolved.classes
        return scores(answers, labels, classes, self._train_labels, self.dataset.slices(positions))

    def _calibration_figures(
        self, uncalibrated: np.ndarray, calibrated: np.ndarray, test: np.ndarray
    ) -> dict[str, Any]:
        """Return the result's figures of the calibration, see docs/training.md; none without a calibration.

        Args:
          uncalibrated: float [n, C] of the test runs as the model gave them.
          calibrated: float [n, C], the same calibrated.
          test: positions of the n test runs.
        """
        if self.calibrated is None:
            return {}
        rows = self.dataset.rows.take(test)
        before = evaluate(uncalibrated, rows.labels, self.dataset.snapshot.resolved.classes, self._train_labels)
        jobs = [self.dataset.facts[position].build_name for position in test]
        return calibration_figures(self.calibrated, before, calibrated, rows, jobs)

    def _baselines(self, dataset: InMemoryDataset, positions: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """Return the scores of the one-number baselines, by name.

        Args:
          dataset: that of the tested runs.
          positions: those of the n tested runs.
          labels: int64 [n], positions in the model's classes.
        """
        resolved = self.dataset.snapshot.resolved
        train_runs = [self.dataset.facts[position] for position in self.train_positions]
        tested_runs = [dataset.facts[position] for position in positions]
        baselines: dict[str, Any] = {}
        for name in numbers_for(resolved.definition):
            train_values = number_of(self.dataset.raw, name, train_runs)
            tested_values = number_of(dataset.raw, name, tested_runs)
            if train_values is None or tested_values is None:
                continue
            answers = predict_by(name, train_values, self._train_labels, tested_values, len(resolved.classes))
            figures = scores(answers, labels, resolved.classes, self._train_labels)
            baselines[name] = {"what": NUMBERS[name]} | {key: figures[key] for key in COMPARED}
        return baselines

    def _store(self, name: str, value: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """Store a result exclusively. Return the stored one, perhaps of another process, and whether it is new."""
        new = self.store.create(name, seal(json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode()))
        stored = read_stored(self.store, name)
        if stored is None:
            raise IntegrityError(f"{self.store.url(name)} was written, but is missing now")
        return stored, new


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


def _predictions_file(dataset: InMemoryDataset, positions: np.ndarray, answers: np.ndarray) -> bytes:
    """Encode predictions as Parquet, with a row for each run: its id, its label, and the probability of each class.

    An unanswered run has no predicted class.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    classes = dataset.snapshot.resolved.classes
    runs = [dataset.facts[position] for position in positions]
    predicted = [classes[label] if label >= 0 else None for label in predicted_classes(answers)]
    table = pa.table(
        {
            "run_id": pa.array([run.run_id for run in runs], pa.string()),
            "build_uuid": pa.array([run.build_uuid for run in runs], pa.string()),
            "build_name": pa.array([run.build_name for run in runs], pa.string()),
            "split": pa.array(dataset.roles[positions].tolist(), pa.string()),
            "label_name": pa.array([classes[label] for label in dataset.rows.labels[positions]], pa.string()),
            "predicted": pa.array(predicted, pa.string()),
            **{f"probability:{name}": pa.array(answers[:, index], pa.float64()) for index, name in enumerate(classes)},
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())
