"""What does the work of a supervised ingest: ``python -m services.worker HOME NAME [SAVEPOINT]``.

As micro-batches it is the ingest itself. On Flink it submits the job: to a cluster, whose workers are processes of
their own, and is done then; or to the Flink inside a job server, and stays, since the job's workers are its threads.
What became of it is written down (`Place.said`): whoever looks may not be its parent, and sees no exit code.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciml.errors import CimlError, EngineError
from ciml.logs import configure_logging
from engines import processes
from engines.tied import tie
from services.files import Options, ServiceFiles

if TYPE_CHECKING:
    from pipelines.flink.submit import FlinkJob
    from pipelines.ingest.config import IngestConfig

_LOOK_S = 1.0
_BUSY = 75


def main(home: Path, name: str, savepoint: str = "") -> int:
    """Works until it is told to end, is done, or cannot go on; returns the exit code."""
    configure_logging()
    place = ServiceFiles(home, name)
    with place.exclusive("worker") as held:
        if not held:  # of a supervisor that was killed before it could write it down
            return _BUSY
        place.write_down("worker", os.getpid(), processes.start_time(os.getpid()))
        return _Worker(place, place.options()).run(savepoint)


class _Worker:
    """The work, and what is said of it. Until `_end_in_order` a signal ends it at once: there is nothing to lose."""

    def __init__(self, place: ServiceFiles, options: Options) -> None:
        self._place, self._options = place, options
        self._stop = threading.Event()
        self._said: dict[str, Any] = {"pid": os.getpid()}
        tie(options.tied, lambda: os.kill(os.getpid(), signal.SIGTERM))

    def run(self, savepoint: str) -> int:
        self._say(state="starting")
        try:
            self._work(savepoint)
        except CimlError as error:
            # what only another configuration mends is a fault: nobody tries again
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
        from services.config import make_config

        options = self._options
        config = make_config(**options.ingest)
        if options.engine == "micro-batches":
            from services.ingest import ingest_micro_batches

            self._end_in_order()
            ingest_micro_batches(config, stop=self._stop, report=self._report, patience_s=None)
            return
        name = f"ciml-ingest-{self._place.name}-{identity(options)}"
        job = submit(options, config, name, savepoint, lambda chosen: self._say(state="submitting", job=chosen))
        self._say(beam_id=job.id)
        if not options.workers:
            self._end_in_order()
        self._stay(job)

    def _report(self, *_: Any) -> None:
        if self._said["state"] != "running":
            self._say(state="running")

    def _stay(self, job: FlinkJob) -> None:
        """With a job on a cluster until Flink has it: the job server answers before that. With another to its end."""
        from pipelines.flink import rest as flink_rest

        while not self._stop.wait(_LOOK_S):
            job.check()
            if job.over:
                raise EngineError(f"the Flink job ended by itself: {job.state}")
            if self._options.workers and flink_rest.find(self._options.rest, job.name) is not None:
                self._say(state="submitted")
                return
        job.cancel()


def submit(
    options: Options, config: IngestConfig, name: str, savepoint: str, chosen: Callable[[str], None]
) -> FlinkJob:
    """Submits the job.

    Args:
      options, config: of the ingest.
      name: how the job's name begins.
      savepoint: to begin from; "" for the manifest, which decides in the end what is read twice and what is missing.
      chosen: is told the job's name before it is submitted.
    """
    from pipelines.flink.submit import flink_options
    from pipelines.kafka.client import list_topic
    from services.ingest import cover_bases, submit_ingest

    listing = list_topic(config.kafka, config.topic)
    cover_bases(config, listing)
    announcer = config.projection()
    if announcer is not None:
        announcer.announce()
        announcer.close()
    made = flink_options(
        options.jobs, name, workers=options.workers or None, savepoint=savepoint or None,
        changes={"parallelism": options.parallelism}, extra=options.beam,
    )  # fmt: skip
    chosen(str(made.get_all_options()["job_name"]))
    return submit_ingest(config, listing, made)


def identity(options: Options) -> str:
    """What tells the jobs of two ingests of one name apart, on a cluster that two homes share."""
    from ciml.data_root import DataRoot
    from ciml.digest import sha256_json

    return sha256_json([DataRoot.open(options.ingest["data_path"]).url, options.ingest["topic"]])[:8]


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), *sys.argv[2:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is said and closed; Beam's threads take many seconds to find out
