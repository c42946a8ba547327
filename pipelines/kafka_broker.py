"""Questions to a Kafka broker: what a topic is, where it begins and ends; and the one line for each answer's error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec
from tenacity import Retrying, retry_if_exception, retry_if_exception_type, stop_after_delay, wait_fixed

from ciml.accounting import check_topic_id
from ciml.errors import CimlError, EngineError, IntegrityError
from pipelines.kafka_options import KafkaOptions

__all__ = [
    "Listing", "NoTopicError", "admin", "as_engine_error", "check_still_that_topic", "check_topic", "is_mock",
    "list_again", "list_topic", "make_client", "make_topic", "offsets_of", "topic_of",
]  # fmt: skip

T = TypeVar("T")

TRANSIENT = frozenset({
    KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._RESOLVE,
    KafkaError._MAX_POLL_EXCEEDED, KafkaError._WAIT_COORD, KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE, KafkaError.REQUEST_TIMED_OUT, KafkaError.BROKER_NOT_AVAILABLE,
})  # fmt: skip
NO_TOPIC = frozenset({
    KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_ID,
})  # fmt: skip
#: What a broker says for a moment after a topic or partition was made, or its leader has changed.
_SOON = frozenset({
    KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError.FENCED_LEADER_EPOCH,
})  # fmt: skip
_REFUSED = frozenset({
    KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM, KafkaError.ILLEGAL_SASL_STATE,
})  # fmt: skip
_GONE_S = 10.0
_ANSWER_S = 60.0


class NoTopicError(EngineError):
    """The broker answers, and has no such topic."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A topic as the broker tells it: its UUID ("" where it has none) and [first, end) of each partition."""

    topic: str
    topic_id: str
    bounds: Mapping[int, tuple[int, int]]


_clients: dict[KafkaOptions, AdminClient] = {}
_mocks: dict[KafkaOptions, bool] = {}
_refusals: dict[KafkaOptions, str] = {}
_lock = threading.Lock()


def make_client(
    kind: Callable[[dict[str, Any]], T],
    options: KafkaOptions,
    properties: Mapping[str, Any],
    refused: Callable[[KafkaError], None] | None = None,
) -> T:
    """A client of confluent-kafka.

    Args:
      kind: its class.
      options: whose secrets are not to be told.
      properties: its configuration.
      refused: is told when the broker does not let it in; by default that is remembered for `as_engine_error`.

    Raises:
      CimlError: a property is unknown, or its value is none that it can have.
    """

    def on_error(error: KafkaError) -> None:
        if error.code() in _REFUSED:
            if refused is not None:
                refused(error)
            else:
                _refusals[options] = error.str()

    try:
        return kind({**properties, "error_cb": on_error})
    except (KafkaException, TypeError, ValueError) as error:
        fault = error.args[0] if error.args else error
        said = fault.str() if isinstance(fault, KafkaError) else str(fault)
        raise CimlError(f"a property for Kafka cannot be used: {options.hide(said)}") from None


def admin(options: KafkaOptions) -> AdminClient:
    """The process's admin client for a broker."""
    with _lock:
        if options not in _clients:
            _clients[options] = make_client(AdminClient, options, options.common())
        return _clients[options]


def topic_of(options: KafkaOptions, topic: str) -> tuple[str, list[int]]:
    """(the topic's UUID or "", its partitions), as the broker says now.

    Raises:
      NoTopicError: it has no such topic.
      EngineError: it does not answer.
    """
    client = admin(options)
    try:
        if is_mock(options):
            return "", sorted(client.list_topics(topic, timeout=options.timeout_s).topics[topic].partitions)
        asked = client.describe_topics(TopicCollection([topic]), request_timeout=options.timeout_s)
        described = asked[topic].result()
    except KafkaException as error:
        raise as_engine_error(options, topic, error) from None
    return _uuid(described.topic_id), sorted(part.id for part in described.partitions)


def offsets_of(
    options: KafkaOptions,
    topic: str,
    partitions: Iterable[int],
    spec: OffsetSpec,
    *,
    committed: bool = True,
    timeout_s: float | None = None,
) -> dict[int, int]:
    """The offset that ``spec`` means in each partition; of committed messages only, or of all.

    A partition without a leader, as one that was just made, is waited for.

    Raises:
      EngineError: the broker does not answer, or a partition is not there.
    """
    asked = {TopicPartition(topic, number): spec for number in partitions}
    level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
    most_s = timeout_s or options.timeout_s
    until = time.monotonic() + most_s
    while True:
        try:
            futures = admin(options).list_offsets(asked, isolation_level=level, request_timeout=most_s)
            return {part.partition: future.result().offset for part, future in futures.items()}
        except KafkaException as error:
            if error.args[0].code() not in _SOON or time.monotonic() > until:
                raise as_engine_error(options, topic, error) from None
            topic_of(options, topic)  # raises where there is no such topic any more
            time.sleep(0.1)


