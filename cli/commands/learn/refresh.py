"""``ciml refresh``: train a candidate on a data set, and push it if the gate blesses it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from ciml.cli.command import make_command
from ciml.cli.running import Foreground
from ciml.options import flag
from ciml.services.options import TrainerOptions

if TYPE_CHECKING:
    from ciml.training.trainer import TrainResult

#: Exit code if the gate rejects the candidate: not an error, and a script can react.
REJECTED = 5


class RefreshRunning(Foreground):
    """How ``ciml refresh`` runs.

    Attributes:
      watch: Refresh whenever the data set grows, or a single one.
      json: JSON output, one object a line for each refresh.
    """

    watch: bool = flag("--watch/--once")
    json: bool = flag()


@make_command("refresh")
def command(options: TrainerOptions, running: RefreshRunning) -> int:
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
        if running.json:
            click.echo(json.dumps(result.to_json(config.model), sort_keys=True))
        else:
            click.echo("\n".join(result.lines(config.model)))
        for line in result.warnings:
            click.echo(f"warning: {line}", err=True)

    if not running.watch:
        result = run_once(config, progress=step)
        show(result)
        return REJECTED if result.outcome == "rejected" else 0
    from ciml.services.trainer import TrainerService

    running.run(TrainerService(config, show, step), None, patience_s=None)
    return 0
