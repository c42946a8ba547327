"""Plan the next spans of a data set from manifests alone, so that every process computes the same spans.

Span n is the next ``span_runs`` selected runs in the order of the raw manifest. A correction that is recorded before
the raw version in which a span ends is in the span's first version. Three later changes make a new version of the span:
a correction of a label, a reclaim, which replaces the run's row, and a rerun or a reviewer that changes a cause
(`ciml.runs.causes`).

A `Plan` yields `Step`s, the contents of the data set's next deltas. In this module a *raw version* counts the deltas of
the raw manifest, and a *version* counts those of a span.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ciml.datasets.definition import ResolvedDefinition
from ciml.datasets.state import DatasetState, Position
from ciml.errors import IntegrityError
from ciml.runs.run_log import RunDelta, RunLog
from ciml.transforms.examples.changes import Change, Fix, History, NewTrust, SelectedRun, apply_changes, changes_of


@dataclass(frozen=True, slots=True)
class SpanPlan:
    """A span version to be built from these runs."""

    span: int
    version: int
    runs: tuple[SelectedRun, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """The content of the next delta of a data set, which follows the delta ``base``.

    Attributes:
      base: version of the data set's manifest before the delta.
      resolved: the resolved definition.
      cursor: position in the raw manifest up to which runs are sealed.
      corrections_to: raw version up to which changes are applied.
      spans: new spans, and new versions of earlier ones.
      corrections: by run id, the outcomes that corrections and reclaims give to runs of these spans.
      causes: by run id, the causes that reruns or reviewers give to them; "" for a cause that is no longer known.
    """

    base: int
    resolved: ResolvedDefinition
    cursor: Position
    corrections_to: int
    spans: tuple[SpanPlan, ...]
    corrections: Mapping[str, Fix]
    causes: Mapping[str, str] = field(default_factory=dict)


#: Resolves the definition by the runs of the first span.
Resolver = Callable[[Sequence[SelectedRun]], ResolvedDefinition]


class _PendingRun(NamedTuple):
    """A selected run that is not sealed, with the changes so far; and its outcome by them, None without one."""

    run: SelectedRun
    fix: Fix | None


class _SpanContent(NamedTuple):
    """The last version of a span, and the positions of its runs, whose records are large."""

    version: int
    positions: Sequence[Position]


@dataclass(slots=True)
class _Draft:
    """The content of a step before its position is known; attributes as of `Step`."""

    spans: list[SpanPlan] = field(default_factory=list)
    corrections: dict[str, Fix] = field(default_factory=dict)
    causes: dict[str, str] = field(default_factory=dict)


class _PlannedState:
    """The state of a data set after the steps so far.

    Args:
      state: the state before the first step. The caller may commit steps to it meanwhile.

    Attributes:
      resolved: the resolved definition; None until the first span is planned.
      version, cursor, corrections_to: as in `DatasetState`.
      fixes, causes: ``corrections`` and ``causes`` as in `DatasetState`.
    """

    def __init__(self, state: DatasetState) -> None:
        self._state = state
        self._spans: dict[int, _SpanContent] = {}
        self._span_of: dict[str, int] = {}
        self.resolved = state.resolved
        self.version = state.version
        self.cursor = state.cursor
        self.corrections_to = state.corrections_to
        # Assignments change the first mapping only.
        self.fixes = ChainMap[str, Fix]({}, {run_id: Fix(*fix) for run_id, fix in state.corrections.items()})
        self.causes = ChainMap[str, str]({}, state.causes)

    @property
    def next_span(self) -> int:
        """The number of the next new span."""
        return len(self._state.spans.keys() | self._spans.keys()) + 1

    def span_of(self, run_id: str) -> int | None:
        """Return the number of the span of a run; None if the run is not sealed."""
        return self._span_of.get(run_id) or self._state.span_of.get(run_id)

    def last_version(self, span: int) -> _SpanContent:
        """Return the last version of a span."""
        if span in self._spans:
            return self._spans[span]
        version, content = max(self._state.spans[span].items())
        return _SpanContent(version, content.selected)

    def resolved_definition(self) -> ResolvedDefinition:
        """Return the resolved definition. Raise `IntegrityError` if no span was planned."""
        if self.resolved is None:
            raise IntegrityError("data set manifest: has spans but no resolved definition")
        return self.resolved

    def add_step(self, draft: _Draft, cursor: Position, corrections_to: int) -> Step:
        """Return the next step, and apply it to this state."""
        step = Step(
            base=self.version,
            resolved=self.resolved_definition(),
            cursor=cursor,
            corrections_to=corrections_to,
            spans=tuple(draft.spans),
            corrections=dict(sorted(draft.corrections.items())),
            causes=dict(sorted(draft.causes.items())),
        )
        for plan in step.spans:
            self._spans[plan.span] = _SpanContent(plan.version, tuple(run.position for run in plan.runs))
            self._span_of.update((run.run_id, plan.span) for run in plan.runs)
        self.fixes.update(step.corrections)
        self.causes.update(step.causes)
        self.version += 1
        self.cursor = cursor
        self.corrections_to = corrections_to
        return step


class Plan:
    """Plans the steps of a data set from its cursor to the end of the raw manifest.

    Args:
      state: the data set's state; not changed.
      raw: the raw manifest.
      resolver: called with the runs of the first span, if the definition is not resolved yet.
      history: finds causes and neighbours; by default without a bookmark, and without causes that reviewers gave.

    Attributes:
      waiting: after `steps`, the number of selected runs that are not sealed.
      other_jobs: after `steps`, the jobs of the runs that were not selected.
    """

    def __init__(self, state: DatasetState, raw: RunLog, resolver: Resolver, history: History | None = None) -> None:
        if state.definition is None:
            raise IntegrityError("data set manifest: no definition")
        self._raw = raw
        self._resolver = resolver
        self._definition = state.definition
        self._history = history or History(self._definition)
        self._planned = _PlannedState(state)
        self._pending: dict[str, _PendingRun] = {}
        # Sealed runs that the next step compares with their spans: those with changes that are not applied, and those
        # whose cause may have changed.
        self._late_changes: dict[str, list[Change]] = {}
        self._recheck: set[str] = set()
        self.waiting = 0
        self.other_jobs: set[str] = set()

    def steps(self, *, seal: bool = False) -> Iterator[Step]:
        """Yield the steps for the present raw manifest, in order. Each assumes that the earlier ones are committed.

        Args:
          seal: whether to seal the last span with fewer runs than ``span_runs``.
        """
        start = self._planned.cursor
        end = start.raw_version  # the raw version after the last one that was read
        sealed_to = start.raw_version - 1  # all rows up to this raw version are sealed: only the history needs them
        for raw_version, delta in self._raw.since(self._history.resume(sealed_to)):
            # The causes of pending runs are found when they are sealed.
            changed_ids = self._history.add(delta)
            if raw_version == sealed_to:
                self._history.save(raw_version)
            if raw_version <= sealed_to:
                continue
            if raw_version >= self._planned.corrections_to:
                self._recheck_sealed(changed_ids)
            yield from self._add_rows(raw_version, delta, start)
            self._add_changes(raw_version, delta)
            end = raw_version + 1
        self._recheck_sealed(self._history.given)
        if seal and self._pending:
            yield self._seal(Position(end, 0))
        else:
            draft = self._draft_new_versions()
            if draft.spans:
                yield self._planned.add_step(draft, self._planned.cursor, end)
        self.waiting = len(self._pending)

    def _recheck_sealed(self, run_ids: Iterable[str]) -> None:
        self._recheck.update(run_id for run_id in run_ids if self._planned.span_of(run_id))

    def _add_rows(self, raw_version: int, delta: RunDelta, start: Position) -> Iterator[Step]:
        """Select the rows of a raw version from a position on; yield a step for each full span."""
        for index, record in enumerate(delta.rows):
            position = Position(raw_version, index)
            if position < start:
                continue
            run_id = record.mention.run_id
            is_reclaim = index >= len(delta.runs)
            if is_reclaim and (run_id in self._pending or self._planned.span_of(run_id)):
                continue  # it changes a selected run: see `_add_changes`
            if not self._definition.selects(record.mention.build_name):
                self.other_jobs.add(record.mention.build_name)
                continue
            self._pending[run_id] = _PendingRun(SelectedRun.of(position, record), None)
            if len(self._pending) == self._definition.span_runs:
                yield self._seal(Position(raw_version, index + 1))

    def _add_changes(self, raw_version: int, delta: RunDelta) -> None:
        """Apply the changes of a raw version to pending runs, and collect those of sealed runs."""
        for run_id, change in changes_of(raw_version, delta):
            pending = self._pending.get(run_id)
            if pending is not None:
                run, fix = change.apply(pending.run)
                self._pending[run_id] = _PendingRun(run, fix or pending.fix)
            elif isinstance(change, NewTrust):
                pass  # snapshots judge the runs of sealed spans
            elif raw_version >= self._planned.corrections_to and self._planned.span_of(run_id):
                self._late_changes.setdefault(run_id, []).append(change)

    def _seal(self, cursor: Position) -> Step:
        """Return the step with a span of the pending runs, and with new versions of earlier spans."""
        pending_runs = list(self._pending.values())
        self._pending.clear()
        runs = []
        causes = {}
        for run, _ in pending_runs:
            cause = self._history.cause_of(run.run_id)
            runs.append(self._with_neighbours(run.caused(cause)))
            if cause:
                causes[run.run_id] = cause
        if self._planned.resolved is None:
            self._planned.resolved = self._resolver(runs)
        draft = self._draft_new_versions()
        draft.spans.append(SpanPlan(self._planned.next_span, 1, tuple(runs)))
        draft.corrections.update((run.run_id, fix) for run, fix in pending_runs if fix is not None)
        draft.causes.update(causes)
        return self._planned.add_step(draft, cursor, max(self._planned.corrections_to, cursor.raw_version))

    def _draft_new_versions(self) -> _Draft:
        """Apply the late changes: draft a new version of each span in which they change a label or a row."""
        draft = _Draft()
        late_changes = self._late_changes
        run_ids = self._recheck | late_changes.keys()
        self._late_changes = {}
        self._recheck = set()
        for span in sorted({span for span in map(self._planned.span_of, run_ids) if span is not None}):
            version, positions = self._planned.last_version(span)
            any_changed = False
            new_runs = []
            for run in self._runs_at(positions):
                old_run = run.caused(self._planned.causes.get(run.run_id, ""))
                new_run = old_run
                if run.run_id in run_ids:
                    new_run = self._changed_run(run, old_run, late_changes.get(run.run_id, ()), draft)
                any_changed |= new_run is not old_run
                new_runs.append(new_run)
            if any_changed:
                draft.spans.append(SpanPlan(span, version + 1, tuple(new_runs)))
        return draft

    def _changed_run(
        self, run: SelectedRun, old_run: SelectedRun, changes: Iterable[Change], draft: _Draft
    ) -> SelectedRun:
        """Apply late changes to a sealed run, and add its new outcome and cause to a draft.

        Args:
          run: the run as of its span's last version, without its cause.
          old_run: the same with its cause.
          changes: in order.
          draft: of the next step.

        Returns:
          The changed run; ``old_run`` itself if neither its label nor its row changes.
        """
        changed, fix = apply_changes(run, changes)
        cause = self._history.cause_of(run.run_id)
        new_run = self._with_neighbours(changed.caused(cause))
        label_of = self._planned.resolved_definition().label_of
        if new_run.position == old_run.position and label_of(new_run.mention) == label_of(old_run.mention):
            return old_run
        if fix is not None:
            draft.corrections[run.run_id] = fix
        if cause != self._planned.causes.get(run.run_id, ""):
            draft.causes[run.run_id] = cause
        return new_run

    def _runs_at(self, positions: Sequence[Position]) -> Iterator[SelectedRun]:
        """Yield the runs at positions of the raw manifest, with their outcomes but without their causes."""
        raw_versions = sorted({position.raw_version for position in positions})
        rows = {raw_version: self._raw.read(raw_version).rows for raw_version in raw_versions}
        for position in positions:
            run = SelectedRun.of(position, rows[position.raw_version][position.row])
            yield self._with_neighbours(run.corrected(self._planned.fixes.get(run.run_id)))

    def _with_neighbours(self, run: SelectedRun) -> SelectedRun:
        neighbours = self._history.near(run.run_id)
        return run if neighbours is None else run.replace(near=neighbours)
