"""Data sets: deterministic consumers of the raw manifest, each with its own cursor in its own manifest.

What is sealed is decided by manifests alone (`ciml.datasets.plan`). So two updaters at once, or one that was killed and
starts again, compute the same spans and the same content-named files; one of them commits, the other finds it done.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ciml.data_root import DataRoot, StoredDataset
from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition, resolve
from ciml.datasets.pin import Pin, PinnedPlan
from ciml.datasets.plan import Plan, SelectedRun, SpanPlan, Step
from ciml.datasets.state import DatasetState, SpanVersion, span_folder
from ciml.errors import CimlError
from ciml.manifest.log import Delta, ManifestLog, catch_up, commit
from ciml.storage.open import Store
from ciml.telemetry import telemetry_columns
from pipelines.datasets.run_source import RunSource, StoredRuns
from transforms.examples.spans import batches_of, guarded_examples, read_span, verify_span, write_span

__all__ = ["Update", "create_dataset", "read_span", "update_dataset", "verify_dataset"]

#: (runs made so far, runs to make) of the spans that are being sealed.
Progress = Callable[[int, int], None]
Produce = Callable[[RunSource, Store, Iterator[Step], Progress | None], Iterator[tuple[Step, Sequence[SpanVersion]]]]


@dataclass(frozen=True, slots=True)
class Update:
    """What an update did.

    Attributes:
      state: of the data set afterwards.
      sealed: the span versions that it committed.
      waiting: how many selected runs wait for their span to fill up.
    """

    state: DatasetState
    sealed: tuple[SpanVersion, ...]
    waiting: int


def create_dataset(
    data: DataRoot, definition: DatasetDefinition, *, told: Mapping[str, Any] | None = None, now_us: int | None = None
) -> DatasetState:
    """Create a data set, which will start at record 0 of the raw manifest. The same definition again changes nothing.

    Args:
      data: the data root below which it is to be.
      definition: what it is made of.
      told: what the manifest is to say beside it: where the runs are, unless in the raw store of ``data``.
      now_us: the time of the commit; the present by default.

    Raises:
      CimlError: when there is one of that name with another definition; or a slicer that nobody has resolved.
    """
    if definition.slicer is not None and definition.raw_version is None:
        raise CimlError(f"data set {definition.name!r}: a slicer needs its raw_version, which ciml dataset build finds")
    log, state = data.dataset(definition.name).log, DatasetState()

    def build() -> Delta | None:
        if state.definition is None:
            return {"time_us": _now(now_us), "definition": definition.to_json(), **(told or {})}
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
    """Seal every span that the raw manifest has the runs for, and new versions of those with corrected labels.

    Args:
      dataset: one that was created.
      runner: None calls the functions directly; ``fnapi`` and ``flink`` run them in Beam.
      job_endpoint: of Beam's job server, for ``flink``.
      seal: whether the last span is closed with fewer runs than the definition wants.
      progress: called as runs become examples.
      now_us: the time of the commits; the present by default.

    Raises:
      CimlError: when there is no such data set, or its first span does not resolve.
    """
    state = dataset.state()
    raw = dataset.raw(state)
    pin = None
    if state.definition is not None and state.definition.slicer is not None:
        pin = Pin(StoredRuns(raw).log, state.definition)
    produce = producer(runner, job_endpoint)
    return fill(StoredRuns(raw), dataset.store, state, produce, pin, seal=seal, progress=progress, now_us=now_us)


def producer(runner: str | None, job_endpoint: str = "") -> Produce:
    """What makes the spans: None calls the functions directly; ``fnapi`` and ``flink`` run them in Beam."""
    return _direct if runner is None else partial(_in_beam, runner=runner, job_endpoint=job_endpoint)


def check_same(old: DatasetDefinition, new: DatasetDefinition) -> None:
    """Raise `CimlError`, which names what differs."""
    if old != new:
        before, after = old.to_json(), new.to_json()
        keys = ", ".join(key for key in {**before, **after} if before.get(key) != after.get(key))
        raise CimlError(f"data set {new.name!r} exists with another {keys}: choose another name")


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
) -> Update:
    """Seal what there is to be sealed.

    Args:
      source: what has the runs.
      root: the data set's folder.
      state: of the data set; it is kept up to date.
      produce: see `producer`.
      pin: the runs of a definition that has a slicer.
      create: called before the first commit of a data set that is not there yet, and whose ``state`` is a draft.
      seal: whether the last span is closed with fewer runs than the definition wants.
      progress: called as runs become examples.
      now_us: the time of the commits; the present by default.
    """
    log, sealed = ManifestLog(root), list[SpanVersion]()
    while True:
        if create is None:
            catch_up(log, state)
        plan: Plan | PinnedPlan
        if pin is None:
            plan = Plan(state, source.log, partial(_resolve, state, source))
        else:
            plan = PinnedPlan(state, pin, partial(_resolve, state, source, pin=pin), source.log)
        lost = False
        for step, spans in produce(source, root, plan.steps(seal=seal), progress):
            if create is not None:
                create()
                state.version, create = 0, None
            delta = _delta(step, spans, resolved_before=step.base > 1, now_us=_now(now_us))
            committed = commit(log, state, lambda step=step, delta=delta: delta if state.version == step.base else None)  # type: ignore[misc]
            _sweep(root, state, spans)
            if committed is None:
                lost = True  # to another updater: what it did not do is planned anew
                break
            sealed.extend(state.spans[span.span][span.version] for span in spans)  # each is held once
        if not lost:
            break
    if seal and not state.spans:
        jobs = ", ".join(sorted(plan.other_jobs)[:20]) or "none at all"
        name, wanted = (state.definition.name, ", ".join(state.definition.build_name)) if state.definition else ("", "")
        raise CimlError(f"data set {name!r}: build_name {wanted}: no stored run matches; stored jobs: {jobs}")
    return Update(state, tuple(sealed), plan.waiting)


def _resolve(
    state: DatasetState, source: RunSource, runs: Sequence[SelectedRun], *, pin: Pin | None = None
) -> ResolvedDefinition:
    """Resolve by the first span's runs, and the classes by all that are pinned: those that were trusted when they
    came, if any were."""
    if state.definition is None:
        raise CimlError("no such data set")
    voters = [run for run in runs if run.trust.trusted] or runs
    found = Counter(source.columns(voters))
    columns = [names for each, runs in found.items() for names in [telemetry_columns(each)] * runs]
    return resolve(state.definition, columns, (run.mention for run in (voters if pin is None else pin.voters())))


def _direct(
    source: RunSource, root: Store, steps: Iterator[Step], progress: Progress | None
) -> Iterator[tuple[Step, Sequence[SpanVersion]]]:
    """Make the spans of one step after another in this process."""
    done = 0
    for step in steps:
        total = done + sum(len(plan.runs) for plan in step.spans)
        spans = []
        for plan in step.spans:
            parts = []
            for batch in batches_of(plan, step.resolved):
                parts.append(guarded_examples(batch, partial(source.examples, resolved=step.resolved), step.resolved))
                done += len(batch.runs)
                if progress:
                    progress(done, total)
            spans.append(write_span(root, plan, parts, step.resolved))
        yield step, spans


def _in_beam(
    source: RunSource, root: Store, steps: Iterator[Step], progress: Progress | None, *, runner: str, job_endpoint: str
) -> Iterator[tuple[Step, Sequence[SpanVersion]]]:
    """Make the spans of all steps in one Beam pipeline."""
    from pipelines.datasets.spans_beam import make_spans

    if not isinstance(source, StoredRuns):
        raise CimlError("a runner makes examples of stored runs alone: leave it out, or fill a raw store first")

    planned = list(steps)
    if not planned:
        return
    plans: list[SpanPlan] = [plan for step in planned for plan in step.spans]
    runs = sum(len(plan.runs) for plan in plans)
    if progress:
        progress(0, runs)
    made = make_spans(source.raw, root, plans, planned[0].resolved, runner=runner, job_endpoint=job_endpoint)
    if progress:
        progress(runs, runs)
    for step in planned:
        yield step, [made[plan.span, plan.version] for plan in step.spans]


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
    return delta if resolved_before else {**delta, "resolved": step.resolved.to_json()}


def _sweep(root: Store, state: DatasetState, spans: Sequence[SpanVersion]) -> None:
    """Remove what other updaters left in the folders of committed spans.

    It is theirs to lose: no span is committed twice, so no manifest will ever name it.
    """
    for span in spans:
        if committed := state.spans.get(span.span, {}).get(span.version):
            for path in root.list(span_folder(span.span, span.version)):
                if path not in committed.paths:
                    root.delete(path)


def verify_dataset(dataset: StoredDataset, *, progress: Progress | None = None) -> list[str]:
    """What is wrong with a data set, a line each; nothing when every number and digest adds up.

    Every file that the manifest names is there with its rows and digests; every selected run before the cursor is in
    exactly one span; no other files lie beside them.
    """
    state, root = dataset.state(), dataset.store
    wrong: list[str] = []
    definition, resolved = state.definition, state.resolved
    if definition is None or resolved is None:
        return wrong
    versions = [span for by_version in state.spans.values() for span in by_version.values()]
    for done, span in enumerate(versions, 1):
        wrong.extend(verify_span(root, span, resolved))
        if progress:
            progress(done, len(versions))
    have = [run_id for span in state.latest() for run_id in span.run_ids()]
    if state.listing is not None:
        wanted = set(have)  # those of a listing, which may be anywhere
    elif definition.slicer is not None:
        pin = Pin(StoredRuns(dataset.raw(state)).log, definition)
        wanted = set(pin.run_ids[: len(state.spans) * definition.span_runs])
    else:
        wanted = {
            record.mention.run_id
            for version, delta in StoredRuns(dataset.raw(state)).log.since(0)
            for index, record in enumerate(delta.rows)
            if (version, index) < state.cursor and definition.selects(record.mention.build_name)
        }
    wrong.extend(f"the run {run_id} is in a data set twice" for run_id, times in Counter(have).items() if times > 1)
    wrong.extend(f"the run {run_id} is selected, and in no span" for run_id in sorted(wanted - set(have)))
    wrong.extend(f"the run {run_id} is in a span, and not selected" for run_id in sorted(set(have) - wanted))
    named = {path for span in versions for path in span.paths}
    wrong.extend(
        f"{root.url(path)} is named by no manifest"
        for path in root.list()
        if path.startswith("span-") and path not in named
    )
    return wrong


def _now(now_us: int | None) -> int:
    return time.time_ns() // 1000 if now_us is None else now_us
