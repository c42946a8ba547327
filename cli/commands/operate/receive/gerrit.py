"""``ciml receive gerrit``: the receiver of Gerrit's events in the foreground."""

from __future__ import annotations

from typing import Any

import click

from ciml.cli.commands.operate.receive.options import receiver_options, run_sessions
from ciml.cli.options import metrics_options


@click.command("gerrit")
@receiver_options
@metrics_options
def command(metrics_port: int | None, metrics_address: str, **arguments: Any) -> None:
    """Receive events of Gerrit over SSH.

    It reads stream-events, and asks the REST API for what happened while it was away. It connects again after a loss,
    and runs until a signal.

    \b
    Example:
      ciml receive gerrit --config receivers.toml
      ciml receive gerrit --config receivers.toml --topic ci-events --metrics-port 9470
    """
    from ciml.services.receivers import GerritService

    run_sessions(GerritService.of(**arguments), metrics_port, metrics_address)
