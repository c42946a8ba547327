"""Converts Kafka records to messages, with limits on untrusted content."""

from __future__ import annotations

from operator import methodcaller
from typing import TYPE_CHECKING

from ciml.events.payloads import UNREADABLE_HEADERS
from ciml.events.records import Message
from ciml.limits import LATEST_US, MAX_MESSAGE_HEADERS

if TYPE_CHECKING:
    import confluent_kafka

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
