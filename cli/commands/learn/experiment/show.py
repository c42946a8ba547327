"""``ciml experiment show``."""

from __future__ import annotations

import json

import click

from ciml.cli.options import data_path_option, s3_options
from ciml.training.experiments.text import result_lines


@click.command("show")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="JSON output of the stored experiment and results.")
@data_path_option()
@s3_options
def show(name: str | None, as_json: bool, data_path: str) -> None:
    """Show an experiment and its results.

    Without NAME it lists the names of all experiments.

    \b
    Example:
      ciml experiment show wide --data-path DATA
      ciml experiment show --data-path DATA
    """
    from ciml.data_root import DataRoot
    from ciml.training.experiments.trials import experiment_names, load_experiment, results_of

    stored = DataRoot.open(data_path).experiments
    if name is None:
        names = experiment_names(stored)
        click.echo(json.dumps(names) if as_json else "\n".join(names) or f"no experiments in {stored.url()}")
        return
    experiment, results = load_experiment(stored, name), results_of(stored, name)
    if as_json:
        click.echo(json.dumps({"experiment": experiment.to_json(), "results": results}, sort_keys=True))
        return
    defaults = type(experiment)().to_json()
    for key, value in experiment.to_json().items():
        if key in ("name", "estimator") or value != defaults[key]:
            click.echo(f"{key:<15} {value}")
    for result in results:
        click.echo("\n".join(result_lines(result)))
    if not results:
        click.echo(f"not trained yet: ciml experiment train --experiment {name} --dataset NAME --data-path {data_path}")
