"""Live windows: the present windows and examples of a running job, computed from its samples.

A run keeps each of its samples once, ordered by time, until it ends. When a sample arrives, its window is recomputed
from all samples of the window. The example is recomputed from all samples of the run. Both use the batch functions.
So late, repeated or reordered samples do not change the result, and the windows of an ended run equal the batch result.

A *pane* is a published state of a window: early, final or late.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from ciml.datasets.definition import ResolvedDefinition
from ciml.digest import row_digest, sha256_json
from ciml.errors import RejectedInput
from ciml.events.samples import telemetry_table
from ciml.limits import MAX_LOG_STARTS, MAX_RUN_DAYS
from ciml.manifest.coverage import RangeSet
from ciml.transforms.examples.downsample import DAY_US, as_stored, reduce_windows
from ciml.transforms.examples.prepare import prepare_many
from ciml.transforms.live.samples import NEVER_US, LivePolicy, Part, SortedSamples, by_start, join_parts, unseen

PaneKind = Literal["early", "final", "late"]
#: Samples from which on a final window is not computed again for each late sample.
_LONG_WINDOW = 1000


@dataclass(frozen=True)
class LiveDataset:
    """A data set with windows from live samples, and its resolved definition."""

    name: str
    resolved: ResolvedDefinition

    @cached_property
    def digest(self) -> str:
        """Digest of the resolved definition: windows with the same digest are comparable."""
        return sha256_json(self.resolved.to_json())


def columns_of(datasets: Sequence[LiveDataset]) -> tuple[str, ...]:
    """Return the columns that the data sets need, in order of first use."""
    return tuple(dict.fromkeys(column for dataset in datasets for column in dataset.resolved.columns))


class Pane(NamedTuple):
    """The present state of a window. Panes with equal run, data set, day, number and samples have equal values.

    Attributes:
      dataset: the data set.
      day_us: the midnight from which the run's windows count, epoch microseconds.
      number: number of the window from that midnight.
      start_us: start of the window, epoch microseconds.
      samples: number of samples, which is also the revision of the window: it only grows.
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
      dataset: the data set.
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


