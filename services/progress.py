"""What every driver of a pipeline does beside it: wait out an outage, see what moves, and tell when it is done."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from ciml.errors import EngineError
from pipelines.kafka.broker import Listing
from pipelines.kafka.plan import Coverage

if TYPE_CHECKING:
    from pipelines.flink.submit import FlinkJob  # which loads all of Beam

#: When to end: never; when the topic's end, as it is now, is reached; or after so many seconds without anything new
#: (and without deferred logs that wait for their next try).
Until = None | Literal["end"] | float

PATIENCE_S = 300.0
_STALLS = 3
_log = logging.getLogger(__name__)


class Outage:
    """A broker or a store that does not answer any more is waited for, for ``limit_s`` seconds (None: for ever)."""

    def __init__(self, limit_s: float | None = PATIENCE_S) -> None:
        self._limit_s = limit_s
        self._since: float | None = None

    def is_over(self) -> None:
        if self._since is not None:
            _log.warning("it answers again, after %.0f s", time.monotonic() - self._since)
        self._since = None

    def goes_on(self, error: EngineError) -> None:
        """Raises the error when it has lasted too long."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            _log.warning("%s; trying again", error)
        if self._limit_s is not None and now - self._since > self._limit_s:
            raise error


class Progress:
    """What moves, by the clock: how long nothing was committed, with and without something to read.

    Attributes:
      stalled_s: for how long nothing was committed though there was something to read.
      idle_s: for how long there was nothing to read, and nothing was committed.
    """

    def __init__(self, until: Until, clock: Callable[[], float] = time.monotonic) -> None:
        self._until, self._clock = until, clock
        self._idle_since = self._commit_since = clock()
        self._version = -1
        self.stalled_s = self.idle_s = 0.0

    def see(self, version: int, behind: int, waiting: bool = False) -> bool:
        """Takes in a look.

        Args:
          version: the manifest's.
          behind: how many offsets are to be covered before ``until``.
          waiting: whether something is waited for that will come by itself.

        Returns:
          Whether what ``until`` says has come.
        """
        now = self._clock()
        if version != self._version:
            self._version = version
            self._idle_since = self._commit_since = now
        if behind:
            self._idle_since = now
        else:
            self._commit_since = now
        self.stalled_s, self.idle_s = now - self._commit_since, now - self._idle_since
        if behind or self._until is None:
            return False
        return self._until == "end" or (not waiting and self.idle_s >= self._until)

    def begins_anew(self) -> None:
        """From now on a new job has its time."""
        self._commit_since = self._clock()


class Seen(NamedTuple):
    """A look: see `Progress.see`."""

    version: int
    behind: int
    waiting: bool = False


def watch_job(
    submit: Callable[[], FlinkJob | None],
    look: Callable[[str], Seen],
    *,
    until: Until,
    stop: threading.Event,
    stall_s: float,
    renew_s: float = float("inf"),
    pause_s: float = 1.0,
) -> None:
    """Submits a job and stays with it until ``until`` is there or ``stop`` is set, and cancels it then.

    Args:
      submit: makes a job that goes on from the manifest; None when it is time to end instead.
      look: what is to be seen now, given Beam's word for the job's state.
      until, stop: when to end.
      stall_s: a job that commits nothing for so long, with something to read, is replaced (seen: jobs that run, make
        checkpoints, and never start to read); not for ever.
      renew_s: a job is replaced after so long in any case.
      pause_s: between looks.

    Raises:
      EngineError: the job failed or ended by itself, commits nothing, or an outage lasts too long.
      CimlError: what a stage raised.
    """
    progress, outage, stalls = Progress(until), Outage(), 0
    job, submitted = submit(), time.monotonic()
    try:
        while job is not None and not stop.wait(pause_s):
            job.check()
            if job.over:
                raise EngineError(f"the Flink job ended by itself: {job.state}")
            try:
                seen = look(job.state.lower())
                outage.is_over()
            except EngineError as error:
                outage.goes_on(error)
                continue
            if progress.see(*seen):
                return
            stalls = stalls if progress.stalled_s else 0
            stalled, old = progress.stalled_s > stall_s, time.monotonic() - submitted > renew_s
            if stalled:
                stalls += 1
                if stalls > _STALLS:
                    raise EngineError(f"the Flink job commits nothing, though there are {seen.behind} messages to read")
                _log.warning("no commit for %.0f s, though there are %d messages: a new job", stall_s, seen.behind)
            if stalled or old:
                job.cancel()
                job, submitted = submit(), time.monotonic()
                progress.begins_anew()
    finally:
        if job is not None:
            job.cancel()


def lag(state: Coverage, listing: Listing) -> int:
    """How many offsets of a topic are not covered."""
    return sum(lag_by_partition(state, listing).values())


def lag_by_partition(state: Coverage, listing: Listing) -> dict[int, int]:
    """How many offsets of each partition of a topic are not covered."""
    return {
        partition: sum(end - start for start, end in state.covered(listing.topic, partition).missing(first, last))
        for partition, (first, last) in sorted(listing.bounds.items())
    }
