"""Commands under ``ciml record``, as a CI system starts them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
_CI = ("GITHUB_", "GITLAB_", "CI_", "ZUUL_", "CIML_", "RUNNER_", "BUILD_TAG", "JENKINS_")


def environment(**more: str) -> dict[str, str]:
    """That of this process without what a CI system may have said in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_CI)}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def recorder(spool: Path, *options: str | bytes) -> list[str | bytes]:
    """The command line of ``ciml record`` up to the command."""
    python = os.environ.get("CIML_RECORDER_PYTHON", sys.executable)  # tests/project/test_interpreters.py sets it
    return [python, "-m", "ciml", "record", "--spool", str(spool), *options, "--"]


def record(
    spool: Path, *options: str, command: Sequence[str], env: Mapping[str, str] | None = None, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Runs a command, recorded, to its end."""
    return subprocess.run(
        [*recorder(spool, *options), *command], capture_output=True, text=True, timeout=60,
        env=environment(**(env or {})), **more,
    )  # fmt: skip


def shell_until(condition: str) -> list[str]:
    """A command that ends once a condition of the shell is true."""
    return ["sh", "-c", f"until {condition}; do sleep 0.1; done"]


def wait_for(what: Callable[[], Any], most_s: float = 30.0) -> Any:
    """What it returns, once that is true."""
    deadline = time.monotonic() + most_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.02)
    return found


def worker_of(pid: int) -> psutil.Process:
    """The process that records beside the command of the recorder ``pid``: it has a session of its own."""

    def find() -> psutil.Process | None:
        children = psutil.Process(pid).children()
        return next((each for each in children if os.getsid(each.pid) == each.pid), None)

    return wait_for(find)
