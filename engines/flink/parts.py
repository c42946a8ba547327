"""The processes of a Flink cluster, its *parts*: the files that describe them, their health checks, and which ones run.

The watchdog's plan describes the parts to start; the states describe their processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil

from ciml.engines.base import http_answers
from ciml.engines.flink.job_server import job_service_answers
from ciml.engines.state import ProcessId
from ciml.errors import EngineError
from ciml.pipelines.flink.jobs import ask
from ciml.storage.json_files import read_json, write_json

#: Environment variable with the home, inherited by each part's children, so that all are found.
MARK = "CIML_CLUSTER_HOME"


Health = Literal["ok", "starting", "no answer", "dead"]
Answer = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class Part:
    """The command of a part, and its health check.

    Attributes:
      name: such as ``taskmanager-1``.
      what: one phrase for people.
      command: the command line.
      check: the health check: ``["http", URL]``, ``["jobs", HOST:PORT]``, ``["pool", SOCKET]`` (an abstract
        socket), or ``["taskmanager", REST-URL, ID]``, which asks the JobManager.
      address: its address, for people.
      scratch: its working folder, emptied before each start.
      log: the file of its output.
      environment: variables in addition to the watchdog's.
      patience_s: time without an answer before it is restarted.
      memory_mb: its memory limit, or None.
    """

    name: str
    what: str
    command: list[str]
    check: list[str]
    address: str
    scratch: str
    log: str
    environment: dict[str, str] = field(default_factory=dict)
    patience_s: float = 30.0
    memory_mb: int | None = None


@dataclass(frozen=True)
class PartState:
    """The process of a part.

    Attributes:
      name: of the part.
      pid, started: of its process, as in `ProcessId`; None while the watchdog waits before the next start.
      restarts: number of restarts.
      reason: of the last restart; "" at first.
      answered: whether this process has ever answered.
    """

    name: str
    pid: int | None = None
    started: float | None = None
    restarts: int = 0
    reason: str = ""
    answered: bool = False

    @property
    def process(self) -> ProcessId | None:
        """Its process; None while it has none."""
        return ProcessId.of(self.pid, self.started)


def states_file(folder: Path) -> Path:
    return folder / "parts.json"


def write_plan(folder: Path, parts: Iterable[Part], settings: Mapping[str, Any]) -> None:
    """Write the watchdog's plan.

    Args:
      folder: of the plan.
      parts: the parts to start.
      settings: ``ports`` by use; ``state``, the folder or prefix of checkpoints; ``rest``, the URL of Flink's REST API.
    """
    write_json(folder / "plan.json", {"settings": dict(settings), "parts": [asdict(part) for part in parts]}, 0o600)


class Plan(NamedTuple):
    """The parts that a watchdog starts, and the settings behind them; see `write_plan`."""

    parts: list[Part]
    settings: dict[str, Any]


def read_plan(folder: Path) -> Plan:
    """Return the watchdog's plan; an empty one if none is written."""
    content = _read(folder / "plan.json")
    return Plan([Part(**part) for part in content.get("parts", [])], dict(content.get("settings", {})))


def write_states(folder: Path, states: Iterable[PartState]) -> None:
    write_json(states_file(folder), {state.name: asdict(state) for state in states}, 0o600)


def read_states(folder: Path) -> dict[str, PartState]:
    return {name: PartState(**fields) for name, fields in _read(states_file(folder)).items()}


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, "run ciml down, then remove it", EngineError) or {}


def cluster_processes(home: Path) -> list[psutil.Process]:
    """Return every process of this user that belongs to the cluster of ``home``, recorded or not."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            is_own = process.uids().real == os.getuid() and process.status() != psutil.STATUS_ZOMBIE
            if is_own and process.environ().get(MARK) == str(home):
                processes.append(process)
    return processes


def run_check(check: list[str]) -> Answer:
    """Run a health check, for two seconds at most."""
    kind, address, *name = check
    if kind == "taskmanager":
        return _known_taskmanager(address, *name)
    checks: dict[str, Callable[[str], bool]] = {
        "http": http_answers,
        "jobs": job_service_answers,
        "pool": _pool_answers,
    }
    return "yes" if checks[kind](address) else "no"


def pool_socket(home: Path, name: str) -> str:
    """Return the abstract socket of a worker pool's health check (a path could be too long)."""
    return f"ciml-{hashlib.sha256(str(home).encode()).hexdigest()[:16]}-{name}"


def _pool_answers(name: str) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(2.0)
            client.connect(f"\0{name}")
            return client.recv(16) == b"ok"
    except OSError:
        return False


def _known_taskmanager(rest: str, name: str) -> Answer:
    """Return whether the JobManager knows a TaskManager; "unknown" if the JobManager itself does not answer."""
    try:
        taskmanagers = ask("GET", f"{rest}/taskmanagers", timeout_s=2)["taskmanagers"]
    except (EngineError, ValueError, KeyError):
        return "unknown"
    return "yes" if name in {taskmanager["id"] for taskmanager in taskmanagers} else "no"
