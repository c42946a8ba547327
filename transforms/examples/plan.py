"""Plan the next spans of a data set from manifests alone, so that every process computes the same spans.

Span n is the next ``span_runs`` selected runs in the order of the raw manifest. A correction that is recorded before
the raw version in which a span ends is in the span's first version. What changes later makes a new version: a
correction of a label, a reclaim, which replaces the run's row, and a rerun or a reviewer that changes a cause
(`ciml.runs.causes`).

A `Plan` yields `Step`s, the contents of the data set's next deltas. Causes and neighbours of runs depend on all earlier
deltas of the raw manifest. A `History` reads these, from the first one or from the bookmark of an earlier update.
"""

from __future__ import annotations

import logging
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import msgspec

from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition
from ciml.datasets.state import DatasetState, Position
from ciml.digest import sha256_hex, sha256_json
from ciml.errors import IntegrityError
from ciml.events.outcomes import CAUSE
from ciml.events.records import UNJUDGED, OutcomeWord, RawFile, Record, RunFacts, Trust
from ciml.runs.causes import CAUSES_KIND, Causes
from ciml.runs.neighbours import NEIGHBOURS_KIND, NearbyRuns, Neighbours
from ciml.runs.run_log import RunDelta, RunLog, RunRecord
from ciml.storage import Store

if TYPE_CHECKING:
    from ciml.manifest.bookmarks import Bookmarks

_log = logging.getLogger(__name__)
#: The bookmark of a data set, in its folder.
BOOKMARK = "_replay"
#: An update leaves a bookmark if the next one would read more runs again, which takes a few tenths of a second.
_BOOKMARK_RUNS = 5000

#: An outcome, and the producer's own word for it.
Fix = tuple[str, str]


