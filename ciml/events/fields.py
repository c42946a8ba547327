"""Hostile JSON: its parsing, and checks of the fields of objects. Each field is accepted in one form or rejected.

`parse_json` is strict. `parse_numbers` is for messages that are mostly numbers. Both take linear time, keep limits, and
reject other data as ``broken_json``.

The functions that read a field take the object, the field's name, and the prefix of the name in errors (``where``).
They are hand-written, because decoding is a hot path. They compare types with ``is``, because JSON's true is not a
number, but an `int` in Python.
"""

from __future__ import annotations

import json
import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

import orjson

from ciml.errors import CimlError, RejectedInput
from ciml.events.redaction import REDACTED, redact_text, shown
from ciml.limits import (
    EARLIEST_US,
    LATEST_US,
    MAX_ID_CHARACTERS,
    MAX_JSON_DEPTH,
    MAX_JSON_DIGITS,
    MAX_MESSAGE_BYTES,
    MAX_TEXT_CHARACTERS,
)

#: Most texts of events are short names that recur, so the redacted forms of texts up to this length are cached.
CACHED_CHARACTERS = 64
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
# Control and format characters (bidi overrides, zero width), lone surrogates, private use, unassigned, line separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
#: Digits of numbers and UUIDs: no secret has this form or contains it.
_PLAIN_ID = re.compile(r"[0-9a-f][0-9a-f.-]{0,63}")
_PROOF = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def parse_json(data: bytes) -> Any:
    """Parse strict JSON: UTF-8, no NaN, no infinity, no duplicate key, nested no deeper than `MAX_JSON_DEPTH`.

    Raises:
      RejectedInput: ``broken_json``, or ``too_large`` for more than `MAX_MESSAGE_BYTES`.
    """
    _check_size(data, MAX_MESSAGE_BYTES)
    try:
        value = _decode(data.decode())
    except RecursionError:
        raise RejectedInput("broken_json", f"nested deeper than {MAX_JSON_DEPTH}") from None
    except UnicodeDecodeError as error:
        raise RejectedInput("broken_json", f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise RejectedInput("broken_json", f"{error.msg} at character {error.pos}") from None
    except _StrictError as error:
        raise RejectedInput("broken_json", str(error)) from None
    # Most messages have too few brackets to be too deep; only the others are walked.
    if data.count(b"{") + data.count(b"[") > MAX_JSON_DEPTH:
        _check_depth(value)
    return value


def parse_numbers(data: bytes, most_bytes: int) -> Any:
    """Parse JSON that is mostly numbers, several times as fast as `parse_json`.

    The last value of a duplicate key wins. A whole number beyond 64 bits becomes a float. The parser bounds nesting
    at 1,024.

    Raises:
      RejectedInput: ``broken_json``, or ``too_large`` for more than ``most_bytes``.
    """
    _check_size(data, most_bytes)
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise RejectedInput("broken_json", f"{error.msg} at character {error.pos}") from None


def unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object from its members. Raises `ValueError` if a key appears twice."""
    document = dict(pairs)
    if len(document) != len(pairs):
        repeated = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _StrictError(f"key {shown(repeated)} appears twice")
    return document


class _StrictError(ValueError):
    """JSON that Python's parser accepts and the strict parser does not."""


def _check_size(data: bytes, most: int) -> None:
    if len(data) > most:
        raise RejectedInput("too_large", f"{len(data)} bytes, at most {most}")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [item for item in level if type(item) is dict or type(item) is list]
        if not level:
            return
        level = [inner for item in level for inner in (item.values() if type(item) is dict else item)]
    raise RejectedInput("broken_json", f"nested deeper than {MAX_JSON_DEPTH}")


def _parse_integer(text: str) -> int:
    if len(text) > MAX_JSON_DIGITS:
        raise _StrictError(f"a whole number has {len(text)} digits, at most {MAX_JSON_DIGITS}")
    return int(text)


def _parse_finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _StrictError(f"{text:.40} exceeds the range of a float")
    return value


def _reject_constant(text: str) -> float:
    raise _StrictError(f"{text} is not JSON")


_decode: Callable[[str], Any] = json.JSONDecoder(
    object_pairs_hook=unique_object,
    parse_int=_parse_integer,
    parse_float=_parse_finite,
    parse_constant=_reject_constant,
).decode


def text_field(
    fields: Mapping[str, Any],
    name: str,
    where: str = "",
    limit: int = MAX_TEXT_CHARACTERS,
) -> str:
    """Return a text field without the secrets in it; "" if it is absent or null.

    A whole number becomes its digits, because some producers send change and build numbers as numbers.

    Raises:
      RejectedInput: ``bad_field``, for another type, a text that is too long or one that is not clean (`is_clean`).
    """
    value = fields.get(name)
    if value is None:
        return ""
    if type(value) is str and len(value) <= min(limit, CACHED_CHARACTERS):
        redacted = _redacted(value)
        if redacted is not None:
            return redacted
    return redact_text(raw_text_field(fields, name, where, limit))


@lru_cache(maxsize=8192)
def _redacted(text: str) -> str | None:
    """Return a text without the secrets in it; None for one that is not clean."""
    return redact_text(text) if is_clean(text) else None


def raw_text_field(
    fields: Mapping[str, Any],
    name: str,
    where: str = "",
    limit: int = MAX_TEXT_CHARACTERS,
    reason: str = "bad_field",
) -> str:
    """Return a text field as `text_field` does, but with its secrets. It must not be stored.

    Raises:
      RejectedInput: ``reason``, where `text_field` rejects the field.
    """
    value = fields.get(name)
    if value is None:
        return ""
    if type(value) is str:
        if len(value) > limit:
            raise RejectedInput(reason, f"{where}{name}: {len(value)} characters, at most {limit}")
        if not is_clean(value):
            raise RejectedInput(reason, f"{where}{name}: holds an unprintable character")
        return value
    if type(value) is int and abs(value) < 1 << 63:
        return str(value)
    raise RejectedInput(reason, f"{where}{name}: want a text, not {kind_of(value)}")


def required_text_field(fields: Mapping[str, Any], name: str, where: str = "", limit: int = MAX_TEXT_CHARACTERS) -> str:
    """Return a text field as `text_field` does; reject it as ``missing_field`` where it is absent or empty."""
    value = text_field(fields, name, where, limit)
    if not value or value.isspace():
        raise RejectedInput("missing_field", f"{where}{name}")
    return value


def id_field(fields: Mapping[str, Any], name: str, where: str = "", reason: str = "bad_field") -> str:
    """Return an identifier as `text_field` does, but reject one that holds a secret.

    A redacted identifier could equal another one.

    Raises:
      RejectedInput: ``reason``.
    """
    value = fields.get(name)
    if type(value) is str and _PLAIN_ID.fullmatch(value):
        return value
    identifier = raw_text_field(fields, name, where, MAX_ID_CHARACTERS, reason)
    # Random letters and digits are not secret here: many systems choose such ids.
    if REDACTED in identifier or redact_text(identifier, guess=False) != identifier:
        raise RejectedInput(reason, f"{where}{name}: holds a user name, a password or a token")
    return "" if identifier.isspace() else identifier


def time_field(fields: Mapping[str, Any], name: str, where: str = "") -> int | None:
    """Return a time as epoch microseconds; None if it is absent or null. ISO 8601 with a zone, or epoch seconds.

    Raises:
      RejectedInput: ``bad_time``, for a time without a zone, of another type, or not within 2000 to 2099. So
        milliseconds are rejected.
    """
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is str:
        micros = _parse_iso_time(value, f"{where}{name}")
    elif type(value) is int or type(value) is float:
        # Tested before rounding, which NaN and infinity fail.
        if not EARLIEST_US <= value * 1_000_000 < LATEST_US:
            raise RejectedInput("bad_time", f"{where}{name}: {value!r:.80} is not epoch seconds of 2000 to 2099")
        micros = round(value * 1_000_000)
    else:
        raise RejectedInput("bad_time", f"{where}{name}: want ISO 8601 or epoch seconds, not {kind_of(value)}")
    if not EARLIEST_US <= micros < LATEST_US:
        raise RejectedInput("bad_time", f"{where}{name}: {shown(str(value))} is not within 2000 to 2099")
    return micros


def _parse_iso_time(text: str, field: str) -> int:
    """Return a time as epoch microseconds; ``field`` is the full name of its field, for errors."""
    # Python 3.9 and 3.10 do not read ``Z``; there, at least what `iso_time` writes is read.
    readable = text if sys.version_info >= (3, 11) else text.replace("Z", "+00:00")
    try:
        moment = datetime.fromisoformat(readable)
    except ValueError:
        raise RejectedInput("bad_time", f"{field}: {shown(text)} is not ISO 8601") from None
    if moment.tzinfo is None:
        raise RejectedInput("bad_time", f"{field}: {shown(text)} has no time zone")
    return (moment - _EPOCH) // _MICROSECOND


def iso_time(micros: int) -> str:
    """Format epoch microseconds as ISO 8601 in UTC, as short as is exact."""
    return (_EPOCH + timedelta(microseconds=micros)).isoformat().replace("+00:00", "Z")


def is_clean(text: str) -> bool:
    """Return whether a text holds only visible characters and spaces.

    It then has no control or format character (U+202E, U+200D), no lone surrogate, no line separator, and no
    private-use or unassigned character.
    """
    # Almost every text is printable, which is quick to test. Some printable-looking spaces (U+00A0) are not.
    return text.isprintable() or not any(unicodedata.category(character) in _UNSAFE for character in text)


def check_line(name: str, text: str) -> None:
    """Raise `CimlError` unless a text that a person gives is one printable line, and not empty."""
    if not text.strip() or len(text) > MAX_TEXT_CHARACTERS or not is_clean(text):
        raise CimlError(f"{name}: want one printable line of at most {MAX_TEXT_CHARACTERS} characters")


def is_proof(text: str) -> bool:
    """Return whether a text can name how a receiver proved a sender, such as ``hmac-sha256``."""
    return _PROOF.fullmatch(text) is not None


def kind_of(value: Any) -> str:
    """Name the JSON type of a value for messages; never the value itself, which may be huge or secret."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return "a whole number" if abs(value) < 1 << 63 else "a huge number"
    names = {float: "a number", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
