"""Lists of globs, compiled once: the selections of jobs, and what a trust rule asks of a fact."""

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
    """Return one pattern for ``fullmatch``: any of the globs (``*``, ``?``, ``[…]``) satisfies it; case counts.

    ``all`` as the only glob means ``*``; no glob at all matches nothing.

    Raises:
      CimlError: for a glob that is no text.
    """
    listed = tuple(globs)
    try:
        return _compiled(listed)
    except TypeError:
        raise CimlError(f"globs are texts: {listed!r:.120}") from None
