"""Live windows: the present windows and examples of a running job from its samples, and their messages.

A run keeps all its samples until it ends, each once, ordered by time. The batch functions recompute a window that gets
a sample from all its samples, and the example from all samples of the run. There are no running sums. So late, repeated
or reordered samples do not change the result, and the windows of an ended run equal the batch result.

A *pane* is a published state of a window: early, final or late. docs/formats/live.md describes the messages of the
topics `windows`, `live-examples` and `live-dead-letters`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


class _Span(NamedTuple):
    """The samples of the window with a number: ``size`` rows of the run's samples from row ``begin`` on."""

    number: int
    begin: int
    size: int


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
    final_below: float = -math.inf

    def record(self, spans: Sequence[_Span], final_below: float) -> None:
        """Record the spans of windows as published, and that all windows below a number are final."""
        sizes = self.open | {span.number: span.size for span in spans}
        self.open = {number: size for number, size in sizes.items() if number >= final_below}
        self.final_below = final_below


class _SortedSamples:
    """The samples of a run, ordered by time, then by start of the recorder, then by sequence number."""

    def __init__(self, columns: int) -> None:
        self.size = 0
        # By name of the attribute of `Part`. The arrays have spare rows, so that samples are copied rarely.
        self._arrays = {
            "time_us": np.zeros(_MIN_CAPACITY, np.int64),
            "recorder": np.zeros(_MIN_CAPACITY, np.int64),
            "sequence": np.zeros(_MIN_CAPACITY, np.int64),
            "boot": np.zeros(_MIN_CAPACITY, bool),
            "values": np.zeros((_MIN_CAPACITY, columns)),
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name][: self.size]

    def insert(self, part: Part) -> None:
        """Insert samples. Those of a later time move, but there are usually none."""
        begin = int(np.searchsorted(self["time_us"], part.time_us.min()))
        tails = {name: np.concatenate([self[name][begin:], getattr(part, name)]) for name in self._arrays}
        order = np.lexsort((tails["sequence"], tails["recorder"], tails["time_us"]))  # the last key counts most
        self.size += part.size
        if self.size > len(self._arrays["time_us"]):
            for name, rows in self._arrays.items():
                self._arrays[name] = np.resize(rows, (2 * self.size, *rows.shape[1:]))
        for name, tail in tails.items():
            self[name][begin:] = tail[order]


