"""Faults and their times, drawn from the seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.simulation.scheduler import Actor, Scheduler

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
