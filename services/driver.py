"""Runs a service without a supervisor: by work items in this process, as a watched job on Flink, or on Dataflow.

Dataflow restarts its workers itself, so a job there is only submitted.
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
from ciml.services.files import Status
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
_MOST_STALLS = 3
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
      EngineError: if a broker, a store or an engine does not answer at the start, or later for longer than
        ``patience_s``; if the job failed, ended by itself, or commits nothing; with ``until``, also if the service is
        not ready.
      IntegrityError: if continuing would lose or mix data.
      CimlError: a stage's permanent error.
    """
    if service.needs_flink and endpoint is None and until != "end":
        raise CimlError(service.needs_flink)
    if service.excludes_flink and endpoint is not None:
        raise CimlError(service.excludes_flink)
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
    condition = EndCondition(until)
    outage = Outage(patience_s, *service.retry_s)
    progress = ServiceProgress(0)
    idle_s = service.poll_s if until is None or until == "end" else min(service.poll_s, max(until, 0.05))
    while not stop.is_set():
        try:
            service.publish()
            progress = service.observe()
            has_ended = condition.observe(progress)
            service.maintain()  # between commits, and never within one
            work = service.plan(condition.ends)
            if work is not None:
                report(progress, service.ready())
                service.run(work)
            elif has_ended:
                report(progress, "done")
                return
            else:
                report(progress, "idle")
                stop.wait(idle_s)
            outage.end()
        except NotReadyError as error:
            if until is not None:
                raise
            outage.end()  # what is not ready has answered
            report(progress, f"waits: {error}")
            stop.wait(service.poll_s)
        except EngineError as error:
            pause_s = outage.pause_after(error)
            without_lag = ServiceProgress(progress.version, facts=progress.facts)  # the lag is not known now
            report(without_lag, f"waits: {error}")
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
        service.ready()  # a service that is not ready would never reach the end
    condition = EndCondition(until)
    job = _ForegroundJob(service, endpoint, extra, patience_s)
    is_ending = threading.Event()

    def wanted() -> Wanted:
        progress = watchdog.progress
        if stop.is_set() or (progress is not None and condition.observe(progress)):
            is_ending.set()
        return "stop" if is_ending.is_set() else "run"

    def report_status(status: Status) -> None:
        if watchdog.progress is None:
            return
        state = status["job"]["state"]
        if status["health"] == "waiting":
            report(watchdog.progress, f"waits: {status['why']}")
        else:
            report(watchdog.progress, "done" if is_ending.is_set() and state == "missing" else state)

    watchdog = Supervisor(
        service,
        job,
        wanted,
        report_status,
        limits=_foreground_limits(service, patience_s),
        pause_s=service.poll_s,
        level=logging.INFO,
    )
    try:
        if watchdog.run() == "failed":
            raise job.error or watchdog.error or EngineError(watchdog.status["why"])
    finally:
        job.cancel()


def _foreground_limits(service: Service, patience_s: float | None) -> Limits:
    """Return the watchdog's limits for a job whose submitter waits for it: no pauses, and an end after few stalls."""
    return Limits(
        fresh_s=service.stall_s,
        steady_s=service.stall_s,
        longest_s=service.stall_s,
        starting_s=service.stall_s,
        pause_s=0.0,
        renew_s=service.renew_s,
        checkpoint_bytes=2**62,
        stopping_s=0.0,
        patience_s=patience_s,
        most_stalls=_MOST_STALLS,
    )


class _ForegroundJob:
    """The `ciml.services.supervisor.Jobs` of a job on Flink whose workers are threads of this process.

    Args:
      service, endpoint, extra: see `drive`.
      patience_s: longest outage while a job is submitted again; the first submission must succeed.

    Attributes:
      error: the error that ended it; None before.
    """

    def __init__(self, service: Service, endpoint: str, extra: tuple[str, ...], patience_s: float | None) -> None:
        self._service = service
        self._endpoint = endpoint
        self._extra = extra
        self._patience_s = patience_s
        self._outage = Outage(0.0)
        self._job: FlinkJob | None = None
        self.error: CimlError | None = None

    def status(self) -> JobStatus:
        job = self._job
        try:
            if job is not None:
                check_job(job)
        except CimlError as error:
            self.error = error
        if self.error is not None:
            return JobStatus("over", how=str(self.error), fault=str(self.error))
        if job is None:
            return JobStatus("missing")
        return JobStatus("running" if job.state == "RUNNING" else "starting", job.id, job.name)

    def submit(self, savepoint: str = "") -> None:
        try:
            self._job = submit_to_flink(self._service, self._endpoint, self._service.name, extra=self._extra)
            self._outage = Outage(self._patience_s)
        except EngineError as error:
            if not self._outage.has_lasted(error):
                raise  # the supervisor tries again
            self.error = error
        except CimlError as error:
            self.error = error

    def cancel(self) -> None:
        job = self._job
        self._job = None
        if job is not None:
            job.cancel()

    def stop_with_savepoint(self) -> str:
        raise EngineError("a job in the foreground takes no savepoint")


