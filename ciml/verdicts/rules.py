"""Verdicts on failed runs: the records that training writes into a model, and what follows from them.

`assets/verdicts.json` of a model holds `VerdictRules`: scores of runs that the model did not learn from. The set of
classes that a run may have follows from them by counting (split conformal prediction, Mondrian by job), without any
library, so training, serving and a reader of the file get the same set. Of a run unlike those that the model learned
(`LearnedRanges`), nothing is known.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ciml.errors import IntegrityError
from ciml.events.records import Record
from ciml.raw.causes import CODE, MACHINE
from ciml.verdicts.ranges import LearnedRanges, Outside, check_ranges

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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


class VerdictRules(Record, frozen=True, omit_defaults=True, gc=False):
    """The content of ``assets/verdicts.json``.

    Attributes:
      classes: the model's classes, in its order.
      coverage: the share of runs whose class is in their set.
      calibration: how the probabilities were calibrated, for reports: ``method``, ``runs``, …
      groups: by job; under `POOLED` those of all other jobs.
      ranges: of the runs that the model learned; None in earlier models, which take any run for one like them.
    """

    classes: tuple[str, ...]
    coverage: float
    calibration: Mapping[str, Any]
    groups: Mapping[str, Group]
    ranges: LearnedRanges | None = None

    def group_of(self, job: str) -> str:
        """Return the name of a job's group."""
        return job if job in self.groups else POOLED

    def set_of(self, job: str, probabilities: Mapping[str, float]) -> tuple[str, ...]:
        """Return the classes that a run may have, in the model's order: perhaps all, perhaps none."""
        group = self.groups[self.group_of(job)]
        least = 1 - self.coverage
        return tuple(name for name in self.classes if group.p_value(name, probabilities[name]) >= least)


class Verdict(Record, frozen=True, omit_defaults=True, gc=False):
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
      outside: for a run unlike those that the model learned, by which feature. All classes are possible then: neither
        the probability nor the coverage says anything of such a run.
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
    outside: Outside | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Verdict:
        return msgspec.convert(value, cls)


def make_verdict(
    job: str, probabilities: Mapping[str, float], rules: VerdictRules, means: NDArray[np.floating] | None = None
) -> Verdict:
    """Return the verdict on a failed run.

    Args:
      job: of the run.
      probabilities: calibrated, by class.
      rules: those of the model.
      means: float [F], those of the run's windows; None takes the run for one like those that the model learned.
    """
    name = rules.group_of(job)
    outside = None if rules.ranges is None or means is None else rules.ranges.outside(means)
    group = rules.groups[name]
    possible = rules.set_of(job, probabilities) if outside is None else rules.classes
    likely = max(rules.classes, key=lambda each: probabilities[each])  # of equal ones the first, as `class_of`
    cause = likely if possible == (likely,) else UNKNOWN
    return Verdict(
        cause, probabilities[likely], {each: probabilities[each] for each in rules.classes}, possible, rules.coverage,
        name, group.runs, group.base_rate, _RETRY.get(cause, "unsure"), outside,
    )  # fmt: skip


def read_rules(data: bytes, classes: Sequence[str], features: Sequence[str], where: str) -> VerdictRules:
    """Parse ``assets/verdicts.json`` of a model with these classes and features.

    Raises:
      IntegrityError: if it is malformed, or of other classes or features.
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
    if rules.ranges is not None and (why := check_ranges(rules.ranges, features)):
        raise IntegrityError(f"{where}: {why}")
    return rules


def _check_group(group: Group, classes: tuple[str, ...], where: str) -> None:
    if tuple(group.base_rate) != classes:
        raise IntegrityError(f"{where}: want the base rate of each class, in order")
    if tuple(group.scores) not in (classes, (POOLED,)):
        raise IntegrityError(f"{where}: want scores of each class, in order, or of all together")
    if any(list(scores) != sorted(scores) for scores in group.scores.values()):
        raise IntegrityError(f"{where}: the scores are not in ascending order")
