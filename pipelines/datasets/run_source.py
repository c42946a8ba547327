"""Sources of a data set's runs: a raw store, or a listing and its logs (`ciml.pipelines.datasets.listed_runs`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

import numpy as np
import pyarrow as pa

from ciml.datasets.definition import ResolvedDefinition
from ciml.events.records import RunFacts
from ciml.manifest.log import ManifestLog
from ciml.runs.reader import read_columns, read_runs
from ciml.runs.run_log import RunLog, StoredRunLog
from ciml.storage import Store
from ciml.transforms.examples.plan import SelectedRun, SpanPlan
from ciml.transforms.examples.prepare import Examples
from ciml.transforms.examples.spans import examples_of, lengths_of
from ciml.trust import evaluate, former_policy

_TABLES = 50  # runs whose telemetry is in memory at a time


class RunSource(Protocol):
    """Provides runs and their telemetry."""

    @property
    def log(self) -> RunLog:
        """The records of the runs."""

    def columns(self, runs: Sequence[SelectedRun]) -> Sequence[tuple[str, ...]]:
        """Return the names of the columns of each run that has telemetry, in log order."""

    def tables(self, runs: Sequence[SelectedRun]) -> Iterator[tuple[RunFacts, pa.Table]]:
        """Yield facts and telemetry, with all columns, of each run that has telemetry."""

    def lengths(self, runs: Sequence[SelectedRun], resolved: ResolvedDefinition) -> np.ndarray:
        """Return the number of windows of each run, int64 [n], at most L; 0 for a run without an example."""

    def examples(self, part: SpanPlan, resolved: ResolvedDefinition) -> Examples:
        """Return the examples of some runs of a span."""


@dataclass(frozen=True)
class StoredRuns:
    """The runs of a raw store. Raises `IntegrityError` if the store contradicts its manifest."""

    raw: Store

    @cached_property
    def _manifest(self) -> ManifestLog:
        return ManifestLog(self.raw)

    @cached_property
    def log(self) -> RunLog:
        return StoredRunLog(self._manifest, partial(evaluate, former_policy()))

    def is_empty(self) -> bool:
        """Return whether the raw store has no manifest."""
        return next(self._manifest.raw_since(0), None) is None

    def columns(self, runs: Sequence[SelectedRun]) -> Sequence[tuple[str, ...]]:
        return read_columns(self.raw, [run.file for run in runs])

    def tables(self, runs: Sequence[SelectedRun]) -> Iterator[tuple[RunFacts, pa.Table]]:
        for start in range(0, len(runs), _TABLES):
            part = runs[start : start + _TABLES]
            yield from zip([run.mention for run in part], read_runs(self.raw, [run.file for run in part]), strict=True)

    def lengths(self, runs: Sequence[SelectedRun], resolved: ResolvedDefinition) -> np.ndarray:
        return lengths_of(self.raw, runs, resolved)

    def examples(self, part: SpanPlan, resolved: ResolvedDefinition) -> Examples:
        return examples_of(self.raw, part, resolved)
