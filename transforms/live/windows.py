"""Live windows: the samples of a running job, and its present windows and example.

A run keeps all its samples until it ends, each once, ordered by time. A window that gets a sample is recomputed from
its samples by the batch function; so is the example, from all samples. There are no running sums, so late, repeated or
reordered samples leave no trace, and an ended run equals the batch result.

Messages of live windows: the JSON of the topics `windows`, `live-examples` and `live-dead-letters`.

docs/formats/live.md describes the formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson
import pyarrow as pa

from ciml.datasets.definition import ResolvedDefinition
from ciml.digest import sha256_json
from ciml.errors import RejectedInput
from ciml.events.fields import iso_time
from ciml.events.payloads import payload_of
from ciml.events.records import Message, Origin
from ciml.events.samples import telemetry_table
from ciml.limits import MAX_LOG_STARTS
from ciml.manifest.coverage import RangeSet
from ciml.messages import LateSamples, LiveExample, RejectedSamples, Standing, Window
from ciml.transforms.examples.downsample import DAY_US, as_stored, reduce_windows
from ciml.transforms.examples.prepare import prepare_many, row_digest
from ciml.transforms.live.samples import NEVER_US, LivePolicy, Part, by_start, join_parts, unseen

PaneKind = Literal["early", "final", "late"]
_NONE = np.zeros(0, np.int64)
_EVER = 1 << 62


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
    """Return the columns that any of the data sets needs, in the order of their first use."""
    return tuple(dict.fromkeys(column for dataset in datasets for column in dataset.resolved.columns))


class Pane(NamedTuple):
    """The present state of a window. Equal run, data set, day, number and samples imply equal values.

    Attributes:
      dataset: its data set.
      day_us: the midnight from which the run's windows count, epoch microseconds.
      number: number of the window from that midnight.
      start_us: start of the window, epoch microseconds.
      samples: number of samples, which is also its revision: it only grows.
      kind: ``early``: more samples are expected; ``final``: by the run's clock the window's slack is over, or the run
        is; ``late``: a sample arrived after it was final.
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
    """The present example of a run. Equal run, data set and samples imply equal values.

    Attributes:
      dataset: its data set.
      samples: number of samples of the run, which is also the example's revision.
      missing: number of samples known to be missing: gaps in the numbers, and differences from an end's count.
      values: float32 [n_windows, F]; None where the run is rejected.
      digest: as of the batch example of the same samples; "" while the run is not over, or is rejected.
      rejected: why there is no example, or None.
    """

    dataset: LiveDataset
    samples: int
    missing: int
    values: np.ndarray | None
    digest: str
    rejected: RejectedInput | None


@dataclass(eq=False)
class _Published:
    """The published windows of a run in one data set."""

    dataset: LiveDataset
    indices: list[int]  # indices of its columns among the kept ones
    open: dict[int, int] = field(default_factory=dict)  # windows that are not final: their samples when last published
    below: int = -_EVER  # windows with smaller numbers are final


