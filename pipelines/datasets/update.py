"""Data sets: deterministic consumers of the raw manifest, each with its own cursor in its own manifest.

Manifests alone decide what is sealed (`ciml.transforms.examples.plan`). So concurrent or restarted updaters compute the
same spans and the same content-named files; one commits them, the others find them committed.

The runs come from a raw store, or from a listing and its logs (`ciml.pipelines.datasets.listed_runs`).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import pyarrow as pa

from ciml.data_root import DataRoot, StoredDataset
from ciml.datasets.definition import AUTO, DatasetDefinition, ResolvedDefinition, resolve
from ciml.datasets.state import DatasetState, SpanVersion
from ciml.errors import CimlError, NoTrainingDataError, RejectedInput, UnknownDatasetError
from ciml.events.outcomes import CAUSE
from ciml.events.records import RunFacts
from ciml.limits import MAX_PROFILE_RUNS
from ciml.manifest.log import Delta, ManifestLog, catch_up, commit
from ciml.pipelines.datasets.commit import Sealed, commit_step
from ciml.progress import Progress, no_progress
from ciml.runs.reader import read_columns, read_runs
from ciml.runs.run_log import RunLog, StoredRunLog
from ciml.storage import Store
from ciml.telemetry import telemetry_columns
from ciml.transforms.examples.pin import Pin, PinnedPlan
from ciml.transforms.examples.plan import History, Plan, SelectedRun, SpanPlan, Step, bookmarks_of
from ciml.transforms.examples.prepare import Examples
from ciml.transforms.examples.spans import (
    batches_of,
    examples_of,
    guarded_examples,
    lengths_of,
    verify_span,
    write_span,
)
from ciml.transforms.guard import bisect
from ciml.trust import evaluate, former_policy

if TYPE_CHECKING:
    from ciml.pipelines.datasets.listed_runs import ListedRuns  # imports the log readers

_TABLES = 50  # runs whose telemetry is in memory at a time


@dataclass(frozen=True)
class StoredRuns:
    """The runs of a raw store, and their telemetry. Raises `IntegrityError` if the store contradicts its manifest."""

    raw: Store

    @cached_property
    def _manifest(self) -> ManifestLog:
        return ManifestLog(self.raw)

    @cached_property
    def log(self) -> RunLog:
        """The records of the runs."""
        return StoredRunLog(self._manifest, partial(evaluate, former_policy()))

    def is_empty(self) -> bool:
        """Return whether the raw store has no manifest."""
        return next(self._manifest.raw_since(0), None) is None

    def columns(self, runs: Sequence[SelectedRun]) -> Sequence[tuple[str, ...]]:
        """Return the names of the columns of each run that has telemetry, in log order."""
        return read_columns(self.raw, [run.file for run in runs])

    def tables(self, runs: Sequence[SelectedRun]) -> Iterator[tuple[RunFacts, pa.Table]]:
        """Yield facts and telemetry, with all columns, of each run that has telemetry."""
        for start in range(0, len(runs), _TABLES):
            part = runs[start : start + _TABLES]
            yield from zip([run.mention for run in part], read_runs(self.raw, [run.file for run in part]), strict=True)

    def lengths(self, runs: Sequence[SelectedRun], resolved: ResolvedDefinition) -> np.ndarray:
        """Return the number of windows of each run, int64 [n], at most L; 0 for a run without an example."""
        return lengths_of(self.raw, runs, resolved)

    def examples(self, part: SpanPlan, resolved: ResolvedDefinition) -> Examples:
        """Return the examples of some runs of a span."""
        return examples_of(self.raw, part, resolved)


@dataclass(frozen=True, slots=True)
class Update:
    """The result of an update.

    Attributes:
      state: of the data set afterwards.
      sealed: the committed span versions.
      waiting: number of selected runs in the incomplete last span.
    """

    state: DatasetState
    sealed: tuple[SpanVersion, ...]
    waiting: int


#: Sources of a data set's runs.
RunSource = Union[StoredRuns, "ListedRuns"]


def create_dataset(
    data: DataRoot, definition: DatasetDefinition, *, origin: Mapping[str, Any] | None = None, now_us: int | None = None
) -> DatasetState:
    """Create a data set that starts at record 0 of the raw manifest. Idempotent for the same definition.

    Args:
      data: the data root.
      definition: of the data set.
      origin: record of the runs' origin for the manifest, unless it is the raw store of ``data``.
      now_us: time of the commit; by default the present.

    Raises:
      CimlError: if that name has another definition, or for an unresolved slicer.
    """
    if definition.slicer is not None and definition.raw_version is None:
        raise CimlError(f"data set {definition.name!r}: a slicer needs raw_version; ciml dataset build sets it")
    log = data.dataset(definition.name).log
    state = DatasetState()

    def build() -> Delta | None:
        if state.definition is None:
            return {
                "time_us": time.time_ns() // 1000 if now_us is None else now_us,
                "definition": definition.to_json(),
                **(origin or {}),
            }
        check_same(state.definition, definition)
        return None

    commit(log, state, build)
    return state


def update_dataset(
    dataset: StoredDataset,
    *,
    runner: str | None = None,
    job_endpoint: str = "",
    seal: bool = False,
    progress: Progress | None = None,
    now_us: int | None = None,
) -> Update:
    """Seal every complete span of the raw manifest, and new versions of spans with corrected labels.

    Args:
      dataset: an existing data set.
      runner: None calls the functions directly; ``fnapi`` and ``flink`` run them in Beam.
      job_endpoint: of Beam's job server, for ``flink``.
      seal: whether the last span is closed with fewer runs than the definition wants.
      progress: called as runs become examples.
      now_us: the time of the commits; the present by default.

    Raises:
      CimlError: if there is no such data set, or its first span cannot be resolved.
    """
    filling = Filling.of(dataset)
    return filling.fill(runner, job_endpoint, seal=seal, progress=progress, now_us=now_us)


def given_causes(data: DataRoot, definition: DatasetDefinition | None) -> dict[str, str]:
    """Return the causes that reviewers gave to runs, by run id, where a data set is about causes."""
    if definition is None or definition.class_label != CAUSE:
        return {}
    from ciml.verdicts.feedback.truths import corrections_of  # imports the review systems

    return {run_id: correction.cause for run_id, correction in corrections_of(data).items()}


def check_same(old: DatasetDefinition, new: DatasetDefinition) -> None:
    """Raise `CimlError`, naming the keys, if two definitions differ."""
    if old != new:
        before = old.to_json()
        after = new.to_json()
        keys = ", ".join(key for key in {**before, **after} if before.get(key) != after.get(key))
        raise CimlError(f"data set {new.name!r} exists with another {keys}; choose another name")


@dataclass
class Filling:
    """A data set, and the runs that its next spans are made of.

    Attributes:
      source: provides the runs.
      root: the data set's folder.
      state: of the data set; updated in place.
      pin: the runs of a definition with a slicer.
      given: causes that reviewers gave, by run id; a definition with a slicer does not use them.
      create: commits a new data set, whose ``state`` is a draft; None where it exists.
    """

    source: RunSource
    root: Store
    state: DatasetState
    pin: Pin | None
    given: Mapping[str, str]
    create: Callable[[], object] | None = None

    @classmethod
    def of(cls, dataset: StoredDataset) -> Filling:
        """Return that of an existing data set of stored runs."""
        state = dataset.state()
        source = StoredRuns(dataset.raw(state))
        sliced = state.definition is not None and state.definition.slicer is not None
        pin = Pin(source.log, state.definition) if sliced and state.definition is not None else None
        return cls(source, dataset.store, state, pin, given_causes(dataset.root, state.definition))

    def plan(self) -> Plan | PinnedPlan:
        """Return the plan of the remaining spans."""
        if self.pin is not None:
            return PinnedPlan(self.state, self.pin, self._resolve, self.source.log)
        history = None
        if (definition := self.state.definition) is not None:
            history = History(definition, self.given)
            if self.create is None and history.is_needed:  # a data set that exists keeps bookmarks of the raw manifest
                history = History(definition, self.given, bookmarks_of(definition, self.root, self.source.log))
        return Plan(self.state, self.source.log, self._resolve, history)

    def fill(
        self,
        runner: str | None = None,
        job_endpoint: str = "",
        *,
        seal: bool,
        progress: Progress | None = None,
        now_us: int | None = None,
    ) -> Update:
        """Seal all spans that can be sealed; arguments as of `update_dataset`."""
        progress = progress or no_progress
        sealed = list[SpanVersion]()
        lost = True
        while lost:
            if self.create is None:
                catch_up(ManifestLog(self.root), self.state)
            plan = self.plan()
            steps = plan.steps(seal=seal)
            if runner is None:
                made = self._direct(steps, progress)
            else:
                made = self._in_beam(steps, progress, runner, job_endpoint)
            lost = False
            for step, spans in made:
                if self.create is not None:
                    self.create()
                    self.create = None
                    self.state.version = 0
                if not commit_step(self.root, self.state, step, spans, now_us=now_us):
                    lost = True  # to another updater: plan the remaining spans again
                    break
                sealed.extend(self.state.spans[span.span][span.version] for span in spans)  # keep one object each
        if seal and not self.state.spans:
            raise no_runs(self.state, plan)
        return Update(self.state, tuple(sealed), plan.waiting)

    def _direct(self, steps: Iterator[Step], progress: Progress) -> Iterator[Sealed]:
        """Build the spans of one step after another in this process."""
        number = 0
        for step in steps:
            total = number + sum(len(plan.runs) for plan in step.spans)
            examples = partial(self.source.examples, resolved=step.resolved)
            spans = []
            for plan in step.spans:
                parts = []
                for batch in batches_of(plan, step.resolved):
                    parts.append(guarded_examples(batch, examples, step.resolved))
                    number += len(batch.runs)
                    progress("runs", number, total)
                spans.append(write_span(self.root, plan, parts, step.resolved))
            yield step, spans

    def _in_beam(self, steps: Iterator[Step], progress: Progress, runner: str, job_endpoint: str) -> Iterator[Sealed]:
        """Build the spans of all steps in one Beam pipeline."""
        from ciml.pipelines.datasets.beam import make_spans

        raw = self.raw()
        if not (planned := list(steps)):
            return
        runs = sum(len(plan.runs) for step in planned for plan in step.spans)
        progress("runs", 0, runs)
        made = make_spans(raw, self.root, planned, runner=runner, job_endpoint=job_endpoint)
        progress("runs", runs, runs)
        yield from made

    def _resolve(self, runs: Sequence[SelectedRun]) -> ResolvedDefinition:
        """Resolve features by the first span's runs; classes, and the automatic length, by all pinned runs.

        Only runs that were trusted when the span was sealed count, if there are any.
        """
        if self.state.definition is None:
            raise UnknownDatasetError("no such data set")
        voters = [run for run in runs if run.trust.trusted] or runs
        votes = Counter(self.source.columns(voters))
        columns = [names for column_names, runs in votes.items() for names in [telemetry_columns(column_names)] * runs]

        def all_voters() -> Iterable[SelectedRun]:
            return voters if self.pin is None else self.pin.voters()

        return resolve(
            self.state.definition,
            columns,
            (run.mention for run in all_voters()),
            lambda draft: _lengths(self.source, all_voters(), draft),
            lambda columns: _profiles(self.source, list(all_voters()), columns),
        )

    def raw(self) -> Store:
        """Return the raw store. Raises `CimlError` for the runs of a listing, which workers could not read."""
        if not isinstance(self.source, StoredRuns):
            raise CimlError("--runner needs stored runs; remove it, or fill a raw store first")
        return self.source.raw


def no_runs(state: DatasetState, plan: Plan | PinnedPlan) -> NoTrainingDataError:
    """Return the error of a data set without runs."""
    jobs = ", ".join(sorted(plan.other_jobs)[:20]) or "none"
    name, job_globs = (state.definition.name, ", ".join(state.definition.build_name)) if state.definition else ("", "")
    return NoTrainingDataError(f"data set {name!r}: build_name {job_globs}: no stored run matches; stored jobs: {jobs}")


def _profiles(source: RunSource, runs: Sequence[SelectedRun], columns: Sequence[str]) -> dict[str, Any]:
    """Return the profiles of the passing runs, as JSON. Only the runs that count are read."""
    from ciml.transforms.profiles import make_profiles

    jobs = Counter[str]()
    counted = []
    for run in runs:
        if run.mention.outcome == "success" and jobs[run.mention.build_name] < MAX_PROFILE_RUNS:
            jobs[run.mention.build_name] += 1
            counted.append(run)
    # As it will be read back: lists, no tuples.
    profiles: dict[str, Any] = json.loads(json.dumps(make_profiles(source.tables(counted), columns).to_json()))
    return profiles


def _lengths(source: RunSource, runs: Iterable[SelectedRun], draft: ResolvedDefinition) -> Iterator[int]:
    """Yield the number of windows of each example; a run that raises an unexpected exception is omitted."""
    examples = [run for run in runs if not isinstance(draft.label_of(run.mention), str)]
    for _, lengths in bisect("lengths", examples, lambda some: source.lengths(some, draft)):
        if not isinstance(lengths, RejectedInput):
            yield from lengths.tolist()


def with_default_windows(dataset: StoredDataset, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a new definition with ``max_windows = "auto"``, unless they say otherwise.

    An existing data set that was created without the key keeps that meaning.

    Args:
      dataset: the data set to be created or continued.
      keys: of its definition, as written.

    Example:
      DatasetDefinition.from_json(with_default_windows(data.dataset("cpu"), {"name": "cpu"}))
    """
    if keys.get("max_windows") is not None or keys.get("aggregation_functions"):
        return dict(keys)
    state = DatasetState()
    catch_up(dataset.log, state)
    if state.definition is not None and state.definition.max_windows is None:
        return dict(keys)
    return {**keys, "max_windows": AUTO}


