"""The gate decides whether a candidate may be pushed: every check must have its figures and pass.

`decide` is a pure function of the figures. A missing figure is a reason against the candidate, never a pass. `compare`
computes the figures of two models on the same runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from ciml.errors import CimlError
from ciml.serving.registry import Decision
from ciml.training.evaluation.baselines import NUMBERS
from ciml.training.evaluation.metrics import paired_interval


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
          CimlError: ``accept_baselines`` names an unknown number.
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
        - ``baselines``: by number its accuracy on the same runs, and the ``comparison`` of `compare`; {} if the runs
          have no number;
        - ``verdicts``, only of a model of verdicts: `ciml.training.evaluation.candidate.verdict_figures`;
        - ``disagreement``: largest difference between the exported model and the one in memory;
        - ``latency_ms``;
        - ``champion`` and ``comparison``, only with a champion: its ``accuracy`` on the same runs, and `compare`; both
          None if it could not be evaluated.
      policy: the thresholds.
      has_champion: whether a model is served now.
    """
    if candidate is None:
        return Decision(False, ("the candidate was not evaluated",))
    checks = list(_checks(candidate, policy, has_champion))
    against = tuple(check.against for check in checks if not check.passed)
    in_favour = tuple(check.in_favour for check in checks if check.in_favour)
    evaluation = candidate.get("evaluation") or {}
    figures = {"accuracy": evaluation.get("accuracy"), "base_rate": evaluation.get("base_rate")}
    if "verdicts" in candidate:
        figures["verdicts"] = candidate["verdicts"]
    figures["baselines"] = candidate.get("baselines")
    if has_champion:
        figures |= {"champion": candidate.get("champion"), "comparison": candidate.get("comparison")}
    return Decision(not against, against or in_favour, figures)


class _Check(NamedTuple):
    """The result of a check.

    Attributes:
      passed: whether it passed.
      against: the reason against the candidate, if it did not.
      in_favour: the reason in favour of the candidate, if it did; "" for none.
    """

    passed: bool
    against: str
    in_favour: str = ""


def _checks(candidate: Mapping[str, Any], policy: GatePolicy, has_champion: bool) -> Iterator[_Check]:
    evaluation = candidate.get("evaluation") or {}
    yield from _check_runs(evaluation, candidate, policy)
    yield _check_base_rate(evaluation, policy)
    yield from _check_baselines(candidate.get("baselines"), policy)
    if "verdicts" in candidate:
        yield _check_decided(candidate["verdicts"], policy)
    difference = candidate.get("disagreement")
    yield _Check(
        _is_number(difference) and difference <= policy.max_disagreement,
        f"the exported model differs from the trained one by {_shown(difference)}, "
        f"at most {policy.max_disagreement:g} is allowed",
    )
    latency_ms = candidate.get("latency_ms")
    yield _Check(
        _is_number(latency_ms) and latency_ms <= policy.max_latency_ms,
        f"one run takes {_shown(latency_ms)} ms, at most {policy.max_latency_ms:g} ms is allowed",
    )
    if has_champion:
        yield _check_champion(candidate.get("comparison"), policy)
    else:
        yield _Check(True, "", "no champion to compare with")


def _check_runs(evaluation: Mapping[str, Any], candidate: Mapping[str, Any], policy: GatePolicy) -> Iterator[_Check]:
    runs = evaluation.get("runs") or 0
    too_few = f"{runs} held-out runs are too few; at least {policy.min_test_runs} are needed"
    yield _Check(runs >= policy.min_test_runs, too_few)
    yield _Check(evaluation.get("finite") is True, "some probabilities are not finite")
    counts = candidate.get("class_counts") or {}
    if not counts:
        yield _Check(False, "the number of training runs by class is missing")
        return
    rare_classes = [name for name, count in counts.items() if count < policy.min_class_runs]
    yield _Check(not rare_classes, f"too few training runs of {', '.join(rare_classes)}")


def _check_base_rate(evaluation: Mapping[str, Any], policy: GatePolicy) -> _Check:
    accuracy = _numbers(evaluation.get("accuracy"), "value", "low")
    base = _numbers(evaluation.get("base_rate"), "value")
    if accuracy is None or base is None:
        return _Check(False, "the accuracy or the base rate is missing")
    value, low = accuracy
    (rate,) = base
    text = f"accuracy {value:.3f} (at least {low:.3f})"
    return _Check(
        low > rate + policy.above_base_rate,
        f"{text} does not beat the base rate {rate:.3f}",
        f"{text} beats the base rate {rate:.3f}",
    )


