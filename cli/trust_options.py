"""Options of the commands that train: trusted and excluded runs."""

from __future__ import annotations

from collections.abc import Callable
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
            help="File of runs excluded from training: one run id a line, optionally with a blank and a reason.",
        ),
        click.option(
            "--trust-policy",
            type=click.Path(exists=True, dir_okay=False),
            metavar="FILE",
            help="TOML file of the trust policy for training.  [default: reviewed, gated or merged changes]",
        ),
    ):
        command = option(command)
    return command
