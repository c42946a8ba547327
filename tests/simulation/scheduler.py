"""A scheduler that runs real code in threads, exactly one at a time, in an order from a seed; and faults of a seed.

An actor is a process in the simulated world: a function in its own thread. At each effect (a call of a store or the
broker, a pause) it passes the baton, and the scheduler chooses the next actor. So between two effects of one actor, any
effects of others may occur, or its death. Nothing else switches threads, and no clock is real: a seed gives one run.
"""

from __future__ import annotations

import hashlib
import random
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tests.durable import Died

_HANG_S = 120.0


class Violation(AssertionError):
    """A violated invariant of the simulated world."""


@dataclass(eq=False)
class Actor:
    """A process: one incarnation of a role.

    Attributes:
      ready_us: the end of its pause.
      frozen: number of steps of others during which it does not run, and which it cannot notice.
      frail: whether chaos may kill and freeze it.
    """

    name: str
    frail: bool
    ready_us: int = 0
    frozen: int = 0
    killed: bool = False
    over: bool = False
    idle: int = 0
    baton: threading.Lock = field(default_factory=threading.Lock)


class Scheduler:
    """Passes the baton until no actor is left, a violation is found, or the step limit is reached."""

    def __init__(self, seed: int, *, start_us: int, most_steps: int, keep_trace: bool = False) -> None:
        self.random = random.Random(f"order {seed}")
        self.now_us = start_us
        self.steps = 0
        self.most_steps = most_steps
        self.stickiness = self.random.choice((0.0, 0.3, 0.6, 0.85, 0.95))
        self.actors: list[Actor] = []
        self.current: Actor | None = None
        self.failure: BaseException | None = None
        self.before_step: Callable[[], None] = lambda: None
        self.kept: list[str] | None = [] if keep_trace else None
        self.stopped = False
        self._start_us = start_us
        self._digest = hashlib.blake2b(digest_size=8)
        self._main = threading.Lock()
        self._main.acquire()

    def spawn(
        self, name: str, body: Callable[[Actor], None], *, frail: bool, delay_s: float, died: Callable[[Actor], None]
    ) -> None:
        """Add an actor that begins after ``delay_s``. ``died`` is called in its thread if it was killed."""
        actor = Actor(name, frail, self.now_us + round(delay_s * 1e6))
        actor.baton.acquire()
        self.actors.append(actor)

        def run() -> None:
            actor.baton.acquire()
            try:
                if not (actor.killed or self.stopped):
                    body(actor)
            except Died:
                pass
            except BaseException as error:  # noqa: BLE001  # any error ends the run
                self.fail(error)
            if actor.killed and not self.stopped:
                died(actor)
            self._leave(actor)

        threading.Thread(target=run, name=name, daemon=True).start()

    def run(self) -> None:
        """Run the actors. Raises the first error of an actor."""
        self._pass_to(self._choose(None))
        if not self._main.acquire(timeout=_HANG_S):
            raise Violation(f"the baton was lost by {self.current}")
        if self.failure is not None:
            raise self.failure

    def fail(self, error: BaseException) -> None:
        """End the run with an error; the first error counts."""
        if self.failure is None:
            self.failure = error
            self.trace("".join(traceback.format_exception_only(error)).strip())
        self.stopped = True  # every actor dies at its next step

    def trace(self, text: str) -> None:
        """Record a line. All lines together identify the run."""
        name = self.current.name if self.current else "-"
        line = f"{self.steps:6d} {(self.now_us - self._start_us) / 1e6:12.3f} {name:14s} {text}"
        self._digest.update(line.encode("utf-8", "backslashreplace"))
        if self.kept is not None:
            self.kept.append(line)

    def digest(self) -> str:
        """Return the digest of all lines."""
        return self._digest.hexdigest()

    def step(self) -> None:
        """Pass the baton; return when it is this actor's turn again. Raises `Died` if it died."""
        actor = self.current
        if actor is None or threading.current_thread().name != actor.name:
            raise Violation(f"an effect outside of the baton, in {threading.current_thread().name}")
        if actor.killed or self.stopped:
            raise Died
        self.steps += 1
        self.now_us += self.random.randrange(100, 3000)
        if self.steps > self.most_steps:
            self.fail(Violation(f"not settled after {self.most_steps} steps"))
            raise Died
        self.before_step()
        chosen = self._choose(actor)
        if chosen is not actor:
            self._pass_to(chosen)
            if not actor.baton.acquire(timeout=_HANG_S):
                raise Violation(f"{actor.name} waits forever: {self.current} has the baton")
        if actor.killed or self.stopped:
            raise Died

    def pause(self, seconds: float) -> None:
        """Let the current actor sleep."""
        if self.current is None:
            raise Violation("a pause outside of an actor")
        self.current.ready_us = self.now_us + round(seconds * 1e6)
        self.step()

    def _leave(self, actor: Actor) -> None:
        actor.over = True
        self.actors.remove(actor)
        self._pass_to(self._choose(None))

    def _pass_to(self, actor: Actor | None) -> None:
        self.current = actor
        (self._main if actor is None else actor.baton).release()

    def _choose(self, now: Actor | None) -> Actor | None:
        if self.stopped:
            return now or (self.actors[0] if self.actors else None)
        for actor in self.actors:
            if actor.killed:
                return actor
        awake = []
        for actor in self.actors:
            if actor.frozen:
                actor.frozen -= 1
            elif actor.ready_us <= self.now_us:
                awake.append(actor)
        if not awake:
            if not self.actors:
                return None
            unfrozen = [each for each in self.actors if not each.frozen] or self.actors[:1]
            soonest = min(unfrozen, key=lambda actor: actor.ready_us)
            soonest.frozen = 0
            self.now_us = max(self.now_us, soonest.ready_us)
            return soonest
        if now in awake and self.random.random() < self.stickiness:
            return now
        return self.random.choice(awake)


