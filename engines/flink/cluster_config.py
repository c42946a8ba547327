"""Flink's configuration for a standalone cluster, and the command lines of its parts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ciml.engines import jars
from ciml.engines.base import HOST, SMALL_JVM, Settings, java_arguments
from ciml.engines.flink.parts import JOB_SERVER_MAIN, LOG_LEVELS, OPENED, Part, pool_socket
from ciml.engines.processes import python_command, python_environment

_JOB_MANAGER_MB = 384
_JOB_SERVER_MB = 320
_FRAMEWORK_HEAP_MB = 128
_OFF_HEAP_MB = 64
_NETWORK_MB = 64
_METASPACE_MB = 160
_OVERHEAD_MB = 128

# Settings that jobs do not set themselves. Checkpoints survive a cancel and a failure; restart delays grow.
# A JobManager and a TaskManager lose each other after 20 s without a heartbeat, or at once when a port closes.
# A job's jars are those of the cluster, so its classes are loaded from there.
_CONFIGURATION = """\
rest.address: {host}
rest.bind-address: {host}
rest.port: {rest}
rest.bind-port: {rest}
jobmanager.rpc.address: {host}
jobmanager.rpc.port: {rpc}
jobmanager.bind-host: {host}
blob.server.port: {blob}
taskmanager.host: {host}
taskmanager.bind-host: {host}
taskmanager.numberOfTaskSlots: {slots}
taskmanager.cpu.cores: {slots}
taskmanager.memory.task.heap.size: {heap}m
taskmanager.memory.task.off-heap.size: 0m
taskmanager.memory.framework.heap.size: {framework_heap}m
taskmanager.memory.framework.off-heap.size: {off_heap}m
taskmanager.memory.managed.size: {managed}m
taskmanager.memory.network.min: {network}m
taskmanager.memory.network.max: {network}m
taskmanager.memory.jvm-metaspace.size: {metaspace}m
taskmanager.memory.jvm-overhead.min: {overhead}m
taskmanager.memory.jvm-overhead.max: {overhead}m
state.backend.type: {backend}
state.checkpoint-storage: filesystem
state.checkpoints.dir: {state}/checkpoints
state.savepoints.dir: {state}/savepoints
state.checkpoints.num-retained: 3
execution.checkpointing.externalized-checkpoint-retention: RETAIN_ON_CANCELLATION
execution.checkpointing.tolerable-failed-checkpoints: 10
restart-strategy.type: exponential-delay
restart-strategy.exponential-delay.initial-backoff: 500 ms
restart-strategy.exponential-delay.max-backoff: 10 s
restart-strategy.exponential-delay.reset-backoff-threshold: 2 min
heartbeat.interval: 2000
heartbeat.timeout: 20000
heartbeat.rpc-failure-threshold: 2
jobstore.expiration-time: 86400
classloader.resolve-order: parent-first
"""


@dataclass(frozen=True)
class Addresses:
    """Addresses of a cluster, all on loopback.

    Attributes:
      jobs: Beam's job server, ``host:port``.
      rest: Flink's REST API, a URL.
      workers: the shared ``host:port`` of the Python worker pools.
    """

    jobs: str
    rest: str
    workers: str

    @classmethod
    def of(cls, ports: Mapping[str, int]) -> Addresses:
        by_use = {use.removeprefix("cluster-"): f"{HOST}:{port}" for use, port in ports.items()}
        return cls(by_use["jobs"], f"http://{by_use['rest']}", by_use["workers"])


def state_root(home: Path, settings: Settings) -> str:
    """Return the URL of the folder of checkpoints and savepoints."""
    return settings.state.rstrip("/") if settings.state else (home / "flink").as_uri()


def write_configuration(home: Path, ports: Mapping[str, int], settings: Settings) -> Path:
    """Write ``flink-conf.yaml`` and return its folder."""
    folder = home / "cluster" / "conf"
    folder.mkdir(parents=True, exist_ok=True)
    text = _CONFIGURATION.format(
        host=HOST,
        rest=ports["cluster-rest"],
        rpc=ports["cluster-rpc"],
        blob=ports["cluster-blob"],
        slots=settings.slots,
        heap=settings.flink_heap_mb,
        framework_heap=_FRAMEWORK_HEAP_MB,
        off_heap=_OFF_HEAP_MB,
        managed=settings.flink_managed_mb,
        network=_NETWORK_MB,
        metaspace=_METASPACE_MB,
        overhead=_OVERHEAD_MB,
        backend=settings.state_backend,
        state=state_root(home, settings),
    )
    if settings.state:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:  # credentials come from the environment and are not written to disk
            text += f"s3.endpoint: {endpoint}\ns3.path.style.access: true\n"
    (folder / "flink-conf.yaml").write_text(text)
    return folder


def make_parts(home: Path, ports: Mapping[str, int], settings: Settings) -> list[Part]:
    """Write a cluster's configuration and return its parts.

    Raises:
      NoJava: without Java, or without jars and Maven.
    """
    java = jars.find_java()
    class_path = jars.class_path("cluster", settings.notify)
    conf = write_configuration(home, ports, settings)
    addresses = Addresses.of(ports)
    environment = {"FLINK_PLUGINS_DIR": str(_plugins(home, settings))}

    def scratch(name: str) -> Path:
        return home / "cluster" / "scratch" / name

    def part(
        name: str, what: str, main: tuple[str, ...], heap_mb: int, memory_mb: int, check: list[str], address: str
    ) -> Part:
        options = (
            f"-Xmx{heap_mb}m",
            *SMALL_JVM,
            f"-Djava.io.tmpdir={scratch(name)}",
            *(f"-Dorg.slf4j.simpleLogger.log.{logger}={level}" for logger, level in LOG_LEVELS.items()),
            *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED),
        )
        arguments = java_arguments(home / "cluster" / name, class_path, options)
        return Part(
            name=name,
            what=what,
            command=[java, arguments, *main],
            check=check,
            address=address,
            scratch=str(scratch(name)),
            log=str(home / "logs" / f"cluster-{name}.log"),
            environment=environment,
            patience_s=45.0 if check[0] == "taskmanager" else 20.0,
            memory_mb=memory_mb,
        )

    configured = ("--configDir", str(conf))
    manager = part(
        "jobmanager",
        "Flink 1.19 JobManager",
        (
            *("org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint", *configured),
            *("-D", f"io.tmp.dirs={scratch('jobmanager')}"),
        ),
        *(_JOB_MANAGER_MB, _JOB_MANAGER_MB + _METASPACE_MB),
        *(["http", f"{addresses.rest}/overview"], addresses.rest),
    )
    heap_mb = settings.flink_heap_mb + _FRAMEWORK_HEAP_MB
    outside_mb = _OFF_HEAP_MB + settings.flink_managed_mb + _NETWORK_MB + _METASPACE_MB + _OVERHEAD_MB
    workers = []
    for number in range(1, settings.task_managers + 1):
        name = f"taskmanager-{number}"
        main = (
            *("org.apache.flink.runtime.taskexecutor.TaskManagerRunner", *configured),
            *("-D", f"taskmanager.resource-id={name}", "-D", f"io.tmp.dirs={scratch(name)}"),
        )
        check = ["taskmanager", addresses.rest, name]
        workers.append(part(name, "Flink 1.19 TaskManager", main, heap_mb, heap_mb + outside_mb, check, ""))
    server = part(
        "jobserver",
        "Beam 2.62 job server",
        (
            *(JOB_SERVER_MAIN, f"--job-host={HOST}", f"--job-port={ports['cluster-jobs']}"),
            *("--artifact-port=0", "--expansion-port=-1"),  # -1 disables the expansion service, which is not needed
            *(f"--flink-master={addresses.rest.removeprefix('http://')}", f"--flink-conf-dir={conf}"),
            f"--artifacts-dir={home / 'cluster' / 'artifacts'}",
        ),
        *(_JOB_SERVER_MB, _JOB_SERVER_MB + _METASPACE_MB),
        *(["jobs", addresses.jobs], addresses.jobs),
    )
    return [
        manager,
        *workers,
        server,
        *(_pool(home, number, addresses) for number in range(1, settings.task_managers + 1)),
    ]


def _pool(home: Path, number: int, at: Addresses) -> Part:
    name = f"workers-{number}"
    asked_at = pool_socket(home, name)
    return Part(
        name=name,
        what="Python worker pool",
        command=list(python_command("ciml.engines.flink.worker_pool", at.workers.rpartition(":")[2], asked_at)),
        check=["pool", asked_at],
        address=at.workers,
        scratch=str(home / "cluster" / "scratch" / name),
        log=str(home / "logs" / f"cluster-{name}.log"),
        environment={**python_environment(), "PYTHONUNBUFFERED": "1"},
        patience_s=20.0,
    )


def _plugins(home: Path, settings: Settings) -> Path:
    """Return Flink's plugin folder, with the S3 file system if the state is on S3."""
    folder = home / "cluster" / "plugins"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "s3"
    link.unlink(missing_ok=True)
    if settings.state:
        jars.class_path("flink-s3", settings.notify)  # fetches the jar
        link.symlink_to(jars.jar_folder("flink-s3"), target_is_directory=True)
    return folder
