"""Data sets: deterministic consumers of the raw manifest, each with its own cursor in its own manifest.

Manifests alone decide what is sealed (`ciml.transforms.examples.plan`). So concurrent or restarted updaters compute the
same spans and the same content-named files; one commits them, the others find them committed.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ciml.data_root import DataRoot, StoredDataset
from ciml.datasets.definition import AUTO, DatasetDefinition, ResolvedDefinition, resolve
from ciml.datasets.state import DatasetState, SpanVersion, span_folder
from ciml.errors import CimlError, NoTrainingDataError, RejectedInput, UnknownDatasetError
from ciml.events.outcomes import CAUSE
from ciml.limits import MAX_PROFILE_RUNS
from ciml.manifest.log import Delta, ManifestLog, catch_up, commit
from ciml.pipelines.datasets.run_source import RunSource, StoredRuns
from ciml.progress import Progress
from ciml.storage import Store
from ciml.telemetry import telemetry_columns
from ciml.transforms.examples.pin import Pin, PinnedPlan
from ciml.transforms.examples.plan import History, Plan, SelectedRun, SpanPlan, Step, bookmarks_of
from ciml.transforms.examples.spans import batches_of, guarded_examples, verify_span, write_span
from ciml.transforms.guard import bisect
from ciml.verdicts.feedback.truths import corrections_of

Produce = Callable[[RunSource, Store, Iterator[Step], Progress | None], Iterator[tuple[Step, Sequence[SpanVersion]]]]


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
            return {"time_us": _now(now_us), "definition": definition.to_json(), **(origin or {})}
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
    state = dataset.state()
    raw = dataset.raw(state)
    pin = None
    if state.definition is not None and state.definition.slicer is not None:
        pin = Pin(StoredRuns(raw).log, state.definition)
    produce = producer(runner, job_endpoint)
    causes = given_causes(dataset.root, state.definition)
    return fill(
        StoredRuns(raw), dataset.store, state, produce, pin, seal=seal, given=causes, progress=progress, now_us=now_us
    )


def given_causes(data: DataRoot, definition: DatasetDefinition | None) -> dict[str, str]:
    """Return the causes that reviewers gave to runs, by run id, where a data set is about causes."""
    if definition is None or definition.class_label != CAUSE:
        return {}
    return {run_id: correction.cause for run_id, correction in corrections_of(data).items()}


def producer(runner: str | None, job_endpoint: str = "") -> Produce:
    """Return the producer of spans: None calls the functions directly; ``fnapi`` and ``flink`` run them in Beam."""
    return _direct if runner is None else partial(_in_beam, runner=runner, job_endpoint=job_endpoint)


def check_same(old: DatasetDefinition, new: DatasetDefinition) -> None:
    """Raise `CimlError`, naming the keys, if two definitions differ."""
    if old != new:
        before = old.to_json()
        after = new.to_json()
        keys = ", ".join(key for key in {**before, **after} if before.get(key) != after.get(key))
        raise CimlError(f"data set {new.name!r} exists with another {keys}; choose another name")


def fill(
    source: RunSource,
    root: Store,
    state: DatasetState,
    produce: Produce,
    pin: Pin | None,
    *,
    create: Callable[[], DatasetState] | None = None,
    seal: bool,
    progress: Progress | None,
    now_us: int | None,
    given: Mapping[str, str] | None = None,
) -> Update:
    """Seal all spans that can be sealed.

    Args:
      source: provides the runs.
      root: the data set's folder.
      state: of the data set; updated in place.
      produce: see `producer`.
      pin: the runs of a definition with a slicer.
      create: called before the first commit of a new data set, whose ``state`` is a draft.
      seal: whether the last span is closed with fewer runs than the definition wants.
      progress: called as runs become examples.
      now_us: the time of the commits; the present by default.
      given: causes that reviewers gave, by run id; a definition with a slicer does not use them.
    """
    log = ManifestLog(root)
    sealed = list[SpanVersion]()
    while True:
        if create is None:
            catch_up(log, state)
        plan = plan_of(source, state, pin, given, root if create is None else None)
        lost = False
        for step, spans in produce(source, root, plan.steps(seal=seal), progress):
            if create is not None:
                create()
                state.version = 0
                create = None
            if not commit_step(root, state, step, spans, now_us=now_us):
                lost = True  # to another updater: plan the remaining spans again
                break
            sealed.extend(state.spans[span.span][span.version] for span in spans)  # keep one object each
        if not lost:
            break
    if seal and not state.spans:
        raise no_runs(state, plan)
    return Update(state, tuple(sealed), plan.waiting)


def plan_of(
    source: RunSource, state: DatasetState, pin: Pin | None, given: Mapping[str, str] | None, root: Store | None
) -> Plan | PinnedPlan:
    """Return the plan of the remaining spans of a data set.

    Args:
      source, state, pin, given: as for `fill`.
      root: the data set's folder, which keeps bookmarks of the raw manifest; None for one that does not exist yet.
    """
    if pin is not None:
        return PinnedPlan(state, pin, partial(_resolve, state, source, pin=pin), source.log)
    history = None
    if state.definition is not None:
        history = History(state.definition, given)
        if root is not None and history.is_needed:
            history = History(state.definition, given, bookmarks_of(state.definition, root, source.log))
    return Plan(state, source.log, partial(_resolve, state, source), history)


def commit_step(
    root: Store, state: DatasetState, step: Step, spans: Sequence[SpanVersion], *, now_us: int | None = None
) -> bool:
    """Commit the spans of a step, and remove other updaters' files from their folders.

    Args:
      root: the data set's folder.
      state: of the data set; updated in place.
      step: the step, which follows the delta ``step.base``.
      spans: its spans, as they were written.
      now_us: the time of the commit; the present by default.

    Returns:
      Whether it was committed; False where another updater came first.
    """
    delta = _delta(step, spans, resolved_before=step.base > 1, now_us=_now(now_us))
    committed = commit(ManifestLog(root), state, lambda: delta if state.version == step.base else None)
    _collect_garbage(root, state, spans)
    return committed is not None


def no_runs(state: DatasetState, plan: Plan | PinnedPlan) -> NoTrainingDataError:
    """Return the error of a data set without runs."""
    jobs = ", ".join(sorted(plan.other_jobs)[:20]) or "none"
    name, job_globs = (state.definition.name, ", ".join(state.definition.build_name)) if state.definition else ("", "")
    return NoTrainingDataError(f"data set {name!r}: build_name {job_globs}: no stored run matches; stored jobs: {jobs}")


def _resolve(
    state: DatasetState, source: RunSource, runs: Sequence[SelectedRun], *, pin: Pin | None = None
) -> ResolvedDefinition:
    """Resolve features by the first span's runs; classes, and the automatic length, by all pinned runs.

    Only runs that were trusted when the span was sealed count, if there are any.
    """
    if state.definition is None:
        raise UnknownDatasetError("no such data set")
    voters = [run for run in runs if run.trust.trusted] or runs
    votes = Counter(source.columns(voters))
    columns = [names for column_names, runs in votes.items() for names in [telemetry_columns(column_names)] * runs]

    def all_voters() -> Iterable[SelectedRun]:
        return voters if pin is None else pin.voters()

    return resolve(
        state.definition,
        columns,
        (run.mention for run in all_voters()),
        lambda draft: _lengths(source, [run for run in all_voters() if _is_example(run, draft)], draft),
        lambda columns: _profiles(source, list(all_voters()), columns),
    )


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


def _is_example(run: SelectedRun, draft: ResolvedDefinition) -> bool:
    return not isinstance(draft.label_of(run.mention), str)


def _lengths(source: RunSource, runs: Sequence[SelectedRun], draft: ResolvedDefinition) -> Iterator[int]:
    """Yield the number of windows of each run; a run that raises an unexpected exception is omitted."""
    for _, lengths in bisect("lengths", runs, lambda some: source.lengths(some, draft)):
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


def _direct(
    source: RunSource, root: Store, steps: Iterator[Step], progress: Progress | None
) -> Iterator[tuple[Step, Sequence[SpanVersion]]]:
    """Build the spans of one step after another in this process."""
    number = 0
    for step in steps:
        total = number + sum(len(plan.runs) for plan in step.spans)
        spans = []
        for plan in step.spans:
            parts = []
            for batch in batches_of(plan, step.resolved):
                parts.append(guarded_examples(batch, partial(source.examples, resolved=step.resolved), step.resolved))
                number += len(batch.runs)
                if progress:
                    progress("runs", number, total)
            spans.append(write_span(root, plan, parts, step.resolved))
        yield step, spans


def _in_beam(
    source: RunSource, root: Store, steps: Iterator[Step], progress: Progress | None, *, runner: str, job_endpoint: str
) -> Iterator[tuple[Step, Sequence[SpanVersion]]]:
    """Build the spans of all steps in one Beam pipeline."""
    from ciml.pipelines.datasets.spans_beam import make_spans

    if not isinstance(source, StoredRuns):
        raise CimlError("--runner needs stored runs; remove it, or fill a raw store first")

    planned = list(steps)
    if not planned:
        return
    plans: list[SpanPlan] = [plan for step in planned for plan in step.spans]
    runs = sum(len(plan.runs) for plan in plans)
    if progress:
        progress("runs", 0, runs)
    versions = make_spans(source.raw, root, plans, planned[0].resolved, runner=runner, job_endpoint=job_endpoint)
    if progress:
        progress("runs", runs, runs)
    for step in planned:
        yield step, [versions[plan.span, plan.version] for plan in step.spans]


def _delta(step: Step, spans: Sequence[SpanVersion], *, resolved_before: bool, now_us: int) -> Delta:
    delta: dict[str, Any] = {
        "time_us": now_us,
        "cursor": list(step.cursor),
        "corrections_to": step.corrections_to,
        "spans": [span.to_json() for span in spans],
        "corrections": [
            {"run_id": run_id, "outcome": outcome, "result": result}
            for run_id, (outcome, result) in step.corrections.items()
        ],
    }
    if step.causes:
        delta["causes"] = [{"run_id": run_id, "cause": cause} for run_id, cause in step.causes.items()]
    return delta if resolved_before else {**delta, "resolved": step.resolved.to_json()}


def _collect_garbage(root: Store, state: DatasetState, spans: Sequence[SpanVersion]) -> None:
    """Remove files of other updaters from the folders of committed spans.

    No span is committed twice, so no manifest will ever name these files.
    """
    for span in spans:
        if committed := state.spans.get(span.span, {}).get(span.version):
            for path in root.list(span_folder(span.span, span.version)):
                if path not in committed.paths:
                    root.delete(path)


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


def _now(now_us: int | None) -> int:
    return time.time_ns() // 1000 if now_us is None else now_us
