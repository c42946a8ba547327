"""Live windows: the present windows and examples of a running job from its samples, and their messages.

A run keeps all its samples until it ends, each once, ordered by time. The batch functions recompute a window that gets
a sample from all its samples, and the example from all samples of the run. There are no running sums. So late, repeated
or reordered samples do not change the result, and the windows of an ended run equal the batch result.

A *pane* is a published state of a window: early, final or late. docs/formats/live.md describes the messages of the
topics `windows`, `live-examples` and `live-dead-letters`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson
import pyarrow as pa

from ciml.datasets.definition import ResolvedDefinition
from ciml.digest import row_digest, sha256_json
from ciml.errors import RejectedInput
from ciml.events.fields import iso_time
from ciml.events.samples import telemetry_table
from ciml.limits import MAX_LOG_STARTS
from ciml.manifest.coverage import RangeSet
from ciml.messages import LiveExample, Standing, Window
from ciml.transforms.examples.downsample import DAY_US, as_stored, reduce_windows
from ciml.transforms.examples.prepare import prepare_many
from ciml.transforms.live.samples import NEVER_US, LivePolicy, Part, by_start, join_parts, unseen

PaneKind = Literal["early", "final", "late"]
MAX_EXAMPLE_BYTES = 4 << 20
_NO_TIMES = np.zeros(0, np.int64)
#: Greater than the number of any window.
_ALL_WINDOWS = 1 << 62
_MIN_CAPACITY = 64  # samples


@dataclass(frozen=True)
class LiveDataset:
    """A data set with windows from live samples: its name, and its resolved definition."""

    name: str
    resolved: ResolvedDefinition

    @cached_property
    def digest(self) -> str:
        """Digest of the resolved definition: windows with the same digest are comparable."""
        return sha256_json(self.resolved.to_json())


def columns_of(datasets: Sequence[LiveDataset]) -> tuple[str, ...]:
    """Return the columns that the data sets need, in the order of their first use."""
    return tuple(dict.fromkeys(column for dataset in datasets for column in dataset.resolved.columns))


class Pane(NamedTuple):
    """The present state of a window. Panes with equal run, data set, day, number and samples have equal values.

    Attributes:
      dataset: its data set.
      day_us: the midnight from which the run's windows count, epoch microseconds.
      number: number of the window from that midnight.
      start_us: start of the window, epoch microseconds.
      samples: number of samples, which is also its revision: it only grows.
      kind: ``early``: more samples are expected; ``final``: by the run's clock the window's slack is over, or the run
        has ended; ``late``: a sample arrived after it was final.
      values: float32 [F].
    """

    dataset: LiveDataset
    day_us: int
    number: int
    start_us: int
    samples: int
    kind: PaneKind
    values: np.ndarray


class ExampleSoFar(NamedTuple):
    """The present example of a run. Examples with equal run, data set and samples have equal values.

    Attributes:
      dataset: its data set.
      samples: number of samples of the run, which is also the example's revision.
      missing: number of samples known to be missing: gaps in the numbers, and differences from an end's count.
      values: float32 [n_windows, F]; None if there is no example.
      digest: digest of the batch example of the same samples; "" if the run is not over or there is no example.
      rejected: why there is no example; None if there is one.
    """

    dataset: LiveDataset
    samples: int
    missing: int
    values: np.ndarray | None
    digest: str
    rejected: RejectedInput | None


class _Spans(NamedTuple):
    """W windows: their numbers, and the rows of their samples, int64 [W] each.

    Attributes:
      numbers: ascending.
      begins: the first row of each window's samples.
      counts: the number of its samples.
    """

    numbers: np.ndarray
    begins: np.ndarray
    counts: np.ndarray


@dataclass(eq=False)
class _DatasetWindows:
    """The windows of a run in one data set, as they were published.

    Attributes:
      dataset: the data set.
      indices: indices of its columns among those of the run.
      open: by number of each published window that is not final, its number of samples when it was last published.
      final_below: windows with smaller numbers are final.
    """

    dataset: LiveDataset
    indices: list[int]
    open: dict[int, int] = field(default_factory=dict)
    final_below: int = -_ALL_WINDOWS

    def kind_of(self, number: int, was_final_below: int) -> PaneKind:
        """Return the kind of a pane now, given the former `final_below`."""
        if number < was_final_below:
            return "late"
        return "final" if number < self.final_below else "early"


class LiveRun:
    """A running job.

    Args:
      run_id: the encoded run id.
      datasets: the data sets of the windows.
      policy: when windows are published.

    Attributes:
      size: number of its samples.
      published_size: number of its samples when its examples were last published.
      seen: sequence numbers of its samples, by start of the recorder.
      ends: number of samples sent by each ended start of the recorder.
    """

    def __init__(self, run_id: str, datasets: Sequence[LiveDataset], policy: LivePolicy) -> None:
        self.run_id = run_id
        self.policy = policy
        self.columns = columns_of(datasets)
        self.size = 0
        self.published_size = 0
        self.seen: dict[int, RangeSet] = {}
        self.ends: dict[int, int] = {}
        self._windows = [
            _DatasetWindows(dataset, [self.columns.index(name) for name in dataset.resolved.columns])
            for dataset in datasets
        ]
        self._present = np.zeros(len(self.columns), bool)
        self._first_us = NEVER_US
        self._day_us = NEVER_US
        self._new_times: list[np.ndarray] = []  # of samples whose windows are not recomputed yet
        # The samples, ordered by (time, start of the recorder, number). The arrays are longer than ``size``.
        self._time = np.zeros(_MIN_CAPACITY, np.int64)
        self._recorder = np.zeros(_MIN_CAPACITY, np.int64)
        self._sequence = np.zeros(_MIN_CAPACITY, np.int64)
        self._boot = np.zeros(_MIN_CAPACITY, bool)
        self._values = np.zeros((_MIN_CAPACITY, len(self.columns)))

    @property
    def ended(self) -> bool:
        """Whether an end has arrived."""
        return bool(self.ends)

    @property
    def missing(self) -> int:
        """The number of samples known to be missing."""
        total = 0
        for recorder in self.seen.keys() | self.ends.keys():
            received = self.seen.get(recorder, RangeSet())
            last = max((end for _, end in received), default=0)
            total += max(self.ends.get(recorder, 0), last) - received.count()
        return total

    @property
    def complete(self) -> bool:
        """Whether the run and each start of its recorder have ended, and no sample is missing."""
        return self.ended and self.seen.keys() <= self.ends.keys() and self.missing == 0

    def add(self, part: Part) -> Part | None:
        """Add samples and ends; those that the run has are ignored.

        Returns:
          The new samples and ends of ``part``; None if there are none.

        Raises:
          RejectedInput: ``run_too_long`` or ``too_many_restarts``; nothing was added.
        """
        new_rows = unseen(part, self.seen)
        ends = tuple(end for end in part.ends if end[1] > self.ends.get(end[0], -1))
        if self.size + new_rows.size > self.policy.most_samples:
            raise RejectedInput("run_too_long", f"more than {self.policy.most_samples} samples")
        starts = {*self.seen, *self.ends, *np.unique(part.recorder).tolist(), *(recorder for recorder, _ in ends)}
        if len(starts) > MAX_LOG_STARTS:
            raise RejectedInput("too_many_restarts", f"more than {MAX_LOG_STARTS} starts of the recorder")
        if not new_rows.size and not ends:
            return None
        accepted = part.take(new_rows, ends)
        self.ends.update(ends)
        self._present |= accepted.present
        self._first_us = min(self._first_us, accepted.first_us)
        for recorder, rows in by_start(accepted):
            received = self.seen.setdefault(recorder, RangeSet())
            numbers = accepted.sequence[rows]
            for group in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
                received.add(int(group[0]), int(group[-1]) + 1)
        if accepted.size:
            self._insert(accepted)
            self._new_times.append(accepted.time_us)
        return accepted

    def _insert(self, part: Part) -> None:
        """Insert samples in order. Samples of a later time move, but there are usually none."""
        begin = int(np.searchsorted(self._time[: self.size], part.time_us.min(), side="left"))
        size = self.size + part.size
        if size > self._time.size:
            self._grow(2 * size)
        columns = (self._time, self._recorder, self._sequence, self._boot, self._values)
        added = (part.time_us, part.recorder, part.sequence, part.boot, part.values)
        tails = [np.concatenate([column[begin : self.size], new]) for column, new in zip(columns, added, strict=True)]
        times, recorders, sequences, _, _ = tails
        order = np.lexsort((sequences, recorders, times))  # by time, then by start of the recorder, then by number
        for column, tail in zip(columns, tails, strict=True):
            column[begin:size] = tail[order]
        self.size = size

    def _grow(self, capacity: int) -> None:
        self._time = np.resize(self._time, capacity)
        self._recorder = np.resize(self._recorder, capacity)
        self._sequence = np.resize(self._sequence, capacity)
        self._boot = np.resize(self._boot, capacity)
        self._values = np.resize(self._values, (capacity, len(self.columns)))

    def take_due_panes(self, *, over: bool = False) -> list[Pane]:
        """Return the panes that are due since the last call, by data set and time, and record them as published.

        Args:
          over: the run is over: every window becomes final.
        """
        if not self.size:
            return []
        first = min(self._first_us, int(self._time[0]))
        new_times = self._new_times
        self._new_times = []
        if first - first % DAY_US != self._day_us:  # the run began on an earlier day than known: recompute all
            self._day_us = first - first % DAY_US
            new_times = [self._time[: self.size]]
            for windows in self._windows:
                windows.open = {}
                windows.final_below = -_ALL_WINDOWS
        times = np.concatenate(new_times) if new_times else _NO_TIMES
        return [pane for windows in self._windows for pane in self._take_panes_of(windows, times, over)]

    def _take_panes_of(self, windows: _DatasetWindows, times: np.ndarray, over: bool) -> Iterator[Pane]:
        """Yield the due panes of windows that have samples at ``times`` or become final, and record them."""
        interval_us = windows.dataset.resolved.definition.interval_us
        was_final_below = windows.final_below
        windows.final_below = _ALL_WINDOWS if over else max(was_final_below, self._closed_below(interval_us))
        closing = [number for number in windows.open if number < windows.final_below]
        for number in closing:
            del windows.open[number]
        numbers = np.unique(np.concatenate([(times - self._day_us) // interval_us, np.array(closing, np.int64)]))
        due = self._due_spans(windows, self._spans_of(numbers, interval_us))
        is_open = due.numbers >= windows.final_below
        windows.open.update(zip(due.numbers[is_open].tolist(), due.counts[is_open].tolist(), strict=True))
        values, is_complete = self._values_of(windows, due)
        for index in np.flatnonzero(is_complete).tolist():
            number = int(due.numbers[index])
            start_us = self._day_us + number * interval_us
            kind = windows.kind_of(number, was_final_below)
            yield Pane(windows.dataset, self._day_us, number, start_us, int(due.counts[index]), kind, values[index])

    def _closed_below(self, interval_us: int) -> int:
        """Return the number of the first window whose slack is not over by the run's clock."""
        clock_us = int(self._time[self.size - 1]) - round(self.policy.slack_s * 1e6)
        return (clock_us - self._day_us) // interval_us

    def _spans_of(self, numbers: np.ndarray, interval_us: int) -> _Spans:
        starts_us = self._day_us + numbers * interval_us
        begins = np.searchsorted(self._time[: self.size], starts_us)
        ends = np.searchsorted(self._time[: self.size], starts_us + interval_us)
        return _Spans(numbers, begins, ends - begins)

    def _due_spans(self, windows: _DatasetWindows, spans: _Spans) -> _Spans:
        """Return the spans of the windows to publish: final ones, and open ones that have grown enough."""
        published_counts = np.array([windows.open.get(number, 0) for number in spans.numbers.tolist()], np.int64)
        has_grown = spans.counts >= published_counts * (1 + self.policy.window_growth)
        is_due = (spans.numbers < windows.final_below) | has_grown
        return _Spans(*(array[is_due] for array in spans))

    def _values_of(self, windows: _DatasetWindows, spans: _Spans) -> tuple[np.ndarray, np.ndarray]:
        """Compute the values of windows, float32 [W, F], and which windows have values in all columns, bool [W]."""
        definition = windows.dataset.resolved.definition
        # The rows of all windows one after another: those of each window start at its begin and count up.
        window = np.repeat(np.arange(spans.numbers.size), spans.counts)
        begins_in_rows = np.cumsum(spans.counts) - spans.counts
        rows = np.arange(window.size) + np.repeat(spans.begins - begins_in_rows, spans.counts)
        if not definition.count_first_sample:
            window = window[~self._boot[rows]]
            rows = rows[~self._boot[rows]]
        values = np.zeros((spans.numbers.size, len(windows.indices)), np.float32)
        is_complete = np.zeros(spans.numbers.size, bool)
        if not rows.size:
            return values, is_complete
        groups, first = np.unique(window, return_index=True)
        reduced, complete = reduce_windows(
            [self._values[rows, column] for column in windows.indices], first, definition.sample_statistic
        )
        values[groups] = as_stored(reduced)
        is_complete[groups] = complete & np.isfinite(values[groups]).all(axis=1)
        return values, is_complete

    def are_examples_due(self) -> bool:
        """Return whether the run has grown enough to publish its examples again."""
        return self.size > self.published_size and self.size >= self.published_size * (1 + self.policy.example_growth)

    def take_examples(self, *, over: bool = False) -> list[ExampleSoFar]:
        """Compute the run's example of each data set, by the batch function, and record them as published.

        Args:
          over: the run is over, so that its examples get digests.
        """
        self.published_size = self.size
        table = self.table()
        examples = []
        for windows in self._windows:
            resolved = windows.dataset.resolved
            inputs, n_windows, rejected = prepare_many([table], resolved)
            if rejected:
                _, reason = rejected[0]
                examples.append(ExampleSoFar(windows.dataset, self.size, self.missing, None, "", reason))
                continue
            count = int(n_windows[0])
            digest = row_digest(self.run_id, inputs[0].T, resolved.features, count) if over else ""
            values = inputs[0, :count]
            examples.append(ExampleSoFar(windows.dataset, self.size, self.missing, values, digest, None))
        return examples

    def table(self) -> pa.Table:
        """Return the telemetry that the data sets need, as stored, in order of time."""
        size = self.size
        present = np.flatnonzero(self._present)
        names = [self.columns[index] for index in present.tolist()]
        return telemetry_table(names, self._time[:size], self._boot[:size], self._values[:size, present])

    @classmethod
    def rebuild(
        cls, run_id: str, parts: Sequence[Part], datasets: Sequence[LiveDataset], policy: LivePolicy
    ) -> LiveRun:
        """Rebuild a run from its parts. Windows and examples that were due when it was stored count as published."""
        run = cls(run_id, datasets, policy)
        if parts:
            run.add(join_parts(parts))
            run.take_due_panes()
            run.published_size = run.size
        return run


