"""Decision logic of a service's watchdog (pure): what follows from what is seen.

`services.tracker` makes an `Observation` of job, topic and manifest; `decide` says what follows. Neither does I/O, so a
table can test them; `services.supervisor` is the loop around them.
"""

from __future__ import annotations

from dataclasses import dataclass
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
      checkpoint_bytes: and when its checkpoint has grown to this: about 500 rests, each of which makes the next
        checkpoint slower,
      checkpoint_renew_s: but not sooner than this after its submission.
      stopping_s: how long an engine that does not answer is asked to stop the job.
      savepoint_s: how long a savepoint is tried for, before the job is cancelled without one.
      patience_s: how long a broker, a store or an engine may not answer before that is an error; None for ever.
      most_stalls: how many replacements in a row may bring nothing before that is an error; None for any number.
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
        """How long to wait after so many submissions in a row that brought nothing."""
        return 0.0 if failures < 1 else min(self.pause_s * 2.0 ** min(failures - 1, 30), self.longest_pause_s)

    def doubled(self, limit_s: float, failures: int) -> float:
        """A limit after so many submissions in a row that brought nothing."""
        return max(limit_s, min(limit_s * 2.0 ** min(failures, 30), self.longest_s))


@dataclass(frozen=True)
class Observation:
    """What is seen at one moment. Times are seconds of one clock that only goes forward.

    Attributes:
      now_s: the moment.
      wanted: what the operator wants.
      since_s: since when.
      fault: why it must not go on; "" where it may.
      away: which broker, store or engine does not answer; "" where all do.
      away_s: since when; None where all answer, and what is waited for will come by itself.
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
    """What is to be done: nothing, a new job, another in the place of this, its end, or the end of all.

    Attributes:
      kind: what.
      health: what a person is told.
      why: one phrase for them.
    """

    kind: Kind
    health: Health
    why: str = ""


def decide(look: Observation, limits: Limits) -> Action:
    """What follows from a look."""
    at_work = look.job not in ("missing", "over")
    if look.fault:
        return Action("cancel" if at_work and not look.engine_away else "end", "failed", look.fault)
    if look.wanted != "run":
        return _stop(look, limits, at_work)
    if look.away:
        if limits.patience_s is not None and look.away_s is not None and look.now_s - look.away_s > limits.patience_s:
            return Action("cancel" if at_work and not look.engine_away else "end", "failed", look.away)
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
    if stalled and limits.most_stalls is not None and look.failures >= limits.most_stalls:
        return Action("cancel", "failed", stalled)
    if stalled:
        return Action("replace", "stalled", stalled)
    age_s = look.now_s - look.submitted_s
    if age_s > limits.renew_s:
        return Action("replace", "running", f"renewed after {age_s / 3600:.1f} h")
    checkpoint_bytes = look.checkpoint_bytes or 0
    if checkpoint_bytes > limits.checkpoint_bytes and age_s > limits.checkpoint_renew_s:
        return Action("replace", "running", f"renewed: its checkpoint has {checkpoint_bytes / 2**20:.1f} MiB")
    if look.job == "restarting":
        return Action("carry_on", _ailing(look), look.how or "its engine restarts it")
    if look.stuck_s is not None and look.now_s - look.stuck_s > limits.steady_s:
        return Action("carry_on", "stalled", f"nothing moves for {look.now_s - look.stuck_s:.0f} s")
    return Action("carry_on", _ailing(look) if look.behind and not look.committed else "running")


def _stop(look: Observation, limits: Limits, at_work: bool) -> Action:
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


def _ailing(look: Observation) -> Health:
    return "stalled" if look.failures >= 3 else "starting"


def _stalled(look: Observation, limits: Limits) -> str:
    if not look.behind or look.stuck_s is None:
        return ""
    running = look.running_s is not None
    since_s = max(look.stuck_s, look.running_s if look.running_s is not None else look.submitted_s)
    limit_s = limits.doubled(limits.fresh_s if running and not look.committed else limits.steady_s, look.failures)
    if look.now_s - since_s <= limit_s:
        return ""
    said = "it has committed nothing" if not look.committed else "a partition does not move"
    return f"{said} for {look.now_s - since_s:.0f} s, with {look.behind:,} messages to read"
