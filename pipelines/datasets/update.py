"""Creates, updates and verifies data sets, which read the raw manifest, each with a cursor in its own manifest.

The manifests alone decide which runs a span has (`ciml.transforms.examples.plan`). So concurrent or restarted updaters
compute the same spans and the same files, named by their content; one commits them, the others find them committed.

The runs come from a raw store, or from a listing and its logs (`ciml.pipelines.datasets.listed_runs`).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
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
from ciml.pipelines.datasets.commit import WrittenStep, commit_step, count_runs
from ciml.progress import Progress, no_progress
from ciml.runs.reader import read_columns, read_runs
from ciml.runs.run_log import RunLog, StoredRunLog
from ciml.storage import Store
from ciml.telemetry import telemetry_columns
from ciml.transforms.examples.changes import History, SelectedRun, bookmarks_of
from ciml.transforms.examples.context import known_outputs_of, other_vocabulary
from ciml.transforms.examples.pin import Pin, PinnedPlan
from ciml.transforms.examples.plan import Plan, SpanPlan, Step
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
from ciml.transforms.logs.known import known_outputs
from ciml.transforms.logs.run_outputs import stored_printed
from ciml.trust import evaluate, former_policy

if TYPE_CHECKING:
    from ciml.pipelines.datasets.listed_runs import ListedRuns  # imports the log readers

_RUNS_AT_ONCE = 50  # runs whose telemetry is in memory at a time


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
      seal: whether to seal the last span even if it has fewer runs than the definition asks for.
      progress: called as runs become examples.
      now_us: the time of the commits; the present by default.

    Raises:
      CimlError: if there is no such data set, or its first span cannot be resolved.
    """
    updater = Updater.of_stored_runs(dataset)
    return updater.run(runner, job_endpoint, seal=seal, progress=progress, now_us=now_us)


def check_same(old: DatasetDefinition, new: DatasetDefinition) -> None:
    """Raise `CimlError`, naming the keys, if two definitions differ."""
    if old != new:
        before = old.to_json()
        after = new.to_json()
        keys = ", ".join(key for key in {**before, **after} if before.get(key) != after.get(key))
        raise CimlError(f"data set {new.name!r} exists with another {keys}; choose another name")


