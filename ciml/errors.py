"""Errors for people, and refusals for data."""

from __future__ import annotations


class CimlError(Exception):
    """What a user did or has that ciml cannot work with: one clear line that names the remedy.

    The command line prints the message alone, without a traceback, and exits with ``exit_code``.
    """

    exit_code = 2


class EngineError(CimlError):
    """A broker, a runner, a store or a model server is not there or answers with an error."""

    exit_code = 3


class IntegrityError(CimlError):
    """What is stored contradicts itself: a digest, a count, a version. Never mended silently."""

    exit_code = 4


class RejectedInput(Exception):
    """An input that cannot be used. It becomes a dead letter with ``reason`` and ``detail``.

    Attributes:
      reason: a short word of a closed set, fit for a metric's label, such as ``broken_json``.
      detail: one line for people; names the field or the line and what was wrong with it.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[RejectedInput], tuple[str, str]]:
        return RejectedInput, (self.reason, self.detail)


def let_go(error: Exception) -> None:
    """Drop what an exception that is kept holds: the frames that raised it, and with them the input's buffers.

    A frame that stores the exception which it caught is a cycle, and stays until the collector happens to look.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None
