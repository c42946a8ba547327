"""Queries a Kafka broker: a topic's id, the bounds of its partitions, and whether the topic was recreated."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import NewTopic, OffsetSpec
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from ciml.errors import CimlError, EngineError
from ciml.kafka import KafkaOptions
from ciml.kafka.connect import AFTER_CHANGE, NoTopicError, admin, as_engine_error, is_refused
from ciml.manifest.coverage import ADOPT_COMMAND, OtherTopicError, check_topic_id
from ciml.pipelines.processes import Shared

_DELETED_S = 10.0
_ANSWER_S = 60.0
_ENDS_TIMEOUT_S = 3.0  # a reader waits for the answer
_UNUSED_S = 600.0  # after which the end of a partition is no longer queried
_INVALID = (KafkaError.TOPIC_EXCEPTION, KafkaError.INVALID_PARTITIONS, KafkaError.POLICY_VIOLATION)


@dataclass(frozen=True, slots=True)
class Listing:
    """A topic as listed by the broker: its UUID ("" without one) and [first, end) of each partition."""

    topic: str
    topic_id: str
    bounds: Mapping[int, tuple[int, int]]


def topic_of(options: KafkaOptions, topic: str) -> tuple[str, list[int]]:
    """Return (the topic's UUID or "", its partitions) from the broker.

    Raises:
      NoTopicError: if there is no such topic.
      EngineError: if the broker does not answer.
    """
    client = admin(options)
    try:
        if is_mock(options):
            return "", sorted(client.list_topics(topic, timeout=options.timeout_s).topics[topic].partitions)
        futures = client.describe_topics(TopicCollection([topic]), request_timeout=options.timeout_s)
        described = futures[topic].result()
    except KafkaException as error:
        raise as_engine_error(options, topic, error) from None
    topic_id = str(described.topic_id or "")
    if set(topic_id) <= {"A", "="}:  # all zeros: a broker without topic ids
        topic_id = ""
    return topic_id, sorted(part.id for part in described.partitions)


def offsets_of(
    options: KafkaOptions,
    topic: str,
    partitions: Iterable[int],
    spec: OffsetSpec,
    *,
    committed: bool = True,
    timeout_s: float | None = None,
) -> dict[int, int]:
    """Return the offset for ``spec`` in each partition, over committed messages or all.

    Waits for partitions without a leader, such as newly created ones.

    Raises:
      EngineError: if the broker does not answer, or a partition is missing.
    """
    specs = {TopicPartition(topic, number): spec for number in partitions}
    level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
    most_s = timeout_s or options.timeout_s
    until = time.monotonic() + most_s
    while True:
        try:
            futures = admin(options).list_offsets(specs, isolation_level=level, request_timeout=most_s)
            return {part.partition: future.result().offset for part, future in futures.items()}
        except KafkaException as error:
            if error.args[0].code() not in AFTER_CHANGE or time.monotonic() > until:
                raise as_engine_error(options, topic, error) from None
            topic_of(options, topic)  # raises if the topic is gone
            time.sleep(0.1)


def end_of(options: KafkaOptions, topic: str, partition: int, age_s: float) -> Ends | None:
    """Return the end of a partition, at most ``age_s`` seconds old; None if the broker does not answer.

    Messages of open transactions count as unread.
    """

    def ask(partitions: Iterable[int]) -> dict[int, int]:
        timeout_s = min(_ENDS_TIMEOUT_S, options.timeout_s)
        return offsets_of(options, topic, partitions, OffsetSpec.latest(), committed=False, timeout_s=timeout_s)

    return _topic_ends.get((options, topic), lambda: TopicEnds(ask)).of(partition, age_s)


class Ends(NamedTuple):
    """The end of a partition at a time.

    Attributes:
      asked_s: epoch seconds just before the query: messages appended until then are below the end.
    """

    asked_s: float
    end: int


@dataclass
class TopicEnds:
    """The ends of a topic's partitions: one query for all recently used partitions, cached.

    Attributes:
      ask: returns the ends of partitions; raises `EngineError` without an answer.
    """

    ask: Callable[[Iterable[int]], Mapping[int, int]]
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
            self._used_s = {number: since for number, since in self._used_s.items() if now - since < _UNUSED_S}
            try:
                ends = self.ask(list(self._used_s))
            except EngineError:
                self._failed_s = now
                return None
            self._ends = {number: Ends(now, end) for number, end in ends.items()}
            return self._ends.get(partition)


_topic_ends = Shared[TopicEnds]()


def list_topic(options: KafkaOptions, topic: str) -> Listing:
    """Query a topic's id and the bounds of its partitions, over committed messages only.

    Raises:
      EngineError: if the broker does not answer, has no such topic (`NoTopicError`), or lists no partitions.
    """
    topic_id, partitions = topic_of(options, topic)
    if not partitions:
        raise EngineError(f"Kafka at {options.bootstrap} lists no partitions of topic {topic}")
    first, end = (offsets_of(options, topic, partitions, spec) for spec in (OffsetSpec.earliest(), OffsetSpec.latest()))
    return Listing(topic, topic_id, {number: (first[number], end[number]) for number in partitions})


def list_again(options: KafkaOptions, before: Listing) -> Listing:
    """List a topic again that was listed before and so must exist.

    Raises:
      OtherTopicError: if the topic was deleted or recreated.
      EngineError: if the broker does not answer.
    """
    try:
        listing = list_topic(options, before.topic)
    except NoTopicError:
        check_topic(options, before.topic, before.topic_id)
        listing = list_topic(options, before.topic)
    check_topic_id(before.topic, before.topic_id, listing.topic_id)
    return listing


def check_topic(options: KafkaOptions, topic: str, topic_id: str) -> list[int]:
    """Check that a topic is still the one that was read. Return its partitions.

    A topic counts as deleted only after a while, since a starting broker may not know it yet.

    Raises:
      OtherTopicError: if the topic was deleted or recreated.
      EngineError: if the broker does not answer.
    """
    try:
        present_id, partitions = _retrying(NoTopicError, _DELETED_S, 1.0)(topic_of, options, topic)
    except NoTopicError:
        raise OtherTopicError(
            f"topic {topic} was deleted while it was read; its uncommitted messages are lost. Committed runs stay. "
            f"Create it again, then continue with the new topic: {ADOPT_COMMAND} {topic} --data-path DATA"
        ) from None
    check_topic_id(topic, topic_id, present_id)
    return partitions


def check_still_that_topic(options: KafkaOptions, topic: str, topic_id: str) -> None:
    """Check that messages read under a topic's id are from that topic, not from a recreated one.

    A deleted topic passes. Waits up to a minute for a broker that does not answer.

    Raises:
      OtherTopicError: if the topic was recreated.
      EngineError: if the broker does not answer.
    """
    if not topic_id:
        return
    for attempt in _retrying(EngineError, _ANSWER_S, 0.5):
        with attempt, suppress(NoTopicError):
            check_topic_id(topic, topic_id, topic_of(options, topic)[0])


@cache
def is_mock(options: KafkaOptions) -> bool:
    """Return whether the broker is librdkafka's mock.

    The mock has no controller, no topic ids, four partitions in each topic, and returns messages of aborted
    transactions.
    """
    return _cluster_id(options).startswith("mockCluster")


def _cluster_id(options: KafkaOptions) -> str:
    """Return the cluster's id, the first query to a broker. Fails fast if the broker rejects the connection."""
    client = admin(options)
    wait_s = 1.0
    left_s = options.timeout_s
    while True:
        try:
            return str(client.list_topics(timeout=min(wait_s, left_s)).cluster_id)
        except KafkaException:
            left_s -= wait_s
            client.poll(0)  # a rejected connection is reported to the client's callback alone
            if left_s <= 0 or is_refused(options):
                raise
            wait_s *= 2


def make_topic(
    options: KafkaOptions,
    topic: str,
    partitions: int = 1,
    config: Mapping[str, str] | None = None,
) -> None:
    """Create a topic and wait until its offsets can be queried; an existing topic is not changed.

    Raises:
      CimlError: if the broker rejects the topic, for example an invalid name.
      EngineError: if the broker does not answer in time.
    """
    try:
        if is_mock(options):
            admin(options).list_topics(topic, timeout=options.timeout_s)  # which creates it
            return
        futures = admin(options).create_topics(
            [NewTopic(topic, partitions, 1, config=dict(config or {}))], request_timeout=options.timeout_s
        )
        futures[topic].result()
    except KafkaException as error:
        fault = error.args[0]
        if fault.code() in _INVALID:
            raise CimlError(f"the broker rejects topic {topic!r}: {fault.str()}") from None
        if fault.code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise as_engine_error(options, topic, error) from None
    # A broker confirms the creation before all of its parts know the topic and its leaders.
    _retrying(EngineError, options.timeout_s, 0.05)(list_topic, options, topic)


def _retrying(error: type[EngineError], timeout_s: float, wait_s: float) -> Retrying:
    return Retrying(
        retry=retry_if_exception_type(error),
        stop=stop_after_delay(timeout_s),
        wait=wait_fixed(wait_s),
        reraise=True,
    )
