"""Jobs on Flink: listed, observed, and stopped with or without a savepoint, by Flink's REST API and Beam's job server.

Beam's own cancel is not enough. The job server answers ``CANCELLED`` and interrupts the thread that waits for the job,
but the embedded Flink keeps running: Beam does not propagate the cancel. So a job is cancelled on both sides.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ciml.errors import EngineError

_REST_TIMEOUT_S = 10.0
_FINAL_STATES = frozenset({"FINISHED", "CANCELED", "FAILED"})
#: A permanent error of ciml in a worker's traceback.
_FAULT = re.compile(r"\bIntegrityError: (.+)")


@dataclass(frozen=True)
class RestJob:
    """A job in Flink's overview.

    Attributes:
      base: URL of the REST API.
      id, name, state: from Flink.
      began_s: time of submission, epoch seconds.
      all_run: whether all of its tasks run.
    """

    base: str
    id: str
    name: str
    state: str
    began_s: float
    all_run: bool

    @property
    def over(self) -> bool:
        """Whether the job has ended."""
        return self.state in _FINAL_STATES


@dataclass(frozen=True)
class Checkpoints:
    """The last completed checkpoint of a job: its size in bytes, its time in epoch seconds, its URL."""

    bytes: int
    time_s: float
    path: str = ""


@dataclass(frozen=True)
class CheckpointCounts:
    """Counts of a job's checkpoints and restores since its submission."""

    completed: int
    failed: int
    in_progress: int
    restored: int


@dataclass(frozen=True)
class Failure:
    """A failure recorded by Flink: epoch seconds, task and TaskManager if known, stack trace."""

    time_s: float
    task: str
    taskmanager: str
    trace: str


def overview(base: str, timeout_s: float = _REST_TIMEOUT_S) -> list[RestJob]:
    """Return Flink's jobs.

    Raises:
      EngineError: if Flink does not answer.
    """
    jobs = []
    for job in _ask("GET", f"{base}/jobs/overview", timeout_s=timeout_s)["jobs"]:
        tasks = {"total": 0, "running": 0, "finished": 0, **job.get("tasks", {})}
        jobs.append(
            RestJob(
                base,
                job["jid"],
                job["name"],
                job["state"],
                job["start-time"] / 1000,
                job["state"] == "RUNNING" and tasks["total"] == tasks["running"] + tasks["finished"],
            )
        )
    return jobs


def last_checkpoint(job: RestJob) -> Checkpoints | None:
    """Return the last completed checkpoint of a job; None before the first."""
    latest = _ask("GET", f"{job.base}/jobs/{job.id}/checkpoints").get("latest") or {}
    completed = latest.get("completed")
    if not completed:
        return None
    return Checkpoints(
        int(completed["state_size"]), completed["latest_ack_timestamp"] / 1000, completed.get("external_path") or ""
    )


def checkpoint_counts(job: RestJob) -> CheckpointCounts:
    """Return the counts of a job's checkpoints."""
    counts = _ask("GET", f"{job.base}/jobs/{job.id}/checkpoints")["counts"]
    return CheckpointCounts(**{name: int(counts[name]) for name in ("completed", "failed", "in_progress", "restored")})


def find(base: str, name: str) -> RestJob | None:
    """Return the job of that name: a running one, else the last submitted; None if Flink knows none."""
    named = [job for job in overview(base) if job.name == name]
    return max(named, key=lambda job: (not job.over, job.began_s), default=None)


def taskmanagers(base: str) -> dict[str, tuple[int, int]]:
    """Return (slots, free slots) of the JobManager's TaskManagers by id."""
    answer = _ask("GET", f"{base}/taskmanagers")["taskmanagers"]
    return {
        taskmanager["id"]: (int(taskmanager["slotsNumber"]), int(taskmanager["freeSlots"])) for taskmanager in answer
    }


def failures(job: RestJob, most: int = 16) -> list[Failure]:
    """Return a job's failures, latest first; a running job was restarted after each."""
    answer = _ask("GET", f"{job.base}/jobs/{job.id}/exceptions?maxExceptions={most}")
    return [
        Failure(
            entry["timestamp"] / 1000,
            entry.get("taskName") or "",
            entry.get("taskManagerId") or "",
            str(entry.get("stacktrace", "")),
        )
        for entry in (answer.get("exceptionHistory") or {}).get("entries") or []
    ]


