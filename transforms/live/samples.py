"""The state of a running job between its messages: its samples, and the head of the state.

A `Part` is some samples of a run, in the columns that data sets need, in transit and in the state. `RunState` is the
head: the run's standing, its newest samples, and when its timer is due. Sequence numbers count the samples from each
start of the recorder. docs/formats/live.md describes the formats.
"""

from __future__ import annotations

import math
import secrets
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import orjson

from ciml.events.samples import End, Samples
from ciml.manifest.coverage import RangeSet
from ciml.messages import Standing

NEVER_US = 1 << 62  # later than any time
#: Encoding of a part: header, then each end, then the arrays.
_HEAD = struct.Struct("<HIHqiqq")
_END = struct.Struct("<qq")
_LENGTH = struct.Struct("<I")  # of a part in the head of the state
_MIN_CAPACITY = 64  # of `SortedSamples`
_KEY = "S24"  # by which it sorts
_MAX_RANGES = 1000  # of sequence numbers that are remembered of a closed run


#: Reasons of dead letters of samples for a run whose state was freed, by its standing. The others are
#: `ciml.events.samples.REASONS` and those of `ciml.transforms.live.windows.LiveRun.add`.
LATE = {"ended": "run_ended", "silent": "run_silent"}


@dataclass(frozen=True)
class LivePolicy:
    """When windows and examples are published, and how long a run is remembered.

    Attributes:
      slack_s: how long, by the run's own clock, a window waits for late samples after its end, before it is
        published as final. It exceeds the reordering by recorders and brokers; a later sample makes a late pane.
      window_growth: a window is published early when its samples have grown by this fraction since the last time: at
        each of the first 16, then ever more rarely, so that a window of n samples is not computed n times.
      example_growth: the same for a run's example, which is published as a whole.
      grace_s: how long an ended run waits for missing samples, by this machine's clock.
      silence_s: how long a run may be silent before it is given up, by this machine's clock.
      remember_s: how long an ended run is remembered, so that later samples are recognised as late.
      most_samples: limit of samples of a run; further ones are rejected.
    """

    slack_s: float = 60.0
    window_growth: float = 1 / 16
    example_growth: float = 1 / 20
    grace_s: float = 60.0
    silence_s: float = 1800.0
    remember_s: float = 86_400.0
    most_samples: int = 200_000


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some samples of one run.

    Attributes:
      recorder: int64 [n], when the recorder of each sample started, epoch microseconds.
      sequence: int64 [n], sequence numbers.
      time_us: int64 [n], times of the samples, epoch microseconds.
      boot: bool [n], whether the sample has averages since boot.
      values: float64 [n, F], the F columns that the data sets need; NaN is a missing value.
      present: bool [F], whether a message had the column.
      first_us: the time of the run's first sample, as known to its recorders; `NEVER_US` where unknown.
      ends: (recorder_us, samples) of the starts that have ended.
      partition, first, last: position of the messages in the topic: within offsets ``first`` to ``last``.
    """

    recorder: np.ndarray
    sequence: np.ndarray
    time_us: np.ndarray
    boot: np.ndarray
    values: np.ndarray
    present: np.ndarray
    first_us: int = NEVER_US
    ends: tuple[tuple[int, int], ...] = ()
    partition: int = -1
    first: int = -1
    last: int = -1

    @property
    def size(self) -> int:
        return int(self.sequence.size)

    def take(self, rows: np.ndarray, ends: tuple[tuple[int, int], ...]) -> Part:
        """Return the samples at ``rows``, indices int64 or mask bool [n], with other ends."""
        return replace(
            self,
            recorder=self.recorder[rows],
            sequence=self.sequence[rows],
            time_us=self.time_us[rows],
            boot=self.boot[rows],
            values=self.values[rows],
            ends=ends,
        )


_NO_NUMBERS = np.zeros(0, np.int64)
#: No sample of any run.
NO_SAMPLES = Part(_NO_NUMBERS, _NO_NUMBERS, _NO_NUMBERS, np.zeros(0, bool), np.zeros((0, 0)), np.zeros(0, bool))


def part_of(messages: Sequence[tuple[int, Samples | End]], columns: tuple[str, ...], partition: int = -1) -> Part:
    """Join the messages of one run, with their offsets, in topic order, to one part with the given columns."""
    samples = [message for _, message in messages if isinstance(message, Samples)]
    sizes = [message.sequence.size for message in samples]
    values = np.full((sum(sizes), len(columns)), np.nan)
    present = np.zeros(len(columns), bool)
    begin = 0
    for message, size in zip(samples, sizes, strict=True):
        ours, theirs = _common(columns, message.columns)
        values[begin : begin + size, ours] = message.values[:, theirs]
        present[ours] = True
        begin += size
    return Part(
        recorder=np.repeat(np.array([message.recorder_us for message in samples], np.int64), sizes),
        sequence=_concatenate([message.sequence for message in samples], np.int64),
        time_us=_concatenate([message.time_us for message in samples], np.int64),
        boot=_concatenate([message.boot for message in samples], np.bool_),
        values=values,
        present=present,
        first_us=min((message.first_us for message in samples), default=NEVER_US),
        ends=tuple((message.recorder_us, message.samples) for _, message in messages if isinstance(message, End)),
        partition=partition,
        first=messages[0][0],
        last=messages[-1][0],
    )


@lru_cache(maxsize=64)  # a hostile message may have 256 KiB of names
def _common(columns: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices in ``columns`` and in ``theirs`` of their common columns: int64 [m] each."""
    index_of = {name: index for index, name in enumerate(theirs)}
    pairs = [(index, index_of[name]) for index, name in enumerate(columns) if name in index_of]
    indices = np.array(pairs, np.int64).reshape(-1, 2)
    return indices[:, 0], indices[:, 1]


