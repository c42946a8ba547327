"""Tracks a partition's claimed offsets, its backlog, and when to continue reading."""

from __future__ import annotations

import sys
import time
from typing import Any, NamedTuple

from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.utils.timestamp import Duration, Timestamp

from ciml.pipelines.kafka.watermark import Observation, advance

FOREVER = sys.maxsize
WATERMARK = ManualWatermarkEstimator.default_provider()
_DRAINED = 3
_MARGIN_S = 0.1


class Restriction(NamedTuple):
    """Offsets [start, stop) to read.

    Attributes:
      not_before_s: epoch seconds before which a runner that respects the requested pause does not resume.
      early: number of consecutive earlier resumes; see `is_drained`.
    """

    start: int
    stop: int
    not_before_s: float = 0.0
    early: int = 0


class Claim(NamedTuple):
    """Offsets [first, end), and the partition's known end, which gives the backlog."""

    first: int
    end: int
    reaches: int = -1


class Pause(NamedTuple):
    """Claims nothing, and sets when to resume; see `Restriction`."""

    not_before_s: float
    early: int


class OffsetTracker(RestrictionTracker):
    """Claims ranges of offsets. A restriction is split only at its claimed end: a partition has one reader.

    Messages may correct earlier ones, so parts of a partition must not overtake one another. A split at a fraction is
    rejected, which a runner takes as "not now"; a split at 0, a checkpoint, is granted.
    """

    def __init__(self, restriction: Restriction) -> None:
        self._start, self._stop = restriction.start, restriction.stop
        self._claimed = restriction.start
        self._reaches = restriction.start
        self._rejected = False
        self._pause = Pause(restriction.not_before_s, restriction.early)

    def current_restriction(self) -> Restriction:
        return Restriction(self._start, self._stop, *self._pause)

    def try_claim(self, position: Claim | Pause | tuple[int, int]) -> bool:
        """Claim [first, end), up to ``current_restriction().stop``.

        Raises:
          ValueError: if the claim skips or repeats offsets.
        """
        if isinstance(position, Pause):
            self._pause = position
            return True
        first, end, reaches = Claim(*position)
        if first >= self._stop:
            self._rejected = True
            return False
        if first != self._claimed or end < first:
            raise ValueError(f"the offsets {first} to {end} are claimed where {self._claimed} is the next")
        self._claimed = min(end, self._stop)
        self._reaches = max(self._reaches, reaches, end)
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[Restriction, Restriction] | None:
        if fraction_of_remainder != 0 or self._claimed >= self._stop:
            return None
        rest = Restriction(self._claimed, self._stop, *self._pause)
        self._stop = self._claimed
        return Restriction(self._start, self._stop), rest

    def check_done(self) -> None:
        if self._claimed < self._stop and not self._rejected:
            raise ValueError(f"offsets {self._claimed} to {self._stop} were neither claimed nor put off")

    def current_progress(self) -> RestrictionProgress:
        """Return the progress in offsets; an unbounded restriction ends at the partition's last known end."""
        stop = self._stop if self._stop < FOREVER else max(self._reaches, self._claimed)
        return RestrictionProgress(completed=self._claimed - self._start, remaining=stop - self._claimed)

    def is_bounded(self) -> bool:
        return bool(self._stop < FOREVER)


def left(restriction: Restriction, reaches: int | None) -> int:
    """Return the number of remaining offsets; at least 1 if unbounded or if the end is unknown."""
    if restriction.stop < FOREVER:
        return int(max(restriction.stop - restriction.start, 0))
    return int(max((reaches or 0) - restriction.start, 1))


def put_off(tracker: Any, pause_s: float) -> None:
    """Defer the unclaimed rest by a pause, in whole seconds since Flink's runner truncates them.

    Args:
      tracker: Beam's view of an `OffsetTracker`.
      pause_s: least pause, seconds; 0 resumes at once.
    """
    if pause_s <= 0:
        tracker.try_claim(Pause(0.0, 0))
        tracker.defer_remainder()
        return
    whole_s = max(round(pause_s), 1)
    tracker.try_claim(Pause(time.time() + whole_s / 2, tracker.current_restriction().early))
    tracker.defer_remainder(Duration.of(whole_s + _MARGIN_S))


def is_drained(tracker: Any) -> bool:
    """Return whether the runner drains the pipeline, so that an unbounded reader must end. Call it first.

    Flink's runner does not signal a stop with savepoint and drain. It resumes deferred restrictions at once, whatever
    pause was requested, until none is deferred, which would never happen. So a reader that is resumed early several
    times in a row is being drained. The count is stored in the restriction: neither a restart nor a second job affects
    it, and a clock that is set back counts once.
    """
    now, restriction = time.time(), tracker.current_restriction()
    early = restriction.early + 1 if now < restriction.not_before_s else 0
    if early >= _DRAINED:
        tracker.try_claim(Claim(FOREVER, FOREVER))
        return True
    tracker.try_claim(Pause(restriction.not_before_s, early))
    return False


def observe(watermark: Any, observation: Observation, slack_s: float) -> None:
    """Advance Beam's manual watermark by an observation."""
    now = watermark.current_watermark()
    before = None if now is None else now.micros / 1e6
    after = advance(before, observation, slack_s)
    if after is not None and after != before:
        watermark.set_watermark(Timestamp.of(after))
