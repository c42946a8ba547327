"""The processes of a supervised service: ``python -m ciml.services.process supervisor|worker HOME NAME [LAUNCH
[SAVEPOINT]]``.

The *supervisor* watches; it may be killed at any moment. The *worker* runs the service or submits its job. A cluster
has Python workers of its own, so the worker process ends after the submission. A Flink inside the job server uses the
threads of the worker process, so it stays. The worker writes its outcome to a file (`ServiceFiles.report`), since only
a parent can read an exit code.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from ciml.engines import processes
from ciml.errors import CimlError, EngineError
from ciml.logs import configure_logging
from ciml.manifest.coverage import OtherTopicError
from ciml.metrics import Board, Family, metric, registry_of, serve_metrics
from ciml.services.decide import Health, ServiceProgress
from ciml.services.files import ServiceFiles, StartOptions, Status, bound_log, in_place, now_us, read_times
from ciml.services.jobs import job_name, jobs_of, submits
from ciml.services.service import Service, lag_families
from ciml.services.supervisor import Supervisor
from ciml.storage.s3 import impatient
from ciml.tensorflow import declare_own_process

if TYPE_CHECKING:
    from ciml.pipelines.flink.submit import FlinkJob

HEALTH = metric("ciml_ingest_health")
RESUBMISSIONS = metric("ciml_ingest_resubmissions_total")
RESTARTS = metric("ciml_ingest_job_restarts")
JOB_STARTED = metric("ciml_ingest_job_start_timestamp_seconds")
CHECKPOINT_BYTES = metric("ciml_ingest_checkpoint_bytes")
CHECKPOINT_TIME = metric("ciml_ingest_checkpoint_timestamp_seconds")
SERVICE_HEALTH = metric("ciml_service_health")
SERVICE_RESUBMISSIONS = metric("ciml_service_resubmissions_total")
STATUS_AGE = metric("ciml_status_age_seconds")
PROBLEMS = metric("ciml_service_problems")

_LOGS_S = 30.0  # between two checks of the size of logs
_POLL_S = 1.0
_ALIVE_S = 10.0  # between two updates of the status of a failed service
_ENDPOINT_S = 5.0  # between two tries to open the metrics endpoint
_REPORT_US = 2_000_000  # longest age of a working worker's report
_BUSY = 75  # exit code: another process holds the service
#: The keys of an earlier supervisor's status that the next one continues.
_CONTINUED = ("savepoint", "resubmitted", "resubmissions", "last_failure")
_log = logging.getLogger(__name__)


def supervisor_main(home: Path, name: str) -> int:
    """Supervise a service until it is stopped or has failed; return the exit code."""
    configure_logging()
    declare_own_process()
    files = ServiceFiles(home, name)
    leave = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # the service keeps running: only `ciml service stop` stops it
        signal.signal(number, lambda *_: leave.set())
    with files.exclusive("supervisor", timeout_s=10.0) as held:
        if not held:
            print(f"ciml: another supervisor of the service {name} is running", file=sys.stderr)
            return _BUSY
        files.record("supervisor", os.getpid(), processes.start_time(os.getpid()))
        options = files.options()
        if options.tied is not None:
            processes.when_ended(options.tied, lambda: files.want("stop"))
        try:
            health = supervise(files, options, leave)
        except CimlError as error:  # invalid options
            files.put_status({**files.status(), **_failed_status(error)})
            print(f"ciml: {error}", file=sys.stderr)
            return error.exit_code
        return 0 if health == "stopped" or leave.is_set() else 4


def _failed_status(error: CimlError) -> Status:
    time_us = now_us()
    return {
        "health": "failed",
        "why": str(error),
        "supervisor": {"pid": os.getpid()},
        "exit_code": error.exit_code,
        "needs_adoption": False,
        "last_failure": {"time_us": time_us, "why": str(error)},
        "since_us": time_us,
        "updated_us": time_us,
    }


def supervise(files: ServiceFiles, options: StartOptions, leave: threading.Event | None = None) -> Health:
    """Supervise a service in this process.

    Args:
      files, options: of the service. The caller holds its lock (`ServiceFiles.exclusive`).
      leave: when set, ends the supervision and leaves the service running.

    Returns:
      ``stopped``, ``failed``, or the last health after ``leave``.
    """
    leave = leave or threading.Event()
    while True:
        with in_place(files.home, options):
            health = _supervise_in_place(files, options, leave)
        present_options = files.options()
        if health != "waiting" or leave.is_set() or present_options == options:
            return health
        options = present_options


def _supervise_in_place(files: ServiceFiles, options: StartOptions, leave: threading.Event) -> Health:
    """Supervise a service while the addresses that it connects to stay the same."""
    service = impatient_service(options)
    reporter = _Reporter(files, options, service.board)
    try:
        jobs = jobs_of(files, options)
        health = Supervisor(
            service,
            jobs,
            files.wanted,
            reporter.report,
            _first_status(files, options),
            maintains=submits(options),
            moved=lambda: files.options() != options,
        ).run(leave)
        if health == "failed" and options.metrics_port is not None:
            _stay_failed(files, leave)
        if health == "waiting" and not leave.is_set():
            _log.warning("the addresses of the home's own engines have changed")
            with suppress(EngineError):
                jobs.cancel()  # its worker has the earlier ones
        return health
    finally:
        reporter.close()
        service.close()


def impatient_service(options: StartOptions) -> Service:
    """Return the service with short timeouts, so that the supervisor notices a stop in time."""
    with impatient():
        return options.service.service().impatient()


def _first_status(files: ServiceFiles, options: StartOptions) -> Status:
    """Return the status before the first step, which continues the status of an earlier supervisor."""
    continued = {key: value for key, value in files.status().items() if key in _CONTINUED}
    return {
        "name": files.name,
        "kind": options.kind,
        "engine": options.engine,
        "data": options.service.data,
        "topic": options.service.subject,
        "kafka": options.service.bootstrap,
        "parallelism": options.parallelism,
        **cast("Status", continued),
    }


def _stay_failed(files: ServiceFiles, leave: threading.Event) -> None:
    """Serve the metrics of a failed service until it is stopped or resumed.

    Prometheus would not see a health that ends with its process, and a container that is started again fails again.
    """
    updated_s = time.monotonic()
    while files.wanted() == "run" and not leave.wait(_POLL_S):
        if time.monotonic() - updated_s > _ALIVE_S:
            updated_s = time.monotonic()
            files.put_status({**files.status(), "updated_us": now_us()})


class _Reporter:
    """Writes each status of a supervisor, exports it as metrics, and bounds the logs.

    Args:
      files, options: of the service.
      board: the metrics of the service.
    """

    def __init__(self, files: ServiceFiles, options: StartOptions, board: Board) -> None:
        self._files = files
        self._kind = options.kind
        self._board = board
        self._ages = STATUS_AGE.gauge()
        self._endpoint = _Endpoint(options, (board, self._ages, _WorkerMetrics(files.timings)))
        self._bounded_s = time.monotonic()

    def report(self, status: Status) -> None:
        self._board.put("status", _status_families(self._kind, status))
        for figures, time_us in read_times(status).items():
            # Computed at the scrape: ages grow even while the supervisor waits for an answer.
            self._ages.labels(self._kind, figures).set_function(partial(_age_s, time_us))
        status["metrics"] = self._endpoint.open()
        self._files.put_status({**status, "supervisor": {"pid": os.getpid()}})
        if time.monotonic() - self._bounded_s > _LOGS_S:
            self._bounded_s = time.monotonic()
            for process in ("supervisor", "worker"):
                bound_log(self._files.log(process))

    def close(self) -> None:
        self._endpoint.close()


def _status_families(kind: str, status: Status) -> Iterator[Family]:
    """Yield the metrics of a supervisor's status; see `ciml.services.supervisor.Supervisor`."""
    yield PROBLEMS.of({(kind,): len(status.get("problems") or {})})
    if kind != "ingest":
        yield SERVICE_HEALTH.of({(kind, health): health == status.get("health") for health in get_args(Health)})
        yield SERVICE_RESUBMISSIONS.of({(kind,): status.get("resubmitted", 0)})
        if kind == "live":  # only its worker knows the position
            yield from lag_families(status["topic"], status.get("lag") or {})
        return
    job = status.get("job") or {}
    point = status.get("checkpoint") or {}
    yield HEALTH.of({(health,): health == status.get("health") for health in get_args(Health)})
    yield RESUBMISSIONS.single(status.get("resubmitted", 0))
    yield RESTARTS.single(job.get("restarts"))
    yield JOB_STARTED.single(_seconds(job.get("submitted_us")))
    yield CHECKPOINT_BYTES.single(point.get("bytes"))
    yield CHECKPOINT_TIME.single(_seconds(point.get("time_us")))


