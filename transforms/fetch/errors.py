"""The error for a log that is unavailable now, at any kind of address."""

from __future__ import annotations


class LogUnavailableError(Exception):
    """A log is unavailable now, and perhaps later.

    ``hiccup``: worth one immediate retry. ``retry_after_s``: how long its host asked to wait, 0 where it did not.
    """

    def __init__(self, reason: str, detail: str, hiccup: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.hiccup = hiccup
        self.retry_after_s = retry_after_s
