"""Settings that users write: TOML files and options, checked by msgspec, with one clear line for each error.

`Settings` is the base of their classes. The functions below it read TOML, and check values in ``__post_init__``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from ciml.digest import sha256_json
from ciml.errors import CimlError, InvalidSettingError
from ciml.limits import MAX_SOURCES

if TYPE_CHECKING:
    from typing import Self

Kind = TypeVar("Kind", bound="Settings")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
#: Units of times, s.
UNITS_S = {"ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(rf"(\d+(?:\.\d+)?)({'|'.join(UNITS_S)})?")
#: A message of msgspec, which ends with the place of the error: ``$.hidden_layers[1]``.
_MESSAGE = re.compile(r"(?P<message>.*) - at `(?:key` in `)?\$(?P<path>[^`]*)`", re.DOTALL)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """A frozen set of keys. Unknown keys are errors, and values are never converted to another type.

    Subclasses declare the keys as fields. Their ``__post_init__`` checks what types cannot express, and raises
    `ValueError`.

    Attributes:
      title: name of the settings in errors without a file.
      lists: keys of lists, for which one text is a list of one.
    """

    title: ClassVar[str] = "settings"
    lists: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> Self:
        """Load a TOML file; ``overrides`` take precedence over its keys.

        Raises:
          CimlError: one line that names the file and the key.
        """
        return cls.from_json({**read_toml(path), **overrides}, where=str(path))

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "") -> Self:
        """Validate a mapping. Raises `CimlError`: one line, for the first error."""
        try:
            return msgspec.convert(cls.written(value) if isinstance(value, Mapping) else value, cls)
        except msgspec.ValidationError as error:
            raise InvalidSettingError(f"{where or cls.title}: {validation_line(error, cls)}") from None

    @classmethod
    def written(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        """Expand the short forms in a mapping."""
        return {**value, **{key: [value[key]] for key in cls.lists if type(value.get(key)) is str}}

    def to_json(self) -> dict[str, Any]:
        """Return all keys as JSON values: lists, no tuples."""
        return {key: _plain(value) for key, value in msgspec.to_builtins(self).items()}

    def replace(self, **changes: Any) -> Self:
        """Return a copy with these keys changed."""
        return msgspec.structs.replace(self, **changes)

    def to_toml(self) -> str:
        """Return the TOML that `load` reads back: one line per key, without null keys."""
        return "".join(f"{key} = {_toml(value)}\n" for key, value in self.to_json().items() if value is not None)

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of all keys."""
        return sha256_json(self.to_json())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # TOML's basic strings equal JSON's, except for escaped surrogates and an unescaped DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def validation_line(error: msgspec.ValidationError, kind: type) -> str:
    """Format a validation error for people: ``hidden_layers.1: expected int, got str``.

    Args:
      error: raised by msgspec.
      kind: the class that the value was validated against.
    """
    message = str(error)
    path: list[str] = []
    if match := _MESSAGE.fullmatch(message):
        message = match["message"]
        path = re.findall(r"[A-Za-z0-9_]+", match["path"])
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", message, re.DOTALL):
        message = f"unknown key{_similar_keys(match[1], kind, path)}"
        path.append(" ".join(match[1].split())[:80])
    elif match := re.fullmatch(r"Object missing required field `(.*)`", message):
        path.append(match[1])
        message = "is missing"
    elif match := re.fullmatch(r"Invalid enum value (.*)", message, re.DOTALL):
        message = f"{match[1]:.80} is unknown; choose from {', '.join(_choices(kind, path))}"
    elif error.__cause__ is None:  # a message of msgspec, not of ``__post_init__``
        message = message.replace("`", "").replace("Expected ", "expected ", 1)
    return f"{'.'.join(path)}: {message}" if path else message


def _similar_keys(key: str, kind: Any, path: list[str]) -> str:
    """Return a question that names the keys similar to an unknown one; without any, all keys at its place."""
    from difflib import get_close_matches

    for part in path:
        kind = get_type_hints(_structure(kind)).get(part, kind)  # the number of an item is no key
    keys = getattr(_structure(kind), "__struct_encode_fields__", ())
    similar = get_close_matches(key, keys)
    if similar:
        return f"; did you mean {' or '.join(similar)}?"
    return f"; choose from {', '.join(keys)}" if keys else ""


