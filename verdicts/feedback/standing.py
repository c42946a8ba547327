"""Decides whether a model may publish a verdict in a project, by its recently settled verdicts (pure).

A *recorded verdict* is one that the manifest of feedback remembers, published or not; reruns or a reviewer *settle* it.
`Records` keeps them in bounded memory. `Standings` decides for each model, project and cause, and `report_standings`
lists the decisions with their figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ciml.events.records import Record
from ciml.globs import matches_any
from ciml.intervals import wilson
from ciml.limits import MAX_FEEDBACK_VERDICTS
from ciml.runs.causes import StandingMap
from ciml.verdicts.feedback.config import CAUSES, Policy

#: What settles a verdict.
RERUNS = "reruns"
REVIEWER = "reviewer"
_DAY_US = 86_400_000_000
#: The standing of settled verdicts in `Records`. Open ones have 1 if their run is trusted, else 0.
_SETTLED = 2
#: Settled runs with a known duration before their duration is tried as a baseline, and the folds of that trial.
_MIN_BASELINE_RUNS = 20
_FOLDS = 5

Mode = Literal["active", "shadow", "precision"]


class RecordedVerdict(Record, frozen=True, omit_defaults=True, gc=False):
    """A verdict on a failed run, and what settled it. All texts but ``settled`` and ``by`` are hostile.

    Attributes:
      id: of the prediction.
      run_id: of the run.
      model, version: that gave it.
      project, job: of the run.
      change: what stands for the change of the run, see `RunFacts.tested`.
      cause: the verdict, ``unknown`` included.
      claim: whether all conditions of a message hold but those on the model's history and on the change.
      probability: of the cause.
      seconds: duration of the run; None if it is unknown.
      time_us: when it was recorded, epoch microseconds.
      trusted: whether the run is trusted.
      settled: the cause by reruns or a reviewer; "" while it is open.
      by: what settled it: `RERUNS` or `REVIEWER`.
      settled_us: when it was settled, epoch microseconds.
    """

    id: str
    run_id: str
    model: str
    version: int
    project: str
    change: str
    job: str
    cause: str
    claim: bool
    probability: float
    seconds: float | None = None
    time_us: int = 0
    trusted: bool = False
    settled: str = ""
    by: str = ""
    settled_us: int = 0

    @property
    def subject(self) -> tuple[str, str]:
        """What runs that are alike share: their change; of a run without a change, the run."""
        return self.project, self.change or self.run_id


class Records:
    """The recorded verdicts by prediction id: settled ones, open ones of trusted runs, and open ones of other runs.

    Each of the three has at most `MAX_FEEDBACK_VERDICTS`, and forgets the oldest: untrusted runs displace no others.
    """

    def __init__(self, verdicts: Iterable[RecordedVerdict] = ()) -> None:
        self._verdicts = StandingMap[str, RecordedVerdict](MAX_FEEDBACK_VERDICTS)
        for verdict in verdicts:
            self.put(verdict)

    def put(self, verdict: RecordedVerdict) -> None:
        """Add a verdict, or replace the one with its id."""
        self._verdicts.put(verdict.id, verdict, _SETTLED if verdict.settled else int(verdict.trusted))

    def find(self, identity: str) -> RecordedVerdict | None:
        """Return the verdict of a prediction."""
        return self._verdicts.get(identity)

    def __iter__(self) -> Iterator[RecordedVerdict]:
        """Yield all verdicts, the settled ones first."""
        for entries in reversed(self._verdicts.lists()):
            yield from (verdict for _, verdict in entries)

    def __len__(self) -> int:
        return sum(map(len, self._verdicts.lists()))


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

    def to_json(self) -> dict[str, float | int | None]:
        """Return the share as JSON, with the ends of its interval."""
        low, high = self.interval
        return {"right": self.right, "runs": self.runs, "value": self.value, "low": low, "high": high}


@dataclass(frozen=True)
class Standing:
    """Whether a model may say a verdict in a project.

    Attributes:
      mode: ``active``; ``shadow`` with too few settled verdicts; ``precision`` where these do not hold up.
      detail: the reason, for people; "" if it is active.
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
        by_project: dict[str, list[RecordedVerdict]] = {}
        for verdict in self.settled:
            by_project.setdefault(verdict.project, []).append(verdict)
        return by_project


