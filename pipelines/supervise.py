"""The watchdog of an ingest, without its hands: what is seen, and what is to be done about it.

`Tracker` turns looks at the job, the topic and the manifest into `Look`; `decide` says what follows. Neither asks
anybody anything, so a table can test them; `pipelines.supervisor` is the loop around them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

#: ``missing``: there is none; ``starting``: it was submitted; ``restarting``: its engine tries to bring it back;
#: ``over``: it ended or failed.
JobState = Literal["missing", "starting", "running", "restarting", "over"]
Wanted = Literal["run", "stop", "savepoint"]
#: What a person is told. ``waiting``: for a broker, a store or an engine; ``stalled``: nothing moves, though it should.
Health = Literal["starting", "running", "waiting", "stalled", "stopping", "stopped", "failed"]
Kind = Literal["carry_on", "submit", "replace", "cancel", "savepoint", "end"]


@dataclass(frozen=True)
class Limits:
    """How long what may take, s.

    Attributes:
      fresh_s: a job runs and has committed nothing since it was submitted, though there is something to read.
      steady_s: a partition of a job that has committed does not move, though there is something to read: more than a
        batch whose logs all time out takes.
      longest_s: each replacement that brought nothing doubles both, up to here: what is slow is not killed for ever.
      starting_s: from the submission until it runs; doubles too.
      pause_s, longest_pause_s: between a job that brought nothing and the next; it doubles each time.
      settled_s: a job that runs for so long with nothing to read counts as one that works.
      renew_s: a job is replaced after so long in any case: the state of a source in Python grows with every rest.
      checkpoint_bytes: and when its checkpoint has grown to this,
      checkpoint_renew_s: but not sooner than this after its submission.
      stopping_s: how long an engine that does not answer is asked to stop the job.
      savepoint_s: how long a savepoint is tried for, before the job is cancelled without one.
    """

    fresh_s: float = 45.0
    steady_s: float = 240.0
    longest_s: float = 900.0
    starting_s: float = 150.0
    pause_s: float = 2.0
    longest_pause_s: float = 120.0
    settled_s: float = 60.0
    renew_s: float = 6 * 3600.0
    checkpoint_bytes: int = 64 * 2**20
    checkpoint_renew_s: float = 900.0
    stopping_s: float = 20.0
    savepoint_s: float = 90.0

    def pause(self, failures: int) -> float:
        """How long to wait after so many submissions in a row that brought nothing."""
        return 0.0 if failures < 1 else min(self.pause_s * 2.0 ** min(failures - 1, 30), self.longest_pause_s)

    def doubled(self, limit_s: float, failures: int) -> float:
        """A limit after so many submissions in a row that brought nothing."""
        return max(limit_s, min(limit_s * 2.0 ** min(failures, 30), self.longest_s))


@dataclass(frozen=True)
class Look:
    """What is seen at one moment. Times are seconds of one clock that only goes forward.

    Attributes:
      now_s: the moment.
      wanted: what the operator wants.
      since_s: since when.
      fault: why it must not go on; "" where it may.
      away: which broker, store or engine does not answer; "" where all do.
      engine_away: whether it is the engine, so that nothing is known of the job.
      job: the job's state.
      how: how it ended, or why there is none.
      submitted_s: when it was submitted, or taken over.
      running_s: since when it runs; None where it does not.
      committed: whether anything was committed since its submission.
      behind: how many offsets are not covered.
      stuck_s: since when the partition that moved least has had something to read and did not move; None where none is.
      failures: how many submissions in a row, up to now, brought nothing.
      ended_s: when it was first seen that there is no job.
      checkpoint_bytes: of the last checkpoint; None where there is none.
    """

    now_s: float
    wanted: Wanted = "run"
    since_s: float = 0.0
    fault: str = ""
    away: str = ""
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
    """What is to be done: nothing, a new job, another in the place of this, its end, or the end of all.

    Attributes:
      kind: what.
      health: what a person is told.
      why: one phrase for them.
    """

    kind: Kind
    health: Health
    why: str = ""


def decide(look: Look, limits: Limits) -> Action:
    """What follows from a look."""
    at_work = look.job not in ("missing", "over")
    if look.fault:
        return Action("cancel" if at_work and not look.engine_away else "end", "failed", look.fault)
    if look.wanted != "run":
        return _stop(look, limits, at_work)
    if look.away:
        return Action("carry_on", "waiting", look.away)
    if not at_work:
        pause_s = limits.pause(look.failures)
        if look.now_s < (look.ended_s or 0.0) + pause_s:
            return Action("carry_on", _ailing(look), f"{look.how or 'there is no job'}; the next after {pause_s:.0f} s")
        return Action("submit", _ailing(look), look.how or "there is no job")
    if look.job == "starting":
        limit_s = limits.doubled(limits.starting_s, look.failures)
        if look.now_s - look.submitted_s > limit_s:
            return Action("replace", "stalled", f"it did not run within {limit_s:.0f} s")
        return Action("carry_on", _ailing(look), "submitted")
    stalled = _stalled(look, limits)
    if stalled:
        return Action("replace", "stalled", stalled)
    age_s = look.now_s - look.submitted_s
    if age_s > limits.renew_s:
        return Action("replace", "running", f"renewed after {age_s / 3600:.1f} h")
    if (look.checkpoint_bytes or 0) > limits.checkpoint_bytes and age_s > limits.checkpoint_renew_s:
        return Action("replace", "running", f"renewed: its checkpoint has {(look.checkpoint_bytes or 0) >> 20} MiB")
    if look.job == "restarting":
        return Action("carry_on", _ailing(look), look.how or "its engine restarts it")
    if look.stuck_s is not None and look.now_s - look.stuck_s > limits.steady_s:
        return Action("carry_on", "stalled", f"nothing moves for {look.now_s - look.stuck_s:.0f} s")
    return Action("carry_on", _ailing(look) if look.behind and not look.committed else "running")


def _stop(look: Look, limits: Limits, at_work: bool) -> Action:
    if look.engine_away:
        if look.now_s - look.since_s > limits.stopping_s:
            return Action("end", "stopped", f"{look.away}; a job that runs there goes on")
        return Action("carry_on", "stopping", look.away)
    if not at_work:
        return Action("end", "stopped", "as asked")
    if look.wanted == "savepoint" and look.now_s - look.since_s <= limits.savepoint_s:
        if look.job == "running":
            return Action("savepoint", "stopping")
        return Action("carry_on", "stopping", "it has to run before it can take a savepoint")
    return Action("cancel", "stopping")


def _ailing(look: Look) -> Health:
    return "stalled" if look.failures >= 3 else "starting"


def _stalled(look: Look, limits: Limits) -> str:
    if not look.behind or look.stuck_s is None:
        return ""
    running = look.running_s is not None
    since_s = max(look.stuck_s, look.running_s if look.running_s is not None else look.submitted_s)
    limit_s = limits.doubled(limits.fresh_s if running and not look.committed else limits.steady_s, look.failures)
    if look.now_s - since_s <= limit_s:
        return ""
    said = "it has committed nothing" if not look.committed else "a partition does not move"
    return f"{said} for {look.now_s - since_s:.0f} s, with {look.behind:,} messages to read"


@dataclass(frozen=True)
class JobLook:
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


@dataclass(frozen=True)
class Covered:
    """What the manifest and the broker say.

    Attributes:
      version: of the manifest.
      positions: the first offset that is not covered, by partition.
      lag: how many offsets are not covered, by partition.
      overdue_us: the time for which the log that is waited for longest was due, where that is long ago.
    """

    version: int
    positions: Mapping[int, int]
    lag: Mapping[int, int]
    overdue_us: int | None = None


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
    _covered: Covered | None = None
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
        job: JobLook | None,
        covered: Covered | None,
        *,
        fault: str = "",
        away: str = "",
    ) -> Look:
        """Takes in what is seen.

        Args:
          now_s: the moment.
          wanted: what the operator wants.
          job: what the engine says; None where it does not answer.
          covered: what manifest and broker say; None where one of them does not answer.
          fault: why it must not go on.
          away: who does not answer, and how.
        """
        if wanted != self._wanted:
            self._wanted, self._wanted_s = wanted, now_s
        if covered is not None:
            self._take(now_s, covered)
        self._was_away = covered is None
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
        return Look(
            now_s, wanted, self._wanted_s, fault or (job.fault if job else ""), away, job is None, state,
            job.how if job else "", self.submitted_s, self.running_s, self.committed, self._behind(),
            min(stuck, default=None), self.failures, self.ended_s, job.checkpoint_bytes if job else None,
        )  # fmt: skip

    def _behind(self) -> int:
        return sum(self._covered.lag.values()) + (self._covered.overdue_us is not None) if self._covered else 0

    def _take(self, now_s: float, covered: Covered) -> None:
        # Not by the manifest's version: a backfill moves that as well.
        for partition, position in covered.positions.items():
            before = self._moved.get(partition)
            moved = before is not None and before[0] != position
            self.committed = self.committed or moved
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
