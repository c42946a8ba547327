"""The filters of all ``ciml dead-letters`` commands."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.param_types import Duration

if TYPE_CHECKING:
    from ciml.raw.dead_letters import Choice

F = TypeVar("F", bound=Callable[..., Any])
#: The filters' names.
FILTERS = ("reasons", "jobs", "topics", "runs", "since", "until")


def choice_options(command: F) -> F:
    """The filters, as ``reasons, jobs, topics, runs, since, until``."""
    globs = [
        ("--reason", "reasons", "Reason of the dead letters"),
        ("--job", "jobs", "Job of the dead letters, '' for an unknown one"),
        ("--topic", "topics", "Topic of the dead letters, 'listing:*' for listings"),
        ("--run", "runs", "Run id of the dead letters, '' for an undecoded one"),
    ]
    table = [
        click.option(option, name, multiple=True, metavar="GLOB", help=f"{what}; may be repeated.  [default: all]")
        for option, name, what in globs
    ]
    table += [
        click.option("--since", type=Duration(), metavar="TIME", help="Maximum age, such as 7d.  [default: none]"),
        click.option("--until", type=Duration(), metavar="TIME", help="Minimum age, such as 7d.  [default: none]"),
    ]  # fmt: skip
    for option in reversed(table):
        command = option(command)
    return command


def choice_of(
    reasons: tuple[str, ...],
    jobs: tuple[str, ...],
    topics: tuple[str, ...],
    runs: tuple[str, ...],
    since: float | None,
    until: float | None,
) -> Choice:
    """Return the choice of the filters."""
    from ciml.raw.dead_letters import Choice

    now_us = time.time_ns() // 1000
    return Choice(
        reasons or ("*",),
        jobs or ("*",),
        topics or ("*",),
        runs or ("*",),
        None if since is None else now_us - round(since * 1e6),
        None if until is None else now_us - round(until * 1e6),
    )
