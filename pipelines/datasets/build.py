"""Builds a data set from all present runs, or from those that a slicer selects; and removes data sets.

The runs come from a raw store, or from a listing, whose logs are read but not stored. `plan_build` and `plan_update`
return a pipeline that also commits its spans, for an engine that no process waits for.
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
from ciml.pipelines.datasets.commit import count_runs
from ciml.pipelines.datasets.update import (
    RunSource,
    StoredRuns,
    Update,
    Updater,
    check_same,
    create_dataset,
    no_runs_error,
    reviewed_causes,
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
#: Runs of a span where the definition does not say: larger spans, and so fewer files, than in a stream.
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
    """Build a data set of all present runs, or continue an interrupted build.

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
    updater, definition = _prepare_build(source, target, definition, now_us)
    update = updater.run(runner, job_endpoint, seal=True, progress=progress, now_us=now_us)
    _write_definition(updater.root, definition, replace=bool(update.sealed))
    return update


def plan_build(source: DataRoot, target: DataRoot, definition: DatasetDefinition) -> PlannedUpdate:
    """Plan what `ciml.pipelines.datasets.build.build_dataset` would do. A new data set is created, without spans."""
    updater, definition = _prepare_build(source, target, definition)
    planned = _plan(updater, seal=True)
    if updater.create is not None:
        updater.create()
    _write_definition(updater.root, definition, replace=False)
    return planned


def plan_update(dataset: StoredDataset, *, seal: bool = False) -> PlannedUpdate:
    """Plan what `ciml.pipelines.datasets.update.update_dataset` would do; the arguments are the same."""
    return _plan(Updater.of_stored_runs(dataset), seal=seal)


@dataclass(frozen=True)
class PlannedUpdate:
    """The remaining steps of a data set, whose pipeline also commits them.

    Attributes:
      raw: the raw store.
      root: the data set's folder.
      steps: the steps; empty if nothing is left.
      waiting: number of selected runs in the incomplete last span.
    """

    raw: Store
    root: Store
    steps: tuple[Step, ...]
    waiting: int = 0

    @property
    def runs(self) -> int:
        """The number of runs to be read."""
        return sum(map(count_runs, self.steps))

    def build(self, pipeline: beam.Pipeline) -> object:
        """Wire the bounded pipeline that builds and commits all steps."""
        from ciml.pipelines.datasets.beam import build_spans, commit_spans, new_results_folder

        results = new_results_folder()
        written = build_spans(pipeline, self.raw, self.root, self.steps, results)
        return commit_spans(written, self.root, self.steps, results)


def _plan(updater: Updater, *, seal: bool) -> PlannedUpdate:
    raw = updater.raw()
    plan = updater.plan()
    steps = tuple(plan.steps(seal=seal))
    if seal and not steps and not updater.state.spans:
        raise no_runs_error(updater.state, plan)
    return PlannedUpdate(raw, updater.root, steps, plan.waiting)


def _prepare_build(
    source: DataRoot | ListedRuns,
    target: DataRoot,
    definition: DatasetDefinition,
    now_us: int | None = None,
    *,
    state: DatasetState | None = None,
) -> tuple[Updater, DatasetDefinition]:
    """Check that a data set can be built or continued, and create nothing; arguments and errors as `build_dataset`.

    Args:
      state: of the existing data set; by default as it is stored.

    Returns:
      The updater, and the definition with the pinned version of a slicer, its keys in the order of ``definition``.
    """
    dataset = target.dataset(definition.name)
    if state is None:
        state = catch_up(dataset.log, DatasetState())
    runs, origin = _source_of(source, target)
    pin = None
    if definition.slicer is not None:
        if state.definition is not None:
            # Without a version of its own, the build continues with the one that the existing data set pins.
            if definition.raw_version is None and state.definition.slicer is not None:
                definition = definition.replace(raw_version=state.definition.raw_version)
            check_same(state.definition, definition)
        pin = Pin(runs.log, definition)
        definition = pinned(definition, pin)
    create = None
    if state.definition is None:
        # The draft is the state after `create`: the definition is committed as version 1.
        state.definition = definition
        state.version = 1
        create = partial(create_dataset, target, definition, origin=origin, now_us=now_us)
    else:
        check_same(state.definition, definition)
        _check_origin(state, origin)
    causes = reviewed_causes(source if isinstance(source, DataRoot) else target, definition)
    return Updater(runs, dataset.store, state, pin, causes, create), definition


def _write_definition(root: Store, definition: DatasetDefinition, *, replace: bool) -> None:
    """Write the definition next to the examples, if it is missing or to be replaced."""
    if replace or not root.exists(DEFINITION):
        root.replace(DEFINITION, definition.to_toml().encode())


def _source_of(source: DataRoot | ListedRuns, target: DataRoot) -> tuple[RunSource, Mapping[str, Any]]:
    """Return the source of the runs, and the record of their origin for the manifest.

    Raises:
      CimlError: if the raw store has no manifest.
    """
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
    listing = state.listing
    digest = listing["digest"] if listing else None
    if digest != origin.get("listing", {}).get("digest"):
        name = state.definition.name if state.definition is not None else ""
        manner = "from a raw store" if listing is None else f"straight from the logs of {listing['url']}"
        raise CimlError(f"data set {name!r} exists and was built {manner}; choose another name, or use --force")


def make_room(source: DataRoot | ListedRuns, target: DataRoot, definition: DatasetDefinition) -> None:
    """Remove the data set of a definition's name, if a data set results from the definition.

    The arguments and errors are those of `build_dataset`. After an error, the data set is still there.
    """
    updater, _ = _prepare_build(source, target, definition, state=DatasetState())
    plan = updater.plan()
    if next(iter(plan.steps(seal=True)), None) is None:
        raise no_runs_error(updater.state, plan)
    remove_dataset(target.dataset(definition.name))


def has_other_definition(dataset: StoredDataset, definition: DatasetDefinition) -> bool:
    """Return whether a data set exists with another definition. An unpinned slicer equals the pinned one."""
    existing = catch_up(dataset.log, DatasetState()).definition
    if existing is None:
        return False
    if definition.slicer is not None and definition.raw_version is None:
        existing = existing.replace(raw_version=None)
    return existing != definition


def remove_dataset(dataset: StoredDataset) -> None:
    """Remove a data set and its examples. If this is interrupted, a data set with fewer spans remains."""
    root = dataset.store
    for path in sorted(root.list(dataset.log.folder), reverse=True):  # the newest delta first
        root.delete(path)
    for path in reversed(root.list()):  # also of its Delta table the newest entry first, so that a table remains
        root.delete(path)