class LiveRun:
    """A running job.

    Args:
      run_id: the encoded run id.
      datasets: the data sets of the windows.
      policy: when windows are published.

    Attributes:
      size: number of its samples.
      published: number of its samples when its examples were last published.
      seen: sequence numbers of its samples, by start of the recorder.
      ends: number of samples sent by each ended start of the recorder.
    """

    def __init__(self, run_id: str, datasets: Sequence[LiveDataset], policy: LivePolicy) -> None:
        self.run_id = run_id
        self.policy = policy
        self.columns = columns_of(datasets)
        self.size = self.published = 0
        self.seen: dict[int, RangeSet] = {}
        self.ends: dict[int, int] = {}
        self._published = [
            _Published(dataset, [self.columns.index(name) for name in dataset.resolved.columns]) for dataset in datasets
        ]
        self._present = np.zeros(len(self.columns), bool)
        self._first_us = self._day_us = NEVER_US
        self._new: list[np.ndarray] = []  # times of samples whose windows are not recomputed yet
        # Ordered by (time, start of the recorder, number); longer than ``size``.
        self._time, self._recorder, self._sequence = (np.zeros(64, np.int64) for _ in range(3))
        self._boot, self._values = np.zeros(64, bool), np.zeros((64, len(self.columns)))

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
        """Add the new samples and ends.

        Returns:
          The new samples and ends of ``part``; None where there are none.

        Raises:
          RejectedInput: ``run_too_long`` or ``too_many_restarts``; nothing was added.
        """
        new = unseen(part, self.seen)
        ends = tuple(end for end in part.ends if end[1] > self.ends.get(end[0], -1))
        if self.size + new.size > self.policy.most_samples:
            raise RejectedInput("run_too_long", f"more than {self.policy.most_samples} samples")
        starts = {*self.seen, *self.ends, *np.unique(part.recorder).tolist(), *(recorder for recorder, _ in ends)}
        if len(starts) > MAX_LOG_STARTS:
            raise RejectedInput("too_many_restarts", f"more than {MAX_LOG_STARTS} starts of the recorder")
        if not new.size and not ends:
            return None
        accepted = part.take(new, ends)
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
            self._new.append(accepted.time_us)
        return accepted

    def _insert(self, part: Part) -> None:
        """Insert samples in order. Later samples are moved, usually none."""
        begin = int(np.searchsorted(self._time[: self.size], part.time_us.min(), side="left"))
        size = self.size + part.size
        columns = (self._time, self._recorder, self._sequence, self._boot, self._values)
        came = (part.time_us, part.recorder, part.sequence, part.boot, part.values)
        tails = [np.concatenate([ours[begin : self.size], theirs]) for ours, theirs in zip(columns, came, strict=True)]
        order = np.lexsort((tails[2], tails[1], tails[0]))
        if size > self._time.size:
            columns = tuple(np.resize(ours, (2 * size, *ours.shape[1:])) for ours in columns)  # type: ignore[assignment]
            self._time, self._recorder, self._sequence, self._boot, self._values = columns
        for ours, tail in zip(columns, tails, strict=True):
            ours[begin:size] = tail[order]
        self.size = size

    def panes(self, *, over: bool = False) -> list[Pane]:
        """Return the windows to publish since the last call, by data set and time.

        Args:
          over: the run is over: every window becomes final.
        """
        if not self.size:
            return []
        first = min(self._first_us, int(self._time[0]))
        new = self._new
        self._new = []
        if first - first % DAY_US != self._day_us:  # the run began on an earlier day than known: recompute all
            self._day_us = first - first % DAY_US
            new = [self._time[: self.size]]
            for published in self._published:
                published.open = {}
                published.below = -_EVER
        times = np.concatenate(new) if new else _NONE
        return [pane for published in self._published for pane in self._panes(published, times, over)]

    def _panes(self, published: _Published, times: np.ndarray, over: bool) -> list[Pane]:
        resolved = published.dataset.resolved
        interval = resolved.definition.interval_us
        passed = int(self._time[self.size - 1]) - round(self.policy.slack_s * 1e6) - self._day_us
        before = published.below
        published.below = _EVER if over else max(published.below, passed // interval)
        closing = [number for number in published.open if number < published.below]
        numbers = np.unique(np.concatenate([(times - self._day_us) // interval, np.array(closing, np.int64)]))
        starts = self._day_us + numbers * interval
        begins = np.searchsorted(self._time[: self.size], starts)
        counts = np.searchsorted(self._time[: self.size], starts + interval) - begins
        due = np.ones(numbers.size, bool)
        for index in np.flatnonzero(numbers >= published.below).tolist():
            number = int(numbers[index])
            count = int(counts[index])
            due[index] = count >= published.open.get(number, 0) * (1 + self.policy.window_growth)
            published.open[number] = count if due[index] else published.open[number]
        for number in closing:
            del published.open[number]
        numbers = numbers[due]
        starts = starts[due]
        begins = begins[due]
        counts = counts[due]
        values, complete = self._values_of(published, begins, counts)
        kinds: list[PaneKind] = [
            "late" if n < before else "final" if n < published.below else "early" for n in numbers.tolist()
        ]
        return [
            Pane(
                published.dataset,
                self._day_us,
                int(numbers[row]),
                int(starts[row]),
                int(counts[row]),
                kinds[row],
                values[row],
            )
            for row in np.flatnonzero(complete).tolist()
        ]

    def _values_of(
        self, published: _Published, begins: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the values of windows, float32 [W, F], and which of them have one: bool [W]."""
        definition = published.dataset.resolved.definition
        window = np.repeat(np.arange(begins.size), counts)
        rows = np.arange(window.size) + np.repeat(begins - (np.cumsum(counts) - counts), counts)
        if not definition.count_first_sample:
            window = window[~self._boot[rows]]
            rows = rows[~self._boot[rows]]
        values = np.zeros((begins.size, len(published.indices)), np.float32)
        is_complete = np.zeros(begins.size, bool)
        if not rows.size:
            return values, is_complete
        groups, first = np.unique(window, return_index=True)
        reduced, complete = reduce_windows(
            [self._values[rows, column] for column in published.indices], first, definition.sample_statistic
        )
        values[groups] = as_stored(reduced)
        is_complete[groups] = complete & np.isfinite(values[groups]).all(axis=1)
        return values, is_complete

    def examples_due(self) -> bool:
        """Return whether the run has grown enough to publish its examples again."""
        return self.size > self.published and self.size >= self.published * (1 + self.policy.example_growth)

    def examples(self, *, over: bool = False) -> list[ExampleSoFar]:
        """Compute the run's example of each data set, by the batch function over all its samples.

        Args:
          over: the run is over, so that its examples get digests.
        """
        self.published, table = self.size, self.table()
        out = []
        for published in self._published:
            resolved = published.dataset.resolved
            inputs, n_windows, rejected = prepare_many([table], resolved)
            count = int(n_windows[0])
            digest = row_digest(self.run_id, inputs[0].T, resolved.features, count) if over and not rejected else ""
            values = None if rejected else inputs[0, :count]
            why = rejected[0][1] if rejected else None
            out.append(ExampleSoFar(published.dataset, self.size, self.missing, values, digest, why))
        return out

    def table(self) -> pa.Table:
        """Return the telemetry that the data sets need, as stored, in order of time."""
        size = self.size
        there = np.flatnonzero(self._present)
        names = [self.columns[index] for index in there.tolist()]
        return telemetry_table(names, self._time[:size], self._boot[:size], self._values[:size, there])

    @classmethod
    def again(cls, run_id: str, parts: Sequence[Part], datasets: Sequence[LiveDataset], policy: LivePolicy) -> LiveRun:
        """Rebuild a run from its parts. Windows that were due then count as published."""
        run = cls(run_id, datasets, policy)
        if parts:
            run.add(join_parts(parts))
            run.panes()
            run.published = run.size
        return run


MAX_EXAMPLE_BYTES = 4 << 20
#: Why a message of `samples`, or its content, is a dead letter: `ciml.events.samples.REASONS`, those of
#: `ciml.transforms.live.windows.LiveRun.add`, and that the run's state was freed.
LATE = {"ended": "run_ended", "silent": "run_silent"}


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


def rejected_message(origin: Origin, message: Message, rejected: RejectedInput) -> bytes:
    """Return the dead letter of an undecodable message, with the message, so that it can be tried again."""
    dead_letter: RejectedSamples = {
        "reason": rejected.reason,
        "detail": rejected.detail,
        "origin": origin.to_json(),
        "payload": payload_of(message),
    }
    return _dumps(dead_letter)


def late_message(topic: str, run_id: str, part: Part, rejected: RejectedInput) -> bytes:
    """Return the dead letter of samples that came too late: their run, and their range of offsets in the topic."""
    numbers: dict[str, list[int]] = {}
    for recorder, sequence in zip(part.recorder.tolist(), part.sequence.tolist(), strict=True):
        numbers.setdefault(str(recorder), []).append(sequence)
    dead_letter: LateSamples = {
        "reason": rejected.reason,
        "detail": rejected.detail,
        "origin": [topic, part.partition, part.first],
        "last_offset": part.last,
        "run_id": run_id,
        "samples": part.size,
        "sequences": numbers,
    }
    return _dumps(dead_letter)


def _dumps(fields: Mapping[str, Any]) -> bytes:
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)
