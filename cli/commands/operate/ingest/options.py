"""What all ways of running an ingest are told by: one table of options, and the configuration that they mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from cli.options import (
    beam_option,
    data_path_option,
    engine_option,
    home_option,
    kafka_config_option,
    kafka_option,
    kafka_properties_option,
    metrics_options,
)
from cli.param_types import Duration

F = TypeVar("F", bound=Callable[..., Any])


_PLACES = [
    data_path_option(),
    kafka_option(),
    kafka_config_option,
    engine_option,
    home_option,
    click.option("--topic", default="ci-events", show_default=True, help="Where the events are."),
    click.option(
        "--runs-topic",
        default="runs",
        show_default=True,
        metavar="TOPIC",
        help="Where committed runs are announced; '' for nowhere.",
    ),
    click.option(
        "--dead-letters-topic", default="", metavar="TOPIC", help="Where dead letters are told.  [default: nowhere]"
    ),
]
_SELECTION = [
    click.option(
        "--job", "jobs", multiple=True, metavar="GLOB", help="Take only these jobs; may be repeated.  [default: all]"
    ),
    click.option(
        "--source",
        "sources",
        multiple=True,
        metavar="EVENT-SOURCE=NAME",
        help="Name of an event source in run ids and policies; '*' for all others. May be repeated.",
    ),
    click.option(
        "--allow-host",
        "hosts",
        multiple=True,
        metavar="[http://]HOST[:PORT]",
        help="Logs may come from here; https unless http:// is said; may be repeated.",
    ),
    click.option(
        "--allow-root",
        "roots",
        multiple=True,
        metavar="FOLDER|s3://PREFIX",
        help="Logs may be files or objects below here; may be repeated.",
    ),
    click.option(
        "--fetch-policy",
        type=click.Path(exists=True, dir_okay=False),
        metavar="FILE",
        help="TOML: allowed places and limits of logs. Options of the command line are added to it.",
    ),
    click.option(
        "--retry-after",
        "delays",
        multiple=True,
        type=Duration(),
        metavar="TIME",
        help="How long to wait before each further try of a log that is not there; once for each try."
        "  [default: 10s, 1min, 5min, 30min, 2h]",
    ),
    click.option(
        "--trust-policy",
        type=click.Path(exists=True, dir_okay=False),
        metavar="FILE",
        help="TOML: which runs are trusted.  [default: reviewed, gated or merged work]",
    ),
]
_ENGINES = [
    kafka_properties_option,
    beam_option,
]
#: The options that are not `make_config`'s.
APART = ("engine", "home", "beam_options", "metrics_port", "metrics_address")


def ingest_options(*, endings: bool) -> Callable[[F], F]:
    """All options of an ingest; with ``endings`` also those of one that ends by itself."""
    table = [*_PLACES, *(_ENDINGS if endings else []), *_SELECTION, *_ENGINES, metrics_options]

    def apply(command: F) -> F:
        for option in reversed(table):
            command = option(command)
        return command

    return apply


_ENDINGS = [
    click.option("--once", is_flag=True, help="End when what the topic holds now has been settled."),
    click.option(
        "--until-idle",
        type=Duration(),
        metavar="TIME",
        help="End when nothing new came for so long and no log is waited for.",
    ),
]
