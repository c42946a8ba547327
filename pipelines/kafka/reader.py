"""Reads partitions of a topic without Beam: by ranges of offsets, or from any position with a pooled consumer.

A `Reader` prefetches messages, so it is kept for the next read of its partition (`borrow`). The content of records is
untrusted: what a message may hold is limited here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from operator import methodcaller
from typing import NamedTuple

import confluent_kafka
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from ciml.errors import EngineError, IntegrityError
from ciml.events.payloads import UNREADABLE_HEADERS
from ciml.events.records import Message
from ciml.kafka import KafkaOptions, ReadOptions
from ciml.kafka.connect import NO_TOPIC, TRANSIENT, as_engine_error, make_client
from ciml.limits import LATEST_US, MAX_MESSAGE_HEADERS
from ciml.pipelines.kafka.broker import check_topic
from ciml.pipelines.kafka.plan import PartitionRead

_POOLED_S = 120.0  # how long an unused reader stays open
_CHECK_S = 3.0  # pause between checks of an idle topic
_LATEST_MS = LATEST_US // 1000
_MISSING = NO_TOPIC | {KafkaError._UNKNOWN_PARTITION}  # the topic or the partition
# For a name that is not UTF-8, confluent-kafka returns headers with a NULL and also sets an exception. This call checks
# for it; a plain ``record.headers()``, specialised by the interpreter, does not, and the exception surfaces elsewhere.
# Call it once for a record: the second call sets no exception.
_headers_of = methodcaller("headers")

#: The unused readers, with the time when they were returned.
_idle: dict[tuple[KafkaOptions, str, int], tuple[Reader, float]] = {}
_idle_lock = threading.Lock()


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
      IntegrityError: the topic was deleted or recreated, or unread offsets expired.
    """
    position = start
    with borrow(kafka, read.topic, read.partition) as reader:
        reader.seek(position)
        moved_s = checked_s = time.monotonic()
        while position < (stop := end()):
            messages = reader.read(min(options.batch_messages, stop - position), 0.5)
            if reader.position > position:
                moved_s = time.monotonic()
                yield Part(position, reader.position, messages)
                position = min(reader.position, end())
                continue
            if time.monotonic() > checked_s + _CHECK_S:  # a consumer learns late, or never, that a topic was deleted
                checked_s = time.monotonic()
                with suppress(EngineError):
                    check_topic(kafka, read.topic, read.topic_id)
            if time.monotonic() - moved_s > options.stall_s:
                raise EngineError(
                    f"{read.where} {position}: no message within {options.stall_s:.0f} s, although it ends at {stop}"
                )


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
            if idle_key == key or now - since > _POOLED_S
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
            elif fault.code() not in TRANSIENT and (fault.code() in _MISSING or not fault.retriable()):
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
        if code in _MISSING:
            if self._partition in check_topic(self._options, self._topic, ""):
                return  # the broker did not know it yet
            raise IntegrityError(f"{self._where} {self.position}: the topic has no such partition (any more)")
        error = as_engine_error(self._options, self._topic, KafkaException(fault))
        raise EngineError(f"{self._where} {self.position}: {error}")

    def close(self) -> None:
        self._consumer.close()


def message_of_record(record: confluent_kafka.Message) -> Message:
    """Convert a consumed record without an error.

    Args:
      record: a record of a topic.

    Returns:
      The message. Its headers are `UNREADABLE_HEADERS` if a name is not UTF-8. Of too many headers,
      `MAX_MESSAGE_HEADERS` and one more are kept, so that the decoder rejects the message. ``timestamp_ms`` is 0 for a
      missing, negative or too late timestamp (not before `LATEST_US`).
    """
    # Called for every event: `tuple.__new__` is faster than the class.
    stamp = record.timestamp()[1]
    if not 0 < stamp < _LATEST_MS:
        stamp = 0
    return tuple.__new__(Message, (record.offset(), record.value(), _headers(record), record.key(), stamp))


def _headers(record: confluent_kafka.Message) -> tuple[tuple[str, bytes | None], ...]:
    try:
        headers = _headers_of(record)
    except (SystemError, UnicodeDecodeError):
        return UNREADABLE_HEADERS
    return tuple(headers[: MAX_MESSAGE_HEADERS + 1]) if headers else ()
