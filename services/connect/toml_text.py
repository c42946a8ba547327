"""Further keys, items and tables in a TOML text, which keeps its comments. Each result is parsed and compared."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from ciml.errors import CimlError


def table(header: str, keys: Mapping[str, Any]) -> str:
    """Return a table as TOML; its values are texts, numbers, flags and lists of texts.

    Raises:
      CimlError: a text has a character that TOML cannot hold.
    """
    return f"{header}\n" + "".join(f"{key} = {_value(key, value)}\n" for key, value in keys.items())


def _value(key: str, value: Any) -> str:
    """Return a value as TOML, which permits neither DEL nor half of a character, as JSON does."""
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    try:
        text.encode()
        tomllib.loads(f"x = {text}")
    except ValueError:
        raise CimlError(f"{key}: {value!r:.120} cannot be written; use another name") from None
    return text


def with_table(text: str, header: str, keys: Mapping[str, Any]) -> str:
    """Return the text with a further table at its end."""
    return f"{text.rstrip()}\n\n{table(header, keys)}".lstrip("\n")


def without_blocks(text: str, header: str, keys: Mapping[str, Any]) -> str:
    """Return the text without the tables ``header`` that have these keys and values."""
    blocks = re.split(r"(?m)^(?=\[)", text)
    kept = [block for block in blocks if not (block.startswith(header) and _has(block, keys))]
    return "".join(kept)


def _has(block: str, keys: Mapping[str, Any]) -> bool:
    try:
        (found,) = tomllib.loads(block).values()
    except ValueError:
        return False
    found = found[0] if isinstance(found, list) else found
    return all(found.get(key) == value for key, value in keys.items())


def with_items(text: str, key: str, items: Sequence[str], where: str) -> str:
    """Return the text with further items in a list at its top level, which is made where it is missing.

    Args:
      text: TOML.
      key: of the list.
      items: those that the list has already are left out.
      where: the file, for messages.

    Raises:
      CimlError: the list cannot be found in the text; one line that says what to add by hand.
    """
    before = tomllib.loads(text)
    present = before.get(key, [])
    new = [item for item in items if item not in present]
    if not new:
        return text
    listed = ", ".join(_value(key, item) for item in new)
    if key in before:
        changed = re.sub(
            rf"(?m)^({key}\s*=\s*\[)", lambda found: f"{found[1]}{listed}{', ' if present else ''}", text, count=1
        )
    else:
        changed = _on_top(text, f"{key} = [{listed}]\n")
    try:
        same = tomllib.loads(changed) == {**before, key: [*new, *present]}
    except ValueError:
        same = False
    if not same:
        raise CimlError(f"{where}: {key}: cannot be extended by ciml; add {listed} by hand")
    return changed


def with_key(text: str, key: str, value: str | int, where: str) -> str:
    """Return the text with a key at its top level. Raises `CimlError` if it has another value."""
    before = tomllib.loads(text).get(key)
    if before not in (None, value):
        raise CimlError(f"{where}: {key} is {before!r} already; remove it, or add the content of {value} to that file")
    return text if before == value else _on_top(text, f"{key} = {_value(key, value)}\n")


def _on_top(text: str, line: str) -> str:
    """Return the text with a line after its first comment: before all tables, so it is a key of the top level."""
    comment = re.match(r"(?:#.*\n|\n)*", text)
    at = comment.end() if comment else 0
    return f"{text[:at]}{line}{text[at:]}"
