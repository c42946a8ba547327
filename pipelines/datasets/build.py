"""Builds a data set from all runs, or from those selected by a slicer.

The runs come from a raw store, or from a listing, whose logs are read but not stored. An engine that no process waits
for builds and commits an update that was planned here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ciml.data_root import DataRoot, StoredDataset
from ciml.datasets.definition import DatasetDefinition
from ciml.datasets.state import DatasetState
from ciml.errors import CimlError
from ciml.manifest.log import catch_up
from ciml.pipelines.datasets.update import (
    Filling,
    RunSource,
    StoredRuns,
    Update,
    check_same,
    create_dataset,
    given_causes,
    no_runs,
)
from ciml.progress import Progress
from ciml.storage import Store
from ciml.transforms.examples.pin import Pin, pinned
from ciml.transforms.examples.plan import Step

if TYPE_CHECKING:
    import apache_beam as beam

    from ciml.pipelines.datasets.listed_runs import ListedRuns  # imports the log readers

#: The definition in TOML, next to the examples. The underscore hides it from readers of the folder.
DEFINITION = "_definition.toml"
#: Runs of a span unless the definition has them: larger spans, and so fewer files, than a stream makes.
SPAN_RUNS = 5000


def build_dataset(
    source: DataRoot | ListedRuns,
    target: DataRoot,
    definition: DatasetDefinition,
    *,
    runner: str | None = None,
    job_endpoint: str = "",
    progress: Progress | None = None,
    now_us: int | None = None,
) -> Update:
    """Build a data set of all present runs, or resume one that was begun.

    Nothing is created before the definition is known to be valid. A slicer is resolved at the raw manifest's present
    end, unless the definition, or the existing data set, pins a version.

    Args:
      source: the data root of the raw store, or the runs of a listing.
      target: the data root of the data set; may be the same.
      definition: of the data set.
      runner: None calls the functions directly; ``fnapi`` and ``flink`` run them in Beam, for stored runs only.
      job_endpoint: of Beam's job server, for ``flink``.
      progress: called with the number of processed runs.
      now_us: time of the commits; by default the present.

    Raises:
      CimlError: if the raw store does not exist, no run is selected, no column or fewer than two classes result, or a
        data set of that name has another definition or listing.
      EngineError: if a store does not answer.
    """
    filling, definition = begin(source, target, definition, now_us)
    update = filling.fill(runner, job_endpoint, seal=True, progress=progress, now_us=now_us)
    _write_definition(filling.root, definition, missing=not update.sealed)
    return update


def _write_definition(root: Store, definition: DatasetDefinition, *, missing: bool) -> None:
    """Write the definition next to the examples; or only where it is missing."""
    if not (missing and root.exists(DEFINITION)):
        root.replace(DEFINITION, definition.to_toml().encode())


def begin(
    source: DataRoot | ListedRuns, target: DataRoot, definition: DatasetDefinition, now_us: int | None = None
) -> tuple[Filling, DatasetDefinition]:
    """Compare a data set with its definition and its runs, before anything is created; arguments as `build_dataset`.

    Returns:
      The data set to fill, and the definition with the pinned version of a slicer.
    """
    dataset = target.dataset(definition.name)
    state = DatasetState()
    runs, origin = _runs(source, target)
    catch_up(dataset.log, state)
    pin = None
    if definition.slicer is not None:
        if definition.raw_version is None and state.definition is not None and state.definition.slicer is not None:
            definition = definition.replace(raw_version=state.definition.raw_version)
        if state.definition is not None:
            check_same(state.definition, definition)
        pin = Pin(runs.log, definition)
        definition = pinned(definition, pin)
    create = None
    if state.definition is None:
        # as after the commit
        state.definition = definition
        state.version = 1
        create = partial(create_dataset, target, definition, origin=origin, now_us=now_us)
    else:
        check_same(state.definition, definition)
        _check_origin(state, origin)
    causes = given_causes(source if isinstance(source, DataRoot) else target, definition)
    return Filling(runs, dataset.store, state, pin, causes, create), definition


def _runs(source: DataRoot | ListedRuns, target: DataRoot) -> tuple[RunSource, Mapping[str, Any]]:
    """Return the runs, and the record of their origin for the manifest."""
    if not isinstance(source, DataRoot):
        return source, {"listing": source.origin}
    raw = StoredRuns(source.raw)
    if raw.is_empty():
        raise CimlError(
            f"no raw store at {raw.log.url()}; fill it with ciml-cache-data LISTING --logs ROOT --data-path DATA"
        )
    return raw, {} if source == target else {"source": source.url}


def _check_origin(state: DatasetState, origin: Mapping[str, Any]) -> None:
    """Raise `CimlError` if the data set came from another source; the location of a listing does not count."""
    before = state.listing
    now = origin.get("listing")
    if (before is None) != (now is None) or (before and now and before["digest"] != now["digest"]):
        name = state.definition.name if state.definition is not None else ""
        manner = "from a raw store" if before is None else f"straight from the logs of {before['url']}"
        raise CimlError(f"data set {name!r} exists and was built {manner}; choose another name, or use --force")


def is_another(dataset: StoredDataset, definition: DatasetDefinition) -> bool:
    """Return whether a data set exists with another definition. An unpinned slicer equals the pinned one."""
    state = DatasetState()
    catch_up(dataset.log, state)
    if state.definition is None:
        return False
    there = state.definition
    if definition.slicer is not None and definition.raw_version is None:
        there = there.replace(raw_version=None)
    return there != definition


def remove_dataset(dataset: StoredDataset) -> None:
    """Remove a data set and its examples. After a kill, a data set of fewer spans remains."""
    root = dataset.store
    manifest = dataset.log.folder
    for path in sorted(root.list(manifest), reverse=True):
        root.delete(path)
    for path in reversed(root.list()):  # of the log of its table the newest first: what a kill leaves is a table
        root.delete(path)


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
        from ciml.pipelines.datasets.beam import CommitSpans, build_spans, new_results

        results = new_results()
        written = build_spans(pipeline, self.raw, self.root, self.steps, results)
        return written | "CommitSpans" >> CommitSpans(self.root, self.steps, results)


def plan_update(dataset: StoredDataset, *, seal: bool = False) -> PlannedUpdate:
    """Plan what `ciml.pipelines.datasets.update.update_dataset` would do; the arguments are the same."""
    return _plan(Filling.of(dataset), seal=seal)


def plan_build(source: DataRoot, target: DataRoot, definition: DatasetDefinition) -> PlannedUpdate:
    """Plan what `ciml.pipelines.datasets.build.build_dataset` would do. A new data set is created, without spans."""
    filling, definition = begin(source, target, definition)
    planned = _plan(filling, seal=True)
    if filling.create is not None:
        filling.create()
    _write_definition(filling.root, definition, missing=True)
    return planned


def _plan(filling: Filling, *, seal: bool) -> PlannedUpdate:
    raw = filling.raw()
    plan = filling.plan()
    steps = tuple(plan.steps(seal=seal))
    if seal and not steps and not filling.state.spans:
        raise no_runs(filling.state, plan)
    return PlannedUpdate(raw, filling.root, steps, plan.waiting)