class LiveRun:
    """A running job.

    `add` keeps samples; `take_due_panes` and `take_examples` compute what is to be published of them, and record it as
    published.

    Args:
      run_id: the encoded run id.
      datasets: the data sets of the windows.
      policy: when windows are published.

    Attributes:
      published_size: number of its samples when its examples were last published.
      seen: sequence numbers of its samples, by start of the recorder.
      ends: number of samples sent by each ended start of the recorder.
    """

    def __init__(self, run_id: str, datasets: Sequence[LiveDataset], policy: LivePolicy) -> None:
        self.run_id = run_id
        self.policy = policy
        self.columns = columns_of(datasets)
        self.published_size = 0
        self.seen: dict[int, RangeSet] = {}
        self.ends: dict[int, int] = {}
        self._windows = [
            _DatasetWindows(dataset, [self.columns.index(name) for name in dataset.resolved.columns])
            for dataset in datasets
        ]
        self._present = np.zeros(len(self.columns), bool)
        self._first_us = NEVER_US  # the time of the first sample by the recorder, which may not have arrived yet
        self._day_us = 0  # the midnight from which the windows count; no sample is of 1970
        self._new_times: list[np.ndarray] = []  # of samples whose windows are not recomputed yet
        self._samples = _SortedSamples(len(self.columns))

    @property
    def size(self) -> int:
        """The number of its samples."""
        return self._samples.size

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
            self._samples.insert(accepted)
            self._new_times.append(accepted.time_us)
        return accepted

    def take_due_panes(self, *, over: bool = False) -> list[Pane]:
        """Return the panes that are due since the last call, by data set and time, and record them as published.

        Args:
          over: the run is over: every window becomes final.
        """
        if not self.size:
            return []
        changed_times = self._take_changed_times()
        panes: list[Pane] = []
        for windows in self._windows:
            final_below = math.inf if over else max(windows.final_below, self._window_of_clock(windows))
            spans = self._due_spans(windows, changed_times, final_below)
            panes += self._panes_of(windows, spans, final_below)
            windows.record(spans, final_below)
        return panes

    def _take_changed_times(self) -> np.ndarray:
        """Return the times of the samples whose windows are to be computed, int64 [n], and forget which these are.

        They are the new samples. But windows are numbered from the day of the run's first sample: if that is an earlier
        day than known before, all windows are made again.
        """
        times = self._samples["time_us"]
        first_us = min(self._first_us, int(times[0]))
        day_us = first_us - first_us % DAY_US
        new_times = self._new_times
        self._new_times = []
        if day_us == self._day_us:
            return np.concatenate(new_times) if new_times else times[:0]
        self._day_us = day_us
        self._windows = [_DatasetWindows(windows.dataset, windows.indices) for windows in self._windows]
        return times

    def _window_of_clock(self, windows: _DatasetWindows) -> int:
        """Return the number of the first window whose slack is not over by the run's clock, its last sample's time."""
        clock_us = int(self._samples["time_us"][-1]) - round(self.policy.slack_s * 1e6)
        return (clock_us - self._day_us) // windows.dataset.resolved.definition.interval_us

    def _due_spans(self, windows: _DatasetWindows, changed_times: np.ndarray, final_below: float) -> list[_Span]:
        """Return the spans of the windows to publish, by number.

        These are the windows that become final, and those with changed samples that are final or have grown enough.
        """
        interval_us = windows.dataset.resolved.definition.interval_us
        becoming_final = [number for number in windows.open if number < final_below]
        changed = (changed_times - self._day_us) // interval_us
        numbers = np.unique(np.concatenate([changed, np.array(becoming_final, np.int64)]))
        starts_us = self._day_us + numbers * interval_us
        begins = np.searchsorted(self._samples["time_us"], starts_us)
        sizes = np.searchsorted(self._samples["time_us"], starts_us + interval_us) - begins
        spans = map(_Span, numbers.tolist(), begins.tolist(), sizes.tolist())
        least_sizes = {number: size * (1 + self.policy.window_growth) for number, size in windows.open.items()}
        return [span for span in spans if span.number < final_below or span.size >= least_sizes.get(span.number, 0)]

    def _panes_of(self, windows: _DatasetWindows, spans: Sequence[_Span], final_below: float) -> list[Pane]:
        """Return the panes of the windows with values in all columns."""
        panes: list[Pane] = []
        for span, values in zip(spans, self._values_of(windows, spans), strict=True):
            if not np.isfinite(values).all():
                continue
            kind: PaneKind = "final" if span.number < final_below else "early"
            if span.number < windows.final_below:  # it was final before
                kind = "late"
            start_us = self._day_us + span.number * windows.dataset.resolved.definition.interval_us
            panes.append(Pane(windows.dataset, self._day_us, span.number, start_us, span.size, kind, values))
        return panes

    def _values_of(self, windows: _DatasetWindows, spans: Sequence[_Span]) -> np.ndarray:
        """Compute the values of W windows, float32 [W, F]; all of a window are NaN if a column has no value."""
        definition = windows.dataset.resolved.definition
        values = np.full((len(spans), len(windows.indices)), np.nan, np.float32)
        if not spans:
            return values
        rows = np.concatenate([np.arange(span.begin, span.begin + span.size) for span in spans])
        window_of_row = np.repeat(np.arange(len(spans)), [span.size for span in spans])
        if not definition.count_first_sample:
            is_counted = ~self._samples["boot"][rows]
            rows = rows[is_counted]
            window_of_row = window_of_row[is_counted]
        if rows.size:
            columns = [self._samples["values"][rows, index] for index in windows.indices]
            counted_windows, begins = np.unique(window_of_row, return_index=True)
            reduced, is_complete = reduce_windows(columns, begins, definition.sample_statistic)
            values[counted_windows[is_complete]] = as_stored(reduced)[is_complete]
        return values

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
        present = np.flatnonzero(self._present)
        names = [self.columns[index] for index in present.tolist()]
        samples = self._samples
        return telemetry_table(names, samples["time_us"], samples["boot"], samples["values"][:, present])

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
