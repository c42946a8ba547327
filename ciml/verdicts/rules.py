"""Verdicts on failed runs: the records that training writes into a model, and what follows from them.

`assets/verdicts.json` of a model holds `VerdictRules`: scores of runs that the model did not learn from. The set of
classes that a run may have follows from them by counting (split conformal prediction, Mondrian by job), without any
library, so training, serving and a reader of the file get the same set.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from ciml.errors import IntegrityError
from ciml.events.records import Record
from ciml.raw.causes import CODE, MACHINE

#: The file of the rules below a model's ``assets/``.
VERDICTS = "verdicts.json"
#: The file of the passing profiles below ``assets/``, for a model whose definition asks for them.
PROFILES = "profiles.json"
#: The verdict on a run for which one class alone is not certain enough.
UNKNOWN = "unknown"
#: The group of the runs whose job has none of its own.
POOLED = ""

#: Most scores in a list. A random part of the runs keeps the coverage exact.
MAX_SCORES = 5000

Retry = Literal["yes", "no", "unsure"]
_RETRY: Mapping[str, Retry] = {MACHINE: "yes", CODE: "no"}


class Group(Record, frozen=True, gc=False):
    """Calibration runs that are compared with each other: those of one job, or pooled.

    Attributes:
      runs: number of them.
      base_rate: the share of each class.
      scores: 1 - the probability that the model gave to the run's own class, ascending; by class, or all together under
        `POOLED`. By class, the coverage holds for each class; that takes more runs. At most `MAX_SCORES` each.
    """

    runs: int
    base_rate: Mapping[str, float]
    scores: Mapping[str, tuple[float, ...]]

    def p_value(self, name: str, probability: float) -> float:
        """Return the share of runs, this one included, whose class is no more probable to the model than ``name``.

        Args:
          name: the class that this run may have.
          probability: the model's probability of it, in the shortest decimals of its float32.
        """
        scores = self.scores[name if name in self.scores else POOLED]
        return (len(scores) - bisect_left(scores, 1 - probability) + 1) / (len(scores) + 1)


class VerdictRules(Record, frozen=True, gc=False):
    """The content of ``assets/verdicts.json``.

    Attributes:
      classes: the model's classes, in its order.
      coverage: the share of runs whose class is in their set.
      calibration: how the probabilities were calibrated, for reports: ``method``, ``runs``, …
      groups: by job; under `POOLED` those of all other jobs.
    """

    classes: tuple[str, ...]
    coverage: float
    calibration: Mapping[str, Any]
    groups: Mapping[str, Group]

    def group_of(self, job: str) -> str:
        """Return the name of a job's group."""
        return job if job in self.groups else POOLED

    def set_of(self, job: str, probabilities: Mapping[str, float]) -> tuple[str, ...]:
        """Return the classes that a run may have, in the model's order: perhaps all, perhaps none."""
        group = self.groups[self.group_of(job)]
        least = 1 - self.coverage
        return tuple(name for name in self.classes if group.p_value(name, probabilities[name]) >= least)


class Verdict(Record, frozen=True, gc=False):
    """What ciml says of a failed run.

    Attributes:
      cause: the class, or `UNKNOWN` unless ``set`` holds the most probable class alone.
      probability: of the most probable class.
      probabilities: calibrated, by class.
      set: the classes that the run may have.
      coverage: the share of runs whose class is in their set.
      group: the job whose runs this one was compared with, or `POOLED`.
      runs: number of runs in that group.
      base_rate: the share of each class among them.
      retry: whether running the job again unchanged is worth it.
    """

    cause: str
    probability: float
    probabilities: Mapping[str, float]
    set: tuple[str, ...]
    coverage: float
    group: str
    runs: int
    base_rate: Mapping[str, float]
    retry: Retry

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Verdict:
        return cls(**{**value, "set": tuple(value["set"])})


def make_verdict(job: str, probabilities: Mapping[str, float], rules: VerdictRules) -> Verdict:
    """Return the verdict on a failed run of a job with these calibrated probabilities by class."""
    name = rules.group_of(job)
    group, possible = rules.groups[name], rules.set_of(job, probabilities)
    likely = max(rules.classes, key=lambda each: probabilities[each])  # of equal ones the first, as `class_of`
    cause = likely if possible == (likely,) else UNKNOWN
    return Verdict(
        cause, probabilities[likely], {each: probabilities[each] for each in rules.classes}, possible, rules.coverage,
        name, group.runs, group.base_rate, _RETRY.get(cause, "unsure"),
    )  # fmt: skip


def read_rules(data: bytes, classes: Sequence[str], where: str) -> VerdictRules:
    """Parse ``assets/verdicts.json`` of a model with these classes.

    Raises:
      IntegrityError: if it is malformed or of other classes.
    """
    try:
        rules = msgspec.json.decode(data, type=VerdictRules)
    except msgspec.DecodeError as error:
        raise IntegrityError(f"{where} has no rules of verdicts: {error}") from None
    if rules.classes != tuple(classes):
        raise IntegrityError(f"{where}: classes {', '.join(rules.classes)}, but the model has {', '.join(classes)}")
    if not 0 < rules.coverage < 1:
        raise IntegrityError(f"{where}: coverage {rules.coverage} is not between 0 and 1")
    if POOLED not in rules.groups:
        raise IntegrityError(f"{where}: the group {POOLED!r} of all other jobs is missing")
    for name, group in rules.groups.items():
        _check_group(group, rules.classes, f"{where}: group {name!r}")
    return rules


def _check_group(group: Group, classes: tuple[str, ...], where: str) -> None:
    if tuple(group.base_rate) != classes:
        raise IntegrityError(f"{where}: want the base rate of each class, in order")
    if tuple(group.scores) not in (classes, (POOLED,)):
        raise IntegrityError(f"{where}: want scores of each class, in order, or of all together")
    if any(list(scores) != sorted(scores) for scores in group.scores.values()):
        raise IntegrityError(f"{where}: the scores are not in ascending order")
