"""What a supervisor sees of a service, look by look, added up to what `services.decide.decide` needs."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from services.decide import JobState, Limits, Observation, Wanted
from services.service import Progress


@dataclass(frozen=True)
class JobStatus:
    """What an engine says of a job.

    Attributes:
      state: see `JobState`.
      id, name: as the engine knows it.
      how: how it ended, or what it says of a restart.
      fault: what no further try mends; "" where there is none.
      began_s: when it was submitted, epoch seconds; None where the engine does not say.
      restarts: how often the engine restarted it; None where it does not count.
      checkpoint_bytes, checkpoint_s: of the last whole checkpoint: its size and its time, epoch seconds.
    """

    state: JobState
    id: str = ""
    name: str = ""
    how: str = ""
    fault: str = ""
    began_s: float | None = None
    restarts: int | None = None
    checkpoint_bytes: int | None = None
    checkpoint_s: float | None = None


_DUE = -1  # the logs that are waited for, as if they were one more partition


@dataclass
class Tracker:
    """Looks, one after the other, made into what `decide` needs. All in the caller's clock."""

    limits: Limits = field(default_factory=Limits)
    failures: int = 0
    submitted_s: float = 0.0
    running_s: float | None = None
    committed: bool = False
    ended_s: float | None = None
    _wanted: Wanted = "run"
    _wanted_s: float = 0.0
    _first: bool = True
    _moved: dict[int, tuple[int, float]] = field(default_factory=dict)
    _was_away: bool = False
    _away_s: float | None = None
    _covered: Progress | None = None
    _speed: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=120))

    def submitted(self, now_s: float) -> None:
        """A job was submitted, or taken over, at this moment."""
        self.failures = 0 if self._first or not self.brought_nothing(now_s) else self.failures + 1
        self._first = False
        self.submitted_s, self.running_s, self.committed, self.ended_s = now_s, None, False, None

    def brought_nothing(self, now_s: float) -> bool:
        """Whether the present job, had it ended now, did no good."""
        if self.committed:
            return False
        behind = self._behind() if self._covered else 1
        return behind > 0 or self.running_s is None or now_s - self.running_s < self.limits.settled_s

    def rate(self) -> float | None:
        """Offsets covered a second, over the last minute or so; None before two looks."""
        if len(self._speed) < 2:
            return None
        (first_s, first), (last_s, last) = self._speed[0], self._speed[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else None

    def look(
        self,
        now_s: float,
        wanted: Wanted,
        job: JobStatus | None,
        covered: Progress | None,
        *,
        fault: str = "",
        away: str = "",
        unready: bool = False,
    ) -> Observation:
        """Takes in what is seen.

        Args:
          now_s: the moment.
          wanted: what the operator wants.
          job: what the engine says; None where it does not answer.
          covered: what manifest and broker say; None where one of them does not answer.
          fault: why it must not go on.
          away: who does not answer, and how.
          unready: whether ``away`` is only something that will come by itself.
        """
        if wanted != self._wanted:
            self._wanted, self._wanted_s = wanted, now_s
        if covered is not None:
            self._take(now_s, covered)
        self._was_away = covered is None
        self._away_s = None if not away or unready else now_s if self._away_s is None else self._away_s
        state: JobState = job.state if job else "missing"
        if job is not None:
            self.running_s = (self.running_s if self.running_s is not None else now_s) if state == "running" else None
            self.ended_s = (
                None if state not in ("missing", "over") else self.ended_s if self.ended_s is not None else now_s
            )
            if state == "running" and not self.brought_nothing(now_s):
                self.failures = 0
        lag = self._covered.lag if self._covered else {}
        stuck = [since for partition, (_, since) in self._moved.items() if partition == _DUE or lag.get(partition)]
        return Observation(
            now_s, wanted, self._wanted_s, fault or (job.fault if job else ""), away, self._away_s, job is None, state,
            job.how if job else "", self.submitted_s, self.running_s, self.committed, self._behind(),
            min(stuck, default=None), self.failures, self.ended_s, job.checkpoint_bytes if job else None,
        )  # fmt: skip

    def _behind(self) -> int:
        return sum(self._covered.lag.values()) + (self._covered.overdue_us is not None) if self._covered else 0

    def _take(self, now_s: float, covered: Progress) -> None:
        # Not by the manifest's version: a backfill moves that as well.
        for partition, position in covered.positions.items():
            before = self._moved.get(partition)
            moved = before is not None and before[0] != position
            self.committed = self.committed or (before is not None and position > before[0])
            # what was away counts from its return
            if before is None or moved or self._was_away or not covered.lag.get(partition):
                self._moved[partition] = (position, now_s)
        due = covered.overdue_us
        if due is None:
            self._moved.pop(_DUE, None)
        elif self._was_away or self._moved.get(_DUE, (None,))[0] != due:
            self._moved[_DUE] = (due, now_s)
        self._covered = covered
        while self._speed and now_s - self._speed[0][0] > 60.0 and len(self._speed) > 2:
            self._speed.popleft()
        total = sum(covered.positions.values())
        self._speed.append((now_s, total))
