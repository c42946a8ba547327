"""Live windows: the samples of a run that is running, and what its windows and its example are at any moment.

A run keeps all its samples until it ends, each once, in the order of their times. A window that gets a sample is
computed anew from its samples by the batch function; so is the example, from all of them. There are no running sums, so
nothing that comes late, twice or out of order can leave a trace, and a run that has ended equals the batch result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from ciml.datasets.definition import ResolvedDefinition
from ciml.digest import sha256_json
from ciml.errors import RejectedInput
from ciml.events.samples import telemetry_table
from ciml.limits import MAX_LOG_STARTS
from ciml.manifest.offsets import RangeSet
from transforms.examples.downsample import DAY_US, as_stored, reduce_windows
from transforms.examples.prepare import prepare_many, row_digest
from transforms.live.samples import NEVER_US, Part, by_start, join_parts, unseen

PaneKind = Literal["early", "final", "late"]
_NONE = np.zeros(0, np.int64)
_EVER = 1 << 62


@dataclass(frozen=True)
class LivePolicy:
    """When windows and examples are told, and for how long a run is kept.

    Attributes:
      slack_s: how long, by the run's own clock, a window waits after its end for samples that are late, before it is
        told as final. More than what recorders and brokers put out of order; a later sample makes a late pane.
      window_growth: a window is told early when it has so much more of samples than when it was told last: at each of
        the first 16, then ever more seldom, so that a window of n samples is not read n times.
      example_growth: the same of a run's example, which is told whole.
      grace_s: how long a run that ended waits for samples that are missing, by this machine's clock.
      silence_s: how long a run may be silent before it is given up, by this machine's clock.
      remember_s: how long it is remembered that a run is over, so that what comes later is known to be late.
      most_samples: of a run; further ones are refused.
    """

    slack_s: float = 60.0
    window_growth: float = 1 / 16
    example_growth: float = 1 / 20
    grace_s: float = 60.0
    silence_s: float = 1800.0
    remember_s: float = 86_400.0
    most_samples: int = 200_000


@dataclass(frozen=True)
class LiveDataset:
    """A data set whose windows are made of live samples: its name, and what its definition resolved to."""

    name: str
    resolved: ResolvedDefinition

    @cached_property
    def digest(self) -> str:
        """Of the resolved definition: what was computed by the same one can be compared."""
        return sha256_json(self.resolved.to_json())


def columns_of(datasets: Sequence[LiveDataset]) -> tuple[str, ...]:
    """Return the columns that any of the data sets needs, in the order of their first use."""
    return tuple(dict.fromkeys(column for dataset in datasets for column in dataset.resolved.columns))


class Pane(NamedTuple):
    """A window as it is now. The same run, data set, day, number and samples are the same values, however often told.

    Attributes:
      dataset: which data set's.
      day_us: the midnight from which the run's windows count, epoch microseconds.
      number: the window's, counted from that midnight.
      start_us: where it begins, epoch microseconds.
      samples: how many the window has, so also its revision: it only grows.
      kind: ``early``: more is expected; ``final``: by the run's clock the window's slack is over, or the run is;
        ``late``: it was final, and a sample came.
      values: float32 [F].
    """

    dataset: LiveDataset
    day_us: int
    number: int
    start_us: int
    samples: int
    kind: PaneKind
    values: np.ndarray


class LiveExample(NamedTuple):
    """A run's example as it is now. The same run, data set and samples are the same values.

    Attributes:
      dataset: which data set's.
      samples: how many the run has, so also the example's revision.
      missing: how many samples are known to be missing: holes in the numbers, and what an end said there are.
      values: float32 [n_windows, F]; None where the run is refused.
      digest: as of the example that batch makes of the same samples; "" while the run is not over, or is refused.
      rejected: why there is no example, or None.
    """

    dataset: LiveDataset
    samples: int
    missing: int
    values: np.ndarray | None
    digest: str
    rejected: RejectedInput | None


@dataclass(eq=False)
class _Book:
    """What was told of a run's windows of one data set."""

    dataset: LiveDataset
    places: list[int]  # of its columns, among those that are kept
    open: dict[int, int] = field(default_factory=dict)  # windows that are not final: their samples when told last
    below: int = -_EVER  # windows with smaller numbers are final


