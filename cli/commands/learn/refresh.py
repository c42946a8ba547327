"""``ciml refresh``: train a candidate on a data set, and push it if the gate blesses it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from ciml.cli.foreground import Running, service_options
from ciml.cli.options import data_path_option, learn_from_options, metrics_options
from ciml.services.options import TrainerOptions

if TYPE_CHECKING:
    from ciml.training.trainer import TrainResult

#: Exit code if the gate rejects the candidate: not an error, and a script can react.
REJECTED = 5


@click.command("refresh")
@data_path_option()
@click.option("--dataset", required=True, metavar="NAME", help="Data set to train on.")
@click.option("--model", metavar="NAME", help="Name of the served model.  [default: the data set's name]")
@click.option(
    "--experiment",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="TOML file of the estimator and its hyper-parameters.  [default: a small dense network]",
)
@click.option("--watch/--once", default=False, help="Refresh whenever the data set grows, or a single one.")
@learn_from_options
@click.option("--label", default="stable", help="Label of a pushed version.")
@click.option("--min-test-runs", type=click.IntRange(1), help="Minimum held-out runs; the gate rejects on fewer.")
@click.option(
    "--tolerance", type=click.FloatRange(0), help="Accuracy by which a candidate may be worse than the champion."
)
@click.option(
    "--accept-baseline",
    "accept_baselines",
    multiple=True,
    metavar="NUMBER",
    help="Number that may predict better than the model: duration or memory; repeatable.",
)
@click.option(
    "--min-decided",
    type=click.FloatRange(0, 1),
    help="Minimum share of held-out runs that a model of causes decides.  [default: 0.2]",
)
@click.option(
    "--lineage/--no-lineage",
    envvar="CIML_LINEAGE",
    show_envvar=True,
    default=False,
    help="Send OpenLineage events, by its own configuration or to DATA/lineage.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON output, one object a line for each refresh.")
@metrics_options
@service_options(TrainerOptions)
def command(watch: bool, as_json: bool, metrics_port: int | None, metrics_address: str, options: TrainerOptions) -> int:
    """Train, evaluate and push a model.

    It trains a candidate on a data set's trusted runs and compares it with the champion on held-out ones. A candidate
    that the gate blesses is pushed; else the reasons are printed, and the exit code is 5. The gate rejects a model that
    one number of the run beats, unless --accept-baseline names the number. Metrics need --watch.

    \b
    Example:
      ciml refresh --dataset provider --data-path data
      ciml refresh --dataset provider --model provider --watch --data-path data
    """
    from ciml.training.trainer import run_once

    config = options.open()

    def step(name: str, done: int = 0, total: int | None = None) -> None:
        click.echo(f"{config.model}: {name}", err=True)

    def show(result: TrainResult) -> None:
        if as_json:
            click.echo(json.dumps(result.to_json(config.model), sort_keys=True))
        else:
            click.echo("\n".join(result.lines(config.model)))
        for line in result.warnings:
            click.echo(f"warning: {line}", err=True)

    if not watch:
        result = run_once(config, progress=step)
        show(result)
        return REJECTED if result.outcome == "rejected" else 0
    from ciml.services.trainer import TrainerService

    running = Running(metrics_port=metrics_port, metrics_address=metrics_address)
    running.run(TrainerService(config, show, step), None, patience_s=None)
    return 0