def _age_s(time_us: int) -> float:
    return time.time() - time_us / 1e6


def _seconds(time_us: int | None) -> float | None:
    return None if time_us is None else time_us / 1e6


class _Endpoint:
    """The supervisor's metrics endpoint. The service runs without it, and it is opened as soon as its port is free.

    Args:
      options: of the service.
      collectors: the metrics.
    """

    def __init__(self, options: StartOptions, collectors: Sequence[Collector]) -> None:
        self._options = options
        self._registry = registry_of(*collectors)
        self._stack = ExitStack()
        self._is_open = False
        self._shown = ""  # its URL, or the last error
        self._tried_s = -_ENDPOINT_S

    def open(self) -> str:
        """Open it unless it is open; return its URL, "" without a port, or why it cannot be opened."""
        now_s = time.monotonic()
        if self._is_open or now_s - self._tried_s < _ENDPOINT_S:
            return self._shown
        self._tried_s = now_s
        serving = serve_metrics(self._registry, self._options.metrics_port, self._options.metrics_address)
        try:
            self._shown = self._stack.enter_context(serving)
            self._is_open = True
        except EngineError as error:
            if str(error) != self._shown:
                _log.warning("%s", error)
            self._shown = str(error)
        return self._shown

    def close(self) -> None:
        self._stack.close()


