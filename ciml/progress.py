"""The protocol of progress callbacks."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A function that reports the progress of a long operation."""

    def __call__(self, step: str, done: int, total: int | None, /) -> None:
        """Report progress.

        Args:
          step: the items that are counted, or the step that runs, such as ``runs``, ``epochs`` or ``train``.
          done: number of completed units of the step.
          total: their total; None if it is unknown.
        """


def no_progress(step: str, done: int, total: int | None, /) -> None:
    """Ignore progress: the default of functions that call a `Progress`."""


def renamed(progress: Progress, step: str) -> Progress:
    """Return a callback that reports another name for each step."""
    return lambda _, done, total: progress(step, done, total)
