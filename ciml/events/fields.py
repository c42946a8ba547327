"""Strict parsing of hostile JSON, and of its fields: each field is accepted in one form or rejected.

JSON is parsed in linear time and within limits, or rejected as ``broken_json``. The checks are hand-written, because
decoding is a hot path.
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

from ciml.errors import RejectedInput
from ciml.events.redaction import REDACTED, hides, is_secret_name, redact_text, redact_url, shown
from ciml.limits import (
    EARLIEST_US,
    LATEST_US,
    MAX_ID_CHARACTERS,
    MAX_JSON_DEPTH,
    MAX_JSON_DIGITS,
    MAX_LABEL_NAME_CHARACTERS,
    MAX_LABELS,
    MAX_MESSAGE_BYTES,
    MAX_TEXT_CHARACTERS,
)

_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_LONG = b"0" * 19  # may exceed 64 bits, which orjson turns into floats
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
# Control and format characters (bidi overrides, zero width), lone surrogates, private use, unassigned, line separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
#: Digits of numbers and UUIDs: no secret has this form or contains it.
_PLAIN_ID = re.compile(r"[0-9a-f][0-9a-f.-]{0,63}")
_PROOF = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
#: Most texts of events are short names that recur, so their redacted forms are cached up to this length.
_SHORT = 64


class _NotJson(ValueError):
    """An error that the strict decoder adds to JSON's own."""


def unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises `ValueError` if a key appears twice."""
    document = dict(pairs)
    if len(document) != len(pairs):
        repeated = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _NotJson(f"key {shown(repeated)} appears twice")
    return document


def _integer(text: str) -> int:
    if len(text) > MAX_JSON_DIGITS:
        raise _NotJson(f"a whole number has {len(text)} digits, at most {MAX_JSON_DIGITS}")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _NotJson(f"{text:.40} exceeds the range of a float")
    return value


def _constant(text: str) -> float:
    raise _NotJson(f"{text} is not JSON")


_decode: Callable[[str], Any] = json.JSONDecoder(
    object_pairs_hook=unique_object, parse_int=_integer, parse_float=_finite, parse_constant=_constant
).decode


def parse_json(data: bytes) -> Any:
    """Parse strict JSON: UTF-8, no NaN, no infinity, no duplicate key, nested no deeper than `MAX_JSON_DEPTH`.

    Raises:
      RejectedInput: ``broken_json``, or ``too_large`` for more than `MAX_MESSAGE_BYTES`.
    """
    _check_size(data, MAX_MESSAGE_BYTES)
    value = _quickly(data)
    if value is None:
        value = _strictly(data)
    # Most messages have too few brackets to be too deep; only the others are walked.
    if data.count(b"{") + data.count(b"[") > MAX_JSON_DEPTH:
        _check_depth(value)
    return value


def _quickly(data: bytes) -> Any:
    """Parse with orjson, in half the time, where the result certainly equals `_strictly`'s; else return None.

    orjson keeps only the last value of a duplicate key, so its output then has fewer colons than the input. Without a
    backslash, no colon of the input is escaped.
    """
    if b"\\" in data or _LONG in data.translate(_DIGITS):
        return None
    try:
        value = orjson.loads(data)
        encoded = orjson.dumps(value)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return None
    return value if encoded.count(b":") == data.count(b":") else None


def _strictly(data: bytes) -> Any:
    try:
        return _decode(data.decode())
    except RecursionError:
        raise RejectedInput("broken_json", f"nested deeper than {MAX_JSON_DEPTH}") from None
    except UnicodeDecodeError as error:
        raise RejectedInput("broken_json", f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise RejectedInput("broken_json", f"{error.msg} at character {error.pos}") from None
    except _NotJson as error:
        raise RejectedInput("broken_json", str(error)) from None


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


@lru_cache(maxsize=8192)
def _redacted(text: str) -> str | None:
    """Return a text without the secrets in it; None for one that is not clean."""
    return redact_text(text) if is_clean(text) else None


@lru_cache(maxsize=1024)
def _label_name(name: str) -> tuple[str, bool] | None:
    """Return a label's name without secrets, and whether its values may be secret; None for an invalid name."""
    if not name or len(name) > MAX_LABEL_NAME_CHARACTERS or not is_clean(name):
        return None
    return redact_text(name), is_secret_name(name)


def is_clean(text: str) -> bool:
    """Return whether a text holds only visible characters and spaces.

    It then has no control or format character (U+202E, U+200D), no lone surrogate, no line separator, and no
    private-use or unassigned character.
    """
    return text.isprintable() or not any(unicodedata.category(character) in _UNSAFE for character in text)


def is_proof(text: str) -> bool:
    """Return whether a text can name how a receiver proved a sender, such as ``hmac-sha256``."""
    return _PROOF.fullmatch(text) is not None


