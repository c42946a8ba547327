"""Files that people write: read from TOML, checked by pydantic, and wrong in one clear line."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

# Else pydantic looks through all that is installed for plugins, at every start, and runs what it finds.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from ciml.digest import sha256_json
from ciml.errors import CimlError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def check_name(name: str, *, most: int = 100) -> str:
    """A name that is safe in a path, of ``most`` letters. Raises `ValueError`, as validators do."""
    if len(name) > most or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r:.120} is no name: want letters, digits, dashes, dots, underscores")
    return name


#: A name that is safe in a path.
Name = Annotated[str, AfterValidator(check_name)]


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
      CimlError: one line that names the file.
    """
    try:
        return parse_toml(Path(path).read_text(encoding="utf-8"), os.fspath(path))
    except OSError as error:
        raise CimlError(f"{os.fspath(path)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CimlError(f"{os.fspath(path)} is not TOML: it is not UTF-8 at byte {error.start}") from None


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """What a TOML text holds. Raises `CimlError`, one line that begins with ``where``."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CimlError(f"{where} is not TOML: {error}") from None


class Settings(BaseModel):
    """A frozen set of keys. An unknown key is an error.

    Attributes:
      what: what it is called in an error that no file is named in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    what: ClassVar[str] = "settings"

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "") -> Self:
        """What a mapping describes. Raises `CimlError`, one line, for the first thing that is wrong."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise CimlError(f"{where or cls.what}: {_first_line(error)}") from None

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> Self:
        """What a TOML file describes, with keys that take precedence over the file's.

        Raises:
          CimlError: one line that names the file and the key.
        """
        return cls.from_json({**read_toml(path), **overrides}, where=str(path))

    def to_toml(self) -> str:
        """The file that `load` reads the same from: a line a key, without those that say nothing."""
        return "".join(f"{key} = {_toml(value)}\n" for key, value in self.to_json().items() if value is not None)

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of all that it says."""
        return sha256_json(self.to_json())


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # TOML's basic strings are JSON's, but for surrogates that are escaped and a DEL that is not.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _first_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{place}: no such key"
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
