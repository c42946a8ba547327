"""The report of a comparison: findings for people and programs, and their numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ciml.transforms.drift.counts import Columns
from ciml.transforms.drift.detect import DriftPolicy, Measure, Slice
from ciml.transforms.drift.statistics import Statistics

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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


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
            "findings": [finding.to_json() for finding in self.findings],
            "with_the_mix": list(self.with_the_mix),
            "untold": list(self.untold),
            "features": {
                name: {
                    "as_they_are": _measure_to_json(pooled),
                    "weighted_alike": [{**one._asdict(), **_measure_to_json(each)} for one, each in slices],
                }
                for name, (pooled, slices) in self.measures.items()
            },
            "too_few_runs": [one._asdict() for one in self.few],
            "tests": self.tests,
        }


def _side_to_json(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "runs": int(side.statistics.runs.sum()),
        "jobs": side.categories(0),
        "providers": side.categories(1),
        "flavours": side.categories(2),
        "classes": side.categories(3),
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


def _measure_to_json(measure: Measure) -> dict[str, float]:
    return measure._asdict()
