"""Samples of a run in transit and in its state: the columns that data sets need, as arrays and as bytes.

The head of that state: the run's standing, its newest samples, and when its timer is due.
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
_HEAD = struct.Struct("<HIHqiqq")
_END = struct.Struct("<qq")
_MOST_RANGES = 1000  # ranges of samples remembered of a closed run


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some samples of one run.

    Attributes:
      recorder: int64 [n], time of each sample's start of the recorder, epoch microseconds.
      sequence: int64 [n], sequence numbers within it.
      time_us: int64 [n].
      boot: bool [n], the averages since boot.
      values: float64 [n, F], the F columns that the data sets need; NaN is a missing value.
      present: bool [F], the columns that the messages had.
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
        """Return the samples of ``rows``, indices int64 or mask bool [n], with other ends."""
        recorder, sequence, time_us, boot, values = (
            column[rows] for column in (self.recorder, self.sequence, self.time_us, self.boot, self.values)
        )
        return replace(self, recorder=recorder, sequence=sequence, time_us=time_us, boot=boot, values=values, ends=ends)


_NONE = np.zeros(0, np.int64)
#: No sample of any run.
NO_SAMPLES = Part(_NONE, _NONE, _NONE, np.zeros(0, bool), np.zeros((0, 0)), np.zeros(0, bool))


def part_of(messages: Sequence[tuple[int, Samples | End]], columns: tuple[str, ...], partition: int = -1) -> Part:
    """Join the messages of one run, with their offsets, in topic order, to one part with the given columns."""
    samples = [message for _, message in messages if isinstance(message, Samples)]
    ends = tuple((message.recorder_us, message.samples) for _, message in messages if isinstance(message, End))
    sizes = [sample.sequence.size for sample in samples]
    values = np.full((sum(sizes), len(columns)), np.nan)
    present = np.zeros(len(columns), bool)
    begin = 0
    for sample, size in zip(samples, sizes, strict=True):
        ours, theirs = _common(columns, sample.columns)
        values[begin : begin + size, ours] = sample.values[:, theirs]
        present[ours] = True
        begin += size
    return Part(
        np.repeat(np.array([sample.recorder_us for sample in samples], np.int64), sizes),
        _concatenated([sample.sequence for sample in samples], np.int64),
        _concatenated([sample.time_us for sample in samples], np.int64),
        _concatenated([sample.boot for sample in samples], np.bool_),
        values,
        present,
        min((sample.first_us for sample in samples), default=NEVER_US),
        ends,
        partition,
        messages[0][0],
        messages[-1][0],
    )


@lru_cache(maxsize=64)  # a hostile message may have 256 KiB of names
def _common(columns: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices in ``columns`` and in ``theirs`` of their common columns: int64 [m] each."""
    index_of = {name: index for index, name in enumerate(theirs)}
    both = [(index, index_of[name]) for index, name in enumerate(columns) if name in index_of]
    pairs = np.array(both, np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _concatenated(arrays: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, kind)


def join_parts(parts: Sequence[Part]) -> Part:
    """Join parts of one run, at least one, as one: samples and ends in the given order."""
    if len(parts) == 1:
        return parts[0]
    recorder, sequence, time_us, boot, values, present = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("recorder", "sequence", "time_us", "boot", "values", "present")
    )
    return Part(
        recorder,
        sequence,
        time_us,
        boot,
        values,
        np.any(present.reshape(len(parts), -1), axis=0),
        min(part.first_us for part in parts),
        tuple(end for part in parts for end in part.ends),
        parts[0].partition,
        parts[0].first,
        parts[-1].last,
    )


def unseen(part: Part, seen: Mapping[int, RangeSet]) -> np.ndarray:
    """Find the samples of a part that are not ``seen``, by start of the recorder; of equal ones the first.

    Returns:
      Their indices: int64 [m], ascending.
    """
    unseen_rows = []
    for recorder, rows in by_start(part):
        numbers = part.sequence[rows]
        gaps = seen.get(recorder, RangeSet()).missing(int(numbers[0]), int(numbers[-1]) + 1)
        bounds = np.array(gaps, np.int64).ravel()  # start, end, start, end, …: odd positions are within a gap
        unseen_rows.append(rows[np.searchsorted(bounds, numbers, side="right") % 2 == 1])
    return np.sort(np.concatenate(unseen_rows)) if unseen_rows else np.zeros(0, np.int64)


