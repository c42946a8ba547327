"""The runs of a definition with a slicer: selected once, from the raw manifest at one version.

The selected runs are ordered by (end time, run id), independent of their order in the manifest, and the slicer cuts the
list. Definition and raw version always give the same runs, with the outcomes known at that version. So the data set can
be rebuilt at any time, byte for byte, from the same raw store at any address.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ciml.datasets.definition import DatasetDefinition, slice_of
from ciml.datasets.state import DatasetState, Position
from ciml.errors import CimlError, IntegrityError
from ciml.runs.run_log import RunLog, RunRecord
from ciml.transforms.examples.plan import Change, Fix, History, Resolver, SelectedRun, SpanPlan, Step, apply_changes

#: A selected row: its run's end time, its run id, its position, and the record as JSON.
_Found = tuple[int, str, Position, bytes]


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
          CimlError: the manifest does not reach that version.
        """
        self.version = 0
        self.other_jobs: set[str] = set()
        self._changes: dict[str, list[Change]] = {}
        self._history = History(definition)
        # A run as JSON takes a third of the memory of its objects, and all are held until the slice.
        candidates: list[_Found] = []
        reclaimed: dict[str, _Found | None] = {}
        last = definition.raw_version
        encode = msgspec.json.Encoder().encode
        for version, delta in raw.since(0):
            if last is not None and version > last:
                break
            self.version = version
            self._history.add(delta)
            for index, record in enumerate(delta.rows):
                facts = record.mention
                row = None
                if definition.selects(job := facts.build_name):
                    row = (facts.end_us or facts.start_us or 0, facts.run_id, (version, index), encode(record))
                else:
                    self.other_jobs.add(job)
                if index >= len(delta.runs):
                    reclaimed[facts.run_id] = row
                elif row is not None:
                    candidates.append(row)
            for reclaim in delta.reclaims:
                self._changes.pop(reclaim.mention.run_id, None)  # they belong to the replaced row
            for correction in delta.corrections:
                self._changes.setdefault(correction.mention.run_id, []).append((correction.fix, correction.binding))
            for changed in delta.trust_changes:
                self._changes.setdefault(changed.run_id, []).append(changed.trust)
        if last is not None and self.version < last:
            raise CimlError(
                f"raw_version {last}: the raw store {raw.url()} is at version {self.version}; check the raw store"
            )
        if reclaimed:
            candidates = [row for row in candidates if row[1] not in reclaimed]
            candidates += [row for row in reclaimed.values() if row is not None]
        candidates.sort(key=lambda correction: correction[:2])
        self.selected = len(candidates)
        cut = candidates[slice_of(definition.slicer or ":")]
        self.run_ids = [run_id for _, run_id, _, _ in cut]
        self._records = [(position, record) for _, _, position, record in cut]

    def __len__(self) -> int:
        return len(self._records)

    def runs(self, start: int = 0, stop: int | None = None) -> Iterator[SelectedRun]:
        """Yield a range of the runs, in order, with the outcomes known at `version`."""
        decode = msgspec.json.Decoder(RunRecord).decode
        for position, record in self._records[start:stop]:
            run = SelectedRun.of(position, decode(record))
            changed = apply_changes(run, self._changes.get(run.run_id, ()))[0].caused(self.cause(run))
            yield changed.replace(near=self._history.near(run.run_id))

    def voters(self) -> Iterator[SelectedRun]:
        """Yield the runs whose classes count: those trusted at `version`, or all if no run was trusted."""
        any_trusted = any(run.trust.trusted for run in self.runs())
        yield from (run for run in self.runs() if not any_trusted or run.trust.trusted)

    def cause(self, run: SelectedRun) -> str:
        """Return the cause of a run by its reruns up to `version`; "" where they do not say it."""
        return self._history.cause_of(run.run_id)

    def fix(self, run: SelectedRun) -> Fix | None:
        """Return the last valid correction of a run; None for a run without one."""
        return apply_changes(run, self._changes.get(run.run_id, ()))[1]


class PinnedPlan:
    """Like `ciml.transforms.examples.plan.Plan`, for a definition with a slicer. Its last span may have fewer runs.

    Args:
      state: the data set's state; not changed.
      pin: its runs.
      resolver: called with the voting runs, when the definition is not resolved yet.
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
        self._changes_to = state.corrections_to
        self.waiting = 0
        self.other_jobs = pin.other_jobs

    def steps(self, *, seal: bool = True) -> Iterator[Step]:
        """Yield the remaining steps, one per span.

        Raises:
          IntegrityError: a sealed span holds other runs than the raw manifest.
        """
        pin = self._pin
        size = self._definition.span_runs
        sealed_spans = len(self._state.spans)
        for span, versions in self._state.spans.items():
            sealed = sorted(versions[1].run_ids())
            if sealed != sorted(pin.run_ids[(span - 1) * size : span * size]):
                where = self._raw.url()
                raise IntegrityError(f"data set {self._definition.name!r}: span {span} differs from {where}")
        resolved = self._state.resolved
        for number, start in enumerate(range(sealed_spans * size, len(pin), size), sealed_spans + 1):
            runs = tuple(pin.runs(start, start + size))
            if resolved is None:
                resolved = self._resolver(runs)
            ended = start + size >= len(pin)
            yield Step(
                base=self._base + number - sealed_spans - 1,
                resolved=resolved,
                cursor=(pin.version + 1, 0) if ended else self._cursor,
                corrections_to=pin.version + 1 if ended else self._changes_to,
                spans=(SpanPlan(number, 1, runs),),
                corrections={run.run_id: fix for run in runs if (fix := pin.fix(run)) is not None},
                causes={run.run_id: cause for run in runs if (cause := pin.cause(run))},
            )


def pinned(definition: DatasetDefinition, pin: Pin) -> DatasetDefinition:
    """Return the definition with the raw version of its slice.

    Raises:
      CimlError: no run is left.
    """
    if not len(pin):
        job_names = ", ".join(definition.build_name)
        slicer = definition.slicer
        jobs = sorted(pin.other_jobs)[:20]
        if pin.selected:
            raise CimlError(f"slicer {slicer!r}: selects none of the {pin.selected:,} runs of {job_names}")
        raise CimlError(f"build_name {job_names}: no stored run matches; stored jobs: {', '.join(jobs) or 'none'}")
    return definition.replace(raw_version=pin.version)