#: Of a call: it fails before or after it took effect, its answer is lost and it is retried, or it is slow.
Fault = Literal["before", "after", "lost", "slow"]


@dataclass
class Chaos:
    """Decides each failure.

    Attributes:
      errors, slow: probabilities that a call fails, or takes seconds.
      kills, freezes, leaps: probabilities per step that an actor dies or is frozen, or that the clock leaps.
      stalls: probability that an actor is frozen just before its commit.
      grace_s: retention of replaced objects; leaps are shorter and longer.
      on: whether faults are injected.
    """

    random: random.Random
    errors: float
    slow: float
    kills: float
    freezes: float
    leaps: float
    stalls: float
    grace_s: float
    on: bool = True

    @classmethod
    def of(cls, seed: int) -> Chaos:
        """Return the fault rates of a seed."""
        rng = random.Random(f"chaos {seed}")
        return cls(
            rng,
            errors=rng.choice((0.0, 0.0, 0.005, 0.02, 0.08)),
            slow=rng.choice((0.0, 0.0, 0.01, 0.05)),
            kills=rng.choice((0.0, 0.001, 0.004, 0.012)),
            freezes=rng.choice((0.0, 0.001, 0.004, 0.012)),
            leaps=rng.choice((0.0, 0.002, 0.006, 0.015)),
            stalls=rng.choice((0.0, 0.0, 0.05, 0.2)),
            grace_s=rng.choice((20.0, 20.0, 300.0, 86_400.0)),
        )

    def fault(self) -> Fault | None:
        """Draw the fault of a call, or None."""
        if not self.on:
            return None
        drawn = self.random.random()
        if drawn < self.errors:
            return self.random.choice(("before", "after", "lost"))
        return "slow" if drawn < self.errors + self.slow else None

    def strike(self, scheduler: Scheduler, froze: Callable[[Actor], None]) -> None:
        """Before a step: perhaps kill or freeze an actor, or let the clock leap."""
        if not self.on:
            return
        drawn = self.random.random()
        if drawn >= self.kills + self.freezes + self.leaps:
            return
        if drawn >= self.kills + self.freezes:
            leap_s = round(self.grace_s * self.random.choice((0.1, 0.4, 0.6, 1.1)))
            scheduler.now_us += leap_s * 1_000_000
            scheduler.trace(f"* {leap_s} s pass")
            return
        frail = [actor for actor in scheduler.actors if actor.frail and not actor.frozen]
        if not frail:
            return
        actor = self.random.choice(frail)
        if drawn < self.kills:
            actor.killed = True
            scheduler.trace(f"* {actor.name} is killed")
        else:
            self._freeze(actor, scheduler, froze, (5, 30, 150, 600))

    def stall(self, scheduler: Scheduler, froze: Callable[[Actor], None]) -> None:
        """Before a commit: perhaps freeze the committing actor with its state."""
        actor = scheduler.current
        if not self.on or actor is None or not actor.frail or any(each.frozen for each in scheduler.actors):
            return
        if self.random.random() < self.stalls:
            self._freeze(actor, scheduler, froze, (100, 400, 1000))

    def _freeze(self, actor: Actor, scheduler: Scheduler, froze: Callable[[Actor], None], steps: Sequence[int]) -> None:
        actor.frozen = self.random.choice(steps)
        scheduler.trace(f"* {actor.name} is frozen for {actor.frozen} steps")
        froze(actor)
