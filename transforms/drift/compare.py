"""Compares two sets of examples; the report has findings for people and programs, and their numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from ciml.transforms.drift.counts import Columns, Group, Mix, Presence, mix_of, one_sided
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

_DIMENSIONS = ("job", "provider", "flavour", "class")  # of a cell, in order
_EXAMPLE = "example"  # a selected run that is not excluded
_INSEPARABLE = "drift; too few comparable runs to separate it from the mix"
_ALL = Slice()


def compare(before: Side, after: Side, policy: DriftPolicy | None = None) -> Report:
    """Detect drift from one side to the other. Features that only one side has are findings too."""
    return _Comparison(before, after, policy or DriftPolicy()).report()


class _Comparison:
    """One comparison. Tests are counted first, because their thresholds depend on their number."""

    def __init__(self, before: Side, after: Side, policy: DriftPolicy) -> None:
        self.before = before
        self.after = after
        self.policy = policy
        old = before.statistics
        new = after.statistics
        self.sides = Sides.of(old, new)
        self.runs = int(old.runs.sum()), int(new.runs.sum())
        self.parts, self.few = parts_of(self.sides, policy.min_runs)
        names = [name for name in old.series if name in new.series]
        self.pairs = {name: Pair.of(self.sides, old, new, name) for name in names}
        self.presence = Presence.of(before.columns or {}, after.columns or {})
        # A column exists or not, and its test is exact: there are never too few runs.
        self.column_parts, _ = parts_of(self.presence.sides, 1)
        self.varying = {
            name: [part for part in self.column_parts if self.presence.varies(name, part)]
            for name in self.presence.columns
        }
        self.mixes: dict[str, Mix] = {}
        self.groups: list[tuple[str, Group]] = []
        self._count_mixes()
        self.tests = (
            len(self.pairs) * (len(self.parts) + 1)
            + sum(map(len, self.varying.values()))
            + len(self.mixes)
            + len(self.groups)
        )

    def _count_mixes(self) -> None:
        counts: dict[str, tuple[Mapping[str, int], Mapping[str, int]]] = {}
        for dimension, name in enumerate(_DIMENSIONS):
            categories = self.before.categories(dimension), self.after.categories(dimension)
            if categories not in counts.values():  # the class may be the provider, or the job
                counts[name] = categories
                self.groups += [(name, group) for group in one_sided(*categories)]
        counts["exclusions"] = (
            {_EXAMPLE: self.runs[0], **self.before.excluded},
            {_EXAMPLE: self.runs[1], **self.after.excluded},
        )
        for name, sides in counts.items():
            if min(sum(side.values()) for side in sides) >= self.policy.min_runs and (mix := mix_of(*sides)):
                self.mixes[name] = mix

    def report(self) -> Report:
        columns = list(self._columns())
        counted = list(self._counts())
        measures = {}
        features = []
        pooled = []
        for name, pair in self.pairs.items():
            total = measure_pooled(pair, self.sides)
            slices = measure_slices(pair, self.sides, self.parts)
            measures[name] = (
                total,
                tuple((part.slice, measure) for part, measure in zip(self.parts, slices, strict=True)),
            )
            moved = list(self._feature(name, pair)) if any(map(self._drifted, slices)) else []
            features += moved
            if not moved and self._drifted(total) and min(self.runs) >= self.policy.min_runs:
                pooled.append(name)
        comparable = bool(self.parts) and self.parts[0].slice == _ALL
        if not counted:  # without a drift of the mix, the features drifted by themselves
            kind: Kind = "mix" if comparable else "shift"
            verdict = "drift with the mix" if comparable else _INSEPARABLE
            features += [self._finding(kind, name, measures[name][0], verdict) for name in pooled]
            pooled = []
        findings = sorted(
            [*columns, *features, *counted], key=lambda measure: (KINDS.index(measure.kind), -(measure.ks or 0.0))
        )
        return Report(
            before=self.before,
            after=self.after,
            policy=self.policy,
            findings=tuple(findings),
            with_the_mix=tuple(pooled) if comparable else (),
            untold=() if comparable else tuple(pooled),
            measures=measures,
            few=tuple(self.few),
            tests=self.tests,
        )

    def _p(self, p: float) -> float:
        return min(1.0, p * self.tests)

    def _drifted(self, measure: Measure) -> bool:
        return measure.psi >= self.policy.psi and self._p(measure.p) <= self.policy.alpha

    def _feature(self, name: str, pair: Pair) -> Iterator[Finding]:
        measure = partial(measure_slices, pair, self.sides)
        for drifted in drifted_slices(self.parts, self.sides, measure, self._drifted, self.policy.min_runs):
            shares = distributions(pair, self.sides, drifted.part)
            if unit := unit_of(pair.values, *shares, drifted.measure.weight):
                verdict = f"another unit: {unit.name} (measured × {unit.factor:.4g})"
                yield self._in_slice("unit", name, drifted, verdict)
            else:
                size = "large" if drifted.measure.psi >= self.policy.psi_large else "small"
                stuck = np.count_nonzero(shares[1]) == 1 < np.count_nonzero(shares[0])
                yield self._in_slice("shift", name, drifted, "constant in all runs now" if stuck else f"{size} drift")

    def _columns(self) -> Iterator[Finding]:
        old = self.before.statistics.series
        new = self.after.statistics.series
        for name in (name for name in old if name not in new):
            yield self._finding("lost_column", name, Measure(math.nan, 1.0, 0.0, 0.0, 1.0, 0.0), "no feature now")
        for name in (name for name in new if name not in old):
            yield self._finding("new_column", name, Measure(math.nan, 1.0, 0.0, 0.0, 0.0, 1.0), "a new feature")
        for name, parts in self.varying.items():
            measure = partial(self.presence.measure, name)
            for drifted in drifted_slices(parts, self.presence.sides, measure, self._column_drifted, 1):
                before = drifted.measure.before
                after = drifted.measure.after
                lost = after < before
                verdict = "column lost" if lost else "column new"
                if (after if lost else 1 - after) > 0:
                    verdict += f" in {abs(after - before):.0%} of the runs"
                yield self._in_slice("lost_column" if lost else "new_column", name, drifted, verdict)

    def _column_drifted(self, measure: Measure) -> bool:
        return measure.ks >= self.policy.share and self._p(measure.p) <= self.policy.alpha

    def _counts(self) -> Iterator[Finding]:
        for dimension, group in self.groups:
            if self._p(group.p) > self.policy.alpha:
                continue
            where = Slice(*(group.name if dimension == key else None for key in ("job", "provider")))
            change = "appeared" if group.after else "disappeared"
            shares = [runs / max(total, 1) for runs, total in zip((group.before, group.after), self.runs, strict=True)]
            measure = Measure(math.nan, math.nan, group.p, 0.0, *shares)
            verdict = f"{dimension} {group.name or '(none)'} {change}"
            kind: Kind = "new_group" if group.after else "lost_group"
            yield self._finding(kind, dimension, measure, verdict, where, (group.before, group.after))
        for dimension, mix in self.mixes.items():
            if mix.psi >= self.policy.psi and self._p(mix.p) <= self.policy.alpha:
                verdict = f"another mix: {mix.grown or '(none)'} {mix.before:.1%} → {mix.after:.1%}"
                measure = Measure(mix.psi, math.nan, mix.p, 0.0, mix.before, mix.after)
                yield self._finding("mix", dimension, measure, verdict)

    def _in_slice(self, kind: Kind, what: str, drifted: DriftedSlice, verdict: str) -> Finding:
        part = drifted.part
        runs = part.runs_before, part.runs_after
        return self._finding(kind, what, drifted.measure, verdict, part.slice, runs, drifted.rest)

    def _finding(
        self,
        kind: Kind,
        what: str,
        measure: Measure,
        verdict: str,
        where: Slice = _ALL,
        runs: tuple[int, int] | None = None,
        rest: bool = False,
    ) -> Finding:
        """Return a finding, by default of all runs. What a measure does not have is NaN."""
        psi, ks = (None if math.isnan(size) else size for size in (measure.psi, measure.ks))
        means = measure.before, measure.after
        return Finding(kind, what, *where, rest, *means, psi, ks, self._p(measure.p), *(runs or self.runs), verdict)


Kind = Literal["lost_column", "new_column", "unit", "shift", "lost_group", "new_group", "mix"]
KINDS: tuple[Kind, ...] = ("lost_column", "new_column", "unit", "shift", "lost_group", "new_group", "mix")


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison.

    Attributes:
      name: its description, for people.
      statistics: statistics of its examples.
      columns: the recorded columns of its runs; None where they are unknown.
      excluded: number of selected runs without an example, by reason.
    """

    name: str
    statistics: Statistics
    columns: Columns | None = None
    excluded: Mapping[str, int] = field(default_factory=dict)

    def categories(self, dimension: int) -> dict[str, int]:
        """Return the runs by job (0), provider (1), flavour (2) or class (3)."""
        counts: dict[str, int] = {}
        for cell, runs in zip(self.statistics.cells, self.statistics.runs.tolist(), strict=True):
            counts[cell[dimension]] = counts.get(cell[dimension], 0) + runs
        return counts


