"""Processes of a trial. Each ends with the process that started it, and is signalled by its own pid alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1
#: What a process has imported before it is forked: nearly all of the seconds that a cold start takes.
_PRELOADED = [
    "ciml.cli.main", "ciml.cli.commands.operate.streams", "ciml.cli.output", "ciml.services.driver",
    "ciml.services.ingest", "ciml.pipelines.kafka.publish", "apache_beam.runners.portability.fn_api_runner",
    "ciml.cli.commands.data.dataset", "pyarrow.parquet", "tests.faults.offline", "tests.faults.planted",
]  # fmt: skip
_forks = get_context("forkserver")


class Child:
    """A process, its log, and the signals that faults are made of."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self.log = pid, log
        self.began = time.monotonic()

    def poll(self) -> int | None:
        """Return its exit code; None while it runs; negative for a signal."""
        raise NotImplementedError

    def wait(self, most_s: float = 30.0) -> int | None:
        """Wait for its end; return None if it goes on."""
        deadline = time.monotonic() + most_s
        while (code := self.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return code

    def send(self, number: int) -> bool:
        """Send a signal; return False if the process has ended."""
        if self.poll() is not None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
            return True
        return False

    def kill(self) -> bool:
        """Send SIGKILL, and wait for the end. Return False if it had ended by itself."""
        alive = self.send(signal.SIGKILL)
        self.wait(10)
        return alive

    def crash(self) -> bool:
        """Kill what does the work."""
        return self.kill()

    def stop(self, most_s: float = 60.0) -> int | None:
        """Send SIGTERM, and SIGKILL if it does not end in time; return the exit code, then None."""
        self.send(signal.SIGTERM)
        code = self.wait(most_s)
        if code is None:
            self.kill()
        return code

    def is_stopped(self) -> bool:
        """Return whether it is frozen."""
        with contextlib.suppress(psutil.Error):
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)
        return False

    def freezes(self) -> bool:
        """Wait until it has stopped itself or ended; return whether it is frozen."""
        while not (frozen := self.is_stopped()) and self.poll() is None:
            time.sleep(0.01)
        return frozen

    def said(self, size: int = 2000) -> str:
        """Return the end of its log."""
        with contextlib.suppress(FileNotFoundError):
            return self.log.read_bytes()[-size:].decode(errors="replace").strip()
        return ""

    def usage(self) -> tuple[float, int] | None:
        """Return (resident memory in MiB, open files) of it and its children; None when it is gone."""
        try:
            process = psutil.Process(self.pid)
            family = [process, *process.children(recursive=True)]
            return sum(one.memory_info().rss for one in family) / (1 << 20), sum(one.num_fds() for one in family)
        except psutil.Error:
            return None


class Program(Child):
    """A command in a process of its own, which the kernel ends when this thread ends (``setpriv --pdeathsig``)."""

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, **popen: Any
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        leash = ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv") else ()
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        variables = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(environment or {})}
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [*leash, *command], stdout=out, stderr=out, env=variables, stdin=popen.pop("stdin", subprocess.DEVNULL),
                start_new_session=True, **popen,
            )  # fmt: skip
        super().__init__(self.process.pid, log)

    def poll(self) -> int | None:
        return self.process.poll()


def python(module: str, *arguments: str, log: Path, **options: Any) -> Program:
    """Start ``python -m module arguments`` of this checkout."""
    return Program([sys.executable, "-m", module, *arguments], log, **options)


class Fork(Child):
    """A function in a process that is forked, in 20 ms, from one that has imported everything.

    So a trial has time for more kills, and the kills meet work instead of imports.
    """

    def __init__(
        self,
        work: Callable[..., None],
        *arguments: Any,
        log: Path,
        environment: Mapping[str, str] | None = None,
        preload: Sequence[str] = (),
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        _forks.set_forkserver_preload([*_PRELOADED, *preload])  # of the first fork of this process
        self._process = _forks.Process(
            target=_become, args=(work, arguments, str(log), {**os.environ, **(environment or {})}), daemon=True
        )  # fmt: skip
        self._process.start()
        super().__init__(self._process.pid or 0, log)

    def poll(self) -> int | None:
        return self._process.exitcode


def _become(work: Callable[..., None], arguments: Sequence[Any], log: str, environment: Mapping[str, str]) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(environment)
    work(*arguments)
    sys.stdout.flush()
