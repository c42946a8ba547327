"""How an ingest is run: as micro-batches in this process, or as one job on Flink. Both commit by the same committer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from apache_beam.options.pipeline_options import PipelineOptions

from ciml.errors import EngineError
from ciml.raw.accounting import RawState
from pipelines.flink.submit import FlinkJob, flink_options, run_here
from pipelines.ingest.committer import committer
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.pipeline import build_ingest
from pipelines.kafka.client import Listing, close_readers, list_again, list_topic
from pipelines.kafka.plan import is_older
from pipelines.kafka.source import bases, plan
from services.metrics import IngestBoard
from services.progress import PATIENCE_S, Outage, Progress, Seen, Until, lag, watch_job

Report = Callable[[RawState, int], None]

_PAUSE_S = 1.0
_STALL_S = 240.0  # more than a batch whose logs all time out takes
_RENEW_S = 3600.0  # the state of a source in Python grows with every rest: docs/kafka.md; a new job begins with none


def ingest_micro_batches(
    config: IngestConfig,
    *,
    until: Until = None,
    stop: threading.Event | None = None,
    report: Report | None = None,
    patience_s: float | None = PATIENCE_S,
    board: IngestBoard | None = None,
) -> None:
    """Ingests by bounded pipelines, one after the other, each from the committed offsets to the present end.

    Args:
      config: what to ingest, and how.
      until: when to end.
      stop: ends it, when set, after the pipeline that runs.
      report: told the state and the lag (offsets not covered) after each commit.
      patience_s: how long a broker or a store may not answer, once it has answered; None for ever.
      board: shown the state and the topic before each pipeline.

    Raises:
      EngineError: the broker or a store does not answer: at the start, or for longer than ``patience_s`` later on.
      IntegrityError: see `pipelines.kafka.source.plan` and `ciml.raw.accounting.reconcile`.
    """
    stop = stop or threading.Event()
    committing, announcer = committer(config.raw), config.projection()
    listing = first = list_topic(config.kafka, config.topic)
    cover_bases(config, listing)
    progress, outage = Progress(until), Outage(patience_s)
    try:
        while not stop.is_set():
            try:
                if announcer is not None:
                    announcer.announce()  # what was committed, and its process died or the broker was away
                with committing.state() as state:
                    if is_older(listing, state):  # another ingest has read on
                        listing = list_again(config.kafka, listing)
                    target = first if until == "end" else listing
                    reads = plan(state, listing, bounded=True, most=config.cycle_messages, until=target)
                    due = state.due(int(time.time() * 1e6))
                    done = progress.see(state.version, lag(state, target), bool(state.deferred))
                    if report is not None:
                        report(state, lag(state, listing))
                    if board is not None:
                        board.see(state, listing)
                committing.maintain()  # between commits, and never within one
                if reads or due:
                    run_here(partial(build_ingest, config=config, reads=reads, due=due))
                else:
                    if done:
                        return
                    stop.wait(_PAUSE_S if until is None or until == "end" else min(_PAUSE_S, max(until, 0.05)))
                listing = list_again(config.kafka, listing)
                outage.is_over()
            except EngineError as error:
                outage.goes_on(error)
                stop.wait(_PAUSE_S)
    finally:
        close_readers()
        if announcer is not None:
            announcer.close()


def ingest_on_flink(
    config: IngestConfig,
    endpoint: str,
    *,
    until: Until = None,
    stop: threading.Event | None = None,
    report: Report | None = None,
    extra: tuple[str, ...] = (),
    board: IngestBoard | None = None,
) -> None:
    """Ingests by one job on Flink, which goes on until ``stop`` is set or ``until`` is there, and is cancelled then.

    What was committed stays; the rest is read again by the next job: the manifest decides where reading starts.

    Args:
      config: what to ingest, and how.
      endpoint: ``host:port`` of Beam's job server.
      until: when to end.
      stop: ends it, when set.
      report: told the state and the lag every second.
      extra: further options of Beam.
      board: shown the state and the topic every second.

    Raises:
      EngineError: Flink, the broker or a store does not answer, the job failed, or it commits nothing.
      IntegrityError: as for micro-batches; the job is cancelled.
    """
    committing, announcer = committer(config.raw), config.projection()
    listing = first = list_topic(config.kafka, config.topic)
    cover_bases(config, listing)
    if announcer is not None:
        announcer.announce()

    def submit() -> FlinkJob:
        return submit_ingest(config, listing, flink_options(endpoint, f"ciml-ingest-{config.topic}", extra=extra))

    def look(_: str) -> Seen:
        nonlocal listing
        committing.maintain()
        listing = list_again(config.kafka, listing)
        with committing.state() as state:
            if report is not None:
                report(state, lag(state, listing))
            if board is not None:
                board.see(state, listing)
            return Seen(state.version, lag(state, first if until == "end" else listing), bool(state.deferred))

    try:
        watch_job(
            submit, look, until=until, stop=stop or threading.Event(), stall_s=_STALL_S, renew_s=_RENEW_S,
            pause_s=_PAUSE_S,
        )  # fmt: skip
    finally:
        close_readers()
        if announcer is not None:
            announcer.announce()  # the job may have been cancelled between a commit and its announcement
            announcer.close()


def submit_ingest(config: IngestConfig, listing: Listing, options: PipelineOptions) -> FlinkJob:
    """Submits the job that goes on from the manifest.

    Args:
      config: what to ingest, and how.
      listing: of the topic; it is listed again where somebody else has read on since.
      options: of Beam: where the job runs, and under which name.

    Raises:
      EngineError: Flink, the broker or a store does not answer.
      IntegrityError: see `pipelines.kafka.source.plan`.
    """
    with committer(config.raw).state() as state:
        now = list_again(config.kafka, listing) if is_older(listing, state) else listing
        reads = plan(state, now, bounded=False)
    return FlinkJob(partial(build_ingest, config=config, reads=reads), options)


def cover_bases(config: IngestConfig, listing: Listing) -> None:
    """Commits what a topic had lost before it was first read, so that a later loss is one.

    When another has begun to read meanwhile, nothing is: what is missing then was lost later.
    """
    committer(config.raw).commit_found(lambda state: bases(state, listing))