def _structure(kind: Any) -> Any:
    """Return the structure that a type is or has as an argument; None without one."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next(filter(None, map(_structure, get_args(kind))), None)


def _choices(kind: Any, path: list[str]) -> list[str]:
    """Return the allowed values of the key at a path, which has a Literal type, perhaps within a list or a union."""
    for part in path:
        if isinstance(kind, type) and issubclass(kind, Settings):
            kind = get_type_hints(kind)[part]
    while kind is not None and get_origin(kind) is not Literal:
        kind = next((argument for argument in get_args(kind) if get_args(argument)), None)
    return [str(value) for value in get_args(kind)]


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
      CimlError: one line that names the file.
    """
    try:
        return parse_toml(Path(path).read_text(encoding="utf-8"), os.fspath(path))
    except OSError as error:
        raise InvalidSettingError(f"{os.fspath(path)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidSettingError(f"{os.fspath(path)} is not TOML: byte {error.start} is not UTF-8") from None


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Parse a TOML text. Raises `CimlError`: one line that begins with ``where``."""
    import tomllib  # Python 3.11; the recorder reads no TOML

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidSettingError(f"{where} is not TOML: {error}") from None


def pop_tables(
    value: dict[str, Any], key: str, selector: str, kinds: Mapping[str, type[Kind]], path: str | os.PathLike[str]
) -> tuple[Kind, ...]:
    """Remove the tables ``[[key]]`` of a configuration, and return the settings of each.

    Args:
      value: the configuration.
      key: name of the tables.
      selector: the key of a table that names its class, such as ``kind``.
      kinds: the classes by their values of ``selector``.
      path: path of the file, for messages.

    Raises:
      CimlError: one line that names the file, the table, the key, and what to choose from.
    """
    tables = value.pop(key, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InvalidSettingError(f"{path}: {key}: expected tables, [[{key}]]")
    if len(tables) > MAX_SOURCES:
        raise InvalidSettingError(f"{path}: {len(tables)} {key}s, at most {MAX_SOURCES} (MAX_SOURCES)")
    settings = []
    for number, table in enumerate(tables, 1):
        name = table.get("name")
        where = f"{path}, {key} {name if isinstance(name, str) else number!s:.80}"
        kind = table.pop(selector, None)
        if not isinstance(kind, str) or kind not in kinds:
            problem = "is missing" if kind is None else f"{kind!r:.80} is unknown"
            raise InvalidSettingError(f"{where}: {selector}: {problem}; choose from {', '.join(kinds)}")
        settings.append(kinds[kind].from_json(table, where))
    return tuple(settings)


def check_name(name: str, *, most: int = 100) -> None:
    """Raise `ValueError` if a name is not safe in a path, or longer than ``most`` characters."""
    if len(name) > most or not _NAME.fullmatch(name):
        raise ValueError(f"name: {name!r:.120} is not valid; use letters, digits, dashes, dots, underscores")


def check_range(key: str, value: float, least: float, most: float) -> None:
    """Raise `ValueError` if a number is not within its limits; NaN, which TOML has, never is."""
    if not least <= value <= most:
        raise ValueError(f"{key}: {value} is not between {least} and {most}")


def seconds_of(text: str) -> float:
    """Return a time such as ``500ms``, ``10s``, ``5min`` or ``2h`` in seconds. Raises `ValueError` for another text."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"invalid time {text!r:.80}; give a number with ms, s, min, h or d, such as 10s")
    return float(match[1]) * UNITS_S[match[2] or "s"]


@contextmanager
def as_value_error(prefix: str = "") -> Iterator[None]:
    """Turn a `CimlError` of the block into a `ValueError`, as ``__post_init__`` must raise.

    Args:
      prefix: the beginning of its message, such as ``slicer: ``.
    """
    try:
        yield
    except CimlError as error:
        raise ValueError(f"{prefix}{error}") from None


def pairs(option: str, texts: Iterable[str]) -> list[tuple[str, str]]:
    """Parse options of the form NAME=VALUE. The name of a ``--source`` may contain ``=``.

    Raises:
      CimlError: a text is not NAME=VALUE.
    """
    parsed = []
    for text in texts:
        name, sign, value = text.rpartition("=") if option == "--source" else text.partition("=")
        if not sign or not name:
            raise CimlError(f"{option} {name or text}: want NAME=VALUE")
        parsed.append((name, value))
    return parsed
