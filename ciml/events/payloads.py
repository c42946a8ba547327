"""The payload of a dead letter: a message without its secrets, stored so that it can be tried again."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ciml.digest import canonical_json
from ciml.errors import IntegrityError
from ciml.events.payload_redaction import redact_bytes, redact_header
from ciml.events.records import Message
from ciml.limits import MAX_MESSAGE_BYTES, MAX_MESSAGE_HEADERS

if TYPE_CHECKING:
    from ciml.storage.open import Store

#: The folder of a raw store for payloads too large for a manifest, each named by its digest.
PAYLOAD_FOLDER = "letters"
#: A payload whose JSON is larger than this becomes an object of its own: deltas are read often, payloads rarely.
INLINE_BYTES = 16 << 10
#: Replaces all headers of a message if one header name is not UTF-8: the client then returns no headers.
UNREADABLE_HEADERS: tuple[tuple[str, bytes | None], ...] = (("\N{REPLACEMENT CHARACTER}", None),)
#: Prefixes of the header names that ciml reads. A dead letter keeps no other header.
_READ_HEADERS = ("content-type", "ce_", "ciml_", "listing-")


def message_bytes(message: Message) -> int:
    """Return the size of value, key and headers, bytes."""
    _, sent, headers, key, _ = message
    size = len(sent or b"") + len(key or b"")
    for name, value in headers:
        size += len(name) + len(value or b"")
    return size


def excess(message: Message) -> str:
    """Describe how a message exceeds `MAX_MESSAGE_BYTES` or `MAX_MESSAGE_HEADERS`, for people; "" if it does not."""
    if len(message.headers) > MAX_MESSAGE_HEADERS:
        return f"more than {MAX_MESSAGE_HEADERS} headers"
    size = message_bytes(message)
    return f"{size} bytes, at most {MAX_MESSAGE_BYTES}" if size > MAX_MESSAGE_BYTES else ""


@lru_cache(maxsize=1)
def payload_of(message: Message) -> Mapping[str, Any]:
    """Return the message as JSON: ``value`` and ``key`` and each header's value in base64, ``timestamp_ms``.

    Secrets are replaced, and headers that ciml does not read are left out. A message above a limit (`excess`) has only
    ``size`` and ``sha256``; it can be read again at the dead letter's origin.

    The last payload is remembered: a message of a CI system may name a thousand runs, each with its own dead letter.
    They share one object, which `offload_payloads` stores once.
    """
    if excess(message):
        digest = hashlib.sha256(message.value or b"").hexdigest()
        return {"size": message_bytes(message), "sha256": digest, "timestamp_ms": message.timestamp_ms}
    payload: dict[str, Any] = {
        "value": _encode(message.value),
        "headers": [
            [shown, value if value is None else base64.b64encode(value).decode()]
            for shown, value in map(_kept_header, message.headers)
            if shown
        ],
        "timestamp_ms": message.timestamp_ms,
    }
    if message.key is not None:
        payload["key"] = _encode(message.key)
    return payload


def offload_payloads(raw: Store, delta: Mapping[str, Any]) -> dict[str, Any]:
    """Return a raw delta with its large payloads replaced by ``object``, ``size`` and ``timestamp_ms``.

    Each payload becomes an object of the raw store, named by its digest, before the delta is committed.
    """
    return {**delta, **{name: list(_offloaded(raw, delta[name])) for name in _WITH_PAYLOADS}}


_WITH_PAYLOADS = ("dead_letters", "deferred")


def _offloaded(raw: Store, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    last: Mapping[str, Any] = {}
    reference: Mapping[str, Any] = {}
    for record in records:
        payload = record.get("payload")
        if payload and payload != last:  # the runs of a message follow each other, and have equal payloads
            last, reference = payload, _stored(raw, payload)
        yield {**record, "payload": reference} if payload else record


def _stored(raw: Store, payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a small payload itself; a large one becomes an object."""
    if len(data := canonical_json(payload)) <= INLINE_BYTES:
        return payload
    path = f"{PAYLOAD_FOLDER}/{hashlib.sha256(data).hexdigest()}.json"
    raw.create(path, data)
    return {"object": path, "size": len(data), "timestamp_ms": payload.get("timestamp_ms", 0)}


def read_payload(raw: Store, payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a payload as `payload_of` made it; read the object if `offload_payloads` stored it separately.

    Raises:
      IntegrityError: the object is missing, or differs from its digest.
    """
    if not (path := payload.get("object")):
        return payload
    try:
        data = raw.read(path)
    except FileNotFoundError:
        raise IntegrityError(f"{raw.url(path)} is missing but a dead letter needs it; restore a backup") from None
    if path != f"{PAYLOAD_FOLDER}/{hashlib.sha256(data).hexdigest()}.json":
        raise IntegrityError(f"{raw.url(path)} differs from its digest; restore a backup")
    read: dict[str, Any] = json.loads(data)
    return read


def message_of(payload: Mapping[str, Any], offset: int) -> Message:
    """Return the message that `payload_of` kept. Read an offloaded payload first, with `read_payload`.

    Raises:
      IntegrityError: the payload does not hold the message's bytes.
    """
    if "object" in payload:
        raise IntegrityError("the dead letter's message is stored separately; read it with read_payload")
    if "value" not in payload:
        raise IntegrityError("the dead letter does not hold its message; read it again at its topic and offset")
    return Message(
        offset,
        _decode(payload["value"]),
        tuple((name, _decode(value)) for name, value in payload.get("headers", ())),
        _decode(payload.get("key")),
        payload.get("timestamp_ms", 0),
    )


def _kept_header(header: tuple[str, bytes | None]) -> tuple[str, bytes | None]:
    if header == UNREADABLE_HEADERS[0]:
        return header
    return redact_header(*header) if header[0].lower().startswith(_READ_HEADERS) else ("", None)


def _encode(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(redact_bytes(data)).decode()


def _decode(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)
