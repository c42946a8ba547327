"""Exports trials, candidates and pushed versions to MLflow. Needs ``ciml[mlflow]``.

Everything has an identity there: a run its tag `records.KEY`, a version the tag ``ciml.version``. What exists is not
written again, so the same command repeats, resumes after a kill, and adds what is new. A run is finished last.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError
from ciml.events.redaction import redact_text, redact_url
from ciml.pipelines.exports.records import KEY, RunRecord, candidate_record, trial_records
from ciml.serving.contract import DEFINITION, read_definition
from ciml.serving.model_files import check_digests, copy_model
from ciml.serving.registry import Registry, registered_models
from ciml.version import __version__

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOG = logging.getLogger(__name__)
#: The folder of a model among the artifacts of its run, and the tag of a run that says that it is whole.
_ARTIFACT, _LOGGED = "model", "ciml.model"
_VERSION, _WITHDRAWN, _ALIASES = "ciml.version", "ciml.withdrawn", "ciml.aliases"
#: MLflow sends no usage data and prints nothing. A server that does not answer is an error within minutes, not hours.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}  # fmt: skip
#: MLflow's limit of parameters and tags in a request.
_BATCH = 100

Progress = Callable[[str], None]


@dataclass
class Exported:
    """What an export did.

    Attributes:
      runs, new_runs: number of runs, and of those that were not there.
      versions, new_versions: number of versions of models, the same.
      aliases: by model: alias -> ciml's version.
    """

    runs: int = 0
    new_runs: int = 0
    versions: int = 0
    new_versions: int = 0
    aliases: dict[str, dict[str, int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("runs", "new_runs", "versions", "new_versions", "aliases")}


def export_to_mlflow(data: DataRoot, tracking_uri: str, progress: Progress | None = None) -> Exported:
    """Export all trials, candidates, pushed versions and labels of a data root.

    Args:
      data: the data root.
      tracking_uri: of MLflow: an address of a server, or ``sqlite:///FILE``.
      progress: called with a line for each new run or version.

    Raises:
      EngineError: MLflow rejects something, or does not answer.
      IntegrityError: a stored file was altered.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    with _errors(tracking_uri):
        export = _Export(data, MlflowClient(tracking_uri, tracking_uri), progress or (lambda _: None))
        for record in trial_records(data):
            export.run(record)
        for model in registered_models(data):
            export.model(model)
    return export.done


