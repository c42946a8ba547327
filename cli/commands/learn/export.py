"""``ciml export``: experiments and models in the registries of others."""

from __future__ import annotations

import json

import click

from ciml.cli.options import data_path_option
from ciml.data_root import DataRoot


@click.group("export")
def command() -> None:
    """Export experiments and models to MLflow.

    \b
    Example:
      ciml export mlflow --tracking-uri http://mlflow.example.org --data-path data
    """


@command.command("mlflow")
@data_path_option()
@click.option(
    "--tracking-uri",
    required=True,
    metavar="URI",
    envvar="MLFLOW_TRACKING_URI",
    show_envvar=True,
    help="MLflow's tracking and registry: a server's address, or sqlite:///FILE.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON output.")
def mlflow_command(data_path: str, tracking_uri: str, as_json: bool) -> None:
    """Export results, candidates and versions to MLflow.

    Trials and candidates become runs, pushed versions become versions of registered models, labels become aliases. What
    is there already is left as it is: repeat the command for what is new, or after an interruption.

    \b
    Example:
      ciml export mlflow --tracking-uri sqlite:///mlflow.db --data-path data
    """
    from ciml.extras import require

    require("mlflow")
    from ciml.pipelines.mlflow import export_to_mlflow

    exported = export_to_mlflow(DataRoot.open(data_path), tracking_uri, lambda line: click.echo(line, err=True))
    if as_json:
        click.echo(json.dumps(exported.to_json(), sort_keys=True))
        return
    versions = f"{exported.versions} versions of models, {exported.new_versions} new"
    click.echo(f"{exported.runs} runs, {exported.new_runs} new; {versions}")
    for model, labels in exported.aliases.items():
        click.echo(f"{model}: {', '.join(f'{label} = {number}' for label, number in labels.items())}")