def _concatenate(arrays: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, kind)


def join_parts(parts: Sequence[Part]) -> Part:
    """Join parts of one run, at least one: samples and ends keep the given order."""
    if len(parts) == 1:
        return parts[0]
    return Part(
        recorder=np.concatenate([part.recorder for part in parts]),
        sequence=np.concatenate([part.sequence for part in parts]),
        time_us=np.concatenate([part.time_us for part in parts]),
        boot=np.concatenate([part.boot for part in parts]),
        values=np.concatenate([part.values for part in parts]),
        present=np.any([part.present for part in parts], axis=0),
        first_us=min(part.first_us for part in parts),
        ends=tuple(end for part in parts for end in part.ends),
        partition=parts[0].partition,
        first=parts[0].first,
        last=parts[-1].last,
    )


def unseen(part: Part, seen: Mapping[int, RangeSet]) -> np.ndarray:
    """Find the samples of a part that are not in ``seen``, the sequence numbers by start of the recorder.

    Returns:
      Their indices, int64 [m] ascending; of samples with equal numbers, the first.
    """
    unseen_rows = []
    for recorder, rows in by_start(part):
        numbers = part.sequence[rows]
        gaps = seen.get(recorder, RangeSet()).missing(int(numbers[0]), int(numbers[-1]) + 1)
        bounds = np.array(gaps, np.int64).ravel()  # start, end, start, end, …: odd positions are within a gap
        unseen_rows.append(rows[np.searchsorted(bounds, numbers, side="right") % 2 == 1])
    return np.sort(np.concatenate(unseen_rows)) if unseen_rows else np.zeros(0, np.int64)


