"""The processes of a supervised service: ``python -m ciml.services.process supervisor|worker HOME NAME [LAUNCH
[SAVEPOINT]]``.

The supervisor watches; it may be killed at any moment. The worker runs the service or submits its job. A cluster has
its own Python workers, so the worker process ends after the submission; a Flink inside the job server uses its threads,
so it stays. It writes its outcome to a file (`ServiceFiles.report`), since only a parent can read an exit code.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from ciml.engines import processes
from ciml.engines.programs import stop_with
from ciml.errors import CimlError, EngineError
from ciml.logs import configure_logging
from ciml.services.decide import Health, ServiceProgress
from ciml.services.files import ServiceFiles, StartOptions, bound, in_place, now_us
from ciml.services.jobs import job_name, jobs_of, submits
from ciml.services.metrics import StatusAges, status_families
from ciml.services.service import Service
from ciml.services.supervisor import Supervisor
from ciml.storage.s3 import impatient
from ciml.tensorflow import own_process

if TYPE_CHECKING:
    from ciml.pipelines.flink.submit import FlinkJob

_LOGS_S = 30.0
_POLL_S = 1.0
_ALIVE_S = 10.0  # between two updates of the status of a failed service
_ENDPOINT_S = 5.0  # between two tries to open the metrics endpoint
_REPORT_US = 2_000_000  # longest age of a working worker's report
_BUSY = 75  # another process holds the service
_KEPT = ("savepoint", "resubmitted", "resubmissions", "last_failure")  # of an earlier supervisor's status


def supervisor_main(home: Path, name: str) -> int:
    """Supervise a service until it is stopped or has failed; return the exit code."""
    configure_logging()
    own_process()
    files = ServiceFiles(home, name)
    leave = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # the service keeps running: only `ciml service stop` stops it
        signal.signal(number, lambda *_: leave.set())
    with files.exclusive("supervisor", timeout_s=10.0) as held:
        if not held:
            return _BUSY
        files.record("supervisor", os.getpid(), processes.start_time(os.getpid()))
        options = files.options()
        stop_with(options.tied, lambda: files.want("stop"))
        try:
            health = supervise(files, options, leave)
        except CimlError as error:  # invalid options
            now = now_us()
            status = {
                "health": "failed",
                "why": str(error),
                "supervisor": {"pid": os.getpid()},
                "exit_code": error.exit_code,
                "last_failure": {"time_us": now, "why": str(error)},
                "since_us": now,
                "updated_us": now,
            }
            files.put_status({**files.status(), **status})
            print(f"ciml: {error}", file=sys.stderr)
            return error.exit_code
        return 0 if health == "stopped" or leave.is_set() else 4


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
            health = _supervise(files, options, leave)
        moved = files.options()
        if health != "waiting" or leave.is_set() or moved == options:
            return health
        options = moved


def _supervise(files: ServiceFiles, options: StartOptions, leave: threading.Event) -> Health:
    """Supervise a service while the addresses that it connects to stay the same."""
    service = watched(options)
    ages = StatusAges(options.kind)
    endpoint = Endpoint(files, options, (service.board, ages))
    bounded_s = time.monotonic()

    def on_status(status: dict[str, Any]) -> None:
        nonlocal bounded_s
        service.board.put("status", status_families(options.kind, status))
        ages.update(status)
        status["metrics"] = endpoint.open()
        files.put_status({**status, "supervisor": {"pid": os.getpid()}})
        if time.monotonic() - bounded_s > _LOGS_S:
            bounded_s = time.monotonic()
            for process in ("supervisor", "worker"):
                bound(files.log(process))

    status: dict[str, Any] = {
        "name": files.name,
        "kind": options.kind,
        "engine": options.engine,
        "data": options.service.data,
        "topic": options.service.subject,
        "kafka": options.service.bootstrap,
        "parallelism": options.parallelism,
        **{key: value for key, value in files.status().items() if key in _KEPT},
    }
    try:
        jobs = jobs_of(files, options)
        health = Supervisor(
            service,
            jobs,
            files.wanted,
            on_status,
            status,
            maintains=submits(options),
            moved=lambda: files.options() != options,
        ).run(leave)
        if health == "failed" and options.metrics_port is not None:
            _stay_failed(files, leave)
        if health == "waiting" and not leave.is_set():
            logging.getLogger(__name__).warning("the addresses of the home's own engines have changed")
            with suppress(EngineError):
                jobs.cancel()  # its worker has the earlier ones
        return health
    finally:
        endpoint.close()
        service.close()


def _stay_failed(files: ServiceFiles, leave: threading.Event) -> None:
    """Serve the metrics of a failed service until it is stopped or resumed.

    Prometheus would not see a health that ends with its process, and a container that is started again fails again.
    """
    updated_s = time.monotonic()
    while files.wanted() == "run" and not leave.wait(_POLL_S):
        if time.monotonic() - updated_s > _ALIVE_S:
            updated_s = time.monotonic()
            files.put_status({**files.status(), "updated_us": now_us()})


def watched(options: StartOptions) -> Service:
    """Return the service with short timeouts, so that the supervisor notices a stop in time."""
    with impatient():
        return options.service.service().impatient()


class Endpoint:
    """The supervisor's metrics endpoint. The service runs without it, and it is opened as soon as its port is free.

    Args:
      files, options: of the service.
      collectors: the metrics, in addition to those of the worker.
    """

    def __init__(self, files: ServiceFiles, options: StartOptions, collectors: Sequence[Collector]) -> None:
        from ciml.metrics import registry_of

        self._options = options
        self._registry = registry_of(*collectors, _Timings(files.timings))
        self._stack = ExitStack()
        self._shown = ""
        self._is_open = False
        self._tried_s = -_ENDPOINT_S

    def open(self) -> str:
        """Open it unless it is open; return its URL, "" without one, or why it cannot be opened."""
        from ciml.metrics import serve_metrics

        now = time.monotonic()
        if not self._is_open and now - self._tried_s >= _ENDPOINT_S:
            self._tried_s = now
            serving = serve_metrics(self._registry, self._options.metrics_port, self._options.metrics_address)
            try:
                self._shown = self._stack.enter_context(serving)
                self._is_open = True
            except EngineError as error:
                if str(error) != self._shown:
                    logging.getLogger(__name__).warning("%s", error)
                self._shown = str(error)
        return self._shown

    def close(self) -> None:
        """Close it."""
        self._stack.close()


class _Timings(MultiProcessCollector):
    """The worker's metrics. The next worker's start removes their files."""

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
    own_process()
    files = ServiceFiles(home, name)
    options = files.options()
    with files.exclusive("worker") as held, in_place(home, options):
        if not held:  # another worker, of a supervisor that was killed
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
        stop_with(options.tied, lambda: os.kill(os.getpid(), signal.SIGTERM))

    def run(self, savepoint: str) -> int:
        self._report(state="starting")
        try:
            self._work(savepoint)
        except CimlError as error:
            # a fault needs another configuration: it is not retried
            fault = not isinstance(error, EngineError)
            self._report(state="ended", error=str(error), fault=fault, exit_code=error.exit_code)
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
            self._files.put_report("worker", self._reported)
        except OSError as error:  # of a full disk: the work goes on
            logging.getLogger(__name__).warning("the report of the worker cannot be written: %s", error)

    def _end_gracefully(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._stop.set())

    def _work(self, savepoint: str) -> None:
        from ciml.services.driver import drive
        from ciml.services.launch import submit_to_flink

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
        self._stay(job)

    def _on_progress(self, progress: ServiceProgress, word: str) -> None:
        waits = word.removeprefix("waits: ") if word.startswith("waits: ") else ""
        report = {"state": "running", "progress": progress.to_json() if progress.lag else {}, "waits": waits}
        old = now_us() - self._reported["time_us"] > _REPORT_US
        if old or self._reported | report != self._reported:
            self._report(**report)

    def _stay(self, job: FlinkJob) -> None:
        """Wait until Flink has a cluster's job, which may be after the job server's answer, or until the job ends."""
        from ciml.pipelines.flink import jobs as flink_rest
        from ciml.services.launch import check_job

        while not self._stop.wait(_POLL_S):
            check_job(job)
            if self._options.workers and flink_rest.find(self._options.rest, job.name) is not None:
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
