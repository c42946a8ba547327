"""Steps of a long run with progress and duration. Steps may overlap."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ciml.cli.demo.report.result import StepLine

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


@dataclass
class Step:
    """One step. `report` may be called from any thread."""

    name: str
    began: float
    word: str = ""
    took: float | None = None

    def report(self, word: str) -> None:
        """Report progress in a few words; the last report stays beside the finished step."""
        self.word = word


@dataclass
class Steps:
    """A live list of steps on a terminal, elsewhere a line at the start and the end of a step.

    Attributes:
      began: `time.monotonic` of the start.
      steps: in the order in which they began.
    """

    console: Any
    began: float = field(default_factory=time.monotonic)
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._live: Any = None

    def __enter__(self) -> Steps:
        if self.console.is_terminal:
            from rich.live import Live

            self._live = Live(get_renderable=self._table, console=self.console, refresh_per_second=8, transient=False)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Run a step; it has finished or failed on leaving."""
        one = Step(name, time.monotonic() - self.began)
        with self._lock:
            self.steps.append(one)
        self._print(f"{self._clock(one.began)}  {name} …")
        mark = "✗"
        try:
            yield one
            mark = "✓"
        finally:
            one.took = time.monotonic() - self.began - one.began
            if mark == "✗":
                one.report(f"failed {one.word}".rstrip())
            self._print(f"{self._clock(one.began + one.took)}  {mark} {name}, {one.took:.1f} s  {one.word}".rstrip())

    def seconds(self) -> float:
        """Return the time since the start, in seconds."""
        return time.monotonic() - self.began

    def lines(self) -> list[StepLine]:
        """Return the steps for the report."""
        now = time.monotonic() - self.began
        with self._lock:
            return [
                StepLine(
                    name=one.name,
                    began_s=round(one.began, 2),
                    took_s=round(one.took if one.took is not None else now - one.began, 2),
                )
                for one in self.steps
            ]

    def _print(self, line: str) -> None:
        if self._live is None:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    @staticmethod
    def _clock(seconds: float) -> str:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        now = time.monotonic() - self.began
        table = Table.grid(padding=(0, 1))
        table.add_column(width=2)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(style="dim", overflow="ellipsis", no_wrap=True)
        with self._lock:
            for one in self.steps:
                over = one.took is not None
                failed = over and one.word.startswith("failed")
                mark = Text("✗", "red") if failed else Text("✓", "green") if over else Text(_spin(now), "cyan")
                took = one.took if one.took is not None else now - one.began
                name = Text(one.name, "" if over else "bold")
                table.add_row(mark, name, f"{took:.1f} s", Text(one.word))
        table.add_row("", Text("in all", "dim"), Text(self._clock(now), "dim"), "")
        return table


def _spin(now: float) -> str:
    return _SPINNER[int(now * 8) % len(_SPINNER)]