def _check_baselines(baselines: Any, policy: GatePolicy) -> Iterator[_Check]:
    """Compare the candidate with each one-number baseline.

    It fails if a number alone predicts better with confidence, or may predict better by more than the tolerance.
    """
    if not isinstance(baselines, Mapping):
        yield _Check(False, "the one-number baselines are missing")
        return
    if not baselines:
        yield _Check(True, "", "no number of the runs to compare with")
    for number, baseline in baselines.items():
        comparison = (baseline.get("comparison") if isinstance(baseline, Mapping) else None) or {}
        figures = _numbers(comparison, "difference", "low")
        share = _numbers(baseline, "value")
        _, high = comparison.get("interval") or (None, None)
        if figures is None or share is None or not _is_number(high):
            yield _Check(False, f"the comparison with the {number} alone lacks figures")
            continue
        difference, low = figures
        against = f"{difference:+.3f} against the {number} alone ({share[0]:.3f})"
        text = f"{against} on the same {comparison.get('runs')} runs (at least {low:+.3f})"
        if high >= 0 and low >= -policy.baseline_tolerance:
            yield _Check(True, "", text)
        elif number in policy.accept_baselines:
            yield _Check(True, "", f"{text} (one number beats it, and the policy accepts that of {number})")
        elif high < 0:
            yield _Check(False, f"{text}: one number beats it")
        else:
            yield _Check(False, f"{text}: may be worse by more than {policy.baseline_tolerance:g}")


def _check_decided(verdicts: Any, policy: GatePolicy) -> _Check:
    abstained = _numbers((verdicts or {}).get("abstained"), "value", "runs")
    if abstained is None:
        return _Check(False, "the share of abstentions is missing")
    share, runs = abstained
    text = f"it decides {round((1 - share) * runs)} of {runs} held-out runs ({1 - share:.3f})"
    return _Check(1 - share >= policy.min_decided, f"{text}; at least {policy.min_decided:g} are needed", text)


def _check_champion(comparison: Any, policy: GatePolicy) -> _Check:
    if comparison is None:
        return _Check(False, "the champion could not be evaluated on the same runs, so no comparison is possible")
    figures = _numbers(comparison, "difference", "low")
    if figures is None:
        return _Check(False, "the comparison with the champion lacks figures")
    difference, low = figures
    text = f"{difference:+.3f} against the champion on the same {comparison.get('runs')} runs (at least {low:+.3f})"
    return _Check(low >= -policy.tolerance, f"{text}: may be worse by more than {policy.tolerance:g}", text)


def _shown(value: Any) -> str:
    return f"{value:.3g}" if _is_number(value) else "an unknown amount"


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(figures: Any, *names: str) -> list[Any] | None:
    """Return these figures; None if one is missing or not a finite number."""
    values = [figures.get(name) if isinstance(figures, Mapping) else None for name in names]
    return values if all(map(_is_number, values)) else None


def compare(
    candidate_right: np.ndarray, champion_right: np.ndarray, *, confidence: float = 0.8, samples: int = 2000
) -> dict[str, Any]:
    """Compare two models on the same runs (paired).

    Args:
      candidate_right: bool [n], whether the candidate was right on each run.
      champion_right: bool [n], the same for the champion.
      confidence: of the one-sided lower bound.
      samples: of the bootstrap, whose seed is fixed.

    Returns:
      ``difference`` of the accuracies, its lower bound ``low``, its 95 % ``interval`` [low, high]
      (`ciml.training.evaluation.metrics.paired_interval`), ``runs``, ``only_candidate`` and ``only_champion``
      (runs that only one model got right), and ``mcnemar``, the exact two-sided p-value of those two numbers.

    Raises:
      ValueError: if the lengths differ.
    """
    if candidate_right.shape != champion_right.shape:
        raise ValueError(f"{candidate_right.shape} answers of the candidate, {champion_right.shape} of the champion")
    n = len(candidate_right)
    if n == 0:
        undefined = dict.fromkeys(("difference", "low", "interval", "mcnemar"))
        return {**undefined, "runs": 0, "only_candidate": 0, "only_champion": 0}
    steps = candidate_right.astype(np.int64) - champion_right.astype(np.int64)
    better = int((steps > 0).sum())
    worse = int((steps < 0).sum())
    # The mean of a resample depends only on the number of times that -1, 0 and 1 are drawn.
    draws = np.random.default_rng(0).multinomial(n, [worse / n, 1 - (better + worse) / n, better / n], size=samples)
    low = float(np.quantile((draws[:, 2] - draws[:, 0]) / n, 1 - confidence))
    return {
        "difference": (better - worse) / n,
        "low": low,
        "interval": list(paired_interval(candidate_right, champion_right)),
        "runs": n,
        "only_candidate": better,
        "only_champion": worse,
        "mcnemar": _mcnemar(better, worse),
    }


def _mcnemar(better: int, worse: int) -> float:
    """Compute the exact two-sided p-value of McNemar's test."""
    total = better + worse
    tail = sum(math.comb(total, k) for k in range(min(better, worse) + 1)) / 2**total
    return min(1.0, float(2 * tail))
