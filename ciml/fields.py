"""Fields of hostile JSON, each taken in its one right form or refused. Hand-written, because decode is a hot path."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from ciml.errors import Refused
from ciml.redact import redact_url

MAX_TEXT = 1024
MAX_DEPTH = 32
MAX_LABELS = 64
MAX_LABEL_NAME = 128
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_EARLIEST_S = 946_684_800  # 2000-01-01: an earlier or later time is another unit or a broken clock
_LATEST_S = 4_102_444_800  # 2100-01-01
_UNSAFE = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, lone surrogates, line and paragraph separators


class _NotJson(ValueError):
    """What the strict decoder adds to JSON's own errors."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _NotJson(f"the key {twice!r:.80} stands twice")
    return made


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _NotJson(f"{text:.40} is beyond any number")
    return value


def _constant(text: str) -> float:
    raise _NotJson(f"{text} is not JSON")


_decode: Callable[[str], Any] = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_finite, parse_constant=_constant
).decode


def parse_json(data: bytes) -> Any:
    """Strict JSON: UTF-8, no NaN, no infinity, no key twice in an object, no deeper than `MAX_DEPTH`.

    Raises:
      Refused: ``broken_json``.
    """
    try:
        value = _decode(data.decode())
    except RecursionError:
        raise Refused("broken_json", f"nested deeper than {MAX_DEPTH}") from None
    except UnicodeDecodeError as error:
        raise Refused("broken_json", f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise Refused("broken_json", f"{error.msg} at character {error.pos}") from None
    except ValueError as error:  # also a whole number of more than 4,300 digits
        raise Refused("broken_json", f"{error!s:.160}") from None
    # Most messages have too few brackets to be too deep; the walk is for the others.
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH:
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [item for item in level if type(item) is dict or type(item) is list]
        if not level:
            return
        level = [inner for item in level for inner in (item.values() if type(item) is dict else item)]
    raise Refused("broken_json", f"nested deeper than {MAX_DEPTH}")


def is_clean(text: str) -> bool:
    """Whether a text holds no control character, lone surrogate or line separator."""
    return text.isprintable() or not any(unicodedata.category(letter) in _UNSAFE for letter in text)


def text(
    fields: Mapping[str, Any], name: str, where: str = "", limit: int = MAX_TEXT, reason: str = "bad_field"
) -> str:
    """A text field; absent and null are "". A whole number is taken as its digits: change and build numbers come so.

    Raises:
      Refused: ``reason``, for another type, a text that is too long or one that is not clean (`is_clean`).
    """
    value = fields.get(name)
    if value is None:
        return ""
    if type(value) is str:
        if len(value) <= limit and (value.isprintable() or is_clean(value)):
            return value
        if len(value) > limit:
            raise Refused(reason, f"{where}{name}: {len(value)} characters, at most {limit}")
        raise Refused(reason, f"{where}{name}: holds a control character or a lone surrogate")
    if type(value) is int and abs(value) < 1 << 63:
        return str(value)
    raise Refused(reason, f"{where}{name}: want a text, not {kind_of(value)}")


def needed_text(fields: Mapping[str, Any], name: str, where: str = "", limit: int = MAX_TEXT) -> str:
    """Like `text`, but refused as ``missing_field`` where it is absent or empty."""
    value = text(fields, name, where, limit)
    if not value or value.isspace():
        raise Refused("missing_field", f"{where}{name}")
    return value


def time_us(fields: Mapping[str, Any], name: str, where: str = "") -> int | None:
    """A time as epoch microseconds: ISO 8601 with a zone, or epoch seconds as a number; absent and null are None.

    Raises:
      Refused: ``bad_time``, for a time without a zone, one before 2000 or after 2099 (as milliseconds would be), or
        anything else.
    """
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is str:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise Refused("bad_time", f"{where}{name}: {value!r:.80} is not ISO 8601") from None
        if moment.tzinfo is None:
            raise Refused("bad_time", f"{where}{name}: {value!r:.80} has no zone")
        micros = (moment - _EPOCH) // _MICROSECOND
    elif type(value) is int or type(value) is float:
        if not _EARLIEST_S <= value < _LATEST_S:
            raise Refused("bad_time", f"{where}{name}: {value!r:.80} is not epoch seconds of 2000 to 2099")
        micros = round(value * 1_000_000)
    else:
        raise Refused("bad_time", f"{where}{name}: want ISO 8601 or epoch seconds, not {kind_of(value)}")
    if not _EARLIEST_S * 1_000_000 <= micros < _LATEST_S * 1_000_000:
        raise Refused("bad_time", f"{where}{name}: {value!r:.80} is not within 2000 to 2099")
    return micros


def iso_time(micros: int) -> str:
    """Epoch microseconds as ISO 8601 in UTC, as short as is exact."""
    return (_EPOCH + timedelta(microseconds=micros)).isoformat().replace("+00:00", "Z")


def label_text(value: Any) -> str | None:
    """A scalar as a label's text (true, false and numbers as in JSON), or None for anything else."""
    if type(value) is str:
        if len(value) > MAX_TEXT or not is_clean(value):
            return None
        return redact_url(value) if "//" in value else value
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is int and abs(value) < 1 << 63:
        return str(value)
    return repr(value) if type(value) is float and math.isfinite(value) else None


def labels(value: Any, where: str = "") -> dict[str, str]:
    """The labels of a run: at most `MAX_LABELS` scalars under clean names; those that are null are left out.

    Raises:
      Refused: ``bad_field``.
    """
    if value is None:
        return {}
    if type(value) is not dict:
        raise Refused("bad_field", f"{where}labels: want an object, not {kind_of(value)}")
    if len(value) > MAX_LABELS:
        raise Refused("bad_field", f"{where}labels: {len(value)} of them, at most {MAX_LABELS}")
    taken: dict[str, str] = {}
    for name, item in value.items():
        if not name or len(name) > MAX_LABEL_NAME or not is_clean(name):
            raise Refused("bad_field", f"{where}labels: the name {name!r:.80} is empty, too long or not clean")
        if type(item) is str and len(item) <= MAX_TEXT and item.isprintable() and "//" not in item:
            taken[name] = item  # nearly all of them
            continue
        if item is None:
            continue
        taken_text = label_text(item)
        if taken_text is None:
            raise Refused("bad_field", f"{where}labels.{name}: want a short text or a number, not {kind_of(item)}")
        taken[name] = taken_text
    return taken


def kind_of(value: Any) -> str:
    """What JSON calls a value, for messages; never the value itself, which may be huge or secret."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return "a whole number" if abs(value) < 1 << 63 else "a huge number"
    names = {float: "a number", str: "such a text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