class LiveRun:
    """A running job.

    `add` keeps samples. `take_due_panes` and `take_examples` compute what is due, and record it as published. A start
    of the recorder is given by its time, epoch microseconds.

    Args:
      run_id: the encoded run id.
      datasets: the data sets of the windows.
      policy: when windows are published.

    Attributes:
      published_size: number of samples when the examples of the run were last published.
      seen: sequence numbers of the samples, by start of the recorder.
      ends: number of samples sent by each ended start of the recorder.
    """

    def __init__(self, run_id: str, datasets: Sequence[LiveDataset], policy: LivePolicy) -> None:
        self.run_id = run_id
        self.policy = policy
        self.columns = columns_of(datasets)
        self.published_size = 0
        self.seen: dict[int, RangeSet] = {}
        self.ends: dict[int, int] = {}
        self._datasets = datasets
        self._windows: list[_DatasetWindows] = []  # one a data set, from the first pane on
        self._present = np.zeros(len(self.columns), bool)
        self._first_us = NEVER_US  # the time of the run's first sample, which may not have arrived yet
        self._first_days = 0  # number of days that were the first one
        self._day_us = -1  # the midnight from which the windows count; -1 before the first pane
        self._new_times: list[np.ndarray] = []  # of samples whose windows are not recomputed yet
        self._samples = SortedSamples(len(self.columns))

    @property
    def size(self) -> int:
        """The number of samples."""
        return self._samples.size

    @property
    def ended(self) -> bool:
        """Whether an end has arrived."""
        return bool(self.ends)

    @property
    def missing(self) -> int:
        """The number of samples known to be missing."""
        starts = self.seen.keys() | self.ends.keys()
        sent = sum(max(self.ends.get(start, 0), self.seen.get(start, RangeSet()).end) for start in starts)
        return sent - self.size

    @property
    def complete(self) -> bool:
        """Whether the run and each start of its recorder have ended, and no sample is missing."""
        return self.ended and self.seen.keys() <= self.ends.keys() and self.missing == 0

    def add(self, part: Part) -> Part | None:
        """Add samples and ends, except those that the run has. The largest end of a start of the recorder counts.

        Returns:
          The new samples and ends of ``part``; None if there are none.

        Raises:
          RejectedInput: ``run_too_long``, ``too_many_restarts`` or ``too_many_days``; nothing was added.
        """
        new_rows = unseen(part, self.seen)
        ends: dict[int, int] = {}
        for recorder_us, samples in part.ends:
            if samples > max(self.ends.get(recorder_us, -1), ends.get(recorder_us, -1)):
                ends[recorder_us] = samples
        if self.size + new_rows.size > self.policy.most_samples:
            raise RejectedInput("run_too_long", f"more than {self.policy.most_samples} samples")
        starts = {*self.seen, *self.ends, *np.unique(part.recorder).tolist(), *ends}
        if len(starts) > MAX_LOG_STARTS:
            raise RejectedInput("too_many_restarts", f"more than {MAX_LOG_STARTS} starts of the recorder")
        if not new_rows.size and not ends:
            return None
        accepted = part.take(new_rows, tuple(ends.items()))
        self._put_first(min(accepted.first_us, int(accepted.time_us.min(initial=NEVER_US))))
        self.ends.update(ends)
        self._present |= accepted.present
        for recorder_us, rows in by_start(accepted):
            received = self.seen.setdefault(recorder_us, RangeSet())
            numbers = accepted.sequence[rows]
            for group in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
                received.add(int(group[0]), int(group[-1]) + 1)
        if accepted.size:
            self._samples.insert(accepted)
            self._new_times.append(accepted.time_us)
        return accepted

    def _put_first(self, first_us: int) -> None:
        """Record the time of a sample that may be the first. Each day that becomes the first one moves all windows."""
        if first_us >= self._first_us:
            return
        if first_us // DAY_US < self._first_us // DAY_US:
            if self._first_days == MAX_RUN_DAYS:
                raise RejectedInput("too_many_days", f"after {MAX_RUN_DAYS} others, an even earlier day is the first")
            self._first_days += 1
        self._first_us = first_us

    def take_due_panes(self, *, over: bool = False) -> list[Pane]:
        """Return the panes that became due since the last call, by data set and time, and record them as published.

        Args:
          over: the run is over: every window becomes final.
        """
        if not self.size:
            return []
        changed_us = self._take_changed_times()
        return [pane for windows in self._windows for pane in windows.take_due_panes(self._samples, changed_us, over)]

    def _take_changed_times(self) -> np.ndarray:
        """Return the times of the samples whose windows must be computed, int64 [n], and forget these times.

        These are the new samples. But windows are numbered from the day of the run's first sample: if this day proves
        to be an earlier one, all windows are computed again.
        """
        times = self._samples["time_us"]
        day_us = self._first_us - self._first_us % DAY_US
        new_times = self._new_times
        self._new_times = []
        if day_us == self._day_us:
            return np.concatenate(new_times) if new_times else times[:0]
        self._day_us = day_us
        self._windows = []
        for dataset in self._datasets:
            indices = [self.columns.index(name) for name in dataset.resolved.columns]
            self._windows.append(_DatasetWindows(dataset, indices, day_us, self.policy))
        return times

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
        for dataset in self._datasets:
            resolved = dataset.resolved
            inputs, n_windows, rejected = prepare_many([table], resolved)
            if rejected:
                _, reason = rejected[0]
                examples.append(ExampleSoFar(dataset, self.size, self.missing, None, "", reason))
                continue
            count = int(n_windows[0])
            digest = row_digest(self.run_id, inputs[0].T, resolved.features, count) if over else ""
            values = inputs[0, :count]
            examples.append(ExampleSoFar(dataset, self.size, self.missing, values, digest, None))
        return examples

    def table(self) -> pa.Table:
        """Return the telemetry that the data sets need, as stored, in order of time."""
        present = np.flatnonzero(self._present)
        names = [self.columns[index] for index in present.tolist()]
        samples = self._samples
        rows = samples["row"]
        values = samples["values"][np.ix_(rows, present)]
        return telemetry_table(names, samples["time_us"], samples["boot"][rows], values)

    @classmethod
    def rebuild(
        cls, run_id: str, parts: Sequence[Part], datasets: Sequence[LiveDataset], policy: LivePolicy
    ) -> LiveRun:
        """Rebuild a run from its parts.

        Windows and examples that were due when it was stored count as published; of long windows, which may have had
        late samples, that is not known.
        """
        run = cls(run_id, datasets, policy)
        if parts:
            run.add(join_parts(parts))
            run.take_due_panes()
            run.published_size = run.size
            for windows in run._windows:
                windows.forget_long()
        return run