class _WorkerMetrics(MultiProcessCollector):
    """The worker's metrics, from its files. The next worker's start removes them, perhaps during a scrape."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(None, str(folder))  # type: ignore[no-untyped-call]

    def collect(self) -> list[Metric]:
        try:
            return list(super().collect())  # type: ignore[no-untyped-call]
        except FileNotFoundError:
            return []


def worker_main(home: Path, name: str, launch: str = "", savepoint: str = "") -> int:
    """Run the worker until it is stopped, is done, or fails; return the exit code.

    Args:
      home, name: of the service.
      launch: the id of this launch, for its report.
      savepoint: where its job starts; "" for the manifest.
    """
    configure_logging()
    declare_own_process()
    files = ServiceFiles(home, name)
    options = files.options()
    with files.exclusive("worker") as held, in_place(home, options):
        if not held:  # of a supervisor that was killed
            print(f"ciml: another worker of the service {name} is running", file=sys.stderr)
            return _BUSY
        files.record("worker", os.getpid(), processes.start_time(os.getpid()))
        return _Worker(files, options, launch).run(savepoint)


class _Worker:
    """Runs the service and reports its state. Before `_end_gracefully` a signal ends it immediately, without a loss."""

    def __init__(self, files: ServiceFiles, options: StartOptions, launch: str) -> None:
        self._files = files
        self._options = options
        self._stop = threading.Event()
        self._reported: dict[str, Any] = {"pid": os.getpid(), "launch": launch}
        if options.tied is not None:
            processes.when_ended(options.tied, lambda: os.kill(os.getpid(), signal.SIGTERM))

    def run(self, savepoint: str) -> int:
        self._report(state="starting")
        try:
            self._work(savepoint)
        except CimlError as error:
            is_fault = not isinstance(error, EngineError)  # it needs another configuration, and is not retried
            self._report(
                state="ended",
                error=str(error),
                fault=is_fault,
                exit_code=error.exit_code,
                needs_adoption=isinstance(error, OtherTopicError),
            )
            print(f"ciml: {error}", file=sys.stderr)
            return error.exit_code
        except BaseException as error:
            self._report(state="ended", error=f"{type(error).__name__}: {error}")
            raise
        self._report(state="ended")
        return 0

    def _report(self, **changes: Any) -> None:
        self._reported.update(changes, time_us=now_us())
        try:
            self._files.put_report(self._reported)
        except OSError as error:  # of a full disk: the work goes on
            _log.warning("the report of the worker cannot be written: %s", error)

    def _end_gracefully(self) -> None:
        """Let signals from now on end the work between two work items."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._stop.set())

    def _work(self, savepoint: str) -> None:
        from ciml.services.driver import drive, submit_to_flink

        options = self._options
        service = options.service.service()
        if not submits(options):
            self._end_gracefully()
            drive(
                service,
                options.jobs if options.engine == "flink" else None,
                stop=self._stop,
                report=self._on_progress,
                patience_s=None,
                extra=options.beam,
            )
            return
        service.open()
        job = submit_to_flink(
            service,
            options.jobs,
            job_name(self._files, options),
            workers=options.workers or None,
            savepoint=savepoint or None,
            changes={"parallelism": options.parallelism},
            extra=options.beam,
            on_name=lambda name: self._report(state="submitting", job=name),
        )
        self._report(beam_id=job.id)
        if not options.workers:
            self._end_gracefully()
        self._await_job(job)

    def _on_progress(self, progress: ServiceProgress, word: str) -> None:
        waits = word.removeprefix("waits: ") if word.startswith("waits: ") else ""
        report = {"state": "running", "progress": progress.to_json(), "waits": waits}
        is_old = now_us() - self._reported["time_us"] > _REPORT_US
        if is_old or self._reported | report != self._reported:
            self._report(**report)

    def _await_job(self, job: FlinkJob) -> None:
        """Wait until Flink has a cluster's job, which may be after the job server's answer, or until the job ends."""
        from ciml.pipelines.flink import jobs as flink_rest
        from ciml.services.driver import check_job

        while not self._stop.wait(_POLL_S):
            check_job(job)
            if self._options.workers and flink_rest.find_rest_job(self._options.rest, job.name) is not None:
                self._report(state="submitted")
                return
        job.cancel()


if __name__ == "__main__":
    role, home, *names = sys.argv[1:]
    if role == "supervisor":
        sys.exit(supervisor_main(Path(home), *names))
    code = worker_main(Path(home), *names)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without waiting many seconds for Beam's threads