def by_start(part: Part) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each start of the recorder, and the indices int64 [m] of its samples in order of their numbers.

    Of samples with equal numbers, the first counts. All starts are sorted together, because a hostile part may have as
    many starts as samples.
    """
    order = np.lexsort((part.sequence, part.recorder))  # stable: equal samples keep their order
    recorder = part.recorder[order]
    sequence = part.sequence[order]
    is_new = np.ones(order.size, bool)
    is_new[1:] = (np.diff(recorder) != 0) | (np.diff(sequence) != 0)
    order = order[is_new]
    recorder = part.recorder[order]
    edges = [0, *(np.flatnonzero(np.diff(recorder)) + 1).tolist(), order.size]
    for begin, end in pairwise(edges if order.size else ()):
        yield int(recorder[begin]), order[begin:end]


class SortedSamples:
    """The samples of a run, ordered by time, then by start of the recorder, then by sequence number.

    Arrays by name: ``time_us`` int64 [n] and ``row`` int64 [n] are in this order, and ``boot`` bool [n] and ``values``
    float64 [n, F] in the order of arrival, where ``row`` points. So a sample that arrives after later ones moves 40
    bytes for each of these, however many columns they have.
    """

    def __init__(self, columns: int) -> None:
        self.size = 0
        # The arrays have spare rows, so that samples are copied rarely.
        self._arrays = {
            "key": np.zeros(_MIN_CAPACITY, _KEY),
            "time_us": np.zeros(_MIN_CAPACITY, np.int64),
            "row": np.zeros(_MIN_CAPACITY, np.int64),
            "boot": np.zeros(_MIN_CAPACITY, bool),
            "values": np.zeros((_MIN_CAPACITY, columns)),
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name][: self.size]

    def insert(self, part: Part) -> None:
        """Insert samples, at least one."""
        keys = _sort_keys(part)
        order = np.argsort(keys)
        places = np.searchsorted(self["key"], keys[order])
        first = int(places[0])
        new = {"key": keys[order], "time_us": part.time_us[order], "row": self.size + order}
        tails = {name: np.insert(self[name][first:], places - first, rows) for name, rows in new.items()}
        tails |= {"boot": part.boot, "values": part.values}
        self.size += part.size
        if self.size > len(self._arrays["time_us"]):
            for name, rows in self._arrays.items():
                self._arrays[name] = np.resize(rows, (2 * self.size, *rows.shape[1:]))
        for name, tail in tails.items():
            self[name][self.size - len(tail) :] = tail


def _sort_keys(part: Part) -> np.ndarray:
    """Return texts of 24 bytes [n] in the order of the samples. Their times and numbers are not negative."""
    fields = np.column_stack([part.time_us, part.recorder, part.sequence]).astype(">i8")
    return fields.view(_KEY).ravel()


def pack(part: Part) -> bytes:
    """Encode a part: a header, the ends, then the arrays, all little-endian. Equal parts have equal bytes."""
    columns = part.present.size
    ends = b"".join(_END.pack(*end) for end in part.ends)
    head = _HEAD.pack(columns, part.size, len(part.ends), part.first_us, part.partition, part.first, part.last)
    arrays = (
        part.present,
        part.recorder.astype("<i8", copy=False),
        part.sequence.astype("<i8", copy=False),
        part.time_us.astype("<i8", copy=False),
        part.boot,
        part.values.astype("<f8", copy=False),
    )
    return b"".join((head, ends, *(array.tobytes() for array in arrays)))


def unpack(data: bytes) -> Part:
    """Decode the bytes of `pack`."""
    columns, n, n_ends, first_us, partition, first, last = _HEAD.unpack_from(data)
    offset = _HEAD.size + _END.size * n_ends
    ends = tuple(_END.iter_unpack(data[_HEAD.size : offset]))
    present = np.frombuffer(data, np.bool_, columns, offset)
    offset += columns
    recorder, sequence, time_us = np.frombuffer(data, "<i8", 3 * n, offset).reshape(3, n)
    offset += 24 * n
    boot = np.frombuffer(data, np.bool_, n, offset)
    values = np.frombuffer(data, "<f8", n * columns, offset + n).reshape(n, columns)
    return Part(recorder, sequence, time_us, boot, values, present, first_us, ends, partition, first, last)


class Wake(Enum):
    """The action that is due when a run's timer fires."""

    ENDED = "close it after its grace"
    SILENT = "close it after its silence"
    FORGET = "forget it"


