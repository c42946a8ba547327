"""Kafka as ciml uses it: options, errors, listings, and readers of one partition that wait for their next use."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka import Message as KafkaMessage
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.records import Message

_KEEP_IDLE_S = 120.0
_TRANSIENT = frozenset({
    KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._RESOLVE,
    KafkaError._MAX_POLL_EXCEEDED, KafkaError._WAIT_COORD, KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE, KafkaError.REQUEST_TIMED_OUT, KafkaError.BROKER_NOT_AVAILABLE,
})  # fmt: skip


@dataclass(frozen=True)
class KafkaOptions:
    """How to reach a broker.

    Attributes:
      bootstrap: ``host:port``, or several with commas.
      extra: further librdkafka properties for every client, such as those of TLS and SASL. They may hold a password,
        so they are never printed.
      timeout_s: how long the broker may take to answer a question, s.
      queue_kib: the most that a reader holds in advance for a partition, KiB. librdkafka's own default is 64 MiB.
    """

    bootstrap: str
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)
    queue_kib: int = 16 * 1024
    timeout_s: float = 15.0

    def __post_init__(self) -> None:
        for name in ("enable.auto.commit", "auto.offset.reset", "isolation.level", "bootstrap.servers"):
            if name in self.extra:
                raise CimlError(
                    f"the Kafka property {name} is ciml's own: offsets are kept where the data is committed"
                )

    def common(self) -> dict[str, Any]:
        """Properties of every client. librdkafka mends connections itself, so their errors are not logged."""
        return {
            "socket.keepalive.enable": True,
            "reconnect.backoff.max.ms": 2000,
            "log.connection.close": False,
            "log_level": 2,
            **self.extra,
            "bootstrap.servers": self.bootstrap,
        }

    def consumer(self) -> dict[str, Any]:
        """Properties of a reader: nothing is committed to Kafka, and a lost position is an error, never a reset."""
        return {
            **self.common(),
            "group.id": "ciml",  # needed by librdkafka, never used: partitions are assigned
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "queued.max.messages.kbytes": self.queue_kib,
            "fetch.queue.backoff.ms": 10,  # a full queue is looked at again soon: by default only after a second
            "fetch.wait.max.ms": 100,
            "fetch.error.backoff.ms": 100,
            "max.poll.interval.ms": 86_400_000,  # a stage may take its time: there is no group to be thrown out of
        }

    def __hash__(self) -> int:
        return hash((self.bootstrap, tuple(sorted(self.extra.items())), self.queue_kib, self.timeout_s))


@dataclass(frozen=True, slots=True)
class Listing:
    """A topic as the broker tells it: its UUID ("" where it has none) and [first, end) of each partition."""

    topic: str
    topic_id: str
    bounds: Mapping[int, tuple[int, int]]


_clients: dict[KafkaOptions, AdminClient] = {}
_mocks: dict[KafkaOptions, bool] = {}
_clients_lock = threading.Lock()


def admin(options: KafkaOptions) -> AdminClient:
    """The process's admin client for a broker."""
    with _clients_lock:
        if options not in _clients:
            _clients[options] = AdminClient(options.common())
        return _clients[options]


def list_topic(options: KafkaOptions, topic: str) -> Listing:
    """Asks the broker for a topic's id and the bounds of its partitions, of committed messages only.

    Raises:
      EngineError: the broker does not answer, has no such topic, or lists no partitions of it.
    """
    client = admin(options)
    try:
        if is_mock(options):
            topic_id, found = "", list(client.list_topics(topic, timeout=options.timeout_s).topics[topic].partitions)
        else:
            described = client.describe_topics(TopicCollection([topic]), request_timeout=options.timeout_s)[
                topic
            ].result()
            topic_id, found = _uuid(described.topic_id), [part.id for part in described.partitions]
        parts = [TopicPartition(topic, number) for number in found]
        if not parts:
            raise EngineError(f"Kafka at {options.bootstrap} lists no partitions of the topic {topic}")
        bounds = []
        for spec in (OffsetSpec.earliest(), OffsetSpec.latest()):
            futures = client.list_offsets(
                dict.fromkeys(parts, spec),
                isolation_level=IsolationLevel.READ_COMMITTED,
                request_timeout=options.timeout_s,
            )
            bounds.append({part.partition: future.result().offset for part, future in futures.items()})
    except KafkaException as error:
        raise as_engine_error(options, topic, error) from None
    numbers = sorted(bounds[0])
    return Listing(topic, topic_id, {number: (bounds[0][number], bounds[1][number]) for number in numbers})


def is_mock(options: KafkaOptions) -> bool:
    """Whether the broker is librdkafka's own stand-in: no controller, no topic ids, four partitions to each topic, and
    transactions whose aborted messages are read like others."""
    with _clients_lock:
        known = _mocks.get(options)
    if known is None:
        known = str(admin(options).list_topics(timeout=options.timeout_s).cluster_id).startswith("mockCluster")
        with _clients_lock:
            _mocks[options] = known
    return known


def _uuid(value: Any) -> str:
    text = "" if value is None else str(value)
    return "" if set(text) <= {"A", "="} else text  # all zeros: a broker without topic ids