class SelectedRun(Record, frozen=True, gc=False):
    """A raw row in a data set, and its position in the raw manifest.

    ``near`` are its neighbours, if the definition has this context and they are known.
    """

    position: Position
    mention: RunFacts
    file: RawFile
    trust: Trust = UNJUDGED
    near: Neighbours | None = None

    @property
    def run_id(self) -> str:
        return self.mention.run_id

    @classmethod
    def of(cls, position: Position, record: RunRecord) -> SelectedRun:
        """Return the selected run of a record at a position."""
        return cls(position, record.facts, record.file, record.trust)

    def corrected(self, fix: Fix | None) -> SelectedRun:
        """Return the run with another outcome, and the same facts that decide its trust."""
        if fix is None:
            return self
        outcome = cast("OutcomeWord | None", fix[0] or None)
        return self.replace(mention=self.mention.replace(outcome=outcome, result=fix[1]))

    def caused(self, cause: str) -> SelectedRun:
        """Return the run with a cause among its labels; unchanged where it is ""."""
        if not cause:
            return self
        return self.replace(mention=self.mention.replace(labels={**self.mention.labels, CAUSE: cause}))


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
      resolved: the resolved definition.
      cursor: position in the raw manifest up to which runs are sealed.
      corrections_to: raw version up to which changes are applied.
      spans: new spans, and new versions of earlier ones.
      corrections: by run id, the outcomes that corrections give to runs of these spans.
      causes: by run id, the causes that reruns or reviewers give to them; "" for one that is no longer known.
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
#: A change of a run after its first row: a correction and whether it is binding, the row of a reclaim, or a decision on
#: its trust.
Change = tuple[Fix, bool] | SelectedRun | Trust


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
        self._state = state
        self._raw = raw
        self._resolver = resolver
        self._definition = state.definition
        self._resolved = state.resolved
        self._history = history or History(self._definition)
        # The position after the last step.
        self._base = state.version
        self._cursor = state.cursor
        self._corrections_to = state.corrections_to
        # Selected runs that are not sealed, with corrections applied; and changes of sealed runs that are not applied.
        self._pending: dict[str, SelectedRun] = {}
        self._late_changes: dict[str, list[Change]] = {}
        # Corrections and causes that the next step records.
        self._new_fixes: dict[str, Fix] = {}
        self._new_causes: dict[str, str] = {}
        # The content of the steps so far. A span is its last version and the positions of its runs, which are large.
        self._planned_spans: dict[int, tuple[int, tuple[Position, ...]]] = {}
        self._planned_span_of: dict[str, int] = {}
        self._planned_fixes: dict[str, Fix] = {}
        self._planned_causes: dict[str, str] = {}
        self.waiting = 0
        self.other_jobs: set[str] = set()

    def steps(self, *, seal: bool = False) -> Iterator[Step]:
        """Yield the steps for the present raw manifest, in order. Each assumes that the earlier ones are committed.

        Args:
          seal: whether to seal the last span with fewer runs than ``span_runs``.
        """
        start = self._cursor
        end = start[0]
        last_applied = min(start[0], self._corrections_to) - 1  # up to it, deltas are read for the history only
        read_from = self._history.resume(last_applied) if self._history.is_needed else end - 1
        for version, delta in self._raw.since(read_from):
            self._add_history(version, delta)
            if version == last_applied:
                self._history.save(version)
            if version < start[0]:
                continue
            yield from self._add_rows(version, delta, start)
            self._add_changes(version, delta)
            end = version + 1
        self._mark_late(self._history.given)
        if seal and self._pending:
            yield self._seal((end, 0))
        else:
            changed_spans = self._new_versions()
            if changed_spans:
                yield self._step(self._cursor, end, changed_spans)
        self.waiting = len(self._pending)

    def _add_history(self, version: int, delta: RunDelta) -> None:
        """Add a raw version to the history. Causes that it changes apply to pending runs, its own included."""
        changed_ids = self._history.add(delta)
        if version >= self._corrections_to:
            self._mark_late(changed_ids)

    def _mark_late(self, run_ids: Iterable[str]) -> None:
        """Let the sealed ones of these runs be compared with their spans."""
        for run_id in run_ids:
            if self._span_of(run_id):
                self._late_changes.setdefault(run_id, [])

    def _add_rows(self, version: int, delta: RunDelta, start: Position) -> Iterator[Step]:
        """Select the rows of a raw version from a position on; yield a step for each full span."""
        for index, record in enumerate(delta.rows):
            if (version, index) < start:
                continue
            run_id = record.mention.run_id
            if index >= len(delta.runs) and (run_id in self._pending or self._span_of(run_id)):
                continue  # a reclaim of a selected run
            if not self._definition.selects(record.mention.build_name):
                self.other_jobs.add(record.mention.build_name)
                continue
            self._pending[run_id] = SelectedRun.of((version, index), record)
            if len(self._pending) == self._definition.span_runs:
                yield self._seal((version, index + 1))

    def _add_changes(self, version: int, delta: RunDelta) -> None:
        """Apply the changes of a raw version to pending runs, and collect those of sealed runs."""
        for run_id, change in changes_of(version, delta):
            run = self._pending.get(run_id)
            if run is not None:
                self._pending[run_id], fix = apply_change(run, change)
                if fix is not None:
                    self._new_fixes[run_id] = fix
            elif isinstance(change, Trust):
                pass  # snapshots judge the runs of sealed spans
            elif version >= self._corrections_to and self._span_of(run_id):
                self._late_changes.setdefault(run_id, []).append(change)

    def _span_of(self, run_id: str) -> int | None:
        return self._planned_span_of.get(run_id) or self._state.span_of.get(run_id)

    def _seal(self, cursor: Position) -> Step:
        """Return the step with a span of the pending runs."""
        runs = tuple(self._pending.values())
        if self._history.is_needed:
            causes = {run_id: self._history.cause_of(run_id) for run_id in self._pending}
            runs = tuple(self._with_neighbours(run.caused(causes[run.run_id])) for run in runs)
            self._new_causes = {run_id: cause for run_id, cause in causes.items() if cause}
        self._pending.clear()
        if self._resolved is None:
            self._resolved = self._resolver(runs)
        changed_spans = self._new_versions()
        number = len(self._state.spans.keys() | self._planned_spans.keys()) + 1
        self._planned_span_of.update((run.run_id, number) for run in runs)
        return self._step(cursor, max(self._corrections_to, cursor[0]), [*changed_spans, SpanPlan(number, 1, runs)])

    def _step(self, cursor: Position, corrections_to: int, spans: list[SpanPlan]) -> Step:
        fixed_ids = {run.run_id for plan in spans for run in plan.runs} & self._new_fixes.keys()
        step = Step(
            base=self._base,
            resolved=self._known_definition(),
            cursor=cursor,
            corrections_to=corrections_to,
            spans=tuple(spans),
            corrections={run_id: self._new_fixes.pop(run_id) for run_id in sorted(fixed_ids)},
            causes=dict(sorted(self._new_causes.items())),
        )
        self._new_causes = {}
        for plan in spans:
            self._planned_spans[plan.span] = plan.version, tuple(run.position for run in plan.runs)
        self._planned_fixes.update(step.corrections)
        self._planned_causes.update(step.causes)
        self._base += 1
        self._cursor = cursor
        self._corrections_to = corrections_to
        return step

    def _new_versions(self) -> list[SpanPlan]:
        """Apply the late changes; return new versions of the spans in which they change a label or a row."""
        late_changes = self._late_changes
        self._late_changes = {}
        causes = ChainMap(self._planned_causes, self._state.causes)
        plans = []
        for span in sorted({self._span_of(run_id) or 0 for run_id in late_changes}):
            version, runs = self._last_version(span)
            new_runs = []
            any_new = False
            for run in runs:
                old_cause = causes.get(run.run_id, "")
                new = None
                if run.run_id in late_changes:
                    new = self._changed(run, old_cause, late_changes[run.run_id])
                any_new |= new is not None
                new_runs.append(new or run.caused(old_cause))
            if any_new:
                plans.append(SpanPlan(span, version + 1, tuple(new_runs)))
        return plans

    def _changed(self, run: SelectedRun, old_cause: str, changes: list[Change]) -> SelectedRun | None:
        """Return a run with late changes, and record them for the next step; None if neither label nor row change."""
        old = run.caused(old_cause)
        bare, fix = apply_changes(run, changes)
        cause = self._history.cause_of(run.run_id)
        new = self._with_neighbours(bare.caused(cause))
        resolved = self._known_definition()
        if new.position == old.position and resolved.label_of(new.mention) == resolved.label_of(old.mention):
            return None
        if fix is not None:
            self._new_fixes[run.run_id] = fix
        if cause != old_cause:
            self._new_causes[run.run_id] = cause
        return new

    def _known_definition(self) -> ResolvedDefinition:
        if self._resolved is None:
            raise IntegrityError("data set manifest: has spans but no resolved definition")
        return self._resolved

    def _last_version(self, span: int) -> tuple[int, tuple[SelectedRun, ...]]:
        """Return the last version of a span, with its runs as of that version, except for their causes."""
        if span in self._planned_spans:
            last, positions = self._planned_spans[span]
        else:
            versions = self._state.spans[span]
            last = max(versions)
            positions = versions[last].selected
        records = {version: self._raw.read(version).rows for version in sorted({number for number, _ in positions})}
        runs = (SelectedRun.of(position, records[position[0]][position[1]]) for position in positions)
        fixes = ChainMap(self._planned_fixes, self._state.corrections)
        return last, tuple(self._with_neighbours(run.corrected(fixes.get(run.run_id))) for run in runs)

    def _with_neighbours(self, run: SelectedRun) -> SelectedRun:
        neighbours = self._history.near(run.run_id)
        return run if neighbours is None else run.replace(near=neighbours)