def pane_message(run_id: str, pane: Pane) -> bytes:
    """Encode a pane of a window as JSON. Equal panes have equal bytes."""
    window: Window = {
        "run_id": run_id,
        "dataset": pane.dataset.name,
        "version": pane.dataset.resolved.definition.version,
        "definition": pane.dataset.digest,
        "day": iso_time(pane.day_us)[:10],
        "number": pane.number,
        "start": iso_time(pane.start_us),
        "samples": pane.samples,
        "revision": pane.samples,
        "pane": pane.kind,
        "values": pane.values,
    }
    return _dumps(window)


def example_message(run_id: str, example: ExampleSoFar, standing: Standing) -> bytes:
    """Encode a run's example so far as JSON, without its values where they exceed `MAX_EXAMPLE_BYTES`."""
    fields: LiveExample = {
        "run_id": run_id,
        "dataset": example.dataset.name,
        "version": example.dataset.resolved.definition.version,
        "definition": example.dataset.digest,
        "standing": standing,
        "ended": standing == "ended",
        "samples": example.samples,
        "revision": example.samples,
        "missing": example.missing,
        "n_windows": 0,
    }
    if example.values is None:
        if example.rejected is not None:
            fields["excluded"] = {"reason": example.rejected.reason, "detail": example.rejected.detail}
        return _dumps(fields)
    fields["n_windows"] = len(example.values)
    fields["features"] = example.dataset.resolved.features
    if standing != "running":
        fields["digest"] = example.digest
    value = _dumps({**fields, "values": example.values})
    return value if len(value) <= MAX_EXAMPLE_BYTES else _dumps({**fields, "values": None})


def _dumps(fields: Mapping[str, Any]) -> bytes:
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)
