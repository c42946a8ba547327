"""The gate decides whether a candidate may be pushed: every check must have its figures and pass.

Pure function of the figures. A missing figure is a reason against, never a pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeGuard

import numpy as np

from ciml.errors import CimlError
from ciml.serving.registry import Decision
from ciml.training.evaluation.baselines import NUMBERS
from ciml.training.evaluation.metrics import paired_interval

#: Whether a check passed, the reason against the candidate if not, and the reason in its favour, "" for none.
Check = tuple[bool, str, str]


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
    checks = list(_checks(candidate, policy, has_champion))
    against = tuple(reason for passed, reason, _ in checks if not passed)
    evaluation = candidate.get("evaluation") or {}
    figures = {name: evaluation.get(name) for name in ("accuracy", "base_rate")}
    figures |= {name: candidate[name] for name in ("verdicts",) if name in candidate}
    figures |= {name: candidate.get(name) for name in ("baselines", *(("champion", "comparison") * has_champion))}
    return Decision(not against, against or tuple(reason for _, _, reason in checks if reason), figures)


def _checks(candidate: Mapping[str, Any], policy: GatePolicy, has_champion: bool) -> Iterator[Check]:
    evaluation = candidate.get("evaluation") or {}
    yield from _check_runs(evaluation, candidate, policy)
    yield _check_base_rate(evaluation, policy)
    yield from _check_baselines(candidate.get("baselines"), policy)
    if "verdicts" in candidate:
        yield _check_decided(candidate["verdicts"], policy)
    limits = (
        ("disagreement", "the exported model differs from the trained one by {}", policy.max_disagreement),
        ("latency_ms", "one run takes {} ms", policy.max_latency_ms),
    )
    for name, text, limit in limits:
        value = candidate.get(name)
        shown = f"{value:.3g}" if _number(value) else "an unknown amount"
        unit = " ms" if name.endswith("_ms") else ""
        passed = _number(value) and value <= limit
        yield passed, f"{text.format(shown)}, at most {limit:g}{unit} is allowed", ""
    if has_champion:
        yield _check_champion(candidate.get("comparison"), policy)
    else:
        yield True, "", "no champion to compare with"


def _check_runs(evaluation: Mapping[str, Any], candidate: Mapping[str, Any], policy: GatePolicy) -> Iterator[Check]:
    runs = evaluation.get("runs") or 0
    few = f"{runs} held-out runs are too few; at least {policy.min_test_runs} are needed"
    yield runs >= policy.min_test_runs, few, ""
    yield evaluation.get("finite") is True, "some probabilities are not finite", ""
    counts = candidate.get("class_counts") or {}
    poor = [name for name, count in counts.items() if count < policy.min_class_runs]
    missing = "the number of training runs by class is missing"
    yield bool(counts) and not poor, f"too few training runs of {', '.join(poor)}" if counts else missing, ""


def _check_base_rate(evaluation: Mapping[str, Any], policy: GatePolicy) -> Check:
    accuracy = _numbers(evaluation.get("accuracy"), "value", "low")
    base = _numbers(evaluation.get("base_rate"), "value")
    if accuracy is None or base is None:
        return False, "the accuracy or the base rate is missing", ""
    value, low = accuracy
    (rate,) = base
    text = f"accuracy {value:.3f} (at least {low:.3f})"
    beaten = f"{text} beats the base rate {rate:.3f}"
    return low > rate + policy.above_base_rate, f"{text} does not beat the base rate {rate:.3f}", beaten


def _check_baselines(baselines: Any, policy: GatePolicy) -> Iterator[Check]:
    """Check that no number alone predicts better: beyond noise, or perhaps by more than the tolerance."""
    if not isinstance(baselines, Mapping):
        yield False, "the one-number baselines are missing", ""
        return
    if not baselines:
        yield True, "", "no number of the runs to compare with"
    for number, baseline in baselines.items():
        comparison = (baseline.get("comparison") if isinstance(baseline, Mapping) else None) or {}
        figures = _numbers(comparison, "difference", "low")
        share = _numbers(baseline, "value")
        _, high = comparison.get("interval") or (None, None)
        if figures is None or share is None or not _number(high):
            yield False, f"the comparison with the {number} alone lacks figures", ""
            continue
        difference, low = figures
        against = f"{difference:+.3f} against the {number} alone ({share[0]:.3f})"
        text = f"{against} on the same {comparison.get('runs')} runs (at least {low:+.3f})"
        worse = f"{text}: may be worse by more than {policy.baseline_tolerance:g}"
        reason = f"{text}: one number beats it" if high < 0 else worse
        passed = high >= 0 and low >= -policy.baseline_tolerance
        if number in policy.accept_baselines and not passed:
            passed = True
            text += f" (one number beats it, and the policy accepts that of {number})"
        yield passed, reason, text


def _check_decided(verdicts: Any, policy: GatePolicy) -> Check:
    abstained = _numbers((verdicts or {}).get("abstained"), "value", "runs")
    if abstained is None:
        return False, "the share of abstentions is missing", ""
    share, runs = abstained
    text = f"it decides {round((1 - share) * runs)} of {runs} held-out runs ({1 - share:.3f})"
    return 1 - share >= policy.min_decided, f"{text}; at least {policy.min_decided:g} are needed", text


def _check_champion(comparison: Any, policy: GatePolicy) -> Check:
    if comparison is None:
        missing = "the champion could not be evaluated on the same runs, so no comparison is possible"
        return False, missing, ""
    figures = _numbers(comparison, "difference", "low")
    if figures is None:
        return False, "the comparison with the champion lacks figures", ""
    difference, low = figures
    text = f"{difference:+.3f} against the champion on the same {comparison.get('runs')} runs (at least {low:+.3f})"
    return low >= -policy.tolerance, f"{text}: may be worse by more than {policy.tolerance:g}", text


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


def _numbers(figures: Any, *names: str) -> list[Any] | None:
    """Return these figures; None if one is missing or not a finite number."""
    values = [figures.get(name) if isinstance(figures, Mapping) else None for name in names]
    return values if all(map(_number, values)) else None