def changes_of(version: int, delta: RunDelta) -> Iterator[tuple[str, Change]]:
    """Yield the run id and the change of each changed run in a delta, in the order in which they apply."""
    for index, record in enumerate(delta.reclaims, len(delta.runs)):
        yield record.mention.run_id, SelectedRun.of((version, index), record)
    for correction in delta.corrections:
        yield correction.mention.run_id, (correction.fix, correction.binding)
    for changed in delta.trust_changes:
        yield changed.run_id, changed.trust


def apply_changes(run: SelectedRun, changes: Iterable[Change]) -> tuple[SelectedRun, Fix | None]:
    """Apply changes to a run in order; return the run, and its outcome by them (None if no change counts)."""
    last_fix = None
    for change in changes:
        run, fix = apply_change(run, change)
        last_fix = fix or last_fix
    return run, last_fix


def apply_change(run: SelectedRun, change: Change) -> tuple[SelectedRun, Fix | None]:
    """Apply a change to a run; return the run, and its outcome by the change (None if the change does not count).

    A correction counts if it is at least as trusted as the run; a reclaim, if it is recorded after the row.
    """
    if isinstance(change, Trust):
        return run.replace(trust=change), None
    if isinstance(change, SelectedRun):
        if change.position <= run.position:
            return run, None
        return change, (change.mention.outcome or "", change.mention.result)
    fix, binding = change
    return (run.corrected(fix), fix) if binding or not run.trust.trusted else (run, None)


