"""A data root: everything that ciml keeps in one folder or S3 prefix."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ciml.api.dataset import Dataset
from ciml.api.logs import Moment, is_frame, micros
from ciml.api.model import Model
from ciml.api.results import RefreshResult, TrainingResult
from ciml.data_root import DataRoot
from ciml.errors import CimlError

if TYPE_CHECKING:
    import pyarrow as pa

    from ciml.pipelines.backfill.load_report import LoadReport

Path = str | os.PathLike[str]
#: Called with (done, total) of some work.
Progress = Callable[[int, int], None]


def open(path: Path, *, create: bool = False) -> Data:
    """Open a data root.

    Args:
      path: a folder, or an ``s3://bucket/prefix``.
      create: accept a path where nothing is stored yet; the first run or data set creates it.

    Raises:
      CimlError: nothing is stored at the path, and ``create`` is not set.

    Example:
      >>> data = ciml.open("data")
      >>> data.datasets()
      ['status']
    """
    root = DataRoot.open(path)
    if not create and not root.exists():
        raise CimlError(f"no data at {root.url}; correct the path, or create it: ciml.open(path, create=True)")
    return Data(root)


class Data:
    """A data root: stored runs, data sets, experiments and models. `ciml.open` opens one.

    Its methods call the functions of the commands, so both give the same results and can be mixed.
    """

    def __init__(self, root: DataRoot) -> None:
        self._root = root

    @property
    def path(self) -> str:
        """The data path."""
        return self._root.url

    def load(
        self,
        logs: Path,
        results: Any,
        *,
        mapping: Mapping[str, str] | None = None,
        zone: str | None = None,
        max_bad: float = 0.1,
        source: str = "backfill",
        jobs: Sequence[str] = ("*",),
        trust_policy: Path | None = None,
        dry_run: bool = False,
        progress: Callable[[str, int, int | None], None] | None = None,
    ) -> LoadReport:
        """Load logs and a table of results into the raw store, as ``ciml load`` does: all that is usable, or nothing.

        The same table again changes nothing; a table that grew adds what is new.

        Args:
          logs: folder or ``s3://`` prefix of the logs.
          results: a file (CSV, Parquet, JSON lines), a DataFrame or a pyarrow table: a row for each run.
          mapping: columns whose meaning is not guessed: ciml's name by the name in ``results``, or ``-`` to leave one
            out; docs/load.md lists the names.
          zone: IANA name of the zone of times that have none.
          max_bad: largest share of rows that may be bad or without a log, 0 to 1.
          source: name of the table in the trust policy and in the run ids.
          jobs: globs of the jobs to load.
          trust_policy: TOML file of the trust policy; by default one that trusts loaded logs.
          dry_run: only survey; commit nothing.
          progress: called with what is done, how much of it, and the total or None.

        Returns:
          A report: the meaning of the columns, and the number of rows by what became of them. ``print(report)`` shows
          what the command prints.

        Raises:
          CimlError: too many rows are unusable, or the results lack a needed column; nothing was committed.

        Example:
          >>> import pandas
          >>> results = pandas.DataFrame({
          ...     "id": ["a1", "a2"], "job": "unit", "result": ["SUCCESS", "FAILURE"],
          ...     "start": "2026-11-24T12:00:00Z", "log": ["unit-000.csv", "unit-001.csv"],
          ... })
          >>> report = ciml.open("mine", create=True).load("logs", results)
          >>> report.rows, report.totals["run"]
          (2, 2)
        """
        from ciml.pipelines.backfill.load import load
        from ciml.trust import TrustPolicy

        if is_frame(results):
            import pyarrow as pa

            results = pa.Table.from_pandas(results, preserve_index=False)
        return load(
            self._root,
            os.fspath(logs),
            results,
            mapping=mapping,
            zone=zone,
            max_bad=max_bad,
            source=source,
            jobs=jobs,
            trust=TrustPolicy.load(trust_policy),
            dry_run=dry_run,
            progress=progress or (lambda what, done, total: None),
        )

    def runs(self) -> pa.Table:
        """Return the stored runs, the earliest committed first: a row a run.

        Returns:
          A table with the run's facts (``run_id``, ``build_name``, ``provider``, ``start_time``, ``labels``, …), its
          present ``outcome``, corrections included, whether it was ``trusted`` when it was ingested and by which
          ``rule``, and of its telemetry the number of ``rows`` and the ``digest``.

        Example:
          >>> runs = data.runs()
          >>> runs.num_rows, sorted(set(runs["outcome"].to_pylist()))
          (120, ['failure', 'success'])
          >>> runs.to_pandas().groupby("outcome")["rows"].mean().round().to_dict()
          {'failure': 60.0, 'success': 60.0}
        """
        from ciml.runs.latest_runs import latest_runs
        from ciml.runs.state import open_raw
        from ciml.runs.tables.row_tables import run_table

        return run_table(list(latest_runs(*open_raw(self._root.raw)))[::-1])

    def exclude(
        self,
        reason: str,
        *,
        run: str = "",
        job: str = "",
        source: str = "",
        since: Moment | None = None,
        until: Moment | None = None,
    ) -> int:
        """Exclude runs from every later training, as ``ciml exclude`` does. It deletes nothing.

        Args:
          reason: for readers of the list.
          run: a run id; or all runs that match each of the following.
          job: a job, or a glob of jobs.
          source: name of a source.
          since: runs that ran at or after this time.
          until: runs that began before this time; needs ``since``.

        Returns:
          The number of the exclusion, for `revert_exclusion`.

        Raises:
          CimlError: it names no runs.

        Example:
          >>> number = data.exclude("disk was full", run="zuul~7~1")
          >>> len(data.dataset("status"))
          107
          >>> data.revert_exclusion(number)
          >>> len(data.dataset("status"))
          108
        """
        from ciml.training.exclusions import Exclusion, add

        wanted = Exclusion(reason, run, job, source, micros(since, "since"), micros(until, "until"))
        (kept,) = add(self._root.exclusions, [wanted])
        return kept.id

    def revert_exclusion(self, number: int) -> None:
        """Revert an exclusion: later trainings may learn from its runs again.

        Raises:
          CimlError: there is no such exclusion in force.
        """
        from ciml.training.exclusions import revert

        revert(self._root.exclusions, [number])

    def datasets(self) -> list[str]:
        """Return the names of the data sets, sorted."""
        return self._root.dataset_names()

    def dataset(self, name: str, *, trust_policy: Path | None = None) -> Dataset:
        """Open a data set.

        Args:
          name: of the data set.
          trust_policy: TOML file of the trust policy; by default reviewed, gated or merged changes, and loaded logs.

        Raises:
          CimlError: there is no such data set, or it has no examples yet.

        Example:
          >>> dataset = data.dataset("status")
          >>> dataset
          Dataset('status': 108 runs of 12 x 2, classes passed, failed)
        """
        policy = None if trust_policy is None else os.fspath(trust_policy)
        return Dataset(self._root.dataset(name), policy)

    def define_dataset(
        self, name: str, *, replace: bool = False, progress: Progress | None = None, **keys: Any
    ) -> Dataset:
        """Define a data set and build it from all stored runs, as ``ciml dataset build`` does.

        The same definition again adds new runs.

        Args:
          name: of the data set.
          replace: replace a data set of that name with another definition.
          progress: called with the number of processed runs.
          keys: of the definition, such as ``sample_interval``, ``features_regex``, ``class_label``, ``max_windows``;
            docs/datasets.md lists them. ``max_windows`` is ``auto`` by default.

        Returns:
          The data set.

        Raises:
          CimlError: an unknown key or an invalid value, no stored run, or another definition under that name.

        Example:
          >>> data.define_dataset("load", sample_interval="2s", features_regex="1m", max_windows=30)
          Dataset('load': 108 runs of 30 x 1, classes passed, failed)
        """
        from ciml.datasets.definition import DatasetDefinition
        from ciml.pipelines.datasets.build import SPAN_RUNS, build_dataset, is_another, remove_dataset
        from ciml.pipelines.datasets.update import with_default_windows

        stored = self._root.dataset(name)
        written = with_default_windows(stored, {"span_runs": SPAN_RUNS, **keys, "name": name})
        definition = DatasetDefinition.from_json(written, "data set")
        if replace and is_another(stored, definition):
            remove_dataset(stored)
        build_dataset(self._root, self._root, definition, progress=progress)
        return self.dataset(name)

    def train(
        self,
        dataset: str | Dataset,
        estimator: str = "dnn",
        *,
        name: str | None = None,
        trust_policy: Path | None = None,
        progress: Progress | None = None,
        **parameters: Any,
    ) -> TrainingResult:
        """Train an estimator on a data set and test it on the held-out runs, as ``ciml experiment train`` does.

        The experiment and its result are stored. The same call again returns the stored result.

        Args:
          dataset: the data set or its name.
          estimator: ``dnn``, ``cnn``, ``gru``, ``svm``, ``random_forest``, ``hist_gradient_boosting`` or
            ``boosted_summaries``.
          name: of the experiment; derived from the other arguments by default.
          trust_policy: TOML file of the trust policy.
          progress: called with the epochs of a network.
          parameters: of the estimator: hyper-parameters of an experiment (docs/training.md), such as ``epochs`` or
            ``seed``; others are parameters of scikit-learn's estimator, such as ``n_estimators``.

        Raises:
          CimlError: an unknown estimator or parameter, or no training runs.

        Example:
          >>> result = data.train("status", "random_forest", n_estimators=50)
          >>> print(result.accuracy, "on", result.runs, "test runs; base rate", result.base_rate)
          1.000 (0.923 to 1.000) on 46 test runs; base rate 0.609 (0.465 to 0.736)
          >>> print(result.baselines["duration"])
          0.304 (0.191 to 0.448)
        """
        from ciml.extras import require

        require("sklearn")
        from ciml.training.data.examples import read_dataset
        from ciml.training.experiments.trials import Trial, create_experiment, experiment_of
        from ciml.trust import TrustPolicy

        experiment = experiment_of(estimator, parameters, name)
        policy = TrustPolicy.load(trust_policy)
        examples = read_dataset(self._root.dataset(_dataset_name(dataset)), policy)
        create_experiment(self._root.experiments, experiment)
        trial = Trial(self._root.experiments, experiment, examples, progress=progress)
        figures, new = trial.run()
        return TrainingResult(experiment.name, _dataset_name(dataset), new, figures)

    def compare(self, dataset: str | Dataset, *experiments: str | TrainingResult) -> pa.Table:
        """Compare experiments on the test runs of a data set, as ``ciml experiment compare`` does.

        Args:
          dataset: the data set or its name.
          experiments: names or results; the others are compared with the first. By default all experiments on the data
            set, the most accurate first.

        Returns:
          A table with a row for each experiment: its figures with intervals, and run by run the difference of its
          accuracy to the first one, with the paired interval.

        Example:
          >>> forest, svm = data.train("status", "random_forest"), data.train("status", "svm")
          >>> table = data.compare("status", forest, svm)
          >>> table["estimator"].to_pylist(), table["difference"].to_pylist()[0]
          (['random_forest', 'svm'], None)
        """
        import pyarrow as pa

        from ciml.training.experiments.compare import by_accuracy, compare
        from ciml.training.experiments.results import named_results

        names = [one.experiment if isinstance(one, TrainingResult) else one for one in experiments]
        results = named_results(self._root.experiments, names, _dataset_name(dataset))
        return pa.Table.from_pylist(compare(results if names else by_accuracy(results)).records())

    def refresh(
        self,
        dataset: str | Dataset,
        model: str | None = None,
        *,
        estimator: str = "dnn",
        trust_policy: Path | None = None,
        min_test_runs: int | None = None,
        tolerance: float | None = None,
        accept_baselines: Sequence[str] = (),
        min_decided: float | None = None,
        label: str = "stable",
        lineage: bool = False,
        progress: Callable[[str], None] | None = None,
        **parameters: Any,
    ) -> RefreshResult:
        """Train a model on a data set and push it if the gate blesses it, as ``ciml refresh`` does.

        Args:
          dataset: the data set or its name.
          model: name of the model; by default that of the data set.
          estimator: a network: ``dnn``, ``cnn`` or ``gru``.
          trust_policy: TOML file of the trust policy.
          min_test_runs: fewest held-out runs with which the gate blesses.
          tolerance: accuracy by which a candidate may be worse than the served version.
          accept_baselines: numbers of a run that may predict better than the model: ``duration``, ``memory``.
          min_decided: least share of held-out runs that a model of causes decides.
          label: label of a pushed version.
          lineage: send OpenLineage events, by its own configuration or to ``DATA/lineage``. Needs ``ciml[lineage]``.
          progress: called with the name of each step.
          parameters: hyper-parameters, as for `train`.

        Raises:
          CimlError: an unknown estimator or parameter, or nothing to train on.

        Example:
          >>> data.refresh("status", "small", hidden_layers=[8], epochs=60, learning_rate=0.01).outcome
          'pushed'
        """
        from ciml.extras import require

        require("tensorflow_transform")
        from ciml.serving.model_files import check_model_name
        from ciml.training.evaluation.gate import GatePolicy
        from ciml.training.experiments.trials import experiment_of
        from ciml.training.trainer import TrainConfig, run_once
        from ciml.trust import TrustPolicy

        name = check_model_name(model or _dataset_name(dataset))
        # The experiment has the default name, as without --experiment: its name is part of what makes a refresh new.
        config = TrainConfig(
            self._root,
            _dataset_name(dataset),
            name,
            experiment_of(estimator, parameters, "dnn"),
            TrustPolicy.load(trust_policy),
            GatePolicy.of(min_test_runs, tolerance, accept_baselines, min_decided),
            label,
            lineage,
        )
        return RefreshResult.of(name, run_once(config, progress=progress))

    def models(self) -> list[str]:
        """Return the names of the models, sorted."""
        from ciml.serving.registry import registered_models

        return registered_models(self._root)

    def model(self, name: str, *, version: int | None = None, label: str = "stable") -> Model:
        """Load a pushed model into this process, with its files verified. Needs ``ciml[train]`` or ``ciml[serve]``.

        Args:
          name: of the model.
          version: its number; by default the one that ``label`` names.
          label: label of a version.

        Raises:
          CimlError: there is no such model, version or label.
          IntegrityError: a file differs from its digest in the registry.

        Example:
          >>> data.model("status")
          Model('status', version 1: passed, failed)
        """
        return Model(self._root, name, version, label)

    def __repr__(self) -> str:
        return f"Data({self.path!r})"


def _dataset_name(dataset: str | Dataset) -> str:
    return dataset.name if isinstance(dataset, Dataset) else dataset
