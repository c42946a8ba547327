"""Rules for verdicts on failed runs, which training writes into a model, and what follows from them for a run.

``assets/verdicts.json`` of a model holds `VerdictRules`: scores of runs that the model did not learn from. They
determine the set of classes that a run may have, by counting (split conformal prediction, Mondrian by job). That needs
no library, so training, serving and any reader of the file compute the same set. A model extrapolates for a run outside
of the ranges that it learned (`LearnedRanges`), and is often confidently wrong. Such a run may have any class.

The module also interprets the exit status of a run's command, from the labels that recorders, listings and adapters
write. ``exit_code`` is the status as a system reports it. A signal that ended the command is a negative status (Python,
Ansible) or one above 128 (shells, Buildkite). -1 is no signal: Buildkite and Jenkins report it for an agent or process
that they lost, so the status is unknown. `ciml record` names a signal by the label ``signal`` instead.
"""

from __future__ import annotations

import re
import signal
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ciml.errors import IntegrityError
from ciml.events.outcomes import CODE, MACHINE
from ciml.events.records import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The labels of a run with the exit status of its command, and with the signal that ended it.
EXIT_LABEL = "exit_code"
SIGNAL_LABEL = "signal"

_STATUS = re.compile("-?[0-9]{1,3}")
_NUMBER = re.compile("[0-9]{1,2}")
#: A shell adds it to the signal that ended a command.
_SHELL = 128
_MAX_STATUS = 255
_MAX_SIGNAL = 64
_UNKNOWN = -1
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


def exit_status_of(labels: Mapping[str, str]) -> int | None:
    """Return the exit status in a run's labels: from -64 to -2 or from 0 to 255; None where it is not known.

    A run with a signal alone has the status that a shell reports.

    Example:
      exit_status_of({"exit_code": "-9"})    # -9
      exit_status_of({"signal": "SIGKILL"})  # 137
      exit_status_of({"exit_code": "-1"})    # None
    """
    if text := labels.get(EXIT_LABEL, ""):
        status = int(text) if _STATUS.fullmatch(text) else _UNKNOWN
    else:
        named = _signal_named(labels.get(SIGNAL_LABEL, ""))
        status = _SHELL + named if named else _UNKNOWN
    return status if -_MAX_SIGNAL <= status <= _MAX_STATUS and status != _UNKNOWN else None


def signal_of(status: int | None) -> int | None:
    """Return the number of the signal that ended a command with this exit status; None for any other one."""
    if status is None:
        return None
    number = -status if status < 0 else status - _SHELL
    return number if 0 < number <= _MAX_SIGNAL else None


def _signal_named(text: str) -> int:
    """Return the number of a signal as the recorder writes it, its name or its number; 0 for any other text."""
    if text in signal.Signals.__members__:
        return int(signal.Signals[text])
    return int(text) if _NUMBER.fullmatch(text) and int(text) <= _MAX_SIGNAL else 0


class Outside(Record, frozen=True, gc=False):
    """The feature by which a run is farthest outside of the runs that a model learned.

    Attributes:
      feature: its name.
      value: its mean over the run's windows, to six digits.
      low, high: the least and the largest mean among the runs that the model learned, to six digits.
    """

    feature: str
    value: float
    low: float
    high: float


class LearnedRanges(Record, frozen=True, gc=False):
    """The ranges of the runs that a model learned, or was calibrated on. A run's value of a feature is its mean.

    Attributes:
      runs: number of them.
      features: names of the F features.
      low, high: F values each.
      limit: a run may be outside of a range by this part of the range's width (`parts_outside`).
    """

    runs: int
    features: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    limit: float

    def outside(self, means: NDArray[np.floating]) -> Outside | None:
        """Return by which feature a run is outside of the ranges; None for a run within the limit.

        Args:
          means: float [F], the means of its windows.
        """
        import numpy as np

        parts = parts_outside(means, np.array(self.low), np.array(self.high))
        worst = int(parts.argmax())
        if not parts[worst] > self.limit:
            return None
        value, low, high = (float(f"{number:.6g}") for number in (means[worst], self.low[worst], self.high[worst]))
        return Outside(self.features[worst], value, low, high)


def parts_outside(
    means: NDArray[np.floating], low: NDArray[np.floating], high: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return how far values are outside of ranges, float64 [..., F]: in widths of the range, 0 inside.

    The width of a range of one value is that value's size, at least 1.

    Args:
      means: float [..., F].
      low, high: float [..., F].
    """
    import numpy as np

    widths = np.where(high > low, high - low, np.maximum(np.abs(low), 1.0))
    beyond: NDArray[np.float64] = np.maximum(np.maximum(low - means, means - high), 0.0) / widths
    return beyond


def check_ranges(ranges: LearnedRanges, features: Sequence[str]) -> str:
    """Return what is wrong with ranges for a model of these features; "" where nothing is."""
    if ranges.features != tuple(features):
        return f"ranges of {len(ranges.features)} features, but the model has {len(features)}, or others"
    if not len(ranges.low) == len(ranges.high) == len(features):
        return "want a low and a high of each feature"
    if any(low > high for low, high in zip(ranges.low, ranges.high, strict=True)):
        return "a low is above its high"
    return "" if ranges.limit >= 0 else "the limit of the ranges is negative"


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
    likely = max(
        rules.classes, key=lambda class_name: probabilities[class_name]
    )  # of equal ones the first, as `class_of`
    cause = likely if possible == (likely,) else UNKNOWN
    return Verdict(
        cause,
        probabilities[likely],
        {class_name: probabilities[class_name] for class_name in rules.classes},
        possible,
        rules.coverage,
        name,
        group.runs,
        group.base_rate,
        _RETRY.get(cause, "unsure"),
        outside,
    )


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
