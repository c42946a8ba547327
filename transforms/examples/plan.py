"""The next spans of a data set: computed from manifests alone, so that every process computes the same spans.

Span n is the next ``span_runs`` selected runs in the order of the raw manifest. A correction that is recorded before
the raw version in which a span ends is in its first version. A later correction that changes a label makes a new
version, and so does a reclaim, which replaces the run's earlier row. A later rerun, or a reviewer, that changes a cause
(`ciml.runs.causes`) does so as well.

What the runs of a data set depend on in all earlier deltas of the raw manifest: causes and neighbours.

An update reads them from the first delta, or continues from the bookmark that an earlier update left.
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
#: An update leaves a bookmark where the next one would read so many runs again; they take some tenths of a second.
_BOOKMARK_RUNS = 5000


class History:
    """The causes and neighbours of a data set's runs by the deltas that were added.

    Args:
      definition: of the data set. It says which of the two are asked for; the others are unknown.
      given: causes that reviewers gave, by run id.
      bookmarks: where the state is kept between updates; None to begin with the first delta.
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
        self._runs = 0

    def add(self, delta: RunDelta) -> set[str]:
        """Add the next delta; return the ids of the runs whose cause may have changed."""
        self._runs += len(delta.rows)
        if self._near is not None:
            self._near.add(delta)
        return self._causes.add(delta) if self._causes is not None else set()

    def cause_of(self, run_id: str) -> str:
        """Return the cause of a run that its own event does not name; "" where nothing says it."""
        return self._causes.of(run_id) if self._causes is not None else ""

    def near(self, run_id: str) -> Neighbours | None:
        """Return the neighbours of a failed run; None where they are unknown, or not asked for."""
        return self._near.of(run_id) if self._near is not None else None

    def resume(self, most: int) -> int:
        """Continue from a bookmark up to a version; return that of the last delta that it has, 0 without one.

        Raises:
          EngineError: the store does not answer.
        """
        bookmark = self._bookmarks.load() if self._bookmarks is not None and most else None
        if bookmark is None or bookmark.version > most:
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

    def keep(self, version: int) -> None:
        """Leave a bookmark after a delta that was just added, if many runs were read since the last one."""
        if self._bookmarks is not None and self._runs >= _BOOKMARK_RUNS:
            causes = self._causes.encode() if self._causes is not None else b""
            neighbours = self._near.encode() if self._near is not None else b""
            self._bookmarks.save(version, msgspec.msgpack.encode((causes, neighbours)))
            self._runs = 0


def bookmarks_of(definition: DatasetDefinition, root: Store, raw: RunLog) -> Bookmarks:
    """Return the bookmark of a data set.

    Args:
      definition: of the data set.
      root: its folder.
      raw: the raw manifest that it reads.
    """
    from ciml.manifest.bookmarks import Bookmarks  # only definitions with causes or neighbours need it

    kind = sha256_json([CAUSES_KIND, NEIGHBOURS_KIND, definition.to_json()])
    return Bookmarks(root, BOOKMARK, kind, lambda version: digest_of(raw, version))


def digest_of(raw: RunLog, version: int) -> str:
    """Return the digest of the runs in a delta of a raw manifest."""
    return sha256_hex(msgspec.json.encode(raw.read(version)))


