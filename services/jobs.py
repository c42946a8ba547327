"""Where a service works, as `services.supervisor.Jobs`: in a worker process, or as a job on Flink that it submits."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

from ciml.data_root import DataRoot
from ciml.digest import sha256_json
from ciml.errors import EngineError
from engines import processes
from pipelines.flink import rest
from pipelines.flink.rest import RestJob
from services.files import Options, ServiceFiles
from services.service import class_of
from services.supervisor import Jobs
from services.tracker import JobStatus

_GRACE_S = 30.0  # a batch that runs is ended in order
_CANCEL_S = 60.0


def jobs_of(place: ServiceFiles, options: Options) -> Jobs:
    """Where a service was started."""
    worker = Worker(place, Path(options.cwd))
    if not submits(options):
        return InWorker(worker)
    return OnFlink(worker, options, f"{job_name(place, options)}-", place.home / "flink" / "savepoints")


def submits(options: Options) -> bool:
    """Whether its job is submitted to Flink and watched there; else a worker drives all of it."""
    return options.engine == "flink" and class_of(options.kind).submits


def job_name(place: ServiceFiles, options: Options) -> str:
    """How its jobs' names begin: other than those of another home on the same cluster."""
    identity = sha256_json([DataRoot.open(options.arguments["data_path"]).url, options.topic])[:8]
    return f"ciml-{options.kind}-{place.name}-{identity}"


class Worker:
    """The process that works or submits; it outlives whoever started it, and is known by its pid and start time."""

    def __init__(self, place: ServiceFiles, cwd: Path) -> None:
        self._place, self._cwd = place, cwd
        self._child: tuple[int, float] | None = None  # until it has written itself down

    @property
    def runs(self) -> bool:
        written = self._place.process("worker")
        return written is not None or (self._child is not None and processes.find(*self._child) is not None)

    @property
    def began_s(self) -> float | None:
        """Its start time, epoch seconds."""
        return self._place.written("worker")[1]

    def said(self) -> dict[str, Any]:
        """What it said of itself last."""
        return self._place.said("worker")

    def how(self) -> str:
        """How it ended."""
        return self.said().get("error") or processes.last_lines(self._place.log("worker"), 1) or "its process is gone"

    def start(self, savepoint: str = "") -> None:
        """Start it, in the place of one that is gone."""
        self._place.forget("worker")
        command = processes.python_command("services.process", "worker", str(self._place.home), self._place.name)
        shutil.rmtree(self._place.timings, ignore_errors=True)
        self._place.timings.mkdir(parents=True, exist_ok=True)
        environment = {
            **processes.python_environment(), "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1",
            "PROMETHEUS_MULTIPROC_DIR": str(self._place.timings),
        }  # fmt: skip
        self._child = processes.spawn([*command, savepoint], self._place.log("worker"), environment, self._cwd)

    def end(self) -> None:
        """End it, in order where it can be."""
        for one in (self._child, self._place.written("worker")):
            if one is not None:
                processes.end(*one, grace_s=_GRACE_S)


class InWorker:
    """All of it in the worker, by `services.driver.drive`."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def look(self) -> JobStatus:
        said = self._worker.said()
        if self._worker.runs:
            return JobStatus("running" if said.get("state") == "running" else "starting", began_s=self._worker.began_s)
        if not said:
            return JobStatus("missing")
        return JobStatus("over", how=self._worker.how(), fault=said["error"] if said.get("fault") else "")

    def submit(self, savepoint: str = "") -> None:
        self._worker.end()
        self._worker.start()

    def cancel(self) -> None:
        self._worker.end()

    def stop_with_savepoint(self) -> str:
        self._worker.end()  # between two pieces of work nothing is under way
        return ""


class OnFlink:
    """The job whose name begins as it should. Only names last: a job id is unknown until its submission is answered.

    Args:
      worker: the process that submits, and stays where the job's workers are its threads.
      options: of the service.
      prefix: of the job's name.
      savepoints: where savepoints are made if Flink has no place of its own.
    """

    def __init__(self, worker: Worker, options: Options, prefix: str, savepoints: Path) -> None:
        self._worker, self._options, self._prefix, self._savepoints = worker, options, prefix, savepoints

    def look(self) -> JobStatus:
        said, runs, mine = self._worker.said(), self._worker.runs, self._mine()
        if not self._options.workers:  # others are without their workers, and the next submission ends them
            mine = [one for one in mine if one.name == said.get("job")]
        live = [one for one in mine if not one.over]
        for one in live[:-1]:
            rest.cancel(one)  # of a supervisor that was killed between two steps
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
                rest.cancel(one)
            time.sleep(0.2)
            live = [one for one in self._mine() if not one.over]
        beam_id = self._worker.said().get("beam_id")
        if self._options.workers and beam_id:
            from pipelines.flink.jobs import forget_job

            forget_job(self._options.jobs, beam_id)

    def stop_with_savepoint(self) -> str:
        live = [one for one in self._mine() if not one.over]
        if not live:
            raise EngineError("the Flink job does not run")
        path = rest.stop_with_savepoint(live[-1], "" if self._options.rest else self._savepoints.as_uri())
        self.cancel()  # it is over; its submitter may not be
        return path

    def _live(self, job: RestJob) -> JobStatus:
        point, again, how, fault = None, None, "", ""
        with contextlib.suppress(EngineError):  # what has just been submitted has neither
            point, again = rest.last_checkpoint(job), rest.restarts(job)
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
            return rest.failure(job)
        return "", ""

    def _mine(self) -> list[RestJob]:
        """The jobs of this service that Flink knows, the newest last."""
        mine = [job for job in self._known() if job.name.startswith(self._prefix)]
        return sorted(mine, key=lambda job: job.began_s)

    def _known(self) -> list[RestJob]:
        if self._options.rest:
            return rest.overview(self._options.rest)
        from engines.flink.job_server import job_service_answers
        from pipelines.flink.jobs import list_flink_jobs

        if not job_service_answers(self._options.jobs):
            raise EngineError(f"Flink's job server at {self._options.jobs} does not answer")
        return list_flink_jobs(self._options.jobs)

    def _cancel_by_beam(self, names: set[str]) -> None:
        """End what the job server was given, and Flink may not have been yet."""
        if not names:
            return
        from pipelines.flink.jobs import cancel_job, list_jobs

        for job in list_jobs(self._options.jobs):
            if job.name in names and not job.over:
                cancel_job(self._options.jobs, job.id)
