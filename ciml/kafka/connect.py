"""Clients of a Kafka broker, and one-line messages for their errors.

librdkafka reports that a broker rejects the connection to a callback only. The failed call itself reports a timeout. So
the callback stores the reason, and `as_engine_error` adds it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from ciml.errors import CimlError, EngineError
from ciml.kafka import KafkaOptions

Client = TypeVar("Client")


def _codes(names: str) -> frozenset[int]:
    return frozenset(getattr(KafkaError, name) for name in names.split())


#: Codes of errors after which the same call may succeed.
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

#: The process's admin clients, and the reasons why brokers rejected connections, until these are reported.
_admin_clients: dict[KafkaOptions, AdminClient] = {}
_refusals: dict[KafkaOptions, str] = {}
_lock = threading.Lock()


class NoTopicError(EngineError):
    """The broker has no such topic."""


def make_client(
    kind: Callable[[dict[str, Any]], Client],
    options: KafkaOptions,
    properties: Mapping[str, Any],
    on_refusal: Callable[[KafkaError], None] | None = None,
) -> Client:
    """Return a client of confluent-kafka.

    Args:
      kind: its class.
      options: connection options, whose secrets are hidden in messages.
      properties: its configuration.
      on_refusal: called when the broker rejects the connection; by default `as_engine_error` reports it.

    Raises:
      CimlError: a property is unknown, or its value is invalid.
    """

    def on_error(error: KafkaError) -> None:
        if error.code() not in _REFUSED:
            return
        if on_refusal is not None:
            on_refusal(error)
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
        if options not in _admin_clients:
            _admin_clients[options] = make_client(AdminClient, options, options.common())
        return _admin_clients[options]


def is_refused(options: KafkaOptions) -> bool:
    """Return whether a polled client was rejected by the broker, and this is not reported yet."""
    return options in _refusals


def as_engine_error(options: KafkaOptions, topic: str, error: KafkaException) -> EngineError:
    """Return the error of a failed call, with a one-line message."""
    broker = f"Kafka at {options.bootstrap}"
    fault = error.args[0]
    code = fault.code()
    if code in NO_TOPIC:
        return NoTopicError(f"{broker} has no topic {topic}; create it, or give another --topic")
    cause = options.hide(fault.str() or fault.name())
    if code not in TRANSIENT | _REFUSED:
        return EngineError(f"{broker}, topic {topic}: {cause}")
    with _lock:
        client = _admin_clients.get(options)
    if client is not None:
        client.poll(0)  # calls `on_error`
    refusal = _refusals.pop(options, "")
    if refusal or code in _REFUSED:
        return EngineError(f"{broker} refuses the connection: {options.hide(refusal) or cause}")
    return EngineError(f"{broker} does not answer ({cause}); check --kafka")
