"""Options that receivers share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import click

from cli.options import home_option, kafka_config_option, kafka_option, kafka_properties_option

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