def restarts(job: RestJob) -> int | None:
    """Return the number of restarts of a job; None if unknown."""
    for metric in _ask("GET", f"{job.base}/jobs/{job.id}/metrics?get=numRestarts"):
        return int(float(metric["value"]))
    return None


def failure(job: RestJob) -> tuple[str, str]:
    """Return (cause, permanent error or "") of a job's last failure or restart."""
    history = _ask("GET", f"{job.base}/jobs/{job.id}/exceptions").get("exceptionHistory") or {}
    entries = history.get("entries") or []
    text = str(entries[0].get("stacktrace", "")) if entries else ""
    match = _FAULT.search(text)
    fault = match[1].split(" [while running")[0].strip() if match else ""
    causes = re.findall(r"^(?:Caused by: )?(?:[\w$]+\.)*([A-Z][\w$]*(?:Exception|Error)): (.+)$", text, re.MULTILINE)
    line = ": ".join(causes[-1]) if causes else text.strip().splitlines()[0] if text.strip() else ""
    return line[:300], fault


def cancel(job: RestJob, timeout_s: float = _REST_TIMEOUT_S) -> None:
    """Request a job's cancellation; ended or unknown jobs are ignored."""
    _ask("PATCH", f"{job.base}/jobs/{job.id}?mode=cancel", allowed=(404, 409), timeout_s=timeout_s)


def stop_with_savepoint(job: RestJob, directory: str = "", timeout_s: float = 120.0, drain: bool = False) -> str:
    """Stop a job with a savepoint, which holds its work in progress.

    Args:
      job: a running job.
      directory: URL of the savepoint's folder; "" for Flink's configured one.
      timeout_s: limit, seconds.
      drain: advance the watermark to the end first, which fires every timer; for a job that will not be resumed.

    Returns:
      The savepoint's URL.

    Raises:
      EngineError: if no savepoint was made; the job keeps running then.
    """
    body: dict[str, Any] = {"drain": drain, **({"targetDirectory": directory} if directory else {})}
    request = _ask("POST", f"{job.base}/jobs/{job.id}/stop", body)["request-id"]
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = _ask("GET", f"{job.base}/jobs/{job.id}/savepoints/{request}")
        if answer["status"]["id"] == "COMPLETED":
            operation = answer.get("operation") or {}
            if "failure-cause" in operation:
                raise EngineError(
                    f"Flink made no savepoint: {_root(str(operation['failure-cause'].get('stack-trace', '')))}"
                )
            return str(operation["location"])
        time.sleep(0.2)
    raise EngineError(f"Flink made no savepoint within {timeout_s:.0f} s")


def _root(trace: str) -> str:
    lines = [line.removeprefix("Caused by: ") for line in trace.splitlines() if line and not line.startswith("\t")]
    return (lines[-1] if lines else trace)[:300]


def _ask(
    method: str, url: str, body: Any = None, allowed: tuple[int, ...] = (), timeout_s: float = _REST_TIMEOUT_S
) -> Any:
    import httpx

    try:
        answer = httpx.request(method, url, json=body, timeout=timeout_s, trust_env=False)
    except httpx.HTTPError as error:
        raise EngineError(
            f"Flink at {url.split('/jobs')[0]} does not answer ({str(error) or type(error).__name__})"
        ) from None
    if answer.status_code in allowed:
        return {}
    if answer.status_code >= 400:
        try:
            text = " ".join(str(line) for line in answer.json().get("errors", []))
        except ValueError:
            text = answer.text
        thrown = re.findall(r"\b(\w+(?:Exception|Error): [^\n]+)", text)
        line = thrown[-1] if thrown else text.strip().splitlines()[0] if text.strip() else ""
        raise EngineError(f"Flink rejects {method} {url}: {answer.status_code} {line[:300]}")
    return answer.json() if answer.content else {}


_OVER = frozenset({"DONE", "CANCELLED", "FAILED", "DRAINED", "UPDATED"})
_TIMEOUT_S = 5.0
# Limit between the job server's RUNNING and the first answer of the job's REST API.
_START_UP_S = 15.0


