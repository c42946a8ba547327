"""The version of ciml and its commit, for the core, the recorder and the build, without the public API.

`import ciml` imports this module, and setup.py runs it separately. So it imports nothing of ciml, and it imports what
the commit needs inside functions.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__version__ = "0.3.0"

#: The file with the commit, which setup.py adds to wheels and sdists. A checkout does not have it.
COMMIT_FILE = "commit.txt"
_COMMIT = r"[0-9a-f]{40,64}(-dirty)?"
_TIMEOUT_S = 5.0


@cache
def commit() -> str | None:
    """Return the commit of this ciml: its hex digits, followed by ``-dirty`` if tracked files were changed.

    An installed ciml has it from its build. A checkout asks git, once per process, which takes about 10 ms.

    Returns:
      None if it is unknown: ciml was built outside of a checkout, or git is not installed or does not answer.
    """
    from pathlib import Path

    return stored_commit(Path(__file__).parent) or checkout_commit(Path(__file__).parents[1])


def import_root() -> Path:
    """Return the folder that ``ciml`` is imported from: a checkout, or the site-packages of an installation."""
    from pathlib import Path

    return Path(__file__).resolve().parents[1]


def stored_commit(package: Path) -> str | None:
    """Return the commit that a build stored in the folder of the package ``ciml``; None if it did not."""
    try:
        return _checked((package / COMMIT_FILE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def checkout_commit(root: Path) -> str | None:
    """Return the commit of a checkout, as `commit` does; None if git does not know it.

    Args:
      root: the top folder of the checkout. A folder inside of another repository has no commit of its own.
    """
    import os
    import subprocess

    if not (root / ".git").exists():
        return None
    # GIT_DIR and others, as git sets them for its hooks, would name another repository.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    words = ["git", "-C", str(root), "describe", "--always", "--abbrev=64", "--exclude=*", "--dirty"]
    try:
        result = subprocess.run(
            words, capture_output=True, text=True, timeout=_TIMEOUT_S, env=env, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return _checked(result.stdout)


def describe(version: str, commit_text: str | None) -> str:
    """Return version and commit for people: ``0.3.0 (e582e046d150)``; the version alone without a commit."""
    if commit_text is None:
        return version
    digits, _, dirty = commit_text.partition("-")
    return f"{version} ({digits[:12]}{', modified' if dirty else ''})"


def _checked(text: str) -> str | None:
    import re

    digits = text.strip()
    return digits if re.fullmatch(_COMMIT, digits) else None
