"""Flink embedded in Beam's job server, and the processes of a cluster: their start, their checks, and which ones run.

Bounded micro-batches replace Flink without Java. Flink retains the checkpoints of jobs that failed, were cancelled, or
lost their JobManager, for restarts, and never removes them: `sweep_checkpoints` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from ciml.engines import jars
from ciml.engines.base import HOST, SMALL_JVM, Engine, Launch, Settings, http_answers, java_arguments, listens
from ciml.engines.state import LIGHT, EngineState
from ciml.errors import EngineError
from ciml.pipelines.flink.jobs import ask
from ciml.storage import open_store
from ciml.storage.json_files import read_json, write_json

MICRO_BATCHES = "light: bounded micro-batches"
JOB_SERVER_MAIN = "org.apache.beam.runners.flink.FlinkJobServerDriver"
_GET_JOBS = "/org.apache.beam.model.job_management.v1.JobService/GetJobs"
# Each job has its own small Flink and REST port.
_REST_PORTS = 16
_NETWORK_MB = 32

# Packages that Flink's and Beam's serialisation use by reflection; Java 17 requires them to be opened.
OPENED = (
    *("java.lang", "java.net", "java.io", "java.nio", "sun.nio.ch", "java.lang.reflect", "java.text", "java.time"),
    *("java.util", "java.util.concurrent", "java.util.concurrent.atomic", "java.util.concurrent.locks"),
)

# At "info" Flink logs 700 lines a job. These levels keep the lines on jobs, tasks and checkpoints.
LOG_LEVELS = {
    "org.apache.beam.runners.flink": "info",
    "org.apache.beam.runners.jobsubmission": "info",
    "org.apache.beam.runners.fnexecution.control.DefaultJobBundleFactory": "off",  # stack traces at job ends
    "org.apache.flink.runtime.executiongraph": "info",
    "org.apache.flink.runtime.checkpoint.CheckpointFailureManager": "info",
    "org.apache.flink.runtime.dispatcher.DispatcherRestEndpoint": "info",
    "org.apache.flink.runtime.security.token": "error",
    "org.apache.flink.runtime.webmonitor.WebMonitorUtils": "error",
}

_LOOPBACK = (
    *("rest.address", "rest.bind-address", "jobmanager.rpc.address", "jobmanager.bind-host"),
    *("taskmanager.host", "taskmanager.bind-host"),
)
#: Settings of every Flink. Restart delays grow.
SETTINGS = {
    "state.checkpoint-storage": "filesystem",
    "restart-strategy.type": "exponential-delay",
    "restart-strategy.exponential-delay.initial-backoff": "500 ms",
    "restart-strategy.exponential-delay.max-backoff": "10 s",
    "restart-strategy.exponential-delay.reset-backoff-threshold": "2 min",
}
#: Environment variable with the home, inherited by each part's children, so that all are found.
MARK = "CIML_CLUSTER_HOME"


def write_settings(
    folder: Path, settings: Mapping[str, object], *, managed_mb: int, network_mb: int, checkpoints: str
) -> None:
    """Write ``flink-conf.yaml``: the settings in addition to those of every Flink, which listens on loopback."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = {
        **dict.fromkeys(_LOOPBACK, HOST),
        "taskmanager.memory.managed.size": f"{managed_mb}m",
        "taskmanager.memory.network.min": f"{network_mb}m",
        "taskmanager.memory.network.max": f"{network_mb}m",
        "state.checkpoints.dir": checkpoints,
        **settings,
    }
    (folder / "flink-conf.yaml").write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))


def flink_arguments(folder: Path, class_path: str, heap_mb: int, scratch: Path) -> str:
    """Write the options of a Java process of Flink; see `ciml.engines.base.java_arguments`."""
    options = (
        f"-Xmx{heap_mb}m",
        *SMALL_JVM,
        f"-Djava.io.tmpdir={scratch}",
        *(f"-Dorg.slf4j.simpleLogger.log.{name}={level}" for name, level in LOG_LEVELS.items()),
        *(f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in OPENED),
    )
    return java_arguments(folder, class_path, options)


def job_server(port: int, conf: Path, artifacts: Path) -> tuple[str, ...]:
    """Return the main class of Beam's job server and its arguments. Its expansion service is not needed."""
    return (
        *(JOB_SERVER_MAIN, f"--job-host={HOST}", f"--job-port={port}", "--artifact-port=0", "--expansion-port=-1"),
        *(f"--flink-conf-dir={conf}", f"--artifacts-dir={artifacts}"),
    )


