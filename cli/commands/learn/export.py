"""``ciml export``: experiments and models in the registries of others."""

from __future__ import annotations

import json

import click

from ciml.cli.command import make_command
from ciml.cli.options import Data, Json
from ciml.options import option


class MlflowOptions(Data, Json):
    """Options of ``ciml export mlflow``.

    Attributes:
      tracking_uri: MLflow's tracking and registry: a server's address, or sqlite:///FILE.
    """

    tracking_uri: str = option(metavar="URI", envvar="MLFLOW_TRACKING_URI", required=True)


@make_command("mlflow")
def mlflow_command(options: MlflowOptions) -> None:
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

    data = options.root
    exported = export_to_mlflow(data, options.tracking_uri, lambda line: click.echo(line, err=True))
    if options.json:
        click.echo(json.dumps(exported.to_json(), sort_keys=True))
        return
    versions = f"{exported.versions} versions of models, {exported.new_versions} new"
    click.echo(f"{exported.runs} runs, {exported.new_runs} new; {versions}")
    for model, labels in exported.aliases.items():
        click.echo(f"{model}: {', '.join(f'{label} = {number}' for label, number in labels.items())}")


@click.group("export", commands=[mlflow_command])
def command() -> None:
    """Export experiments and models to MLflow.

    \b
    Example:
      ciml export mlflow --tracking-uri http://mlflow.example.org --data-path data
    """