def text(
    fields: Mapping[str, Any],
    name: str,
    where: str = "",
    limit: int = MAX_TEXT_CHARACTERS,
    reason: str = "bad_field",
    keep_secrets: bool = False,
) -> str:
    """Return a text field; "" where it is absent or null.

    A whole number becomes its digits, because producers send change and build numbers so. Secrets are replaced unless
    ``keep_secrets`` is set.

    Raises:
      RejectedInput: ``reason``, for another type, a text that is too long or one that is not clean (`is_clean`).
    """
    value = fields.get(name)
    if value is None:
        return ""
    if type(value) is str:
        if len(value) <= _SHORT and not keep_secrets and (redacted := _redacted(value)) is not None:
            return redacted
        if len(value) <= limit and is_clean(value):
            return value if keep_secrets else redact_text(value)
        if len(value) > limit:
            raise RejectedInput(reason, f"{where}{name}: {len(value)} characters, at most {limit}")
        raise RejectedInput(reason, f"{where}{name}: holds an unprintable character")
    if type(value) is int and abs(value) < 1 << 63:
        return str(value)
    raise RejectedInput(reason, f"{where}{name}: want a text, not {kind_of(value)}")


def identifier(fields: Mapping[str, Any], name: str, where: str = "", reason: str = "bad_field") -> str:
    """Return an identifier: as `text`, but rejected where it holds a secret.

    A redacted identifier could equal another one.
    """
    value = fields.get(name)
    if type(value) is str and _PLAIN_ID.fullmatch(value):
        return value
    value = text(fields, name, where, MAX_ID_CHARACTERS, reason, keep_secrets=True)
    if REDACTED in value or redact_text(value, guess=False) != value:  # a random id is an id
        raise RejectedInput(reason, f"{where}{name}: holds a user name, a password or a token")
    return "" if value.isspace() else value


def needed_text(fields: Mapping[str, Any], name: str, where: str = "", limit: int = MAX_TEXT_CHARACTERS) -> str:
    """Return a text field as `text` does; reject it as ``missing_field`` where it is absent or empty."""
    value = text(fields, name, where, limit)
    if not value or value.isspace():
        raise RejectedInput("missing_field", f"{where}{name}")
    return value


def _from_iso(text: str) -> datetime:
    """Parse ISO 8601; on Python 3.9 and 3.10, which do not read ``Z``, at least what `iso_time` writes."""
    return datetime.fromisoformat(text if sys.version_info >= (3, 11) else text.replace("Z", "+00:00"))


def time_us(fields: Mapping[str, Any], name: str, where: str = "") -> int | None:
    """Return a time as epoch microseconds; None where it is absent or null. ISO 8601 with a zone, or epoch seconds.

    Raises:
      RejectedInput: ``bad_time``, for a time without a zone, before 2000 or after 2099 (milliseconds are), or of
        another type.
    """
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is str:
        try:
            moment = _from_iso(value)
        except ValueError:
            raise RejectedInput("bad_time", f"{where}{name}: {shown(value)} is not ISO 8601") from None
        if moment.tzinfo is None:
            raise RejectedInput("bad_time", f"{where}{name}: {shown(value)} has no time zone")
        micros = (moment - _EPOCH) // _MICROSECOND
    elif type(value) is int or type(value) is float:
        if not EARLIEST_US <= value * 1_000_000 < LATEST_US:
            raise RejectedInput("bad_time", f"{where}{name}: {value!r:.80} is not epoch seconds of 2000 to 2099")
        micros = round(value * 1_000_000)
    else:
        raise RejectedInput("bad_time", f"{where}{name}: want ISO 8601 or epoch seconds, not {kind_of(value)}")
    if not EARLIEST_US <= micros < LATEST_US:
        raise RejectedInput("bad_time", f"{where}{name}: {shown(str(value))} is not within 2000 to 2099")
    return micros


def iso_time(micros: int) -> str:
    """Format epoch microseconds as ISO 8601 in UTC, as short as is exact."""
    return (_EPOCH + timedelta(microseconds=micros)).isoformat().replace("+00:00", "Z")


def label_text(value: Any) -> str | None:
    """Return a scalar as a label's text (true, false and numbers as in JSON), or None for anything else."""
    if type(value) is str:
        if len(value) > MAX_TEXT_CHARACTERS or not is_clean(value):
            return None
        return redact_url(value) if "//" in value else redact_text(value)
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is int and abs(value) < 1 << 63:
        return str(value)
    return repr(value) if type(value) is float and math.isfinite(value) else None


_short_label = lru_cache(maxsize=8192)(label_text)


def labels(value: Any, where: str = "") -> dict[str, str]:
    """Return the labels of a run: at most `MAX_LABELS` scalars under clean names; nulls are left out.

    Raises:
      RejectedInput: ``bad_field``.
    """
    if value is None:
        return {}
    if type(value) is not dict:
        raise RejectedInput("bad_field", f"{where}labels: want an object, not {kind_of(value)}")
    if len(value) > MAX_LABELS:
        raise RejectedInput("bad_field", f"{where}labels: {len(value)} labels, at most {MAX_LABELS}")
    texts: dict[str, str] = {}
    for name, item in value.items():
        named = _label_name(name)
        if named is None:
            raise RejectedInput("bad_field", f"{where}labels: the name {shown(name)} is empty, too long or not clean")
        name, secret = named
        if secret and type(item) in (str, int, float) and item and hides(name, item):
            texts[name] = REDACTED
            continue
        if type(item) is str and len(item) <= _SHORT and (text_of_item := _short_label(item)) is not None:
            texts[name] = text_of_item  # the common case
            continue
        if item is None:
            continue
        label = label_text(item)
        if label is None:
            raise RejectedInput(
                "bad_field", f"{where}labels.{name}: want a short printable text or a number, got {kind_of(item)}"
            )
        texts[name] = label
    return texts


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
