"""Flink's REST API for supervisors: list jobs, their health, and stop them with or without a savepoint."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

from ciml.errors import EngineError

_TIMEOUT_S = 10.0
_OVER = frozenset({"FINISHED", "CANCELED", "FAILED"})
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
        return self.state in _OVER


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


def overview(base: str, timeout_s: float = _TIMEOUT_S) -> list[RestJob]:
    """Return Flink's jobs.

    Raises:
      EngineError: if Flink does not answer.
    """
    found = []
    for job in _ask("GET", f"{base}/jobs/overview", timeout_s=timeout_s)["jobs"]:
        tasks = {"total": 0, "running": 0, "finished": 0, **job.get("tasks", {})}
        found.append(
            RestJob(
                base, job["jid"], job["name"], job["state"], job["start-time"] / 1000,
                job["state"] == "RUNNING" and tasks["total"] == tasks["running"] + tasks["finished"],
            )
        )  # fmt: skip
    return found


def last_checkpoint(job: RestJob) -> Checkpoints | None:
    """Return the last completed checkpoint of a job; None before the first."""
    latest = _ask("GET", f"{job.base}/jobs/{job.id}/checkpoints").get("latest") or {}
    done = latest.get("completed")
    if not done:
        return None
    return Checkpoints(int(done["state_size"]), done["latest_ack_timestamp"] / 1000, done.get("external_path") or "")


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
    known = _ask("GET", f"{base}/taskmanagers")["taskmanagers"]
    return {each["id"]: (int(each["slotsNumber"]), int(each["freeSlots"])) for each in known}


def failures(job: RestJob, most: int = 16) -> list[Failure]:
    """Return a job's failures, latest first; a running job was restarted after each."""
    answer = _ask("GET", f"{job.base}/jobs/{job.id}/exceptions?maxExceptions={most}")
    return [
        Failure(
            one["timestamp"] / 1000,
            one.get("taskName") or "",
            one.get("taskManagerId") or "",
            str(one.get("stacktrace", "")),
        )
        for one in (answer.get("exceptionHistory") or {}).get("entries") or []
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
    found = _FAULT.search(text)
    fault = found[1].split(" [while running")[0].strip() if found else ""
    causes = re.findall(r"^(?:Caused by: )?(?:[\w$]+\.)*([A-Z][\w$]*(?:Exception|Error)): (.+)$", text, re.MULTILINE)
    line = ": ".join(causes[-1]) if causes else text.strip().splitlines()[0] if text.strip() else ""
    return line[:300], fault


def cancel(job: RestJob, timeout_s: float = _TIMEOUT_S) -> None:
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
            done = answer.get("operation") or {}
            if "failure-cause" in done:
                raise EngineError(
                    f"Flink made no savepoint: {_root(str(done['failure-cause'].get('stack-trace', '')))}"
                )
            return str(done["location"])
        time.sleep(0.2)
    raise EngineError(f"Flink made no savepoint within {timeout_s:.0f} s")


def _root(trace: str) -> str:
    lines = [line.removeprefix("Caused by: ") for line in trace.splitlines() if line and not line.startswith("\t")]
    return (lines[-1] if lines else trace)[:300]


def _ask(method: str, url: str, body: Any = None, allowed: tuple[int, ...] = (), timeout_s: float = _TIMEOUT_S) -> Any:
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
