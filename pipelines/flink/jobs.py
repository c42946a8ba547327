"""Lists, observes and stops jobs on Flink, by Flink's REST API and Beam's job server.

Beam submits a pipeline to a *job server*, which starts a Flink inside its own process or uses a standalone cluster. So
each pipeline is a `Job` of the job server and a `RestJob` of Flink's REST API, with the same name.

Beam's own cancel is not enough. The job server answers ``CANCELLED`` and interrupts the thread that waits for the job,
but the embedded Flink keeps running: Beam does not propagate the cancel. So `cancel_job` cancels a job in both.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from ciml.errors import EngineError
from ciml.manifest.coverage import OtherTopicError

_REST_TIMEOUT_S = 10.0
#: Final states of Flink.
_FINAL_STATES = frozenset({"FINISHED", "CANCELED", "FAILED"})
#: Final states of Beam.
OVER = frozenset({"DONE", "CANCELLED", "FAILED", "DRAINED", "UPDATED"})
#: A permanent error of ciml in a worker's traceback: its class and message.
_CIML_ERROR = re.compile(r"\b(?P<error>IntegrityError|OtherTopicError): (?P<message>.+)")
#: A line of a Java stack trace that names an exception, which is the group.
_JAVA_EXCEPTION = re.compile(r"^(?:Caused by: )?(?:[\w$]+\.)*([A-Z][\w$]*(?:Exception|Error): .+)$", re.MULTILINE)
#: Limit of a request to the Flink in a job server.
_EMBEDDED_TIMEOUT_S = 5.0
#: Limit between the job server's RUNNING and the first answer of the job's REST API.
_START_UP_S = 15.0


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

    @property
    def url(self) -> str:
        """The job's URL in the REST API."""
        return f"{self.base}/jobs/{self.id}"


@dataclass(frozen=True)
class Checkpoint:
    """A completed checkpoint of a job: its size in bytes, its time in epoch seconds, its URL."""

    bytes: int
    time_s: float
    path: str = ""


def list_rest_jobs(base: str, timeout_s: float = _REST_TIMEOUT_S) -> list[RestJob]:
    """Return the jobs that Flink knows, running and ended.

    Raises:
      EngineError: if Flink does not answer.
    """
    jobs = []
    for job in ask("GET", f"{base}/jobs/overview", timeout_s=timeout_s)["jobs"]:
        tasks = {"total": 0, "running": 0, "finished": 0, **job.get("tasks", {})}
        all_run = job["state"] == "RUNNING" and tasks["total"] == tasks["running"] + tasks["finished"]
        jobs.append(RestJob(base, job["jid"], job["name"], job["state"], job["start-time"] / 1000, all_run))
    return jobs


def last_checkpoint(job: RestJob) -> Checkpoint | None:
    """Return the last completed checkpoint of a job; None before the first."""
    latest = ask("GET", f"{job.url}/checkpoints").get("latest") or {}
    completed = latest.get("completed")
    if not completed:
        return None
    time_s = completed["latest_ack_timestamp"] / 1000
    return Checkpoint(int(completed["state_size"]), time_s, completed.get("external_path") or "")


def find_rest_job(base: str, name: str) -> RestJob | None:
    """Return the job of that name: a running one, else the last submitted; None if Flink knows none."""
    named = [job for job in list_rest_jobs(base) if job.name == name]
    return max(named, key=lambda job: (not job.over, job.began_s), default=None)


def count_restarts(job: RestJob) -> int | None:
    """Return the number of restarts of a job; None if Flink reports none yet."""
    metrics = ask("GET", f"{job.url}/metrics?get=numRestarts")
    return int(float(metrics[0]["value"])) if metrics else None


class Failure(NamedTuple):
    """Why a job failed or restarted.

    Attributes:
      cause: for people; "" for no failure.
      fault: the permanent error of ciml; "" for none.
      needs_adoption: whether that is an `OtherTopicError`.
    """

    cause: str = ""
    fault: str = ""
    needs_adoption: bool = False


def last_failure(job: RestJob) -> Failure:
    """Return the last failure or restart of a job; empty without one."""
    history = ask("GET", f"{job.url}/exceptions").get("exceptionHistory") or {}
    entries = history.get("entries") or [{}]
    trace = str(entries[0].get("stacktrace", ""))
    cause = _root_cause(trace)
    match = _CIML_ERROR.search(trace)
    if match is None:
        return Failure(cause)
    fault = match["message"].split(" [while running")[0].strip()  # Beam appends the name of the step
    return Failure(cause, fault, needs_adoption=match["error"] == OtherTopicError.__name__)


def _root_cause(trace: str) -> str:
    """Return the root cause that a Java stack trace names last, or its first line."""
    lines = _JAVA_EXCEPTION.findall(trace)[-1:] or trace.strip().splitlines()[:1]
    return "".join(lines)[:300]