@dataclass(frozen=True)
class Job:
    """A job of the job server.

    Attributes:
      id: of the job API.
      name: given by its submitter. It must be unique: Flink identifies the job by it.
      state: Beam's state: ``RUNNING``, ``DONE``, ``CANCELLED``, ``FAILED``, …
    """

    id: str
    name: str
    state: str

    @property
    def over(self) -> bool:
        """Whether the job has ended, according to Beam."""
        return self.state in _OVER


def list_jobs(endpoint: str, timeout_s: float = 10.0) -> list[Job]:
    """Return the jobs of the job server at ``endpoint`` (``host:port``) since its start.

    Raises:
      EngineError: if it does not answer.
    """
    from apache_beam.portability.api import beam_job_api_pb2

    with _job_service(endpoint) as service:
        answer = service.GetJobs(beam_job_api_pb2.GetJobsRequest(), timeout=timeout_s)
        return [Job(job.job_id, job.job_name, _word(job.state)) for job in answer.job_info]


def list_flink_jobs(endpoint: str) -> list[RestJob]:
    """Return the jobs of the Flink inside the job server at ``endpoint``; none when that is not on this machine."""
    jobs: list[RestJob] = []
    for address in _rest_addresses(endpoint):
        with contextlib.suppress(EngineError, ValueError):
            jobs += overview(address, timeout_s=_TIMEOUT_S)
    return jobs


def cancel_job(endpoint: str, job_id: str, timeout_s: float = 60.0) -> Job:
    """Cancel a job on both sides and wait for its end. An ended job is not changed.

    Args:
      endpoint: the job server's ``host:port``; on this machine, to reach the Flink inside.
      job_id: as `list_jobs` and Beam's `PortableRunner` give it.
      timeout_s: limit of the whole call.

    Returns:
      The ended job: ``CANCELLED``, or its earlier final state.

    Raises:
      EngineError: if the job server does not answer or does not know the job, or it does not end in time.
    """
    from apache_beam.portability.api import beam_job_api_pb2

    deadline = time.monotonic() + timeout_s
    jobs = [job for job in list_jobs(endpoint) if job.id == job_id]
    if not jobs:
        raise EngineError(f"the job server at {endpoint} does not know job {job_id}")
    job = jobs[0]
    # A job that Beam calls cancelled may still run in Flink; a done or failed one ended there first.
    if job.state in ("DONE", "FAILED"):
        return job
    at_work = _at_work(endpoint, job.name)
    if not job.over:
        young = time.monotonic() + _START_UP_S
        while not at_work and time.monotonic() < min(young, deadline) and not job.over:
            time.sleep(0.1)  # not in Flink yet: the submission would overtake a cancel
            at_work = _at_work(endpoint, job.name)
            job = next(flink_job for flink_job in list_jobs(endpoint) if flink_job.id == job_id)
    with _job_service(endpoint) as service:
        while True:
            if not job.over:
                service.Cancel(beam_job_api_pb2.CancelJobRequest(job_id=job_id), timeout=10)
            at_work = _at_work(endpoint, job.name)
            for flink_job in at_work:
                with contextlib.suppress(EngineError):  # ended meanwhile: checked again
                    cancel(flink_job, timeout_s=_TIMEOUT_S)
            request = beam_job_api_pb2.GetJobStateRequest(job_id=job_id)
            job = Job(job_id, job.name, _word(service.GetState(request, timeout=10).state))
            if job.over and not at_work:
                return job
            if time.monotonic() > deadline:
                inside = ", ".join(flink_job.state for flink_job in at_work) or "over"
                raise EngineError(f"job {job_id} is {job.state} (in Flink: {inside}) {timeout_s:g} s after its cancel")
            time.sleep(0.1)


def cancel_all_jobs(endpoint: str, timeout_s: float = 60.0) -> list[Job]:
    """Cancel every job that has not ended on both sides; return these in their final states."""
    inside = {flink_job.name for flink_job in list_flink_jobs(endpoint) if not flink_job.over}
    jobs = [job for job in list_jobs(endpoint) if not job.over or (job.name in inside and job.state == "CANCELLED")]
    return [cancel_job(endpoint, job.id, timeout_s) for job in jobs]


