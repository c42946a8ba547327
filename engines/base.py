"""What every engine answers: how it is started, and when it is ready."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ciml.errors import CimlError
from engines import processes
from engines.state import EngineState

HOST = "127.0.0.1"

# The serial collector and the first compiler tier alone: measured here, that takes 40 % off the broker's start (CPU),
# half off a short Flink job, and 30 to 100 MiB off the memory. What they leave out pays only in hours of full load.
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
    """How the engines of one `ciml up` are started.

    Attributes:
      ports: fixed ports by use (``kafka``, ``flink``, ``flink-rest``, ``cluster-jobs``, ``cluster-rest``, ``s3``,
        ``logs``, ``models-grpc``, …); the system chooses a free one for each that is not named.
      kafka_heap_mb: the broker's Java heap. It fills with the page cache's help, so 512 MiB serve a laptop's load.
      flink_heap_mb: the heap of the job server and of Flink inside it; of each TaskManager's tasks in a cluster.
      flink_managed_mb: Flink's managed memory, outside the heap; only batch sorts and RocksDB use it.
      logs_root: the folder that the log server serves; needed for ``logs``.
      models_config: the ModelServerConfig that the model server polls; needed for ``models``.
      timeout_s: how long one engine may take until it is ready.
      task_managers: how many TaskManagers the cluster has.
      slots: the slots of each: at most their product is the sum of the jobs' parallelism.
      state: the ``s3://`` prefix of the cluster's checkpoints and savepoints; None for ``<home>/flink``.
      state_backend: ``hashmap`` or ``rocksdb``.
      tied: ends them when this process ends, be it killed: for tests and the demo.
      notify: is told what takes long, in one phrase.
    """

    ports: Mapping[str, int] = field(default_factory=dict)
    kafka_heap_mb: int = 512
    flink_heap_mb: int = 768
    flink_managed_mb: int = 64
    logs_root: str | None = None
    models_config: str | None = None
    timeout_s: float = 90.0
    task_managers: int = 1
    slots: int = 2
    state: str | None = None
    state_backend: str = "hashmap"
    tied: bool = False
    notify: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class Launch:
    """A command line that is ready to run, and the state to write down for it.

    Attributes:
      state: without pid; without address where the process itself chooses it.
      command: None where the engine needs no process.
    """

    state: EngineState
    command: tuple[str, ...] | None
    environment: Mapping[str, str] = field(default_factory=dict)


class Engine(ABC):
    """One kind of engine. Objects of it hold nothing: what runs is in `EngineState`."""

    name: str
    uses: tuple[str, ...] = ()  # its ports, by use

    @abstractmethod
    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        """Make folders and files ready and say how to start. ``ports`` has one for each of ``uses``."""

    @abstractmethod
    def ready(self, home: Path, state: EngineState) -> EngineState | None:
        """Ask the engine itself, for seconds at most: its state with all addresses when it answers, else None."""

    def missing(self, home: Path, state: EngineState) -> str:
        """What of it does not answer, where it has parts."""
        return ""

    def end(self, home: Path, state: EngineState) -> bool:
        """End its process and those that this started; return whether it was running.

        Raises:
          EngineError: when it does not end.
        """
        return processes.end(state.pid, state.started)


def listens(port: int, host: str = HOST, timeout_s: float = 1.0) -> bool:
    """Return whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False


def http_answers(url: str, timeout_s: float = 2.0) -> bool:
    """Return whether an HTTP server answers there, with whatever status below 500."""
    from http.client import HTTPConnection, HTTPException
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or HOST, parts.port, timeout=timeout_s)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status < 500
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def java_arguments(folder: Path, class_path: str, options: tuple[str, ...]) -> str:
    """Write Java's options to an argument file, so that 160 jars do not fill the process table; return ``@file``."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [*options, "-cp", class_path]
    if any('"' in line or "\n" in line for line in lines):
        raise CimlError(f"a path among {folder} and the jars' folder holds a quote or a line break")
    file = folder / "java.args"
    file.write_text("".join('"{}"\n'.format(line.replace("\\", "\\\\")) for line in lines))
    return f"@{file}"
