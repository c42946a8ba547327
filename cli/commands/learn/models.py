"""``ciml models``: candidates, decisions, versions and labels of the registry; rollback, mirror."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.foreground import stop_on_signals
from ciml.cli.options import data_path_option
from ciml.data_root import DataRoot
from ciml.errors import EngineError

if TYPE_CHECKING:
    from ciml.serving.registry import Registry


@click.group("models")
def command() -> None:
    """List, verify, roll back and mirror models.

    \b
    Example:
      ciml models list --data-path data
      ciml models rollback provider --data-path data
      ciml models verify --data-path data
    """


@command.command("list")
@click.argument("model", required=False)
@data_path_option()
@click.option("--json", "as_json", is_flag=True, help="JSON output.")
def list_models(model: str | None, data_path: str, as_json: bool) -> None:
    """List candidates, decisions, versions and labels.

    Without MODEL it lists all models. The latest candidate is the last. A served version that learned from runs which
    are excluded now gets a warning.

    \b
    Example:
      ciml models list --data-path data
      ciml models list provider --data-path data --json
    """
    from ciml.training.trainer import learned_excluded

    models = {name: as_dict(registry) for name, registry in _registries(data_path, model).items()}
    for line in learned_excluded(DataRoot.open(data_path), list(models)):
        click.echo(f"warning: {line}", err=True)
    if as_json:
        click.echo(json.dumps(models, indent=2))
        return
    if not models:
        click.echo("no models yet; train one by ciml refresh")
    for name, description in models.items():
        labels = (
            ", ".join(f"{label} = {version}" for label, version in description["labels"].items()) or "nothing is served"
        )
        click.echo(f"{name}: {labels}")
        for candidate in description["candidates"]:
            versions = "".join(
                f"  version {version['number']}" + (" (withdrawn)" if version["withdrawn"] else "")
                for version in candidate["versions"]
            )
            decision = {None: "no decision", True: "blessed", False: "not blessed"}[candidate["blessed"]]
            click.echo(f"  {candidate['time']}  {candidate['id']}  {decision}{versions}")
            for reason in candidate["reasons"]:
                click.echo(f"    {reason}")


def as_dict(registry: Registry) -> dict[str, Any]:
    """Return a registry as JSON: labels and candidates in order, each with its decision and versions."""
    state = registry.state
    candidates = []
    for candidate in sorted(state.candidates.values(), key=lambda version: version.time_us):
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


@command.command("rollback")
@click.argument("model")
@data_path_option()
@click.option("--version", type=click.IntRange(1), help="Version to serve.  [default: the previous one]")
@click.option("--label", default="stable", help="Label to move.")
def rollback_model(model: str, data_path: str, version: int | None, label: str) -> None:
    """Move a label to an earlier version.

    Later versions are withdrawn until a rollback names them with --version.

    \b
    Example:
      ciml models rollback provider --data-path data
      ciml models rollback provider --version 3 --data-path data
    """
    from ciml.serving.push import rollback

    moved = rollback(DataRoot.open(data_path), model, version, label=label)
    click.echo(f"{model}: {moved.label} = {moved.version}")


@command.command("verify")
@click.argument("model", required=False)
@data_path_option()
def verify_models(model: str | None, data_path: str) -> int:
    """Verify the files of all versions.

    It compares them with the registry. The exit code is 4 if a file was altered, is missing or is not registered.

    \b
    Example:
      ciml models verify --data-path data
    """
    from ciml.serving.push import verify_versions

    faults = 0
    for name in _registries(data_path, model):
        fault_by_version = verify_versions(DataRoot.open(data_path), name)
        for version, fault in fault_by_version.items():
            if fault:
                faults += 1
                click.echo(f"BROKEN {name} {version}: {fault}", err=True)
        intact = sum(not fault for fault in fault_by_version.values())
        click.echo(f"{name}: {intact} of {len(fault_by_version)} versions are as recorded")
    return 4 if faults else 0


@command.command("reconcile")
@click.argument("model", required=False)
@data_path_option()
def reconcile_models(model: str | None, data_path: str) -> None:
    """Repair the state after interrupted pushes.

    It removes partial versions and rewrites the model server's configuration.

    \b
    Example:
      ciml models reconcile --data-path data
    """
    from ciml.serving.push import reconcile

    lines = []
    for name, registry in _registries(data_path, model).items():
        lines += [f"{name}: {line}" for line in reconcile(registry)]
    click.echo("\n".join(lines) or "nothing to do")


@command.command("mirror")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@data_path_option()
@click.option("--watch/--once", default=False, help="Repeat until a signal, or once.  [default: once]")
@click.option(
    "--poll-seconds", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="Interval of --watch."
)
def mirror_models(folder: Path, data_path: str, watch: bool, poll_seconds: float) -> int:
    """Copy the served models for TensorFlow Serving.

    Its own image reads a local folder, no S3, and verifies nothing. FOLDER gets the served versions, compared with the
    registry, and a models.config that names them. The exit code is 4 if a version was left out, because its files are
    missing or altered; the others are there.

    \b
    Example:
      ciml models mirror /models --data-path s3://ci/data --watch
      tensorflow_model_server --model_config_file=/models/models.config --model_config_file_poll_wait_seconds=5
    """
    from ciml.serving.mirror import mirror

    data = DataRoot.open(data_path)
    stop = stop_on_signals()
    reported = set[str]()
    while True:
        faults = set[str]()
        try:
            mirrored = mirror(data, folder.absolute())
        except EngineError as error:
            if not watch:
                raise
            faults.add(f"{error}; trying again")
        else:
            for model, version in mirrored.copied:
                click.echo(f"{model}: version {version} is in the mirror")
            faults.update(f"BROKEN {fault}" for fault in mirrored.faults)
        for fault in sorted(faults - reported):
            click.echo(fault, err=True)
        reported = faults
        if not watch:
            return 4 if faults else 0
        if stop.wait(poll_seconds):
            return 0


def _registries(data_path: str, model: str | None) -> dict[str, Registry]:
    from ciml.serving.registry import known_registries

    return known_registries(DataRoot.open(data_path), model)
