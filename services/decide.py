"""Decision logic of a service's watchdog (pure).

A `Tracker` turns the status of job and service into an `Observation`; `decide` returns the `Action` for it. Neither
does I/O, so a table can test them; `ciml.services.supervisor` is the loop around them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from ciml.errors import IntegrityError

#: ``missing``: there is none; ``starting``: submitted; ``restarting``: by its engine; ``over``: ended or failed.
JobState = Literal["missing", "starting", "running", "restarting", "over"]
Wanted = Literal["run", "stop", "savepoint"]
#: For people. ``waiting``: for a broker, a store or an engine; ``stalled``: there are messages, but no progress.
Health = Literal["starting", "running", "waiting", "stalled", "stopping", "stopped", "failed"]
Kind = Literal["carry_on", "submit", "replace", "cancel", "savepoint", "end"]
_STALLED_FAILURES = 3  # from which a service that does not run counts as stalled
_RATE_S = 60.0


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
      needs_adoption: whether that error is an `OtherTopicError`.
      began_s: time of its submission, epoch seconds; None if unknown.
      restarts: number of restarts by the engine; None if unknown.
      checkpoint_bytes, checkpoint_s: size and time (epoch seconds) of the last completed checkpoint.
      progress: the last progress that its worker reported, as `ServiceProgress.to_json`; empty if unknown.
      progress_us: time of that report, epoch microseconds; None if unknown.
      waits: what it waits for, which is not a fault of its own; "" for nothing.
    """

    state: JobState
    id: str = ""
    name: str = ""
    how: str = ""
    fault: str = ""
    exit_code: int = IntegrityError.exit_code
    needs_adoption: bool = False
    began_s: float | None = None
    restarts: int | None = None
    checkpoint_bytes: int | None = None
    checkpoint_s: float | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)
    progress_us: int | None = None
    waits: str = ""


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
      settled_s: a job that has run this long with nothing to read is not fruitless. One that restarts this long and
        never runs cannot read its savepoint.
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
      wanted_since_s: time of that request.
      fault: a permanent error; "" without one.
      outage: the error of the broker, store or engine that does not answer; "" if all answer.
      outage_since_s: start of that outage; None without one, or if the service is only not ready yet.
      engine_away: whether the engine does not answer, so that the job's state is unknown.
      job: the job's state.
      how: how the job ended, or why there is none.
      from_savepoint: whether the job was submitted from a savepoint, and has not shown yet that it can read it.
      submitted_s: time at which the job was submitted or taken over.
      restarting_s: its first restart since then, since an outage, or since it last ran for `Limits.settled_s`; None
        without one.
      running_s: start of its present run; None if it does not run.
      committed: whether anything was committed since its submission.
      behind: number of uncovered offsets.
      stuck_since_s: time of the last progress of the slowest partition with messages to read; None if none has any.
      failures: number of successive fruitless submissions; see `Limits`.
      ended_s: time at which the job was first missing.
      checkpoint_bytes: size of the last checkpoint; None without one.
    """

    now_s: float
    wanted: Wanted = "run"
    wanted_since_s: float = 0.0
    fault: str = ""
    outage: str = ""
    outage_since_s: float | None = None
    engine_away: bool = False
    job: JobState = "missing"
    how: str = ""
    from_savepoint: bool = False
    submitted_s: float = 0.0
    restarting_s: float | None = None
    running_s: float | None = None
    committed: bool = False
    behind: int = 0
    stuck_since_s: float | None = None
    failures: int = 0
    ended_s: float | None = None
    checkpoint_bytes: int | None = None

    @property
    def has_job(self) -> bool:
        """Whether the engine has the job, in any state but an ended one."""
        return self.job not in ("missing", "over")


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


def decide(observation: Observation, limits: Limits) -> Action:
    """Return the action for an observation."""
    if observation.fault:
        return _fail(observation, observation.fault)
    if observation.wanted != "run":
        return _stop(observation, limits)
    if observation.outage:
        since_s = observation.outage_since_s
        if limits.patience_s is not None and since_s is not None and observation.now_s - since_s > limits.patience_s:
            return _fail(observation, observation.outage)
        return Action("carry_on", "waiting", observation.outage)
    if not observation.has_job:
        return _submit(observation, limits)
    if observation.job == "starting":
        limit_s = limits.doubled(limits.starting_s, observation.failures)
        if observation.now_s - observation.submitted_s > limit_s:
            return Action("replace", "stalled", f"it did not run within {limit_s:.0f} s")
        return Action("carry_on", _health_before_running(observation), "submitted")
    return (
        _replace_unreadable(observation, limits)
        or _replace_stalled(observation, limits)
        or _renew(observation, limits)
        or _carry_on(observation, limits)
    )


def _fail(observation: Observation, why: str) -> Action:
    can_cancel = observation.has_job and not observation.engine_away
    return Action("cancel" if can_cancel else "end", "failed", why)


def _stop(observation: Observation, limits: Limits) -> Action:
    asked_s = observation.now_s - observation.wanted_since_s
    if observation.engine_away:
        if asked_s > limits.stopping_s:
            return Action("end", "stopped", f"{observation.outage}; a job there keeps running")
        return Action("carry_on", "stopping", observation.outage)
    if not observation.has_job:
        return Action("end", "stopped", "as asked")
    if observation.wanted == "savepoint" and asked_s <= limits.savepoint_s:
        if observation.job == "running":
            return Action("savepoint", "stopping")
        return Action("carry_on", "stopping", "it has to run before it can take a savepoint")
    return Action("cancel", "stopping")


def _submit(observation: Observation, limits: Limits) -> Action:
    health = _health_before_running(observation)
    why = observation.how or "there is no job"
    pause_s = limits.pause(observation.failures)
    if observation.now_s < (observation.ended_s or 0.0) + pause_s:
        return Action("carry_on", health, f"{why}; next try after {pause_s:.0f} s")
    return Action("submit", health, why)


def _replace_unreadable(observation: Observation, limits: Limits) -> Action | None:
    """Return the action for a job that cannot read its savepoint; None for any other job.

    Its engine would restart it without end. The next job starts from the manifest, as after any unusable savepoint.
    This loses nothing: the manifest has every commit, and a savepoint only uncommitted work, which is done again.
    """
    if not observation.from_savepoint or observation.job != "restarting" or observation.restarting_s is None:
        return None
    restarting_s = observation.now_s - observation.restarting_s
    if restarting_s < limits.settled_s:
        return None
    cause = f": {observation.how}" if observation.how else ""
    return Action(
        "replace", "stalled", f"it restarts for {restarting_s:.0f} s from its savepoint and never runs{cause}"
    )


def _replace_stalled(observation: Observation, limits: Limits) -> Action | None:
    """Return the action for a job that makes no progress with messages to read; None for any other job."""
    if not observation.behind or observation.stuck_since_s is None:
        return None
    is_running = observation.running_s is not None
    started_s = observation.running_s if observation.running_s is not None else observation.submitted_s
    stuck_s = observation.now_s - max(observation.stuck_since_s, started_s)
    limit_s = limits.fresh_s if is_running and not observation.committed else limits.steady_s
    if stuck_s <= limits.doubled(limit_s, observation.failures):
        return None
    problem = "a partition does not move" if observation.committed else "it has committed nothing"
    why = f"{problem} for {stuck_s:.0f} s, with {observation.behind:,} messages to read"
    if limits.most_stalls is not None and observation.failures >= limits.most_stalls:
        return Action("cancel", "failed", why)
    return Action("replace", "stalled", why)


def _renew(observation: Observation, limits: Limits) -> Action | None:
    """Return the action for a job that is too old or has too large a checkpoint; None for any other job."""
    age_s = observation.now_s - observation.submitted_s
    if age_s > limits.renew_s:
        return Action("replace", "running", f"renewed after {age_s / 3600:.1f} h")
    checkpoint_bytes = observation.checkpoint_bytes or 0
    if checkpoint_bytes > limits.checkpoint_bytes and age_s > limits.checkpoint_renew_s:
        return Action("replace", "running", f"renewed: its checkpoint has {checkpoint_bytes / 2**20:.1f} MiB")
    return None


def _carry_on(observation: Observation, limits: Limits) -> Action:
    if observation.job == "restarting":
        return Action("carry_on", _health_before_running(observation), observation.how or "its engine restarts it")
    if observation.stuck_since_s is not None:
        stuck_s = observation.now_s - observation.stuck_since_s
        if stuck_s > limits.steady_s:
            return Action("carry_on", "stalled", f"no progress for {stuck_s:.0f} s")
    has_started = observation.committed or not observation.behind
    return Action("carry_on", "running" if has_started else _health_before_running(observation))


def _health_before_running(observation: Observation) -> Health:
    return "stalled" if observation.failures >= _STALLED_FAILURES else "starting"


class _Mark(NamedTuple):
    """A value that should change, and when it last did."""

    value: int
    since_s: float


class Tracker:
    """Turns the present status of job and service into what `decide` needs. Times are of the caller's clock.

    Args:
      limits: of the watchdog.

    Attributes:
      observation: the last observation, which `submitted` changes.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.observation = Observation(0.0)
        self._limits = limits or Limits()
        self._is_first = True
        self._was_away = False
        self._progress: ServiceProgress | None = None  # the last known
        self._positions: dict[int, _Mark] = {}
        self._overdue: _Mark | None = None  # the due time of the most overdue deferred log
        self._covered_counts: deque[tuple[float, int]] = deque(maxlen=120)  # (time, covered offsets)

    def submitted(self, now_s: float) -> None:
        """Record that a job was submitted or taken over now."""
        is_fruitless = not self._is_first and self._is_fruitless(now_s)
        self._is_first = False
        self.observation = replace(
            self.observation,
            failures=self.observation.failures + 1 if is_fruitless else 0,
            submitted_s=now_s,
            running_s=None,
            restarting_s=None,
            committed=False,
            ended_s=None,
        )

    def rate(self) -> float | None:
        """Return the offsets covered a second over the last minute; None before two observations."""
        if len(self._covered_counts) < 2:
            return None
        first_s, first_count = self._covered_counts[0]
        last_s, last_count = self._covered_counts[-1]
        return (last_count - first_count) / (last_s - first_s) if last_s > first_s else None

    def observe(
        self,
        now_s: float,
        wanted: Wanted,
        job: JobStatus | None,
        progress: ServiceProgress | None,
        *,
        fault: str = "",
        outage: str = "",
        unready: bool = False,
        from_savepoint: bool = False,
    ) -> Observation:
        """Apply the present status of job and service.

        Args:
          now_s: the present time.
          wanted: the operator's request.
          job: the job's status; None if the engine does not answer.
          progress: the service's progress; None if manifest or broker does not answer.
          fault: a permanent error, or "".
          outage: the error of what does not answer, or "".
          unready: whether ``outage`` only means that the service is not ready yet.
          from_savepoint: see `Observation`.
        """
        before = self.observation
        has_committed = progress is not None and self._apply_progress(now_s, progress)
        self._was_away = progress is None
        restarting_s = before.restarting_s
        running_s = before.running_s
        ended_s = before.ended_s
        if job is not None:
            running_s = _since(running_s, now_s, job.state == "running")
            ended_s = _since(ended_s, now_s, job.state in ("missing", "over"))
        if outage or self._is_settled(now_s, running_s):
            restarting_s = None
        elif job is not None and job.state == "restarting" and restarting_s is None:
            restarting_s = now_s
        self.observation = replace(
            before,
            now_s=now_s,
            wanted=wanted,
            wanted_since_s=before.wanted_since_s if wanted == before.wanted else now_s,
            fault=fault or (job.fault if job else ""),
            outage=outage,
            outage_since_s=_since(before.outage_since_s, now_s, bool(outage) and not unready),
            engine_away=job is None,
            job=job.state if job else "missing",
            how=job.how if job else "",
            from_savepoint=from_savepoint,
            restarting_s=restarting_s,
            running_s=running_s,
            committed=before.committed or has_committed,
            behind=self._behind(),
            stuck_since_s=self._stuck_since_s(),
            ended_s=ended_s,
            checkpoint_bytes=job.checkpoint_bytes if job else None,
        )
        if self.observation.job == "running" and not self._is_fruitless(now_s):
            self.observation = replace(self.observation, failures=0)
        return self.observation

    def _apply_progress(self, now_s: float, progress: ServiceProgress) -> bool:
        """Note which partitions have moved; return whether one has advanced.

        The manifest's version does not show progress: a backfill advances it too. After an outage, time counts from
        its end.
        """
        has_advanced = False
        for partition, position in progress.positions.items():
            mark = self._positions.get(partition)
            has_advanced = has_advanced or (mark is not None and position > mark.value)
            if mark is None or mark.value != position or self._was_away or not progress.lag.get(partition):
                self._positions[partition] = _Mark(position, now_s)
        due_us = progress.overdue_us
        if due_us is None:
            self._overdue = None
        elif self._was_away or self._overdue is None or self._overdue.value != due_us:
            self._overdue = _Mark(due_us, now_s)
        while len(self._covered_counts) > 2 and now_s - self._covered_counts[0][0] > _RATE_S:
            self._covered_counts.popleft()
        self._covered_counts.append((now_s, sum(progress.positions.values())))
        self._progress = progress
        return has_advanced

    def _behind(self) -> int:
        """Return the number of uncovered offsets; long overdue logs count as one more."""
        if self._progress is None:
            return 0
        return self._progress.behind + (self._progress.overdue_us is not None)

    def _stuck_since_s(self) -> float | None:
        lag = self._progress.lag if self._progress else {}
        times_s = [mark.since_s for partition, mark in self._positions.items() if lag.get(partition)]
        if self._overdue is not None:
            times_s.append(self._overdue.since_s)
        return min(times_s, default=None)

    def _is_fruitless(self, now_s: float) -> bool:
        """Return whether the present job would be fruitless if it ended now; see `Limits`."""
        if self.observation.committed:
            return False
        is_settled = self._is_settled(now_s, self.observation.running_s)
        return not is_settled or self._progress is None or self._behind() > 0

    def _is_settled(self, now_s: float, running_s: float | None) -> bool:
        return running_s is not None and now_s - running_s >= self._limits.settled_s


def _since(since_s: float | None, now_s: float, holds: bool) -> float | None:
    """Return since when a condition holds, given since when it held before; None if it does not hold now."""
    if not holds:
        return None
    return now_s if since_s is None else since_s
