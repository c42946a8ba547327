"""What of a partition is claimed, and how much is left."""

from __future__ import annotations

import sys
from typing import NamedTuple

from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.io.restriction_trackers import OffsetRange as Restriction

__all__ = ["FOREVER", "Claim", "OffsetTracker", "Restriction", "left"]

FOREVER = sys.maxsize


class Claim(NamedTuple):
    """Offsets [first, end), and where the partition ends as far as is known: what is left follows from it."""

    first: int
    end: int
    reaches: int = -1


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

    def current_restriction(self) -> Restriction:
        return Restriction(self._start, self._stop)

    def try_claim(self, position: Claim | tuple[int, int]) -> bool:
        """Claims [first, end), or what of it lies in the restriction: at most up to ``current_restriction().stop``.

        Raises:
          ValueError: the claim leaves offsets out, or takes some again.
        """
        first, end = position[:2]
        if first >= self._stop:
            self._refused = True
            return False
        if first != self._claimed or end < first:
            raise ValueError(f"the offsets {first} to {end} are claimed where {self._claimed} is the next")
        self._claimed = min(end, self._stop)
        self._reaches = max(self._reaches, Claim(*position).reaches, end)
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[Restriction, Restriction] | None:
        if fraction_of_remainder != 0 or self._claimed >= self._stop:
            return None
        rest = Restriction(self._claimed, self._stop)
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