class SelectedRun(Record, frozen=True, gc=False):
    """A raw row in a data set, and its position in the raw manifest.

    ``near`` are its neighbours where a definition has this context, and they are known.
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

    def corrected(self, fix: tuple[str, str] | None) -> SelectedRun:
        """Return the run with another outcome. The facts that decide its trust stay."""
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
    """The content of the next delta of a data set; it follows the delta ``base``.

    ``causes`` are those that the runs of its spans have by reruns or reviewers; "" for one that is no longer known.
    """

    base: int
    resolved: ResolvedDefinition
    cursor: Position
    corrections_to: int
    spans: tuple[SpanPlan, ...]
    corrections: Mapping[str, tuple[str, str]]
    causes: Mapping[str, str] = field(default_factory=dict)


Resolver = Callable[[Sequence[SelectedRun]], ResolvedDefinition]
#: An outcome, and the producer's own word.
Fix = tuple[str, str]
#: A change of a run after its first row: a correction and whether it is binding, the row of a reclaim, or a decision on
#: its trust.
Change = tuple[Fix, bool] | SelectedRun | Trust


class Plan:
    """Reads the raw manifest from a data set's cursor on.

    Args:
      state: the data set's state; not changed.
      raw: the raw manifest.
      resolver: called with the runs of the first span, when the definition is not resolved yet.
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
        self._base = state.version
        self._cursor = state.cursor
        self._corrections_to = state.corrections_to
        self._pending: dict[str, SelectedRun] = {}  # with corrections applied
        self._late: dict[str, list[Change]] = {}  # of sealed runs
        self._history = history or History(self._definition)
        self._caused: dict[str, str] = {}  # the causes in the spans of those steps
        self._new_causes: dict[str, str] = {}  # to be recorded by the next step
        # Spans sealed by earlier steps: their last version and the positions of their runs. The runs themselves are
        # large.
        self._planned: dict[int, tuple[int, tuple[Position, ...]]] = {}
        self._fixed: dict[str, Fix] = {}  # applied by those steps
        self._sealed: dict[str, int] = {}  # the span of their runs
        self._fixes: dict[str, Fix] = {}  # to be applied by the next step
        self.waiting = 0
        self.other_jobs: set[str] = set()

    def steps(self, *, seal: bool = False) -> Iterator[Step]:
        """Yield the steps for the present raw manifest, in order. Each assumes that the earlier ones are committed.

        Args:
          seal: whether to seal the last span with fewer runs than ``span_runs``.
        """
        end, _ = begin = self._cursor
        last_sealed = (
            min(begin[0], self._corrections_to) - 1
        )  # later steps need no delta up to it but for their history
        for version, delta in self._raw.since(
            self._history.resume(last_sealed) if self._history.is_needed else end - 1
        ):
            self._add_history(version, delta)
            if version == last_sealed:
                self._history.keep(version)
            if version < begin[0]:
                continue
            for index, record in enumerate(delta.rows):
                if (version, index) < begin:
                    continue
                run_id = record.mention.run_id
                if index >= len(delta.runs) and (run_id in self._pending or self._span_of(run_id)):
                    continue  # a reclaim of a selected run
                if not self._definition.selects(job := record.mention.build_name):
                    self.other_jobs.add(job)
                    continue
                self._pending[run_id] = SelectedRun.of((version, index), record)
                if len(self._pending) == self._definition.span_runs:
                    yield self._seal((version, index + 1))
            self._collect(version, delta)
            end = version + 1
        self._mark_late(self._history.given)
        if seal and self._pending:
            yield self._seal((end, 0))
        elif changed := self._new_versions():
            yield self._step(self._cursor, end, changed)
        self.waiting = len(self._pending)

    def _add_history(self, version: int, delta: RunDelta) -> None:
        """Add a raw version to the history. Causes that it changes apply to the runs that wait, its own included."""
        changed = self._history.add(delta)
        if version >= self._corrections_to:
            self._mark_late(changed)

    def _mark_late(self, run_ids: Iterable[str]) -> None:
        for run_id in run_ids:
            if self._span_of(run_id):
                self._late.setdefault(run_id, [])

    def _placed(self, run: SelectedRun) -> SelectedRun:
        return run.replace(near=neighbours) if (neighbours := self._history.near(run.run_id)) is not None else run

    def _collect(self, version: int, delta: RunDelta) -> None:
        """Collect the reclaims and corrections of a raw version, after its runs."""
        for run_id, change in changes_of(version, delta):
            if run := self._pending.get(run_id):
                changed, fix = apply_change(run, change)
                self._pending[run_id] = changed
                if fix is not None:
                    self._fixes[run_id] = fix
            elif isinstance(change, Trust):
                pass  # snapshots judge the runs of sealed spans
            elif version >= self._corrections_to and self._span_of(run_id):
                self._late.setdefault(run_id, []).append(change)

    def _span_of(self, run_id: str) -> int | None:
        return self._sealed.get(run_id) or self._state.span_of.get(run_id)

    def _seal(self, cursor: Position) -> Step:
        runs = tuple(self._pending.values())
        if self._history.is_needed:
            causes = {run_id: self._history.cause_of(run_id) for run_id in self._pending}
            runs = tuple(self._placed(run.caused(causes[run.run_id])) for run in runs)
            self._new_causes = {run_id: cause for run_id, cause in causes.items() if cause}
        self._pending.clear()
        if self._resolved is None:
            self._resolved = self._resolver(runs)
        changed = self._new_versions()
        number = len(self._state.spans.keys() | self._planned.keys()) + 1
        self._sealed.update((run.run_id, number) for run in runs)
        return self._step(cursor, max(self._corrections_to, cursor[0]), [*changed, SpanPlan(number, 1, runs)])

    def _step(self, cursor: Position, corrections_to: int, spans: list[SpanPlan]) -> Step:
        if self._resolved is None:
            raise IntegrityError("data set manifest: has spans but no resolved definition")
        fixed = {run.run_id for plan in spans for run in plan.runs} & self._fixes.keys()
        step = Step(
            base=self._base,
            resolved=self._resolved,
            cursor=cursor,
            corrections_to=corrections_to,
            spans=tuple(spans),
            corrections={run_id: self._fixes[run_id] for run_id in sorted(fixed)},
            causes=dict(sorted(self._new_causes.items())),
        )
        self._caused.update(self._new_causes)
        self._new_causes = {}
        self._fixes = {run_id: fix for run_id, fix in self._fixes.items() if run_id not in fixed}
        for plan in spans:
            self._planned[plan.span] = plan.version, tuple(run.position for run in plan.runs)
        self._fixed.update(step.corrections)
        self._base = self._base + 1
        self._cursor = cursor
        self._corrections_to = corrections_to
        return step

    def _new_versions(self) -> list[SpanPlan]:
        """Return new versions of spans whose label or row changed late, and clear the late changes.

        Their corrections and causes are kept for the step that holds them.
        """
        late = self._late
        self._late = {}
        out = []
        causes = ChainMap(self._caused, self._state.causes)
        for span in sorted({self._span_of(run_id) or 0 for run_id in late}):
            version, runs = self._last_version(span)
            after = []
            before = [run.caused(causes.get(run.run_id, "")) for run in runs]
            for run, old in zip(runs, before, strict=True):
                new = old
                if (changes := late.get(run.run_id)) is not None:
                    bare, last = apply_changes(run, changes)
                    new = self._placed(bare.caused(cause := self._history.cause_of(run.run_id)))
                    if new.position == old.position and self._label(new) == self._label(old):
                        new = old
                    else:
                        if last is not None:
                            self._fixes[run.run_id] = last
                        if cause != causes.get(run.run_id, ""):
                            self._new_causes[run.run_id] = cause
                after.append(new)
            if any(new is not old for new, old in zip(after, before, strict=True)):
                out.append(SpanPlan(span, version + 1, tuple(after)))
        return out

    def _label(self, run: SelectedRun) -> tuple[int, str] | str:
        if self._resolved is None:
            raise IntegrityError("data set manifest: has spans but no resolved definition")
        return self._resolved.label_of(run.mention)

    def _last_version(self, span: int) -> tuple[int, tuple[SelectedRun, ...]]:
        """Return the last version of a span, with its runs as of that version, but for their causes."""
        if planned := self._planned.get(span):
            last, positions = planned
        else:
            versions = self._state.spans[span]
            last = max(versions)
            positions = versions[last].selected
        records = {version: self._raw.read(version).rows for version in sorted({number for number, _ in positions})}
        runs = (SelectedRun.of(position, records[position[0]][position[1]]) for position in positions)
        fixes = ChainMap(self._fixed, self._state.corrections)
        return last, tuple(self._placed(run.corrected(fixes.get(run.run_id))) for run in runs)


