"""Output of commands: lines and tables on standard output, texts of cells, progress on standard error."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from ciml.events.records import KIND_WORDS
from ciml.progress import Progress as ProgressCallback
from ciml.progress import no_progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

Key = TypeVar("Key", bound=Any)

#: Minimum time between status lines if standard error is not a terminal, in seconds.
_EVERY_S = 5.0
#: Minimum width of a table if standard output is not a terminal, so that its width is unknown.
_WIDTH = 128


def print_columns(rows: Iterable[Sequence[str]]) -> None:
    """Print rows as aligned columns of `printable` cells.

    It serves commands that work without rich, and pipes to other programs.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def print_lines(lines: Iterable[str]) -> None:
    """Print `printable` lines on standard output, each as soon as the iterable yields it."""
    for line in lines:
        click.echo(printable(line))


def print_warnings(lines: Iterable[str]) -> None:
    """Print `printable` lines on standard error, each as a warning."""
    for line in lines:
        click.echo(f"warning: {printable(line)}", err=True)


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str = "",
    right: Collection[str] = (),
    last_apart: bool = False,
    console: Console | None = None,
) -> None:
    """Print a table of `printable` cells, in which nothing is markup.

    Args:
      headings: of the columns.
      rows: the cells: texts, numbers (also numpy's), or None, which is printed as a dash. A column with a number is
        right-aligned; fractions get three digits.
      title: a line above the table.
      right: headings of further columns to right-align.
      last_apart: whether a line separates the last row, such as a sum.
      console: where to print; None for standard output, at least `_WIDTH` wide elsewhere than on a terminal.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    table = Table(title=escape(title) or None, title_justify="left")
    for number, heading in enumerate(headings):
        numeric = heading in right or any(isinstance(row[number], Real) for row in rows)
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
        return "\n".join(map(printable, cell.split("\n")))
    return f"{cell:,}" if isinstance(cell, Integral) else f"{cell:.3f}"


def minute_of(time_us: int) -> str:
    """Return a time in UTC to the minute; ``time_us`` is in epoch microseconds."""
    return datetime.fromtimestamp(time_us / 1e6, timezone.utc).strftime("%Y-%m-%d %H:%M")


def printable(text: str) -> str:
    """Return a line without characters that would control a terminal."""
    return "".join(character if character.isprintable() or character == "\t" else "\ufffd" for character in text)


def by_frequency(counts: Mapping[Key, int]) -> list[tuple[Key, int]]:
    """Return the keys with their counts: the highest count first, equal counts in the order of the keys."""
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


def age_text(seconds: int | None) -> str:
    """Return an age in the largest unit that gives at least 2. An unknown age is a dash; a negative one is 0 s."""
    if seconds is None:
        return "–"
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{max(seconds, 0)} s"


def counts_text(totals: Mapping[str, int], *always: str) -> str:
    """Return the totals by kind in words. Kinds without any are left out, except for those in ``always``."""
    return ", ".join(
        f"{totals.get(kind, 0):,} {word}" for kind, word in KIND_WORDS.items() if totals.get(kind) or kind in always
    )


def error_console() -> Console:
    """Return a console on standard error; FORCE_COLOR does not make it a terminal."""
    from rich.console import Console

    return Console(stderr=True, force_terminal=sys.stderr.isatty())


@contextmanager
def bars() -> Iterator[ProgressCallback]:
    """Show progress bars on a terminal, one for each part of the work; elsewhere nothing.

    Yields:
      A function of (part, number done, total or None if unknown).
    """
    if not sys.stderr.isatty():
        yield no_progress  # without the import of rich
        return
    with _terminal_bars() as update:
        yield update


class _Update(Protocol):
    """Shows the progress of a part, with a status after its name."""

    def __call__(self, part: str, done: int, total: int | None, status: str = "", /) -> None: ...


@contextmanager
def _terminal_bars() -> Iterator[_Update]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=error_console(), transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def update(part: str, done: int, total: int | None, status: str = "", /) -> None:
            if part not in tasks:
                tasks[part] = progress.add_task(part, total=total)
            progress.update(tasks[part], completed=done, total=total, description=f"{part} {status}".rstrip())

        yield update


@contextmanager
def progress_bar(title: str) -> Iterator[ProgressCallback]:
    """Show one progress bar for all steps of the work, under a title; elsewhere than on a terminal nothing."""
    with bars() as show:
        yield lambda step, done, total: show(title, done, total)


@contextmanager
def counted_bar(title: str, unit: str = "lines") -> Iterator[Callable[[int, int, Mapping[str, int]], None]]:
    """Show a progress bar with rate and counts by kind; elsewhere than on a terminal a line every five seconds.

    The first line comes after five seconds. The last counts are printed by the caller, with the result.

    Yields:
      A function of the number done, the total and the counts by kind.
    """
    start_s = time.monotonic()

    def text(completed: int, total: int, totals: Mapping[str, int]) -> str:
        rate = completed / max(time.monotonic() - start_s, 1e-9)
        remaining = f", {(total - completed) / rate:,.0f} s to go" if rate else ""
        return f"{rate:,.0f}/s{remaining}: {counts_text(totals)}"

    if sys.stderr.isatty():
        with _terminal_bars() as update:
            yield lambda completed, total, totals: update(title, completed, total, text(completed, total, totals))
        return
    status = _Status(error_console(), quiet_until_s=start_s + _EVERY_S)
    yield lambda completed, total, totals: status.update(
        f"{title}: {completed:,} of {total:,} {unit}, {text(completed, total, totals)}"
    )


@contextmanager
def status_line(title: str) -> Iterator[Callable[[str], None]]:
    """Show a status: updated in place on a terminal, elsewhere a line at most every five seconds if it changed.

    The last line is always printed.

    Yields:
      A function of the text after the title.
    """
    from rich.markup import escape

    console = error_console()
    status = _Status(console)
    try:
        if not console.is_terminal:
            yield lambda text: status.update(f"{title}: {text}")
            return
        with console.status(f"{title}: starting") as spinner:

            def show(text: str) -> None:
                status.latest = f"{title}: {text}"
                spinner.update(escape(status.latest))

            yield show
    finally:  # after the spinner, which would overwrite the line
        status.print_latest()


@dataclass
class _Status:
    """The latest line of a status, which may be printed already.

    Attributes:
      console: where lines are printed.
      quiet_until_s: `time.monotonic` before which `update` prints nothing.
      latest, printed: the latest line, and the last one that was printed.
    """

    console: Console
    quiet_until_s: float = -math.inf
    latest: str = ""
    printed: str = ""

    def update(self, line: str) -> None:
        """Replace the latest line, and print it unless a line was printed in the last `_EVERY_S`."""
        self.latest = line
        if time.monotonic() >= self.quiet_until_s:
            self.print_latest()

    def print_latest(self) -> None:
        """Print the latest line unless it is printed already."""
        if self.latest == self.printed:
            return
        self.console.print(self.latest, highlight=False, markup=False, soft_wrap=True)
        self.printed = self.latest
        self.quiet_until_s = time.monotonic() + _EVERY_S
