"""The payload of a dead letter: a message without secrets and needless headers, stored so that it can be retried."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ciml.digest import canonical_json
from ciml.errors import IntegrityError
from ciml.events.fields import is_proof, unique_object
from ciml.events.records import Message
from ciml.events.redaction import REDACTED, decoded, hides, is_secret_name, redact_text
from ciml.limits import MAX_MESSAGE_BYTES, MAX_MESSAGE_HEADERS

if TYPE_CHECKING:
    from ciml.storage import Store

#: A quoted value, not a key.
_QUOTED = re.compile(r"[\"']([\w.-]{1,64})[\"'](?!\s*:)")
#: Fields that identify an event or a run. A redacted id could equal another one, so it is replaced as a whole.
_IDS = ("id", "build_uuid")
_RANDOM = (*_IDS, "data_base64")  # fields whose values may be random letters and digits
_AUTH = "ciml_auth"  # of a message that a receiver produced: how the sender was proved
_VALUES = ("value", "values", "default")  # the value that belongs to an object's "name" or "key"
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # bytes that ``surrogateescape`` has decoded
_decode = json.JSONDecoder(object_pairs_hook=unique_object, strict=False).decode
#: The folder of a raw store for payloads too large for a manifest, each named by its digest.
PAYLOAD_FOLDER = "letters"
#: A payload whose JSON is larger than this becomes an object of its own: deltas are read often, payloads rarely.
INLINE_BYTES = 16 << 10
#: Replaces all headers of a message if one header name is not UTF-8: the client then returns no headers.
UNREADABLE_HEADERS: tuple[tuple[str, bytes | None], ...] = (("\N{REPLACEMENT CHARACTER}", None),)
#: Prefixes of the header names that ciml reads. A dead letter keeps no other header.
_READ_HEADERS = ("content-type", "ce_", "ciml_", "listing-")
#: The lists of a delta whose records have payloads.
_WITH_PAYLOADS = ("dead_letters", "deferred")


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
            [name, value if value is None else base64.b64encode(value).decode()]
            for name, value in map(_stored_header, message.headers)
            if name
        ],
        "timestamp_ms": message.timestamp_ms,
    }
    if message.key is not None:
        payload["key"] = _encode(message.key)
    return payload


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
        _decode_base64(payload["value"]),
        tuple((name, _decode_base64(value)) for name, value in payload.get("headers", ())),
        _decode_base64(payload.get("key")),
        payload.get("timestamp_ms", 0),
    )


def offload_payloads(raw: Store, delta: Mapping[str, Any]) -> dict[str, Any]:
    """Return a raw delta with its large payloads replaced by ``object``, ``size`` and ``timestamp_ms``.

    Each payload becomes an object of the raw store, named by its digest, before the delta is committed.
    """
    return {**delta, **{name: list(_offloaded(raw, delta[name])) for name in _WITH_PAYLOADS}}


def _offloaded(raw: Store, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    last: Mapping[str, Any] = {}
    reference: Mapping[str, Any] = {}
    for record in records:
        payload = record.get("payload")
        if payload and payload != last:  # the runs of a message follow each other, and have equal payloads
            last = payload
            reference = _stored(raw, payload)
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


def message_bytes(message: Message) -> int:
    """Return the size of value, key and headers, bytes."""
    size = len(message.value or b"") + len(message.key or b"")
    for name, value in message.headers:
        size += len(name) + len(value or b"")
    return size


def excess(message: Message) -> str:
    """Describe how a message exceeds `MAX_MESSAGE_BYTES` or `MAX_MESSAGE_HEADERS`, for people; "" if it does not."""
    if len(message.headers) > MAX_MESSAGE_HEADERS:
        return f"more than {MAX_MESSAGE_HEADERS} headers"
    size = message_bytes(message)
    return f"{size} bytes, at most {MAX_MESSAGE_BYTES}" if size > MAX_MESSAGE_BYTES else ""


def _stored_header(header: tuple[str, bytes | None]) -> tuple[str, bytes | None]:
    """Return a header without secrets; one without a name for a header that is not stored."""
    if header == UNREADABLE_HEADERS[0]:
        return header
    return redact_header(*header) if header[0].lower().startswith(_READ_HEADERS) else ("", None)


def _encode(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(redact_bytes(data)).decode()


def _decode_base64(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)


def redact_header(name: str, value: bytes | None) -> tuple[str, bytes | None]:
    """Return a header's name and value, without secrets."""
    if name == _AUTH and value and is_proof(value.decode("latin-1")):
        return name, value  # by its name a secret, but without it a replayed run would be proved by nothing
    if value is None:
        return redact_text(name), None
    redacted = redact_bytes(value, guess=False)  # random letters and digits are ids of deliveries
    if value and (is_secret_name(name) or (name == "ce_id" and redacted != value)):
        redacted = REDACTED.encode()
    return redact_text(name), redacted