def cancel(job: RestJob, timeout_s: float = _REST_TIMEOUT_S) -> None:
    """Request a job's cancellation; ended or unknown jobs are ignored."""
    ask("PATCH", f"{job.url}?mode=cancel", allowed=(404, 409), timeout_s=timeout_s)


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
    target = {"targetDirectory": directory} if directory else {}
    request = ask("POST", f"{job.url}/stop", {"drain": drain, **target})["request-id"]
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = ask("GET", f"{job.url}/savepoints/{request}")
        if answer["status"]["id"] == "COMPLETED":
            operation = answer.get("operation") or {}
            if "failure-cause" in operation:
                trace = str(operation["failure-cause"].get("stack-trace", ""))
                raise EngineError(f"Flink made no savepoint: {_root_cause(trace)}")
            return str(operation["location"])
        time.sleep(0.2)
    raise EngineError(f"Flink made no savepoint within {timeout_s:.0f} s")


def ask(
    method: str, url: str, body: Any = None, allowed: tuple[int, ...] = (), timeout_s: float = _REST_TIMEOUT_S
) -> Any:
    """Send a request to Flink's REST API; return the decoded answer, {} for one of the ``allowed`` status codes.

    Raises:
      EngineError: if Flink does not answer, or rejects the request.
    """
    import httpx

    try:
        # Reading the system's certificates takes longer than a request.
        verify = url.startswith("https:")
        answer = httpx.request(method, url, json=body, timeout=timeout_s, trust_env=False, verify=verify)
    except httpx.HTTPError as error:
        base = re.split("/jobs|/taskmanagers", url)[0]
        raise EngineError(f"Flink at {base} does not answer ({str(error) or type(error).__name__})") from None
    if answer.status_code in allowed:
        return {}
    if answer.status_code >= 400:
        try:
            text = "\n".join(str(line) for line in answer.json().get("errors", []))
        except ValueError:
            text = answer.text
        raise EngineError(f"Flink rejects {method} {url}: {answer.status_code} {_root_cause(text)}")
    return answer.json() if answer.content else {}


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
        return self.state in OVER


def list_jobs(endpoint: str) -> list[Job]:
    """Return the jobs of the job server at ``endpoint`` (``host:port``) since its start.

    Raises:
      EngineError: if it does not answer.
    """
    from apache_beam.portability.api import beam_job_api_pb2

    with _job_service(endpoint) as service:
        answer = service.GetJobs(beam_job_api_pb2.GetJobsRequest(), timeout=10.0)
    name_of = beam_job_api_pb2.JobState.Enum.Name
    return [Job(job.job_id, job.job_name, str(name_of(job.state))) for job in answer.job_info]


def list_flink_jobs(endpoint: str) -> list[RestJob]:
    """Return the jobs of the Flink inside the job server at ``endpoint``; none when that is not on this machine."""
    jobs: list[RestJob] = []
    for address in _rest_addresses(endpoint):
        with contextlib.suppress(EngineError, ValueError):
            jobs += list_rest_jobs(address, timeout_s=_EMBEDDED_TIMEOUT_S)
    return jobs


def cancel_job(endpoint: str, job_id: str, timeout_s: float = 60.0) -> Job:
    """Cancel a job in Beam's job server and in Flink, and wait for it to end. An ended job is not changed.

    Args:
      endpoint: the job server's ``host:port``; on this machine, to reach the Flink inside.
      job_id: as `list_jobs` and Beam's `PortableRunner` give it.
      timeout_s: limit of the whole call.

    Returns:
      The ended job: ``CANCELLED``, or its earlier final state.

    Raises:
      EngineError: if the job server does not answer or does not know the job, or it does not end in time.
    """
    start_s = time.monotonic()
    while True:
        job = _find_job(endpoint, job_id)
        rest_jobs = list_flink_jobs(endpoint)
        running = [rest_job for rest_job in rest_jobs if rest_job.name == job.name and not rest_job.over]
        # A job that Beam calls cancelled may still run in Flink; a done or failed one ended there first.
        if job.state in ("DONE", "FAILED") or (job.over and not running):
            return job
        waited_s = time.monotonic() - start_s
        if waited_s > timeout_s:
            states = ", ".join(rest_job.state for rest_job in running) or "over"
            raise EngineError(f"job {job_id} is {job.state} (in Flink: {states}) {timeout_s:g} s after its cancel")
        # While the job is on its way to Flink, a cancel would be too early: the submission would still start it.
        if running or waited_s > min(_START_UP_S, timeout_s / 2):
            _request_cancel(endpoint, job, running)
        time.sleep(0.1)


