"""Processes of a trial. Each ends with the process that started it, and is signalled by its own pid alone."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1
#: What a warm child has imported before it is forked: nearly all of the seconds that a cold start takes.
_PRELOADED = (
    "ciml.cli.main", "ciml.cli.commands.operate.streams", "ciml.cli.output", "ciml.services.driver",
    "ciml.services.ingest", "ciml.pipelines.kafka.publish",
    "apache_beam.runners.portability.fn_api_runner", "ciml.cli.commands.data.dataset", "ciml.pipelines.datasets.update",
    "ciml.datasets.definition", "pyarrow.parquet",
)  # fmt: skip


def _environment(changes: Mapping[str, str] | None) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(changes or {})}


class Child:
    """A process, its log, and the signals that faults are made of."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self.log = pid, log
        self.began = time.monotonic()

    def poll(self) -> int | None:
        """Its exit code; None while it runs; negative for a signal."""
        raise NotImplementedError

    def wait(self, most_s: float = 30.0) -> int | None:
        """Waits for its end; None when it goes on."""
        deadline = time.monotonic() + most_s
        while (code := self.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return code

    def send(self, number: int) -> bool:
        """Sends a signal; False when the process has ended."""
        if self.poll() is not None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
            return True
        return False

    def kill(self) -> bool:
        """SIGKILL, and waits until it is gone. False when it had ended by itself."""
        alive = self.send(signal.SIGKILL)
        self.wait(10)
        return alive

    def crash(self) -> bool:
        """What a trial does to it in the middle of its work."""
        return self.kill()

    def stop(self, most_s: float = 60.0) -> int | None:
        """SIGTERM, and SIGKILL when that does not end it in time (then None)."""
        self.send(signal.SIGTERM)
        code = self.wait(most_s)
        if code is None:
            self.kill()
        return code

    def said(self, size: int = 2000) -> str:
        """The end of its log."""
        with contextlib.suppress(FileNotFoundError):
            return self.log.read_bytes()[-size:].decode(errors="replace").strip()
        return ""

    def usage(self) -> tuple[float, int] | None:
        """(resident memory in MiB, open files) of it and of its own children; None when it is gone."""
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
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [*leash, *command], stdout=popen.pop("stdout", out), stderr=out, env=_environment(environment),
                stdin=popen.pop("stdin", subprocess.DEVNULL), start_new_session=True, **popen,
            )  # fmt: skip
        super().__init__(self.process.pid, log)

    def poll(self) -> int | None:
        return self.process.poll()


def python(module: str, *arguments: str, log: Path, environment: Mapping[str, str] | None = None) -> Program:
    """``python -m module arguments`` of this checkout."""
    return Program([sys.executable, "-m", module, *arguments], log, environment)


class _Forked(Child):
    def __init__(self, nursery: Nursery, pid: int, log: Path) -> None:
        super().__init__(pid, log)
        self._nursery, self._code = nursery, None

    def poll(self) -> int | None:
        if self._code is None:
            self._code = self._nursery.ask({"do": "poll", "pid": self.pid})["code"]
        return self._code


class Nursery:
    """A process that has imported everything and forks programs on request, each in 20 ms instead of 4 s.

    So a trial has time for more kills, and the kills meet work instead of imports.
    """

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "tests.faults.children"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._program = Program(command, folder / "nursery.log", **pipes)
        self._process = self._program.process

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise RuntimeError(f"the nursery is gone: {self._program.said()}")
        return dict(json.loads(line))

    def start(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, planted: str = ""
    ) -> Child:
        """``ciml arguments`` as a forked process, with a planted defect where one is named."""
        log.parent.mkdir(parents=True, exist_ok=True)
        request = {"do": "fork", "arguments": list(arguments), "log": str(log), "environment": dict(environment or {})}
        return _Forked(self, self.ask({**request, "planted": planted})["pid"], log)

    def close(self) -> None:
        """Ends it and all that it forked."""
        self._program.kill()


def start_cold(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, planted: str = ""
) -> Child:
    """``ciml arguments`` as a program from its very beginning."""
    if planted or {"CIML_FAULTS_CYCLE", "CIML_FAULTS_SETTLE"} & set(environment or {}):
        return python("tests.faults.planted", planted, *arguments, log=log, environment=environment)
    return python("ciml.cli.main", *arguments, log=log, environment=environment)


def _serve() -> None:
    """The nursery: answers requests, a JSON line each. A fork leaves by the exception that ends its program."""
    for module in _PRELOADED:
        importlib.import_module(module)
    gc.freeze()  # so that neither a child's work nor its end goes through all that was imported
    codes: dict[int, int] = {}
    waiting: set[int] = set()
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        if request["do"] == "fork":
            pid = os.fork()
            if pid == 0:
                _become(request)
            waiting.add(pid)
            answer: dict[str, Any] = {"pid": pid}
        else:
            for pid in list(waiting):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    waiting.discard(pid)
                    codes[pid] = os.waitstatus_to_exitcode(status)
            answer = {"code": codes.get(request["pid"])}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _become(request: dict[str, Any]) -> None:
    import random

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number, handle in ((0, null), (1, out), (2, out)):
        os.dup2(handle, number)
    os.environ.update(request["environment"])
    random.seed()
    from ciml.cli import main
    from tests.faults import planted

    planted.plant(request["planted"])

    sys.argv = ["ciml", *request["arguments"]]
    main.main()


if __name__ == "__main__":
    _serve()