def redact_bytes(data: bytes, guess: bool = True) -> bytes:
    """Return a payload, complete or cut, with the secrets in it replaced by ``REDACTED``.

    JSON is redacted by its decoded keys and texts and encoded again; anything else as text. A payload without secrets
    is returned unchanged.
    """
    text = data.decode("utf-8", "surrogateescape")
    try:
        value = _decode(text)
        redacted = _redact_json(value, guess=guess)
        if redacted == value:
            return data
        # Bytes that are not UTF-8 are kept: as escapes they would be valid, and a replay would accept the message.
        broken = _NOT_UTF8.search(text) is not None
        return json.dumps(redacted, ensure_ascii=not broken).encode("utf-8", "surrogateescape")
    except (ValueError, RecursionError):  # not JSON, a duplicate key, or too deep
        plain = redact_text(text, guess)
        if _names_a_secret(plain) or _names_a_secret(decoded(plain)):
            return REDACTED.encode()
        return data if plain == text else plain.encode("utf-8", "surrogateescape")


def _names_a_secret(text: str) -> bool:
    """Return whether a quoted value in broken JSON is a secret name, as in ``"name": "DB_PASSWORD"``."""
    return any(is_secret_name(quoted[1]) for quoted in _QUOTED.finditer(text))


def _redact_json(value: Any, secret: bool = False, guess: bool = True) -> Any:
    """Return a decoded value. ``secret`` replaces all its texts and numbers, ``guess`` random letters and digits."""
    if type(value) is str:
        return REDACTED if secret and value else redact_text(value, guess)
    if type(value) is dict:
        name = value.get("name") or value.get("key")
        named = secret or (type(name) is str and is_secret_name(name))
        return {redact_text(key, guess): _redact_field(key, item, secret, named, guess) for key, item in value.items()}
    if type(value) is list:
        # The value of an option is the argument after it: ["--token", "…"].
        flags = [False, *(type(item) is str and item[:1] == "-" and is_secret_name(item) for item in value)]
        return [_redact_json(item, secret or flag, guess) for item, flag in zip(value, flags)]
    # NaN and infinity are not secrets, and make the payload invalid JSON: it must remain as invalid as it was.
    number = type(value) is int or (type(value) is float and math.isfinite(value))
    return REDACTED if secret and number else value


def _redact_field(key: str, item: Any, secret: bool, named: bool, guess: bool) -> Any:
    guess = guess and key not in _RANDOM and not key.endswith("node_id")
    if key == "data_base64" and type(item) is str:
        try:
            data = base64.b64decode(item)
        except ValueError:
            return REDACTED
        redacted = redact_bytes(data)
        if redacted != data:
            return base64.b64encode(redacted).decode()
    if key in _IDS and type(item) is str and redact_text(item, guess) != item:
        return REDACTED
    return _redact_json(item, secret or hides(key, item) or (named and key in _VALUES), guess)
