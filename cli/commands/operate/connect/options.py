"""Options that all systems share, and values that are asked for on a terminal."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ciml.cli.options import Option, data_path_option, engines_home_option, kafka_options, stacked
from ciml.cli.param_types import Duration


def connect_options(name: str) -> Option:
    """Options of each command. ``name`` is the default name of the source."""
    return stacked(
        click.option("--name", default=name, metavar="NAME", help="Source in run ids and trust policies."),
        click.option(
            "--folder",
            type=click.Path(file_okay=False, path_type=Path),
            default=".",
            metavar="FOLDER",
            help="Folder of receivers.toml, fetch.toml, trust.toml and secrets.",
        ),
        click.option("--force", is_flag=True, help="Replace a source of this name that has other settings."),
        click.option(
            "--wait",
            "wait_s",
            type=Duration(),
            is_flag=False,
            flag_value="10min",
            metavar="[TIME]",
            help="Wait for the first event, up to 10min or TIME; with --data-path for its run too.",
        ),
        engines_home_option,
        data_path_option(required=False, home=False, creates=True),
        click.option("--topic", default="ci-events", metavar="TOPIC", help="Topic that ciml ingest reads."),
        kafka_options(required=False),
    )


#: ``--url``, as ``url``: text or None.
url_option = click.option(
    "--url", metavar="URL", help="Public address of the receiver of webhooks, such as https://ci.example.org."
)
#: ``--feedback``, as ``feedback``: a flag.
feedback_option = click.option("--feedback", is_flag=True, help="Also comment on the changes of failed runs.")
#: ``--internal``, as ``internal``: a flag.
internal_option = click.option("--internal", is_flag=True, help="Names of log hosts have private addresses.")


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
