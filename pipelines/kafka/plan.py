"""Reads of a topic: planned from the manifest's covered offsets and the broker's present ones, and done without Beam.

The ends of partitions, from which backlog and idleness are computed, are cached. Readers of one partition each are
pooled with their prefetched messages. Record content is limited: it is untrusted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from operator import methodcaller
from typing import TYPE_CHECKING, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from ciml.errors import EngineError, IntegrityError
from ciml.events.payloads import UNREADABLE_HEADERS
from ciml.events.records import Batch, Message, OffsetRange
from ciml.kafka.connect import NO_TOPIC, TRANSIENT, as_engine_error, make_client
from ciml.kafka.options import KafkaOptions, ReadOptions
from ciml.limits import LATEST_US, MAX_MESSAGE_HEADERS
from ciml.manifest.coverage import OTHER_TOPIC, RangeSet, TopicState, check_topic_id
from ciml.pipelines.kafka.broker import Listing, check_topic, offsets_of
from ciml.pipelines.processes import Shared

if TYPE_CHECKING:
    import confluent_kafka

_TIMEOUT_S = 3.0  # a reader waits for the answer
_FORGET_S = 600.0
_KEEP_IDLE_S = 120.0
_ASK_S = 3.0


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
    _used_s: dict[int, float] = field(default_factory=dict)
    _ends: dict[int, Ends] = field(default_factory=dict)
    _failed_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, partition: int, age_s: float) -> Ends | None:
        """Return the end of a partition, at most ``age_s`` seconds old; None if the broker does not answer."""
        with self._lock:
            now = self.clock()
            self._used_s[partition] = now
            cached = self._ends.get(partition)
            if cached is not None and 0 <= now - cached.asked_s <= age_s:
                return cached
            if 0 <= now - self._failed_s <= age_s:
                return None
            self._used_s = {number: since for number, since in self._used_s.items() if now - since < _FORGET_S}
            try:
                ends = self.ask(list(self._used_s))
            except EngineError:
                self._failed_s = now
                return None
            self._ends = {number: Ends(now, end) for number, end in ends.items()}
            return self._ends.get(partition)


_topics = Shared[TopicEnds]()


def end_of(options: KafkaOptions, topic: str, partition: int, age_s: float) -> Ends | None:
    """Return the end of a partition, at most ``age_s`` seconds old; None if the broker does not answer.

    Messages of open transactions count as unread.
    """

    def ask(partitions: Iterable[int]) -> dict[int, int]:
        timeout_s = min(_TIMEOUT_S, options.timeout_s)
        return offsets_of(options, topic, partitions, OffsetSpec.latest(), committed=False, timeout_s=timeout_s)

    return _topics.get((options, topic), lambda: TopicEnds(ask)).of(partition, age_s)


_LATEST_MS = LATEST_US // 1000
_new = tuple.__new__
# For a name that is not UTF-8, confluent-kafka returns headers with a NULL and also sets an exception. This call checks
# for it; a plain ``record.headers()``, specialised by the interpreter, does not, and the exception surfaces elsewhere.
# Call it once for a record: the second call sets no exception.
_headers_of = methodcaller("headers")


def message_of_record(record: confluent_kafka.Message) -> Message:
    """Convert a consumed record without an error.

    Args:
      record: a record of a topic.

    Returns:
      The message. Its headers are `UNREADABLE_HEADERS` if a name is not UTF-8. Of too many headers,
      `MAX_MESSAGE_HEADERS` and one more are kept, so that the decoder rejects the message. ``timestamp_ms`` is 0 for a
      missing, negative or too late timestamp (not before `LATEST_US`).
    """
    # Called for every event, so kept minimal.
    stamp = record.timestamp()[1]
    if not 0 < stamp < _LATEST_MS:
        stamp = 0
    return _new(Message, (record.offset(), record.value(), _headers(record), record.key(), stamp))


def _headers(record: confluent_kafka.Message) -> tuple[tuple[str, bytes | None], ...]:
    try:
        headers = _headers_of(record)
    except (SystemError, UnicodeDecodeError):
        return UNREADABLE_HEADERS
    return tuple(headers[: MAX_MESSAGE_HEADERS + 1]) if headers else ()


class Reader:
    """Reads one partition in order from any position. Not thread-safe; see `borrow`.

    Attributes:
      position: the offset after the returned messages. It also passes offsets without messages: transaction markers,
        aborted messages, compacted offsets.
      idle: number of empty polls, maintained by the reader's user.
    """

    def __init__(self, options: KafkaOptions, topic: str, partition: int) -> None:
        self._where = f"{topic}[{partition}]"
        self._topic = topic
        self._partition = partition
        self._options = options
        self._connection_error: KafkaError | None = None
        self._consumer = make_client(Consumer, options, options.consumer(), self._on_error)
        self.position = -1
        self.idle = 0

    def seek(self, position: int) -> None:
        """Move to ``position``; prefetched messages are kept if it is the present one."""
        if position != self.position:
            self._consumer.assign([TopicPartition(self._topic, self._partition, position)])
            self.position = position
            self.idle = 0

    def read(self, most: int, timeout_s: float) -> list[Message]:
        """Return up to ``most`` messages from `position` on, and advance it.

        Waits ``timeout_s`` for the first message only.

        Raises:
          IntegrityError: if the position is not in the topic, or the topic was deleted.
          EngineError: if the broker rejects the read.
        """
        records = self._consumer.consume(1, timeout_s)
        if not records and self._connection_error is not None:
            self._fail(self._connection_error)
        self._connection_error = None
        if records and most > 1:
            records += self._consumer.consume(most - 1, 0)
        messages: list[Message] = []
        position = self.position
        for record in records:
            fault = record.error()
            if fault is None:
                offset = record.offset()
                if offset < position:
                    continue  # prefetched before a seek
                messages.append(message_of_record(record))
                position = offset + 1
            elif fault.code() == KafkaError._PARTITION_EOF:
                position = max(position, record.offset())
            elif fault.code() not in TRANSIENT and (fault.code() in NO_TOPIC or not fault.retriable()):
                self.position = position
                self._fail(fault)
        self.position = position
        return messages

    def _on_error(self, fault: KafkaError) -> None:
        self._connection_error = fault

    def reaches(self) -> int:
        """Return the partition's end from the last fetch; -1 before the first."""
        try:
            _, end = self._consumer.get_watermark_offsets(TopicPartition(self._topic, self._partition), cached=True)
        except KafkaException:
            return -1
        return int(end)

    def _fail(self, fault: KafkaError) -> None:
        code = fault.code()
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            raise IntegrityError(
                f"{self._where} {self.position}: the topic does not hold this offset (any more): unread messages "
                f"expired, or the topic was recreated. Nothing was skipped: {fault.str()}"
            )
        if code in NO_TOPIC:
            if self._partition in check_topic(self._options, self._topic, ""):
                return  # the broker did not know it yet
            raise IntegrityError(f"{self._where} {self.position}: the topic has no such partition (any more)")
        error = as_engine_error(self._options, self._topic, KafkaException(fault))
        raise EngineError(f"{self._where} {self.position}: {error}")

    def close(self) -> None:
        self._consumer.close()


_idle: dict[tuple[KafkaOptions, str, int], tuple[Reader, float]] = {}
_idle_lock = threading.Lock()


@contextmanager
def borrow(options: KafkaOptions, topic: str, partition: int) -> Iterator[Reader]:
    """Borrow a reader of a partition: the one that this process used last, with prefetched messages, or a new one.

    It returns to the pool after use without an error, and is closed after two minutes without use.
    """
    key = (options, topic, partition)
    with _idle_lock:
        pooled = _idle.pop(key, None)
    reader = pooled[0] if pooled else Reader(options, topic, partition)
    try:
        yield reader
    except BaseException:
        reader.close()
        raise
    now = time.monotonic()
    with _idle_lock:
        old = [
            _idle.pop(idle_key)
            for idle_key, (_, since) in list(_idle.items())
            if idle_key == key or now - since > _KEEP_IDLE_S
        ]
        _idle[key] = (reader, now)
    for stale, _ in old:
        stale.close()


def close_readers() -> None:
    """Close all pooled readers."""
    with _idle_lock:
        stale = [reader for reader, _ in _idle.values()]
        _idle.clear()
    for reader in stale:
        reader.close()


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
