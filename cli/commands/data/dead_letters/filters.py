"""Which letters are meant: the filters that all of ``ciml letters`` share."""

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
        ("--reason", "reasons", "for these reasons"),
        ("--job", "jobs", "of these jobs ('' where the job is not known)"),
        ("--topic", "topics", "of these topics; a listing is 'listing:*'"),
        ("--run", "runs", "of these run ids ('' where it could not be decoded)"),
    ]
    table = [
        click.option(option, name, multiple=True, metavar="GLOB", help=f"Only letters {what}; may be repeated.")
        for option, name, what in globs
    ]
    table += [
        click.option("--since", type=Duration(), metavar="TIME", help="Only letters of the last TIME, as 2h or 7d."),
        click.option("--until", type=Duration(), metavar="TIME", help="Only letters that are older than TIME."),
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
    """What the filters mean."""
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
