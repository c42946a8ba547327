"""A standalone Flink cluster: its engine, Flink's configuration, and the commands of its parts.

The parts are a JobManager, TaskManagers, a job server and Python workers. A watchdog starts and restarts them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from ciml.engines import jars, processes
from ciml.engines.base import HOST, Engine, Launch, Settings
from ciml.engines.flink import job_server, parts
from ciml.engines.flink.parts import MARK, Health, Part, PartState, pool_socket
from ciml.engines.jars import NoJava
from ciml.engines.processes import python_command
from ciml.engines.state import EngineState
from ciml.errors import EngineError
from ciml.storage import open_store

_GRACE_S = 8.0  # between SIGTERM and SIGKILL
_JOB_MANAGER_MB = 384
_JOB_SERVER_MB = 320
_FRAMEWORK_HEAP_MB = 128
_OFF_HEAP_MB = 64
_NETWORK_MB = 64
_METASPACE_MB = 160
_OVERHEAD_MB = 128

#: Settings that jobs do not set themselves. Checkpoints survive a cancel and a failure.
#: A JobManager and a TaskManager lose each other after 20 s without a heartbeat, or as soon as a port closes.
#: A job's jars are those of the cluster, so its classes are loaded from there.
SETTINGS = {
    **job_server.SETTINGS,
    "taskmanager.memory.task.off-heap.size": "0m",
    "state.checkpoints.num-retained": "3",
    "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
    "execution.checkpointing.tolerable-failed-checkpoints": "10",
    "heartbeat.interval": "2000",
    "heartbeat.timeout": "20000",
    "heartbeat.rpc-failure-threshold": "2",
    "jobstore.expiration-time": "86400",
    "classloader.resolve-order": "parent-first",
}


class Cluster(Engine):
    """The engine. Its process is the watchdog; ``<home>/cluster/parts.json`` lists the processes of the parts."""

    name = "cluster"
    uses = ("cluster-jobs", "cluster-rest", "cluster-rpc", "cluster-blob", "cluster-workers")

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        if settings.state:  # a missing bucket would only show as failing checkpoints
            next(iter(open_store(settings.state).entries("")), None)
        folder = home / "cluster"
        chosen = dict(ports)
        if parts.cluster_processes(home):  # its watchdog was killed: running parts keep their ports
            chosen = dict(parts.read_plan(folder).settings.get("ports", ports))
        for name in ("checkpoints", "savepoints"):
            (home / "flink" / name).mkdir(parents=True, exist_ok=True)
        try:
            planned = make_parts(home, chosen, settings)
        except NoJava as error:
            raise NoJava(f"a Flink cluster needs Java ({error}); without Java use --engine micro-batches") from error
        endpoints = addresses(chosen)
        state_place = settings.state or str(home / "flink")
        parts.write_plan(folder, planned, {"ports": chosen, "state": state_place, "rest": endpoints["rest"]})
        return Launch(
            f"Flink 1.19, standalone: {settings.task_managers} × {settings.slots} slots",
            python_command("ciml.engines.flink.cluster_watchdog", str(home), str(folder)),
            chosen,
            address=endpoints["jobs"],
            urls={**endpoints, "state": state_root(home, settings)},
            environment={MARK: str(home), "PYTHONUNBUFFERED": "1"},
            memory_mb=sum(planned_part.memory_mb or 0 for planned_part in planned),
        )

    def ready(self, home: Path, state: EngineState) -> EngineState | None:
        return None if self._unhealthy_parts(home) else state

    def missing(self, home: Path, state: EngineState) -> str:
        return ", ".join(f"{part.name} ({part.log})" for part in self._unhealthy_parts(home))

    @staticmethod
    def _unhealthy_parts(home: Path) -> list[Part]:
        states = parts.read_states(home / "cluster")
        planned = parts.read_plan(home / "cluster").parts
        return [part for part in planned if health(part, states.get(part.name, PartState(part.name))) != "ok"]

    def end(self, home: Path, state: EngineState) -> bool:
        """Stop the watchdog first, since it would restart the rest, then all processes with the cluster's mark."""
        watchdog = processes.find(state.process)
        if watchdog is not None:
            _signal([watchdog], psutil.Process.kill)
        remaining = ran = parts.cluster_processes(home)
        _signal(remaining, psutil.Process.terminate)
        start_s = time.monotonic()
        while remaining:
            waited_s = time.monotonic() - start_s
            if waited_s > 2 * _GRACE_S:
                raise EngineError(f"cluster in {home}: processes {[process.pid for process in remaining]} do not stop")
            if waited_s > _GRACE_S:
                _signal(remaining, psutil.Process.kill)
            time.sleep(0.05)
            remaining = parts.cluster_processes(home)
        parts.states_file(home / "cluster").unlink(missing_ok=True)
        return bool(ran) or watchdog is not None


