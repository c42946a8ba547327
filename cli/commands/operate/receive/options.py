"""What the commands of receivers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ciml.cli.foreground import Running
from ciml.cli.options import engines_home_option, kafka_options, stacked

if TYPE_CHECKING:
    from ciml.services.receivers import SessionReceiver
    from ciml.services.service import Progress

#: ``--config``, as ``config``: an absolute path; `kafka_options`; and ``--topic``. ``--home`` passes no argument.
receiver_options = stacked(
    click.option(
        "--config",
        required=True,
        metavar="FILE",
        envvar="CIML_RECEIVERS",
        show_envvar=True,
        type=click.Path(exists=True, dir_okay=False, resolve_path=True),
        help="TOML file of the receivers and their sources.",
    ),
    engines_home_option,
    kafka_options(),
    click.option("--topic", default="ci-events", metavar="TOPIC", help="Topic that ciml ingest reads."),
)


def run_sessions(service: SessionReceiver, metrics_port: int | None, metrics_address: str) -> None:
    """Run a receiver that connects to its sources, and print when all are connected, and why one is not."""
    shown = ""

    def report(progress: Progress, word: str) -> None:
        nonlocal shown
        line = word if word.startswith("waits: ") else f"receiving {service.receiver}: {service.shown}"
        if line != shown:
            shown = line
            click.echo(line, err=True)

    running = Running(metrics_port=metrics_port, metrics_address=metrics_address)
    running.run(service, report, patience_s=None)
