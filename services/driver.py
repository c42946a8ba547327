"""Runs a service in the foreground: repeated bounded work in this process, or one job on Flink.

Or as a streaming job on Dataflow, which restarts its workers itself: no supervisor of ciml watches it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ciml.errors import CimlError, EngineError
from ciml.services.decide import JobStatus, Limits, ServiceProgress, Wanted
from ciml.services.service import NotReadyError, Service, TopicService, Until
from ciml.services.supervisor import Supervisor

if TYPE_CHECKING:
    from ciml.pipelines.dataflow.job import Launched
    from ciml.pipelines.dataflow.settings import DataflowSettings
    from ciml.pipelines.flink.submit import FlinkJob  # which loads all of Beam
    from ciml.services.options import ServiceOptions

#: Called with the service's progress and its state in a word.
Report = Callable[[ServiceProgress, str], None]

PATIENCE_S = 300.0
_STALLS = 3
_log = logging.getLogger(__name__)


def drive(
    service: Service,
    endpoint: str | None = None,
    *,
    until: Until = None,
    stop: threading.Event | None = None,
    report: Report | None = None,
    patience_s: float | None = PATIENCE_S,
    extra: tuple[str, ...] = (),
) -> None:
    """Run a service from its manifest, until the condition ``until`` holds or ``stop`` is set.

    Args:
      service: the service.
      endpoint: ``host:port`` of Beam's job server; None for bounded work items in this process.
      until: when to end.
      stop: when set, ends it after the present work item, or cancels the job.
      report: called with the progress before each work item, and at each poll of the job.
      patience_s: longest outage of a broker or a store after its first answer; None for unlimited.
      extra: further options of Beam.

    Raises:
      EngineError: if something does not answer at the start, or later for longer than ``patience_s``; if the job
        failed, ended by itself, or commits nothing; with ``until``, also if the service is not ready.
      IntegrityError: if continuing would lose or mix data.
      CimlError: a stage's permanent error.
    """
    if service.needs_flink and endpoint is None and until != "end":
        raise CimlError(service.needs_flink)
    stop = stop or threading.Event()
    report = report or (lambda progress, word: None)
    try:
        service.open()
        if endpoint is None:
            _drive_here(service, until, stop, report, patience_s)
        else:
            _drive_on_flink(service, endpoint, until, stop, report, patience_s, extra)
    finally:
        service.close()


def _drive_here(
    service: Service, until: Until, stop: threading.Event, report: Report, patience_s: float | None
) -> None:
    idle = Idle(until)
    outage = Outage(patience_s, *service.retry_s)
    progress = ServiceProgress(0)
    pause_s = service.poll_s if until is None or until == "end" else min(service.poll_s, max(until, 0.05))
    while not stop.is_set():
        try:
            service.publish()
            progress = service.observe()
            is_over = idle.see(progress)
            service.maintain()  # between commits, and never within one
            work = service.plan(idle.ends)
            if work is not None:
                report(progress, service.ready())
                service.run(work)
            elif is_over:
                report(progress, "done")
                return
            else:
                report(progress, "idle")
                stop.wait(pause_s)
            outage.is_over()
        except NotReadyError as error:
            if until is not None:
                raise
            report(progress, f"waits: {error}")
            stop.wait(service.poll_s)
        except EngineError as error:
            pause_s = outage.pause_after(error)
            report(
                ServiceProgress(progress.version, facts=progress.facts), f"waits: {error}"
            )  # its lag is not known now
            stop.wait(pause_s)


def _drive_on_flink(
    service: Service,
    endpoint: str,
    until: Until,
    stop: threading.Event,
    report: Report,
    patience_s: float | None,
    extra: tuple[str, ...],
) -> None:
    if until is not None:
        service.ready()
    idle = Idle(until)
    job = _JobHere(service, endpoint, extra)
    ends = threading.Event()

    def wanted() -> Wanted:
        progress = watchdog.progress
        if stop.is_set() or (progress is not None and idle.see(progress)):
            ends.set()
        return "stop" if ends.is_set() else "run"

    def on_status(status: dict[str, Any]) -> None:
        if watchdog.progress is not None:
            waits = status["health"] == "waiting"
            state = status["job"]["state"]
            word = "done" if ends.is_set() and state == "missing" else state
            report(watchdog.progress, f"waits: {status['why']}" if waits else word)

    limits = Limits(
        fresh_s=service.stall_s,
        steady_s=service.stall_s,
        longest_s=service.stall_s,
        starting_s=service.stall_s,
        pause_s=0.0,
        renew_s=service.renew_s,
        checkpoint_bytes=2**62,
        stopping_s=0.0,
        patience_s=patience_s,
        most_stalls=_STALLS,
    )
    watchdog = Supervisor(service, job, wanted, on_status, limits=limits, pause_s=service.poll_s, level=logging.INFO)
    try:
        if watchdog.run() == "failed":
            raise job.error or watchdog.error or EngineError(watchdog.status["why"])
    finally:
        job.cancel()


class _JobHere:
    """The `ciml.services.supervisor.Jobs` of a job on Flink whose workers are threads of this process.

    Attributes:
      error: the error that ended it.
    """

    def __init__(self, service: Service, endpoint: str, extra: tuple[str, ...]) -> None:
        self._service = service
        self._endpoint = endpoint
        self._extra = extra
        self._job: FlinkJob | None = None
        self.error: CimlError | None = None

    def status(self) -> JobStatus:
        job = self._job
        try:
            if job is not None:
                check(job)
        except CimlError as error:
            self.error = error
        if self.error is not None:
            return JobStatus("over", how=str(self.error), fault=str(self.error))
        if job is None:
            return JobStatus("missing")
        return JobStatus("running" if job.state == "RUNNING" else "starting", job.id, job.name)

    def submit(self, savepoint: str = "") -> None:
        try:
            self._job = submit(self._service, self._endpoint, self._service.name, extra=self._extra)
        except CimlError as error:
            self.error = error

    def cancel(self) -> None:
        job = self._job
        self._job = None
        if job is not None:
            job.cancel()

    def stop_with_savepoint(self) -> str:
        raise EngineError("a job in the foreground takes no savepoint")


def submit(
    service: Service,
    endpoint: str,
    name: str,
    *,
    workers: str | None = None,
    savepoint: str | None = None,
    changes: Mapping[str, Any] | None = None,
    extra: tuple[str, ...] = (),
    chosen: Callable[[str], None] | None = None,
) -> FlinkJob:
    """Submit a service's job, which starts from its manifest.

    Args:
      service: the service.
      endpoint: ``host:port`` of Beam's job server.
      name: prefix of the job's name.
      workers, savepoint, changes, extra: see `ciml.pipelines.flink.submit.flink_options`.
      chosen: called with the job's name before it is submitted.

    Raises:
      EngineError: if Flink, the broker or a store does not answer.
      IntegrityError: if continuing would lose or mix data.
    """
    from ciml.pipelines.flink.submit import FlinkJob, flink_options

    options = flink_options(
        endpoint, name, workers=workers, savepoint=savepoint, changes={**service.flink, **(changes or {})}, extra=extra
    )
    if chosen is not None:
        chosen(str(options.get_all_options()["job_name"]))
    return FlinkJob(partial(service.build, work=service.plan(bounded=False)), options)


def check(job: FlinkJob) -> None:
    """Raise the error that ended a job, or `EngineError` if it ended without one."""
    job.check()
    if job.over:
        raise EngineError(f"the Flink job ended by itself: {job.state}")


class Outage:
    """Pauses between tries while a broker or a store does not answer.

    Args:
      limit_s: longest outage, seconds; None for unlimited.
      pause_s, longest_pause_s: first and longest pause; it doubles each time.
    """

    def __init__(self, limit_s: float | None, pause_s: float = 1.0, longest_pause_s: float = 1.0) -> None:
        self._limit_s = limit_s
        self._first_s = pause_s
        self._longest_s = longest_pause_s
        self._pause_s = pause_s
        self._since: float | None = None

    def is_over(self) -> None:
        if self._since is not None:
            _log.warning("answers again after %.0f s", time.monotonic() - self._since)
        self._since = None
        self._pause_s = self._first_s

    def pause_after(self, error: EngineError) -> float:
        """Return the pause before the next try, seconds. Raise the error after the limit."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            _log.warning("%s; retrying", error)
        if self._limit_s is not None and now - self._since >= self._limit_s:
            raise error
        pause_s = self._pause_s
        self._pause_s = min(self._pause_s * 2, self._longest_s)
        return pause_s