def changes_of(version: int, delta: RunDelta) -> Iterator[tuple[str, Change]]:
    """Yield the changes of earlier runs in a delta, by run id, in the order in which they apply."""
    for index, record in enumerate(delta.reclaims, len(delta.runs)):
        yield record.mention.run_id, SelectedRun.of((version, index), record)
    for correction in delta.corrections:
        yield correction.mention.run_id, (correction.fix, correction.binding)
    for changed in delta.trust_changes:
        yield changed.run_id, changed.trust


def apply_changes(run: SelectedRun, changes: Iterable[Change]) -> tuple[SelectedRun, Fix | None]:
    """Apply changes to a run in order; return the run, and its outcome by them (None where no change counts)."""
    last = None
    for change in changes:
        run, fix = apply_change(run, change)
        last = fix or last
    return run, last


def apply_change(run: SelectedRun, change: Change) -> tuple[SelectedRun, Fix | None]:
    """Apply a change to a run; return the run, and its outcome by it (None where the change does not count).

    A correction counts where it is at least as trusted as the run, a reclaim where it is recorded after the row.
    """
    if isinstance(change, Trust):
        return run.replace(trust=change), None
    if isinstance(change, SelectedRun):
        if change.position <= run.position:
            return run, None
        return change, (change.mention.outcome or "", change.mention.result)
    fix, binding = change
    return (run.corrected(fix), fix) if binding or not run.trust.trusted else (run, None)
