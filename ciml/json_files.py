"""Small JSON files that are replaced atomically, such as the state of local engines and services."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ciml.errors import CimlError


def read_json(path: Path, remedy: str = "remove it", error: type[CimlError] = CimlError) -> dict[str, Any] | None:
    """Return an object written by `write_json`, or None if the file does not exist.

    Raises:
      CimlError: if the file holds no JSON object: of the class ``error``, with a ``remedy``.
    """
    try:
        return dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as damage:
        raise error(f"{path} is unreadable ({damage}); {remedy}") from damage


def write_json(path: Path, value: dict[str, Any], mode: int = 0o644) -> None:
    """Replace a file atomically."""
    import tempfile  # most commands only read

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, staged = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as out:
            json.dump(value, out, indent=2)
            out.write("\n")
        os.chmod(staged, mode)
        os.replace(staged, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(staged)
        raise
