"""Exports trials, candidates and pushed versions to MLflow: as runs with parameters, metrics and tags, and as models.

Needs ``ciml[mlflow]``. ciml never reads what it exports: its own stores are the ledger. A run is identified by its tag
`KEY`, a version by the tag ``ciml.version``. Existing objects are not written again, so a repeated export adds what is
new, and continues after a kill. A run is marked as finished last.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError
from ciml.events.redaction import redact_text, redact_url
from ciml.serving.contract import DEFINITION, read_definition
from ciml.serving.model_files import check_digests, copy_model
from ciml.serving.registries import registered_models
from ciml.serving.registry import Candidate, Registry, RegistryState
from ciml.storage.json_files import read_object, read_stored
from ciml.training.experiment import metrics_path
from ciml.training.experiments.results import RESULT, experiment_names, experiment_store
from ciml.version import __version__

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: The tag that identifies a run; no two runs have the same.
KEY = "ciml.key"
#: Facts of a candidate that become tags.
_FACTS = ("dataset", "snapshot", "definition", "refresh")
_MOST_CHARACTERS = 5000
_FORBIDDEN = re.compile(r"[^\w.\- /]")
#: The folder of a model among the artifacts of its run.
_ARTIFACT = "model"
#: The tag of a run whose model is completely logged.
_LOGGED = "ciml.model"
_VERSION = "ciml.version"
_WITHDRAWN = "ciml.withdrawn"
_ALIASES = "ciml.aliases"
#: MLflow sends no usage data and prints nothing. A server that does not answer is an error within minutes, not hours.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


@dataclass
class Exported:
    """The result of an export.

    Attributes:
      runs: number of runs in MLflow after the export.
      new_runs: number of runs that it added or completed.
      versions: number of versions of models in MLflow after the export.
      new_versions: number of versions that it added.
      aliases: ciml's versions by model and alias.
    """

    runs: int = 0
    new_runs: int = 0
    versions: int = 0
    new_versions: int = 0
    aliases: dict[str, dict[str, int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def export_to_mlflow(data: DataRoot, tracking_uri: str, report: Callable[[str], None] = lambda line: None) -> Exported:
    """Export all trials, candidates, pushed versions and labels of a data root.

    Args:
      data: the data root.
      tracking_uri: of MLflow: an address of a server, or ``sqlite:///FILE``.
      report: called with a line for each new run or version.

    Raises:
      EngineError: MLflow rejects something, or does not answer.
      IntegrityError: a stored file was altered.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    with _one_line_errors(tracking_uri):
        export = _Export(data, MlflowClient(tracking_uri, tracking_uri), report)
        for record in trial_records(data):
            export.export_run(record)
        for model in registered_models(data):
            export.export_model(model)
    return export.exported


@contextmanager
def _one_line_errors(tracking_uri: str) -> Iterator[None]:
    """Turn errors of MLflow and its libraries into `EngineError`s of one line."""
    from mlflow.exceptions import MlflowException

    kinds: tuple[type[Exception], ...] = (MlflowException, OSError)
    with suppress(ImportError):
        from sqlalchemy.exc import SQLAlchemyError

        kinds = (*kinds, SQLAlchemyError)
    try:
        yield
    except CimlError:
        raise
    except kinds as error:
        text = redact_text(" ".join(str(error).split()))[:500]
        raise EngineError(f"MLflow at {redact_url(tracking_uri)}: {text}") from error


