"""Options of the commands that learn: whose runs may be learned from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def learn_from_options(command: F) -> F:
    """``--trust-policy`` and ``--exclude``, as ``trust_policy`` and ``exclude``: paths, or None."""
    for option in (
        click.option(
            "--exclude",
            type=click.Path(exists=True, dir_okay=False),
            metavar="FILE",
            help="Runs that must not be learned from: a run id a line, perhaps with a reason after a blank.",
        ),
        click.option(
            "--trust-policy",
            type=click.Path(exists=True, dir_okay=False),
            metavar="FILE",
            help="TOML: which runs may be learned from.  [default: reviewed, gated or merged work]",
        ),
    ):
        command = option(command)
    return command


def read_exclusions(path: str | None) -> dict[str, str]:
    """The reason by run id, from the file of ``--exclude``; none without a file."""
    exclusions = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines() if path else ():
        run_id, _, reason = line.strip().partition(" ")
        if run_id and not run_id.startswith("#"):
            exclusions[run_id] = reason.strip() or "excluded"
    return exclusions
