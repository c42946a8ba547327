"""Decision logic of a service's watchdog (pure).

A `Tracker` makes an `Observation` of job, topic and manifest; `decide` returns the `Action`. Neither does I/O, so a
table can test them; `ciml.services.supervisor` is the loop around them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ciml.errors import IntegrityError

#: ``missing``: there is none; ``starting``: submitted; ``restarting``: by its engine; ``over``: ended or failed.
JobState = Literal["missing", "starting", "running", "restarting", "over"]
Wanted = Literal["run", "stop", "savepoint"]
#: For people. ``waiting``: for a broker, a store or an engine; ``stalled``: there are messages, but no progress.
Health = Literal["starting", "running", "waiting", "stalled", "stopping", "stopped", "failed"]
Kind = Literal["carry_on", "submit", "replace", "cancel", "savepoint", "end"]
_DUE = -1  # a pseudo-partition for deferred logs
_RATE_S = 60.0


@dataclass(frozen=True)
class Limits:
    """Limits of the watchdog, seconds.

    A submission is fruitless if its job committed nothing.

    Attributes:
      fresh_s: longest time without a first commit of a running job that has messages to read.
      steady_s: longest time without progress of a partition with messages to read, after a commit. A batch whose logs
        all time out takes less.
      longest_s: each fruitless replacement doubles both, up to this limit, so that a slow job is not killed for ever.
      starting_s: longest time from the submission until the job runs; doubles too.
      pause_s, longest_pause_s: first and longest pause after a fruitless job; it doubles each time.
      settled_s: a job that has run this long with nothing to read is not fruitless.
      renew_s: age at which any job is replaced: the state of a Python source grows with every rest.
      checkpoint_bytes: checkpoint size at which a job is replaced: about 500 rests, each of which makes the next
        checkpoint slower.
      checkpoint_renew_s: least age of a job that is replaced for its checkpoint.
      stopping_s: time to try to stop a job whose engine does not answer.
      savepoint_s: time to try a savepoint before the job is cancelled without one.
      patience_s: time without an answer of a broker, a store or an engine that is an error; None for unlimited.
      most_stalls: largest number of successive fruitless replacements; None for unlimited.
    """

    fresh_s: float = 45.0
    steady_s: float = 240.0
    longest_s: float = 900.0
    starting_s: float = 150.0
    pause_s: float = 2.0
    longest_pause_s: float = 120.0
    settled_s: float = 60.0
    renew_s: float = 6 * 3600.0
    checkpoint_bytes: int = 2 * 2**20
    checkpoint_renew_s: float = 900.0
    stopping_s: float = 20.0
    savepoint_s: float = 90.0
    patience_s: float | None = None
    most_stalls: int | None = None

    def pause(self, failures: int) -> float:
        """Return the pause after successive fruitless submissions, seconds."""
        return 0.0 if failures < 1 else min(self.pause_s * 2.0 ** min(failures - 1, 30), self.longest_pause_s)

    def doubled(self, limit_s: float, failures: int) -> float:
        """Return a limit after successive fruitless submissions, seconds."""
        return max(limit_s, min(limit_s * 2.0 ** min(failures, 30), self.longest_s))


@dataclass(frozen=True)
class Observation:
    """The state of a service at one time. Times are seconds of a monotonic clock.

    Attributes:
      now_s: the time of the observation.
      wanted: the operator's request.
      since_s: time of that request.
      fault: a permanent error; "" without one.
      away: the broker, store or engine that does not answer, and its error; "" if all answer.
      away_s: start of that outage; None without one, or if the service is only not ready yet.
      engine_away: whether the engine does not answer, so that the job's state is unknown.
      job: the job's state.
      how: how the job ended, or why there is none.
      submitted_s: time at which the job was submitted or taken over.
      running_s: start of its present run; None if it does not run.
      committed: whether anything was committed since its submission.
      behind: number of uncovered offsets.
      stuck_s: time of the last progress of the slowest partition with messages to read; None if none has any.
      failures: number of successive fruitless submissions; see `Limits`.
      ended_s: time at which the job was first missing.
      checkpoint_bytes: size of the last checkpoint; None without one.
    """

    now_s: float
    wanted: Wanted = "run"
    since_s: float = 0.0
    fault: str = ""
    away: str = ""
    away_s: float | None = None
    engine_away: bool = False
    job: JobState = "missing"
    how: str = ""
    submitted_s: float = 0.0
    running_s: float | None = None
    committed: bool = False
    behind: int = 0
    stuck_s: float | None = None
    failures: int = 0
    ended_s: float | None = None
    checkpoint_bytes: int | None = None


@dataclass(frozen=True)
class Action:
    """The watchdog's next action.

    Attributes:
      kind: nothing, submit a job, replace it, cancel it, stop it with a savepoint, or end the supervision.
      health: for people.
      why: one phrase for people.
    """

    kind: Kind
    health: Health
    why: str = ""


def decide(seen: Observation, limits: Limits) -> Action:
    """Return the action for an observation."""
    at_work = seen.job not in ("missing", "over")
    if seen.fault:
        return Action("cancel" if at_work and not seen.engine_away else "end", "failed", seen.fault)
    if seen.wanted != "run":
        return _stop(seen, limits, at_work)
    if seen.away:
        if limits.patience_s is not None and seen.away_s is not None and seen.now_s - seen.away_s > limits.patience_s:
            return Action("cancel" if at_work and not seen.engine_away else "end", "failed", seen.away)
        return Action("carry_on", "waiting", seen.away)
    if not at_work:
        pause_s = limits.pause(seen.failures)
        if seen.now_s < (seen.ended_s or 0.0) + pause_s:
            return Action("carry_on", _ailing(seen), f"{seen.how or 'there is no job'}; next try after {pause_s:.0f} s")
        return Action("submit", _ailing(seen), seen.how or "there is no job")
    if seen.job == "starting":
        limit_s = limits.doubled(limits.starting_s, seen.failures)
        if seen.now_s - seen.submitted_s > limit_s:
            return Action("replace", "stalled", f"it did not run within {limit_s:.0f} s")
        return Action("carry_on", _ailing(seen), "submitted")
    stalled = _stalled(seen, limits)
    if stalled and limits.most_stalls is not None and seen.failures >= limits.most_stalls:
        return Action("cancel", "failed", stalled)
    if stalled:
        return Action("replace", "stalled", stalled)
    age_s = seen.now_s - seen.submitted_s
    if age_s > limits.renew_s:
        return Action("replace", "running", f"renewed after {age_s / 3600:.1f} h")
    checkpoint_bytes = seen.checkpoint_bytes or 0
    if checkpoint_bytes > limits.checkpoint_bytes and age_s > limits.checkpoint_renew_s:
        return Action("replace", "running", f"renewed: its checkpoint has {checkpoint_bytes / 2**20:.1f} MiB")
    if seen.job == "restarting":
        return Action("carry_on", _ailing(seen), seen.how or "its engine restarts it")
    if seen.stuck_s is not None and seen.now_s - seen.stuck_s > limits.steady_s:
        return Action("carry_on", "stalled", f"no progress for {seen.now_s - seen.stuck_s:.0f} s")
    return Action("carry_on", _ailing(seen) if seen.behind and not seen.committed else "running")


def _stop(seen: Observation, limits: Limits, at_work: bool) -> Action:
    if seen.engine_away:
        if seen.now_s - seen.since_s > limits.stopping_s:
            return Action("end", "stopped", f"{seen.away}; a job there keeps running")
        return Action("carry_on", "stopping", seen.away)
    if not at_work:
        return Action("end", "stopped", "as asked")
    if seen.wanted == "savepoint" and seen.now_s - seen.since_s <= limits.savepoint_s:
        if seen.job == "running":
            return Action("savepoint", "stopping")
        return Action("carry_on", "stopping", "it has to run before it can take a savepoint")
    return Action("cancel", "stopping")


def _ailing(seen: Observation) -> Health:
    return "stalled" if seen.failures >= 3 else "starting"


def _stalled(seen: Observation, limits: Limits) -> str:
    if not seen.behind or seen.stuck_s is None:
        return ""
    running = seen.running_s is not None
    since_s = max(seen.stuck_s, seen.running_s if seen.running_s is not None else seen.submitted_s)
    limit_s = limits.doubled(limits.fresh_s if running and not seen.committed else limits.steady_s, seen.failures)
    if seen.now_s - since_s <= limit_s:
        return ""
    problem = "it has committed nothing" if not seen.committed else "a partition does not move"
    return f"{problem} for {seen.now_s - since_s:.0f} s, with {seen.behind:,} messages to read"


@dataclass(frozen=True)
class ServiceProgress:
    """The progress of a service.

    Attributes:
      version: of its manifest; it grows with each commit.
      positions: the first uncovered offset, by partition.
      lag: number of uncovered offsets, by partition.
      overdue_us: due time of the most overdue deferred log, if that is long ago.
      ends: present end of each partition.
      waiting: whether deferred work waits for its next try.
      facts: see `Service.facts`.
    """

    version: int
    positions: Mapping[int, int] = field(default_factory=dict)
    lag: Mapping[int, int] = field(default_factory=dict)
    overdue_us: int | None = None
    ends: Mapping[int, int] = field(default_factory=dict)
    waiting: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def behind(self) -> int:
        """The number of uncovered offsets."""
        return sum(self.lag.values())

    def to_json(self) -> dict[str, Any]:
        """Return it for a service's status: facts, version and lag. A lag is None for a service that knows none."""
        lag = {str(partition): lag for partition, lag in self.lag.items()}
        return {**self.facts, "version": self.version, "behind": self.behind if lag else None, "lag": lag or None}


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