class _Export:
    """An export in progress."""

    def __init__(self, data: DataRoot, client: MlflowClient, report: Callable[[str], None]) -> None:
        self._data = data
        self._client = client
        self._report = report
        self._experiment_ids: dict[str, str] = {}
        self.exported = Exported()

    def export_run(self, record: RunRecord) -> str:
        """Export a run; return its id in MLflow."""
        experiment = self._experiment_id(record.experiment)
        client = self._client
        self.exported.runs += 1
        runs = client.search_runs([experiment], f"tags.`{KEY}` = '{record.key}'", max_results=1)
        if runs and runs[0].info.status == "FINISHED":
            return str(runs[0].info.run_id)
        if runs:  # an export that was killed
            run_id = str(runs[0].info.run_id)
        else:
            tags = {**record.tags, KEY: record.key}
            run_id = str(client.create_run(experiment, record.time_ms, tags, record.name).info.run_id)
        self._log_figures(run_id, record)
        client.set_terminated(run_id, "FINISHED", record.time_ms)
        self.exported.new_runs += 1
        self._report(f"run {record.key}")
        return run_id

    def _log_figures(self, run_id: str, record: RunRecord) -> None:
        """Log parameters and metrics. Their times follow from the record, so that a repetition changes nothing."""
        from mlflow.entities import Metric, Param

        params = [Param(name, value) for name, value in record.params.items()]
        metrics = [Metric(name, value, record.time_ms, 0) for name, value in record.metrics.items()]
        self._client.log_batch(run_id, metrics, params)  # in as many requests as MLflow's limits take

    def _experiment_id(self, name: str) -> str:
        if name not in self._experiment_ids:
            experiment = self._client.get_experiment_by_name(name)
            experiment_id = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
            self._experiment_ids[name] = str(experiment_id)
        return self._experiment_ids[name]

    def export_model(self, model: str) -> None:
        """Export the candidates of a model, its pushed versions, and its labels."""
        registry = Registry(self._data, model)
        state = registry.state
        run_ids = {
            candidate.id: self.export_run(candidate_record(self._data, model, state, candidate))
            for candidate in state.candidates.values()
        }
        if not state.pushed():
            return
        if not self._client.search_registered_models(f"name = '{model}'", max_results=1):
            self._client.create_registered_model(model, {"ciml.data": self._data.url})
        versions = {
            int(version.tags[_VERSION]): version
            for version in self._client.search_model_versions(f"name = '{model}'", max_results=1000)
            if _VERSION in version.tags
        }
        mlflow_numbers = {}
        for number in state.pushed():
            if number in versions:
                mlflow_numbers[number] = str(versions[number].version)
            else:
                run_id = run_ids[state.versions[number].candidate]
                mlflow_numbers[number] = self._create_version(registry, number, run_id)
            withdrawn = json.dumps(state.versions[number].withdrawn)
            if number not in versions or versions[number].tags.get(_WITHDRAWN) != withdrawn:
                self._client.set_model_version_tag(model, mlflow_numbers[number], _WITHDRAWN, withdrawn)
        self.exported.versions += len(mlflow_numbers)
        self._set_aliases(model, state.labels, mlflow_numbers)

    def _create_version(self, registry: Registry, number: int, run_id: str) -> str:
        """Register a pushed version; return its number in MLflow."""
        candidate = registry.state.candidates[registry.state.versions[number].candidate]
        run = self._client.get_run(run_id)
        if run.data.tags.get(_LOGGED) != candidate.digest:
            self._log_model(registry, number, run_id)
            self._client.set_tag(run_id, _LOGGED, candidate.digest)
        tags = {_VERSION: str(number), "ciml.digest": candidate.digest}
        version = self._client.create_model_version(
            registry.model,
            f"runs:/{run_id}/{_ARTIFACT}",
            run_id,
            tags,
            description=f"ciml model {registry.model}, version {number}",
        )
        self.exported.new_versions += 1
        self._report(f"model {registry.model} version {number}")
        return str(version.version)

    def _log_model(self, registry: Registry, number: int, run_id: str) -> None:
        """Log the files of a version, verified, as a model that `ciml.serving.pyfunc` loads."""
        with tempfile.TemporaryDirectory(prefix="ciml-mlflow-", ignore_cleanup_errors=True) as work:
            copy = Path(work, "saved_model")
            source = registry.folder(number)
            try:
                digests = copy_model(source, copy)
            except FileNotFoundError:
                digests = {}
            check_digests(source.root, digests, registry.state.files(number))
            save_pyfunc(copy, Path(work, _ARTIFACT))
            self._client.log_artifacts(run_id, str(Path(work, _ARTIFACT)), _ARTIFACT)

    def _set_aliases(self, model: str, labels: Mapping[str, int], mlflow_numbers: Mapping[int, str]) -> None:
        """Set the labels of ciml as aliases; delete those that an earlier export set and ciml has removed."""
        registered = self._client.get_registered_model(model)
        for label, number in sorted(labels.items()):
            if registered.aliases.get(label) != mlflow_numbers[number]:
                self._client.set_registered_model_alias(model, label, mlflow_numbers[number])
        earlier_labels = json.loads(registered.tags.get(_ALIASES, "[]"))
        for label in set(earlier_labels) - set(labels):
            self._client.delete_registered_model_alias(model, label)
        if sorted(labels) != earlier_labels:
            self._client.set_registered_model_tag(model, _ALIASES, json.dumps(sorted(labels)))
        self.exported.aliases[model] = dict(sorted(labels.items()))


