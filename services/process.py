"""The processes of a supervised service: ``python -m services.process supervisor|worker HOME NAME [SAVEPOINT]``.

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
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from ciml.errors import CimlError, EngineError
from ciml.logs import configure_logging
from engines import processes
from engines.stop_with_parent import stop_with
from services.decide import Health
from services.files import Options, ServiceFiles, bound, now_us
from services.jobs import job_name, jobs_of, submits
from services.metrics import status_families
from services.service import Progress, Service, class_of
from services.supervisor import Supervisor

if TYPE_CHECKING:
    from pipelines.flink.submit import FlinkJob

_LOGS_S = 30.0
_POLL_S = 1.0
_ALIVE_S = 10.0  # between two updates of the status of a failed service
_BUSY = 75  # another process holds the service
_KEPT = ("savepoint", "resubmitted", "resubmissions")  # of an earlier supervisor's status


def supervisor_main(home: Path, name: str) -> int:
    """Supervise a service until it is stopped or has failed; return the exit code."""
    configure_logging()
    files, leave = ServiceFiles(home, name), threading.Event()
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
            files.put_status({**files.status(), "health": "failed", "why": str(error)})
            print(f"ciml: {error}", file=sys.stderr)
            return error.exit_code
        return 0 if health == "stopped" or leave.is_set() else 4


def supervise(files: ServiceFiles, options: Options, leave: threading.Event | None = None) -> Health:
    """Supervise a service in this process.

    Args:
      files, options: of the service. The caller holds its lock (`ServiceFiles.exclusive`).
      leave: when set, ends the supervision and leaves the service running.

    Returns:
      ``stopped``, ``failed``, or the last health after ``leave``.
    """
    bounded_s = time.monotonic()

    def on_status(status: dict[str, Any]) -> None:
        nonlocal bounded_s
        service.board.put("status", status_families(options.kind, status))
        files.put_status({**status, "supervisor": {"pid": os.getpid()}})
        if time.monotonic() - bounded_s > _LOGS_S:
            bounded_s = time.monotonic()
            for what in ("supervisor", "worker"):
                bound(files.log(what))

    os.chdir(options.cwd)
    given = options.arguments
    status: dict[str, Any] = {
        "name": files.name, "kind": options.kind, "engine": options.engine, "data": given.get("data_path", ""),
        "topic": options.topic, "kafka": given.get("kafka", ""), "parallelism": options.parallelism,
        **{key: value for key, value in files.status().items() if key in _KEPT},
    }  # fmt: skip
    service = watched(options)
    try:
        supervisor = Supervisor(
            service, jobs_of(files, options), files.wanted, on_status, status, maintains=submits(options)
        )
        with _metrics(files, options, service.board) as status["metrics"]:
            health = supervisor.run(leave)
            if health == "failed" and options.metrics_port is not None:
                _stay_failed(files, leave or threading.Event())
            return health
    finally:
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


def watched(options: Options) -> Service:
    """Return the service with short timeouts, so that the supervisor notices a stop in time."""
    return class_of(options.kind).of(**options.arguments).impatient()


@contextmanager
def _metrics(files: ServiceFiles, options: Options, board: Collector) -> Iterator[str]:
    """Serve metrics, and yield their URL, or the error that prevents it: the service runs without metrics too."""
    from ciml.metrics import registry_of, serve_metrics

    with ExitStack() as stack:
        where = ""
        try:
            registry = registry_of(board, _Timings(files.timings))
            where = stack.enter_context(serve_metrics(registry, options.metrics_port, options.metrics_address))
        except EngineError as error:
            where = str(error)
            logging.getLogger(__name__).warning("%s", error)
        yield where


class _Timings(Collector):
    """The worker's metrics. The next worker's start removes their files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = MultiProcessCollector(None, str(folder))  # type: ignore[no-untyped-call]

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        try:
            return list(self._files.collect())  # type: ignore[no-untyped-call]
        except FileNotFoundError:
            return []


def worker_main(home: Path, name: str, savepoint: str = "") -> int:
    """Run the worker until it is stopped, is done, or fails; return the exit code."""
    configure_logging()
    files = ServiceFiles(home, name)
    with files.exclusive("worker") as held:
        if not held:  # another worker, of a supervisor that was killed
            return _BUSY
        files.record("worker", os.getpid(), processes.start_time(os.getpid()))
        return _Worker(files, files.options()).run(savepoint)


class _Worker:
    """Runs the service and reports its state. Before `_end_gracefully` a signal ends it at once, without a loss."""

    def __init__(self, files: ServiceFiles, options: Options) -> None:
        self._files, self._options = files, options
        self._stop = threading.Event()
        self._reported: dict[str, Any] = {"pid": os.getpid()}
        stop_with(options.tied, lambda: os.kill(os.getpid(), signal.SIGTERM))

    def run(self, savepoint: str) -> int:
        self._report(state="starting")
        try:
            self._work(savepoint)
        except CimlError as error:
            # a fault needs another configuration: it is not retried
            self._report(state="ended", error=str(error), fault=not isinstance(error, EngineError))
            print(f"ciml: {error}", file=sys.stderr)
            return error.exit_code
        except BaseException as error:
            self._report(state="ended", error=f"{type(error).__name__}: {error}")
            raise
        self._report(state="ended")
        return 0

    def _report(self, **changes: Any) -> None:
        self._reported.update(changes)
        self._files.put_report("worker", self._reported)

    def _end_gracefully(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._stop.set())

    def _work(self, savepoint: str) -> None:
        from services.driver import drive, submit

        options = self._options
        service = class_of(options.kind).of(**options.arguments)
        if not submits(options):
            self._end_gracefully()
            drive(
                service, options.jobs if options.engine == "flink" else None, stop=self._stop, report=self._on_progress,
                patience_s=None, extra=options.beam,
            )  # fmt: skip
            return
        service.open()
        job = submit(
            service, options.jobs, job_name(self._files, options), workers=options.workers or None,
            savepoint=savepoint or None, changes={"parallelism": options.parallelism}, extra=options.beam,
            chosen=lambda name: self._report(state="submitting", job=name),
        )  # fmt: skip
        self._report(beam_id=job.id)
        if not options.workers:
            self._end_gracefully()
        self._stay(job)

    def _on_progress(self, progress: Progress, word: str) -> None:
        waits = word.removeprefix("waits: ") if word.startswith("waits: ") else ""
        seen = {"state": "running", "progress": progress.to_json() if progress.lag else {}, "waits": waits}
        if self._reported | seen != self._reported:
            self._report(**seen)

    def _stay(self, job: FlinkJob) -> None:
        """Wait until Flink has a cluster's job, which may be after the job server's answer, or until the job ends."""
        from pipelines.flink import rest as flink_rest
        from services.driver import check

        while not self._stop.wait(_POLL_S):
            check(job)
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
