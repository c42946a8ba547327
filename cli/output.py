"""Output of commands: tables on standard output, progress on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ciml.events.records import KIND_WORDS
from ciml.progress import Progress as ProgressCallback
from ciml.progress import no_progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

#: Time between lines of a status elsewhere than on a terminal, seconds.
_EVERY_S = 5.0
#: Least width of a table in a file or a pipe, whose width is unknown.
_WIDTH = 128


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows as aligned columns, for commands that work without rich and for pipes to other programs."""
    import click

    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def print_warnings(lines: Iterable[str]) -> None:
    """Print lines on standard error, each as a warning."""
    import click

    for line in lines:
        click.echo(f"warning: {line}", err=True)


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str = "",
    right: Collection[str] = (),
    last_apart: bool = False,
    console: Console | None = None,
) -> None:
    """Print a table; nothing in it is markup.

    Args:
      headings: texts.
      rows: cells. Numbers are at the right; fractions get three digits; None is a dash.
      title: a line above it.
      right: headings of further columns at the right.
      last_apart: whether a line separates the last row, such as a sum.
      console: where to print; None for standard output.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    table = Table(title=escape(title) or None, title_justify="left")
    for number, heading in enumerate(headings):
        numeric = heading in right or any(isinstance(row[number], (int, float)) for row in rows)
        table.add_column(Text(heading), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, map(_cell_text, row)))
    if last_apart and len(rows) > 1:
        table.rows[-2].end_section = True
    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = max(console.width, _WIDTH)
    console.print(table)


def _cell_text(cell: Any) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.3f}"


def error_console() -> Console:
    """Return a console on standard error; FORCE_COLOR does not make it a terminal."""
    from rich.console import Console

    return Console(stderr=True, force_terminal=sys.stderr.isatty())


@contextmanager
def bars() -> Iterator[Callable[..., None]]:
    """Show progress bars on a terminal, one for each part of the work; elsewhere nothing.

    Yields:
      A function of (part, number done, total or None if unknown, and perhaps a status).
    """
    if not sys.stderr.isatty():
        yield no_progress  # and nothing is imported
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=error_console(), transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def update(title: str, completed: int, total: int | None, status: str = "") -> None:
            if title not in tasks:
                tasks[title] = progress.add_task(title, total=total)
            progress.update(tasks[title], completed=completed, total=total, description=f"{title} {status}".rstrip())

        yield update


@contextmanager
def progress_bar(title: str) -> Iterator[ProgressCallback]:
    """Show one progress bar for all steps of the work, under a title; elsewhere than on a terminal nothing."""
    with bars() as show:
        yield lambda step, done, total: show(title, done, total)


def counts_text(totals: Mapping[str, int], *always: str) -> str:
    """Return the totals by kind in words; zeros only of the kinds ``always``."""
    return ", ".join(f"{totals[kind]:,} {word}" for kind, word in KIND_WORDS.items() if totals[kind] or kind in always)


@contextmanager
def status_line(title: str, *, is_long: bool = True) -> Iterator[Callable[[str], None]]:
    """Show a status: updated in place on a terminal, elsewhere a line at most every five seconds if it changed.

    Args:
      title: stands before each text.
      is_long: whether the first and the last text are always printed; else only those after each five seconds.

    Yields:
      A function of the text after the title.
    """
    from rich.markup import escape

    console = error_console()
    last = ""
    printed = ""
    printed_at = 0.0 if is_long else time.monotonic()

    def write() -> None:
        nonlocal printed, printed_at
        console.print(last, highlight=False, markup=False, soft_wrap=True)
        printed = last
        printed_at = time.monotonic()

    with console.status(f"{title}: starting") if console.is_terminal else nullcontext() as spinner:

        def show(text: str) -> None:
            nonlocal last
            last = f"{title}: {text}"
            if spinner is not None:
                spinner.update(escape(last))
            elif last != printed and time.monotonic() - printed_at > _EVERY_S:
                write()

        try:
            yield show
        finally:
            if spinner is not None:
                spinner.stop()
            if is_long and last != printed:
                write()


@contextmanager
def counted_bar(title: str, unit: str = "lines") -> Iterator[Callable[[int, int, Mapping[str, int]], None]]:
    """Show a progress bar with rate and counts by kind; elsewhere than on a terminal a status line.

    Yields:
      A function of the number done, the total and the counts by kind.
    """
    begun_s = time.monotonic()

    def text(completed: int, total: int, totals: Mapping[str, int]) -> str:
        rate = completed / max(time.monotonic() - begun_s, 1e-9)
        remaining = f", {(total - completed) / rate:,.0f} s to go" if rate else ""
        return f"{rate:,.0f}/s{remaining}: {counts_text(totals)}"

    if sys.stderr.isatty():
        with bars() as update:
            yield lambda completed, total, totals: update(title, completed, total, text(completed, total, totals))
        return
    with status_line(title, is_long=False) as show:
        yield lambda completed, total, totals: show(
            f"{completed:,} of {total:,} {unit}, {text(completed, total, totals)}"
        )
