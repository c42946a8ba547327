"""What the recorder says: single lines on standard error, none of which can fail."""

from __future__ import annotations

import contextlib
import os

_quiet = False


def be_quiet() -> None:
    """Says nothing from now on, in this process and those that it forks."""
    global _quiet
    _quiet = True


def report(line: str) -> None:
    """One line on standard error, written at once; where nobody can hear it, it is lost."""
    if not _quiet:
        with contextlib.suppress(OSError):
            os.write(2, f"ciml record: {' '.join(line.split())}\n".encode(errors="replace"))
