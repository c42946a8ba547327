"""Cleans up after the end of another process: for tests and demos, which may be killed.

``python -m ciml.engines.stop_with_parent PID STARTED HOME NAME...`` stops engines of a home.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from ciml.engines import launcher, processes, state


def stop_with(process: tuple[int, float] | None, end: Callable[[], object]) -> None:
    """Call ``end`` in a thread after the end of the process with that pid and start time. Do nothing for None."""
    if process is None:
        return

    def wait() -> None:
        _wait(*process)
        end()

    threading.Thread(target=wait, name="stop-with", daemon=True).start()


def _wait(pid: int, started: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        watched = os.pidfd_open(pid)
        if processes.find(pid, started) is not None:
            select.select([watched], [], [])


def main(pid: int, started: float, home: Path, names: list[str]) -> None:
    """Wait for the end of a process, then stop the named engines in ``home``."""
    _wait(pid, started)
    if state.state_file(home).exists():
        launcher.stop(names, home)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
