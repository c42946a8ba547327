"""The payload of a dead letter: a message, kept so that it can be tried again, without its secrets."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from ciml.errors import IntegrityError
from ciml.records import Message
from ciml.redact import redact_bytes

#: A message above this is refused, and its dead letter names size and digest alone: the broker holds the bytes.
MAX_MESSAGE_BYTES = 1 << 20
_SECRET_HEADERS = ("authorization", "proxy-authorization", "cookie", "set-cookie", "x-hub-signature", "x-gitlab-token")


def message_bytes(message: Message) -> int:
    """The size of value and headers, bytes."""
    size = len(message.value or b"")
    for name, value in message.headers:
        size += len(name) + len(value or b"")
    return size


def payload_of(message: Message) -> dict[str, Any]:
    """The message as JSON: ``value`` and ``key`` and each header's value in base64, ``timestamp_ms``.

    Secrets of addresses within it are replaced, headers that carry credentials left out. Where the message is larger
    than `MAX_MESSAGE_BYTES` there are only ``size`` and ``sha256``; it can be read again at the letter's origin.
    """
    size = message_bytes(message)
    if size > MAX_MESSAGE_BYTES:
        digest = hashlib.sha256(message.value or b"").hexdigest()
        return {"size": size, "sha256": digest, "timestamp_ms": message.timestamp_ms}
    payload: dict[str, Any] = {
        "value": _encode(message.value),
        "headers": [
            [name, _encode(value)] for name, value in message.headers if not name.lower().startswith(_SECRET_HEADERS)
        ],
        "timestamp_ms": message.timestamp_ms,
    }
    if message.key is not None:
        payload["key"] = _encode(message.key)
    return payload


def message_of(payload: Mapping[str, Any], offset: int) -> Message:
    """The message that `payload_of` kept.

    Raises:
      IntegrityError: where the payload does not hold the message's bytes.
    """
    if "value" not in payload:
        raise IntegrityError("the dead letter does not hold its message: read it again at its topic and offset")
    return Message(
        offset,
        _decode(payload["value"]),
        tuple((name, _decode(value)) for name, value in payload.get("headers", ())),
        _decode(payload.get("key")),
        payload.get("timestamp_ms", 0),
    )


def _encode(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(redact_bytes(data)).decode()


def _decode(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)
