"""The runs of a definition with a slicer: selected once, from the raw manifest at one version.

The selected runs are ordered by (end time, run id), independent of their order in the manifest. The slicer cuts this
list. Definition and raw version always give the same runs, with the outcomes known at that version. So the data set can
be rebuilt at any time, byte for byte, from the same raw store at any address.

A `Pin` has these runs, and a `PinnedPlan` plans their spans.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from ciml.datasets.definition import DatasetDefinition, slice_of
from ciml.datasets.state import DatasetState, Position
from ciml.errors import CimlError, IntegrityError
from ciml.runs.run_log import RunDelta, RunLog, RunRecord
from ciml.transforms.examples.changes import Change, Fix, History, NewRow, SelectedRun, apply_changes, changes_of
from ciml.transforms.examples.plan import Resolver, SpanPlan, Step


class _Row(NamedTuple):
    """A selected row. Its record is JSON, a third of the memory of its objects: all rows are held until the slice."""

    end_us: int
    run_id: str
    position: Position
    record: bytes


class Pin:
    """The runs of a definition that has a slicer.

    Attributes:
      version: the version of the raw manifest.
      selected: number of selected runs before the slice.
      other_jobs: the jobs of runs that were not selected.
    """

    def __init__(self, raw: RunLog, definition: DatasetDefinition) -> None:
        """Read the raw manifest up to the definition's raw version, or to its end.

        Raises:
          CimlError: if the manifest does not reach that version.
        """
        self.version = 0
        self.other_jobs: set[str] = set()
        self._definition = definition
        self._changes: dict[str, list[Change]] = {}
        self._history = History(definition)
        rows = self._read(raw)
        rows.sort(key=lambda row: (row.end_us, row.run_id))
        self.selected = len(rows)
        self._rows = rows[slice_of(definition.slicer or ":")]
        self.run_ids = [row.run_id for row in self._rows]

    def _read(self, raw: RunLog) -> list[_Row]:
        """Read the raw manifest: its selected rows, and their changes."""
        rows: list[_Row] = []
        reclaimed: dict[str, _Row | None] = {}
        last = self._definition.raw_version
        for version, delta in raw.since(0):
            if last is not None and version > last:
                break
            self.version = version
            self._history.add(delta)
            for index, record in enumerate(delta.rows):
                row = self._row(Position(version, index), record)
                if index >= len(delta.runs):
                    reclaimed[record.mention.run_id] = row
                elif row is not None:
                    rows.append(row)
            self._add_changes(version, delta)
        if last is not None and self.version < last:
            raise CimlError(
                f"raw_version {last}: the raw store {raw.url()} is at version {self.version}; check the raw store"
            )
        unchanged = [row for row in rows if row.run_id not in reclaimed]
        return unchanged + [row for row in reclaimed.values() if row is not None]

    def _row(self, position: Position, record: RunRecord) -> _Row | None:
        """Return the row of a record, None for one that is not selected."""
        facts = record.mention
        if not self._definition.selects(facts.build_name):
            self.other_jobs.add(facts.build_name)
            return None
        return _Row(facts.end_us or facts.start_us or 0, facts.run_id, position, msgspec.json.encode(record))

    def _add_changes(self, version: int, delta: RunDelta) -> None:
        for run_id, change in changes_of(version, delta):
            if isinstance(change, NewRow):
                self._changes.pop(run_id, None)  # they belong to the replaced row
            else:
                self._changes.setdefault(run_id, []).append(change)

    def __len__(self) -> int:
        return len(self._rows)

    def runs(self, start: int = 0, stop: int | None = None) -> Iterator[SelectedRun]:
        """Yield a range of the runs, in order, with the outcomes known at `version`."""
        return (run for run, _ in self.corrected_runs(start, stop))

    def corrected_runs(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[SelectedRun, Fix | None]]:
        """Yield a range of the runs as `runs` does, each with its last valid correction."""
        decode = msgspec.json.Decoder(RunRecord).decode
        for row in self._rows[start:stop]:
            run = SelectedRun.of(row.position, decode(row.record))
            changed, fix = apply_changes(run, self._changes.get(run.run_id, ()))
            yield changed.caused(self.cause_of(run)).replace(near=self._history.near(run.run_id)), fix

    def voters(self) -> Iterator[SelectedRun]:
        """Yield the runs that determine the classes: those trusted at `version`, or all if no run was trusted."""
        any_trusted = any(run.trust.trusted for run in self.runs())
        yield from (run for run in self.runs() if not any_trusted or run.trust.trusted)

    def cause_of(self, run: SelectedRun) -> str:
        """Return the cause of a run by its reruns up to `version`; "" if they do not show it."""
        return self._history.cause_of(run.run_id)


class PinnedPlan:
    """Plans the steps of a data set with a slicer, one per span. The last span may have fewer runs than the others.

    Args:
      state: the data set's state; not changed.
      pin: its runs.
      resolver: called with the runs of the first span, if the definition is not resolved yet.
      raw: the raw manifest, for messages.
    """

    def __init__(self, state: DatasetState, pin: Pin, resolver: Resolver, raw: RunLog) -> None:
        if state.definition is None:
            raise IntegrityError("data set manifest: no definition")
        self._state = state
        self._pin = pin
        self._resolver = resolver
        self._raw = raw
        self._definition = state.definition
        self._base = state.version
        self._cursor = state.cursor
        self._corrections_to = state.corrections_to
        self.waiting = 0
        self.other_jobs = pin.other_jobs

    def steps(self, *, seal: bool = True) -> Iterator[Step]:
        """Yield the remaining steps, one per span.

        Raises:
          IntegrityError: if the runs of a sealed span differ from the raw manifest.
        """
        pin = self._pin
        size = self._definition.span_runs
        self._check_sealed_spans()
        sealed_spans = len(self._state.spans)
        resolved = self._state.resolved
        for number, start in enumerate(range(sealed_spans * size, len(pin), size), sealed_spans + 1):
            corrected = list(pin.corrected_runs(start, start + size))
            runs = tuple(run for run, _ in corrected)
            if resolved is None:
                resolved = self._resolver(runs)
            is_last = start + size >= len(pin)
            causes = {run.run_id: pin.cause_of(run) for run in runs}
            yield Step(
                base=self._base + number - sealed_spans - 1,
                resolved=resolved,
                cursor=Position(pin.version + 1, 0) if is_last else self._cursor,
                corrections_to=pin.version + 1 if is_last else self._corrections_to,
                spans=(SpanPlan(number, 1, runs),),
                corrections={run.run_id: fix for run, fix in corrected if fix is not None},
                causes={run_id: cause for run_id, cause in causes.items() if cause},
            )

    def _check_sealed_spans(self) -> None:
        size = self._definition.span_runs
        for span, versions in self._state.spans.items():
            sealed_ids = sorted(versions[1].run_ids())
            if sealed_ids != sorted(self._pin.run_ids[(span - 1) * size : span * size]):
                where = self._raw.url()
                raise IntegrityError(f"data set {self._definition.name!r}: span {span} differs from {where}")


def pinned(definition: DatasetDefinition, pin: Pin) -> DatasetDefinition:
    """Return the definition with the raw version of its slice.

    Raises:
      CimlError: if the slice has no run.
    """
    if not len(pin):
        job_names = ", ".join(definition.build_name)
        slicer = definition.slicer
        jobs = sorted(pin.other_jobs)[:20]
        if pin.selected:
            raise CimlError(f"slicer {slicer!r}: selects none of the {pin.selected:,} runs of {job_names}")
        raise CimlError(f"build_name {job_names}: no stored run matches; stored jobs: {', '.join(jobs) or 'none'}")
    return definition.replace(raw_version=pin.version)