class Standings:
    """The standings of all models at a time.

    Args:
      verdicts: recorded verdicts; open ones do not count.
      policy: the conditions of a message.
      now_us: the present, epoch microseconds.
    """

    def __init__(self, verdicts: Iterable[RecordedVerdict], policy: Policy, now_us: int) -> None:
        self.policy = policy
        since_us = now_us - policy.settled_days * _DAY_US
        recent = [verdict for verdict in verdicts if verdict.settled and verdict.settled_us >= since_us]
        by_model: dict[str, list[RecordedVerdict]] = {}
        for verdict in sorted(recent, key=lambda verdict: (verdict.settled_us, verdict.id)):
            by_model.setdefault(verdict.model, []).append(verdict)
        self._histories = {model: History(tuple(settled)) for model, settled in by_model.items()}
        self._standings: dict[tuple[str, str, str], Standing] = {}

    def history(self, model: str) -> History:
        """Return the settled verdicts of a model."""
        return self._histories.get(model, History(()))

    def of(self, model: str, project: str, cause: str) -> Standing:
        """Return the standing of a model's verdict in a project.

        The settled verdicts of the project count if they are enough, otherwise the settled verdicts of all projects.
        """
        key = model, project, cause
        if key not in self._standings:
            self._standings[key] = self._standing(model, project, cause)
        return self._standings[key]

    def _standing(self, model: str, project: str, cause: str) -> Standing:
        policy = self.policy
        history = self.history(model)
        own_claims = history.claims(cause, project, policy.settled_window)
        in_project = len(own_claims) >= policy.min_settled
        claims = own_claims if in_project else history.claims(cause, None, policy.settled_window)
        precision = precision_of(claims)
        base_rate = history.base_rate(cause, project if in_project else None)
        reruns = reruns_of(claims)

        def standing(mode: Mode, detail: str = "") -> Standing:
            return Standing(mode, detail, precision, base_rate, reruns)

        if matches_any(policy.shadow_models, model):
            return standing("shadow", f"the policy keeps model {model!r:.60} in shadow")
        if matches_any(policy.active_models, model):
            return standing("active")
        if precision.runs < policy.min_settled:
            return standing("shadow", f"{precision.runs} of at least {policy.min_settled} verdicts {cause} are settled")
        reason = _doubt(precision, base_rate, policy)
        if not reason and not in_project:
            reason = _doubt_of_project(precision_of(own_claims), policy)
        return standing("precision", reason) if reason else standing("active")


def precision_of(claims: Iterable[RecordedVerdict]) -> Share:
    """Return how many settled claims were right."""
    return _share(verdict.settled == verdict.cause for verdict in claims)


def reruns_of(claims: Iterable[RecordedVerdict]) -> Share:
    """Return how many of the claims that reruns settled had a rerun that passed."""
    return _share(verdict.settled == "machine" for verdict in claims if verdict.by == RERUNS)


def _share(outcomes: Iterable[bool]) -> Share:
    results = list(outcomes)
    return Share(sum(results), len(results))


def _doubt(precision: Share, base_rate: Share, policy: Policy) -> str:
    """Return why settled verdicts do not hold up; "" if they do."""
    low, _ = precision.interval
    share = precision.value or 0.0
    base = base_rate.value or 0.0
    text = f"{precision.right} of {precision.runs} settled verdicts were right ({share:.2f}, at least {low:.2f})"
    if low <= base:
        return f"{text}; the base rate is {base:.2f}"
    return f"{text}; {policy.min_precision:g} are needed" if share < policy.min_precision else ""


def _doubt_of_project(own: Share, policy: Policy) -> str:
    """Return why the few settled verdicts of a project contradict those of all; "" if they do not."""
    _, high = own.interval
    if high >= policy.min_precision:
        return ""
    return f"{own.right} of {own.runs} settled verdicts of this project were right; {policy.min_precision:g} are needed"


