"""A scheduler that runs real code in threads, exactly one at a time, in an order from a seed.

An actor is a process in the simulated world: a function in its own thread. At each effect (a call of a store or the
broker, a pause) it passes the baton, and the scheduler chooses the next actor. So between two effects of one actor, any
effects of others may occur, or its death. Nothing else switches threads, and no clock is real: a seed gives one run.
"""

from __future__ import annotations

import hashlib
import random
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

_HANG_S = 120.0


class Killed(BaseException):
    """Unwinds the thread of a dead actor. Every effect on the way out raises it again, so none happens."""


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


Died = Callable[[Actor], None]


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

    def spawn(self, name: str, body: Callable[[Actor], None], *, frail: bool, delay_s: float, died: Died) -> Actor:
        """Add an actor that begins after ``delay_s``. ``died`` is called in its thread if it was killed."""
        actor = Actor(name, frail, self.now_us + round(delay_s * 1e6))
        actor.baton.acquire()
        self.actors.append(actor)

        def run() -> None:
            actor.baton.acquire()
            try:
                if not (actor.killed or self.stopped):
                    body(actor)
            except Killed:
                pass
            except BaseException as error:  # noqa: BLE001  # any error ends the run
                self.fail(error)
            if actor.killed and not self.stopped:
                died(actor)
            self._leave(actor)

        threading.Thread(target=run, name=name, daemon=True).start()
        return actor

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
        self.stop()

    def stop(self) -> None:
        """Let every actor die at its next step."""
        self.stopped = True

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
        """Pass the baton; return when it is this actor's turn again. Raises `Killed` if it died."""
        actor = self.current
        if actor is None or threading.current_thread().name != actor.name:
            raise Violation(f"an effect outside of the baton, in {threading.current_thread().name}")
        if actor.killed or self.stopped:
            raise Killed
        self.steps += 1
        self.now_us += self.random.randrange(100, 3000)
        if self.steps > self.most_steps:
            self.fail(Violation(f"not settled after {self.most_steps} steps"))
            raise Killed
        self.before_step()
        chosen = self._choose(actor)
        if chosen is not actor:
            self._pass_to(chosen)
            if not actor.baton.acquire(timeout=_HANG_S):
                raise Violation(f"{actor.name} waits forever: {self.current} has the baton")
        if actor.killed or self.stopped:
            raise Killed

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
            soonest = min((each for each in self.actors if not each.frozen), key=_ready, default=self.actors[0])
            soonest.frozen = 0
            self.now_us = max(self.now_us, soonest.ready_us)
            return soonest
        if now in awake and self.random.random() < self.stickiness:
            return now
        return self.random.choice(awake)


def _ready(actor: Actor) -> int:
    return actor.ready_us
