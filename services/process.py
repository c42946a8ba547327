"""The processes of a supervised service: ``python -m services.process supervisor|worker HOME NAME [SAVEPOINT]``.

The supervisor watches; it may be killed at any moment. The worker drives the service, or submits its job: to a cluster,
whose workers are processes of their own, and is done then; or to the Flink inside a job server, and stays, since the
job's workers are its threads. What became of it is written down (`ServiceFiles.said`): whoever looks may not be its
parent, and sees no exit code.
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
from services.files import Options, ServiceFiles, bound
from services.jobs import job_name, jobs_of, submits
from services.metrics import status_families
from services.service import Progress, Service, class_of
from services.supervisor import Supervisor

if TYPE_CHECKING:
    from pipelines.flink.submit import FlinkJob

_LOGS_S = 30.0
_LOOK_S = 1.0
_BUSY = 75  # another process has the service
_KEPT = ("savepoint", "resubmitted", "resubmissions")  # of an earlier supervisor's status


def supervisor_main(home: Path, name: str) -> int:
    """Supervise until the service is stopped or must not go on; return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname).1s %(message)s", stream=sys.stderr)
    place, leave = ServiceFiles(home, name), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # the service goes on: only `ciml service stop` stops it
        signal.signal(number, lambda *_: leave.set())
    with place.exclusive("supervisor", timeout_s=10.0) as held:
        if not held:
            return _BUSY
        place.write_down("supervisor", os.getpid(), processes.start_time(os.getpid()))
        options = place.options()
        stop_with(options.tied, lambda: place.want("stop"))
        try:
            health = supervise(place, options, leave)
        except CimlError as error:  # the options are of no use (any more)
            place.put_status({**place.status(), "health": "failed", "why": str(error)})
            print(f"ciml: {error}", file=sys.stderr)
            return error.exit_code
        return 0 if health == "stopped" or leave.is_set() else 4


def supervise(place: ServiceFiles, options: Options, leave: threading.Event | None = None) -> Health:
    """Supervise a service in this process.

    Args:
      place, options: of the service. The caller holds it (`ServiceFiles.exclusive`).
      leave: ends the watch alone.

    Returns:
      How it ended: ``stopped``, ``failed``, or the last health when it left.
    """
    swept = time.monotonic()

    def tell(status: dict[str, Any]) -> None:
        nonlocal swept
        service.board.put("status", status_families(options.kind, status))
        place.put_status({**status, "supervisor": {"pid": os.getpid()}})
        if time.monotonic() - swept > _LOGS_S:
            swept = time.monotonic()
            for what in ("supervisor", "worker"):
                bound(place.log(what))

    os.chdir(options.cwd)
    given = options.arguments
    status: dict[str, Any] = {
        "name": place.name, "kind": options.kind, "engine": options.engine, "data": given["data_path"],
        "topic": options.topic, "kafka": given.get("kafka", ""), "parallelism": options.parallelism,
        **{key: value for key, value in place.status().items() if key in _KEPT},
    }  # fmt: skip
    service = watched(options)
    try:
        supervisor = Supervisor(
            service, jobs_of(place, options), place.wanted, tell, status, maintains=submits(options)
        )
        with _metrics(place, options, service.board) as status["metrics"]:
            return supervisor.run(leave)
    finally:
        service.close()


def watched(options: Options) -> Service:
    """The service as it is watched. A broker that is slow is waited for all the same, and a stop is seen in time."""
    return class_of(options.kind).of(**options.arguments).impatient()


@contextmanager
def _metrics(place: ServiceFiles, options: Options, board: Collector) -> Iterator[str]:
    """Show metrics, and yield where; or why not: the service is kept at work all the same."""
    from ciml.metrics import registry_of, serve_metrics

    with ExitStack() as stack:
        where = ""
        try:
            registry = registry_of(board, _Timings(place.timings))
            where = stack.enter_context(serve_metrics(registry, options.metrics_port, options.metrics_address))
        except EngineError as error:
            where = str(error)
            logging.getLogger(__name__).warning("%s", error)
        yield where


class _Timings(Collector):
    """What the worker measures. Its files go when the next one starts."""

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
    """Work until it is asked to end, is done, or cannot go on; return the exit code."""
    configure_logging()
    place = ServiceFiles(home, name)
    with place.exclusive("worker") as held:
        if not held:  # of a supervisor that was killed before it could write it down
            return _BUSY
        place.write_down("worker", os.getpid(), processes.start_time(os.getpid()))
        return _Worker(place, place.options()).run(savepoint)


class _Worker:
    """The work, and what is reported of it. Until `_end_in_order` a signal ends it at once: nothing can be lost."""

    def __init__(self, place: ServiceFiles, options: Options) -> None:
        self._place, self._options = place, options
        self._stop = threading.Event()
        self._said: dict[str, Any] = {"pid": os.getpid()}
        stop_with(options.tied, lambda: os.kill(os.getpid(), signal.SIGTERM))

    def run(self, savepoint: str) -> int:
        self._say(state="starting")
        try:
            self._work(savepoint)
        except CimlError as error:
            # only another configuration helps against a fault: nobody tries again
            self._say(state="ended", error=str(error), fault=not isinstance(error, EngineError))
            print(f"ciml: {error}", file=sys.stderr)
            return error.exit_code
        except BaseException as error:
            self._say(state="ended", error=f"{type(error).__name__}: {error}")
            raise
        self._say(state="ended")
        return 0

    def _say(self, **changes: Any) -> None:
        self._said.update(changes)
        self._place.say("worker", self._said)

    def _end_in_order(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._stop.set())

    def _work(self, savepoint: str) -> None:
        from services.driver import drive, submit

        options = self._options
        service = class_of(options.kind).of(**options.arguments)
        if not submits(options):
            self._end_in_order()
            drive(
                service, options.jobs if options.engine == "flink" else None, stop=self._stop, report=self._report,
                patience_s=None, extra=options.beam,
            )  # fmt: skip
            return
        service.open()
        job = submit(
            service, options.jobs, job_name(self._place, options), workers=options.workers or None,
            savepoint=savepoint or None, changes={"parallelism": options.parallelism}, extra=options.beam,
            chosen=lambda name: self._say(state="submitting", job=name),
        )  # fmt: skip
        self._say(beam_id=job.id)
        if not options.workers:
            self._end_in_order()
        self._stay(job)

    def _report(self, progress: Progress, word: str) -> None:
        if self._said["state"] != "running":
            self._say(state="running")

    def _stay(self, job: FlinkJob) -> None:
        """With a job on a cluster until Flink has it: the job server answers before that. With another to its end."""
        from pipelines.flink import rest as flink_rest
        from services.driver import check

        while not self._stop.wait(_LOOK_S):
            check(job)
            if self._options.workers and flink_rest.find(self._options.rest, job.name) is not None:
                self._say(state="submitted")
                return
        job.cancel()


if __name__ == "__main__":
    role, home, *names = sys.argv[1:]
    if role == "supervisor":
        sys.exit(supervisor_main(Path(home), *names))
    code = worker_main(Path(home), *names)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is said and closed; Beam's threads take many seconds to find out
