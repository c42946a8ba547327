"""The ciml commands that the demo runs as child processes, each with a log; stopped by pid."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ciml.engines import processes
from ciml.errors import EngineError


@dataclass
class Child:
    """A running command ``ciml <arguments>``."""

    name: str
    arguments: tuple[str, ...]
    pid: int
    started: float
    log: Path

    def check(self) -> None:
        """Raise `EngineError` if it has ended."""
        if processes.find(self.pid, self.started) is None:
            raise EngineError(f"ciml {self.name} ended: {processes.last_lines(self.log)} (log: {self.log})")


@dataclass
class Children:
    """The running commands. A context manager that stops them."""

    logs: Path
    cwd: Path
    running: dict[str, Child] = field(default_factory=dict)

    def start(self, name: str, *arguments: str) -> Child:
        """Start ``ciml <arguments>`` with its output in ``<logs>/<name>.log``."""
        log = self.logs / f"{name}.log"
        command = processes.python_command("ciml.cli.main", *arguments)
        environment = {**processes.python_environment(), "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}
        pid, started = processes.spawn(command, log, environment, self.cwd)
        child = self.running[name] = Child(name, arguments, pid, started, log)
        return child

    def check(self) -> None:
        """Raise `EngineError` if one of them has ended."""
        for child in self.running.values():
            child.check()

    def end(self, name: str, grace_s: float = 30.0) -> None:
        """Stop a command, and wait for its end."""
        child = self.running.pop(name, None)
        if child is not None:
            processes.end(child.pid, child.started, grace_s)

    def end_all(self, grace_s: float = 30.0) -> None:
        for name in list(self.running):
            self.end(name, grace_s)

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *error: object) -> None:
        self.end_all(grace_s=5.0)


def wait_for(ready: Callable[[], bool], what: str, children: Children, timeout_s: float, every_s: float = 0.2) -> None:
    """Poll ``ready`` until it is true.

    Raises:
      EngineError: after ``timeout_s``, or if a child process has ended.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        children.check()
        if time.monotonic() > deadline:
            raise EngineError(f"{what}: timed out after {timeout_s:g} s; see the logs in {children.logs}")
        time.sleep(every_s)
