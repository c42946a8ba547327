"""Clients of a Kafka broker, and the one line for each of their errors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from ciml.errors import CimlError, EngineError
from ciml.kafka.options import KafkaOptions

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
SOON = frozenset({
    KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError.FENCED_LEADER_EPOCH,
})  # fmt: skip
_REFUSED = frozenset({
    KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM, KafkaError.ILLEGAL_SASL_STATE,
})  # fmt: skip


class NoTopicError(EngineError):
    """The broker answers, and has no such topic."""


_clients: dict[KafkaOptions, AdminClient] = {}
_refusals: dict[KafkaOptions, str] = {}
_lock = threading.Lock()


def make_client(
    kind: Callable[[dict[str, Any]], T],
    options: KafkaOptions,
    properties: Mapping[str, Any],
    rejected: Callable[[KafkaError], None] | None = None,
) -> T:
    """Return a client of confluent-kafka.

    Args:
      kind: its class.
      options: whose secrets are not to be told.
      properties: its configuration.
      rejected: is told when the broker does not let it in; by default that is remembered for `as_engine_error`.

    Raises:
      CimlError: a property is unknown, or its value is none that it can have.
    """

    def on_error(error: KafkaError) -> None:
        if error.code() in _REFUSED:
            if rejected is not None:
                rejected(error)
            else:
                _refusals[options] = error.str()

    try:
        return kind({**properties, "error_cb": on_error})
    except (KafkaException, TypeError, ValueError) as error:
        fault = error.args[0] if error.args else error
        said = fault.str() if isinstance(fault, KafkaError) else str(fault)
        raise CimlError(f"a property for Kafka cannot be used: {options.hide(said)}") from None


def admin(options: KafkaOptions) -> AdminClient:
    """Return the process's admin client for a broker."""
    with _lock:
        if options not in _clients:
            _clients[options] = make_client(AdminClient, options, options.common())
        return _clients[options]


def is_refused(options: KafkaOptions) -> bool:
    """Return whether the broker has said that it does not let the admin client in, and nobody was told yet."""
    admin(options).poll(0)  # calls `on_error`
    return options in _refusals


def as_engine_error(options: KafkaOptions, topic: str, error: KafkaException) -> EngineError:
    """Return the one line for a failed call."""
    fault = error.args[0]
    if fault.code() in NO_TOPIC:
        return NoTopicError(f"Kafka at {options.bootstrap} has no topic {topic}: create it, or name another by --topic")
    said = options.hide(fault.str() or fault.name())
    if fault.code() in TRANSIENT | _REFUSED:
        with _lock:
            client = _clients.get(options)
        if client is not None:
            client.poll(0)  # calls `on_error`
        rejection = _refusals.pop(options, "")
        if rejection or fault.code() in _REFUSED:
            return EngineError(
                f"Kafka at {options.bootstrap} refuses the connection: {options.hide(rejection) or said}"
            )
        return EngineError(f"Kafka at {options.bootstrap} does not answer ({said})")
    return EngineError(f"Kafka at {options.bootstrap}, topic {topic}: {said}")
