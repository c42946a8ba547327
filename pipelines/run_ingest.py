"""How an ingest is run: as micro-batches in this process, or as one job on Flink. Both commit by the same committer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

from ciml.accounting import RawState
from ciml.errors import EngineError
from pipelines.committer import committer
from pipelines.engines import FlinkJob, flink_options, run_here
from pipelines.ingest import IngestConfig, build_ingest
from pipelines.kafka import Coverage, bases, plan
from pipelines.kafka_client import Listing, close_readers, list_topic

#: When to end: never; when the topic's end, as it is now, is reached; or after so many seconds without anything new
#: (and without deferred logs that wait for their next try).
Until = None | Literal["end"] | float
Report = Callable[[RawState, int], None]

_PAUSE_S = 1.0
_OUTAGE_S = 300.0
_STALL_S = 240.0  # more than a batch whose logs all time out takes
_STALLS = 3
_RENEW_S = 6 * 3600.0  # the state of a source in Python grows with every rest it takes; a new job begins with none
_log = logging.getLogger(__name__)


def ingest_micro_batches(
    config: IngestConfig, *, until: Until = None, stop: threading.Event | None = None, report: Report | None = None
) -> None:
    """Ingests by bounded pipelines, one after the other, each from the committed offsets to the present end.

    Args:
      config: what to ingest, and how.
      until: when to end.
      stop: ends it, when set, after the pipeline that runs.
      report: told the state and the lag (offsets not covered) after each commit.

    Raises:
      EngineError: the broker or a store does not answer: at the start, or for five minutes later on.
      IntegrityError: see `pipelines.kafka.plan` and `ciml.accounting.reconcile`.
    """
    stop = stop or threading.Event()
    committing, announcer = committer(config.raw), config.projection()
    listing = first = list_topic(config.kafka, config.topic)
    cover_bases(config, listing)
    moved, outage = time.monotonic(), Outage()
    try:
        while not stop.is_set():
            try:
                if announcer is not None:
                    announcer.announce()  # what was committed, and its process died or the broker was away
                with committing.state() as state:
                    target = first if until == "end" else listing
                    reads = plan(state, target, bounded=True, most=config.cycle_messages)
                    due = state.due(int(time.time() * 1e6))
                    waiting = bool(state.deferred)
                    if report is not None:
                        report(state, lag(state, listing))
                if reads or due:
                    run_here(partial(build_ingest, config=config, reads=reads, due=due))
                    moved = time.monotonic()
                else:
                    if until == "end" or (until is not None and not waiting and time.monotonic() - moved >= until):
                        return
                    stop.wait(_PAUSE_S if until is None else min(_PAUSE_S, max(float(until), 0.05)))
                listing = list_topic(config.kafka, config.topic)
                outage.is_over()
            except EngineError as error:
                outage.goes_on(error)
                stop.wait(_PAUSE_S)
    finally:
        close_readers()
        if announcer is not None:
            announcer.close()


class Outage:
    """A broker or a store that does not answer any more is waited for, for a while."""

    def __init__(self) -> None:
        self._since: float | None = None

    def is_over(self) -> None:
        self._since = None

    def goes_on(self, error: EngineError) -> None:
        """Raises the error when it has lasted too long."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            _log.warning("%s; trying again", error)
        if now - self._since > _OUTAGE_S:
            raise error


def ingest_on_flink(
    config: IngestConfig,
    endpoint: str,
    *,
    until: Until = None,
    stop: threading.Event | None = None,
    report: Report | None = None,
    extra: tuple[str, ...] = (),
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

    Raises:
      EngineError: Flink, the broker or a store does not answer, the job failed, or it commits nothing.
      IntegrityError: as for micro-batches; the job is cancelled.
    """
    stop = stop or threading.Event()
    committing, announcer = committer(config.raw), config.projection()
    listing = first = list_topic(config.kafka, config.topic)
    cover_bases(config, listing)
    if announcer is not None:
        announcer.announce()

    def submit() -> FlinkJob:
        with committing.state() as state:
            reads = plan(state, listing, bounded=False)
        options = flink_options(endpoint, f"ciml-ingest-{config.topic}", extra=extra)
        return FlinkJob(partial(build_ingest, config=config, reads=reads), options)

    job, outage, stalls = submit(), Outage(), 0
    idle_since = commit_since = submitted = time.monotonic()
    version = -1
    try:
        while not stop.wait(_PAUSE_S):
            job.check()
            if job.over:
                raise EngineError(f"the Flink job ended by itself: {job.state}")
            try:
                listing = list_topic(config.kafka, config.topic)
                with committing.state() as state:
                    now, behind = time.monotonic(), lag(state, first if until == "end" else listing)
                    waiting = bool(state.deferred)
                    if state.version != version:
                        version, stalls = state.version, 0
                        idle_since = commit_since = now
                    if report is not None:
                        report(state, lag(state, listing))
                outage.is_over()
            except EngineError as error:
                outage.goes_on(error)
                continue
            if behind:
                idle_since = now
            else:
                commit_since = now
                if until == "end" or (until is not None and not waiting and now - idle_since >= until):
                    return
            if now - commit_since > _STALL_S:  # seen: a job that runs, makes checkpoints, and never starts to read
                stalls += 1
                if stalls > _STALLS:
                    raise EngineError(f"the Flink job commits nothing, though there are {behind} messages to read")
                _log.warning("no commit for %.0f s, though there are %d messages: a new job", _STALL_S, behind)
                job.cancel()
                job, commit_since = submit(), time.monotonic()
            elif now - submitted > _RENEW_S:
                job.cancel()
                job, submitted = submit(), time.monotonic()
    finally:
        job.cancel()
        close_readers()
        if announcer is not None:
            announcer.announce()  # the job may have been cancelled between a commit and its announcement
            announcer.close()


def cover_bases(config: IngestConfig, listing: Listing) -> None:
    """Commits what a topic had lost before it was first read, so that a later loss is one."""
    committing = committer(config.raw)
    with committing.state() as state:
        missing = bases(state, listing)
    if missing:
        committing.commit(missing)


def lag(state: Coverage, listing: Listing) -> int:
    """How many offsets of a topic are not covered."""
    return sum(
        end - start
        for partition, (first, last) in listing.bounds.items()
        for start, end in state.covered(listing.topic, partition).missing(first, last)
    )