def save_pyfunc(saved_model: Path, folder: Path) -> None:
    """Write a SavedModel of ciml as a model of MLflow: the same files, and a description with its signature.

    Args:
      saved_model: of a pushed version.
      folder: to create.
    """
    import numpy as np
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    path = saved_model / "assets" / DEFINITION
    definition = read_definition(path.read_bytes(), str(path))
    shape = (-1, definition.windows, len(definition.features))
    signature = ModelSignature(
        inputs=Schema(
            [TensorSpec(np.dtype("float32"), shape, "inputs"), TensorSpec(np.dtype("int32"), (-1,), "n_windows")]
        ),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, len(definition.classes)), "probabilities")]),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an example of an input is missing: the signature suffices
        pyfunc.save_model(
            str(folder),
            loader_module="ciml.serving.pyfunc",
            data_path=str(saved_model),
            signature=signature,
            pip_requirements=[f"ciml[serve]=={__version__}"],
            metadata={"classes": list(definition.classes)},
        )


@dataclass(frozen=True)
class RunRecord:
    """A run of MLflow.

    Attributes:
      key: of the trial or the candidate.
      experiment: MLflow's experiment: the data set, whose runs can be compared.
      name: for people.
      time_ms: when it was stored, epoch milliseconds.
      params: hyper-parameters.
      metrics: figures of held-out runs; undefined ones are left out.
      tags: digests and names.
    """

    key: str
    experiment: str
    name: str
    time_ms: int
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


def trial_records(data: DataRoot) -> Iterator[RunRecord]:
    """Yield all stored trials of all experiments, the oldest results of an experiment included."""
    for name in experiment_names(data.experiments):
        store = experiment_store(data.experiments, name)
        for entry in sorted(store.entries("results")):
            parts = entry.path.split("/")  # results/DATASET/TRIAL/RESULT
            if len(parts) != 4 or parts[3] != RESULT:
                continue
            result = read_stored(store, entry.path)
            if result is None:
                continue
            trial = parts[2]
            dataset = result["dataset"]
            snapshot = result["snapshot"]
            tags = {"ciml.kind": "trial", "ciml.trial": trial, "ciml.experiment": name, "ciml.dataset": dataset}
            tags |= {"ciml.snapshot": snapshot["digest"], "ciml.spans": json.dumps(snapshot["spans"])}
            yield RunRecord(
                key=f"{dataset}/{name}/{trial}",
                experiment=dataset,
                name=name,
                time_ms=int(entry.modified_s * 1000),
                params=params_of(result["experiment"]),
                metrics=figures(result["test"], result.get("baselines") or {}),
                tags=_tags(data, tags),
            )


