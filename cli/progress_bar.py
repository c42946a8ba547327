"""Consoles, and progress bars of long work: one for all of it, or one for each part."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


def error_console() -> Console:
    """Return a console on standard error; FORCE_COLOR does not make it a terminal."""
    from rich.console import Console

    return Console(stderr=True, force_terminal=sys.stderr.isatty())


@contextmanager
def bars() -> Iterator[Callable[[str, int, int | None], None]]:
    """Show progress bars on a terminal, one for each part of the work; elsewhere nothing.

    Yields:
      A function of (part, number done, total or None if unknown).
    """
    if not sys.stderr.isatty():
        yield lambda what, done, total: None  # and nothing is imported
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=error_console(), transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield update


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal, elsewhere nothing. Yields a function of (number done, total)."""
    with bars() as show:
        yield lambda done, total: show(title, done, total)
