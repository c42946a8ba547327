"""The payload of a dead letter: a message without its secrets, stored so that it can be tried again."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ciml.digest import canonical_json
from ciml.errors import IntegrityError
from ciml.events.records import Message
from ciml.events.redaction import REDACTED, decoded, hides, is_secret_name, redact_text
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
_QUOTED = re.compile(r"[\"']([\w.-]{1,64})[\"'](?!\s*+:)")
#: Fields that identify an event or a run. A redacted id could equal another one, so it is replaced as a whole.
_IDS = ("id", "build_uuid")
_VALUES = ("value", "values", "default")  # the value that belongs to an object's "name" or "key"


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


def payload_of(message: Message) -> dict[str, Any]:
    """Return the message as JSON: ``value`` and ``key`` and each header's value in base64, ``timestamp_ms``.

    Secrets are replaced, and headers that ciml does not read are left out. A message above a limit (`excess`) has only
    ``size`` and ``sha256``; it can be read again at the dead letter's origin.
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
    return {**delta, **{name: [_offload(raw, record) for record in delta[name]] for name in _WITH_PAYLOADS}}


_WITH_PAYLOADS = ("dead_letters", "deferred")


def _offload(raw: Store, record: dict[str, Any]) -> dict[str, Any]:
    payload = record.get("payload")
    if not payload or len(data := canonical_json(payload)) <= INLINE_BYTES:
        return record
    path = f"{PAYLOAD_FOLDER}/{hashlib.sha256(data).hexdigest()}.json"
    raw.create(path, data)
    reference = {"object": path, "size": len(data), "timestamp_ms": payload.get("timestamp_ms", 0)}
    return {**record, "payload": reference}


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


def redact_bytes(data: bytes) -> bytes:
    """Return a payload, complete or cut, with the secrets in it replaced by ``REDACTED``.

    JSON is redacted by its decoded keys and texts and encoded again; anything else as text. A payload without secrets
    is returned unchanged.
    """
    text = data.decode("utf-8", "surrogateescape")
    try:
        value = _parse(text)
        shown = _redact_json(value)
        if shown == value:
            return data
        # Bytes that are not UTF-8 stay: as escapes they would be valid, and a replay would accept the message.
        broken = _NOT_UTF8.search(text) is not None
        return json.dumps(shown, ensure_ascii=not broken).encode("utf-8", "surrogateescape")
    except (ValueError, RecursionError):  # not JSON, a duplicate key, or too deep
        plain = redact_text(text)
        if _names_a_secret(plain) or _names_a_secret(decoded(plain)):
            return REDACTED.encode()
        return data if plain == text else plain.encode("utf-8", "surrogateescape")


def _names_a_secret(text: str) -> bool:
    """Return whether a quoted value in broken JSON is a secret name, as in ``"name": "DB_PASSWORD"``."""
    return any(is_secret_name(quoted[1]) for quoted in _QUOTED.finditer(text))


def redact_header(name: str, value: bytes | None) -> tuple[str, bytes | None]:
    """Return a header's name and value, without secrets."""
    if value and (is_secret_name(name) or (name == "ce_id" and redact_bytes(value) != value)):
        value = REDACTED.encode()
    return redact_text(name), value if value is None else redact_bytes(value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("duplicate key")
    return made


_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # bytes that the decoding passed on
_parse = json.JSONDecoder(object_pairs_hook=_object, strict=False).decode


def _redact_json(value: Any, secret: bool = False) -> Any:
    """Return a decoded value. ``secret`` replaces all its texts and numbers."""
    if type(value) is str:
        return REDACTED if secret and value else redact_text(value)
    if type(value) is dict:
        name = value.get("name") or value.get("key")
        named = secret or (type(name) is str and is_secret_name(name))
        return {redact_text(key): _redact_field(key, item, secret, named) for key, item in value.items()}
    if type(value) is list:
        # The value of an option is the argument after it: ["--token", "…"].
        flags = [False, *(type(item) is str and item[:1] == "-" and is_secret_name(item) for item in value)]
        return [_redact_json(item, secret or flag) for item, flag in zip(value, flags, strict=False)]
    # NaN and infinity are no secrets, and make the payload invalid JSON: it must stay as invalid as it was.
    number = type(value) is int or (type(value) is float and math.isfinite(value))
    return REDACTED if secret and number else value


def _redact_field(key: str, item: Any, secret: bool, named: bool) -> Any:
    if key == "data_base64" and type(item) is str:
        try:
            data = base64.b64decode(item)
        except ValueError:
            return REDACTED
        shown = redact_bytes(data)
        if shown != data:
            return base64.b64encode(shown).decode()
    if key in _IDS and type(item) is str and redact_text(item) != item:
        return REDACTED
    return _redact_json(item, secret or hides(key, item) or (named and key in _VALUES))
