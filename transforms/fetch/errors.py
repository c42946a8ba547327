"""What a log that is not to be had now raises, wherever it is."""

from __future__ import annotations


class LogUnavailableError(Exception):
    """A log that could not be had now, and perhaps later. ``hiccup``: worth one more try at once."""

    def __init__(self, reason: str, detail: str, hiccup: bool = False) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.hiccup = hiccup
