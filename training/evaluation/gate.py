"""The gate decides whether a candidate may be pushed: every check must have its figures and pass.

`decide` is a pure function of the figures. A missing or malformed figure is a reason against the candidate, never a
pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeGuard

from ciml.errors import CimlError
from ciml.serving.registry import Decision
from ciml.training.evaluation.baselines import NUMBERS


@dataclass(frozen=True)
class GatePolicy:
    """The gate's thresholds.

    Attributes:
      min_test_runs: least number of held-out runs.
      min_class_runs: least number of training runs of each class: an unseen class is never predicted.
      above_base_rate: least margin of the accuracy's lower bound above the base rate.
      tolerance: accepted loss of accuracy against the champion on the same held-out runs.
      baseline_tolerance: the same against each one-number baseline.
      confidence: of the one-sided bound on these losses. A candidate is rejected if it *may* be worse by more than the
        tolerance.
      accept_baselines: names of numbers (`ciml.training.evaluation.baselines.NUMBERS`) that may predict better than the
        candidate.
      min_decided: least share of held-out runs that a model of verdicts decides; on the others it abstains.
      max_disagreement: largest difference of any probability between the exported model and the one in memory.
      max_latency_ms: largest median latency of a call for one run, milliseconds.
    """

    min_test_runs: int = 20
    min_class_runs: int = 1
    above_base_rate: float = 0.0
    tolerance: float = 0.05
    baseline_tolerance: float = 0.05
    confidence: float = 0.8
    accept_baselines: tuple[str, ...] = ()
    min_decided: float = 0.2
    max_disagreement: float = 1e-5
    max_latency_ms: float = 50.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):  # every comparison with NaN would pass
                raise CimlError(f"{name}: expected a finite number")

    @classmethod
    def of(
        cls,
        min_test_runs: int | None = None,
        tolerance: float | None = None,
        accept_baselines: Iterable[str] = (),
        min_decided: float | None = None,
    ) -> GatePolicy:
        """Return a policy; thresholds that are None have their default.

        Raises:
          CimlError: ``accept_baselines`` names an unknown number, or a threshold is not finite.
        """
        accepted = tuple(accept_baselines)
        unknown = sorted(set(accepted) - set(NUMBERS))
        if unknown:
            raise CimlError(f"accept_baselines: unknown number {unknown[0]!r:.60}; choose from {', '.join(NUMBERS)}")
        return cls(
            min_test_runs=cls.min_test_runs if min_test_runs is None else min_test_runs,
            tolerance=cls.tolerance if tolerance is None else tolerance,
            min_decided=cls.min_decided if min_decided is None else min_decided,
            accept_baselines=accepted,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def decide(candidate: Mapping[str, Any] | None, policy: GatePolicy, *, has_champion: bool) -> Decision:
    """Decide on a candidate.

    Args:
      candidate: the figures of `ciml.training.evaluation.candidate.assess`:

        - ``evaluation``, of `ciml.training.evaluation.metrics.evaluate`;
        - ``class_counts``: training runs by class;
        - ``baselines``: by number its accuracy on the same runs, and the ``comparison`` of
          `ciml.training.evaluation.metrics.compare`; {} if the runs have no number;
        - ``verdicts``, only of a model of verdicts: `ciml.training.evaluation.candidate.verdict_figures`;
        - ``disagreement``: largest difference between the exported model and the one in memory;
        - ``latency_ms``;
        - ``champion`` and ``comparison``, only with a champion: its ``accuracy`` on the same runs, and the comparison
          with it; both None if it could not be evaluated.
      policy: the thresholds.
      has_champion: whether a model is served now.
    """
    if candidate is None:
        return Decision(False, ("the candidate was not evaluated",))
    checks = list(_checks(candidate, policy, has_champion))
    against = tuple(check.reason for check in checks if not check.passed)
    in_favour = tuple(check.reason for check in checks if check.passed and check.reason)
    evaluation = candidate.get("evaluation")
    figures = {name: _field(evaluation, name) for name in ("accuracy", "base_rate")}
    if "verdicts" in candidate:
        figures["verdicts"] = candidate["verdicts"]
    figures["baselines"] = candidate.get("baselines")
    if has_champion:
        figures |= {"champion": candidate.get("champion"), "comparison": candidate.get("comparison")}
    return Decision(not against, against or in_favour, figures)


class _Check(NamedTuple):
    """The result of a check: whether it passed, and the reason for or against the candidate; "" for no reason."""

    passed: bool
    reason: str


def _checks(candidate: Mapping[str, Any], policy: GatePolicy, has_champion: bool) -> Iterator[_Check]:
    evaluation = candidate.get("evaluation")
    yield from _check_data(evaluation, candidate.get("class_counts"), policy)
    yield _check_base_rate(evaluation, policy)
    yield from _check_baselines(candidate.get("baselines"), policy)
    if "verdicts" in candidate:
        yield _check_decided(candidate["verdicts"], policy)
    yield _check_disagreement(candidate.get("disagreement"), policy)
    yield _check_latency(candidate.get("latency_ms"), policy)
    if has_champion:
        yield _check_champion(candidate.get("comparison"), policy)
    else:
        yield _Check(True, "no champion to compare with")


def _check_data(evaluation: Any, class_counts: Any, policy: GatePolicy) -> Iterator[_Check]:
    """Check the number of held-out runs, that all are answered, and the number of training runs of each class."""
    runs = _number(evaluation, "runs") or 0
    if runs < policy.min_test_runs:
        yield _Check(False, f"{runs} held-out runs are too few; at least {policy.min_test_runs} are needed")
    if _field(evaluation, "finite") is not True:
        yield _Check(False, "some probabilities are not finite")
    if not class_counts or not isinstance(class_counts, Mapping):
        yield _Check(False, "the number of training runs by class is missing")
        return
    rare_classes = [name for name in class_counts if (_number(class_counts, name) or 0) < policy.min_class_runs]
    if rare_classes:
        yield _Check(False, f"too few training runs of {', '.join(rare_classes)}")


def _check_base_rate(evaluation: Any, policy: GatePolicy) -> _Check:
    accuracy = _number(_field(evaluation, "accuracy"), "value")
    low = _number(_field(evaluation, "accuracy"), "low")
    base_rate = _number(_field(evaluation, "base_rate"), "value")
    if accuracy is None or low is None or base_rate is None:
        return _Check(False, "the accuracy or the base rate is missing")
    text = f"accuracy {accuracy:.3f} (at least {low:.3f})"
    if low > base_rate + policy.above_base_rate:
        return _Check(True, f"{text} beats the base rate {base_rate:.3f}")
    return _Check(False, f"{text} does not beat the base rate {base_rate:.3f}")


def _check_baselines(baselines: Any, policy: GatePolicy) -> Iterator[_Check]:
    if not isinstance(baselines, Mapping):
        yield _Check(False, "the one-number baselines are missing")
        return
    if not baselines:
        yield _Check(True, "no number of the runs to compare with")
    for number, baseline in baselines.items():
        yield _check_baseline(number, baseline, policy)


def _check_baseline(number: str, baseline: Any, policy: GatePolicy) -> _Check:
    """Check that a number alone neither beats the candidate nor may beat it by more than the tolerance."""
    accuracy = _number(baseline, "value")
    comparison = _Comparison.of(_field(baseline, "comparison"))
    if accuracy is None or comparison is None:
        return _Check(False, f"the comparison with the {number} alone lacks figures")
    text = comparison.text(f"the {number} alone ({accuracy:.3f})")
    if comparison.two_sided_high < 0:
        fault = "one number beats it"
    elif comparison.one_sided_low < -policy.baseline_tolerance:
        fault = f"may be worse by more than {policy.baseline_tolerance:g}"
    else:
        return _Check(True, text)
    if number in policy.accept_baselines:
        return _Check(True, f"{text} ({fault}, and the policy accepts that of {number})")
    return _Check(False, f"{text}: {fault}")


def _check_decided(verdicts: Any, policy: GatePolicy) -> _Check:
    abstained = _number(_field(verdicts, "abstained"), "value")
    runs = _number(_field(verdicts, "abstained"), "runs")
    if abstained is None or runs is None:
        return _Check(False, "the share of abstentions is missing")
    decided = 1 - abstained
    text = f"it decides {round(decided * runs)} of {runs} held-out runs ({decided:.3f})"
    if decided >= policy.min_decided:
        return _Check(True, text)
    return _Check(False, f"{text}; at least {policy.min_decided:g} are needed")


def _check_disagreement(difference: Any, policy: GatePolicy) -> _Check:
    if _is_number(difference) and 0 <= difference <= policy.max_disagreement:
        return _Check(True, "")
    allowed = f"at most {policy.max_disagreement:g} is allowed"
    return _Check(False, f"the exported model differs from the trained one by {_shown(difference)}, {allowed}")


def _check_latency(latency_ms: Any, policy: GatePolicy) -> _Check:
    if _is_number(latency_ms) and 0 <= latency_ms <= policy.max_latency_ms:
        return _Check(True, "")
    return _Check(False, f"one run takes {_shown(latency_ms)} ms, at most {policy.max_latency_ms:g} ms is allowed")


def _check_champion(comparison: Any, policy: GatePolicy) -> _Check:
    if comparison is None:
        return _Check(False, "the champion could not be evaluated on the same runs, so no comparison is possible")
    decoded = _Comparison.of(comparison)
    if decoded is None:
        return _Check(False, "the comparison with the champion lacks figures")
    text = decoded.text("the champion")
    if decoded.one_sided_low < -policy.tolerance:
        return _Check(False, f"{text}: may be worse by more than {policy.tolerance:g}")
    return _Check(True, text)


class _Comparison(NamedTuple):
    """How much more accurate the candidate is than another model: `ciml.training.evaluation.metrics.compare`.

    Attributes:
      difference: the candidate's accuracy minus the other one.
      one_sided_low: its lower bound at the policy's ``confidence``.
      two_sided_high: the upper end of its two-sided 95 % interval.
      runs: number of runs.
    """

    difference: float
    one_sided_low: float
    two_sided_high: float
    runs: float

    @classmethod
    def of(cls, comparison: Any) -> _Comparison | None:
        """Decode a comparison; None if a figure is missing or malformed."""
        difference = _number(comparison, "difference")
        one_sided_low = _number(comparison, "low")
        interval = _field(comparison, "interval")
        high = interval[1] if isinstance(interval, (list, tuple)) and len(interval) == 2 else None
        runs = _number(comparison, "runs")
        if difference is None or one_sided_low is None or runs is None or not _is_number(high):
            return None
        return cls(difference, one_sided_low, high, runs)

    def text(self, other: str) -> str:
        bound = f"at least {self.one_sided_low:+.3f}"
        return f"{self.difference:+.3f} against {other} on the same {self.runs} runs ({bound})"


def _shown(value: Any) -> str:
    return f"{value:.3g}" if _is_number(value) else "an unknown amount"


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _field(figures: Any, name: str) -> Any:
    return figures.get(name) if isinstance(figures, Mapping) else None


def _number(figures: Any, name: str) -> float | None:
    """Return a figure; None if it is missing or not a finite number."""
    value = _field(figures, name)
    return value if _is_number(value) else None
