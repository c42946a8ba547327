"""What a long ingest shows: how many (event, run) there are of each kind, and how many offsets are still to be read."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ciml.accounting import RawState

_EVERY_S = 5.0

WORDS = {
    "run": "runs",
    "repeat": "repeats",
    "correction": "corrections",
    "ignored": "ignored",
    "dead_letter": "dead letters",
    "deferred": "waiting for a log",
}


class Counts:
    """On a terminal one line that changes; elsewhere a line every five seconds in which something changed."""

    def __init__(self, what: str) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._what = what
        self._status = self._console.status(f"{what}: starting") if self._console.is_terminal else None
        self._last = self._printed = ""
        self._said = 0.0

    def __enter__(self) -> Counts:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()
        if self._last and self._last != self._printed:
            self._console.print(self._last, highlight=False, markup=False, soft_wrap=True)

    def show(self, state: RawState, lag: int) -> None:
        """Shows the counts of a state, and the lag in offsets."""
        totals = state.totals()
        parts = [f"{totals[kind]:,} {word}" for kind, word in WORDS.items() if totals[kind] or kind == "run"]
        line = f"{self._what}: {', '.join(parts)}; {lag:,} messages to go"
        if line == self._last:
            return
        self._last = line
        if self._status is not None:
            from rich.markup import escape

            self._status.update(escape(line))
        elif time.monotonic() - self._said > _EVERY_S:
            self._said, self._printed = time.monotonic(), line
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