class Outage:
    """An outage of a broker or a store: the pauses between tries, and the limit.

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

    def end(self) -> None:
        """Note that broker and store answer."""
        if self._since is not None:
            _log.warning("answers again after %.0f s", time.monotonic() - self._since)
        self._since = None
        self._pause_s = self._first_s

    def has_lasted(self, error: EngineError) -> bool:
        """Note an error; return whether the outage has reached the limit."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            _log.warning("%s; retrying", error)
        return self._limit_s is not None and now - self._since >= self._limit_s

    def pause_after(self, error: EngineError) -> float:
        """Return the pause before the next try, seconds. Raise the error after the limit."""
        if self.has_lasted(error):
            raise error
        pause_s = self._pause_s
        self._pause_s = min(self._pause_s * 2, self._longest_s)
        return pause_s


@dataclass
class EndCondition:
    """Whether the condition ``until`` holds, by the time without commits and new messages.

    Attributes:
      until: when to end.
      clock: returns the present time, seconds.
      ends: the end of each partition at the first observation, for ``until`` of "end"; else None.
    """

    until: Until
    clock: Callable[[], float] = time.monotonic
    ends: Mapping[int, int] | None = None
    _version: int = -1
    _idle_since_s: float = 0.0

    def observe(self, progress: ServiceProgress) -> bool:
        """Apply the present progress; return whether the condition holds."""
        if self.until == "end":
            self.ends = progress.ends if self.ends is None else self.ends
            return all(progress.positions.get(partition, end) >= end for partition, end in self.ends.items())
        now_s = self.clock()
        if progress.behind or progress.version != self._version:
            self._version = progress.version
            self._idle_since_s = now_s
        if self.until is None or progress.behind or progress.waiting:
            return False
        return now_s - self._idle_since_s >= self.until


def submit_to_flink(
    service: Service,
    endpoint: str,
    name: str,
    *,
    workers: str | None = None,
    savepoint: str | None = None,
    changes: Mapping[str, Any] | None = None,
    extra: tuple[str, ...] = (),
    on_name: Callable[[str], None] | None = None,
) -> FlinkJob:
    """Submit a service's job, which starts from its manifest.

    Args:
      service: the service.
      endpoint: ``host:port`` of Beam's job server.
      name: prefix of the job's name.
      workers, savepoint, changes, extra: see `ciml.pipelines.flink.submit.flink_options`.
      on_name: called with the job's name before it is submitted.

    Raises:
      EngineError: if Flink, the broker or a store does not answer.
      IntegrityError: if continuing would lose or mix data.
    """
    from ciml.pipelines.flink.submit import FlinkJob, flink_options

    options = flink_options(
        endpoint, name, workers=workers, savepoint=savepoint, changes={**service.flink, **(changes or {})}, extra=extra
    )
    if on_name is not None:
        on_name(str(options.get_all_options()["job_name"]))
    return FlinkJob(partial(service.build, work=service.plan(bounded=False)), options)


def check_job(job: FlinkJob) -> None:
    """Raise the error that ended a job, or `EngineError` if it ended without one."""
    job.check()
    if job.over:
        raise EngineError(f"the Flink job ended by itself: {job.state}")


def check_runs_on_dataflow(options: ServiceOptions) -> None:
    """Raise `CimlError` for a kind of service that does not run on Dataflow."""
    if not options.submits:
        raise CimlError(
            "--runner dataflow: this service keeps its state in Flink or in its process, and no manifest covers it; "
            "leave --runner out"
        )


def launch_on_dataflow(
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
      CimlError: the service cannot run there, or the job would refer to this machine or hold a secret.
      EngineError: the broker, the store or Google Cloud does not answer.
      IntegrityError: if continuing would lose or mix data.
    """
    from ciml.pipelines.dataflow.checks import check_fetch, kafka_of_workers, secrets_here
    from ciml.pipelines.dataflow.job import launch

    if service.excludes_flink:
        raise CimlError(service.excludes_flink)
    processor = service.processor
    config = processor.config
    fetch = getattr(config, "fetch", None)
    if fetch is not None:
        check_fetch(fetch)
    kafka = kafka_of_workers(config.kafka, settings)
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
        service.close()
