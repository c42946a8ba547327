"""What happens to the machine of a job: it is busy with other work, the tests are killed, or they stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal, TypeAlias

Trouble: TypeAlias = Literal["none", "starved", "killed", "stopped"]
Hogs: TypeAlias = list[subprocess.Popen[bytes]]
_SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
#: Takes nearly all of a processor's time from processes of usual priority, for some seconds.
_HOG = (sys.executable, "-c", "import time\nuntil = time.monotonic() + 10\nwhile time.monotonic() < until: pass")


def strike(pid: int, trouble: Trouble) -> None:
    """Let a trouble happen to a process. Hogs, which starve it, are started by themselves."""
    if trouble in _SIGNALS:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, _SIGNALS[trouble])


def start_hogs() -> Hogs:
    """Start the other work: two processes for each processor. It ends after some seconds, or by `end_hogs`."""
    return [_hog() for _ in range(2 * (os.cpu_count() or 1))]


def end_hogs(hogs: Hogs) -> None:
    """End the other work; the list is empty then."""
    while hogs:
        one = hogs.pop()
        one.kill()
        one.wait()


def _hog() -> subprocess.Popen[bytes]:
    one = subprocess.Popen(_HOG, start_new_session=True)
    with contextlib.suppress(OSError):  # where Linux shares processors among sessions, priority is the session's
        Path(f"/proc/{one.pid}/autogroup").write_text("-16")
    os.setpriority(os.PRIO_PROCESS, one.pid, -16)
    return one
