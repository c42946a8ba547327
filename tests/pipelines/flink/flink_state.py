"""What tests ask Flink and its job server in addition to the product."""

from __future__ import annotations

from typing import Any

from ciml.pipelines.flink.jobs import Job, RestJob, ask, cancel_job, list_flink_jobs, list_jobs


def checkpoint_counts(job: RestJob) -> dict[str, int]:
    """Return the counts of a job's checkpoints: ``completed``, ``failed``, ``in_progress``, ``restored``."""
    counts: dict[str, int] = ask("GET", f"{job.url}/checkpoints")["counts"]
    return counts


def taskmanagers(base: str) -> dict[str, tuple[int, int]]:
    """Return (slots, free slots) of the JobManager's TaskManagers by id."""
    answer = ask("GET", f"{base}/taskmanagers")["taskmanagers"]
    return {one["id"]: (int(one["slotsNumber"]), int(one["freeSlots"])) for one in answer}


def failures(job: RestJob) -> list[dict[str, Any]]:
    """Return a job's failures, latest first; a running job was restarted after each."""
    answer = ask("GET", f"{job.url}/exceptions?maxExceptions=16")
    entries: list[dict[str, Any]] = (answer.get("exceptionHistory") or {}).get("entries") or []
    return entries


def cancel_all_jobs(endpoint: str, timeout_s: float = 60.0) -> list[Job]:
    """Cancel every job that has not ended on both sides; return these in their final states."""
    inside = {flink_job.name for flink_job in list_flink_jobs(endpoint) if not flink_job.over}
    jobs = [job for job in list_jobs(endpoint) if not job.over or (job.name in inside and job.state == "CANCELLED")]
    return [cancel_job(endpoint, job.id, timeout_s) for job in jobs]
