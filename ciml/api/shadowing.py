"""Finds a file of the user's that hides one of ciml's packages."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from ciml.errors import CimlError

#: The packages that the API imports. They have plain names, as a script beside the user's own may have.
PACKAGES = ("transforms", "training", "serving", "pipelines")


def check_packages() -> None:
    """Raise `CimlError`, naming the file, if Python finds another module under the name of one of `PACKAGES`.

    The file is not run: a script ``training.py`` would train.
    """
    home = os.path.realpath(Path(__file__).parents[2])
    for name in PACKAGES:
        found = _file_of(name)
        if found and os.path.realpath(found) != os.path.join(home, name, "__init__.py"):
            raise CimlError(
                f"{found} hides ciml's package {name!r}: Python finds it first; rename it, or move your script"
            )


def _file_of(name: str) -> str | None:
    """Return the file of a module that is loaded, or that an import would load; None without a file."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None)
    spec = find_spec(name)
    return spec.origin if spec is not None else None
