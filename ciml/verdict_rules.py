"""Rules for verdicts on failed runs: training writes them into a model, and `make_verdict` applies them to a run.

``assets/verdicts.json`` of a model contains `VerdictRules`: scores of runs that the model did not learn from. They
determine the set of classes that a run may have, by counting (split conformal prediction, Mondrian by job). That needs
no library, so training, serving and any reader of the file compute the same set. A model extrapolates for a run outside
of the ranges that it learned (`LearnedRanges`), and is often confidently wrong. Such a run may have any class.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ciml.datasets.definition import NO_OUTPUT_FEATURE, is_of_telemetry
from ciml.errors import IntegrityError
from ciml.events.outcomes import CODE, MACHINE
from ciml.events.records import Record

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

#: Whether running a failed job again unchanged is worth it.
Retry = Literal["yes", "no", "unsure"]
_RETRY: Mapping[str, Retry] = {MACHINE: "yes", CODE: "no"}


class Verdict(Record, frozen=True, omit_defaults=True, gc=False):
    """ciml's statement about a failed run.

    Attributes:
      cause: the most probable class if ``set`` contains it alone, else `UNKNOWN`.
      probability: of the most probable class.
      probabilities: calibrated, by class.
      set: the classes that the run may have.
      coverage: the share of runs whose class is in their set.
      group: the job whose runs this one was compared with, or `POOLED`.
      runs: number of runs in that group.
      base_rate: the share of each class among them.
      retry: whether running the job again unchanged is worth it.
      without_telemetry: whether the run has no telemetry, so that its outcome and its output alone decide.
      outside: the feature by which the run is unlike those that the model learned, or None. For such a run all classes
        are possible, and neither the probability nor the coverage is meaningful.
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
    without_telemetry: bool = False


class VerdictRules(Record, frozen=True, omit_defaults=True, gc=False):
    """The content of ``assets/verdicts.json``.

    Attributes:
      classes: the model's classes, in its order.
      coverage: the share of runs whose class is in their set.
      calibration: how the probabilities were calibrated, for reports: ``method``, ``runs``, …
      groups: the calibration runs by job; under `POOLED` the runs of all other jobs.
      ranges: of the runs that the model learned; None in earlier models, for which no run is outside.
      without_output: the pooled calibration runs that have no output. A run without one is compared with these, and
        the other pooled runs have one. None if a part has too few runs, or the model takes no outputs.
      without_telemetry: the calibration runs with an output, of which the model saw no telemetry. A run with an output
        and without telemetry is compared with these. None in models that give no verdicts on such runs.
      keeps_likely: whether a set always contains the most probable class, so that no set is empty. False in earlier
        models, whose empty sets make a verdict unknown.
    """

    classes: tuple[str, ...]
    coverage: float
    calibration: Mapping[str, Any]
    groups: Mapping[str, Group]
    ranges: LearnedRanges | None = None
    without_output: Group | None = None
    without_telemetry: Group | None = None
    keeps_likely: bool = False

    def group_of(self, job: str) -> str:
        """Return the name of a job's group."""
        return job if job in self.groups else POOLED

    def compared_with(self, job: str, *, without_output: bool = False, without_telemetry: bool = False) -> Group:
        """Return the calibration runs that a run of a job is compared with."""
        if without_telemetry and self.without_telemetry is not None:
            return self.without_telemetry
        name = self.group_of(job)
        if name == POOLED and without_output and self.without_output is not None:
            return self.without_output
        return self.groups[name]

    def lacks_output(self, means: NDArray[np.floating] | None) -> bool:
        """Return whether a run has no output, given float [F], the means of its windows."""
        if means is None or self.ranges is None or NO_OUTPUT_FEATURE not in self.ranges.features:
            return False
        return bool(means[self.ranges.features.index(NO_OUTPUT_FEATURE)] > 0)

    def set_of(self, group: Group, probabilities: Mapping[str, float]) -> tuple[str, ...]:
        """Return the classes that a run compared with a group may have, in the model's order: possibly all.

        With `keeps_likely`, the most probable class is one of them; of several equal ones, each is. That only adds to
        the coverage.
        """
        min_p_value = 1 - self.coverage
        likely = max(probabilities[name] for name in self.classes) if self.keeps_likely else math.inf
        return tuple(
            name
            for name in self.classes
            if probabilities[name] >= likely or group.p_value(name, probabilities[name]) >= min_p_value
        )


class Group(Record, frozen=True, gc=False):
    """Calibration runs that are compared with each other: those of one job, or pooled.

    Attributes:
      runs: number of them.
      base_rate: the share of each class.
      scores: for each run, 1 - the probability that the model gave to its true class; ascending, at most `MAX_SCORES`.
        Either by class, so that the coverage holds for each class, or all together under `POOLED`, for fewer runs.
    """

    runs: int
    base_rate: Mapping[str, float]
    scores: Mapping[str, tuple[float, ...]]

    def scores_of(self, class_name: str) -> tuple[float, ...]:
        """Return the scores that a run is compared with as one of a class."""
        return self.scores[class_name if class_name in self.scores else POOLED]

    def p_value(self, class_name: str, probability: float) -> float:
        """Return the conformal p-value of a class for another run.

        That is the share of runs, the other one included, whose true class the model finds at most as probable.

        Args:
          class_name: the class that the run may have.
          probability: the model's probability of it, in the shortest decimals of its float32.
        """
        scores = self.scores_of(class_name)
        return (len(scores) - bisect_left(scores, 1 - probability) + 1) / (len(scores) + 1)