class LiveRun:
    """A run that is running.

    Args:
      run_id: the encoded run id.
      datasets: whose windows are wanted.
      policy: when they are told.

    Attributes:
      size: how many samples it has.
      told: how many it had when its examples were told last.
      seen: the numbers of its samples, by start of the recorder.
      ends: how many samples each start of the recorder that ended has sent.
    """

    def __init__(self, run_id: str, datasets: Sequence[LiveDataset], policy: LivePolicy) -> None:
        self.run_id, self.policy = run_id, policy
        self.columns = columns_of(datasets)
        self.size = self.told = 0
        self.seen: dict[int, RangeSet] = {}
        self.ends: dict[int, int] = {}
        self._books = [_Book(each, [self.columns.index(name) for name in each.resolved.columns]) for each in datasets]
        self._present = np.zeros(len(self.columns), bool)
        self._first_us = self._day_us = NEVER_US
        self._new: list[np.ndarray] = []  # times of samples whose windows were not looked at
        # In the order of (time, start of the recorder, number); longer than ``size``.
        self._time, self._recorder, self._sequence = (np.zeros(64, np.int64) for _ in range(3))
        self._boot, self._values = np.zeros(64, bool), np.zeros((64, len(self.columns)))

    @property
    def ended(self) -> bool:
        """Whether an end was told."""
        return bool(self.ends)

    @property
    def missing(self) -> int:
        """How many samples are known to be missing."""
        total = 0
        for recorder in self.seen.keys() | self.ends.keys():
            seen = self.seen.get(recorder, RangeSet())
            last = max((end for _, end in seen), default=0)
            total += max(self.ends.get(recorder, 0), last) - seen.count()
        return total

    @property
    def complete(self) -> bool:
        """Whether the run has ended, each start of its recorder too, and nothing is missing."""
        return self.ended and self.seen.keys() <= self.ends.keys() and self.missing == 0

    def add(self, part: Part) -> Part | None:
        """Take in what is new.

        Returns:
          What of ``part`` was new; None where nothing was, neither a sample nor an end.

        Raises:
          RejectedInput: ``run_too_long`` or ``too_many_restarts``; nothing was taken in.
        """
        new = unseen(part, self.seen)
        ends = tuple(end for end in part.ends if end[1] > self.ends.get(end[0], -1))
        if self.size + new.size > self.policy.most_samples:
            raise RejectedInput("run_too_long", f"more than {self.policy.most_samples} samples")
        starts = {*self.seen, *self.ends, *np.unique(part.recorder).tolist(), *(recorder for recorder, _ in ends)}
        if len(starts) > MAX_LOG_STARTS:
            raise RejectedInput("too_many_restarts", f"the recorder was started more than {MAX_LOG_STARTS} times")
        if not new.size and not ends:
            return None
        taken = part.take(new, ends)
        self.ends.update(ends)
        self._present |= taken.present
        self._first_us = min(self._first_us, taken.first_us)
        for recorder, rows in by_start(taken):
            seen = self.seen.setdefault(recorder, RangeSet())
            numbers = taken.sequence[rows]
            for group in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
                seen.add(int(group[0]), int(group[-1]) + 1)
        if taken.size:
            self._insert(taken)
            self._new.append(taken.time_us)
        return taken

    def _insert(self, part: Part) -> None:
        """Put samples where they belong. What is behind the first of them is moved, most often nothing."""
        begin = int(np.searchsorted(self._time[: self.size], part.time_us.min(), side="left"))
        size = self.size + part.size
        kept = (self._time, self._recorder, self._sequence, self._boot, self._values)
        came = (part.time_us, part.recorder, part.sequence, part.boot, part.values)
        tails = [np.concatenate([ours[begin : self.size], theirs]) for ours, theirs in zip(kept, came, strict=True)]
        order = np.lexsort((tails[2], tails[1], tails[0]))
        if size > self._time.size:
            kept = tuple(np.resize(ours, (2 * size, *ours.shape[1:])) for ours in kept)  # type: ignore[assignment]
            self._time, self._recorder, self._sequence, self._boot, self._values = kept
        for ours, tail in zip(kept, tails, strict=True):
            ours[begin:size] = tail[order]
        self.size = size

    def panes(self, *, over: bool = False) -> list[Pane]:
        """Return the windows that are to be told since the last call, data set by data set in the order of their times.

        Args:
          over: the run is over: every window that is not final becomes so.
        """
        if not self.size:
            return []
        first = min(self._first_us, int(self._time[0]))
        new, self._new = self._new, []
        if first - first % DAY_US != self._day_us:  # the run began on an earlier day than was known: all count anew
            self._day_us, new = first - first % DAY_US, [self._time[: self.size]]
            for book in self._books:
                book.open, book.below = {}, -_EVER
        times = np.concatenate(new) if new else _NONE
        return [pane for book in self._books for pane in self._panes(book, times, over)]

    def _panes(self, book: _Book, times: np.ndarray, over: bool) -> list[Pane]:
        resolved = book.dataset.resolved
        interval = resolved.definition.interval_us
        passed = int(self._time[self.size - 1]) - round(self.policy.slack_s * 1e6) - self._day_us
        before, book.below = book.below, _EVER if over else max(book.below, passed // interval)
        closing = [number for number in book.open if number < book.below]
        numbers = np.unique(np.concatenate([(times - self._day_us) // interval, np.array(closing, np.int64)]))
        starts = self._day_us + numbers * interval
        begins = np.searchsorted(self._time[: self.size], starts)
        counts = np.searchsorted(self._time[: self.size], starts + interval) - begins
        due = np.ones(numbers.size, bool)
        for index in np.flatnonzero(numbers >= book.below).tolist():
            number, count = int(numbers[index]), int(counts[index])
            due[index] = count >= book.open.get(number, 0) * (1 + self.policy.window_growth)
            book.open[number] = count if due[index] else book.open[number]
        for number in closing:
            del book.open[number]
        numbers, starts, begins, counts = numbers[due], starts[due], begins[due], counts[due]
        values, kept = self._values_of(book, begins, counts)
        kinds: list[PaneKind] = [
            "late" if n < before else "final" if n < book.below else "early" for n in numbers.tolist()
        ]
        return [
            Pane(book.dataset, self._day_us, int(numbers[at]), int(starts[at]), int(counts[at]), kinds[at], values[at])
            for at in np.flatnonzero(kept).tolist()
        ]

    def _values_of(self, book: _Book, begins: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the values of windows, float32 [W, F], and which of them have any: bool [W]."""
        definition = book.dataset.resolved.definition
        window = np.repeat(np.arange(begins.size), counts)
        rows = np.arange(window.size) + np.repeat(begins - (np.cumsum(counts) - counts), counts)
        if not definition.count_first_sample:
            window, rows = window[~self._boot[rows]], rows[~self._boot[rows]]
        values, kept = np.zeros((begins.size, len(book.places)), np.float32), np.zeros(begins.size, bool)
        if not rows.size:
            return values, kept
        groups, first = np.unique(window, return_index=True)
        reduced, whole = reduce_windows(
            [self._values[rows, at] for at in book.places], first, definition.sample_statistic
        )
        values[groups] = as_stored(reduced)
        kept[groups] = whole & np.isfinite(values[groups]).all(axis=1)
        return values, kept

    def examples_due(self) -> bool:
        """Return whether the run has grown by so much that its examples are to be told again."""
        return self.size > self.told and self.size >= self.told * (1 + self.policy.example_growth)

    def examples(self, *, over: bool = False) -> list[LiveExample]:
        """Return the run's example of each data set, by the batch function over all its samples.

        Args:
          over: the run is over, so that its digests are wanted.
        """
        self.told, table = self.size, self.table()
        out = []
        for book in self._books:
            resolved = book.dataset.resolved
            inputs, n_windows, rejected = prepare_many([table], resolved)
            count = int(n_windows[0])
            digest = row_digest(self.run_id, inputs[0].T, resolved.features, count) if over and not rejected else ""
            values = None if rejected else inputs[0, :count]
            why = rejected[0][1] if rejected else None
            out.append(LiveExample(book.dataset, self.size, self.missing, values, digest, why))
        return out

    def table(self) -> pa.Table:
        """Return the telemetry that the data sets need, as stored, in the order of its times."""
        size, there = self.size, np.flatnonzero(self._present)
        names = [self.columns[at] for at in there.tolist()]
        return telemetry_table(names, self._time[:size], self._boot[:size], self._values[:size, there])

    @classmethod
    def again(cls, run_id: str, parts: Sequence[Part], datasets: Sequence[LiveDataset], policy: LivePolicy) -> LiveRun:
        """Return the run that `add` took these parts of. What was due then counts as told."""
        run = cls(run_id, datasets, policy)
        if parts:
            run.add(join_parts(parts))
            run.panes()
            run.told = run.size
        return run
