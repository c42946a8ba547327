"""Reads of a topic: planned from the manifest's covered offsets and the broker's present ones, and done without Beam.

The ends of partitions, from which backlog and idleness are computed, are cached.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from confluent_kafka.admin import OffsetSpec

from ciml.errors import EngineError, IntegrityError
from ciml.events.records import Batch, Message, OffsetRange
from ciml.kafka.options import KafkaOptions, ReadOptions
from ciml.manifest.coverage import OTHER_TOPIC, RangeSet, TopicState, check_topic_id
from ciml.pipelines.kafka.broker import Listing, check_topic, offsets_of
from ciml.pipelines.kafka.reader import borrow


@dataclass(frozen=True, slots=True)
class PartitionRead:
    """A range of a partition to read: [start, end) (``end`` None: unbounded) without its covered offsets."""

    topic: str
    topic_id: str
    partition: int
    start: int
    end: int | None
    covered: tuple[tuple[int, int], ...] = ()

    @property
    def where(self) -> str:
        return f"{self.topic}[{self.partition}]"


def is_older(listing: Listing, state: TopicState) -> bool:
    """Return whether a listing is outdated: offsets beyond it are covered, since another process committed them.

    A recreated topic looks the same until it is listed again.
    """
    return any(_last(state.covered(listing.topic, part)) > end for part, (_, end) in listing.bounds.items())


def _last(covered: RangeSet) -> int:
    return max((stop for _, stop in covered), default=0)


def plan(
    state: TopicState, listing: Listing, *, bounded: bool, most: int | None = None, until: Listing | None = None
) -> list[PartitionRead]:
    """Return the uncovered offsets of a topic by partition.

    Args:
      state: of the manifest that commits the messages.
      listing: the topic, listed after the state was updated (see `is_older`).
      bounded: end at the topic's present end, and omit partitions without new messages.
      most: with ``bounded``, largest number of offsets of a partition.
      until: with ``bounded``, an earlier listing whose ends limit the read.

    Raises:
      IntegrityError: if the topic was recreated, is shorter than the covered offsets, or lost unread offsets. Nothing
        is skipped.
      EngineError: if the listing is empty.
    """
    if not listing.bounds:
        raise EngineError(f"Kafka lists no partitions of topic {listing.topic}")
    check_topic_id(listing.topic, state.topic_id(listing.topic), listing.topic_id)
    reads: list[PartitionRead] = []
    for partition, (first, end) in sorted(listing.bounds.items()):
        covered = state.covered(listing.topic, partition)
        start = covered.first_missing(0)
        where = f"{listing.topic}[{partition}]"
        if start < first and not (start == 0 and not covered):
            lost = ", ".join(f"{begin} to {stop}" for begin, stop in covered.missing(0, first))
            raise IntegrityError(
                f"{where}: offsets {lost} expired before they were read: the topic's retention is shorter than ciml's "
                "downtime. To record them as lost and continue: ciml ingest accept-loss"
            )
        start = max(start, first)
        last = _last(covered)
        if last > end:
            raise IntegrityError(
                f"{where} ends at {end}, but was read up to {last}: it is not the topic that was read before. To "
                f"continue with it from its first message: {OTHER_TOPIC} {listing.topic} --data-path DATA"
            )
        if bounded:
            stop = end if until is None else min(end, until.bounds.get(partition, (0, 0))[1])
            stop = stop if most is None else min(stop, start + most)
            if start >= stop:
                continue
        inside = tuple(part for part in covered if part[0] > start)
        reads.append(
            PartitionRead(listing.topic, listing.topic_id, partition, start, stop if bounded else None, inside)
        )
    return reads


def bases(state: TopicState, listing: Listing) -> list[Batch]:
    """Return empty batches that cover offsets expired before the first read. Commit them before reading."""
    return [
        Batch(OffsetRange(listing.topic, listing.topic_id, partition, 0, first))
        for partition, (first, _) in sorted(listing.bounds.items())
        if first > 0 and not state.covered(listing.topic, partition)
    ]


def losses(state: TopicState, listing: Listing) -> list[Batch]:
    """Return empty batches that cover offsets lost before they were read, as accepted by an operator.

    Raises:
      IntegrityError: if the topic was recreated, which is not a loss but another topic.
    """
    check_topic_id(listing.topic, state.topic_id(listing.topic), listing.topic_id)
    return [
        Batch(OffsetRange(listing.topic, listing.topic_id, partition, start, end))
        for partition, (first, _) in sorted(listing.bounds.items())
        for start, end in state.covered(listing.topic, partition).missing(0, first)
    ]


_TIMEOUT_S = 3.0  # a reader waits for the answer
_FORGET_S = 600.0


class Ends(NamedTuple):
    """The end of a partition at a time.

    Attributes:
      asked_s: epoch seconds just before the query: messages appended until then are below the end.
    """

    asked_s: float
    end: int


Ask = Callable[[Iterable[int]], Mapping[int, int]]


@dataclass
class TopicEnds:
    """The ends of a topic's partitions: one query for all recently used partitions, cached.

    Attributes:
      ask: returns the ends of partitions; raises `EngineError` without an answer.
    """

    ask: Ask
    clock: Callable[[], float] = time.time
    _wanted: dict[int, float] = field(default_factory=dict)
    _known: dict[int, Ends] = field(default_factory=dict)
    _failed_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, partition: int, age_s: float) -> Ends | None:
        """Return the end of a partition, at most ``age_s`` seconds old; None if the broker does not answer."""
        with self._lock:
            now = self.clock()
            self._wanted[partition] = now
            cached = self._known.get(partition)
            if cached is not None and 0 <= now - cached.asked_s <= age_s:
                return cached
            if 0 <= now - self._failed_s <= age_s:
                return None
            self._wanted = {number: since for number, since in self._wanted.items() if now - since < _FORGET_S}
            try:
                ends = self.ask(list(self._wanted))
            except EngineError:
                self._failed_s = now
                return None
            self._known = {number: Ends(now, end) for number, end in ends.items()}
            return self._known.get(partition)


_topics: dict[tuple[KafkaOptions, str], TopicEnds] = {}
_topics_lock = threading.Lock()


def end_of(options: KafkaOptions, topic: str, partition: int, age_s: float) -> Ends | None:
    """Return the end of a partition, at most ``age_s`` seconds old; None if the broker does not answer.

    Messages of open transactions count as unread.
    """
    key = (options, topic)
    with _topics_lock:
        if key not in _topics:
            _topics[key] = TopicEnds(
                lambda partitions: offsets_of(
                    options,
                    topic,
                    partitions,
                    OffsetSpec.latest(),
                    committed=False,
                    timeout_s=min(_TIMEOUT_S, options.timeout_s),
                )
            )
    return _topics[key].of(partition, age_s)


_ASK_S = 3.0


class Part(NamedTuple):
    """Consecutive offsets of a partition, from ``start`` up to ``end``, and their messages.

    The last part of a range may reach beyond the range's end: a message is fetched with those that follow it.
    """

    start: int
    end: int
    messages: list[Message]


def read_range(
    kafka: KafkaOptions, read: PartitionRead, start: int, end: Callable[[], int], options: ReadOptions
) -> Iterator[Part]:
    """Yield the parts of a range of a partition.

    Args:
      kafka: connection to the broker.
      read: names the partition.
      start: the first offset.
      end: returns the offset after the last one; it may become smaller while the range is read.
      options: largest number of messages of a part, and the longest wait for one.

    Raises:
      EngineError: the broker does not answer, or holds fewer messages than it said.
      IntegrityError: the topic was deleted or made again, or unread offsets expired.
    """
    position = start
    with borrow(kafka, read.topic, read.partition) as reader:
        reader.seek(position)
        moved = asked_s = time.monotonic()
        while position < (stop := end()):
            messages = reader.read(min(options.batch_messages, stop - position), 0.5)
            if reader.position > position:
                moved = time.monotonic()
                yield Part(position, reader.position, messages)
                position = min(reader.position, end())
                continue
            if time.monotonic() > asked_s + _ASK_S:  # a consumer learns late, or never, that a topic was deleted
                asked_s = time.monotonic()
                with suppress(EngineError):
                    check_topic(kafka, read.topic, read.topic_id)
            if time.monotonic() - moved > options.stall_s:
                raise EngineError(
                    f"{read.where} {position}: no message within {options.stall_s:.0f} s, although it ends at {stop}"
                )