def candidate_record(data: DataRoot, model: str, state: RegistryState, candidate: Candidate) -> RunRecord:
    """Return a candidate of the registry, with the gate's decision."""
    facts = candidate.facts
    decision = state.decisions.get(candidate.id)
    metrics = _metrics(data, model, facts) or (dict(decision.metrics) if decision else {})
    evaluation = metrics.get("evaluation") or {name: metrics.get(name) for name in ("accuracy", "base_rate")}
    tags = {"ciml.kind": "candidate", "ciml.model": model, "ciml.candidate": candidate.id}
    tags |= {"ciml.digest": candidate.digest}
    tags |= {f"ciml.{name}": str(facts[name]) for name in _FACTS if name in facts}
    if decision is not None:
        tags |= {"ciml.blessed": json.dumps(decision.blessed), "ciml.reasons": "\n".join(decision.reasons)}
    return RunRecord(
        key=f"{model}/{candidate.id}",
        experiment=str(facts.get("dataset", model)),
        name=f"{model} {candidate.id}",
        time_ms=candidate.time_us // 1000,
        params=params_of(facts.get("experiment") or {}),
        metrics=figures(evaluation, metrics.get("baselines") or {}),
        tags=_tags(data, tags),
    )


def _metrics(data: DataRoot, model: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures that the trainer stored for a candidate; {} for one that was made by other means."""
    if "refresh" not in facts:
        return {}
    path = metrics_path(facts["refresh"])
    try:
        stored = data.trainer(model).read(path)
    except FileNotFoundError:
        return {}
    return read_object(stored, data.trainer(model).url(path))


def _tags(data: DataRoot, tags: Mapping[str, str]) -> dict[str, str]:
    all_tags = {**tags, "ciml.data": data.url, "ciml.version": __version__}
    return {name: value[:_MOST_CHARACTERS] for name, value in all_tags.items()}


def params_of(experiment: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters of an experiment by key; those of scikit-learn are named as ``parameters.C``."""
    flat = {key: value for key, value in experiment.items() if key not in ("name", "parameters") and value is not None}
    flat |= {f"parameters.{key}": value for key, value in (experiment.get("parameters") or {}).items()}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat.items()}
    return {metric_name(key): value[:_MOST_CHARACTERS] for key, value in sorted(texts.items())}


def figures(test: Mapping[str, Any], baselines: Mapping[str, Any]) -> dict[str, float]:
    """Return figures of held-out runs by MLflow's names.

    Args:
      test: of `ciml.training.evaluation.metrics.evaluate` or `ciml.training.evaluation.metrics.scores`.
      baselines: the one-number baselines on the same runs, by name.

    Returns:
      ``accuracy``, ``accuracy.low`` and ``accuracy.high`` (95 %), ``base_rate``, ``macro_f1``, ``class/<class>/f1``, …
    """
    numbers: dict[str, Any] = {
        "test_runs": test.get("runs"),
        "trained_on": test.get("trained_on"),
        "log_loss": test.get("log_loss"),
        "calibration_error": (test.get("calibration") or {}).get("ece"),
    }
    values = {name: test.get(name) for name in ("accuracy", "base_rate", "brier")}
    values |= {f"macro_{name}": value for name, value in (test.get("macro") or {}).items()}
    for label, class_values in (test.get("classes") or {}).items():
        values |= {f"class/{label}/{name}": value for name, value in class_values.items()}
    for name, value in baselines.items():
        values[f"baseline/{name}/accuracy"] = value.get("accuracy") if isinstance(value, Mapping) else None
    for name, value in values.items():
        interval = value if isinstance(value, Mapping) else {"value": value}
        numbers[name] = interval.get("value")
        numbers |= {f"{name}.{bound}": interval.get(bound) for bound in ("low", "high")}
    return {
        metric_name(name): float(value)
        for name, value in numbers.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def metric_name(name: str) -> str:
    """Return a valid MLflow name: ``_`` replaces all characters except letters, digits, ``_-./`` and spaces."""
    return _FORBIDDEN.sub("_", name)[:250]