def with_default_windows(dataset: StoredDataset | None, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a new definition with ``max_windows = "auto"``, unless they say otherwise.

    An existing data set that was created without the key keeps that meaning.

    Args:
      dataset: the data set to be created or continued; None for one that replaces another.
      keys: of its definition, as written.

    Example:
      DatasetDefinition.from_json(with_default_windows(data.dataset("cpu"), {"name": "cpu"}))
    """
    if keys.get("max_windows") is not None or keys.get("aggregation_functions"):
        return dict(keys)
    definition = None if dataset is None else catch_up(dataset.log, DatasetState()).definition
    if definition is not None and definition.max_windows is None:
        return dict(keys)
    return {**keys, "max_windows": AUTO}


def verify_dataset(
    dataset: StoredDataset, *, progress: Progress | None = None, formats: Counter[str] | None = None
) -> list[str]:
    """Verify a data set; return its defects, a line each.

    Checks that every named file exists with its rows and digests, that every selected run before the cursor is in
    exactly one span, and that there are no other files. ``formats`` is passed to `verify_span`.
    """
    state = dataset.state()
    if state.definition is None or state.resolved is None:
        return []
    root = dataset.store
    defects: list[str] = []
    versions = [span for by_version in state.spans.values() for span in by_version.values()]
    for number, span in enumerate(versions, 1):
        defects.extend(verify_span(root, span, state.resolved, formats))
        if progress:
            progress("spans", number, len(versions))
    span_runs = Counter(run_id for span in state.latest() for run_id in span.run_ids())
    # The location of a listing is unknown, so its runs cannot be compared.
    selected = _selected_runs(dataset, state, state.definition) if state.listing is None else span_runs.keys()
    defects.extend(f"run {run_id} is in the data set twice" for run_id, times in span_runs.items() if times > 1)
    defects.extend(f"run {run_id} is selected but in no span" for run_id in sorted(selected - span_runs.keys()))
    defects.extend(f"run {run_id} is in a span but not selected" for run_id in sorted(span_runs.keys() - selected))
    named_paths = {path for span in versions for path in span.paths}
    defects.extend(
        f"{root.url(path)} is not named by any manifest"
        for path in root.list()
        if path.startswith("span-") and path not in named_paths
    )
    return defects


def _selected_runs(dataset: StoredDataset, state: DatasetState, definition: DatasetDefinition) -> Set[str]:
    """Return the ids of the runs before the cursor that the definition selects."""
    log = StoredRuns(dataset.raw(state)).log
    if definition.slicer is not None:
        return set(Pin(log, definition).run_ids[: len(state.spans) * definition.span_runs])
    return {
        record.mention.run_id
        for version, delta in log.since(0)
        for index, record in enumerate(delta.rows)
        if (version, index) < state.cursor and definition.selects(record.mention.build_name)
    }


@dataclass
class Updater:
    """Seals the next spans of a data set.

    Attributes:
      source: provides the runs.
      root: the data set's folder.
      state: of the data set; each commit updates it.
      pin: the runs of a definition with a slicer; None without one.
      causes: those that reviewers gave, by run id. A definition with a slicer does not use them.
      create: commits a new data set before its first span; None for an existing one. Until then, ``state`` is a draft.
    """

    source: RunSource
    root: Store
    state: DatasetState
    pin: Pin | None
    causes: Mapping[str, str]
    create: Callable[[], object] | None = None

    @classmethod
    def of_stored_runs(cls, dataset: StoredDataset) -> Updater:
        """Return the updater of an existing data set of stored runs."""
        state = dataset.state()
        source = StoredRuns(dataset.raw(state))
        pin = None
        if state.definition is not None and state.definition.slicer is not None:
            pin = Pin(source.log, state.definition)
        return cls(source, dataset.store, state, pin, reviewed_causes(dataset.root, state.definition))

    def plan(self) -> Plan | PinnedPlan:
        """Return the plan of the remaining spans."""
        if self.pin is not None:
            return PinnedPlan(self.state, self.pin, self._resolve, self.source.log)
        history = None
        definition = self.state.definition
        if definition is not None:
            history = History(definition, self.causes)
            if self.create is None and history.is_needed:  # bookmarks are in the folder of an existing data set
                history = History(definition, self.causes, bookmarks_of(definition, self.root, self.source.log))
        return Plan(self.state, self.source.log, self._resolve, history)

    def run(
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
        sealed: list[SpanVersion] = []
        is_overtaken = True  # by another updater, whose commit came first: plan the remaining spans again
        while is_overtaken:
            if self.create is None:
                catch_up(ManifestLog(self.root), self.state)
            plan = self.plan()
            steps = map(_with_one_vocabulary, plan.steps(seal=seal))
            if runner is None:
                written_steps = self._write_here(steps, progress)
            else:
                written_steps = self._write_in_beam(steps, progress, runner, job_endpoint)
            is_overtaken = False
            for written in written_steps:
                if not self._commit(written, now_us):
                    is_overtaken = True
                    break
                # The committed objects replace the equal ones in memory.
                sealed.extend(self.state.spans[span.span][span.version] for span in written.spans)
        if seal and not self.state.spans:
            raise no_runs_error(self.state, plan)
        return Update(self.state, tuple(sealed), plan.waiting)

    def _commit(self, written: WrittenStep, now_us: int | None) -> bool:
        """Commit the spans of a step, after the new data set; return False if another updater came first."""
        if self.create is not None:
            self.create()
            self.create = None
            self.state.version = 0  # `commit_step` replaces the draft by the committed state
        return commit_step(self.root, self.state, written, now_us=now_us)

    def _write_here(self, steps: Iterator[Step], progress: Progress) -> Iterator[WrittenStep]:
        """Write the spans of one step after another in this process."""
        number = 0
        for step in steps:
            total = number + count_runs(step)
            examples = partial(self.source.examples, resolved=step.resolved)
            spans = []
            for plan in step.spans:
                parts = []
                for batch in batches_of(plan, step.resolved):
                    parts.append(guarded_examples(batch, examples, step.resolved))
                    number += len(batch.runs)
                    progress("runs", number, total)
                spans.append(write_span(self.root, plan, parts, step.resolved))
            yield WrittenStep(step, spans)

    def _write_in_beam(
        self, steps: Iterator[Step], progress: Progress, runner: str, job_endpoint: str
    ) -> Iterator[WrittenStep]:
        """Write the spans of all steps in one Beam pipeline."""
        from ciml.pipelines.datasets.beam import write_spans

        raw = self.raw()
        planned = list(steps)
        if not planned:
            return
        runs = sum(count_runs(step) for step in planned)
        progress("runs", 0, runs)
        written_steps = write_spans(raw, self.root, planned, runner=runner, job_endpoint=job_endpoint)
        progress("runs", runs, runs)
        yield from written_steps

    def _resolve(self, runs: Sequence[SelectedRun]) -> ResolvedDefinition:
        """Resolve features by the first span's runs; classes, and the automatic length, by all pinned runs.

        Only runs that were trusted when the span was sealed count, if there are any.
        """
        if self.state.definition is None:
            raise UnknownDatasetError("no such data set")
        voters = [run for run in runs if run.trust.trusted] or runs
        votes = Counter(self.source.columns(voters))
        telemetry = {names: telemetry_columns(names) for names in votes}
        columns = [telemetry[names] for names in votes.elements()]

        def all_voters() -> Iterable[SelectedRun]:
            return voters if self.pin is None else self.pin.voters()

        return resolve(
            self.state.definition,
            columns,
            (run.mention for run in all_voters()),
            lambda draft: _lengths(self.source, all_voters(), draft),
            lambda columns: _profiles(self.source, list(all_voters()), columns),
            lambda: known_outputs(self.source.templates(_profiled(all_voters()))).to_json(),
        )

    def raw(self) -> Store:
        """Return the raw store. Raises `CimlError` for the runs of a listing, which workers could not read."""
        if not isinstance(self.source, StoredRuns):
            raise CimlError("--runner needs stored runs; remove it, or fill a raw store first")
        return self.source.raw


def _with_one_vocabulary(step: Step) -> Step:
    """Return a step. Raises `CimlError` if its examples could not be compared with those of earlier spans."""
    definition = step.resolved.definition
    if "log" in (definition.context or ()) and not known_outputs_of(step.resolved).is_current:
        raise CimlError(other_vocabulary(definition.name))
    return step


def no_runs_error(state: DatasetState, plan: Plan | PinnedPlan) -> NoTrainingDataError:
    """Return the error of a data set without runs."""
    jobs = ", ".join(sorted(plan.other_jobs)[:20]) or "none"
    name = state.definition.name if state.definition else ""
    job_globs = ", ".join(state.definition.build_name) if state.definition else ""
    return NoTrainingDataError(f"data set {name!r}: build_name {job_globs}: no stored run matches; stored jobs: {jobs}")


def reviewed_causes(data: DataRoot, definition: DatasetDefinition | None) -> dict[str, str]:
    """Return the causes that reviewers gave to runs, by run id, where a data set is about causes."""
    if definition is None or definition.class_label != CAUSE:
        return {}
    from ciml.verdicts.feedback.truths import corrections_of  # imports the review systems

    return {run_id: correction.cause for run_id, correction in corrections_of(data).items()}


def _profiles(source: RunSource, runs: Sequence[SelectedRun], columns: Sequence[str]) -> dict[str, Any]:
    """Return the profiles of the passing runs, as JSON. Only the runs that count are read."""
    from ciml.transforms.profiles import make_profiles

    profiled_runs = list(_profiled(runs))
    # As it will be read back: lists, no tuples.
    profiles: dict[str, Any] = json.loads(json.dumps(make_profiles(source.tables(profiled_runs), columns).to_json()))
    return profiles


def _profiled(runs: Iterable[SelectedRun]) -> Iterator[SelectedRun]:
    """Yield the passing runs that count in profiles."""
    runs_by_job = Counter[str]()
    for run in runs:
        job = run.mention.build_name
        if run.mention.outcome == "success" and runs_by_job[job] < MAX_PROFILE_RUNS:
            runs_by_job[job] += 1
            yield run


def _lengths(source: RunSource, runs: Iterable[SelectedRun], draft: ResolvedDefinition) -> Iterator[int]:
    """Yield the number of windows of each example; a run that raises an unexpected exception is omitted."""
    examples = [run for run in runs if not isinstance(draft.label_of(run.mention), str)]
    for _, lengths in bisect("lengths", examples, lambda part: source.lengths(part, draft)):
        if not isinstance(lengths, RejectedInput):
            yield from lengths.tolist()


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
        for start in range(0, len(runs), _RUNS_AT_ONCE):
            part = runs[start : start + _RUNS_AT_ONCE]
            yield from zip([run.mention for run in part], read_runs(self.raw, [run.file for run in part]), strict=True)

    def templates(self, runs: Iterable[SelectedRun]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield job and templates of each run whose output is stored."""
        for run in runs:
            printed = stored_printed(self.raw, run.output)
            if printed is not None:
                yield run.mention.build_name, tuple(printed)

    def lengths(self, runs: Sequence[SelectedRun], resolved: ResolvedDefinition) -> np.ndarray:
        """Return the number of windows of each run, int64 [n], at most L; 0 for a run without an example."""
        return lengths_of(self.raw, runs, resolved)

    def examples(self, part: SpanPlan, resolved: ResolvedDefinition) -> Examples:
        """Return the examples of some runs of a span."""
        return examples_of(self.raw, part, resolved)


#: Sources of a data set's runs.
RunSource = Union[StoredRuns, "ListedRuns"]
