"""Progress on standard error: bars, and counts of (event, run) pairs by kind."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from ciml.events.records import KIND_WORDS
from ciml.progress import Progress as ProgressCallback
from ciml.progress import no_progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

_EVERY_S = 5.0


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
        yield no_progress  # and nothing is imported
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=error_console(), transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def update(title: str, completed: int, total: int | None) -> None:
            if title not in tasks:
                tasks[title] = progress.add_task(title, total=total)
            progress.update(tasks[title], completed=completed, total=total)

        yield update


@contextmanager
def progress_bar(title: str) -> Iterator[ProgressCallback]:
    """Show a progress bar on a terminal, elsewhere nothing. Its title stands for each step."""
    with bars() as show:
        yield lambda step, done, total: show(title, done, total)


def counts_text(totals: Mapping[str, int], *always: str) -> str:
    """Return the totals by kind in words, without zeros but of the kinds ``always``."""
    return ", ".join(f"{totals[kind]:,} {word}" for kind, word in KIND_WORDS.items() if totals[kind] or kind in always)


class Counts:
    """A status line: updated in place on a terminal, elsewhere printed at most every five seconds if it changed."""

    def __init__(self, what: str) -> None:
        self._console = error_console()
        self._what = what
        self._status = self._console.status(f"{what}: starting") if self._console.is_terminal else None
        self._last = self._printed = ""
        self._printed_at = 0.0

    def __enter__(self) -> Counts:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()
        if self._last and self._last != self._printed:
            self._console.print(self._last, highlight=False, markup=False, soft_wrap=True)

    def show(self, totals: Mapping[str, int], lag: int) -> None:
        """Show the counts by kind and the lag in offsets."""
        self.update(f"{counts_text(totals, 'run')}; {lag:,} messages to go")

    def update(self, status: str) -> None:
        """Show a status after the title."""
        line = f"{self._what}: {status}"
        if line == self._last:
            return
        self._last = line
        if self._status is not None:
            from rich.markup import escape

            self._status.update(escape(line))
        elif time.monotonic() - self._printed_at > _EVERY_S:
            self._printed_at = time.monotonic()
            self._printed = line
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class Bar:
    """A progress bar with rate and remaining time; elsewhere than on a terminal a line at most every five seconds.

    Attributes:
      seconds: time since it was made, in seconds.
    """

    def __init__(self, what: str, unit: str = "lines") -> None:
        self._console = error_console()
        self._what = what
        self._unit = unit
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._begun = self._printed_at = time.monotonic()
        self._done = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def __enter__(self) -> Bar:
        if self._console.is_terminal:
            from rich.markup import escape
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn(escape(self._what)),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}", markup=False),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=None, status="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, completed: int, total: int, totals: Mapping[str, int]) -> None:
        """Show the number done, the total and the counts by kind."""
        rate = completed / self.seconds if self.seconds > 0 else 0.0
        counts = counts_text(totals)
        if self._bar is not None and self._task is not None:
            status = f"{rate:,.0f}/s{', ' * bool(counts)}{counts}"
            self._bar.update(self._task, completed=completed, total=total, status=status)
        elif completed != self._done and time.monotonic() - self._printed_at > _EVERY_S:
            self._printed_at = time.monotonic()
            self._done = completed
            remaining = f", {(total - completed) / rate:,.0f} s to go" if rate else ""
            line = f"{self._what}: {completed:,} of {total:,} {self._unit}, {rate:,.0f}/s{remaining}: {counts}"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
