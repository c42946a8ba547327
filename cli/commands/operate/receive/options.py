"""What the commands of receivers share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.foreground import run_service
from cli.options import (
    MICRO_BATCHES,
    EngineChoice,
    home_option,
    kafka_config_option,
    kafka_option,
    kafka_properties_option,
)

if TYPE_CHECKING:
    from services.receivers.sessions import SessionReceiver
    from services.service import Progress

F = TypeVar("F", bound=Callable[..., Any])


def receiver_options(command: F) -> F:
    """``--config``, as ``config``: an absolute path; ``--topic``; and those of the broker."""
    for option in (
        kafka_properties_option,
        click.option(
            "--topic", default="ci-events", show_default=True, metavar="TOPIC", help="Topic that ciml ingest reads."
        ),
        kafka_config_option,
        kafka_option(),
        partial(home_option, expose_value=False),
        click.option(
            "--config",
            required=True,
            metavar="FILE",
            envvar="CIML_RECEIVERS",
            show_envvar=True,
            type=click.Path(exists=True, dir_okay=False, resolve_path=True),
            help="TOML file of the receivers and their sources.",
        ),
    ):
        command = option(command)
    return command


def run_sessions(service: SessionReceiver, metrics_port: int | None, metrics_address: str) -> None:
    """Run a receiver that connects to its sources, and print when all are connected, and why one is not."""
    shown = ""

    def report(progress: Progress, word: str) -> None:
        nonlocal shown
        line = word if word.startswith("waits: ") else f"receiving {service.receiver}: {service.shown}"
        if line != shown:
            shown = line
            click.echo(line, err=True)

    run_service(
        service, EngineChoice(MICRO_BATCHES), (False, None), report, (), metrics_port, metrics_address,
        *service.metrics.collectors, patience_s=None,
    )  # fmt: skip