def by_start(part: Part) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each start of the recorder, with the indices int64 [m] of its samples by number; of equal ones the first.

    One sort for all: a hostile part may have as many starts as samples.
    """
    order = np.lexsort((part.sequence, part.recorder))  # stable: of equal ones the first stays the first
    recorder = part.recorder[order]
    sequence = part.sequence[order]
    another = np.ones(order.size, bool)
    another[1:] = (np.diff(recorder) != 0) | (np.diff(sequence) != 0)
    order = order[another]
    recorder = part.recorder[order]
    edges = [0, *(np.flatnonzero(np.diff(recorder)) + 1).tolist(), order.size]
    for begin, end in pairwise(edges if order.size else ()):
        yield int(recorder[begin]), order[begin:end]


def pack(part: Part) -> bytes:
    """Encode a part reproducibly as bytes: little-endian, a header of fixed size, then the arrays."""
    return b"".join(
        (
            _HEAD.pack(
                part.present.size, part.size, len(part.ends), part.first_us, part.partition, part.first, part.last
            ),
            *(_END.pack(*end) for end in part.ends),
            part.present.tobytes(),
            part.recorder.astype("<i8", copy=False).tobytes(),
            part.sequence.astype("<i8", copy=False).tobytes(),
            part.time_us.astype("<i8", copy=False).tobytes(),
            part.boot.tobytes(),
            part.values.astype("<f8", copy=False).tobytes(),
        )
    )


def unpack(data: bytes) -> Part:
    """Decode the bytes of `pack`."""
    columns, n, ends, first_us, partition, first, last = _HEAD.unpack_from(data)
    offset = _HEAD.size + _END.size * ends
    ends_found = tuple(_END.iter_unpack(data[_HEAD.size : offset]))
    present = np.frombuffer(data, np.bool_, columns, offset)
    offset += columns
    recorder, sequence, time_us = np.frombuffer(data, "<i8", 3 * n, offset).reshape(3, n)
    offset += 24 * n
    boot = np.frombuffer(data, np.bool_, n, offset)
    values = np.frombuffer(data, "<f8", n * columns, offset + n).reshape(n, columns)
    return Part(recorder, sequence, time_us, boot, values, present, first_us, ends_found, partition, first, last)


@dataclass(frozen=True)
class LivePolicy:
    """When windows and examples are published, and for how long a run is kept.

    Attributes:
      slack_s: how long, by the run's own clock, a window waits for late samples after its end, before it is
        published as final. It exceeds the reordering by recorders and brokers; a later sample makes a late pane.
      window_growth: a window is published early when its samples have grown by this fraction since the last time: at
        each of the first 16, then ever more rarely, so that a window of n samples is not read n times.
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


_LENGTH = struct.Struct("<I")


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
      standing: whether it is running; else its samples are released.
      token: identifies the samples; changes with them.
      newer: its newest samples, as packed parts. They are read and written with the head, since each request to the
        runner takes longer than anything that is done here.
    """

    def __init__(self, run_id: str, columns: str) -> None:
        self.run_id = run_id
        self.columns = columns
        self.standing: Standing = "running"
        self.token = ""
        self.newer: list[bytes] = []
        self._heard_s = self._ended_s = self._over_s = self._wake_s = 0.0
        self._seen: dict[str, list[list[int]]] = {}

    def received(self, now_s: float, ended: bool) -> None:
        """Record that a message was received."""
        self._heard_s = now_s
        self.token = secrets.token_hex(8)
        if ended and not self._ended_s:
            self._ended_s = now_s

    def is_over(self, standing: Standing, seen: Mapping[int, RangeSet], now_s: float) -> None:
        """Close the run: release its samples, and remember their numbers."""
        self.standing = standing
        self._over_s = now_s
        self.newer = []
        ranges = {str(recorder): [list(part) for part in numbers] for recorder, numbers in seen.items()}
        self._seen = ranges if sum(map(len, ranges.values())) <= _MOST_RANGES else {}

    def unseen(self, part: Part) -> Part | None:
        """Return the samples of a late part that the run did not have; None if it had all."""
        numbers = {
            int(recorder): RangeSet((start, end) for start, end in ranges) for recorder, ranges in self._seen.items()
        }
        rows = unseen(part, numbers)
        return part.take(rows, ()) if rows.size else None

    def _due_s(self, policy: LivePolicy) -> tuple[float, Wake]:
        if self.standing != "running":
            return self._over_s + policy.remember_s, Wake.FORGET
        silent = self._heard_s + policy.silence_s
        grace = self._ended_s + policy.grace_s if self._ended_s else math.inf
        return (grace, Wake.ENDED) if grace <= silent else (silent, Wake.SILENT)

    def due(self, now_s: float, policy: LivePolicy) -> Wake | None:
        """Return the action that is due now, if any."""
        at_s, action = self._due_s(policy)
        return action if at_s <= now_s else None

    def woken(self) -> None:
        """Record that the timer has fired and none is set."""
        self._wake_s = 0.0

    def next_wake(self, policy: LivePolicy) -> float | None:
        """Return the time to set the timer to, or None to keep it: an early timer is set again when it fires."""
        at_s, _ = self._due_s(policy)
        if self._wake_s and self._wake_s <= at_s:
            return None  # setting it for every sample would cost time
        self._wake_s = at_s
        return at_s

    def to_bytes(self) -> bytes:
        """Return the state's encoding: a line of JSON, then the newer samples, each after its length."""
        fields = {name: value for name, value in vars(self).items() if name != "newer"}
        sized = (part for data in self.newer for part in (_LENGTH.pack(len(data)), data))
        return b"".join((orjson.dumps(fields), b"\n", *sized))

    @classmethod
    def of(cls, data: bytes) -> RunState:
        """Return the inverse of `to_bytes`."""
        state = cls("", "")
        position = data.index(b"\n") + 1
        fields: dict[str, Any] = orjson.loads(data[:position])
        vars(state).update(fields)
        while position < len(data):
            begin = position + _LENGTH.size
            position = begin + _LENGTH.unpack_from(data, position)[0]
            state.newer.append(data[begin:position])
        return state