@contextmanager
def _errors(tracking_uri: str) -> Iterator[None]:
    """Raise what MLflow and its libraries raise as one line."""
    from mlflow.exceptions import MlflowException

    kinds: tuple[type[Exception], ...] = (MlflowException, OSError)
    try:
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        pass
    else:
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

    def __init__(self, data: DataRoot, client: MlflowClient, progress: Progress) -> None:
        self._data, self._client, self._progress = data, client, progress
        self._experiments: dict[str, str] = {}
        self.done = Exported()

    def run(self, record: RunRecord) -> str:
        """Export a run; return MLflow's id of it."""
        experiment, client = self._experiment(record.experiment), self._client
        self.done.runs += 1
        found = client.search_runs([experiment], f"tags.`{KEY}` = '{record.key}'", max_results=1)
        if found and found[0].info.status == "FINISHED":
            return str(found[0].info.run_id)
        if found:  # an export that was killed
            run_id = str(found[0].info.run_id)
        else:
            tags = {**record.tags, KEY: record.key}
            run_id = str(client.create_run(experiment, record.time_ms, tags, record.name).info.run_id)
        self._log(run_id, record)
        client.set_terminated(run_id, "FINISHED", record.time_ms)
        self.done.new_runs += 1
        self._progress(f"run {record.key}")
        return run_id

    def _log(self, run_id: str, record: RunRecord) -> None:
        """Log parameters and metrics. Their times follow from the record, so that a repetition changes nothing."""
        from mlflow.entities import Metric, Param

        params = [Param(name, value) for name, value in record.params.items()]
        metrics = [Metric(name, value, record.time_ms, 0) for name, value in record.metrics.items()]
        for at in range(0, max(len(params), len(metrics)), _BATCH):
            self._client.log_batch(run_id, metrics[at : at + _BATCH], params[at : at + _BATCH])

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            made = self._client.create_experiment(name) if found is None else found.experiment_id
            self._experiments[name] = str(made)
        return self._experiments[name]

    def model(self, model: str) -> None:
        """Export the candidates of a model, its pushed versions, and its labels."""
        registry = Registry(self._data, model)
        state = registry.state
        runs = {
            candidate.id: self.run(candidate_record(self._data, model, state, candidate))
            for candidate in state.candidates.values()
        }
        if not state.pushed():
            return
        self._registered(model)
        known = {
            int(one.tags[_VERSION]): one
            for one in self._client.search_model_versions(f"name = '{model}'", max_results=1000)
            if _VERSION in one.tags
        }
        numbers = {}
        for number in state.pushed():
            self.done.versions += 1
            withdrawn = json.dumps(state.versions[number].withdrawn)
            if number in known:
                numbers[number] = str(known[number].version)
                if known[number].tags.get(_WITHDRAWN) != withdrawn:
                    self._client.set_model_version_tag(model, numbers[number], _WITHDRAWN, withdrawn)
            else:
                numbers[number] = self._version(registry, number, runs[state.versions[number].candidate], withdrawn)
        self._aliases(model, state.labels, numbers)

    def _registered(self, model: str) -> None:
        if not self._client.search_registered_models(f"name = '{model}'", max_results=1):
            self._client.create_registered_model(model, {"ciml.data": self._data.url})

    def _version(self, registry: Registry, number: int, run_id: str, withdrawn: str) -> str:
        """Register a pushed version; return MLflow's number of it."""
        candidate = registry.state.candidates[registry.state.versions[number].candidate]
        run = self._client.get_run(run_id)
        if run.data.tags.get(_LOGGED) != candidate.digest:
            self._log_model(registry, number, run_id)
            self._client.set_tag(run_id, _LOGGED, candidate.digest)
        tags = {_VERSION: str(number), _WITHDRAWN: withdrawn, "ciml.digest": candidate.digest}
        made = self._client.create_model_version(
            registry.model, f"runs:/{run_id}/{_ARTIFACT}", run_id, tags,
            description=f"ciml model {registry.model}, version {number}",
        )  # fmt: skip
        self.done.new_versions += 1
        self._progress(f"model {registry.model} version {number}")
        return str(made.version)

    def _log_model(self, registry: Registry, number: int, run_id: str) -> None:
        """Log the files of a version, verified, as a model that `ciml.serving.pyfunc` loads."""
        work = Path(tempfile.mkdtemp(prefix="ciml-mlflow-"))
        try:
            copy, source = work / "saved_model", registry.folder(number)
            try:
                digests = copy_model(source, copy)
            except FileNotFoundError:
                digests = {}
            check_digests(source.root, digests, registry.state.files(number))
            save_pyfunc(copy, work / _ARTIFACT)
            self._client.log_artifacts(run_id, str(work / _ARTIFACT), _ARTIFACT)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _aliases(self, model: str, labels: Mapping[str, int], numbers: Mapping[int, str]) -> None:
        """Give each label of ciml to its version; take away those that an earlier export gave and ciml removed."""
        there = self._client.get_registered_model(model)
        for label, number in sorted(labels.items()):
            if there.aliases.get(label) != numbers[number]:
                self._client.set_registered_model_alias(model, label, numbers[number])
        before = json.loads(there.tags.get(_ALIASES, "[]"))
        for label in set(before) - set(labels):
            self._client.delete_registered_model_alias(model, label)
        if sorted(labels) != before:
            self._client.set_registered_model_tag(model, _ALIASES, json.dumps(sorted(labels)))
        self.done.aliases[model] = dict(sorted(labels.items()))


def save_pyfunc(saved_model: Path, folder: Path) -> None:
    """Write a SavedModel of ciml as a model of MLflow: the same files, beside a description with its signature.

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
        inputs=Schema([
            TensorSpec(np.dtype("float32"), shape, "inputs"), TensorSpec(np.dtype("int32"), (-1,), "n_windows"),
        ]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, len(definition.classes)), "probabilities")]),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is no example of an input: the signature says it all
        pyfunc.save_model(
            str(folder), loader_module="ciml.serving.pyfunc", data_path=str(saved_model), signature=signature,
            pip_requirements=[f"ciml[serve]=={__version__}"], metadata={"classes": list(definition.classes)},
        )  # fmt: skip
