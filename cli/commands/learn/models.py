"""``ciml refresh``, ``ciml models`` and ``ciml export``: train models, manage their versions, export them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.command import make_command
from ciml.cli.commands.learn.exclude import who_learned
from ciml.cli.commands.learn.versions import COMMANDS
from ciml.cli.options import Data, Json
from ciml.cli.output import print_warnings
from ciml.cli.running import Foreground, find_own_modules, stop_on_signals
from ciml.errors import EngineError, IntegrityError
from ciml.options import argument, flag, option
from ciml.services.options import TrainerOptions

if TYPE_CHECKING:
    from ciml.serving.registry import Registry
    from ciml.training.trainer import TrainResult

#: Exit code if the gate rejects the candidate: not an error, and a script can react.
REJECTED = 5
#: How often a refresh that waits looks whether the model is free, seconds.
_POLL_S = 5.0


class RefreshRunning(Foreground):
    """How ``ciml refresh`` runs.

    Attributes:
      watch: Refresh whenever the data set grows, or once.
      wait: Time to wait for another trainer of the model.
      json: JSON output, one object per refresh.
    """

    watch: bool = flag("--watch/--once")
    wait: float = option(0.0, kind="time")
    json: bool = flag()


@make_command("refresh")
def refresh(options: TrainerOptions, running: RefreshRunning) -> int:
    """Train, evaluate and push a model.

    It trains a candidate on a data set's trusted runs and compares it with the champion on held-out ones. A candidate
    that the gate blesses is pushed; otherwise the reasons are printed, and the exit code is 5. The gate rejects a model
    that one number of the run beats, unless --accept-baseline names the number. While another process or machine
    trains the model, it waits for --wait, and then ends with the exit code 6. Metrics need --watch.

    \b
    Example:
      ciml refresh --dataset provider --data-path data
      ciml refresh --dataset provider --model provider --watch --new-runs 60 --every 7d --data-path data
      ciml refresh --dataset provider --experiment forest.toml --data-path data
    """
    from ciml.training.exclusions import add, read_lines
    from ciml.training.trainer import run_once

    find_own_modules()
    config = options.open(allow_file=True)

    def step(name: str, done: int = 0, total: int | None = None) -> None:
        click.echo(f"{config.model}: {name}", err=True)

    def show(result: TrainResult) -> None:
        if running.json:
            click.echo(json.dumps(result.to_json(config.model), sort_keys=True))
        else:
            click.echo("\n".join(result.lines(config.model)))
        print_warnings(result.warnings)

    if not running.watch:
        add(config.data.exclusions, read_lines(options.exclude))
        result = _when_free(partial(run_once, config, progress=step), running.wait)
        show(result)
        return REJECTED if result.outcome == "rejected" else 0
    from ciml.services.trainer import TrainerService

    running.run(TrainerService(config, show, step, options.triggers(), options.exclude), None, patience_s=None)
    return 0


def _when_free(refresh: Callable[[], TrainResult], wait_s: float) -> TrainResult:
    """Refresh a model, after another trainer of it has ended. Raises `ModelLockedError` if that takes too long."""
    from ciml.serving.lease import ModelLockedError

    deadline_s = time.monotonic() + wait_s
    reported = False
    while True:
        try:
            return refresh()
        except ModelLockedError as error:
            if time.monotonic() >= deadline_s:
                raise
            if not reported:
                click.echo(f"waits: {error}", err=True)
            reported = True
            time.sleep(min(_POLL_S, max(deadline_s - time.monotonic(), 0.0)))


class ModelOptions(Data):
    """The model of a command.

    Attributes:
      model: its name; None for all models.
    """

    model: str | None = argument(required=False)

    def registries(self) -> dict[str, Registry]:
        """Return the registries by the name of the model. Raises `CimlError` for an unknown model."""
        from ciml.serving.registries import known_registries

        return known_registries(self.root, self.model)


class ListOptions(ModelOptions, Json):
    """Options of ``ciml models list``."""


@make_command("list")
def list_models(options: ListOptions) -> None:
    """List candidates, decisions, versions and labels.

    Without MODEL it lists all models. The latest candidate is the last. The command warns about served versions that
    learned from excluded runs.

    \b
    Example:
      ciml models list --data-path data
      ciml models list provider --data-path data --json
    """
    from ciml.training.learned import models_with_excluded_runs

    models = {name: registry_json(registry) for name, registry in options.registries().items()}
    print_warnings(map(str, models_with_excluded_runs(options.root, list(models))))
    options.show(models, _print_models)


def _print_models(models: Mapping[str, dict[str, Any]]) -> None:
    if not models:
        click.echo("no models yet; train one by ciml refresh")
    for name, description in models.items():
        click.echo(f"{name}: {_labels_text(description['labels']) or 'nothing is served'}")
        for candidate in description["candidates"]:
            versions = "".join(
                f"  version {version['number']}" + (" (withdrawn)" if version["withdrawn"] else "")
                for version in candidate["versions"]
            )
            decision = {None: "no decision", True: "blessed", False: "not blessed"}[candidate["blessed"]]
            click.echo(f"  {candidate['time']}  {candidate['id']}  {decision}{versions}")
            for reason in candidate["reasons"]:
                click.echo(f"    {reason}")


def _labels_text(labels: Mapping[str, int]) -> str:
    return ", ".join(f"{label} = {version}" for label, version in labels.items())


def registry_json(registry: Registry) -> dict[str, Any]:
    """Return a registry as JSON: labels, and candidates from the oldest, each with its decision and versions."""
    state = registry.state
    candidates = []
    for candidate in sorted(state.candidates.values(), key=lambda candidate: candidate.time_us):
        decision = state.decisions.get(candidate.id)
        candidates.append(
            {
                "id": candidate.id,
                "time": datetime.fromtimestamp(candidate.time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S"),
                "folder": candidate.folder,
                "facts": dict(candidate.facts),
                **(decision.to_json() if decision else {"blessed": None, "reasons": [], "metrics": {}}),
                "versions": [
                    {"number": version.number, "withdrawn": version.withdrawn}
                    for version in sorted(state.versions.values(), key=lambda version: version.number)
                    if version.candidate == candidate.id and version.state == "pushed"
                ],
            }
        )
    return {"labels": dict(sorted(state.labels.items())), "served": state.served(), "candidates": candidates}


@make_command("verify")
def verify_models(options: ModelOptions) -> int:
    """Verify the files of all versions.

    It compares them with the registry. The exit code is 4 if a file was altered, is missing or is not registered.

    \b
    Example:
      ciml models verify --data-path data
    """
    from ciml.serving.registries import verify_versions

    faults = 0
    for name in options.registries():
        fault_by_version = verify_versions(options.root, name)
        for version, fault in fault_by_version.items():
            if fault:
                faults += 1
                click.echo(f"BROKEN {name} {version}: {fault}", err=True)
        intact = sum(not fault for fault in fault_by_version.values())
        click.echo(f"{name}: {intact} of {len(fault_by_version)} versions are as recorded")
    return IntegrityError.exit_code if faults else 0


@make_command("reconcile")
def reconcile_models(options: ModelOptions) -> None:
    """Repair the state after interrupted pushes.

    It removes partial versions and rewrites the model server's configuration.

    \b
    Example:
      ciml models reconcile --data-path data
    """
    from ciml.serving.push import reconcile

    lines = []
    for name, registry in options.registries().items():
        lines += [f"{name}: {line}" for line in reconcile(registry)]
    click.echo("\n".join(lines) or "nothing to do")


class MirrorOptions(Data):
    """Options of ``ciml models mirror``.

    Attributes:
      watch: Repeat until a signal, or copy once. [default: once]
      poll_seconds: Interval of --watch.
    """

    folder: Path = argument(kind=click.Path(file_okay=False, path_type=Path))
    watch: bool = flag("--watch/--once")
    poll_seconds: float = option(5.0, click.FloatRange(min=0.1))


@make_command("mirror")
def mirror_models(options: MirrorOptions) -> int:
    """Copy the served models for TensorFlow Serving.

    The image of TensorFlow Serving reads a local folder, not S3, and verifies nothing. FOLDER gets the served versions
    whose files are as registered, and a models.config that names them. The exit code is 4 if a version was left out,
    because its files are missing or altered.

    \b
    Example:
      ciml models mirror /models --data-path s3://ci/data --watch
      tensorflow_model_server --model_config_file=/models/models.config --model_config_file_poll_wait_seconds=5
    """
    stop = stop_on_signals()
    reported: set[str] = set()
    while True:
        try:
            faults = _mirror_once(options)
        except EngineError as error:
            if not options.watch:
                raise
            faults = {f"{error}; trying again"}
        for fault in sorted(faults - reported):  # a lasting fault is reported once
            click.echo(fault, err=True)
        reported = faults
        if not options.watch:
            return IntegrityError.exit_code if faults else 0
        if stop.wait(options.poll_seconds):
            return 0


def _mirror_once(options: MirrorOptions) -> set[str]:
    """Copy new versions, and return the faults of the versions that were left out."""
    from ciml.serving.mirror import mirror

    mirrored = mirror(options.root, options.folder.absolute())
    for model, version in mirrored.copied:
        click.echo(f"{model}: version {version} is in the mirror")
    return {f"BROKEN {fault}" for fault in mirrored.faults}


@click.group("models", commands=[list_models, *COMMANDS, who_learned, verify_models, reconcile_models, mirror_models])
def command() -> None:
    """List, compare, promote and withdraw models.

    \b
    Example:
      ciml models list --data-path data
      ciml models rollback provider --reason "worse since Monday" --data-path data
      ciml models verify --data-path data
    """


class MlflowOptions(Data, Json):
    """Options of ``ciml export mlflow``.

    Attributes:
      tracking_uri: MLflow's tracking and registry: a server's address, or sqlite:///FILE.
    """

    tracking_uri: str = option(metavar="URI", envvar="MLFLOW_TRACKING_URI", required=True)


@make_command("mlflow")
def mlflow_command(options: MlflowOptions) -> None:
    """Export results, candidates and versions to MLflow.

    Trials and candidates become runs, pushed versions become versions of registered models, labels become aliases.
    Existing entries are unchanged: repeat the command to add new ones, or after an interruption.

    \b
    Example:
      ciml export mlflow --tracking-uri sqlite:///mlflow.db --data-path data
    """
    from ciml.extras import require

    require("mlflow", "mlflow")
    from ciml.pipelines.mlflow import export_to_mlflow

    data = options.root
    exported = export_to_mlflow(data, options.tracking_uri, lambda line: click.echo(line, err=True))
    if options.json:
        click.echo(json.dumps(exported.to_json(), sort_keys=True))
        return
    versions = f"{exported.versions} versions of models, {exported.new_versions} new"
    click.echo(f"{exported.runs} runs, {exported.new_runs} new; {versions}")
    for model, labels in exported.aliases.items():
        click.echo(f"{model}: {_labels_text(labels)}")


@click.group("export", commands=[mlflow_command])
def export() -> None:
    """Export experiments and models to MLflow.

    \b
    Example:
      ciml export mlflow --tracking-uri http://mlflow.example.org --data-path data
    """
