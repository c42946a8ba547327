"""Beam's job server with a Flink inside, and what all Flinks of this machine share: settings and command lines.

Without Java, bounded micro-batches replace this engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ciml.engines import jars
from ciml.engines.base import HOST, SMALL_JVM, Engine, Launch, Settings, java_arguments, listens
from ciml.engines.state import LIGHT, EngineState

MICRO_BATCHES = "light: bounded micro-batches"
JOB_SERVER_MAIN = "org.apache.beam.runners.flink.FlinkJobServerDriver"
_GET_JOBS = "/org.apache.beam.model.job_management.v1.JobService/GetJobs"
_REST_PORTS = 16  # each job has a small Flink of its own, with a REST port
_NETWORK_MB = 32
MANAGED_MB = 64  # outside the heap; only batch sorts and RocksDB use it

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
            network_mb=_NETWORK_MB,
            checkpoints=(folder / "checkpoints").as_uri(),
        )
        arguments = flink_arguments(folder, class_path, settings.flink_heap_mb, folder / "scratch")
        return Launch(
            "Flink 1.19 in Beam's job server",
            (java, arguments, *job_server(ports["flink"], folder / "conf", folder / "artifacts")),
            ports,
            address=f"{HOST}:{ports['flink']}",
            memory_mb=settings.flink_heap_mb + MANAGED_MB + _NETWORK_MB,
        )

    def ready(self, home: Path, state: EngineState) -> EngineState | None:
        return state if listens(state.ports["flink"]) and job_service_answers(state.address) else None


class MicroBatches(Engine):
    """No process: commands run bounded micro-batches from the committed offsets to the present end."""

    name = "flink"
    kind = LIGHT

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        return Launch(MICRO_BATCHES, None, ports)


def write_settings(folder: Path, settings: Mapping[str, object], *, network_mb: int, checkpoints: str) -> None:
    """Write ``flink-conf.yaml``: the settings in addition to those of every Flink, which listens on loopback."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = {
        **dict.fromkeys(_LOOPBACK, HOST),
        "taskmanager.memory.managed.size": f"{MANAGED_MB}m",
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


def job_service_answers(address: str) -> bool:
    """Return whether Beam's job server answers at ``host:port``."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:  # an empty message is a valid GetJobsRequest, so Beam need not be imported
            channel.unary_unary(_GET_JOBS, None, None)(b"", timeout=2.0, wait_for_ready=True)
        except grpc.RpcError:
            return False
    return True
