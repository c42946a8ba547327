"""Flink embedded in Beam's job server; bounded micro-batches without Java."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ciml.engines import jars
from ciml.engines.base import HOST, SMALL_JVM, Engine, Launch, Settings, java_arguments, listens
from ciml.engines.state import LIGHT, REAL, EngineState

MICRO_BATCHES = "light: bounded micro-batches"
JOB_SERVER_MAIN = "org.apache.beam.runners.flink.FlinkJobServerDriver"
_GET_JOBS = "/org.apache.beam.model.job_management.v1.JobService/GetJobs"
# Each job has its own small Flink and REST port.
_REST_PORTS = 16

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

_CONFIGURATION = """\
rest.address: {host}
rest.bind-address: {host}
rest.bind-port: {first}-{last}
jobmanager.rpc.address: {host}
jobmanager.bind-host: {host}
taskmanager.host: {host}
taskmanager.bind-host: {host}
taskmanager.memory.managed.size: {managed}m
taskmanager.memory.network.min: 32m
taskmanager.memory.network.max: 32m
state.backend.type: hashmap
state.checkpoint-storage: filesystem
state.checkpoints.dir: {checkpoints}
io.tmp.dirs: {scratch}
restart-strategy.type: exponential-delay
restart-strategy.exponential-delay.initial-backoff: 500 ms
restart-strategy.exponential-delay.max-backoff: 10 s
restart-strategy.exponential-delay.reset-backoff-threshold: 2 min
"""


class Flink(Engine):
    """The job server. Its jobs live in its process and end with it."""

    name = "flink"
    uses = ("flink", "flink-rest")

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        java = jars.find_java()
        class_path = jars.class_path("flink", settings.notify)
        folder = home / "flink"
        for part in ("conf", "checkpoints", "scratch", "artifacts"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        first = min(ports["flink-rest"], 65536 - _REST_PORTS)
        (folder / "conf" / "flink-conf.yaml").write_text(
            _CONFIGURATION.format(
                host=HOST,
                first=first,
                last=first + _REST_PORTS - 1,
                managed=settings.flink_managed_mb,
                checkpoints=(folder / "checkpoints").as_uri(),
                scratch=folder / "scratch",
            )
        )
        options = (
            f"-Xmx{settings.flink_heap_mb}m",
            *SMALL_JVM,
            f"-Djava.io.tmpdir={folder / 'scratch'}",
            *(f"-Dorg.slf4j.simpleLogger.log.{name}={level}" for name, level in LOG_LEVELS.items()),
            *(f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in OPENED),
        )
        command = (
            *(java, java_arguments(folder, class_path, options), JOB_SERVER_MAIN),
            *(f"--job-host={HOST}", f"--job-port={ports['flink']}", "--artifact-port=0", "--expansion-port=0"),
            *(f"--flink-conf-dir={folder / 'conf'}", f"--artifacts-dir={folder / 'artifacts'}"),
        )
        state = EngineState(
            name=self.name,
            kind=REAL,
            what="Flink 1.19 in Beam's job server",
            address=f"{HOST}:{ports['flink']}",
            ports={use: ports[use] for use in self.uses},
            memory_mb=settings.flink_heap_mb + settings.flink_managed_mb + 32,
        )
        return Launch(state, command)

    def ready(self, home: Path, state: EngineState) -> EngineState | None:
        return state if listens(state.ports["flink"]) and job_service_answers(state.address) else None


class MicroBatches(Engine):
    """No process: commands run bounded micro-batches from the committed offsets to the present end."""

    name = "flink"

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        return Launch(EngineState(self.name, LIGHT, MICRO_BATCHES), None)

    def ready(self, home: Path, state: EngineState) -> EngineState | None:
        return state


def job_service_answers(address: str, timeout_s: float = 2.0) -> bool:
    """Return whether Beam's job server answers at ``host:port``."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:  # an empty message is a valid GetJobsRequest, so Beam need not be imported
            channel.unary_unary(_GET_JOBS, None, None)(b"", timeout=timeout_s, wait_for_ready=True)
        except grpc.RpcError:
            return False
    return True
