"""Lists of globs, compiled once: selections of jobs, and the facts that a trust rule matches."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from functools import lru_cache

from ciml.errors import CimlError


@lru_cache(maxsize=256)
def _compiled(globs: tuple[str, ...]) -> re.Pattern[str]:
    if not all(isinstance(glob, str) for glob in globs):
        raise TypeError
    if globs == ("all",):
        globs = ("*",)
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs) or r"(?!)")


def glob_pattern(globs: Iterable[str]) -> re.Pattern[str]:
    """Return one pattern for ``fullmatch``: it matches any of the globs (``*``, ``?``, ``[…]``), case-sensitive.

    ``all`` as the only glob means ``*``; no glob at all matches nothing.

    Raises:
      CimlError: a glob is not a text.
    """
    listed = tuple(globs)
    try:
        return _compiled(listed)
    except TypeError:
        raise CimlError(f"globs must be texts, got {listed!r:.120}") from None
