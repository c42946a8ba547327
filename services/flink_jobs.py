"""A supervised ingest on Flink: submitted by the worker process, watched and ended over REST."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from ciml.errors import EngineError
from pipelines.flink import rest as flink_rest
from pipelines.flink.jobs import forget_job
from pipelines.flink.rest import RestJob
from services.files import Options
from services.tracker import JobStatus
from services.worker_process import Worker

_CANCEL_S = 60.0


class OnFlink:
    """The job whose name begins as it should. Only names last: a job id is unknown until its submission is answered.

    Args:
      worker: the process that submits, and stays where the job's workers are its threads.
      options: of the ingest.
      prefix: of the job's name.
      savepoints: where savepoints are made if Flink has no place of its own.
    """

    def __init__(self, worker: Worker, options: Options, prefix: str, savepoints: Path) -> None:
        self._worker, self._options, self._prefix, self._savepoints = worker, options, f"{prefix}-", savepoints

    def look(self) -> JobStatus:
        said, runs, mine = self._worker.said(), self._worker.runs, self._mine()
        if not self._options.workers:  # others are without their workers, and the next submission ends them
            mine = [one for one in mine if one.name == said.get("job")]
        live = [one for one in mine if not one.over]
        for one in live[:-1]:
            flink_rest.cancel(one)  # of a supervisor that was killed between two steps
        if live and (runs or self._options.workers):
            return self._live(live[-1])
        if runs:
            return JobStatus("starting")
        if live:
            return JobStatus("over", live[-1].id, live[-1].name, how=f"its workers are gone: {self._worker.how()}")
        known = bool(mine) and mine[-1].state == "FAILED" and mine[-1].began_s > (self._worker.began_s or 0.0)
        if said.get("error") and not known:
            return JobStatus("over", how=said["error"], fault=said["error"] if said.get("fault") else "")
        if mine:
            line, fault = self._failure(mine[-1])
            how = f"the Flink job ended: {mine[-1].state}" + (f" ({line})" if line else "")
            return JobStatus("over", mine[-1].id, mine[-1].name, how=how, fault=fault)
        return JobStatus("missing", how="Flink does not know the job (any more)" if said else "")

    def submit(self, savepoint: str = "") -> None:
        if self._options.workers:
            self.cancel()
        else:
            self._worker.end()
        self._worker.start(savepoint)

    def cancel(self) -> None:
        said = self._worker.said() if self._worker.runs else {}
        self._worker.end()
        if said.get("state") == "submitting":
            self._cancel_by_beam({said["job"]})
        live = [one for one in self._mine() if not one.over]
        if not self._options.workers:
            self._cancel_by_beam({one.name for one in live})
        deadline = time.monotonic() + _CANCEL_S
        while live:
            if time.monotonic() > deadline:
                raise EngineError(f"the Flink job {live[0].name} is {live[0].state} {_CANCEL_S:.0f} s after its cancel")
            for one in live:
                flink_rest.cancel(one)
            time.sleep(0.2)
            live = [one for one in self._mine() if not one.over]
        beam_id = self._worker.said().get("beam_id")
        if self._options.workers and beam_id:
            forget_job(self._options.jobs, beam_id)

    def stop_with_savepoint(self) -> str:
        live = [one for one in self._mine() if not one.over]
        if not live:
            raise EngineError("the Flink job does not run")
        path = flink_rest.stop_with_savepoint(live[-1], "" if self._options.rest else self._savepoints.as_uri())
        self.cancel()  # it is over; its submitter may not be
        return path

    def _live(self, job: RestJob) -> JobStatus:
        point, again, how, fault = None, None, "", ""
        with contextlib.suppress(EngineError):  # what has just been submitted has neither
            point, again = flink_rest.last_checkpoint(job), flink_rest.restarts(job)
        if not job.all_run:
            how, fault = self._failure(job)
        return JobStatus(
            "running" if job.all_run else "restarting" if again else "starting",
            job.id,
            job.name,
            how=how,
            fault=fault,
            began_s=job.began_s,
            restarts=again,
            checkpoint_bytes=point.bytes if point else None,
            checkpoint_s=point.time_s if point else None,
        )

    def _failure(self, job: RestJob) -> tuple[str, str]:
        with contextlib.suppress(EngineError):  # it may be gone by now
            return flink_rest.failure(job)
        return "", ""

    def _mine(self) -> list[RestJob]:
        """The jobs of this ingest that Flink knows, the newest last."""
        mine = [job for job in self._known() if job.name.startswith(self._prefix)]
        return sorted(mine, key=lambda job: job.began_s)

    def _known(self) -> list[RestJob]:
        if self._options.rest:
            return flink_rest.overview(self._options.rest)
        from engines.flink.job_server import job_service_answers
        from pipelines.flink.jobs import list_flink_jobs

        if not job_service_answers(self._options.jobs):
            raise EngineError(f"Flink's job server at {self._options.jobs} does not answer")
        return list_flink_jobs(self._options.jobs)

    def _cancel_by_beam(self, names: set[str]) -> None:
        """Ends what the job server was given, and Flink may not have been yet."""
        if not names:
            return
        from pipelines.flink.jobs import cancel_job, list_jobs

        for job in list_jobs(self._options.jobs):
            if job.name in names and not job.over:
                cancel_job(self._options.jobs, job.id)
