"""Small JSON files that are replaced atomically, such as the state of local engines and services."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ciml.errors import CimlError
from ciml.storage.json_seal import read_object, seal


def read_json(path: Path, remedy: str = "remove it", error: type[CimlError] = CimlError) -> dict[str, Any] | None:
    """Return an object written by `write_json`, or None if the file does not exist.

    Raises:
      CimlError: if the file holds no JSON object: of the class ``error``, with a ``remedy``.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return read_object(data, str(path), remedy, error)


def write_json(path: Path, value: dict[str, Any], mode: int = 0o644) -> None:
    """Replace a file atomically; it carries a digest of its bytes."""
    import tempfile  # most commands only read

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, staged = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(seal(json.dumps(value, indent=2).encode()))
        os.chmod(staged, mode)
        os.replace(staged, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(staged)
        raise
