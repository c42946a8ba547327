"""The filters of all ``ciml dead-letters`` commands."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from ciml.cli.options import Option, stacked
from ciml.cli.param_types import Duration

if TYPE_CHECKING:
    from ciml.runs.dead_letters import Choice

#: The filters' names.
FILTERS = ("reasons", "jobs", "topics", "runs", "since", "until")


def _glob(option: str, name: str, what: str) -> Option:
    return click.option(option, name, multiple=True, metavar="GLOB", help=f"{what}; may be repeated.  [default: all]")


#: The filters, as ``reasons, jobs, topics, runs, since, until``.
choice_options = stacked(
    _glob("--reason", "reasons", "Reason of the dead letters"),
    _glob("--job", "jobs", "Job of the dead letters, '' for an unknown one"),
    _glob("--topic", "topics", "Topic of the dead letters, 'listing:*' for listings"),
    _glob("--run", "runs", "Run id of the dead letters, '' for an undecoded one"),
    click.option("--since", type=Duration(), metavar="TIME", help="Maximum age, such as 7d.  [default: none]"),
    click.option("--until", type=Duration(), metavar="TIME", help="Minimum age, such as 7d.  [default: none]"),
)


def choice_of(
    reasons: tuple[str, ...],
    jobs: tuple[str, ...],
    topics: tuple[str, ...],
    runs: tuple[str, ...],
    since: float | None,
    until: float | None,
) -> Choice:
    """Return the choice of the filters."""
    from ciml.runs.dead_letters import Choice

    now_us = time.time_ns() // 1000
    return Choice(
        reasons or ("*",),
        jobs or ("*",),
        topics or ("*",),
        runs or ("*",),
        None if since is None else now_us - round(since * 1e6),
        None if until is None else now_us - round(until * 1e6),
    )