@dataclass(frozen=True, slots=True)
class Finding:
    """A detected drift.

    Attributes:
      kind: see docs/drift.md.
      what: the feature, the column, or the dimension (``job``, ``provider``, ``flavour``, ``class``, ``exclusions``).
      build_name, provider: the slice; None means all, or with ``rest``, all except slices reported before.
      before, after: means of the runs' means, or shares.
      psi, ks: size of the drift; None where it does not apply.
      p: probability of such drift by chance in any of the comparison's tests.
      runs_before, runs_after: number of runs.
      verdict: text for people.
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


@dataclass(frozen=True, slots=True)
class Report:
    """A comparison.

    Attributes:
      before, after: the compared sides.
      findings: the detected drifts, by kind.
      with_the_mix: features that drifted only with the mix of runs.
      untold: features that drifted, with too few comparable runs to separate them from the mix.
      measures: per feature: over all runs unweighted, and in each slice with enough runs.
      few: slices with too few runs.
      tests: number of tests.
    """

    before: Side
    after: Side
    policy: DriftPolicy
    findings: tuple[Finding, ...]
    with_the_mix: tuple[str, ...]
    untold: tuple[str, ...]
    measures: Mapping[str, tuple[Measure, tuple[tuple[Slice, Measure], ...]]]
    few: tuple[Slice, ...]
    tests: int

    @property
    def enough(self) -> bool:
        """Whether both sides have enough runs for a comparison."""
        return min(int(side.statistics.runs.sum()) for side in (self.before, self.after)) >= self.policy.min_runs

    def to_json(self) -> dict[str, Any]:
        return {
            "before": _side_to_json(self.before),
            "after": _side_to_json(self.after),
            "policy": asdict(self.policy),
            "enough_runs": self.enough,
            "findings": [asdict(finding) for finding in self.findings],
            "with_the_mix": list(self.with_the_mix),
            "untold": list(self.untold),
            "features": {
                name: {
                    "as_they_are": pooled._asdict(),
                    "weighted_alike": [{**part._asdict(), **measure._asdict()} for part, measure in slices],
                }
                for name, (pooled, slices) in self.measures.items()
            },
            "too_few_runs": [part._asdict() for part in self.few],
            "tests": self.tests,
        }


def _side_to_json(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "runs": int(side.statistics.runs.sum()),
        **{name: side.categories(index) for index, name in enumerate(("jobs", "providers", "flavours", "classes"))},
        "excluded": dict(side.excluded),
        "features": {name: summary_of(side.statistics, name) for name in side.statistics.series},
    }


def summary_of(statistics: Statistics, name: str) -> dict[str, float]:
    """Summarise a series over all cells: count of windows, mean, std, min, max and the share of zeros."""
    series = statistics.series[name]
    count = int(series.count.sum())
    if not count:
        return {"count": 0}
    mean = float((series.count * series.mean).sum() / count)
    spread = float((series.count * (series.std**2 + (series.mean - mean) ** 2)).sum() / count)
    return {
        "count": count,
        "mean": mean,
        "std": math.sqrt(spread),
        "min": float(series.minimum.min()),
        "max": float(series.maximum.max()),
        "zeros": float(series.zeros.sum() / count),
    }
