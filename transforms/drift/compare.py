"""Compare two sets of examples. The report has findings for people and programs, and the figures behind them.

Features are compared in *slices* of the runs, weighted so that a changed mix of runs has no effect
(`ciml.transforms.drift.detect`). `ciml.transforms.drift.counts` compares the mix itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from ciml.transforms.drift.counts import Columns, Mix, Presence, mix_of, one_sided_groups
from ciml.transforms.drift.detect import (
    DriftedSlice,
    DriftPolicy,
    Measure,
    Pair,
    Sides,
    Slice,
    distributions,
    drifted_slices,
    measure_pooled,
    measure_slices,
    parts_of,
    unit_of,
)
from ciml.transforms.drift.statistics import Statistics

Kind = Literal["lost_column", "new_column", "unit", "shift", "lost_group", "new_group", "mix"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Dimension = Literal["job", "provider", "flavour", "class"]
#: The dimensions of a cell, in the order of its fields.
_DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
#: Counts as a reason of exclusion: the run is not excluded.
_EXAMPLE = "example"
_INSEPARABLE = "drift; too few comparable runs to separate it from the mix"
_ALL = Slice()


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison.

    Attributes:
      name: its description, for people.
      statistics: statistics of its examples.
      columns: the recorded columns of its runs; None if they are unknown.
      excluded: number of selected runs without an example, by reason.
    """

    name: str
    statistics: Statistics
    columns: Columns | None = None
    excluded: Mapping[str, int] = field(default_factory=dict)

    def categories(self, dimension: Dimension) -> dict[str, int]:
        """Return the numbers of runs by job, provider, flavour or class."""
        index = _DIMENSIONS.index(dimension)
        counts: dict[str, int] = {}
        for cell, runs in zip(self.statistics.cells, self.statistics.runs.tolist(), strict=True):
            counts[cell[index]] = counts.get(cell[index], 0) + runs
        return counts


@dataclass(frozen=True, slots=True)
class Finding:
    """A detected drift.

    Attributes:
      kind: see docs/drift.md.
      what: the feature, the column, the dimension (`Dimension`), or ``exclusions``.
      build_name, provider: the slice; None means all.
      rest: whether the runs of earlier findings about the same feature are left out of the slice.
      before, after: means of the runs' means, or shares.
      psi, ks: size of the drift; None if it does not apply.
      p: probability of such drift by chance in any of the comparison's tests.
      runs_before, runs_after: number of runs.
      verdict: text for people.
      since: the first span of the change; None unless `ciml.transforms.drift.change_points` has estimated it.
    """

    kind: Kind
    what: str
    build_name: str | None
    provider: str | None
    rest: bool
    before: float
    after: float
    psi: float | None
    ks: float | None
    p: float
    runs_before: int
    runs_after: int
    verdict: str
    since: int | None = None