@dataclass(eq=False)
class _DatasetWindows:
    """The windows of a run in one data set: which were published, and which are due.

    Attributes:
      dataset: the data set.
      indices: indices of the data set's columns among the columns of the run.
      day_us: the midnight from which the windows count, epoch microseconds.
      policy: when windows are published.
      published: sizes of windows, in samples, as last computed, by number: of those that are not final, and of final
        ones from `_LONG_WINDOW` on.
      final_below: windows with smaller numbers are final.
    """

    dataset: LiveDataset
    indices: list[int]
    day_us: int
    policy: LivePolicy
    published: dict[int, int] = field(default_factory=dict)
    final_below: float = -math.inf

    @property
    def interval_us(self) -> int:
        """The length of a window, microseconds."""
        return self.dataset.resolved.definition.interval_us

    def take_due_panes(self, samples: SortedSamples, changed_us: np.ndarray, over: bool) -> list[Pane]:
        """Return the panes that are due, by time, and record them as published.

        Args:
          samples: all samples of the run, at least one.
          changed_us: the times of the samples that arrived since the last call, int64 [n].
          over: the run is over.
        """
        final_below = math.inf if over else max(self.final_below, self._window_of_clock(samples))
        spans = self._due_spans(samples, changed_us, final_below)
        panes = self._make_panes(samples, spans, final_below)
        sizes = self.published | {span.number: span.size for span in spans}
        self.published = {
            number: size for number, size in sizes.items() if number >= final_below or size >= _LONG_WINDOW
        }
        self.final_below = final_below
        return panes

    def forget_long(self) -> None:
        """Have the long final windows published again, at the latest when the run is over."""
        final = [number for number in self.published if number < self.final_below]
        self.published |= dict.fromkeys(final, _LONG_WINDOW)

    def _window_of_clock(self, samples: SortedSamples) -> int:
        """Return the first window whose slack is not over by the run's clock, the time of its last sample."""
        clock_us = int(samples["time_us"][-1]) - round(self.policy.slack_s * 1e6)
        return (clock_us - self.day_us) // self.interval_us

    def _due_spans(self, samples: SortedSamples, changed_us: np.ndarray, final_below: float) -> list[_Span]:
        """Return the spans of the windows to publish, by number.

        These are the windows that become final, and those with new samples that are final and short, or have grown.
        """
        least = -math.inf if final_below == math.inf else self.final_below
        closing = [number for number in self.published if least <= number < final_below]
        changed = (changed_us - self.day_us) // self.interval_us
        numbers = np.unique(np.concatenate([changed, np.array(closing, np.int64)]))
        starts_us = self.day_us + numbers * self.interval_us
        begins = np.searchsorted(samples["time_us"], starts_us)
        sizes = np.searchsorted(samples["time_us"], starts_us + self.interval_us) - begins
        spans = map(_Span, numbers.tolist(), begins.tolist(), sizes.tolist())
        return [span for span in spans if self._is_due(span, final_below)]

    def _is_due(self, span: _Span, final_below: float) -> bool:
        """Return whether a window with new samples, or that becomes final, is to be published."""
        size = self.published.get(span.number)
        if size is None or self.final_below <= span.number < final_below:
            return True
        growth = 0.0 if final_below == math.inf else self.policy.window_growth
        return span.size > size and span.size >= size * (1 + growth)

    def _make_panes(self, samples: SortedSamples, spans: Sequence[_Span], final_below: float) -> list[Pane]:
        """Return the panes of the windows that have values in all columns."""
        panes: list[Pane] = []
        for span, values in zip(spans, self._compute_values(samples, spans), strict=True):
            if not np.isfinite(values).all():
                continue
            kind: PaneKind = "final" if span.number < final_below else "early"
            if span.number < self.final_below:  # it was final before
                kind = "late"
            start_us = self.day_us + span.number * self.interval_us
            panes.append(Pane(self.dataset, self.day_us, span.number, start_us, span.size, kind, values))
        return panes

    def _compute_values(self, samples: SortedSamples, spans: Sequence[_Span]) -> np.ndarray:
        """Compute the values of W windows, float32 [W, F]; all values of a window are NaN if a column has none."""
        definition = self.dataset.resolved.definition
        values = np.full((len(spans), len(self.indices)), np.nan, np.float32)
        if not spans:
            return values
        rows = np.concatenate([samples["row"][span.begin : span.begin + span.size] for span in spans])
        window_of_row = np.repeat(np.arange(len(spans)), [span.size for span in spans])
        if not definition.count_first_sample:
            is_counted = ~samples["boot"][rows]
            rows = rows[is_counted]
            window_of_row = window_of_row[is_counted]
        if rows.size:
            columns = [samples["values"][rows, index] for index in self.indices]
            counted_windows, begins = np.unique(window_of_row, return_index=True)
            reduced, is_complete = reduce_windows(columns, begins, definition.sample_statistic)
            values[counted_windows[is_complete]] = as_stored(reduced)[is_complete]
        return values


class _Span(NamedTuple):
    """The samples of the window with a number: ``size`` rows of the run's samples from row ``begin`` on."""

    number: int
    begin: int
    size: int
