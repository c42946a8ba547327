"""Clients of a Kafka broker, and one-line messages for their errors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from ciml.errors import CimlError, EngineError
from ciml.kafka.options import KafkaOptions

T = TypeVar("T")
_clients: dict[KafkaOptions, AdminClient] = {}
_refusals: dict[KafkaOptions, str] = {}
_lock = threading.Lock()


def _codes(names: str) -> frozenset[int]:
    return frozenset(getattr(KafkaError, name) for name in names.split())


TRANSIENT = _codes(
    "_TRANSPORT _ALL_BROKERS_DOWN _TIMED_OUT _RESOLVE _MAX_POLL_EXCEEDED _WAIT_COORD NOT_LEADER_FOR_PARTITION "
    "LEADER_NOT_AVAILABLE REQUEST_TIMED_OUT BROKER_NOT_AVAILABLE"
)
NO_TOPIC = _codes("UNKNOWN_TOPIC_OR_PART _UNKNOWN_TOPIC _UNKNOWN_PARTITION UNKNOWN_TOPIC_ID")
#: Transient errors after the creation of a topic or partition, or a change of leader.
SOON = _codes(
    "NOT_LEADER_FOR_PARTITION LEADER_NOT_AVAILABLE UNKNOWN_TOPIC_OR_PART _UNKNOWN_PARTITION UNKNOWN_LEADER_EPOCH "
    "FENCED_LEADER_EPOCH"
)
_REFUSED = _codes("_AUTHENTICATION _SSL SASL_AUTHENTICATION_FAILED UNSUPPORTED_SASL_MECHANISM ILLEGAL_SASL_STATE")


class NoTopicError(EngineError):
    """The broker has no such topic."""


def make_client(
    kind: Callable[[dict[str, Any]], T],
    options: KafkaOptions,
    properties: Mapping[str, Any],
    rejected: Callable[[KafkaError], None] | None = None,
) -> T:
    """Return a client of confluent-kafka.

    Args:
      kind: its class.
      options: connection options, whose secrets are hidden in messages.
      properties: its configuration.
      rejected: called where the broker refuses the connection; by default `as_engine_error` reports it.

    Raises:
      CimlError: a property is unknown, or its value is invalid.
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
        cause = fault.str() if isinstance(fault, KafkaError) else str(fault)
        raise CimlError(f"invalid Kafka property: {options.hide(cause)}") from None


def admin(options: KafkaOptions) -> AdminClient:
    """Return the process's admin client for a broker."""
    with _lock:
        if options not in _clients:
            _clients[options] = make_client(AdminClient, options, options.common())
        return _clients[options]


def is_refused(options: KafkaOptions) -> bool:
    """Return whether the broker refused the admin client, and this is not reported yet."""
    admin(options).poll(0)  # calls `on_error`
    return options in _refusals


def as_engine_error(options: KafkaOptions, topic: str, error: KafkaException) -> EngineError:
    """Return the error of a failed call, with a one-line message."""
    fault = error.args[0]
    if fault.code() in NO_TOPIC:
        return NoTopicError(f"Kafka at {options.bootstrap} has no topic {topic}; create it, or give another --topic")
    cause = options.hide(fault.str() or fault.name())
    if fault.code() in TRANSIENT | _REFUSED:
        with _lock:
            client = _clients.get(options)
        if client is not None:
            client.poll(0)  # calls `on_error`
        rejection = _refusals.pop(options, "")
        if rejection or fault.code() in _REFUSED:
            return EngineError(
                f"Kafka at {options.bootstrap} refuses the connection: {options.hide(rejection) or cause}"
            )
        return EngineError(f"Kafka at {options.bootstrap} does not answer ({cause}); check --kafka")
    return EngineError(f"Kafka at {options.bootstrap}, topic {topic}: {cause}")