class History:
    """The causes and neighbours of a data set's runs, by the raw deltas that were added.

    Args:
      definition: the data set's. It decides whether causes, neighbours or both are found.
      given: causes that reviewers gave, by run id.
      bookmarks: stores the state between updates; None to begin with the first delta.

    Attributes:
      is_needed: whether the definition uses causes or neighbours.
      given: the causes that reviewers gave, if the definition uses causes.
    """

    def __init__(
        self,
        definition: DatasetDefinition,
        given: Mapping[str, str] | None = None,
        bookmarks: Bookmarks | None = None,
    ) -> None:
        self._causes = Causes(definition.selects, given) if definition.class_label == CAUSE else None
        self._near = NearbyRuns(definition.selects) if "neighbours" in (definition.context or ()) else None
        self.is_needed = self._causes is not None or self._near is not None
        self.given: Mapping[str, str] = (given or {}) if self._causes is not None else {}
        self._bookmarks = bookmarks
        self._unsaved_runs = 0

    def add(self, delta: RunDelta) -> set[str]:
        """Add the next delta; return the ids of the runs whose cause may have changed."""
        self._unsaved_runs += len(delta.rows)
        if self._near is not None:
            self._near.add(delta)
        return self._causes.add(delta) if self._causes is not None else set()

    def cause_of(self, run_id: str) -> str:
        """Return the cause of a run by its reruns or a reviewer; "" if neither names one."""
        return self._causes.of(run_id) if self._causes is not None else ""

    def near(self, run_id: str) -> Neighbours | None:
        """Return the neighbours of a failed run; None if they are unknown or not needed."""
        return self._near.of(run_id) if self._near is not None else None

    def resume(self, newest: int) -> int:
        """Load the bookmark, if it is not after the version ``newest``; return its version, or 0 without one.

        Raises:
          EngineError: the store does not answer.
        """
        bookmark = self._bookmarks.load() if self._bookmarks is not None and newest else None
        if bookmark is None or bookmark.version > newest:
            return 0
        try:
            causes, neighbours = msgspec.msgpack.decode(bookmark.state, type=tuple[bytes, bytes])
            if self._causes is not None:
                self._causes.restore(causes)
            if self._near is not None:
                self._near.restore(neighbours)
        except msgspec.DecodeError as error:
            _log.warning("the bookmark of the raw manifest cannot be read (%s); reading its first delta", error)
            return 0
        return bookmark.version

    def save(self, version: int) -> None:
        """Save a bookmark after the delta that was just added, if many runs were read since the last one."""
        if self._bookmarks is not None and self._unsaved_runs >= _BOOKMARK_RUNS:
            causes = self._causes.encode() if self._causes is not None else b""
            neighbours = self._near.encode() if self._near is not None else b""
            self._bookmarks.save(version, msgspec.msgpack.encode((causes, neighbours)))
            self._unsaved_runs = 0


def bookmarks_of(definition: DatasetDefinition, root: Store, raw: RunLog) -> Bookmarks:
    """Return the bookmark of a data set, which is valid for its definition and its raw manifest.

    Args:
      definition: the data set's.
      root: the data set's folder.
      raw: the raw manifest.
    """
    from ciml.manifest.bookmarks import Bookmarks  # only definitions with causes or neighbours need it

    kind = sha256_json([CAUSES_KIND, NEIGHBOURS_KIND, definition.to_json()])
    return Bookmarks(root, BOOKMARK, kind, lambda version: digest_of(raw, version))


def digest_of(raw: RunLog, version: int) -> str:
    """Return the digest of the runs in a delta of a raw manifest."""
    return sha256_hex(msgspec.json.encode(raw.read(version)))