class FeatureMeasures(NamedTuple):
    """The measures of a feature: over all runs unweighted, and in each slice with enough runs."""

    pooled: Measure
    slices: tuple[tuple[Slice, Measure], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a comparison.

    Attributes:
      before, after: the compared sides.
      policy: the thresholds.
      findings: the detected drifts, by kind.
      with_the_mix: features that drifted only with the mix of runs, which itself is a finding.
      undecided: features that drifted, as did the mix, with too few comparable runs to separate the two.
      measures: by feature.
      small_slices: slices with too few runs.
      tests: number of tests.
    """

    before: Side
    after: Side
    policy: DriftPolicy
    findings: tuple[Finding, ...]
    with_the_mix: tuple[str, ...]
    undecided: tuple[str, ...]
    measures: Mapping[str, FeatureMeasures]
    small_slices: tuple[Slice, ...]
    tests: int

    @property
    def enough(self) -> bool:
        """Whether both sides have enough runs for a comparison."""
        return min(int(side.statistics.runs.sum()) for side in (self.before, self.after)) >= self.policy.min_runs

    def to_json(self) -> dict[str, Any]:
        """Encode the report. The keys ``untold``, ``as_they_are`` and ``weighted_alike`` are stored names."""
        return {
            "before": _side_to_json(self.before),
            "after": _side_to_json(self.after),
            "policy": asdict(self.policy),
            "enough_runs": self.enough,
            "findings": [asdict(finding) for finding in self.findings],
            "with_the_mix": list(self.with_the_mix),
            "untold": list(self.undecided),
            "features": {
                name: {
                    "as_they_are": pooled._asdict(),
                    "weighted_alike": [{**part._asdict(), **measure._asdict()} for part, measure in slices],
                }
                for name, (pooled, slices) in self.measures.items()
            },
            "too_few_runs": [part._asdict() for part in self.small_slices],
            "tests": self.tests,
        }


def compare(before: Side, after: Side, policy: DriftPolicy | None = None) -> Report:
    """Detect drift from one side to the other. Features that only one side has are findings too."""
    return _Comparison(before, after, policy or DriftPolicy()).report()


class _Scope(NamedTuple):
    """The runs that a finding is about; see `Finding`."""

    slice: Slice
    runs_before: int
    runs_after: int
    rest: bool = False


class _Comparison:
    """One comparison. Tests are counted first, because their thresholds depend on their number."""

    def __init__(self, before: Side, after: Side, policy: DriftPolicy) -> None:
        self.before = before
        self.after = after
        self.policy = policy
        old = before.statistics
        new = after.statistics
        self.sides = Sides.of(old, new)
        self.all_runs = _Scope(_ALL, int(old.runs.sum()), int(new.runs.sum()))
        # The tests of features.
        self.parts, self.small_slices = parts_of(self.sides, policy.min_runs)
        self.pairs = {name: Pair.of(self.sides, old, new, name) for name in old.series if name in new.series}
        # The tests of columns, which are exact for any number of runs.
        self.presence = Presence.of(before.columns or {}, after.columns or {})
        parts, _ = parts_of(self.presence.sides, 1)
        self.varying = {
            name: [part for part in parts if self.presence.varies(name, part)] for name in self.presence.columns
        }
        # The tests of counts.
        counts = self._category_counts()
        self.groups = [
            (name, group) for name in _DIMENSIONS if name in counts for group in one_sided_groups(*counts[name])
        ]
        self.mixes = self._mixes(counts)
        self.tests = (
            len(self.pairs) * (len(self.parts) + 1)
            + sum(map(len, self.varying.values()))
            + len(self.mixes)
            + len(self.groups)
        )

    def _category_counts(self) -> dict[str, tuple[Mapping[str, int], Mapping[str, int]]]:
        """Return the numbers of runs by dimension and category, before and after."""
        counts: dict[str, tuple[Mapping[str, int], Mapping[str, int]]] = {}
        for dimension in _DIMENSIONS:
            categories = self.before.categories(dimension), self.after.categories(dimension)
            is_alias = categories in counts.values()  # the class may be the provider or the job
            if not is_alias:
                counts[dimension] = categories
        counts["exclusions"] = (
            {_EXAMPLE: self.all_runs.runs_before, **self.before.excluded},
            {_EXAMPLE: self.all_runs.runs_after, **self.after.excluded},
        )
        return counts

    def _mixes(self, counts: Mapping[str, tuple[Mapping[str, int], Mapping[str, int]]]) -> dict[str, Mix]:
        mixes = {}
        for dimension, (before, after) in counts.items():
            mix = mix_of(before, after)
            if mix is not None and min(sum(before.values()), sum(after.values())) >= self.policy.min_runs:
                mixes[dimension] = mix
        return mixes

    def report(self) -> Report:
        measures = {name: self._measures(pair) for name, pair in self.pairs.items()}
        by_feature = {name: list(self._feature_findings(name, of_name)) for name, of_name in measures.items()}
        count_findings = list(self._count_findings())
        findings = [*self._column_findings(), *chain.from_iterable(by_feature.values()), *count_findings]
        pooled = {
            name: measures[name].pooled
            for name, feature_findings in by_feature.items()
            if not feature_findings and self._is_pooled_drift(measures[name].pooled)
        }
        # The features of ``pooled`` drifted over all runs, but in no slice. If a count drifted too, the mix explains
        # them, else they are findings themselves. Without a slice of all runs, the two causes cannot be separated.
        is_separable = bool(self.parts) and self.parts[0].slice == _ALL
        if not count_findings:
            kind: Kind = "mix" if is_separable else "shift"
            verdict = "drift with the mix" if is_separable else _INSEPARABLE
            findings += [self._finding(kind, name, measure, verdict) for name, measure in pooled.items()]
        explained = tuple(pooled) if count_findings else ()
        findings.sort(key=lambda finding: (KINDS.index(finding.kind), -(finding.ks or 0.0)))
        return Report(
            before=self.before,
            after=self.after,
            policy=self.policy,
            findings=tuple(findings),
            with_the_mix=explained if is_separable else (),
            undecided=() if is_separable else explained,
            measures=measures,
            small_slices=tuple(self.small_slices),
            tests=self.tests,
        )

    def _measures(self, pair: Pair) -> FeatureMeasures:
        slices = measure_slices(pair, self.sides, self.parts)
        by_slice = tuple((part.slice, measure) for part, measure in zip(self.parts, slices, strict=True))
        return FeatureMeasures(measure_pooled(pair, self.sides), by_slice)

    def _corrected_p(self, p: float) -> float:
        """Correct p for the number of tests (Bonferroni)."""
        return min(1.0, p * self.tests)

    def _is_drift(self, measure: Measure) -> bool:
        return measure.psi >= self.policy.psi and self._corrected_p(measure.p) <= self.policy.alpha

    def _is_pooled_drift(self, measure: Measure) -> bool:
        runs = min(self.all_runs.runs_before, self.all_runs.runs_after)
        return runs >= self.policy.min_runs and self._is_drift(measure)

    def _feature_findings(self, name: str, measures: FeatureMeasures) -> Iterator[Finding]:
        if not any(self._is_drift(measure) for _, measure in measures.slices):
            return
        pair = self.pairs[name]
        measure = partial(measure_slices, pair, self.sides)
        for drifted in drifted_slices(self.parts, self.sides, measure, self._is_drift, self.policy.min_runs):
            before, after = distributions(pair, self.sides, drifted.part)
            unit = unit_of(pair.values, before, after, drifted.measure.weight)
            if unit is not None:
                verdict = f"another unit: {unit.name} (measured × {unit.factor:.4g})"
                yield self._slice_finding("unit", name, drifted, verdict)
            elif np.count_nonzero(after) == 1 < np.count_nonzero(before):
                yield self._slice_finding("shift", name, drifted, "constant in all runs now")
            else:
                size = "large" if drifted.measure.psi >= self.policy.psi_large else "small"
                yield self._slice_finding("shift", name, drifted, f"{size} drift")

    def _column_findings(self) -> Iterator[Finding]:
        old = self.before.statistics.series
        new = self.after.statistics.series
        for name in (name for name in old if name not in new):
            yield self._finding("lost_column", name, _share_measure(1.0, 0.0, p=0.0, ks=1.0), "no feature now")
        for name in (name for name in new if name not in old):
            yield self._finding("new_column", name, _share_measure(0.0, 1.0, p=0.0, ks=1.0), "a new feature")
        for name, parts in self.varying.items():
            measure = partial(self.presence.measure, name)
            for drifted in drifted_slices(parts, self.presence.sides, measure, self._is_column_drift, 1):
                before = drifted.measure.before
                after = drifted.measure.after
                is_lost = after < before
                verdict = "column lost" if is_lost else "column new"
                if (after if is_lost else 1 - after) > 0:
                    verdict += f" in {abs(after - before):.0%} of the runs"
                yield self._slice_finding("lost_column" if is_lost else "new_column", name, drifted, verdict)

    def _is_column_drift(self, measure: Measure) -> bool:
        return measure.ks >= self.policy.share and self._corrected_p(measure.p) <= self.policy.alpha

    def _count_findings(self) -> Iterator[Finding]:
        for dimension, group in self.groups:
            if self._corrected_p(group.p) > self.policy.alpha:
                continue
            job = group.name if dimension == "job" else None
            provider = group.name if dimension == "provider" else None
            before = group.before / max(self.all_runs.runs_before, 1)
            after = group.after / max(self.all_runs.runs_after, 1)
            kind: Kind = "new_group" if group.after else "lost_group"
            verdict = f"{dimension} {group.name or '(none)'} {'appeared' if group.after else 'disappeared'}"
            scope = _Scope(Slice(job, provider), group.before, group.after)
            yield self._finding(kind, dimension, _share_measure(before, after, p=group.p), verdict, scope)
        for what, mix in self.mixes.items():
            if mix.psi >= self.policy.psi and self._corrected_p(mix.p) <= self.policy.alpha:
                verdict = f"another mix: {mix.grown or '(none)'} {mix.before:.1%} → {mix.after:.1%}"
                measure = _share_measure(mix.before, mix.after, p=mix.p, psi=mix.psi)
                yield self._finding("mix", what, measure, verdict)

    def _slice_finding(self, kind: Kind, what: str, drifted: DriftedSlice, verdict: str) -> Finding:
        part = drifted.part
        scope = _Scope(part.slice, part.runs_before, part.runs_after, drifted.rest)
        return self._finding(kind, what, drifted.measure, verdict, scope)

    def _finding(self, kind: Kind, what: str, measure: Measure, verdict: str, scope: _Scope | None = None) -> Finding:
        """Return a finding, by default about all runs. A size that does not apply is NaN in the measure."""
        scope = scope or self.all_runs
        return Finding(
            kind,
            what,
            scope.slice.build_name,
            scope.slice.provider,
            scope.rest,
            measure.before,
            measure.after,
            psi=None if math.isnan(measure.psi) else measure.psi,
            ks=None if math.isnan(measure.ks) else measure.ks,
            p=self._corrected_p(measure.p),
            runs_before=scope.runs_before,
            runs_after=scope.runs_after,
            verdict=verdict,
        )


def _share_measure(before: float, after: float, *, p: float, psi: float = math.nan, ks: float = math.nan) -> Measure:
    """Return the measure of a share of the runs, by default without a size."""
    return Measure(psi=psi, ks=ks, p=p, weight=0.0, before=before, after=after)


def _side_to_json(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "runs": int(side.statistics.runs.sum()),
        "jobs": side.categories("job"),
        "providers": side.categories("provider"),
        "flavours": side.categories("flavour"),
        "classes": side.categories("class"),
        "excluded": dict(side.excluded),
        "features": {name: series.summary() for name, series in side.statistics.series.items()},
    }
