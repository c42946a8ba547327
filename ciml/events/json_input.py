"""Parsing of hostile JSON, in linear time and within limits.

`parse_json` is strict. `parse_numbers` is for messages that are mostly numbers. Both reject other data as
``broken_json``.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson

from ciml.errors import RejectedInput
from ciml.events.redaction import shown
from ciml.limits import MAX_JSON_DEPTH, MAX_JSON_DIGITS, MAX_MESSAGE_BYTES


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