def _signal(receivers: list[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    for process in receivers:
        with contextlib.suppress(psutil.NoSuchProcess):
            send(process)


def health(part: Part, state: PartState) -> Health:
    """Return the health of a part."""
    if processes.find(state.process) is None:
        return "dead"
    if parts.run_check(part.check) == "yes":
        return "ok"
    return "no answer" if state.answered else "starting"


def cluster_parts(home: Path) -> dict[str, PartState]:
    """Return the states of the cluster's parts by name, as the watchdog last recorded them."""
    return parts.read_states(home / "cluster")


def part_rows(home: Path) -> dict[str, dict[str, object]]:
    """Return each part of the cluster of ``home`` with process, memory and health, for `ciml status`."""
    states = parts.read_states(home / "cluster")
    rows: dict[str, dict[str, object]] = {}
    for part in parts.read_plan(home / "cluster").parts:
        part_state = states.get(part.name, PartState(part.name))
        rows[part.name] = {
            **asdict(part_state),
            "what": part.what,
            "address": part.address,
            "log": part.log,
            "memory_mb": part.memory_mb,
            "memory_used_mb": processes.memory_mb(part_state.process),
            "health": health(part, part_state),
        }
    return rows


def addresses(ports: Mapping[str, int]) -> dict[str, str]:
    """Return the addresses of a cluster, all on loopback.

    Returns:
      ``jobs``, the ``host:port`` of Beam's job server; ``rest``, the URL of Flink's REST API; ``workers``, the
      ``host:port`` that the Python worker pools share.
    """
    return {
        "jobs": f"{HOST}:{ports['cluster-jobs']}",
        "rest": f"http://{HOST}:{ports['cluster-rest']}",
        "workers": f"{HOST}:{ports['cluster-workers']}",
    }


def state_root(home: Path, settings: Settings) -> str:
    """Return the URL of the folder of checkpoints and savepoints."""
    return settings.state.rstrip("/") if settings.state else (home / "flink").as_uri()


def write_configuration(home: Path, ports: Mapping[str, int], settings: Settings) -> Path:
    """Write ``flink-conf.yaml`` and return its folder."""
    state = state_root(home, settings)
    configuration: dict[str, object] = {
        **SETTINGS,
        "rest.port": ports["cluster-rest"],
        "rest.bind-port": ports["cluster-rest"],
        "jobmanager.rpc.port": ports["cluster-rpc"],
        "blob.server.port": ports["cluster-blob"],
        "taskmanager.numberOfTaskSlots": settings.slots,
        "taskmanager.cpu.cores": settings.slots,
        "taskmanager.memory.task.heap.size": f"{settings.flink_heap_mb}m",
        "taskmanager.memory.framework.heap.size": f"{_FRAMEWORK_HEAP_MB}m",
        "taskmanager.memory.framework.off-heap.size": f"{_OFF_HEAP_MB}m",
        "taskmanager.memory.jvm-metaspace.size": f"{_METASPACE_MB}m",
        "taskmanager.memory.jvm-overhead.min": f"{_OVERHEAD_MB}m",
        "taskmanager.memory.jvm-overhead.max": f"{_OVERHEAD_MB}m",
        "state.backend.type": settings.state_backend,
        "state.savepoints.dir": f"{state}/savepoints",
    }
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if settings.state and endpoint:  # credentials come from the environment and are not written to disk
        configuration |= {"s3.endpoint": endpoint, "s3.path.style.access": "true"}
    folder = home / "cluster" / "conf"
    job_server.write_settings(folder, configuration, network_mb=_NETWORK_MB, checkpoints=f"{state}/checkpoints")
    return folder


def make_parts(home: Path, ports: Mapping[str, int], settings: Settings) -> list[Part]:
    """Write a cluster's configuration and return its parts.

    Raises:
      NoJava: without Java, or without jars and Maven.
    """
    maker = _PartMaker(
        home,
        ports,
        settings,
        java=jars.find_java(),
        class_path=jars.class_path("cluster", settings.notify),
        configuration=write_configuration(home, ports, settings),
        plugins=_link_plugins(home, settings),
    )
    numbers = range(1, settings.task_managers + 1)
    return [
        maker.job_manager(),
        *(maker.task_manager(f"taskmanager-{number}") for number in numbers),
        maker.job_server(),
        *(maker.worker_pool(f"workers-{number}") for number in numbers),
    ]


@dataclass(frozen=True)
class _PartMaker:
    """Describes the parts of a cluster; ``configuration`` and ``plugins`` are folders for Flink."""

    home: Path
    ports: Mapping[str, int]
    settings: Settings
    java: str
    class_path: str
    configuration: Path
    plugins: Path

    @property
    def endpoints(self) -> dict[str, str]:
        return addresses(self.ports)

    def job_manager(self) -> Part:
        name = "jobmanager"
        entry_point = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
        main = (entry_point, "--configDir", str(self.configuration), "-D", f"io.tmp.dirs={self._scratch(name)}")
        rest = self.endpoints["rest"]
        part = self._java_part(name, main, heap_mb=_JOB_MANAGER_MB, outside_mb=_METASPACE_MB)
        return replace(part, what="Flink 1.19 JobManager", check=["http", f"{rest}/overview"], address=rest)

    def task_manager(self, name: str) -> Part:
        identity = ("-D", f"taskmanager.resource-id={name}", "-D", f"io.tmp.dirs={self._scratch(name)}")
        entry_point = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
        main = (entry_point, "--configDir", str(self.configuration), *identity)
        heap_mb = self.settings.flink_heap_mb + _FRAMEWORK_HEAP_MB
        outside_mb = _OFF_HEAP_MB + job_server.MANAGED_MB + _NETWORK_MB + _METASPACE_MB + _OVERHEAD_MB
        part = self._java_part(name, main, heap_mb=heap_mb, outside_mb=outside_mb)
        check = ["taskmanager", self.endpoints["rest"], name]
        return replace(part, what="Flink 1.19 TaskManager", check=check, patience_s=45.0)

    def job_server(self) -> Part:
        arguments = job_server.job_server(
            self.ports["cluster-jobs"], self.configuration, self.home / "cluster" / "artifacts"
        )
        main = (*arguments, f"--flink-master={self.endpoints['rest'].removeprefix('http://')}")
        part = self._java_part("jobserver", main, heap_mb=_JOB_SERVER_MB, outside_mb=_METASPACE_MB)
        jobs = self.endpoints["jobs"]
        return replace(part, what="Beam 2.62 job server", check=["jobs", jobs], address=jobs)

    def worker_pool(self, name: str) -> Part:
        health_socket = pool_socket(self.home, name)
        port = str(self.ports["cluster-workers"])
        command = python_command("ciml.engines.flink.worker_pool", port, health_socket)
        part = self._part(name, list(command), {"PYTHONUNBUFFERED": "1"})
        check = ["pool", health_socket]
        return replace(part, what="Python worker pool", check=check, address=self.endpoints["workers"])

    def _java_part(self, name: str, main: tuple[str, ...], *, heap_mb: int, outside_mb: int) -> Part:
        folder = self.home / "cluster" / name
        arguments = job_server.flink_arguments(folder, self.class_path, heap_mb, self._scratch(name))
        part = self._part(name, [self.java, arguments, *main], {"FLINK_PLUGINS_DIR": str(self.plugins)})
        return replace(part, memory_mb=heap_mb + outside_mb)

    def _part(self, name: str, command: list[str], environment: dict[str, str]) -> Part:
        log = self.home / "logs" / f"cluster-{name}.log"
        return Part(
            name, "", command, [], "", str(self._scratch(name)), str(log), environment=environment, patience_s=20.0
        )

    def _scratch(self, name: str) -> Path:
        return self.home / "cluster" / "scratch" / name


def _link_plugins(home: Path, settings: Settings) -> Path:
    """Make Flink's plugin folder, with the S3 file system if the state is on S3; return it."""
    folder = home / "cluster" / "plugins"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "s3"
    link.unlink(missing_ok=True)
    if settings.state:
        jars.class_path("flink-s3", settings.notify)  # fetches the jar
        link.symlink_to(jars.jar_folder("flink-s3"), target_is_directory=True)
    return folder
