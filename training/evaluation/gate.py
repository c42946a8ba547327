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
from ciml.training.evaluation.baselines import MAX_MEMORY_RUNS, NUMBERS


@dataclass(frozen=True)
class GatePolicy:
    """The gate's thresholds.

    Attributes:
      min_test_runs: least number of held-out runs.
      min_class_runs: least number of training runs of each class: an unseen class is never predicted.
      above_base_rate: least margin of the accuracy's lower bound above the base rate.
      tolerance: accepted loss of accuracy against the champion on the same held-out runs. On those of each source that
        has ``min_test_runs`` of them, the candidate is rejected if it *is* worse by more, and chance explains that on
        any of the sources in at most a share 1 - ``confidence`` of comparisons.
      baseline_tolerance: the same against each one-number baseline, on the held-out runs that have the number; fewer
        than ``min_test_runs`` are not compared.
      confidence: of the one-sided bound on these losses. A candidate is rejected if it *may* be worse by more than the
        tolerance.
      accept_baselines: names of numbers (`ciml.training.evaluation.baselines.NUMBERS`) that may predict better than the
        candidate.
      slice_level: a candidate is rejected if it is worse than the champion on a job, a provider or an age of runs, and
        chance explains that in at most this share of comparisons; 0 for no such check.
      brier_tolerance: accepted loss of the Brier score against the champion, with the same ``confidence``.
      max_miscalibration: largest calibration error beyond that which chance explains.
      min_agreement: least share of held-out runs on which a model of another seed agrees; 0 trains no such model.
      min_decided: least share of held-out runs that a model of verdicts decides; on the others it abstains.
      coverage_level: such a model is rejected if its sets hold the class of fewer runs than stated, and chance, in the
        calibration runs and in the held-out runs, explains that in at most this share of tests; 0 for no such check.
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
    slice_level: float = 0.05
    brier_tolerance: float = 0.05
    max_miscalibration: float = 0.15
    min_agreement: float = 0.7
    min_decided: float = 0.2
    coverage_level: float = 0.01
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
        min_agreement: float | None = None,
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
            min_agreement=cls.min_agreement if min_agreement is None else min_agreement,
            accept_baselines=accepted,
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "accept_baselines": list(self.accept_baselines)}


def decide(candidate: Mapping[str, Any] | None, policy: GatePolicy, *, has_champion: bool) -> Decision:
    """Decide on a candidate.

    Args:
      candidate: the figures of `ciml.training.evaluation.candidate.assess`:

        - ``evaluation``, of `ciml.training.evaluation.metrics.evaluate`;
        - ``class_counts``: training runs by class;
        - ``baselines``: by number its accuracy on the same runs, and the ``comparison`` of
          `ciml.training.evaluation.paired.compare`; {} if the runs have no number;
        - ``verdicts``, only of a model of verdicts: `ciml.training.evaluation.candidate.verdict_figures`;
        - ``disagreement``: largest difference between the exported model and the one in memory;
        - ``latency_ms``;
        - ``stability``, of `ciml.training.evaluation.candidate.stability`;
        - ``cross_validated``, only with too few held-out runs: ``accuracy`` and ``base_rate`` of all runs;
        - ``champion`` and ``comparison``, only with a champion: its ``accuracy`` on the same runs, and the comparison
          with it; both None if it could not be evaluated.
      policy: the thresholds.
      has_champion: whether a model is served now.
    """
    if candidate is None:
        return Decision(False, ("the candidate was not evaluated",))
    checks = list(_checks(candidate, policy, has_champion))
    against = tuple(check.reason for check in checks if not check.passed)
    in_favour = tuple(check.reason for check in checks if check.passed and check.in_favour)
    evaluation = candidate.get("evaluation")
    figures = {name: _field(evaluation, name) for name in ("accuracy", "base_rate")}
    if "verdicts" in candidate:
        figures["verdicts"] = candidate["verdicts"]
    figures["baselines"] = candidate.get("baselines")
    if has_champion:
        figures |= {"champion": candidate.get("champion"), "comparison": candidate.get("comparison")}
    figures["checks"] = [{"check": check.name, "passed": check.passed, "reason": check.reason} for check in checks]
    return Decision(not against, against or in_favour, figures)


class _Check(NamedTuple):
    """The result of a check.

    Attributes:
      name: what was checked.
      passed: whether it passed.
      reason: its figures.
      in_favour: whether a pass is a reason for the candidate, and not only nothing against it.
    """

    name: str
    passed: bool
    reason: str
    in_favour: bool = False


def _checks(candidate: Mapping[str, Any], policy: GatePolicy, has_champion: bool) -> Iterator[_Check]:
    evaluation = candidate.get("evaluation")
    yield from _check_data(candidate, policy)
    yield _check_base_rate(evaluation, policy)
    yield from _check_baselines(candidate.get("baselines"), policy)
    yield _check_calibration(evaluation, policy)
    if "verdicts" in candidate:
        yield _check_decided(candidate["verdicts"], policy)
        if policy.coverage_level > 0:
            yield _check_coverage(candidate["verdicts"], policy)
    yield _check_disagreement(candidate.get("disagreement"), policy)
    yield _check_latency(candidate.get("latency_ms"), policy)
    if policy.min_agreement > 0:
        yield _check_stability(candidate.get("stability"), policy)
    if has_champion:
        yield from _check_champion(candidate.get("comparison"), policy)
    else:
        yield _Check("champion", True, "no champion to compare with", in_favour=True)


def _check_data(candidate: Mapping[str, Any], policy: GatePolicy) -> Iterator[_Check]:
    """Check the number of held-out runs, that all are answered, and the number of training runs of each class."""
    evaluation = candidate.get("evaluation")
    runs = _number(evaluation, "runs") or 0
    missing = policy.min_test_runs - runs
    text = f"{runs} held-out runs are too few; at least {policy.min_test_runs} are needed, {missing} more"
    if missing > 0:
        yield _Check("held-out runs", False, text + _cross_validated(candidate.get("cross_validated")))
    else:
        yield _Check("held-out runs", True, f"{runs}, at least {policy.min_test_runs} are needed")
    if _field(evaluation, "finite") is not True:
        yield _Check("answers", False, "some probabilities are not finite")
    class_counts = candidate.get("class_counts")
    if not class_counts or not isinstance(class_counts, Mapping):
        yield _Check("classes", False, "the number of training runs by class is missing")
        return
    rare_classes = [name for name in class_counts if (_number(class_counts, name) or 0) < policy.min_class_runs]
    if rare_classes:
        yield _Check("classes", False, f"too few training runs of {', '.join(rare_classes)}")
    else:
        counts = ", ".join(f"{count} of {name}" for name, count in class_counts.items())
        yield _Check("classes", True, f"training runs: {counts}")


def _cross_validated(figures: Any) -> str:
    """Return what a cross-validation of all runs shows, for a candidate with too few held-out runs."""
    accuracy, low, high = (_number(_field(figures, "accuracy"), name) for name in ("value", "low", "high"))
    base_rate = _number(_field(figures, "base_rate"), "value")
    runs = _number(_field(figures, "accuracy"), "runs")
    if accuracy is None or low is None or high is None or base_rate is None or runs is None:
        return ""
    return (
        f"; cross-validated over {runs} runs, its accuracy is {accuracy:.3f} ({low:.3f} to {high:.3f}), "
        f"the base rate {base_rate:.3f}"
    )


def _check_base_rate(evaluation: Any, policy: GatePolicy) -> _Check:
    accuracy = _number(_field(evaluation, "accuracy"), "value")
    low = _number(_field(evaluation, "accuracy"), "low")
    base_rate = _number(_field(evaluation, "base_rate"), "value")
    if accuracy is None or low is None or base_rate is None:
        return _Check("base rate", False, "the accuracy or the base rate is missing")
    text = f"accuracy {accuracy:.3f} (at least {low:.3f}{_by_changes(evaluation)})"
    if low > base_rate + policy.above_base_rate:
        return _Check("base rate", True, f"{text} beats the base rate {base_rate:.3f}", in_favour=True)
    return _Check("base rate", False, f"{text} does not beat the base rate {base_rate:.3f}")


def _check_baselines(baselines: Any, policy: GatePolicy) -> Iterator[_Check]:
    if not isinstance(baselines, Mapping):
        yield _Check("one number", False, "the one-number baselines are missing")
        return
    if not baselines:
        yield _Check("one number", True, "no number of the runs to compare with", in_favour=True)
    for number, baseline in baselines.items():
        yield _check_baseline(number, baseline, policy)


def _check_baseline(number: str, baseline: Any, policy: GatePolicy) -> _Check:
    """Check that a number alone neither beats the candidate nor may beat it by more than the tolerance."""
    name = "one number"
    accuracy = _number(baseline, "value")
    comparison = _Comparison.of(_field(baseline, "comparison"))
    if accuracy is None or comparison is None:
        return _Check(name, False, f"the comparison with the {number} alone lacks figures")
    text = comparison.text(f"the {number} alone ({accuracy:.3f})")
    if comparison.runs < min(policy.min_test_runs, MAX_MEMORY_RUNS):
        return _Check(name, True, f"{text}: too few to compare")
    if comparison.two_sided_high < 0:
        fault = "one number beats it"
    elif comparison.one_sided_low < -policy.baseline_tolerance:
        fault = f"may be worse by more than {policy.baseline_tolerance:g}"
    else:
        return _Check(name, True, text, in_favour=True)
    if number in policy.accept_baselines:
        return _Check(name, True, f"{text} ({fault}, and the policy accepts that of {number})", in_favour=True)
    return _Check(name, False, f"{text}: {fault}")


def _check_calibration(evaluation: Any, policy: GatePolicy) -> _Check:
    calibration = _field(evaluation, "calibration")
    error = _number(calibration, "ece")
    chance = _number(calibration, "chance")
    brier = _number(evaluation, "brier")
    if error is None or chance is None or brier is None:
        return _Check("calibration", False, "the calibration error or the Brier score is missing")
    text = f"calibration error {error:.3f}, of which chance explains {chance:.3f}; Brier score {brier:.3f}"
    if error <= chance + policy.max_miscalibration:
        return _Check("calibration", True, text)
    return _Check("calibration", False, f"{text}: at most {policy.max_miscalibration:g} more is allowed")


def _check_decided(verdicts: Any, policy: GatePolicy) -> _Check:
    abstained = _number(_field(verdicts, "abstained"), "value")
    runs = _number(_field(verdicts, "abstained"), "runs")
    if abstained is None or runs is None:
        return _Check("decided", False, "the share of abstentions is missing")
    decided = 1 - abstained
    text = f"it decides {round(decided * runs)} of {runs} held-out runs ({decided:.3f})"
    if decided >= policy.min_decided:
        return _Check("decided", True, text, in_favour=True)
    return _Check("decided", False, f"{text}; at least {policy.min_decided:g} are needed")


def _check_coverage(verdicts: Any, policy: GatePolicy) -> _Check:
    """Check that the sets do not hold the class of fewer runs than stated, beyond chance."""
    coverage = _field(verdicts, "coverage")
    stated, covered, runs, p = (_number(coverage, name) for name in ("stated", "right", "runs", "p"))
    if stated is None or covered is None or p is None or not runs:
        return _Check("coverage", False, "the coverage of the verdicts is missing")
    text = f"its sets hold the class of {covered} of {runs} held-out runs; {stated:g} is stated"
    if p > policy.coverage_level:
        return _Check("coverage", True, text)
    return _Check("coverage", False, f"{text} (p = {p:.2g})")


def _check_disagreement(difference: Any, policy: GatePolicy) -> _Check:
    allowed = f"at most {policy.max_disagreement:g} is allowed"
    text = f"the exported model differs from the trained one by {_shown(difference)}, {allowed}"
    passed = _is_number(difference) and 0 <= difference <= policy.max_disagreement
    return _Check("export", passed, text)


def _check_latency(latency_ms: Any, policy: GatePolicy) -> _Check:
    text = f"one run takes {_shown(latency_ms)} ms, at most {policy.max_latency_ms:g} ms is allowed"
    return _Check("latency", _is_number(latency_ms) and 0 <= latency_ms <= policy.max_latency_ms, text)


def _check_stability(stability: Any, policy: GatePolicy) -> _Check:
    agreement, agreed, runs = (_number(stability, name) for name in ("value", "right", "runs"))
    if agreement is None or agreed is None or runs is None:
        return _Check("stability", False, "the agreement with a model of another seed is missing")
    text = f"a model of another seed agrees on {agreed} of {runs} held-out runs ({agreement:.3f})"
    if agreement >= policy.min_agreement:
        return _Check("stability", True, text)
    return _Check("stability", False, f"{text}; at least {policy.min_agreement:g} is needed")


def _check_champion(comparison: Any, policy: GatePolicy) -> Iterator[_Check]:
    if comparison is None:
        reason = "the champion could not be evaluated on the same runs, so no comparison is possible"
        yield _Check("champion", False, reason)
        return
    decoded = _Comparison.of(comparison)
    if decoded is None:
        yield _Check("champion", False, "the comparison with the champion lacks figures")
        return
    text = decoded.text("the champion")
    if decoded.one_sided_low < -policy.tolerance:
        yield _Check("champion", False, f"{text}: may be worse by more than {policy.tolerance:g}")
    else:
        yield _Check("champion", True, text, in_favour=True)
    yield _check_sources(_field(comparison, "sources"), policy)
    yield _check_brier(_field(comparison, "brier"), policy)
    if policy.slice_level > 0:
        yield _check_slices(_field(comparison, "slices"), policy)


def _check_sources(sources: Any, policy: GatePolicy) -> _Check:
    """Check the source on which the candidate loses most: a source that lies can hide what another one loses.

    The loss itself counts, not its bound: by its bound, one run of a small source would reject a candidate. By the loss
    alone, one of many small sources would reject a candidate by chance.
    """
    name = "sources"
    if not isinstance(sources, (list, tuple)):
        return _Check(name, False, "the comparison with the champion by source is missing")
    decoded = [source for source in map(_Slice.of, sources) if source is not None]
    if len(decoded) < len(sources):
        return _Check(name, False, "the comparison with the champion by source lacks figures")
    if not decoded:
        return _Check(name, True, "the runs to compare have one source, or none has enough of them")
    beyond_chance = [source for source in decoded if source.p <= 1 - policy.confidence]
    worst = min(beyond_chance or decoded, key=lambda source: source.difference)
    if not beyond_chance or worst.difference >= -policy.tolerance:
        return _Check(name, True, worst.text())
    return _Check(name, False, f"{worst.text()}: worse by more than {policy.tolerance:g}, and beyond chance")


def _check_brier(brier: Any, policy: GatePolicy) -> _Check:
    name = "champion's Brier score"
    difference = _number(brier, "difference")
    high = _number(brier, "high")
    if difference is None or high is None:
        return _Check(name, False, "the comparison with the champion's Brier score is missing")
    text = f"Brier score {difference:+.3f} against the champion (at most {high:+.3f}; less is better)"
    if high <= policy.brier_tolerance:
        return _Check(name, True, text)
    return _Check(name, False, f"{text}: may be worse by more than {policy.brier_tolerance:g}")


def _check_slices(slices: Any, policy: GatePolicy) -> _Check:
    """Check the slice on which the candidate does worst against the champion."""
    name = "slices"
    if not isinstance(slices, (list, tuple)):
        return _Check(name, False, "the comparison with the champion by slice is missing")
    if not slices:
        return _Check(name, True, "no slice of the runs to compare")
    worst = _Slice.of(slices[0])
    if worst is None:
        return _Check(name, False, "the comparison with the champion by slice lacks figures")
    if worst.p > policy.slice_level:
        return _Check(name, True, worst.text())
    return _Check(name, False, f"{worst.text()}: worse beyond chance")


class _Slice(NamedTuple):
    """The candidate and the champion on a slice of the runs: `ciml.training.evaluation.paired.compare_slices`.

    Attributes:
      name: such as ``job windows``.
      runs: number of runs.
      lost, won: runs on which only the champion is right, and only the candidate.
      p: how probable at least so many losses are by chance, corrected for the number of slices.
    """

    name: str
    runs: float
    lost: float
    won: float
    p: float

    @classmethod
    def of(cls, figures: Any) -> _Slice | None:
        """Decode a slice; None if a figure is missing or malformed."""
        runs, lost, won, p = (_number(figures, key) for key in ("runs", "only_champion", "only_candidate", "p"))
        if not runs or lost is None or won is None or p is None:
            return None
        return cls(f"{_field(figures, 'slice')} {_field(figures, 'value')!s:.80}", runs, lost, won, p)

    @property
    def difference(self) -> float:
        """The candidate's accuracy minus that of the champion."""
        return (self.won - self.lost) / self.runs

    def text(self) -> str:
        losses = f"loses {self.lost} and gains {self.won} of {self.runs} runs against the champion"
        return f"on {self.name} it {losses} (p = {self.p:.2g}, corrected)"


class _Comparison(NamedTuple):
    """How much more accurate the candidate is than another model: `ciml.training.evaluation.paired.compare`.

    Attributes:
      difference: the candidate's accuracy minus the other one.
      one_sided_low: its lower bound at the policy's ``confidence``.
      two_sided_high: the upper end of its two-sided 95 % interval.
      runs: number of runs.
      by_changes: how many changes these have, as text; "" if they have one each.
    """

    difference: float
    one_sided_low: float
    two_sided_high: float
    runs: float
    by_changes: str

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
        return cls(difference, one_sided_low, high, runs, _by_changes(comparison))

    def text(self, other: str) -> str:
        bound = f"at least {self.one_sided_low:+.3f}{self.by_changes}"
        return f"{self.difference:+.3f} against {other} on the same {self.runs} runs ({bound})"


def _by_changes(figures: Any) -> str:
    """Return the number of changes that a bound is by, as text; "" if each run is of another change, or unknown."""
    runs = _number(figures, "runs")
    changes = _number(figures, "changes")
    return f", by {changes} changes" if runs and changes and changes < runs else ""


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
