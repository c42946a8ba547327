"""The recorder's messages: single lines on standard error. Printing never fails."""

from __future__ import annotations

import contextlib
import os

_quiet = False


def be_quiet() -> None:
    """Print nothing from now on, in this process and its forks."""
    global _quiet
    _quiet = True


def report(line: str) -> None:
    """Print one line on standard error at once; drop it where standard error is closed."""
    if not _quiet:
        with contextlib.suppress(OSError):
            os.write(2, f"ciml record: {' '.join(line.split())}\n".encode(errors="replace"))