class Flink(Engine):
    """The job server. Its jobs live in its process and end with it."""

    name = "flink"
    uses = ("flink", "flink-rest")

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        java = jars.find_java()
        class_path = jars.class_path("flink", settings.notify)
        folder = home / "flink"
        for part in ("checkpoints", "scratch", "artifacts"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        first = min(ports["flink-rest"], 65536 - _REST_PORTS)
        write_settings(
            folder / "conf",
            {
                **SETTINGS,
                "rest.bind-port": f"{first}-{first + _REST_PORTS - 1}",
                "state.backend.type": "hashmap",
                "io.tmp.dirs": folder / "scratch",
            },
            managed_mb=settings.flink_managed_mb,
            network_mb=_NETWORK_MB,
            checkpoints=(folder / "checkpoints").as_uri(),
        )
        arguments = flink_arguments(folder, class_path, settings.flink_heap_mb, folder / "scratch")
        return Launch(
            "Flink 1.19 in Beam's job server",
            (java, arguments, *job_server(ports["flink"], folder / "conf", folder / "artifacts")),
            ports,
            address=f"{HOST}:{ports['flink']}",
            memory_mb=settings.flink_heap_mb + settings.flink_managed_mb + _NETWORK_MB,
        )

    def ready(self, home: Path, state: EngineState) -> EngineState | None:
        return state if listens(state.ports["flink"]) and job_service_answers(state.address) else None


class MicroBatches(Engine):
    """No process: commands run bounded micro-batches from the committed offsets to the present end."""

    name = "flink"
    kind = LIGHT

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        return Launch(MICRO_BATCHES, None, ports)


def job_service_answers(address: str, timeout_s: float = 2.0) -> bool:
    """Return whether Beam's job server answers at ``host:port``."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:  # an empty message is a valid GetJobsRequest, so Beam need not be imported
            channel.unary_unary(_GET_JOBS, None, None)(b"", timeout=timeout_s, wait_for_ready=True)
        except grpc.RpcError:
            return False
    return True


def sweep_checkpoints(state: str, rest: str, before_s: float) -> list[str]:
    """Remove the checkpoints of jobs that Flink does not know and that wrote none since ``before_s``.

    Savepoints are kept.

    Args:
      state: a folder or an ``s3://`` prefix; the checkpoints are in its ``checkpoints/JOB``.
      rest: the URL of Flink's REST API.
      before_s: epoch seconds.

    Returns:
      The ids of the jobs whose checkpoints were removed.

    Raises:
      EngineError: if Flink or the storage does not answer. Earlier removals are not undone.
    """
    job_ids = {job["id"] for job in ask("GET", f"{rest}/jobs")["jobs"]}
    top = open_store(state)
    store = top.child("checkpoints")
    paths: dict[str, list[str]] = {}
    youngest: dict[str, float] = {}
    for entry in store.entries():
        job = entry.path.partition("/")[0]
        paths.setdefault(job, []).append(entry.path)
        youngest[job] = max(youngest.get(job, 0.0), entry.modified_s)
    old = sorted(job for job, last_s in youngest.items() if job not in job_ids and last_s < before_s)
    for job in old:
        for path in paths[job]:
            store.delete(path)
    top.delete_leftovers("checkpoints", before_s)
    return old


Health = Literal["ok", "starting", "no answer", "dead"]
Answer = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class Part:
    """How a process is started and checked.

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
    """State of a part.

    Attributes:
      name: of the part.
      pid: its process; None while the watchdog waits before the next start.
      started: that process's start time, seconds since the epoch.
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


def states_file(folder: Path) -> Path:
    return folder / "parts.json"


def write_plan(folder: Path, parts: Iterable[Part], settings: Mapping[str, Any]) -> None:
    """Write the watchdog's plan and the settings behind it."""
    write_json(folder / "plan.json", {"settings": dict(settings), "parts": [asdict(part) for part in parts]}, 0o600)


def read_plan(folder: Path) -> tuple[list[Part], dict[str, Any]]:
    """Return the parts and the settings; both empty without a plan."""
    content = _read(folder / "plan.json")
    return [Part(**part) for part in content.get("parts", [])], dict(content.get("settings", {}))


def write_states(folder: Path, states: Iterable[PartState]) -> None:
    write_json(states_file(folder), {state.name: asdict(state) for state in states}, 0o600)


def read_states(folder: Path) -> dict[str, PartState]:
    return {name: PartState(**fields) for name, fields in _read(states_file(folder)).items()}


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, "run ciml down, then remove it", EngineError) or {}


def marked(home: Path) -> list[psutil.Process]:
    """Return every process of this user that belongs to the cluster of ``home``, recorded or not."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            own = process.uids().real == os.getuid() and process.status() != psutil.STATUS_ZOMBIE
            if own and process.environ().get(MARK) == str(home):
                processes.append(process)
    return processes


def asks(check: list[str]) -> Answer:
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
