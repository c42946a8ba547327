"""Options of policies: trust, fetch, and runs excluded from training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def _file_option(name: str, text: str) -> Callable[[F], F]:
    return click.option(name, type=click.Path(exists=True, dir_okay=False), metavar="FILE", help=text)


def trust_policy_option(command: F) -> F:
    """``--trust-policy``, as ``trust_policy``: a path, or None."""
    text = "TOML file of the trust policy.  [default: what Zuul reviewed, gated or merged, and backfills]"
    return _file_option("--trust-policy", text)(command)


def fetch_policy_option(command: F) -> F:
    """``--fetch-policy``, as ``fetch_policy``: a path, or None."""
    text = "TOML file of allowed hosts and roots, and limits of logs; options add to it."
    return _file_option("--fetch-policy", text)(command)


def fetch_options(command: F) -> F:
    """``--allow-host``, ``--allow-root`` and ``--fetch-policy``, as ``hosts``, ``roots`` and ``fetch_policy``."""
    host = "Allowed host of logs, by https unless http:// is given; may be repeated."
    root = "Allowed root of log files or objects; may be repeated."
    for option in (
        fetch_policy_option,
        click.option("--allow-root", "roots", multiple=True, metavar="FOLDER|s3://PREFIX", help=root),
        click.option("--allow-host", "hosts", multiple=True, metavar="[http://]HOST[:PORT]", help=host),
    ):
        command = option(command)
    return command


def sources_option(command: F) -> F:
    """``--source``, as ``sources``: a tuple of ``EVENT-SOURCE=NAME``."""
    text = "Name of an event source in run ids and policies, '*' for all others; may be repeated."
    return click.option("--source", "sources", multiple=True, metavar="EVENT-SOURCE=NAME", help=text)(command)


def learn_from_options(command: F) -> F:
    """``--trust-policy`` and ``--exclude``, as ``trust_policy`` and ``exclude``: paths, or None."""
    text = "File of runs excluded from training: one run id a line, optionally with a blank and a reason."
    return trust_policy_option(_file_option("--exclude", text)(command))