def cancel_orphans(endpoint: str, timeout_s: float = 60.0) -> list[Job]:
    """Cancel jobs whose workers were threads of an ended process (LOOPBACK); return these in their final states.

    Flink would restart such a job for ever, each time with a port, threads and network memory.
    """
    return [
        cancel_job(endpoint, job.id, timeout_s)
        for job in list_jobs(endpoint)
        if not job.over and any(not _listens(worker) for worker in _loopback_workers(endpoint, job.id))
    ]


def forget_job(endpoint: str, job_id: str) -> None:
    """Mark a job as cancelled in Beam's job server, which does not notice its end in Flink.

    Does not import Beam. Does nothing if the job has ended in Beam too, or the job server does not answer.
    """
    import grpc

    data = job_id.encode()
    with grpc.insecure_channel(endpoint) as channel, contextlib.suppress(grpc.RpcError):
        cancel = channel.unary_unary("/org.apache.beam.model.job_management.v1.JobService/Cancel", None, None)
        size = bytes([len(data)]) if len(data) < 128 else bytes([len(data) & 127 | 128, len(data) >> 7])
        cancel(b"\n" + size + data, timeout=5)  # a CancelJobRequest: the id is its field 1


def _loopback_workers(endpoint: str, job_id: str) -> list[int]:
    """Return the local ports at which a job expects its workers."""
    from apache_beam.portability.api import beam_job_api_pb2, beam_runner_api_pb2

    with _job_service(endpoint) as service:
        request = beam_job_api_pb2.GetJobPipelineRequest(job_id=job_id)
        environments = service.GetPipeline(request, timeout=10).pipeline.components.environments.values()
    ports = []
    for environment in environments:
        if environment.urn == "beam:env:external:v1":
            host, _, port = beam_runner_api_pb2.ExternalPayload.FromString(environment.payload).endpoint.url.rpartition(
                ":"
            )
            if host in ("localhost", "127.0.0.1", "[::1]"):
                ports.append(int(port))
    return ports


def _listens(port: int) -> bool:
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for connection in psutil.net_connections("tcp")
    )


def _at_work(endpoint: str, name: str) -> list[RestJob]:
    return [job for job in list_flink_jobs(endpoint) if job.name == name and not job.over]


def _rest_addresses(endpoint: str) -> list[str]:
    """Return the REST addresses of a job server's Flinks: each job has one, on a port of the configured range.

    Only ports of the job server's own process count, since other programs may use the range.
    """
    port = int(endpoint.rpartition(":")[2])
    listening = [
        connection
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr
    ]
    owner = next((connection.pid for connection in listening if connection.laddr.port == port and connection.pid), None)
    if owner is None:
        return []
    try:
        command = psutil.Process(owner).cmdline()
    except psutil.Error:
        return []
    flags = dict(word.split("=", 1) for word in command if word.startswith("--flink-") and "=" in word)
    master = flags.get("--flink-master", "[auto]")
    if not master.startswith("["):
        return [f"http://{master}"]  # a standalone cluster, with one REST API for all jobs
    try:
        lines = Path(flags["--flink-conf-dir"], "flink-conf.yaml").read_text().splitlines()
        first, _, last = next(
            line.split(":")[1].strip() for line in lines if line.startswith("rest.bind-port:")
        ).partition("-")
    except (KeyError, OSError, StopIteration):
        return []
    span = range(int(first), int(last or first) + 1)
    ports = {
        connection.laddr.port for connection in listening if connection.pid == owner and connection.laddr.port in span
    }
    return [f"http://127.0.0.1:{connection}" for connection in sorted(ports)]


@contextmanager
def _job_service(endpoint: str) -> Iterator[Any]:
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2_grpc

    with grpc.insecure_channel(endpoint) as channel:
        try:
            yield beam_job_api_pb2_grpc.JobServiceStub(channel)
        except grpc.RpcError as error:
            raise EngineError(f"Flink's job server at {endpoint}: {error.code().name}: {error.details()}") from error


def _word(state: int) -> str:
    from apache_beam.portability.api import beam_job_api_pb2

    return str(beam_job_api_pb2.JobState.Enum.Name(state))