def list_topic(options: KafkaOptions, topic: str) -> Listing:
    """Asks the broker for a topic's id and the bounds of its partitions, of committed messages only.

    Raises:
      EngineError: the broker does not answer, has no such topic (`NoTopicError`), or lists no partitions of it.
    """
    topic_id, found = topic_of(options, topic)
    if not found:
        raise EngineError(f"Kafka at {options.bootstrap} lists no partitions of the topic {topic}")
    first, end = (offsets_of(options, topic, found, spec) for spec in (OffsetSpec.earliest(), OffsetSpec.latest()))
    return Listing(topic, topic_id, {number: (first[number], end[number]) for number in found})


def list_again(options: KafkaOptions, before: Listing) -> Listing:
    """As `list_topic`, of a topic that was listed before and so cannot be missing.

    Raises:
      IntegrityError: the topic was deleted, or made anew.
      EngineError: the broker does not answer.
    """
    try:
        listing = list_topic(options, before.topic)
    except NoTopicError:
        check_topic(options, before.topic, before.topic_id)
        listing = list_topic(options, before.topic)
    check_topic_id(before.topic, before.topic_id, listing.topic_id)
    return listing


def check_topic(options: KafkaOptions, topic: str, topic_id: str) -> list[int]:
    """Makes sure that a topic is still the one that was read. Returns its partitions.

    A topic that the broker does not know counts as gone only when that lasts: a broker that starts may not know yet.

    Raises:
      IntegrityError: the topic was deleted, or made anew.
      EngineError: the broker does not answer.
    """
    since = time.monotonic()
    while True:
        try:
            found, partitions = topic_of(options, topic)
        except NoTopicError:
            if time.monotonic() - since > _GONE_S:
                raise IntegrityError(
                    f"the topic {topic} was deleted while it was read: what of it was not committed is gone. What was "
                    "committed stays; read another topic by --topic, or a topic of this name into another --data-path"
                ) from None
            time.sleep(1)
            continue
        check_topic_id(topic, topic_id, found)
        return partitions


def check_still_that_topic(options: KafkaOptions, topic: str, topic_id: str) -> None:
    """Makes sure that what was read under a topic's id is of that topic, and not of one that has taken its name.

    A topic that is gone is none that has taken the name. A broker that does not answer is waited for, for a minute.

    Raises:
      IntegrityError: the topic was made anew.
      EngineError: the broker does not answer.
    """
    if not topic_id:
        return
    for attempt in Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, EngineError) and not isinstance(error, NoTopicError)),
        stop=stop_after_delay(_ANSWER_S),
        wait=wait_fixed(0.5),
        reraise=True,
    ):
        with attempt:
            try:
                found, _ = topic_of(options, topic)
            except NoTopicError:
                return
            check_topic_id(topic, topic_id, found)


def is_mock(options: KafkaOptions) -> bool:
    """Whether the broker is librdkafka's own stand-in: no controller, no topic ids, four partitions to each topic, and
    transactions whose aborted messages are read like others."""
    with _lock:
        known = _mocks.get(options)
    if known is None:
        known = _cluster_id(options).startswith("mockCluster")
        with _lock:
            _mocks[options] = known
    return known


def _cluster_id(options: KafkaOptions) -> str:
    """The first question to a broker. One that does not let us in is not asked until the time is over."""
    client, wait_s, left_s = admin(options), 1.0, options.timeout_s
    while True:
        try:
            return str(client.list_topics(timeout=min(wait_s, left_s)).cluster_id)
        except KafkaException:
            left_s -= wait_s
            client.poll(0)  # calls `on_error`
            if left_s <= 0 or options in _refusals:
                raise
            wait_s *= 2


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
    if fault.code() in NO_TOPIC:
        return NoTopicError(f"Kafka at {options.bootstrap} has no topic {topic}: create it, or name another by --topic")
    said = options.hide(fault.str() or fault.name())
    if fault.code() in TRANSIENT | _REFUSED:
        with _lock:
            client = _clients.get(options)
        if client is not None:
            client.poll(0)  # calls `on_error`
        refusal = _refusals.pop(options, "")
        if refusal or fault.code() in _REFUSED:
            return EngineError(f"Kafka at {options.bootstrap} refuses the connection: {options.hide(refusal) or said}")
        return EngineError(f"Kafka at {options.bootstrap} does not answer ({said})")
    return EngineError(f"Kafka at {options.bootstrap}, topic {topic}: {said}")
