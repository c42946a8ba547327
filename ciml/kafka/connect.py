"""Clients of a Kafka broker, and one-line messages for their errors.

librdkafka reports a rejected connection only through the error callback; the failed call itself reports a timeout. So
the callback stores the cause, and `as_engine_error` adds it to the message.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from ciml.errors import CimlError, EngineError
from ciml.kafka import KafkaOptions

Client = TypeVar("Client")

#: Codes of errors after which the same call may succeed.
TRANSIENT = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TIMED_OUT,
        KafkaError._RESOLVE,
        KafkaError._MAX_POLL_EXCEEDED,
        KafkaError._WAIT_COORD,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.BROKER_NOT_AVAILABLE,
    }
)
#: Codes of a topic that the broker does not know.
NO_TOPIC = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_ID})
#: Codes of errors that pass soon if a topic or partition was created, or its leader has changed.
AFTER_CHANGE = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
    }
)
_REFUSED = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError._SSL,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
        KafkaError.ILLEGAL_SASL_STATE,
    }
)
#: How long a refusal explains a failed call, seconds. librdkafka repeats it every 30 s while the broker rejects.
_REFUSAL_S = 60.0


class _Refusal(NamedTuple):
    """Why a broker rejected a connection, and when, monotonic seconds."""

    cause: str
    time_s: float


_admin_clients: dict[KafkaOptions, AdminClient] = {}
_lock = threading.Lock()  # of `_admin_clients`: a client is created once. Single operations on `_refusals` need none.
#: The last refusal that is not reported yet: of a broker's admin client (True), and of all its other clients (False).
_refusals: dict[tuple[KafkaOptions, bool], _Refusal] = {}


class NoTopicError(EngineError):
    """The broker has no such topic."""


def make_client(
    client_class: Callable[[dict[str, Any]], Client],
    options: KafkaOptions,
    properties: Mapping[str, Any],
    on_refusal: Callable[[KafkaError], None] | None = None,
) -> Client:
    """Return a client of confluent-kafka.

    Args:
      client_class: class of the client.
      options: connection options, whose secrets are hidden in messages.
      properties: configuration of the client.
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
            _refusals[options, client_class is AdminClient] = _Refusal(error.str(), time.monotonic())

    try:
        return client_class({**properties, "error_cb": on_error})
    except (KafkaException, TypeError, ValueError) as error:
        fault = error.args[0] if error.args else error
        cause = fault.str() if isinstance(fault, KafkaError) else str(fault)
        raise CimlError(f"invalid Kafka property: {options.hide(cause)}") from None


def admin(options: KafkaOptions) -> AdminClient:
    """Return the process's admin client for a broker, ready for a call."""
    with _lock:
        if options not in _admin_clients:
            _admin_clients[options] = make_client(AdminClient, options, options.common())
        client = _admin_clients[options]
    client.poll(0)
    _refusals.pop((options, True), None)  # refusals since its last call do not explain an error of the next one
    return client


def is_refused(options: KafkaOptions) -> bool:
    """Return whether the broker has just rejected a client that was polled, and no error has reported this yet."""
    return bool(_cause(options, dict.get))


def as_engine_error(options: KafkaOptions, topic: str, error: KafkaException) -> EngineError:
    """Return the error of a failed call, with a one-line message.

    If the broker has just rejected the connection, the message has the cause, which counts as reported from then on.
    """
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
    refusal = _cause(options, dict.pop)
    if refusal or code in _REFUSED:
        return EngineError(f"{broker} refuses the connection: {options.hide(refusal) or cause}")
    return EngineError(f"{broker} does not answer ({cause}); check --kafka")


def _cause(options: KafkaOptions, read: Callable[..., _Refusal | None]) -> str:
    """Return the cause of a refusal; "" without one, or if it is too old to explain a failed call.

    Args:
      options: connection options.
      read: `dict.get`, or `dict.pop` to report it.
    """
    refusals = [read(_refusals, (options, is_admin), None) for is_admin in (True, False)]
    now_s = time.monotonic()
    return next((refusal.cause for refusal in refusals if refusal and now_s - refusal.time_s <= _REFUSAL_S), "")
