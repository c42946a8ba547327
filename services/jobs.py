"""The engines of a supervised ingest, as `services.supervisor.Jobs`: a process of micro-batches; a job on Flink."""

from __future__ import annotations

from pathlib import Path

from services.files import Options, ServiceFiles
from services.supervisor import Jobs
from services.tracker import JobStatus
from services.worker import identity
from services.worker_process import Worker


def jobs_of(place: ServiceFiles, options: Options) -> Jobs:
    """The engine that an ingest was started on."""
    worker = Worker(place, Path(options.cwd))
    if options.engine == "micro-batches":
        return MicroBatches(worker)
    from services.flink_jobs import OnFlink

    prefix = f"ciml-ingest-{place.name}-{identity(options)}"
    return OnFlink(worker, options, prefix, place.home / "flink" / "savepoints")


class MicroBatches:
    """Bounded pipelines, one after the other, in the worker."""

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
        self._worker.end()  # between two batches nothing is under way
        return ""
