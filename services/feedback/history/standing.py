"""Whether a model may speak (pure): by its recently settled verdicts, for each verdict and project."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ciml.globs import glob_pattern
from ciml.services.feedback.config import Policy
from ciml.services.feedback.history.records import RERUNS, RecordedVerdict
from ciml.verdicts.shares import wilson

_DAY_US = 86_400_000_000

Mode = Literal["active", "shadow", "precision"]


@dataclass(frozen=True)
class Share:
    """How many runs of some have a property.

    Attributes:
      right: that have it.
      runs: of all.
    """

    right: int
    runs: int

    @property
    def value(self) -> float | None:
        """The share; None of no runs."""
        return self.right / self.runs if self.runs else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson(self.right, self.runs)


@dataclass(frozen=True)
class Standing:
    """Whether a model may say a verdict in a project.

    Attributes:
      mode: ``active``; ``shadow`` with too few settled verdicts; ``precision`` where these do not hold up.
      detail: the reason, for people; "" where it is active.
      precision: of the settled verdicts that count.
      base_rate: how often the settled failed runs have this cause, whatever their verdict.
      reruns: of the verdicts that reruns settled, those whose rerun passed.
    """

    mode: Mode
    detail: str
    precision: Share
    base_rate: Share
    reruns: Share


@dataclass(frozen=True, eq=False)
class History:
    """The recently settled verdicts of a model.

    Args:
      settled: in the order of their settlement.
    """

    settled: tuple[RecordedVerdict, ...]

    def claims(self, cause: str, project: str | None, window: int) -> list[RecordedVerdict]:
        """Return the last claims of a cause, at most one of each change; ``project``: None for all."""
        last: dict[tuple[str, str], RecordedVerdict] = {}
        for verdict in self._of(project):
            if verdict.claim and verdict.cause == cause:
                last.pop(verdict.subject, None)
                last[verdict.subject] = verdict
        return list(last.values())[-window:]

    def base_rate(self, cause: str, project: str | None) -> Share:
        """Return how often settled failed runs have a cause; runs of one change with the same cause count once."""
        subjects = {(verdict.subject, verdict.settled) for verdict in self._of(project)}
        return Share(sum(settled == cause for _, settled in subjects), len(subjects))

    def _of(self, project: str | None) -> Iterable[RecordedVerdict]:
        return self._by_project.get(project, ()) if project is not None else self.settled

    @cached_property
    def _by_project(self) -> dict[str, list[RecordedVerdict]]:
        found: dict[str, list[RecordedVerdict]] = {}
        for verdict in self.settled:
            found.setdefault(verdict.project, []).append(verdict)
        return found


class Standings:
    """The standings of all models at a time.

    Args:
      verdicts: recorded verdicts; open ones do not count.
      policy: the conditions.
      now_us: the present, epoch microseconds.
    """

    def __init__(self, verdicts: Iterable[RecordedVerdict], policy: Policy, now_us: int) -> None:
        self._policy = policy
        since_us = now_us - policy.settled_days * _DAY_US
        recent = [verdict for verdict in verdicts if verdict.settled and verdict.settled_us >= since_us]
        by_model: dict[str, list[RecordedVerdict]] = {}
        for verdict in sorted(recent, key=lambda verdict: (verdict.settled_us, verdict.id)):
            by_model.setdefault(verdict.model, []).append(verdict)
        self._histories = {model: History(tuple(settled)) for model, settled in by_model.items()}
        self._known: dict[tuple[str, str, str], Standing] = {}

    def history(self, model: str) -> History:
        """Return the settled verdicts of a model."""
        return self._histories.get(model, History(()))

    def of(self, model: str, project: str, cause: str) -> Standing:
        """Return the standing of a model's verdict in a project.

        The settled verdicts of the project count if they are enough, else those of all projects.
        """
        key = model, project, cause
        if key not in self._known:
            self._known[key] = self._standing(model, project, cause)
        return self._known[key]

    def _standing(self, model: str, project: str, cause: str) -> Standing:
        policy, history = self._policy, self.history(model)
        own = history.claims(cause, project, policy.settled_window)
        in_project = len(own) >= policy.min_settled
        claims = own if in_project else history.claims(cause, None, policy.settled_window)
        precision, base_rate = _precision(claims), history.base_rate(cause, project if in_project else None)
        rerun = [verdict for verdict in claims if verdict.by == RERUNS]
        reruns = Share(sum(verdict.settled == "machine" for verdict in rerun), len(rerun))

        def standing(mode: Mode, detail: str = "") -> Standing:
            return Standing(mode, detail, precision, base_rate, reruns)

        if _matches(policy.shadow_models, model):
            return standing("shadow", f"the policy keeps model {model!r:.60} in shadow")
        if _matches(policy.active_models, model):
            return standing("active")
        if precision.runs < policy.min_settled:
            return standing("shadow", f"{precision.runs} of at least {policy.min_settled} verdicts {cause} are settled")
        if (reason := _doubt(precision, base_rate, policy)) or (
            reason := "" if in_project else _doubt_of_project(_precision(own), policy)
        ):
            return standing("precision", reason)
        return standing("active")


def _precision(claims: Iterable[RecordedVerdict]) -> Share:
    held = [verdict.settled == verdict.cause for verdict in claims]
    return Share(sum(held), len(held))


def _doubt(precision: Share, base_rate: Share, policy: Policy) -> str:
    """Return why settled verdicts do not hold up; "" where they do."""
    low, _ = precision.interval
    share, base = precision.value or 0.0, base_rate.value or 0.0
    text = f"{precision.right} of {precision.runs} settled verdicts were right ({share:.2f}, at least {low:.2f})"
    if low <= base:
        return f"{text}; the base rate is {base:.2f}"
    return f"{text}; {policy.min_precision:g} are needed" if share < policy.min_precision else ""


def _doubt_of_project(own: Share, policy: Policy) -> str:
    """Return why the few settled verdicts of a project contradict those of all; "" where they do not."""
    _, high = own.interval
    if high >= policy.min_precision:
        return ""
    return f"{own.right} of {own.runs} settled verdicts of this project were right; {policy.min_precision:g} are needed"


def _matches(globs: tuple[str, ...], model: str) -> bool:
    return bool(globs) and glob_pattern(globs).fullmatch(model) is not None
