"""Aggregates successive observations of a service for `ciml.services.decide.decide`."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ciml.errors import IntegrityError
from ciml.services.decide import JobState, Limits, Observation, Wanted
from ciml.services.service import ServiceProgress


@dataclass(frozen=True)
class JobStatus:
    """A job's status according to its engine.

    Attributes:
      state: see `JobState`.
      id, name: in the engine.
      how: how it ended, or why it was restarted.
      fault: its permanent error, or ""; ``exit_code`` is that of the error.
      began_s: time of its submission, epoch seconds; None if unknown.
      restarts: number of restarts by the engine; None if unknown.
      checkpoint_bytes, checkpoint_s: size and time (epoch seconds) of the last completed checkpoint.
      progress: the last progress that its worker reported, as `Progress.to_json`; empty if unknown.
      progress_us: time of that report, epoch microseconds; None if unknown.
      waits: what it waits for, which is no fault of its own; "" for nothing.
    """

    state: JobState
    id: str = ""
    name: str = ""
    how: str = ""
    fault: str = ""
    exit_code: int = IntegrityError.exit_code
    began_s: float | None = None
    restarts: int | None = None
    checkpoint_bytes: int | None = None
    checkpoint_s: float | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)
    progress_us: int | None = None
    waits: str = ""


_DUE = -1  # a pseudo-partition for deferred logs


@dataclass
class Tracker:
    """Turns successive observations into those that `decide` needs. Times are of the caller's clock."""

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
    _covered: ServiceProgress | None = None
    _speed: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=120))

    def submitted(self, now_s: float) -> None:
        """Record that a job was submitted or taken over now."""
        self.failures = 0 if self._first or not self.brought_nothing(now_s) else self.failures + 1
        self._first = False
        self.submitted_s = now_s
        self.running_s = None
        self.committed = False
        self.ended_s = None

    def brought_nothing(self, now_s: float) -> bool:
        """Return whether the present job would be fruitless if it ended now; see `Limits`."""
        if self.committed:
            return False
        behind = self._behind() if self._covered else 1
        return behind > 0 or self.running_s is None or now_s - self.running_s < self.limits.settled_s

    def rate(self) -> float | None:
        """Return the offsets covered a second over the last minute; None before two observations."""
        if len(self._speed) < 2:
            return None
        (first_s, first) = self._speed[0]
        (last_s, last) = self._speed[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else None

    def observe(
        self,
        now_s: float,
        wanted: Wanted,
        job: JobStatus | None,
        covered: ServiceProgress | None,
        *,
        fault: str = "",
        away: str = "",
        unready: bool = False,
    ) -> Observation:
        """Apply the present status of job and service.

        Args:
          now_s: the present time.
          wanted: the operator's request.
          job: the job's status; None if the engine does not answer.
          covered: the service's progress; None if manifest or broker does not answer.
          fault: a permanent error, or "".
          away: the error of what does not answer, or "".
          unready: whether ``away`` only means that the service is not ready yet.
        """
        if wanted != self._wanted:
            self._wanted = wanted
            self._wanted_s = now_s
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
            now_s,
            wanted,
            self._wanted_s,
            fault or (job.fault if job else ""),
            away,
            self._away_s,
            job is None,
            state,
            job.how if job else "",
            self.submitted_s,
            self.running_s,
            self.committed,
            self._behind(),
            min(stuck, default=None),
            self.failures,
            self.ended_s,
            job.checkpoint_bytes if job else None,
        )

    def _behind(self) -> int:
        return sum(self._covered.lag.values()) + (self._covered.overdue_us is not None) if self._covered else 0

    def _take(self, now_s: float, covered: ServiceProgress) -> None:
        # The manifest's version does not show progress: a backfill advances it too.
        for partition, position in covered.positions.items():
            before = self._moved.get(partition)
            moved = before is not None and before[0] != position
            self.committed = self.committed or (before is not None and position > before[0])
            # after an outage the time counts from its end
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