def verify_dataset(
    dataset: StoredDataset, *, progress: Progress | None = None, formats: Counter[str] | None = None
) -> list[str]:
    """Verify a data set; return its defects, a line each.

    Checks that every named file exists with its rows and digests, that every selected run before the cursor is in
    exactly one span, and that there are no other files. ``formats`` is that of `verify_span`.
    """
    state = dataset.state()
    root = dataset.store
    wrong: list[str] = []
    definition = state.definition
    resolved = state.resolved
    if definition is None or resolved is None:
        return wrong
    versions = [span for by_version in state.spans.values() for span in by_version.values()]
    for number, span in enumerate(versions, 1):
        wrong.extend(verify_span(root, span, resolved, formats))
        if progress:
            progress("spans", number, len(versions))
    have = [run_id for span in state.latest() for run_id in span.run_ids()]
    if state.listing is not None:
        run_ids = set(have)  # runs of a listing, whose location is unknown
    elif definition.slicer is not None:
        pin = Pin(StoredRuns(dataset.raw(state)).log, definition)
        run_ids = set(pin.run_ids[: len(state.spans) * definition.span_runs])
    else:
        run_ids = {
            record.mention.run_id
            for version, delta in StoredRuns(dataset.raw(state)).log.since(0)
            for index, record in enumerate(delta.rows)
            if (version, index) < state.cursor and definition.selects(record.mention.build_name)
        }
    wrong.extend(f"run {run_id} is in the data set twice" for run_id, times in Counter(have).items() if times > 1)
    wrong.extend(f"run {run_id} is selected but in no span" for run_id in sorted(run_ids - set(have)))
    wrong.extend(f"run {run_id} is in a span but not selected" for run_id in sorted(set(have) - run_ids))
    named = {path for span in versions for path in span.paths}
    wrong.extend(
        f"{root.url(path)} is not named by any manifest"
        for path in root.list()
        if path.startswith("span-") and path not in named
    )
    return wrong
