"""Flink, embedded in Beam's job server; bounded micro-batches where there is no Java."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ciml.errors import EngineError
from cli.engines import jars
from cli.engines.base import HOST, Engine, Launch, Settings, java_arguments, listens
from cli.engines.state import LIGHT, REAL, EngineState

MICRO_BATCHES = "light: bounded micro-batches"
_MAIN = "org.apache.beam.runners.flink.FlinkJobServerDriver"
_GET_JOBS = "/org.apache.beam.model.job_management.v1.JobService/GetJobs"
# Each job has a small Flink, and a REST port, of its own.
_REST_PORTS = 16

# What Flink's and Beam's serialisation reaches into by reflection, which Java 17 forbids unless told.
_OPENED = (
    *("java.lang", "java.net", "java.io", "java.nio", "sun.nio.ch", "java.lang.reflect", "java.text", "java.time"),
    *("java.util", "java.util.concurrent", "java.util.concurrent.atomic", "java.util.concurrent.locks"),
)

_CONFIGURATION = """\
rest.address: {host}
rest.bind-address: {host}
rest.bind-port: {first}-{last}
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
        first = ports["flink-rest"]
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
            "-XX:+UseSerialGC",
            "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true",
            f"-Djava.io.tmpdir={folder / 'scratch'}",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=info",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSZ",
            *(f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in _OPENED),
        )
        command = (
            *(java, java_arguments(folder, class_path, options), _MAIN),
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
        return state if listens(state.ports["flink"]) and _job_service_answers(state.address) else None


class MicroBatches(Engine):
    """No process: commands run bounded micro-batches themselves, from the committed offsets to the present end."""

    name = "flink"

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        return Launch(EngineState(self.name, LIGHT, MICRO_BATCHES), None)

    def ready(self, home: Path, state: EngineState) -> EngineState | None:
        return state


def _job_service_answers(address: str, timeout_s: float = 2.0) -> bool:
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:  # bytes to bytes: an empty message is a valid GetJobsRequest, and Beam need not be imported
            channel.unary_unary(_GET_JOBS, None, None)(b"", timeout=timeout_s, wait_for_ready=True)
        except grpc.RpcError:
            return False
    return True


@dataclass(frozen=True)
class Job:
    """A job that the job server knows.

    Attributes:
      id: as the job API takes it.
      name: as its submitter named it.
      state: Beam's word: ``RUNNING``, ``DONE``, ``CANCELLED``, ``FAILED``, …
    """

    id: str
    name: str
    state: str

    @property
    def over(self) -> bool:
        """Whether it will never run again."""
        return self.state in ("DONE", "CANCELLED", "FAILED", "DRAINED", "UPDATED")


def list_jobs(endpoint: str, timeout_s: float = 10.0) -> list[Job]:
    """The jobs that the job server at ``endpoint`` (``host:port``) was given since it started.

    Raises:
      EngineError: when it does not answer.
    """
    from apache_beam.portability.api import beam_job_api_pb2

    with _job_service(endpoint) as service:
        answer = service.GetJobs(beam_job_api_pb2.GetJobsRequest(), timeout=timeout_s)
        return [Job(job.job_id, job.job_name, _state_name(job.state)) for job in answer.job_info]


def cancel_job(endpoint: str, job_id: str, timeout_s: float = 60.0) -> Job:
    """Cancels a job by the job API and waits until it is over. One that is over already is left as it is.

    Returns:
      The job as it ended: ``CANCELLED``, or how it ended before the request came.

    Raises:
      EngineError: when the job server does not answer or does not know the job, or it is not over in time.
    """
    from apache_beam.portability.api import beam_job_api_pb2

    deadline = time.monotonic() + timeout_s
    with _job_service(endpoint) as service:
        while True:
            state = _state_name(
                service.GetState(beam_job_api_pb2.GetJobStateRequest(job_id=job_id), timeout=timeout_s).state
            )
            job = Job(job_id, "", state)
            if job.over:
                return job
            if time.monotonic() > deadline:
                raise EngineError(f"job {job_id} at {endpoint} is still {state} {timeout_s:g} s after it was cancelled")
            # Again and again: a request that comes while the job is being set up is lost.
            service.Cancel(beam_job_api_pb2.CancelJobRequest(job_id=job_id), timeout=timeout_s)
            time.sleep(0.2)


def cancel_all_jobs(endpoint: str, timeout_s: float = 60.0) -> list[Job]:
    """Cancels every job that is not over yet; returns them as they ended."""
    return [cancel_job(endpoint, job.id, timeout_s) for job in list_jobs(endpoint) if not job.over]


@contextmanager
def _job_service(endpoint: str) -> Iterator[Any]:
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2_grpc

    with grpc.insecure_channel(endpoint) as channel:
        try:
            yield beam_job_api_pb2_grpc.JobServiceStub(channel)
        except grpc.RpcError as error:
            raise EngineError(f"Flink's job server at {endpoint}: {error.code().name}: {error.details()}") from error


def _state_name(state: int) -> str:
    from apache_beam.portability.api import beam_job_api_pb2

    return str(beam_job_api_pb2.JobState.Enum.Name(state))