def _find_job(endpoint: str, job_id: str) -> Job:
    for job in list_jobs(endpoint):
        if job.id == job_id:
            return job
    raise EngineError(f"the job server at {endpoint} does not know job {job_id}")


def _request_cancel(endpoint: str, job: Job, running: Iterable[RestJob]) -> None:
    """Request the cancellation of a job that may run in Beam, and of its running jobs in Flink."""
    from apache_beam.portability.api import beam_job_api_pb2

    if not job.over:
        with _job_service(endpoint) as service:
            service.Cancel(beam_job_api_pb2.CancelJobRequest(job_id=job.id), timeout=10)
    for rest_job in running:
        with contextlib.suppress(EngineError):  # it may have ended meanwhile
            cancel(rest_job, timeout_s=_EMBEDDED_TIMEOUT_S)


def cancel_orphans(endpoint: str) -> list[Job]:
    """Cancel jobs whose workers were threads of an ended process (LOOPBACK); return these in their final states.

    Flink would restart such a job again and again, each time with a port, threads and network memory.
    """
    return [cancel_job(endpoint, job.id) for job in list_jobs(endpoint) if _is_orphan(endpoint, job)]


def _is_orphan(endpoint: str, job: Job) -> bool:
    """Return whether a job has not ended, but a port of its local workers is closed."""
    return not job.over and not _loopback_workers(endpoint, job.id) <= _listener_pids().keys()


def forget_job(endpoint: str, job_id: str) -> None:
    """Mark a job as cancelled in Beam's job server, which does not notice its end in Flink.

    Does not import Beam. Does nothing if the job has ended in Beam too, or the job server does not answer.
    """
    import grpc
    from google.protobuf.wrappers_pb2 import StringValue

    # Encoded, Beam's CancelJobRequest is a StringValue: the id is field 1, and there is no other.
    request = StringValue(value=job_id).SerializeToString()
    with grpc.insecure_channel(endpoint) as channel, contextlib.suppress(grpc.RpcError):
        cancel_method = channel.unary_unary("/org.apache.beam.model.job_management.v1.JobService/Cancel", None, None)
        cancel_method(request, timeout=5)


def _loopback_workers(endpoint: str, job_id: str) -> set[int]:
    """Return the local ports at which a job expects its workers."""
    from apache_beam.portability.api import beam_job_api_pb2, beam_runner_api_pb2

    with _job_service(endpoint) as service:
        request = beam_job_api_pb2.GetJobPipelineRequest(job_id=job_id)
        environments = service.GetPipeline(request, timeout=10).pipeline.components.environments.values()
    payloads = [environment.payload for environment in environments if environment.urn == "beam:env:external:v1"]
    urls = [beam_runner_api_pb2.ExternalPayload.FromString(payload).endpoint.url for payload in payloads]
    addresses = [url.rpartition(":") for url in urls]
    return {int(port) for host, _, port in addresses if host in ("localhost", "127.0.0.1", "[::1]")}


def _listener_pids() -> dict[int, int | None]:
    """Return the pid by TCP port that a process of this machine listens on; None if this user may not read the pid."""
    sockets = psutil.net_connections("tcp")
    return {socket.laddr.port: socket.pid for socket in sockets if socket.laddr and socket.status == psutil.CONN_LISTEN}


def _rest_addresses(endpoint: str) -> list[str]:
    """Return the REST addresses of a job server's Flinks: each job has one, on a port of the configured range.

    Only ports of the job server's own process count, since other programs may use the range.
    """
    pids = _listener_pids()
    server_pid = pids.get(int(endpoint.rpartition(":")[2]))
    if server_pid is None:
        return []
    try:
        options = [word.partition("=") for word in psutil.Process(server_pid).cmdline() if word.startswith("--flink-")]
        values = {name: value for name, _, value in options}
        master = values.get("--flink-master", "[auto]")
        if not master.startswith("["):
            return [f"http://{master}"]  # a standalone cluster, with one REST API for all jobs
        configuration = Path(values["--flink-conf-dir"], "flink-conf.yaml").read_text()
    except (psutil.Error, KeyError, OSError):
        return []
    match = re.search(r"^rest\.bind-port: *(\d+)(?:-(\d+))?", configuration, re.MULTILINE)
    if match is None:
        return []
    first = int(match[1])
    last = int(match[2] or first)
    return [f"http://127.0.0.1:{port}" for port in range(first, last + 1) if pids.get(port) == server_pid]


@contextmanager
def _job_service(endpoint: str) -> Iterator[Any]:
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2_grpc

    with grpc.insecure_channel(endpoint) as channel:
        try:
            yield beam_job_api_pb2_grpc.JobServiceStub(channel)
        except grpc.RpcError as error:
            raise EngineError(f"Flink's job server at {endpoint}: {error.code().name}: {error.details()}") from error
