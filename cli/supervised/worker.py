"""What does the work of a supervised ingest: ``python -m cli.supervised.worker HOME NAME [SAVEPOINT]``.

As micro-batches it is the ingest itself. On Flink it submits the job: to a cluster, whose workers are processes of
their own, and is done then; or to the Flink inside a job server, and stays, since the job's workers are its threads.
What became of it is written down (`Place.said`): whoever looks may not be its parent, and sees no exit code.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciml.errors import CimlError, EngineError
from cli.engines import processes
from cli.supervised.place import Options, Place
from cli.supervised.tied import tie

if TYPE_CHECKING:
    from pipelines.ingest import IngestConfig

_LOOK_S = 1.0
_BUSY = 75


def main(home: Path, name: str, savepoint: str = "") -> int:
    """Works until it is told to end, is done, or cannot go on; returns the exit code."""
    from cli.main import configure_logging

    configure_logging()
    place, stop = Place(home, name), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with place.exclusive("worker") as held:
        if not held:  # of a supervisor that was killed before it could write it down
            return _BUSY
        return _main(place, savepoint, stop)


def _main(place: Place, savepoint: str, stop: threading.Event) -> int:
    place.write_down("worker", os.getpid(), processes.start_time(os.getpid()))
    options = place.options()
    tie(options.tied, stop.set)

    def say(state: str, **more: Any) -> None:
        place.say("worker", {"pid": os.getpid(), "state": state, **more})

    say("starting")
    try:
        work(options, f"ciml-ingest-{place.name}", savepoint, stop, say)
    except CimlError as error:
        # what only another configuration mends is a fault: nobody tries again
        say("ended", error=str(error), fault=not isinstance(error, EngineError))
        print(f"ciml: {error}", file=sys.stderr)
        return error.exit_code
    except BaseException as error:
        say("ended", error=f"{type(error).__name__}: {error}", fault=False)
        raise
    say("ended", error="", fault=False)
    return 0


def work(options: Options, job: str, savepoint: str, stop: threading.Event, say: Any) -> None:
    """Ingests, or submits the job that does.

    Args:
      options: of the ingest.
      job: how the job's name begins.
      savepoint: to begin from; "" for the manifest.
      stop: ends it.
      say: told the state, and the job's id where there is one.
    """
    from cli.commands.ingest.options import make_config

    config = make_config(**options.ingest)
    if options.engine == "micro-batches":
        from pipelines.run_ingest import ingest_micro_batches

        told: list[None] = []

        def report(*_: Any) -> None:
            if not told:
                told.append(None)
                say("running")

        ingest_micro_batches(config, stop=stop, report=report, patience_s=None)
        return
    submitted = submit(options, config, f"{job}-{identity(options)}", savepoint)
    say("submitted")
    if options.workers:
        return
    while not stop.wait(_LOOK_S):
        submitted.check()
        if submitted.over:
            raise EngineError(f"the Flink job ended by itself: {submitted.state}")
    submitted.cancel()


def submit(options: Options, config: IngestConfig, name: str, savepoint: str) -> Any:
    """Submits the job, which goes on from the manifest, whatever a savepoint says of the rest."""
    from pipelines.committer import committer
    from pipelines.engines import FlinkJob, flink_options
    from pipelines.ingest import build_ingest
    from pipelines.kafka import plan
    from pipelines.kafka_client import list_topic
    from pipelines.run_ingest import cover_bases

    listing = list_topic(config.kafka, config.topic)
    cover_bases(config, listing)
    announcer = config.projection()
    if announcer is not None:
        announcer.announce()
        announcer.close()
    with committer(config.raw).state() as state:
        reads = plan(state, listing, bounded=False)
    extra = [*options.beam]
    if savepoint:
        extra.append(f"--savepoint_path={savepoint}")
    made = flink_options(
        options.jobs, name, workers=options.workers or None, changes={"parallelism": options.parallelism}, extra=extra
    )
    return FlinkJob(partial(build_ingest, config=config, reads=reads), made)


def identity(options: Options) -> str:
    """What tells the jobs of two ingests of one name apart, on a cluster that two homes share."""
    from ciml.digest import sha256_json
    from ciml.storage import open_store

    return sha256_json([open_store(options.ingest["data_path"]).root, options.ingest["topic"]])[:8]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
