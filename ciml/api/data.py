"""A data root: everything that ciml keeps in one folder or S3 prefix."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack
from weakref import WeakSet

from ciml.api.dataset import Dataset
from ciml.api.experiments import experiment_for, refreshed_experiment
from ciml.api.model import Model
from ciml.api.stored_runs import StoredRuns
from ciml.api.types import (
    Classifier,
    CrossValidation,
    DatasetKeys,
    ExperimentKeys,
    NetworkFunction,
    OldProgress,
    Path,
    RefreshResult,
    TrainingResult,
    present_progress,
)
from ciml.data_root import DataRoot
from ciml.errors import NoDataError
from ciml.progress import Progress
from ciml.tensorflow import keep_settings

if TYPE_CHECKING:
    import pyarrow as pa

    from ciml.api.verdicts import RunVerdict
    from ciml.training.experiments.trials import Trial


def open(path: Path, *, create: bool = False) -> Data:
    """Open a data root.

    Args:
      path: a folder, or an ``s3://bucket/prefix``.
      create: accept a path where nothing is stored yet; the first run or data set creates it.

    Raises:
      NoDataError: nothing is stored at the path, and ``create`` is not set.
      EngineError: the store is unavailable.

    Example:
      >>> with ciml.open("data") as data:
      ...     data.datasets()
      ['status']
    """
    root = DataRoot.open(path)
    if not create and not root.exists():
        raise NoDataError(f"no data at {root.url}; correct the path, or create it: ciml.open(path, create=True)")
    return Data(root)


class Data(StoredRuns):
    """A data root: stored runs, data sets, experiments and models. `ciml.open` opens one.

    Its methods call the functions of the commands, so the API and the commands can be mixed. Used in a ``with``
    statement, it closes the models that it opened.
    """

    def __init__(self, root: DataRoot) -> None:
        self._root = root
        self._models: WeakSet[Model] = WeakSet()

    @property
    def path(self) -> str:
        """The data path."""
        return self._root.url

    def close(self) -> None:
        """Close the models that `model` opened. They cannot predict any more."""
        for model in self._models:
            model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def datasets(self) -> list[str]:
        """Return the names of the data sets, sorted."""
        return self._root.dataset_names()

    def dataset(self, name: str, *, trust_policy: Path | None = None) -> Dataset:
        """Open a data set.

        Args:
          name: name of the data set.
          trust_policy: TOML file of the trust policy. The default trusts reviewed, gated or merged changes, and loaded
            logs.

        Raises:
          UnknownDatasetError: no data set has this name.
          NoTrainingDataError: the data set has no examples yet.

        Example:
          >>> dataset = data.dataset("status")
          >>> dataset
          Dataset('status': 108 runs of 12 x 2, classes passed, failed)
        """
        policy = None if trust_policy is None else os.fspath(trust_policy)
        return Dataset(self._root.dataset(name), policy)

    def define_dataset(
        self,
        name: str,
        *,
        replace: bool = False,
        progress: Progress | OldProgress | None = None,
        **keys: Unpack[DatasetKeys],
    ) -> Dataset:
        """Define a data set and build it from all stored runs, as ``ciml dataset build`` does.

        A second call with the same definition adds new runs.

        Args:
          name: name of the data set.
          replace: whether an existing data set with another definition is replaced, once the new one is known to be
            valid.
          progress: called as runs are processed.
          keys: keys of the definition, such as ``sample_interval``, ``features_regex``, ``class_label`` and
            ``max_windows`` (default ``auto``): see `ciml.DatasetKeys`.

        Raises:
          InvalidSettingError: an unknown key or an invalid value.
          NoTrainingDataError: no stored run matches.
          CimlError: another definition is stored under this name, or the raw store does not exist.

        Example:
          >>> data.define_dataset("load", sample_interval="2s", features_regex="1m", max_windows=30)
          Dataset('load': 108 runs of 30 x 1, classes passed, failed)
        """
        from ciml.datasets.definition import DatasetDefinition
        from ciml.pipelines.datasets.build import SPAN_RUNS, build_dataset, has_other_definition, make_room
        from ciml.pipelines.datasets.update import with_default_windows

        stored = self._root.dataset(name)
        written = {"span_runs": SPAN_RUNS, **keys, "name": name}
        definition = DatasetDefinition.from_json(with_default_windows(stored, written), "data set")
        if replace and has_other_definition(stored, definition):
            definition = DatasetDefinition.from_json(with_default_windows(None, written), "data set")
            make_room(self._root, self._root, definition)
        build_dataset(self._root, self._root, definition, progress=present_progress(progress))
        return self.dataset(name)

    @keep_settings()
    def train(
        self,
        dataset: str | Dataset,
        estimator: str | Classifier | NetworkFunction | None = None,
        *,
        name: str | None = None,
        trust_policy: Path | None = None,
        progress: Progress | OldProgress | None = None,
        **keys: Unpack[ExperimentKeys],
    ) -> TrainingResult:
        """Train an estimator on a data set and test it on the held-out runs, as ``ciml experiment train`` does.

        The experiment and its result are stored. Repeating the call returns the stored result.

        Args:
          dataset: the data set or its name.
          estimator: ``dnn``, ``cnn``, ``gru``, ``svm``, ``random_forest``, ``hist_gradient_boosting`` or
            ``boosted_summaries``. It may also be the name of a class, such as ``LogisticRegression`` or
            ``package.module:Name``, or an estimator with scikit-learn's interface. A Keras model, or a function
            (shape, classes) that returns one, is accepted, too. By default ``random_forest``, or ``dnn`` if a key of
            networks is given.
          name: name of the experiment; derived from the other arguments by default.
          trust_policy: TOML file of the trust policy.
          progress: called after each epoch of a network.
          keys: hyper-parameters, such as ``epochs`` or ``seed``: see `ciml.ExperimentKeys`. ``parameters`` are passed
            to a named class, and ``view`` chooses what it gets of a run; see docs/experiments.md.

        Raises:
          UnknownEstimatorError: no estimator has this name.
          InvalidSettingError: an unknown key or an invalid value.
          UnknownDatasetError: no data set has this name.
          NoTrainingDataError: there are no training runs, or only of one class.

        Example:
          >>> result = data.train("status", "random_forest", parameters={"n_estimators": 50})
          >>> print(result.accuracy, "on", result.runs, "test runs; base rate", result.base_rate)
          1.000 (0.923 to 1.000) on 46 test runs; base rate 0.609 (0.465 to 0.736)
          >>> print(result.baselines["duration"])
          0.304 (0.191 to 0.448)
          >>> from sklearn.linear_model import LogisticRegression
          >>> from sklearn.pipeline import make_pipeline
          >>> from sklearn.preprocessing import StandardScaler
          >>> pipeline = make_pipeline(StandardScaler(), LogisticRegression())
          >>> print(data.train("status", pipeline, view="summary").accuracy)
          1.000 (0.923 to 1.000)
        """
        trial = self._trial(dataset, estimator, keys, name, trust_policy, present_progress(progress))
        figures, new = trial.run()
        return TrainingResult(trial.experiment.name, _dataset_name(dataset), new, figures)

    @keep_settings()
    def cross_validate(
        self,
        dataset: str | Dataset,
        estimator: str | Classifier | NetworkFunction | None = None,
        *,
        folds: int = 5,
        hold_out: str | Sequence[str] = ("change",),
        name: str | None = None,
        trust_policy: Path | None = None,
        progress: Progress | None = None,
        **keys: Unpack[ExperimentKeys],
    ) -> CrossValidation:
        """Cross-validate an estimator on the runs for training, as ``ciml experiment train --cross-validate`` does.

        Each fold is predicted by a model that was trained on the others. The test runs are not read, so choose an
        estimator by this result, and test the choice by `train`. Repeating the call returns the stored result.

        Args:
          dataset: the data set or its name.
          estimator: as for `train`.
          folds: number of folds, at least 2. With fewer groups than folds, each group is a fold.
          hold_out: facts of a run, such as ``change``, ``job``, ``flavour`` or a label. Runs with the same values are
            in the same fold, because similar runs in two folds would make the result too good. An empty tuple divides
            by run.
          name: name of the experiment; derived from the other arguments by default.
          trust_policy: TOML file of the trust policy.
          progress: called after each fold.
          keys: hyper-parameters, as for `train`.

        Raises:
          UnknownEstimatorError: no estimator has this name.
          InvalidSettingError: an unknown key or an invalid value.
          UnknownDatasetError: no data set has this name.
          CimlError: too few runs or groups for the folds, or no run has a fact of ``hold_out`` other than ``change``.

        Example:
          >>> result = data.cross_validate("status", "random_forest", folds=3, parameters={"n_estimators": 20})
          >>> print(result.accuracy, "on", result.runs, "runs; base rate", result.base_rate)
          1.000 (0.942 to 1.000) on 62 runs; base rate 0.516 (0.394 to 0.636)
          >>> print(result.baselines["duration"])
          0.517 (0.304 to 0.731)
        """
        facts = (hold_out,) if isinstance(hold_out, str) else tuple(hold_out)
        trial = self._trial(dataset, estimator, keys, name, trust_policy, None)
        figures, new = trial.cross_validate(folds, facts, progress)
        return CrossValidation(trial.experiment.name, _dataset_name(dataset), new, figures)

    def _trial(
        self,
        dataset: str | Dataset,
        estimator: str | Classifier | NetworkFunction | None,
        keys: ExperimentKeys,
        name: str | None,
        trust_policy: Path | None,
        progress: Progress | None,
    ) -> Trial:
        """Store an experiment, and return its trial on a data set. Arguments as for `train`."""
        from ciml.extras import require

        require("sklearn", "train")
        from ciml.stored_trust import policy_of
        from ciml.training.data.examples import read_dataset
        from ciml.training.experiments.results import create_experiment
        from ciml.training.experiments.trials import Trial

        experiment, modules = experiment_for(estimator, keys, name, lambda: self._shape(dataset))
        policy = policy_of(self._root, trust_policy).current()
        examples = read_dataset(self._root.dataset(_dataset_name(dataset)), policy)
        create_experiment(self._root.experiments, experiment, modules)
        return Trial(self._root.experiments, experiment, examples, progress=progress, allow_modules=modules)

    def _shape(self, dataset: str | Dataset) -> tuple[tuple[int, int], int]:
        """Return (L, F) and C of a data set."""
        resolved = dataset if isinstance(dataset, Dataset) else self.dataset(dataset)
        return (resolved.windows, len(resolved.features)), len(resolved.classes)

    def compare(self, dataset: str | Dataset, *experiments: str | TrainingResult) -> pa.Table:
        """Compare experiments on the test runs of a data set, as ``ciml experiment compare`` does.

        Args:
          dataset: the data set or its name.
          experiments: names or results, which are compared with the first one. By default all experiments on the data
            set, the most accurate first.

        Returns:
          A table with a row for each experiment. It has the figures with intervals, and the difference of the accuracy
          to that of the first experiment, with the interval of the paired runs.

        Raises:
          UnknownExperimentError: an experiment does not exist, or has no result on the data set.

        Example:
          >>> forest, svm = data.train("status", "random_forest"), data.train("status", "svm")
          >>> table = data.compare("status", forest, svm)
          >>> table["estimator"].to_pylist(), table["difference"].to_pylist()[0]
          (['random_forest', 'svm'], None)
        """
        import pyarrow as pa

        from ciml.training.experiments.comparison import by_accuracy, compare
        from ciml.training.experiments.results import named_results

        names = [item.experiment if isinstance(item, TrainingResult) else item for item in experiments]
        results = named_results(self._root.experiments, names, _dataset_name(dataset))
        return pa.Table.from_pylist(compare(results if names else by_accuracy(results)).records())

    @keep_settings()
    def refresh(
        self,
        dataset: str | Dataset,
        model: str | None = None,
        *,
        estimator: str | Classifier | NetworkFunction | None = None,
        trust_policy: Path | None = None,
        min_test_runs: int | None = None,
        tolerance: float | None = None,
        accept_baselines: Sequence[str] = (),
        min_decided: float | None = None,
        min_agreement: float | None = None,
        label: str = "stable",
        lineage: bool = False,
        progress: Progress | OldProgress | None = None,
        **keys: Unpack[ExperimentKeys],
    ) -> RefreshResult:
        """Train a model on a data set, and push it if the gate blesses it, as ``ciml refresh`` does.

        Args:
          dataset: the data set or its name.
          model: name of the model; by default the name of the data set.
          estimator: as for `train`; by default that of the model's last candidate, with its hyper-parameters. One that
            cannot be converted to TensorFlow operations is kept for Python, but not pushed; the reason names the step.
          trust_policy: TOML file of the trust policy.
          min_test_runs: number of held-out runs that the gate requires.
          tolerance: largest allowed loss of accuracy compared with the served version.
          accept_baselines: run statistics that may predict better than the model: ``duration``, ``memory``.
          min_decided: share of the held-out runs that a model of causes must decide.
          min_agreement: share of the held-out runs on which a model of another seed must agree; 0 trains none.
          label: label of a pushed version.
          lineage: whether OpenLineage events are sent, as OpenLineage is configured or to ``DATA/lineage``. Requires
            ``ciml[lineage]``.
          progress: called at the beginning of each step.
          keys: hyper-parameters, as for `train`. Without ``estimator``, they change those of the last candidate.

        Raises:
          UnknownEstimatorError: no estimator has this name.
          InvalidSettingError: an unknown key or an invalid value.
          UnknownDatasetError: no data set has this name.
          NoTrainingDataError: there are no training runs.

        Example:
          >>> data.refresh("status", "small", hidden_layers=[8], epochs=60, learning_rate=0.01).outcome
          'pushed'
        """
        from ciml.extras import require

        require("tensorflow_transform", "train")
        from ciml.serving.model_files import check_model_name
        from ciml.stored_trust import policy_of
        from ciml.training.evaluation.gate import GatePolicy
        from ciml.training.refresh import TrainConfig
        from ciml.training.trainer import run_once

        name = check_model_name(model or _dataset_name(dataset))
        experiment, modules = refreshed_experiment(self._root, name, estimator, keys, lambda: self._shape(dataset))
        config = TrainConfig(
            self._root,
            _dataset_name(dataset),
            name,
            experiment,
            policy_of(self._root, trust_policy),
            GatePolicy.of(min_test_runs, tolerance, accept_baselines, min_decided, min_agreement),
            label,
            lineage,
            modules,
        )
        return RefreshResult.of(name, run_once(config, progress=present_progress(progress)))

    def models(self) -> list[str]:
        """Return the names of the models, sorted."""
        from ciml.serving.registries import registered_models

        return registered_models(self._root)

    def model(
        self,
        name: str,
        *,
        version: int | None = None,
        label: str | None = None,
        candidate: bool = False,
        allow_modules: Collection[str] = (),
    ) -> Model:
        """Load a pushed model or its last candidate, and verify its files. Requires ``ciml[train]`` or ``ciml[serve]``.

        Args:
          name: name of the model.
          version: version number; by default the version with the label ``label``.
          label: label of a version; by default ``stable``.
          candidate: load the last trained candidate, even if the gate rejected it. Its answers carry the decision.
          allow_modules: modules that an estimator of a candidate may import, besides scikit-learn's and its like.

        Raises:
          UnknownModelError: there is no such model, version, label or candidate.
          IntegrityError: a file differs from its digest in the registry.

        Example:
          >>> data.model("status")
          Model('status', version 1: passed, failed)
          >>> data.model("status", candidate=True).candidate.blessed
          True
        """
        model = Model(self._root, name, version, label, candidate=candidate, allow_modules=allow_modules)
        self._models.add(model)
        return model

    def verdict(
        self, run_id: str, *, model: str | None = None, candidate: bool = False, allow_modules: Collection[str] = ()
    ) -> RunVerdict:
        """Return the verdict on a failed run, and its evidence, as ``ciml verdict`` does.

        It is that of the last prediction of a served model. Without one, a model of causes is asked about the stored
        run now.

        Args:
          run_id: of a stored run.
          model: the model whose verdict to return; by default the last that gave one, or the only one that can.
          candidate: ask the last candidate of the model, even if the gate rejected it.
          allow_modules: modules that a candidate's estimator may import.

        Raises:
          UnknownRunError: no stored run has this id.
          CimlError: the run did not fail or cannot be predicted, or no model gives verdicts.

        Example:
          >>> data.verdict("zuul~5f0c~1")  # doctest: +ELLIPSIS
          Traceback (most recent call last):
          ...
          ciml.errors.UnknownRunError: no run 'zuul~5f0c~1' in ...data; list runs by ciml runs list
        """
        from ciml.api.verdicts import find_verdict

        return find_verdict(self._root, run_id, model, candidate, allow_modules, self.model)

    def __repr__(self) -> str:
        return f"Data({self.path!r})"


def _dataset_name(dataset: str | Dataset) -> str:
    return dataset.name if isinstance(dataset, Dataset) else dataset