class Tracker:
    """Turns the present status of job and service into what `decide` needs. Times are of the caller's clock.

    Args:
      limits: of the watchdog.

    Attributes:
      seen: the last observation, which `submitted` changes.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.seen = Observation(0.0)
        self._limits = limits or Limits()
        self._is_first = True
        self._was_away = False
        self._covered: ServiceProgress | None = None
        self._moved: dict[int, tuple[int, float]] = {}
        self._speed: deque[tuple[float, int]] = deque(maxlen=120)

    def submitted(self, now_s: float) -> None:
        """Record that a job was submitted or taken over now."""
        is_fruitless = not self._is_first and self._brought_nothing(now_s)
        self._is_first = False
        self.seen = replace(
            self.seen,
            failures=self.seen.failures + 1 if is_fruitless else 0,
            submitted_s=now_s,
            running_s=None,
            committed=False,
            ended_s=None,
        )

    def _brought_nothing(self, now_s: float) -> bool:
        """Return whether the present job would be fruitless if it ended now; see `Limits`."""
        if self.seen.committed:
            return False
        running_s = self.seen.running_s
        is_settled = running_s is not None and now_s - running_s >= self._limits.settled_s
        return not is_settled or self._covered is None or self._behind() > 0

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
        before = self.seen
        has_committed = covered is not None and self._take(now_s, covered)
        self._was_away = covered is None
        running_s = before.running_s
        ended_s = before.ended_s
        if job is not None:
            running_s = _since(running_s, now_s, job.state == "running")
            ended_s = _since(ended_s, now_s, job.state in ("missing", "over"))
        lag = self._covered.lag if self._covered else {}
        stuck = [since for partition, (_, since) in self._moved.items() if partition == _DUE or lag.get(partition)]
        self.seen = replace(
            before,
            now_s=now_s,
            wanted=wanted,
            since_s=before.since_s if wanted == before.wanted else now_s,
            fault=fault or (job.fault if job else ""),
            away=away,
            away_s=_since(before.away_s, now_s, bool(away) and not unready),
            engine_away=job is None,
            job=job.state if job else "missing",
            how=job.how if job else "",
            running_s=running_s,
            committed=before.committed or has_committed,
            behind=self._behind(),
            stuck_s=min(stuck, default=None),
            ended_s=ended_s,
            checkpoint_bytes=job.checkpoint_bytes if job else None,
        )
        if self.seen.job == "running" and not self._brought_nothing(now_s):
            self.seen = replace(self.seen, failures=0)
        return self.seen

    def _behind(self) -> int:
        return sum(self._covered.lag.values()) + (self._covered.overdue_us is not None) if self._covered else 0

    def _take(self, now_s: float, covered: ServiceProgress) -> bool:
        """Apply a progress; return whether a partition has progressed.

        The manifest's version does not show progress: a backfill advances it too.
        """
        has_committed = False
        for partition, position in covered.positions.items():
            before = self._moved.get(partition)
            moved = before is not None and before[0] != position
            has_committed = has_committed or (before is not None and position > before[0])
            # after an outage the time counts from its end
            if before is None or moved or self._was_away or not covered.lag.get(partition):
                self._moved[partition] = (position, now_s)
        due = covered.overdue_us
        if due is None:
            self._moved.pop(_DUE, None)
        elif self._was_away or self._moved.get(_DUE, (None,))[0] != due:
            self._moved[_DUE] = (due, now_s)
        self._covered = covered
        while len(self._speed) > 2 and now_s - self._speed[0][0] > _RATE_S:
            self._speed.popleft()
        self._speed.append((now_s, sum(covered.positions.values())))
        return has_committed


def _since(since_s: float | None, now_s: float, holds: bool) -> float | None:
    """Return since when a condition holds, given since when it held before; None where it does not hold now."""
    if not holds:
        return None
    return now_s if since_s is None else since_s
