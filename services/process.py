"""The supervisor's process: ``python -m services.process HOME NAME``. It may be killed at any moment."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from ciml.errors import CimlError, EngineError
from engines import processes
from engines.tied import tie
from services.decide import Health
from services.files import Options, ServiceFiles, bound

_LOGS_S = 30.0
_BUSY = 75  # another supervisor has the ingest


def main(home: Path, name: str) -> int:
    """Supervises until the ingest is stopped or must not go on; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname).1s %(message)s", stream=sys.stderr)
    place, leave = ServiceFiles(home, name), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # the ingest goes on: only `ciml ingest stop` stops it
        signal.signal(number, lambda *_: leave.set())
    with place.exclusive("supervisor", timeout_s=10.0) as held:
        if not held:
            return _BUSY
        place.write_down("supervisor", os.getpid(), processes.start_time(os.getpid()))
        options = place.options()
        tie(options.tied, lambda: place.want("stop"))
        try:
            health = supervise(place, options, leave)
        except CimlError as error:  # the options are of no use (any more)
            place.put_status({**place.status(), "health": "failed", "why": str(error)})
            print(f"ciml: {error}", file=sys.stderr)
            return error.exit_code
        return 0 if health == "stopped" or leave.is_set() else 4


def supervise(place: ServiceFiles, options: Options, leave: threading.Event | None = None) -> Health:
    """Supervises an ingest in this process.

    Args:
      place, options: of the ingest. The caller holds it (`Place.exclusive`).
      leave: ends the watch alone.

    Returns:
      How it ended: ``stopped``, ``failed``, or the last health when it left.
    """
    from services.jobs import jobs_of
    from services.supervisor import Supervisor

    swept = time.monotonic()

    def tell(status: dict[str, Any]) -> None:
        nonlocal swept
        place.put_status({**status, "supervisor": {"pid": os.getpid()}})
        if time.monotonic() - swept > _LOGS_S:
            swept = time.monotonic()
            for what in ("supervisor", "worker"):
                bound(place.log(what))

    os.chdir(options.cwd)
    kept = ("savepoint", "resubmitted", "resubmissions")
    status: dict[str, Any] = {
        "name": place.name, "engine": options.engine, "data": options.ingest["data_path"],
        "topic": options.ingest["topic"], "kafka": options.ingest["kafka"], "parallelism": options.parallelism,
        **{key: value for key, value in place.status().items() if key in kept},
    }  # fmt: skip
    supervisor = Supervisor(
        watched(options), jobs_of(place, options), place.wanted, tell, status,
        maintains=options.engine != "micro-batches",
    )  # fmt: skip
    with _metrics(place, options, supervisor.board) as status["metrics"]:
        return supervisor.run(leave)


@contextmanager
def _metrics(place: ServiceFiles, options: Options, board: Collector) -> Iterator[str]:
    """Shows metrics, and yields where; or why not: the ingest is kept at work all the same."""
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


def watched(options: Options) -> Any:
    """What is watched, without all that an ingest's own configuration loads."""
    from ciml.data_root import DataRoot
    from ciml.pairs import pairs
    from pipelines.kafka.client import KafkaOptions
    from pipelines.kafka.publish import render_letters, render_runs
    from services.supervisor import Watched

    given = options.ingest
    # a short timeout: a broker that is slow is waited for all the same, and `ciml ingest stop` is heard in time
    kafka = KafkaOptions.of(given["kafka"], pairs("-X", given["kafka_options"]), given.get("kafka_config"))
    kafka = replace(kafka, timeout_s=5.0)
    told = [(given["runs_topic"], render_runs), (given.get("dead_letters_topic", ""), render_letters)]
    raw = DataRoot.open(given["data_path"]).raw
    return Watched(raw, kafka, given["topic"], tuple(each for each in told if each[0]))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
