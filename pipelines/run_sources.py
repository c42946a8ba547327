"""Where a data set has its runs from: a raw store, or a listing whose logs are read (`pipelines.listed_runs`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

from ciml.dataset_plan import SelectedRun, SpanPlan
from ciml.definitions import ResolvedDefinition
from ciml.manifests import ManifestLog
from ciml.run_records import RunLog, StoredRunLog
from ciml.storage import Store
from transforms.examples import Examples
from transforms.raw_reader import read_columns
from transforms.spans import examples_of
from transforms.trust import TrustPolicy, evaluate


class RunSource(Protocol):
    """What has runs, and their telemetry."""

    @property
    def log(self) -> RunLog:
        """The records of the runs."""

    def columns(self, runs: Sequence[SelectedRun]) -> Sequence[tuple[str, ...]]:
        """The names of the columns of each run that has telemetry, in log order."""

    def examples(self, part: SpanPlan, resolved: ResolvedDefinition) -> Examples:
        """The examples of some runs of a span."""


@dataclass(frozen=True)
class StoredRuns:
    """The runs of a raw store. Raises `IntegrityError` where it has not what its manifest says."""

    raw: Store

    @cached_property
    def _manifest(self) -> ManifestLog:
        return ManifestLog(self.raw)

    @cached_property
    def log(self) -> RunLog:
        return StoredRunLog(self._manifest, partial(evaluate, TrustPolicy.load()))

    def is_empty(self) -> bool:
        """Whether the raw store has no manifest."""
        return next(self._manifest.raw_since(0), None) is None

    def columns(self, runs: Sequence[SelectedRun]) -> Sequence[tuple[str, ...]]:
        return read_columns(self.raw, [run.file for run in runs])

    def examples(self, part: SpanPlan, resolved: ResolvedDefinition) -> Examples:
        return examples_of(self.raw, part, resolved)
