"""The steps of a long run with their progress, and the ciml commands that run as child processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ciml.cli.demo.result import StepLine
from ciml.engines import processes
from ciml.engines.state import ProcessId
from ciml.errors import EngineError


class Steps:
    """A live list of steps on a terminal; elsewhere a line at the start and at the end of each step. Steps may overlap.

    Args:
      console: a `rich.console.Console`.
    """

    def __init__(self, console: Any) -> None:
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = console
        self._begin_s = time.monotonic()
        self._lines: list[StepLine] = []
        columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}", markup=False))
        word = TextColumn("{task.fields[word]}", style="dim", markup=False)
        self._live = Progress(*columns, TimeElapsedColumn(), word, console=console, disable=not console.is_terminal)

    def __enter__(self) -> Steps:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Run a step, which has finished or failed on leaving.

        Yields:
          A function that reports progress in a few words, from any thread; the last report stays with the step.
        """
        began_s = self.seconds()
        task = self._live.add_task(name, total=1, word="")
        last = ""

        def report(word: str) -> None:
            nonlocal last
            last = word
            self._live.update(task, word=word)

        self._print(began_s, f"{name} …")
        mark = "✗"
        try:
            yield report
            mark = "✓"
        finally:
            took_s = self.seconds() - began_s
            self._lines.append(StepLine(name=name, began_s=round(began_s, 2), took_s=round(took_s, 2)))
            if mark == "✗":
                report(f"failed {last}".rstrip())
            self._live.update(task, completed=1)
            self._print(began_s + took_s, f"{mark} {name}, {took_s:.1f} s  {last}".rstrip())

    def seconds(self) -> float:
        """Return the time since the start, in seconds."""
        return time.monotonic() - self._begin_s

    def lines(self) -> list[StepLine]:
        """Return the finished steps in the order in which they began."""
        return sorted(self._lines, key=lambda line: line.began_s)

    def _print(self, at_s: float, line: str) -> None:
        if not self._console.is_terminal:
            clock = f"{int(at_s) // 60}:{int(at_s) % 60:02d}"
            self._console.print(f"{clock}  {line}", markup=False, highlight=False, soft_wrap=True)


@dataclass
class Child:
    """A running command ``ciml <arguments>``."""

    name: str
    process: ProcessId
    log: Path

    def check(self) -> None:
        """Raise `EngineError` if it has ended."""
        if processes.find(self.process) is None:
            raise EngineError(f"ciml {self.name} ended: {processes.last_lines(self.log)} (log: {self.log})")


@dataclass
class Children:
    """The running commands. A context manager that stops them.

    Args:
      logs: folder of their logs.
      cwd: their working directory.
      environment: variables that all of them get, such as the ones of the data root and the broker.
    """

    logs: Path
    cwd: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    running: dict[str, Child] = field(default_factory=dict)

    def start(self, name: str, *arguments: str) -> Child:
        """Start ``ciml <arguments>`` with its output in ``<logs>/<name>.log``."""
        log = self.logs / f"{name}.log"
        command = processes.python_command("ciml", *arguments)
        environment = {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1", **self.environment}
        child = self.running[name] = Child(name, processes.spawn(command, log, environment, self.cwd), log)
        return child

    def end(self, name: str, grace_s: float = 30.0) -> None:
        """Stop a command, and wait for its end."""
        child = self.running.pop(name)
        processes.end(child.process, grace_s)

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self.running):
            self.end(name, grace_s=5.0)

    def wait_for(self, ready: Callable[[], bool], event: str, timeout_s: float = 120.0, every_s: float = 0.2) -> None:
        """Poll ``ready`` until it is true.

        Raises:
          EngineError: after ``timeout_s``, or if a command has ended.
        """
        deadline_s = time.monotonic() + timeout_s
        while not ready():
            for child in self.running.values():
                child.check()
            if time.monotonic() > deadline_s:
                raise EngineError(f"{event}: timed out after {timeout_s:g} s; see the logs in {self.logs}")
            time.sleep(every_s)