class LearnedRanges(Record, frozen=True, gc=False):
    """For each feature, the range of its mean among the runs that a model learned, or was calibrated on.

    Attributes:
      runs: number of these runs.
      features: names of the F features.
      low, high: the least and the largest mean of a run, F values each.
      limit: the tolerated distance from a range, in widths of that range (`parts_outside`).
    """

    runs: int
    features: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    limit: float

    def outside(self, means: NDArray[np.floating], *, beside_telemetry: bool = False) -> Outside | None:
        """Return the feature by which a run is farthest outside; None for a run within the limit.

        Args:
          means: float [F], the means of the run's windows.
          beside_telemetry: whether only the features that a run without telemetry has are compared.
        """
        import numpy as np

        if beside_telemetry:
            means = np.where([is_of_telemetry(feature) for feature in self.features], np.nan, means)
        distances = np.nan_to_num(parts_outside(means, np.array(self.low), np.array(self.high)))  # a NaN is not outside
        farthest = int(distances.argmax())
        if distances[farthest] <= self.limit:
            return None
        return Outside(
            self.features[farthest],
            _six_digits(means[farthest]),
            _six_digits(self.low[farthest]),
            _six_digits(self.high[farthest]),
        )


class Outside(Record, frozen=True, gc=False):
    """The feature by which a run is farthest outside of the ranges that a model learned.

    Attributes:
      feature: its name.
      value: its mean over the run's windows, to six digits.
      low, high: the range that the model learned, to six digits.
    """

    feature: str
    value: float
    low: float
    high: float


def make_verdict(
    job: str,
    probabilities: Mapping[str, float],
    rules: VerdictRules,
    means: NDArray[np.floating] | None = None,
    *,
    without_telemetry: bool = False,
) -> Verdict:
    """Return the verdict on a failed run.

    Args:
      job: of the run.
      probabilities: calibrated, by class.
      rules: the rules of the model.
      means: float [F], the means of the run's windows; None skips the comparison with the learned ranges.
      without_telemetry: whether the features of the telemetry are unknown; then they are not compared.
    """
    group = rules.compared_with(job, without_output=rules.lacks_output(means), without_telemetry=without_telemetry)
    outside = None
    if rules.ranges is not None and means is not None:
        outside = rules.ranges.outside(means, beside_telemetry=without_telemetry)
    possible_classes = rules.classes
    if outside is None:
        possible_classes = rules.set_of(group, probabilities)
    likely_class = max(rules.classes, key=lambda name: probabilities[name])  # the first of equals, as in `class_of`
    cause = likely_class if possible_classes == (likely_class,) else UNKNOWN
    return Verdict(
        cause=cause,
        probability=probabilities[likely_class],
        probabilities={name: probabilities[name] for name in rules.classes},
        set=possible_classes,
        coverage=rules.coverage,
        group=POOLED if without_telemetry else rules.group_of(job),
        runs=group.runs,
        base_rate=group.base_rate,
        retry=_RETRY.get(cause, "unsure"),
        outside=outside,
        without_telemetry=without_telemetry,
    )


def read_rules(data: bytes, classes: Sequence[str], features: Sequence[str], where: str) -> VerdictRules:
    """Parse ``assets/verdicts.json`` of a model with these classes and features.

    Raises:
      IntegrityError: it is malformed, or has other classes or features.
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
    if rules.without_output is not None:
        _check_group(rules.without_output, rules.classes, f"{where}: without_output")
    if rules.without_telemetry is not None:
        _check_group(rules.without_telemetry, rules.classes, f"{where}: without_telemetry")
    if rules.ranges is not None and (problem := check_ranges(rules.ranges, features)):
        raise IntegrityError(f"{where}: {problem}")
    return rules


def _check_group(group: Group, classes: tuple[str, ...], where: str) -> None:
    if tuple(group.base_rate) != classes:
        raise IntegrityError(f"{where}: want the base rate of each class, in order")
    if tuple(group.scores) not in (classes, (POOLED,)):
        raise IntegrityError(f"{where}: want scores of each class, in order, or of all together")
    if any(list(scores) != sorted(scores) for scores in group.scores.values()):
        raise IntegrityError(f"{where}: the scores are not in ascending order")


def check_ranges(ranges: LearnedRanges, features: Sequence[str]) -> str:
    """Return the problem of ranges for a model of these features, as text; "" if there is none."""
    if ranges.features != tuple(features):
        return f"ranges of {len(ranges.features)} features, but the model has {len(features)}, or others"
    if not len(ranges.low) == len(ranges.high) == len(features):
        return "want a low and a high of each feature"
    if any(low > high for low, high in zip(ranges.low, ranges.high, strict=True)):
        return "a low is above its high"
    return "" if ranges.limit >= 0 else "the limit of the ranges is negative"


def parts_outside(
    means: NDArray[np.floating], low: NDArray[np.floating], high: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the distances of values from their ranges, float64 [..., F]: in widths of the range, 0 inside.

    The width of a range of a single value is the absolute value, at least 1.

    Args:
      means: float [..., F].
      low, high: float [..., F].
    """
    import numpy as np

    widths = np.where(high > low, high - low, np.maximum(np.abs(low), 1.0))
    beyond: NDArray[np.float64] = np.maximum(np.maximum(low - means, means - high), 0.0) / widths
    return beyond


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")
