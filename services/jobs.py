"""The jobs that a supervisor watches (`ciml.services.supervisor.Jobs`): a worker process, or a job on Flink.

A *worker* is the process that runs the service, or submits its job to Flink.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ciml.data_root import DataRoot
from ciml.digest import sha256_json
from ciml.engines import processes
from ciml.engines.state import ProcessId
from ciml.errors import EngineError, IntegrityError
from ciml.pipelines.flink import jobs
from ciml.pipelines.flink.jobs import Failure, RestJob
from ciml.services.decide import JobState, JobStatus
from ciml.services.files import ServiceFiles, StartOptions
from ciml.services.supervisor import Jobs

_GRACE_S = 30.0  # time to finish the present batch
_CANCEL_S = 60.0
_CANCEL_POLL_S = 0.2
_log = logging.getLogger(__name__)


def jobs_of(files: ServiceFiles, options: StartOptions) -> Jobs:
    """Return the jobs of a service, by its engine."""
    worker = Worker(files, Path(options.cwd))
    if not submits(options):
        return InWorker(worker)
    return OnFlink(worker, options, f"{job_name(files, options)}-", files.home / "flink" / "savepoints")


def submits(options: StartOptions) -> bool:
    """Return whether a job on Flink runs the service and is watched there; else a worker process runs it."""
    return options.engine == "flink" and options.service.submits


def job_name(files: ServiceFiles, options: StartOptions) -> str:
    """Return the prefix of the names of a service's jobs: that of any service of the kind, name, data and topic.

    So a home that was lost is no reason to lose the job. In two homes on one cluster, such services need other names.
    """
    identity = sha256_json([DataRoot.open(options.service.data).url, options.service.subject])[:8]
    return f"ciml-{options.kind}-{files.name}-{identity}"


class Worker:
    """The process that runs or submits the service. It outlives its parent; pid and start time identify it.

    Each launch has an id. Only the report of a launch that this object made, or found running, counts: a new supervisor
    never inherits the failure of an earlier launch.
    """

    def __init__(self, files: ServiceFiles, cwd: Path) -> None:
        self._files = files
        self._cwd = cwd
        self._child: ProcessId | None = None  # until it has recorded itself
        self._launch: str | None = None

    @property
    def runs(self) -> bool:
        """Whether its process runs, which may not have recorded itself yet."""
        recorded = self._files.process("worker")
        return recorded is not None or processes.find(self._child) is not None

    @property
    def began_s(self) -> float | None:
        """Its start time, epoch seconds."""
        recorded = self._files.recorded("worker")
        return None if recorded is None else recorded.started

    @property
    def was_launched(self) -> bool:
        """Whether this object started a worker, or found one running."""
        self.report()
        return self._launch is not None

    def report(self) -> dict[str, Any]:
        """Return its last report; empty before the first, and for one of an earlier launch."""
        report = self._files.report()
        launch = report.get("launch", "")  # earlier versions have none
        if report and self.runs:
            self._launch = launch
        return report if launch == self._launch else {}

    @property
    def beam_id(self) -> str | None:
        """The id of the last submitted job in the job server, also of an earlier launch."""
        return self._files.report().get("beam_id")

    def how(self) -> str:
        """Return how it ended, for people."""
        error: str | None = self.report().get("error")
        line = processes.last_lines(self._files.log("worker"), 1)
        return error or f"its process died{f'; the last line of its log: {line}' if line else ''}"

    def start(self, savepoint: str = "") -> None:
        """Start it; the previous one must have ended."""
        self._files.clear_worker()
        self._launch = secrets.token_hex(8)
        command = processes.python_command(
            "ciml.services.process", "worker", str(self._files.home), self._files.name, self._launch
        )
        shutil.rmtree(self._files.timings, ignore_errors=True)
        self._files.timings.mkdir(parents=True, exist_ok=True)
        environment = {
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "PYTHONUNBUFFERED": "1",
            "PROMETHEUS_MULTIPROC_DIR": str(self._files.timings),
        }
        self._child = processes.spawn([*command, savepoint], self._files.log("worker"), environment, self._cwd)

    def end(self) -> None:
        """End it, gracefully if it reacts."""
        for process in (self._child, self._files.recorded("worker")):
            processes.end(process, grace_s=_GRACE_S)


def _fault(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the permanent error in a worker's report, as fields of `JobStatus`."""
    if not report.get("fault"):
        return {}
    return {
        "fault": report["error"],
        "exit_code": report.get("exit_code", IntegrityError.exit_code),
        "needs_adoption": report.get("needs_adoption", False),
    }