@dataclass(frozen=True)
class Row:
    """The verdicts of a model and cause in a project, or in all projects.

    Attributes:
      model: name of the model.
      project: name of the project; "" for all.
      cause: the verdict.
      mode: whether the model may say it there.
      detail: the reason why it may not.
      open: verdicts that nothing has settled yet.
      precision: of the settled verdicts that count.
      base_rate: how often the settled failed runs have this cause.
      duration: precision of the same verdict by the duration of the run alone, on the same settled runs, each predicted
        from the runs of other changes; of 0 runs where it cannot be computed.
      reruns: of the verdicts that reruns settled, those whose rerun passed.
    """

    model: str
    project: str
    cause: str
    mode: Mode
    detail: str
    open: int
    precision: Share
    base_rate: Share
    duration: Share
    reruns: Share

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON; shares have ``right``, ``runs``, ``value``, ``low`` and ``high``."""
        values = {column.name: getattr(self, column.name) for column in fields(self)}
        shares = {name: share.to_json() for name, share in values.items() if isinstance(share, Share)}
        return {**values, "settled": self.precision.runs, **shares}


def report_standings(verdicts: Iterable[RecordedVerdict], policy: Policy, now_us: int) -> list[Row]:
    """Return the rows of all models: all projects first, then each project.

    Args:
      verdicts: recorded verdicts.
      policy: the conditions of a message.
      now_us: the present, epoch microseconds.
    """
    recorded = list(verdicts)
    standings = Standings(recorded, policy, now_us)
    rows = []
    for model in sorted({verdict.model for verdict in recorded}):
        claims = [verdict for verdict in recorded if verdict.model == model and verdict.claim]
        by_duration = _answers_by_duration(standings.history(model).settled)
        for project in ("", *sorted({verdict.project for verdict in claims} - {""})):
            for cause in CAUSES:
                waiting = {
                    verdict.subject
                    for verdict in claims
                    if not verdict.settled and verdict.cause == cause and project in ("", verdict.project)
                }
                rows.append(_row(standings, model, project, cause, len(waiting), by_duration))
    return rows


def _row(
    standings: Standings, model: str, project: str, cause: str, waiting: int, by_duration: Mapping[str, str]
) -> Row:
    history = standings.history(model)
    standing = standings.of(model, project, cause)
    claims = history.claims(cause, project or None, standings.policy.settled_window)
    right_by_duration = {  # the last one of each change, as among the claims
        verdict.subject: verdict.settled == cause
        for verdict in history.settled
        if by_duration.get(verdict.id) == cause and project in ("", verdict.project)
    }
    return Row(
        model,
        project,
        cause,
        standing.mode,
        standing.detail,
        waiting,
        precision_of(claims),
        history.base_rate(cause, project or None),
        _share(right_by_duration.values()),
        reruns_of(claims),
    )


def _answers_by_duration(settled: Sequence[RecordedVerdict]) -> dict[str, str]:
    """Return the cause of each settled run by its duration, from runs of other changes; {} where these are too few."""
    runs = [verdict for verdict in settled if verdict.seconds is not None and verdict.settled in CAUSES]
    if len(runs) < _MIN_BASELINE_RUNS or len({verdict.settled for verdict in runs}) < 2:
        return {}
    from ciml.training.evaluation.baselines import predict_by

    seconds = np.array([verdict.seconds for verdict in runs], np.float64)
    labels = np.array([CAUSES.index(verdict.settled) for verdict in runs], np.int64)
    subjects = {subject: number for number, subject in enumerate(sorted({verdict.subject for verdict in runs}))}
    fold_of_run = np.array([subjects[verdict.subject] % _FOLDS for verdict in runs])
    answers: dict[str, str] = {}
    for fold in range(_FOLDS):
        held_out = np.flatnonzero(fold_of_run == fold)
        learned = np.flatnonzero(fold_of_run != fold)
        if held_out.size and learned.size:
            shares = predict_by("duration", seconds[learned], labels[learned], seconds[held_out], len(CAUSES))
            causes = shares.argmax(axis=1)
            answers |= {runs[index].id: CAUSES[cause] for index, cause in zip(held_out, causes, strict=True)}
    return answers
