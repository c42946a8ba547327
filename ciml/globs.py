"""Patterns of texts: globs, which select jobs or match the facts of a trust rule, and regular expressions.

There are two kinds of globs. In `glob_pattern`, ``*`` matches any text. In `PathGlobs` it stops at ``/``, as in the
rules by which GitHub protects branches, and ``**`` does not. `linear_pattern` compiles regular expressions whose
possessive quantifiers make them match in linear time; on Python 3.9 and 3.10 these become greedy.
"""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import AnyStr, NamedTuple

from ciml.errors import CimlError


def glob_pattern(globs: Iterable[str]) -> re.Pattern[str]:
    """Return one pattern for ``fullmatch``: it matches any of the globs (``*``, ``?``, ``[…]``), case-sensitive.

    ``all`` as the only glob means ``*``; no glob at all matches nothing.

    Raises:
      CimlError: a glob is not a text.
    """
    texts = tuple(globs)
    if not all(isinstance(glob, str) for glob in texts):
        raise CimlError(f"globs must be texts, got {texts!r:.120}")
    return _compile(texts)


def matches_any(globs: Iterable[str], text: str) -> bool:
    """Return whether a whole text matches one of the globs of a `glob_pattern`."""
    return glob_pattern(globs).fullmatch(text) is not None


@lru_cache(maxsize=256)
def _compile(globs: tuple[str, ...]) -> re.Pattern[str]:
    if globs == ("all",):
        globs = ("*",)
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs) or r"(?!)")


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
    """Return whether a glob may match more in `glob_pattern` than in `PathGlobs`."""
    pieces = [piece for piece in _pieces(glob) if not piece.startswith("**")]
    return any(piece != "/" and re.match(fnmatch.translate(piece), "/") for piece in pieces)


def _pieces(glob: str) -> Iterator[str]:
    """Yield the wildcards and the single characters of a glob. A ``[`` that nothing closes is a character."""
    start = 0
    while start < len(glob):
        end = start + 1
        if glob[start] == "*":
            while glob.startswith("*", end):
                end += 1
        elif glob[start] == "[":
            end += glob.startswith("!", end)
            closing = glob.find("]", end + 1)  # the first character of a class may be ]
            end = closing + 1 if closing >= 0 else start + 1
        yield glob[start:end]
        start = end


class _Part(NamedTuple):
    """A part of a glob: one character, or any number of them.

    Attributes:
      repeats: whether it matches any number of characters.
      pattern: of one character.
    """

    repeats: bool
    pattern: re.Pattern[str]


def _part(piece: str) -> _Part:
    if piece.startswith("**"):
        return _Part(True, re.compile(r"(?s:.)"))
    if piece == "*":
        return _Part(True, re.compile(r"[^/]"))
    is_wildcard = len(piece) > 1 or piece == "?"
    return _Part(False, re.compile(f"(?!/){fnmatch.translate(piece)}" if is_wildcard else re.escape(piece)))


def _matches(parts: Sequence[_Part], text: str) -> bool:
    """Return whether the parts of a glob match a text.

    The glob is a state machine whose states are the indices of the part that matches next. All states that the text so
    far can lead to are followed together, so nothing is tried again.
    """
    states = _with_skipped_repeats({0}, parts)
    for char in text:
        matching = [state for state in states if state < len(parts) and parts[state].pattern.match(char)]
        states = _with_skipped_repeats({state if parts[state].repeats else state + 1 for state in matching}, parts)
        if not states:
            return False
    return len(parts) in states


def _with_skipped_repeats(states: set[int], parts: Sequence[_Part]) -> set[int]:
    """Add the states behind each part that repeats: it may match nothing."""
    states_and_later = set(states)
    for state in states:
        while state < len(parts) and parts[state].repeats:
            state += 1
            states_and_later.add(state)
    return states_and_later


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
