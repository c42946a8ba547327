"""Lists of globs, compiled once: selections of jobs, and the facts that a trust rule matches.

There are two kinds. In `glob_pattern`, ``*`` matches any text. In `PathGlobs` it stops at ``/``, as in the rules by
which GitHub protects branches, and ``**`` does not.

`linear_pattern` compiles regular expressions with possessive quantifiers on every Python that ciml supports.
"""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import AnyStr, NamedTuple

from ciml.errors import CimlError


def linear_pattern(pattern: AnyStr, flags: int = 0) -> re.Pattern[AnyStr]:
    """Compile a pattern with possessive quantifiers, which match in linear time.

    Python 3.9 and 3.10, on which only the recorder runs, do not have them. There they become greedy.
    """
    return re.compile(pattern if sys.version_info >= (3, 11) else greedy(pattern), flags)


def greedy(pattern: AnyStr) -> AnyStr:
    """Return a pattern with greedy quantifiers in place of its possessive ones."""
    if isinstance(pattern, bytes):
        return greedy(pattern.decode()).encode()
    return re.sub(r"(?<=[*+}?])\+", "", pattern)


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
    texts = tuple(globs)
    try:
        return _compiled(texts)
    except TypeError:
        raise CimlError(f"globs must be texts, got {texts!r:.120}") from None


class _Part(NamedTuple):
    """A part of a glob: one character, or any number of them.

    Attributes:
      repeats: whether it matches any number of characters.
      pattern: of one character.
    """

    repeats: bool
    pattern: re.Pattern[str]


class PathGlobs:
    """Globs in which ``*``, ``?`` and ``[…]`` never match ``/``; ``**`` matches any text. Case-sensitive.

    A match takes time that is linear in the text, for every glob: texts come from outside.

    Args:
      globs: texts; without any, nothing matches.
    """

    def __init__(self, globs: Iterable[str]) -> None:
        self._globs = tuple(tuple(map(_part, _pieces(glob))) for glob in globs)

    def fullmatch(self, text: str) -> bool:
        """Return whether one of the globs matches the whole text."""
        return any(_matches(parts, text) for parts in self._globs)


def crosses_slash(glob: str) -> bool:
    """Return whether a glob may match more as one of `glob_pattern` than as one of `PathGlobs`."""
    pieces = [piece for piece in _pieces(glob) if not piece.startswith("**")]
    return any(piece != "/" and re.match(fnmatch.translate(piece), "/") for piece in pieces)


def _pieces(glob: str) -> Iterator[str]:
    """Yield the wildcards and the single characters of a glob. A ``[`` that nothing closes is a character."""
    place = 0
    while place < len(glob):
        end = place + 1
        if glob[place] == "*":
            while glob.startswith("*", end):
                end += 1
        elif glob[place] == "[":
            end += glob.startswith("!", end)
            closing = glob.find("]", end + 1)  # the first character of a class may be ]
            end = closing + 1 if closing >= 0 else place + 1
        yield glob[place:end]
        place = end


def _part(piece: str) -> _Part:
    if piece.startswith("**"):
        return _Part(True, re.compile(r"(?s:.)"))
    if piece == "*":
        return _Part(True, re.compile(r"[^/]"))
    is_wildcard = len(piece) > 1 or piece == "?"
    return _Part(False, re.compile(f"(?!/){fnmatch.translate(piece)}" if is_wildcard else re.escape(piece)))


def _matches(parts: Sequence[_Part], text: str) -> bool:
    """Return whether a glob matches, by the set of all parts at which its match may stand."""
    places = _reached({0}, parts)
    for char in text:
        matching = [place for place in places if place < len(parts) and parts[place].pattern.match(char)]
        places = _reached({place if parts[place].repeats else place + 1 for place in matching}, parts)
        if not places:
            return False
    return len(parts) in places


def _reached(places: set[int], parts: Sequence[_Part]) -> set[int]:
    """Return the places, and those behind parts that may match nothing."""
    reached = set(places)
    for place in places:
        after = place
        while after < len(parts) and parts[after].repeats:
            after += 1
            reached.add(after)
    return reached
