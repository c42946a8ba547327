"""Ends something when another process is gone: for tests, which may be killed before they can clean up."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable

from engines import processes


def tie(process: tuple[int, float] | None, end: Callable[[], object]) -> None:
    """Call ``end``, from a thread, once the process of that pid and start time is gone. Never for None."""
    if process is None:
        return

    def wait() -> None:
        with contextlib.suppress(ProcessLookupError):
            watched = os.pidfd_open(process[0])
            if processes.find(*process) is not None:
                select.select([watched], [], [])
        end()

    threading.Thread(target=wait, name="tied", daemon=True).start()
