"""The interface of local engines: start, readiness and stop."""

from __future__ import annotations

import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ciml.engines import processes
from ciml.engines.state import REAL, EngineState
from ciml.errors import CimlError

HOST = processes.HOST
_S3_PREFIX = re.compile(r"s3://+[^/]")

# The serial collector and the first compiler tier only: measured here, they save 40 % of the broker's start (CPU), half
# of a short Flink job, and 30 to 100 MiB. The full set pays off only after hours of full load.
SMALL_JVM = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSZ",
)


@dataclass(frozen=True)
class Settings:
    """Settings of one `ciml up`.

    Attributes:
      ports: fixed ports by use (``kafka``, ``flink``, ``flink-rest``, ``cluster-jobs``, ``cluster-rest``, ``s3``,
        ``logs``, ``models-grpc``, ``gerrit``, …); the system chooses free ones for the others.
      kafka_heap_mb: the broker's Java heap. The page cache holds the data, so 512 MiB suffice for a laptop's load.
      flink_heap_mb: heap of the job server with its embedded Flink; in a cluster, of each TaskManager's tasks.
      logs_root: the folder that the log server serves; needed for ``logs``.
      models_config: the ModelServerConfig that the model server polls; needed for ``models``.
      timeout_s: limit until an engine is ready.
      task_managers: number of TaskManagers in the cluster.
      slots: slots of each TaskManager; their product limits the jobs' total parallelism.
      state: the ``s3://`` prefix of the cluster's checkpoints and savepoints; None for ``<home>/flink``.
      state_backend: ``hashmap`` or ``rocksdb``.
      tied: stop the engines when this process ends, even if it is killed: for tests and the demo.
      notify: called with a phrase before a long step.

    Raises:
      CimlError: ``state`` is no such prefix.
    """

    ports: Mapping[str, int] = field(default_factory=dict)
    kafka_heap_mb: int = 512
    flink_heap_mb: int = 768
    logs_root: str | None = None
    models_config: str | None = None
    timeout_s: float = 90.0
    task_managers: int = 1
    slots: int = 2
    state: str | None = None
    state_backend: str = "hashmap"
    tied: bool = False
    notify: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        if self.state is not None and not _S3_PREFIX.match(self.state):
            raise CimlError(f"state of the cluster: {self.state!r} is not s3://BUCKET/PREFIX")


@dataclass(frozen=True)
class Launch:
    """How an engine is started.

    Attributes:
      what, address, ports, urls, memory_mb: as of `EngineState`; without address where the process itself chooses it.
      command: its command line; None if the engine needs no process.
      environment: variables in addition to those of this process.
    """

    what: str
    command: tuple[str, ...] | None
    ports: Mapping[str, int]
    address: str = ""
    urls: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    memory_mb: int | None = None


class Engine(ABC):
    """One kind of engine. Its objects are stateless; `EngineState` holds the state.

    Attributes:
      name: of the engine.
      uses: its ports, by use.
      kind: ``real``, or ``light`` for a stand-in.
      health: the path under its HTTP address that answers when it is ready; None without one.
    """

    name: str
    uses: tuple[str, ...] = ()
    kind = REAL
    health: str | None = None

    @abstractmethod
    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        """Prepare folders and files, and return the launch. ``ports`` has one port for each of ``uses``."""

    def state_of(self, launch: Launch) -> EngineState:
        """Return the state to record for a launch, without pid."""
        state = EngineState(self.name, self.kind, launch.what, launch.address, memory_mb=launch.memory_mb)
        return replace(state, ports=dict(launch.ports), urls=dict(launch.urls))

    def ready(self, home: Path, state: EngineState) -> EngineState | None:
        """Query the engine within seconds; return its state with all addresses if it answers, else None."""
        answers = all(listens(port) for port in state.ports.values())
        if answers and self.health is not None:
            answers = http_answers(f"{state.urls.get('rest', state.address)}{self.health}")
        return state if answers else None

    def missing(self, home: Path, state: EngineState) -> str:
        """Return the parts that do not answer, for an engine of several parts."""
        return ""

    def end(self, home: Path, state: EngineState) -> bool:
        """Stop its process and that process's children; return whether it was running.

        Raises:
          EngineError: if it does not stop.
        """
        return processes.end(state.process)


def listens(port: int) -> bool:
    """Return whether a server accepts connections on the port."""
    try:
        with socket.create_connection((HOST, port), timeout=1.0):
            return True
    except OSError:
        return False


def http_answers(url: str) -> bool:
    """Return whether an HTTP server answers with a status below 500."""
    from http.client import HTTPConnection, HTTPException
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or HOST, parts.port, timeout=2.0)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status < 500
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def java_arguments(folder: Path, class_path: str, options: tuple[str, ...]) -> str:
    """Write Java's options to an argument file, since 160 jars would make a long command line; return ``@file``."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [*options, "-cp", class_path]
    if any('"' in line or "\n" in line for line in lines):
        raise CimlError(f"the path of {folder} or of the jars contains a quote or a line break; use another folder")
    file = folder / "java.args"
    file.write_text("".join('"{}"\n'.format(line.replace("\\", "\\\\")) for line in lines))
    return f"@{file}"
