"""Redact the secrets of many lines, each as `ciml.events.redaction.redact_text` does.

That function takes ten to a hundred microseconds for a line, and few lines have a secret. So regular expressions of RE2
first find the lines that may have one. They match in more places than those of `redact_text`, and never in fewer:
what they cannot decide is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ciml.events.redaction import ISSUED_TOKEN, TOKEN_SHAPE, redact_text, without_random_words
from ciml.transforms.logs.text_arrays import flags_of, sizes_of, strings

#: What is a space, a letter or a digit to Python. To RE2 these are of ASCII.
_SPACE = r"[\s\x{0b}\x{1c}-\x{1f}\x{85}\p{Z}]"
_LETTERS = r"A-Za-z0-9_\x{80}-\x{10ffff}"
_DIGIT = r"[0-9\x{80}-\x{10ffff}]"

#: Words within the names of secrets, and what ends a name.
_WORDS = (
    r"token|secret|passw|passphrase|apikey|credential|signature|pwd|passcode|passkey|authorization|cookie|jwt|bearer"
    r"|auth|sig|otp|psk|hmac|saml|assertion|data_base64|access[^A-Za-z0-9]?id"
    r"|(?:api|access|private|secret|sas|ssh|signing|encryption|account|shared|deploy|master|storage|session)"
    r"[^A-Za-z0-9]?key"
)
_NAME = r"[A-Za-z0-9_.\-%\[\]]"
_SIGN = rf"[\"'\\]{{0,4}}{_SPACE}{{0,8}}[=:]"
#: Longest name of a secret that is checked; the value of a longer one is always redacted.
_LONG_NAME = 512
_WITH_LONG_NAME = rf"{_NAME}{{{_LONG_NAME // 2}}}{_SIGN}"
#: The least characters of the words that the patterns of tokens search, which bound the states of RE2's automaton.
_SHORT = 8
_LONGER = 16


def _as_re2(pattern: str, least: int) -> str:
    """Return a pattern of Python in RE2's language: it matches wherever that does, and in more places.

    Args:
      pattern: with possessive quantifiers, bounds of words, and conditions on what is before it.
      least: larger numbers of repetitions become this one or more.
    """
    pattern = re.sub(r"(?<=[*+}?])\+", "", pattern)
    pattern = re.sub(r"\(\?<[!=][^)]*\)|\\b", "", pattern)
    pattern = re.sub(r"\{(\d+),?\d*\}", lambda match: match[0] if int(match[1]) <= least else f"{{{least},}}", pattern)
    pattern = re.sub(r"(?<=_)\\w(?=\{)", r"[\\w]", pattern)
    return pattern.replace(r"\w", _LETTERS).replace(r"\d", _DIGIT)


#: The layers of escaped characters that are removed here; lines with more are left to `redact_text`.
_ESCAPED_LAYERS = 2
#: What marks a line whose secret `redact_text` may find by a name, a place or an encoding.
_MARKED = "|".join(
    (
        rf"(?i:(?:{_WORDS}){_NAME}*{_SIGN})",
        rf"(?i:pass\d{{0,3}}{_SIGN})",
        rf"(?i:[?&;#](?:key|code|sid|session[_-]?(?:id)?|ticket|hdnts|hdntl|hdnea){_SIGN})",
        rf"(?i:(?:^|[^A-Za-z0-9_-])--?(?:[A-Za-z][{_LETTERS}-]*)?"
        rf"(?:(?:{_WORDS})[{_LETTERS}-]*|pass{_DIGIT}{{0,3}})[ \t])",
        rf"(?i:(?:bearer|basic){_SPACE}{{1,8}}[A-Za-z0-9._~+/=-]{{8}})",
        r"(?s://.*@)",
        r"//[^/?#\s:@\"'<>\[\]]*:(?:[^0-9/]|\d{1,5}[^0-9/?#]|\d{6})",
        r"%[0-9A-Fa-f]{2}|\\(?:u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2})|\x{00}"
        r"|&(?:#|amp|quot|apos|equals|commat|sol|colon|percnt|num)",
    )
)
_ESCAPED = r"(?s:\\(.))"
_SHAPE = _as_re2(TOKEN_SHAPE.pattern, _SHORT)
#: Issued tokens are in lines with a long word only.
_LONG_WORD = rf"[{_LETTERS}-]{{{_LONGER}}}"
_ISSUED = _as_re2(ISSUED_TOKEN.pattern, _LONGER)
#: Runs of letters and digits that may look random: a long one with a capital, or a shorter one, with a capital and a
#: digit, next to a prefix or a suffix. Each has two patterns, because one would need thousands of states.
_CAPITAL_AND_DIGIT = r"(?:[A-Z][A-Za-z0-9]*[0-9]|[0-9][A-Za-z0-9]*[A-Z])"
_RANDOM = (
    (r"[A-Z][A-Za-z0-9]{12}|[A-Za-z0-9]{12}[A-Z]", r"[A-Za-z0-9]{24}"),
    (r"[A-Za-z0-9][_.~-][A-Za-z0-9]{12}", rf"[A-Za-z0-9][_.~-][A-Za-z0-9]*{_CAPITAL_AND_DIGIT}"),
    (r"[A-Za-z0-9]{12}[.~][A-Za-z0-9_-]{16}", rf"{_CAPITAL_AND_DIGIT}[A-Za-z0-9]*[.~][A-Za-z0-9_-]{{16}}"),
)
#: Has a capital and digits, but no run of them that is long.
_STAMP = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,9}Z "
_ANY_RANDOM = "|".join(first for first, _ in _RANDOM)


def redact_lines(lines: pa.StringArray) -> pa.StringArray:
    """Return `redact_text` of each line.

    Args:
      lines: without null, each without a line feed.

    Example:
      >>> redact_lines(strings(["password=hunter2", "3 passed"])).to_pylist()
      ['password=REDACTED', '3 passed']
    """
    changes: dict[int, str] = {}
    marked = _marked(lines)
    for index in np.flatnonzero(marked | _may_be_random(lines)).tolist():
        text = lines[index].as_py()
        redacted = redact_text(text) if marked[index] else without_random_words(text)
        if redacted != text:
            changes[index] = redacted
    return _replaced(lines, changes) if changes else lines


def _marked(lines: pa.StringArray, layers: int = _ESCAPED_LAYERS) -> npt.NDArray[np.bool_]:
    """Return the lines that `redact_text` may change for more than random letters, as they are or unescaped."""
    marked = _matches(lines, _MARKED) | _matches(lines, _SHAPE)
    if sizes_of(lines).max(initial=0) > _LONG_NAME:
        marked |= _matches(lines, _WITH_LONG_NAME)
    marked |= _within(lines, _LONG_WORD, lambda some: _matches(some, _ISSUED))
    return marked | _within(lines, _ESCAPED, lambda some: _marked_unescaped(some, layers))


def _marked_unescaped(lines: pa.StringArray, layers: int) -> npt.NDArray[np.bool_]:
    """Return the lines with backslashes that have a mark, or random letters, without them."""
    if not layers:
        return np.ones(len(lines), bool)
    unescaped = pc.replace_substring_regex(lines, _ESCAPED, r"\1")
    marked = _marked(unescaped, layers - 1)
    for index in np.flatnonzero(~marked & _may_be_random(unescaped)).tolist():
        text = unescaped[index].as_py()
        marked[index] = without_random_words(text) != text
    return marked


def _may_be_random(lines: pa.StringArray) -> npt.NDArray[np.bool_]:
    def examine(some: pa.StringArray) -> npt.NDArray[np.bool_]:
        some = pc.replace_substring_regex(some, _STAMP, "0 ")
        flags = np.zeros(len(some), bool)
        for pair in _RANDOM:
            flags |= _matches_both(some, *pair)
        return flags

    return _within(lines, _ANY_RANDOM, examine)


def _matches_both(lines: pa.StringArray, first: str, second: str) -> npt.NDArray[np.bool_]:
    return _within(lines, first, lambda some: _matches(some, second))


def _within(
    lines: pa.StringArray, pattern: str, examine: Callable[[pa.StringArray], npt.NDArray[np.bool_]]
) -> npt.NDArray[np.bool_]:
    """Examine the lines that match a pattern. The others have the result False."""
    matches = pc.match_substring_regex(lines, pattern)
    flags = flags_of(matches)
    if flags.any():
        flags[flags] = examine(lines.filter(matches))
    return flags


def _matches(lines: pa.StringArray, pattern: str) -> npt.NDArray[np.bool_]:
    return flags_of(pc.match_substring_regex(lines, pattern))


def _replaced(lines: pa.StringArray, changes: dict[int, str]) -> pa.StringArray:
    """Return lines with some of them changed, given by their indices in ascending order."""
    is_changed = np.zeros(len(lines), np.uint8)
    is_changed[list(changes)] = 1
    mask = pc.cast(pa.UInt8Array.from_buffers(pa.uint8(), len(lines), [None, pa.py_buffer(is_changed)]), pa.bool_())
    return pc.replace_with_mask(lines, mask, strings(changes.values()))