class RunState:
    """The head of a run's state. Times are epoch seconds of this machine's clock.

    Attributes:
      run_id: of the run.
      columns: digest of the names of its samples' columns.
      standing: whether it is running. The state of a run that is not has no samples.
      token: identifies the samples; changes with them.
      newer: its newest samples, as packed parts. They are in the head, because a request to the runner for other state
        takes longer than all work here.
    """

    def __init__(self, run_id: str, columns: str) -> None:
        self.run_id = run_id
        self.columns = columns
        self.standing: Standing = "running"
        self.token = ""
        self.newer: list[bytes] = []
        # `to_bytes` stores all attributes by name. 0 is a time that is not set.
        self._heard_s = 0.0
        self._ended_s = 0.0
        self._over_s = 0.0
        self._wake_s = 0.0
        self._seen: dict[str, list[list[int]]] = {}

    def received(self, now_s: float, ended: bool) -> None:
        """Record a message, and whether an end of the run has arrived."""
        self._heard_s = now_s
        self.token = secrets.token_hex(8)
        if ended and not self._ended_s:
            self._ended_s = now_s

    def close(self, standing: Standing, seen: Mapping[int, RangeSet], now_s: float) -> None:
        """Close the run: release its samples, and remember their numbers."""
        self.standing = standing
        self._over_s = now_s
        self.newer = []
        ranges = {str(recorder): [list(bounds) for bounds in numbers] for recorder, numbers in seen.items()}
        self._seen = ranges if sum(map(len, ranges.values())) <= _MAX_RANGES else {}

    def unseen(self, part: Part) -> Part | None:
        """Return the samples of a late part that the run did not have; None if it had all."""
        seen = {
            int(recorder): RangeSet((start, end) for start, end in ranges) for recorder, ranges in self._seen.items()
        }
        rows = unseen(part, seen)
        return part.take(rows, ()) if rows.size else None

    def due(self, now_s: float, policy: LivePolicy) -> Wake | None:
        """Return the action that is due now, if any."""
        due_s, action = self._next_action(policy)
        return action if due_s <= now_s else None

    def woken(self) -> None:
        """Record that the timer has fired, so that none is set."""
        self._wake_s = 0.0

    def next_wake(self, policy: LivePolicy) -> float | None:
        """Return the time to set the timer to, and record it; None to leave the timer as it is.

        A timer that is set too early is set again when it fires. To set it for every sample would take longer.
        """
        due_s, _ = self._next_action(policy)
        if self._wake_s and self._wake_s <= due_s:
            return None
        self._wake_s = due_s
        return due_s

    def _next_action(self, policy: LivePolicy) -> tuple[float, Wake]:
        """Return when the next action is due, and which."""
        if self.standing != "running":
            return self._over_s + policy.remember_s, Wake.FORGET
        silent_s = self._heard_s + policy.silence_s
        grace_s = self._ended_s + policy.grace_s if self._ended_s else math.inf
        return (grace_s, Wake.ENDED) if grace_s <= silent_s else (silent_s, Wake.SILENT)

    def to_bytes(self) -> bytes:
        """Encode the state: a line of JSON, then the newer samples, each after its length."""
        fields = {name: value for name, value in vars(self).items() if name != "newer"}
        sized = (part for data in self.newer for part in (_LENGTH.pack(len(data)), data))
        return b"".join((orjson.dumps(fields), b"\n", *sized))

    @classmethod
    def of(cls, data: bytes) -> RunState:
        """Decode `to_bytes`."""
        state = cls("", "")
        position = data.index(b"\n") + 1
        fields: dict[str, Any] = orjson.loads(data[:position])
        vars(state).update(fields)
        while position < len(data):
            begin = position + _LENGTH.size
            position = begin + _LENGTH.unpack_from(data, position)[0]
            state.newer.append(data[begin:position])
        return state
