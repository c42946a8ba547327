"""Options that all systems share, and values that are asked for on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from cli.options import (
    data_path_option,
    home_option,
    kafka_config_option,
    kafka_option,
    kafka_properties_option,
)
from cli.param_types import Duration

F = TypeVar("F", bound=Callable[..., Any])


def connect_options(name: str) -> Callable[[F], F]:
    """Options of each command. ``name`` is the default name of the source."""

    def add(command: F) -> F:
        for option in (
            kafka_properties_option,
            kafka_config_option,
            kafka_option(required=False),
            click.option(
                "--topic", default="ci-events", show_default=True, metavar="TOPIC", help="Topic that ciml ingest reads."
            ),
            data_path_option(required=False, home=False, creates=True),
            partial(home_option, expose_value=False),
            click.option(
                "--wait",
                "wait_s",
                type=Duration(),
                is_flag=False,
                flag_value="10min",
                metavar="[TIME]",
                help="Wait for the first event, up to 10min or TIME; with --data-path for its run too.",
            ),
            click.option("--force", is_flag=True, help="Replace a source of this name that has other settings."),
            click.option(
                "--folder",
                type=click.Path(file_okay=False, path_type=Path),
                default=".",
                show_default=True,
                metavar="FOLDER",
                help="Folder of receivers.toml, fetch.toml, trust.toml and secrets.",
            ),
            click.option(
                "--name", default=name, show_default=True, metavar="NAME", help="Source in run ids and trust policies."
            ),
        ):
            command = option(command)
        return command

    return add


def url_option(command: F) -> F:
    """``--url``, as ``url``: text or None."""
    text = "Public address of the receiver of webhooks, such as https://ci.example.org."
    return click.option("--url", metavar="URL", help=text)(command)


def internal_option(command: F) -> F:
    """``--internal``, as ``internal``: a flag."""
    return click.option("--internal", is_flag=True, help="Names of log hosts have private addresses.")(command)


def asked(value: str | None, option: str, what: str, example: str) -> str:
    """Return a value that was given, else ask for it on a terminal.

    Raises:
      click.UsageError: there is no terminal.
    """
    if value:
        return value
    if not sys.stdin.isatty():
        raise click.UsageError(f"missing {option}: the {what}, such as {example}")
    answer: str = click.prompt(f"{what[0].upper()}{what[1:]}, such as {example}")
    return answer
