"""The gate decides whether a candidate may be pushed: every check must have its figures and pass.

Pure function of the figures. A missing figure is a reason against, never a pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeGuard

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
        """Return the policy with those thresholds that are given.

        Raises:
          CimlError: ``accept_baselines`` names an unknown number.
        """
        accepted = tuple(accept_baselines)
        if unknown := sorted(set(accepted) - set(NUMBERS)):
            raise CimlError(f"accept_baselines: unknown number {unknown[0]!r:.60}; choose from {', '.join(NUMBERS)}")
        limits = {"min_test_runs": min_test_runs, "tolerance": tolerance, "min_decided": min_decided}
        thresholds: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
        return cls(accept_baselines=accepted, **thresholds)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def decide(candidate: Mapping[str, Any] | None, policy: GatePolicy, *, has_champion: bool) -> Decision:
    """Decide on a candidate.

    Args:
      candidate: ``evaluation`` (of `ciml.training.evaluation.metrics.evaluate`), ``class_counts`` (training runs by
        class), ``baselines`` (by number its accuracy on the same runs, and ``comparison`` of `compare`; {} where the
        runs have no number), ``verdicts`` of a model of verdicts
        (`ciml.training.evaluation.candidate.verdict_figures`), ``disagreement`` (largest difference of the exported
        model to the one in memory), ``latency_ms``, and, if there is a champion, ``champion`` (its ``accuracy`` on the
        same runs) and ``comparison`` (of `compare`), None if it could not be evaluated.
      policy: the thresholds.
      has_champion: whether a model is served now.
    """
    if candidate is None:
        return Decision(False, ("the candidate was not evaluated",))
    against: list[str] = []
    in_favour: list[str] = []
    evaluation = candidate.get("evaluation") or {}
    figures = {
        "accuracy": evaluation.get("accuracy"),
        "base_rate": evaluation.get("base_rate"),
        "baselines": candidate.get("baselines"),
    }

    def check(good: bool, why_not: str, why: str = "") -> None:
        if not good:
            against.append(why_not)
        elif why:
            in_favour.append(why)

    _check_runs(evaluation, candidate, policy, check)
    _check_base_rate(evaluation, policy, check)
    _check_baselines(candidate.get("baselines"), policy, check)
    if "verdicts" in candidate:
        figures["verdicts"] = candidate["verdicts"]
        _check_decided(candidate["verdicts"], policy, check)
    disagreement = candidate.get("disagreement")
    latency = candidate.get("latency_ms")
    check(
        _number(disagreement) and disagreement <= policy.max_disagreement,
        f"the exported model differs from the trained one by {_show(disagreement)}, "
        f"at most {policy.max_disagreement:g} is allowed",
    )
    check(
        _number(latency) and latency <= policy.max_latency_ms,
        f"one run takes {_show(latency)} ms, at most {policy.max_latency_ms:g} ms is allowed",
    )
    if has_champion:
        figures |= {name: candidate.get(name) for name in ("champion", "comparison")}
        _check_champion(candidate.get("comparison"), policy, check)
    else:
        in_favour.append("no champion to compare with")
    blessed = not against
    return Decision(blessed, tuple(in_favour if blessed else against), figures)


def _check_runs(evaluation: Mapping[str, Any], candidate: Mapping[str, Any], policy: GatePolicy, check: Any) -> None:
    runs = evaluation.get("runs") or 0
    check(runs >= policy.min_test_runs, f"{runs} held-out runs are too few; at least {policy.min_test_runs} are needed")
    check(evaluation.get("finite") is True, "some probabilities are not finite")
    counts = candidate.get("class_counts") or {}
    poor = [name for name, count in counts.items() if count < policy.min_class_runs]
    check(
        bool(counts) and not poor,
        f"too few training runs of {', '.join(poor)}" if counts else "the number of training runs by class is missing",
    )


def _check_base_rate(evaluation: Mapping[str, Any], policy: GatePolicy, check: Any) -> None:
    accuracy = evaluation.get("accuracy") or {}
    base = evaluation.get("base_rate") or {}
    low = accuracy.get("low")
    rate = base.get("value")
    if not (_number(low) and _number(rate) and _number(accuracy.get("value"))):
        check(False, "the accuracy or the base rate is missing")
        return
    text = f"accuracy {accuracy['value']:.3f} (at least {low:.3f})"
    required = rate + policy.above_base_rate
    check(low > required, f"{text} does not beat the base rate {rate:.3f}", f"{text} beats the base rate {rate:.3f}")


def _check_baselines(baselines: Any, policy: GatePolicy, check: Any) -> None:
    """Check that no number alone predicts better: beyond noise, or perhaps by more than the tolerance."""
    if not isinstance(baselines, Mapping):
        check(False, "the one-number baselines are missing")
        return
    if not baselines:
        check(True, "", "no number of the runs to compare with")
    for number, baseline in baselines.items():
        comparison = baseline.get("comparison") if isinstance(baseline, Mapping) else None
        figures = comparison if isinstance(comparison, Mapping) else {}
        difference = figures.get("difference")
        low = figures.get("low")
        _, high = figures.get("interval") or (None, None)
        if not (_number(difference) and _number(low) and _number(high) and _number(baseline.get("value"))):
            check(False, f"the comparison with the {number} alone lacks figures")
            continue
        runs = figures.get("runs")
        share = baseline["value"]
        text = (
            f"{difference:+.3f} against the {number} alone ({share:.3f}) on the same {runs} runs (at least {low:+.3f})"
        )
        is_beaten = high < 0
        may_be_worse = low < -policy.baseline_tolerance
        if number in policy.accept_baselines:
            accepted = f" (one number beats it, and the policy accepts that of {number})"
            check(True, "", text + accepted * (is_beaten or may_be_worse))
        elif is_beaten:
            check(False, f"{text}: one number beats it")
        else:
            check(not may_be_worse, f"{text}: may be worse by more than {policy.baseline_tolerance:g}", text)


def _check_decided(verdicts: Any, policy: GatePolicy, check: Any) -> None:
    abstained = (verdicts or {}).get("abstained") or {}
    share = abstained.get("value")
    runs = abstained.get("runs")
    if not _number(share) or not _number(runs):
        check(False, "the share of abstentions is missing")
        return
    text = f"it decides {round((1 - share) * runs)} of {runs} held-out runs ({1 - share:.3f})"
    check(1 - share >= policy.min_decided, f"{text}; at least {policy.min_decided:g} are needed", text)


def _check_champion(comparison: Mapping[str, Any] | None, policy: GatePolicy, check: Any) -> None:
    if comparison is None:
        check(False, "the champion could not be evaluated on the same runs, so no comparison is possible")
        return
    low = comparison.get("low")
    difference = comparison.get("difference")
    if not _number(low) or not _number(difference):
        check(False, "the comparison with the champion lacks figures")
        return
    text = f"{difference:+.3f} against the champion on the same {comparison.get('runs')} runs (at least {low:+.3f})"
    check(low >= -policy.tolerance, f"{text}: may be worse by more than {policy.tolerance:g}", text)


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
        return {
            "difference": None,
            "low": None,
            "interval": None,
            "runs": 0,
            "only_candidate": 0,
            "only_champion": 0,
            "mcnemar": None,
        }
    steps = candidate_right.astype(np.int64) - champion_right.astype(np.int64)
    better = int((steps > 0).sum())
    worse = int((steps < 0).sum())
    # the mean of a resample depends only on how often -1, 0 and 1 are drawn
    drawn = np.random.default_rng(0).multinomial(n, [worse / n, 1 - (better + worse) / n, better / n], size=samples)
    low = float(np.quantile((drawn[:, 2] - drawn[:, 0]) / n, 1 - confidence))
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
    """Return the exact two-sided p-value of McNemar's test."""
    total = better + worse
    less = min(better, worse)
    tail = sum(math.comb(total, k) for k in range(less + 1)) / 2**total
    return min(1.0, float(2 * tail))


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _show(value: Any) -> str:
    return f"{value:.3g}" if _number(value) else "an unknown amount"
