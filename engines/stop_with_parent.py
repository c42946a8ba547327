"""Ends engines when their parent process is gone: ``python -m engines.stop_with_parent PID STARTED HOME NAME...``.

A test or a demo that is killed cannot clean up after itself; this small process does it then.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from pathlib import Path

from engines import launcher, processes, state


def main(pid: int, started: float, home: Path, names: list[str]) -> None:
    """Wait for the end of a process, then end the engines of those names in ``home``."""
    with contextlib.suppress(ProcessLookupError):
        watched = os.pidfd_open(pid)
        if processes.find(pid, started) is not None:
            select.select([watched], [], [])
    if state.state_file(home).exists():
        launcher.stop(names, home)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
