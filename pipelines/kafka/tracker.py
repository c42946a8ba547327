"""What of a partition is claimed, how much is left, and when the rest of it is to be read."""

from __future__ import annotations

import sys
import time
from typing import Any, NamedTuple

from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.utils.timestamp import Duration, Timestamp

from pipelines.kafka.watermark import Look, advance

FOREVER = sys.maxsize
WATERMARK = ManualWatermarkEstimator.default_provider()
_DRAINED = 3
_MARGIN_S = 0.1


class Restriction(NamedTuple):
    """Offsets [start, stop) that are to be read.

    Attributes:
      not_before_s: epoch seconds before which a runner that keeps to the pause it was asked for does not go on.
      early: how often in a row it went on earlier all the same: see `is_drained`.
    """

    start: int
    stop: int
    not_before_s: float = 0.0
    early: int = 0


class Claim(NamedTuple):
    """Offsets [first, end), and where the partition ends as far as is known: what is left follows from it."""

    first: int
    end: int
    reaches: int = -1


class Pause(NamedTuple):
    """Claims nothing; what remains is to know when it is to go on. See `Restriction`."""

    not_before_s: float
    early: int


class OffsetTracker(RestrictionTracker):
    """Claims ranges of offsets. A restriction is only ever cut where it was claimed to: a partition has one reader.

    Its messages may correct one another, so its parts may not overtake one another. A split at a fraction is therefore
    refused, which a runner takes as "not now"; one at 0, a checkpoint, is granted.
    """

    def __init__(self, restriction: Restriction) -> None:
        self._start, self._stop = restriction.start, restriction.stop
        self._claimed = restriction.start
        self._reaches = restriction.start
        self._refused = False
        self._pause = Pause(restriction.not_before_s, restriction.early)

    def current_restriction(self) -> Restriction:
        return Restriction(self._start, self._stop, *self._pause)

    def try_claim(self, position: Claim | Pause | tuple[int, int]) -> bool:
        """Claim [first, end), or what of it lies in the restriction: at most up to ``current_restriction().stop``.

        Raises:
          ValueError: the claim leaves offsets out, or takes some again.
        """
        if isinstance(position, Pause):
            self._pause = position
            return True
        first, end, reaches = Claim(*position)
        if first >= self._stop:
            self._refused = True
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
        if self._claimed < self._stop and not self._refused:
            raise ValueError(f"offsets {self._claimed} to {self._stop} were neither claimed nor put off")

    def current_progress(self) -> RestrictionProgress:
        """Offsets; for ever means up to where the partition was last seen to end."""
        stop = self._stop if self._stop < FOREVER else max(self._reaches, self._claimed)
        return RestrictionProgress(completed=self._claimed - self._start, remaining=stop - self._claimed)

    def is_bounded(self) -> bool:
        return bool(self._stop < FOREVER)


def left(restriction: Restriction, reaches: int | None) -> int:
    """How many offsets a restriction still has; at least 1 where it goes on for ever, or its end is not known."""
    if restriction.stop < FOREVER:
        return int(max(restriction.stop - restriction.start, 0))
    return int(max((reaches or 0) - restriction.start, 1))


def put_off(tracker: Any, pause_s: float) -> None:
    """Leave what was not claimed for later, after a pause; in whole seconds, since Flink's runner cuts off the rest.

    Args:
      tracker: Beam's view of an `OffsetTracker`.
      pause_s: at least; 0 is at once.
    """
    if pause_s <= 0:
        tracker.try_claim(Pause(0.0, 0))
        tracker.defer_remainder()
        return
    whole_s = max(round(pause_s), 1)
    tracker.try_claim(Pause(time.time() + whole_s / 2, tracker.current_restriction().early))
    tracker.defer_remainder(Duration.of(whole_s + _MARGIN_S))


def is_drained(tracker: Any) -> bool:
    """Return whether the runner drains the pipeline, so that a reader for ever has to end; to be asked first of all.

    Flink's runner, told to stop with a savepoint and drain, tells nobody. It goes on with what was put off at once,
    whatever pause was asked for, until nothing is put off any more, which would be never. So a reader that is called
    before its time, again and again, has come to its end. The count is kept with the restriction: neither a restart
    nor a second job can be mistaken for it, and a clock that is set back counts once.
    """
    now, restriction = time.time(), tracker.current_restriction()
    early = restriction.early + 1 if now < restriction.not_before_s else 0
    if early >= _DRAINED:
        tracker.try_claim(Claim(FOREVER, FOREVER))
        return True
    tracker.try_claim(Pause(restriction.not_before_s, early))
    return False


def observe(watermark: Any, look: Look, slack_s: float) -> None:
    """Advance Beam's manual watermark by what was seen."""
    now = watermark.current_watermark()
    before = None if now is None else now.micros / 1e6
    after = advance(before, look, slack_s)
    if after is not None and after != before:
        watermark.set_watermark(Timestamp.of(after))
