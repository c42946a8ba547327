"""Samples of a run in transit and in its state: the columns that data sets need, as arrays and as bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from ciml.events.samples import End, Samples
from ciml.manifest.coverage import RangeSet

NEVER_US = 1 << 62  # later than any time
_HEAD = struct.Struct("<HIHqiqq")
_END = struct.Struct("<qq")


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
