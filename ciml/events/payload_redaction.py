"""Redacted payloads: a message's bytes without secrets and without needless headers."""

from __future__ import annotations

import base64
import json
import math
import re
from typing import Any

from ciml.events.fields import is_proof
from ciml.events.redaction import REDACTED, decoded, hides, is_secret_name, redact_text

_QUOTED = re.compile(r"[\"']([\w.-]{1,64})[\"'](?!\s*+:)")
#: Fields that identify an event or a run. A redacted id could equal another one, so it is replaced as a whole.
_IDS = ("id", "build_uuid")
_RANDOM = (*_IDS, "data_base64")  # fields whose values may be random letters and digits
_AUTH = "ciml_auth"  # of a message that a receiver produced: how the sender was proved
_VALUES = ("value", "values", "default")  # the value that belongs to an object's "name" or "key"


def redact_bytes(data: bytes, guess: bool = True) -> bytes:
    """Return a payload, complete or cut, with the secrets in it replaced by ``REDACTED``.

    JSON is redacted by its decoded keys and texts and encoded again; anything else as text. A payload without secrets
    is returned unchanged.
    """
    text = data.decode("utf-8", "surrogateescape")
    try:
        value = _decode(text)
        shown = _redact_json(value, guess=guess)
        if shown == value:
            return data
        # Bytes that are not UTF-8 stay: as escapes they would be valid, and a replay would accept the message.
        broken = _NOT_UTF8.search(text) is not None
        return json.dumps(shown, ensure_ascii=not broken).encode("utf-8", "surrogateescape")
    except (ValueError, RecursionError):  # not JSON, a duplicate key, or too deep
        plain = redact_text(text, guess)
        if _names_a_secret(plain) or _names_a_secret(decoded(plain)):
            return REDACTED.encode()
        return data if plain == text else plain.encode("utf-8", "surrogateescape")


def _names_a_secret(text: str) -> bool:
    """Return whether a quoted value in broken JSON is a secret name, as in ``"name": "DB_PASSWORD"``."""
    return any(is_secret_name(quoted[1]) for quoted in _QUOTED.finditer(text))


def redact_header(name: str, value: bytes | None) -> tuple[str, bytes | None]:
    """Return a header's name and value, without secrets."""
    if name == _AUTH and value and is_proof(value.decode("latin-1")):
        return name, value  # by its name a secret, but without it a replayed run would be proved by nothing
    if value and (is_secret_name(name) or (name == "ce_id" and redact_bytes(value, guess=False) != value)):
        value = REDACTED.encode()
    return redact_text(name), value if value is None else redact_bytes(value, guess=False)  # ids of deliveries stay


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("duplicate key")
    return made


_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # bytes that the decoding passed on
_decode = json.JSONDecoder(object_pairs_hook=_object, strict=False).decode


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
        return [_redact_json(item, secret or flag, guess) for item, flag in zip(value, flags, strict=False)]
    # NaN and infinity are no secrets, and make the payload invalid JSON: it must stay as invalid as it was.
    number = type(value) is int or (type(value) is float and math.isfinite(value))
    return REDACTED if secret and number else value


def _redact_field(key: str, item: Any, secret: bool, named: bool, guess: bool) -> Any:
    guess = guess and key not in _RANDOM and not key.endswith("node_id")
    if key == "data_base64" and type(item) is str:
        try:
            data = base64.b64decode(item)
        except ValueError:
            return REDACTED
        shown = redact_bytes(data)
        if shown != data:
            return base64.b64encode(shown).decode()
    if key in _IDS and type(item) is str and redact_text(item, guess) != item:
        return REDACTED
    return _redact_json(item, secret or hides(key, item) or (named and key in _VALUES), guess)