def make_topic(
    options: KafkaOptions,
    topic: str,
    partitions: int = 1,
    config: Mapping[str, str] | None = None,
) -> None:
    """Creates a topic and waits until its offsets can be asked for; one that exists is left as it is."""
    try:
        if is_mock(options):
            admin(options).list_topics(topic, timeout=options.timeout_s)  # which makes it
            return
        futures = admin(options).create_topics(
            [NewTopic(topic, partitions, 1, config=dict(config or {}))], request_timeout=options.timeout_s
        )
        futures[topic].result()
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise as_engine_error(options, topic, error) from None
    # A broker answers for the creation before each of its parts knows the topic and its leaders.
    for attempt in Retrying(
        retry=retry_if_exception_type(EngineError),
        stop=stop_after_delay(options.timeout_s),
        wait=wait_fixed(0.05),
        reraise=True,
    ):
        with attempt:
            list_topic(options, topic)


def as_engine_error(options: KafkaOptions, topic: str, error: KafkaException) -> EngineError:
    """The one line for a failed call."""
    fault = error.args[0]
    if fault.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
        return EngineError(f"Kafka at {options.bootstrap} has no topic {topic}: create it, or name another by --topic")
    if fault.code() in _TRANSIENT:
        return EngineError(f"Kafka at {options.bootstrap} does not answer ({fault.str() or fault.name()})")
    return EngineError(f"Kafka at {options.bootstrap}, topic {topic}: {fault.str() or fault.name()}")


class Reader:
    """Reads one partition in order from any position. Not for two threads at once: see `borrow`.

    Attributes:
      position: the offset up to which everything has been handed out. It passes what is no message: transaction
        markers, aborted messages, offsets that compaction has emptied.
      at_end: whether the broker had nothing committed beyond `position` when it was last asked.
      idle: a count for the user of the reader, of looks that found nothing.
    """

    def __init__(self, options: KafkaOptions, topic: str, partition: int) -> None:
        self._where = f"{topic}[{partition}]"
        self._topic, self._partition = topic, partition
        self._options = options
        self._consumer = Consumer(options.consumer())
        self.position = -1
        self.at_end = False
        self.idle = 0

    def seek(self, position: int) -> None:
        """Makes ``position`` the next to be read; keeps what was fetched in advance when it is that already."""
        if position != self.position:
            self._consumer.assign([TopicPartition(self._topic, self._partition, position)])
            self.position, self.at_end, self.idle = position, False, 0

    def read(self, most: int, timeout_s: float) -> list[Message]:
        """Up to ``most`` messages from `position` on, which it moves behind them.

        Waits ``timeout_s`` for the first of them and for no other.

        Raises:
          IntegrityError: the position is not in the topic (any more).
          EngineError: the topic is gone, or the broker refuses.
        """
        found = self._consumer.consume(1, timeout_s)
        if found and most > 1:
            found += self._consumer.consume(most - 1, 0)
        messages: list[Message] = []
        for each in found:
            fault = each.error()
            if fault is None:
                offset = each.offset()
                if offset < self.position:
                    continue  # what was on its way before a seek
                messages.append(_message(each, offset))
                self.position, self.at_end = offset + 1, False
            elif fault.code() == KafkaError._PARTITION_EOF:
                self.position, self.at_end = max(self.position, each.offset()), True
            elif fault.code() not in _TRANSIENT and not fault.retriable():
                self._fail(fault)
        return messages

    def _fail(self, fault: KafkaError) -> None:
        code = fault.code()
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            raise IntegrityError(
                f"{self._where} {self.position}: the topic does not hold this offset (any more); messages that were "
                f"never read are gone, or the topic was made anew. Nothing was skipped: {fault.str()}"
            )
        raise EngineError(f"{self._where} {self.position}: {fault.str() or fault.name()}")

    def close(self) -> None:
        self._consumer.close()


def _message(each: KafkaMessage, offset: int) -> Message:
    headers, key = each.headers(), each.key()
    return Message(offset, each.value(), tuple(headers) if headers else (), key, max(each.timestamp()[1], 0))


_idle: dict[tuple[KafkaOptions, str, int], tuple[Reader, float]] = {}
_idle_lock = threading.Lock()


@contextmanager
def borrow(options: KafkaOptions, topic: str, partition: int) -> Iterator[Reader]:
    """A reader of a partition: the one that this process used last, with what it has fetched in advance, or a new one.

    It is put back when it was used without an error, and closed when nobody asks for it for two minutes.
    """
    key = (options, topic, partition)
    with _idle_lock:
        kept = _idle.pop(key, None)
    reader = kept[0] if kept else Reader(options, topic, partition)
    try:
        yield reader
    except BaseException:
        reader.close()
        raise
    now = time.monotonic()
    with _idle_lock:
        old = [_idle.pop(each) for each, (_, since) in list(_idle.items()) if each == key or now - since > _KEEP_IDLE_S]
        _idle[key] = (reader, now)
    for stale, _ in old:
        stale.close()


def close_readers() -> None:
    """Closes all readers that wait."""
    with _idle_lock:
        stale = [reader for reader, _ in _idle.values()]
        _idle.clear()
    for reader in stale:
        reader.close()
