"""An update of a data set that an engine finishes alone: planned here, built and committed by its own pipeline."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ciml.data_root import DataRoot, StoredDataset
from ciml.datasets.definition import DatasetDefinition
from ciml.datasets.pin import Pin
from ciml.datasets.plan import Step
from ciml.datasets.state import DatasetState
from ciml.errors import CimlError
from ciml.pipelines.datasets.build import begin
from ciml.pipelines.datasets.run_source import RunSource, StoredRuns
from ciml.pipelines.datasets.update import given_causes, no_runs, plan_of
from ciml.storage.open import Store

if TYPE_CHECKING:
    import apache_beam as beam


@dataclass(frozen=True)
class PlannedUpdate:
    """The remaining steps of a data set.

    Attributes:
      raw: the raw store.
      root: the data set's folder.
      steps: the steps; () where nothing is left.
      waiting: number of selected runs in the incomplete last span.
    """

    raw: Store
    root: Store
    steps: tuple[Step, ...]
    waiting: int = 0

    @property
    def runs(self) -> int:
        """The number of runs to be read."""
        return sum(len(plan.runs) for step in self.steps for plan in step.spans)

    def build(self, pipeline: beam.Pipeline) -> object:
        """Wire the bounded pipeline that builds and commits all steps."""
        from ciml.pipelines.datasets.commit_beam import CommitSpans
        from ciml.pipelines.datasets.spans_beam import build_spans

        results = f"results/{uuid.uuid4().hex}"
        plans = [plan for step in self.steps for plan in step.spans]
        written = build_spans(pipeline, self.raw, self.root, plans, self.steps[0].resolved, results)
        return written | "CommitSpans" >> CommitSpans(self.root, self.steps, results)


def plan_update(dataset: StoredDataset, *, seal: bool = False) -> PlannedUpdate:
    """Plan what `ciml.pipelines.datasets.update.update_dataset` would do; the arguments are the same."""
    state = dataset.state()
    raw = dataset.raw(state)
    pin = None
    if state.definition is not None and state.definition.slicer is not None:
        pin = Pin(StoredRuns(raw).log, state.definition)
    given = given_causes(dataset.root, state.definition)
    return _plan(StoredRuns(raw), dataset.store, state, pin, given, seal=seal, exists=True)


def plan_build(source: DataRoot, target: DataRoot, definition: DatasetDefinition) -> PlannedUpdate:
    """Plan what `ciml.pipelines.datasets.build.build_dataset` would do. A new data set is created, without spans."""
    begun = begin(source, target, definition)
    planned = _plan(begun.runs, begun.root, begun.state, begun.pin, begun.given, seal=True, exists=begun.create is None)
    if begun.create is not None:
        begun.create()
    begun.write_missing_definition()
    return planned


def _plan(
    source: RunSource,
    root: Store,
    state: DatasetState,
    pin: Pin | None,
    given: Mapping[str, str],
    *,
    seal: bool,
    exists: bool,
) -> PlannedUpdate:
    if not isinstance(source, StoredRuns):
        raise CimlError("--runner needs stored runs; remove it, or fill a raw store first")
    plan = plan_of(source, state, pin, given, root if exists else None)
    steps = tuple(plan.steps(seal=seal))
    if seal and not steps and not state.spans:
        raise no_runs(state, plan)
    return PlannedUpdate(source.raw, root, steps, plan.waiting)
