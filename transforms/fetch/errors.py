"""The error for a log that is unavailable now, at any kind of address."""

from __future__ import annotations


class LogUnavailableError(Exception):
    """A log is unavailable now, and perhaps later. ``hiccup``: worth one immediate retry."""

    def __init__(self, reason: str, detail: str, hiccup: bool = False) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.hiccup = hiccup