@dataclass
class Idle:
    """Detects that the condition ``until`` holds, from the time without commits and new messages.

    Attributes:
      until: when to end.
      ends: the end of each partition at the first observation, for ``until`` of "end"; else None.
    """

    until: Until
    clock: Callable[[], float] = time.monotonic
    ends: Mapping[int, int] | None = None
    _version: int = -1
    _since_s: float = 0.0

    def see(self, seen: ServiceProgress) -> bool:
        """Apply an observation; return whether ``until`` holds."""
        if self.until == "end":
            self.ends = seen.ends if self.ends is None else self.ends
            return all(seen.positions.get(part, end) >= end for part, end in self.ends.items())
        now = self.clock()
        if seen.behind or seen.version != self._version:
            self._version = seen.version
            self._since_s = now
        if self.until is None or seen.behind or seen.waiting:
            return False
        return now - self._since_s >= self.until


def check_kind(options: ServiceOptions) -> None:
    """Raise `CimlError` for a kind of service that does not run on Dataflow."""
    if not options.submits:
        raise CimlError(
            "--runner dataflow: this service keeps its state in Flink or in its process, and no manifest covers it; "
            "leave --runner out"
        )


def launch_service(
    service: TopicService[Any],
    settings: DataflowSettings,
    name: str,
    *,
    template: str = "",
    update: bool = False,
    extra: Sequence[str] = (),
) -> Launched:
    """Write or submit the streaming job of a service, which starts at the uncovered offsets of its manifest.

    Args:
      service: one whose manifest covers a topic; its data is on S3.
      settings: of all jobs.
      name: of the job.
      template, update, extra: see `ciml.pipelines.dataflow.job.launch`.

    Raises:
      CimlError: the job would refer to this machine or hold a secret.
      EngineError: the broker, the store or Google Cloud does not answer.
      IntegrityError: if continuing would lose or mix data.
    """
    from ciml.pipelines.dataflow.settings import check_fetch, kafka_of_workers, secrets_here

    processor = service.processor
    config = processor.config
    fetch = getattr(config, "fetch", None)
    if fetch is not None:
        check_fetch(fetch)
    kafka = kafka_of_workers(config.kafka, settings)
    from ciml.pipelines.dataflow.job import launch

    try:
        service.open()
        work = service.plan(bounded=False)
        if work is None:
            raise CimlError(f"topic {service.topic} has no partition to read")
        # Planned with this process's connection; the job has the workers'.
        service.processor = processor.with_config(replace(config, kafka=kafka, maintains=True))
        return launch(
            partial(service.build, work=work),
            settings,
            name,
            streaming=True,
            template=template,
            update=update,
            extra=extra,
            hidden=secrets_here(config.kafka, fetch),
        )
    finally:
        service.processor = processor
        service.close()