class InWorker:
    """The service runs in the worker, by `ciml.services.driver.drive`."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def status(self) -> JobStatus:
        report = self._worker.report()
        if self._worker.runs:
            state: JobState = "running" if report.get("state") == "running" else "starting"
            return JobStatus(
                state,
                began_s=self._worker.began_s,
                progress=report.get("progress", {}),
                progress_us=report.get("time_us"),
                waits=report.get("waits", ""),
            )
        if not self._worker.was_launched:
            return JobStatus("missing")
        return JobStatus("over", how=self._worker.how(), **_fault(report))

    def submit(self, savepoint: str = "") -> None:
        self._worker.end()
        self._worker.start()

    def cancel(self) -> None:
        self._worker.end()

    def stop_with_savepoint(self) -> str:
        self._worker.end()  # it ends between two work items, so no state is lost
        return ""


class OnFlink:
    """The service's job on Flink, found by the prefix of its name: its id is unknown until the submission is answered.

    Args:
      worker: the process that submits the job, and keeps running if the job's workers are its threads.
      options: of the service.
      prefix: of the job's name.
      savepoints: the folder of savepoints if Flink has none configured.
    """

    def __init__(self, worker: Worker, options: StartOptions, prefix: str, savepoints: Path) -> None:
        self._worker = worker
        self._options = options
        self._prefix = prefix
        self._savepoints = savepoints
        self._live_names: set[str] = set()  # of the jobs that this object saw running

    def status(self) -> JobStatus:
        report = self._worker.report()
        runs = self._worker.runs
        own_jobs = self._own_jobs(report.get("job"))
        live_jobs = [job for job in own_jobs if not job.over]
        for job in live_jobs[:-1]:
            jobs.cancel(job)  # a supervisor was killed before it cancelled this one
        if live_jobs and (runs or self._options.workers):
            return self._live_status(live_jobs[-1])
        if runs:
            return JobStatus("starting")
        if live_jobs:
            job = live_jobs[-1]
            return JobStatus("over", job.id, job.name, how=f"its workers died: {self._worker.how()}")
        return self._ended_status(report, own_jobs[-1] if own_jobs else None)

    def _own_jobs(self, reported_name: str | None) -> list[RestJob]:
        """Return the jobs of this launch, the newest last.

        Flink remembers the ended jobs of earlier launches, whose failures are not those of this one.
        """
        all_jobs = self._all_jobs()
        if not self._options.workers:  # other jobs have lost their workers; the next submission ends them
            all_jobs = [job for job in all_jobs if job.name == reported_name]
        self._live_names.update(job.name for job in all_jobs if not job.over)
        return [job for job in all_jobs if job.name in self._live_names or job.name == reported_name]

    def _live_status(self, job: RestJob) -> JobStatus:
        checkpoint = None
        restarts = None
        with contextlib.suppress(EngineError):  # a new job has neither
            checkpoint = jobs.last_checkpoint(job)
            restarts = jobs.count_restarts(job)
        state: JobState = "running"
        failure = Failure()
        if not job.all_run:
            state = "restarting" if restarts else "starting"
            failure = self._failure(job)
        return JobStatus(
            state,
            job.id,
            job.name,
            how=failure.cause,
            fault=failure.fault,
            needs_adoption=failure.needs_adoption,
            began_s=job.began_s,
            restarts=restarts,
            checkpoint_bytes=checkpoint.bytes if checkpoint else None,
            checkpoint_s=checkpoint.time_s if checkpoint else None,
        )

    def _ended_status(self, report: Mapping[str, Any], job: RestJob | None) -> JobStatus:
        """Return how the last job ended, by Flink, or by its submitter if that failed."""
        has_failed = job is not None and job.state == "FAILED" and job.began_s > (self._worker.began_s or 0.0)
        if report.get("error") and not has_failed:
            return JobStatus("over", how=report["error"], **_fault(report))
        if job is None:
            return JobStatus("missing", how="Flink does not know the job (any more)" if report else "")
        failure = self._failure(job)
        how = f"the Flink job ended: {job.state}{f' ({failure.cause})' if failure.cause else ''}"
        return JobStatus("over", job.id, job.name, how=how, fault=failure.fault, needs_adoption=failure.needs_adoption)

    def submit(self, savepoint: str = "") -> None:
        if self._options.workers:
            self.cancel()
        else:
            self._worker.end()
        self._worker.start(savepoint)

    def cancel(self) -> None:
        report = self._worker.report() if self._worker.runs else {}
        self._worker.end()
        if report.get("state") == "submitting":
            self._cancel_by_beam({report["job"]})
        live_jobs = self._live_jobs()
        if not self._options.workers:
            self._cancel_by_beam({job.name for job in live_jobs})
        deadline_s = time.monotonic() + _CANCEL_S
        while live_jobs:
            if time.monotonic() > deadline_s:
                job = live_jobs[0]
                raise EngineError(f"the Flink job {job.name} is {job.state} {_CANCEL_S:.0f} s after its cancel")
            for job in live_jobs:
                jobs.cancel(job)
            time.sleep(_CANCEL_POLL_S)
            live_jobs = self._live_jobs()
        if self._options.workers and self._worker.beam_id:
            jobs.forget_job(self._options.jobs, self._worker.beam_id)

    def stop_with_savepoint(self) -> str:
        live_jobs = self._live_jobs()
        if not live_jobs:
            raise EngineError("the Flink job does not run")
        path = jobs.stop_with_savepoint(live_jobs[-1], "" if self._options.rest else self._savepoints.as_uri())
        try:
            self.cancel()  # its submitter may still run
        except EngineError as error:
            _log.warning("%s; the savepoint %s is kept", error, path)
        return path

    def _failure(self, job: RestJob) -> Failure:
        with contextlib.suppress(EngineError):  # the job may have ended meanwhile
            return jobs.last_failure(job)
        return Failure()

    def _live_jobs(self) -> list[RestJob]:
        return [job for job in self._all_jobs() if not job.over]

    def _all_jobs(self) -> list[RestJob]:
        """Return the jobs of this service that Flink knows, also of earlier launches, the newest last."""
        if self._options.rest:
            flink_jobs = jobs.list_rest_jobs(self._options.rest)
        else:
            from ciml.engines.flink.job_server import job_service_answers

            if not job_service_answers(self._options.jobs):
                raise EngineError(f"Flink's job server at {self._options.jobs} does not answer")
            flink_jobs = jobs.list_flink_jobs(self._options.jobs)
        return sorted((job for job in flink_jobs if job.name.startswith(self._prefix)), key=lambda job: job.began_s)

    def _cancel_by_beam(self, names: set[str]) -> None:
        """Cancel jobs in the job server, from which Flink may not have received them yet."""
        if not names:
            return
        for job in jobs.list_jobs(self._options.jobs):
            if job.name in names and not job.over:
                jobs.cancel_job(self._options.jobs, job.id)
