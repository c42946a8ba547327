"""The options of an ingest."""

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
    click.option("--topic", default="ci-events", show_default=True, help="Topic of CI events."),
    click.option(
        "--runs-topic",
        default="runs",
        show_default=True,
        metavar="TOPIC",
        help="Topic of committed runs; '' for none.",
    ),
    click.option("--dead-letters-topic", default="", metavar="TOPIC", help="Topic of dead letters.  [default: none]"),
]
_SELECTION = [
    click.option(
        "--job", "jobs", multiple=True, metavar="GLOB", help="Jobs to ingest; may be repeated.  [default: all]"
    ),
    click.option(
        "--source",
        "sources",
        multiple=True,
        metavar="EVENT-SOURCE=NAME",
        help="Name of an event source in run ids and policies, '*' for all others; may be repeated.",
    ),
    click.option(
        "--allow-host",
        "hosts",
        multiple=True,
        metavar="[http://]HOST[:PORT]",
        help="Allowed host of logs, by https unless http:// is given; may be repeated.",
    ),
    click.option(
        "--allow-root",
        "roots",
        multiple=True,
        metavar="FOLDER|s3://PREFIX",
        help="Allowed root of log files or objects; may be repeated.",
    ),
    click.option(
        "--fetch-policy",
        type=click.Path(exists=True, dir_okay=False),
        metavar="FILE",
        help="TOML file of allowed hosts and roots, and limits of logs; options add to it.",
    ),
    click.option(
        "--retry-after",
        "delays",
        multiple=True,
        type=Duration(),
        metavar="TIME",
        help="Delay before a further fetch of an unavailable log; repeated for each fetch."
        "  [default: 10s, 1min, 5min, 30min, 2h]",
    ),
    click.option(
        "--trust-policy",
        type=click.Path(exists=True, dir_okay=False),
        metavar="FILE",
        help="TOML file of the trust policy.  [default: reviewed, gated or merged changes]",
    ),
]
_ENGINES = [
    kafka_properties_option,
    beam_option,
]
#: The options that `make_config` does not take.
APART = ("engine", "home", "beam_options", "metrics_port", "metrics_address")


def ingest_options(*, endings: bool) -> Callable[[F], F]:
    """Return the options of an ingest; with ``endings`` also those that make it end by itself."""
    table = [*_PLACES, *(_ENDINGS if endings else []), *_SELECTION, *_ENGINES, metrics_options]

    def apply(command: F) -> F:
        for option in reversed(table):
            command = option(command)
        return command

    return apply


_ENDINGS = [
    click.option("--once", is_flag=True, help="Stop at the present end of the topic."),
    click.option(
        "--until-idle",
        type=Duration(),
        metavar="TIME",
        help="Time without new events and deferred runs after which it stops.  [default: never]",
    ),
]
