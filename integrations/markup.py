"""Makes hostile text plain in the markup of every review system.

Punctuation with a meaning in GitHub, GitLab or Gerrit becomes its full-width form, which looks alike and means nothing:
``@all`` becomes U+FF20 and ``all``. So no escape has to be right in three parsers, and in the mails and bots that read
the source of a message.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_ELLIPSIS = "…"
#: ASCII punctuation that stays: it means nothing where `_SPECIAL` leaves it.
_PLAIN = frozenset(" -.,:/()%+=_?;'")
_FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F) if not chr(code).isalnum() and chr(code) not in _PLAIN}
#: Characters of `_PLAIN` where they mean something, and what they become there.
_SPECIAL = (
    (re.compile(r":(?=[\w+-]*:)"), "\uff1a"),  # ``:emoji:``, also after a digit: ``0:100:`` is one
    (re.compile(r":(?!\s|$)(?!(?<=\d:)\d)"), "\uff1a"),  # ``http://``, ``key:value``; 12:30 stays
    (re.compile(r"\.(?=[^\W\d_])"), "\u2024"),  # a host's name
    (re.compile(r"(?<![^\W_])_|_(?![^\W_])"), "\uff3f"),  # emphasis
    (re.compile(r"(?<!\d)(?<!\d )%|%(?=\w)"), "\uff05"),  # a milestone of GitLab
    (re.compile(r"(?<![^\W_])/|/(?![^\W_])|//"), "\uff0f"),  # a command
    (re.compile(r"(?<=[A-Z])-(?=\d)|(?<=\b[gG][hH])-(?=\d)"), "\u2011"),  # GH-1, and keys of Jira
    (re.compile(r"(?<![^\W_])(?<![-+=])[-+=]+(?=\s|$)"), "\u2013"),  # a list, a rule
)
#: A commit or a Change-Id, which systems make links of, or a number: of one with a letter, six characters stay.
_COMMIT = re.compile(r"(?<![^\W_])(I?[0-9a-fA-F]{6})[0-9a-fA-F]+(?![^\W_])")
#: A number that could be one: its digits are grouped.
_LONG_NUMBER = re.compile(r"(?<![^\W_])[0-9]{7,}(?![^\W_])")
#: The beginning of a numbered list.
_NUMBERED = re.compile(r"^([0-9]+)([.)])(?=\s|$)")
_WWW = re.compile(r"(?i)\bwww(?=[.\u2024])")


def inert(text: str, most_bytes: int) -> str:
    """Return a text as one line that is only text, of at most ``most_bytes`` of UTF-8.

    It has no control or format character, no link, mention, reference, emphasis, HTML or command. A text that is empty
    after that is "?".
    """
    visible = "".join(map(_shown, text[: 4 * most_bytes]))
    line = " ".join(visible.split())
    line = _COMMIT.sub(lambda match: match[0] if match[0].isdecimal() else f"{match[1]}{_ELLIPSIS}", line)
    line = _LONG_NUMBER.sub(_grouped, line)
    line = _WWW.sub("ｗｗｗ", line)
    line = line.translate(_FULL_WIDTH)
    line = _NUMBERED.sub(lambda match: match[1] + ("\u2024" if match[2] == "." else "\uff09"), line)
    for pattern, plain in _SPECIAL:
        line = pattern.sub(plain, line)
    return cut(line, most_bytes) or "?"


def quoted_name(text: str, most_bytes: int = 120) -> str:
    """Return a hostile name, quoted: it never begins a line or a sentence by itself."""
    return f"“{inert(text, most_bytes)}”"


def cut(text: str, most_bytes: int) -> str:
    """Return the text, cut with an ellipsis between two characters if it has more bytes of UTF-8."""
    data = text.encode()
    if len(data) <= most_bytes:
        return text
    return data[: max(most_bytes - len(_ELLIPSIS.encode()), 0)].decode(errors="ignore").rstrip() + _ELLIPSIS


def _grouped(number: re.Match[str]) -> str:
    """Return a number with its digits in groups of three."""
    digits = number[0]
    first = len(digits) % 3
    groups = [digits[:first], *(digits[start : start + 3] for start in range(first, len(digits), 3))]
    return "\u202f".join(filter(None, groups))


@lru_cache(maxsize=1 << 12)
def _shown(character: str) -> str:
    """Return a character; a space for a separator or control character, nothing for one that cannot be seen."""
    if character.isascii():
        return character if character.isprintable() else " "
    kind = unicodedata.category(character)
    if kind[0] == "Z":
        return " "
    if kind[0] == "C" or (kind == "Mn" and unicodedata.combining(character) == 0):
        return ""
    return character
