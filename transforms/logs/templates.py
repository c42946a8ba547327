"""Templates of lines: what stays of a line when everything is masked that differs between equal runs.

Plain masking was measured against the parser Drain, which learns templates from the lines it has seen; see
docs/job-output.md. A mask depends on its own line alone, so templates of two runs can be compared, counted and
stored, and no order of runs changes them.
"""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.compute as pc

#: What stands for a masked part.
MASK = "<*>"
#: Bytes of `template_digest`.
DIGEST_BYTES = 8

_URL = r"[A-Za-z][A-Za-z+.-]*://[^\s'\"<>)]+"
_PATH = r"[\w.@+~-]*(?:/[\w.@+~=%-]+){2,}/?|(?:\b[A-Za-z]:)?(?:\\[\w.@+~=% -]*[\w.@+~=%-]){2,}\\?"
_DATE = r"\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)\b,?(?: (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\b)?"
#: A number, and whatever has a digit in it: ids, versions, times, durations, hosts.
_WITH_DIGIT = r"[\w.@:-]*\d[\w.@:-]*"
_DETAILS = rf"{_URL}|{_PATH}|{_DATE}|{_WITH_DIGIT}"
#: A row of tests, a character each; the letter of one that failed stays.
_PROGRESS = r"[.sx]{5,} *"
#: The module of an exception, which may have a digit, as jinja2 does.
_MODULE = r"(?:\w+\.)+(\w*(?:Error|Exception|Failure|Timeout|Warning))\b"
#: Masks in succession are one, as there may be any number of them.
_MASKS = r"<\*>(?:[ ,()-]+<\*>)+"
#: What failed is counted apart from whether anything did.
_COUNTED = r"(?i)\b(failed|failures?|errors?)\s*[=:]\s*[1-9]\d*"
_NOTHING = r"(?i)\b0( tests?)? (failed|failures?|errors?)\b|\b(failed|failures?|errors?)\s*[=:]\s*0\b"
_SPECIAL = f"{_PROGRESS}|{_MODULE}|{_NOTHING}|{_COUNTED}"
_QUOTED = r"\"[^\"]{1,200}\"|'[^']{1,200}'|`[^`]{1,200}`"
#: Names of tests, modules and attributes.
_NAME = r"[A-Za-z0-9]+(?:(?:[_.:]|<\*>)+[A-Za-z0-9]+)+"

#: Names the masks: stored templates can be compared with others only if these are the same.
MASKS = hashlib.blake2b("\0".join((_DETAILS, _MASKS, _SPECIAL)).encode(), digest_size=DIGEST_BYTES).hexdigest()


def templates_of(lines: pa.StringArray) -> pa.StringArray:
    """Mask addresses, paths, hexadecimal digits, ids, times, durations and numbers.

    Example:
      >>> templates_of(pa.array(["3 failed, 0 errors in 7.25s", "wrote /tmp/x/y.log"])).to_pylist()
      ['<*> failed, no errors in <*>', 'wrote <*>']
    """
    special = pc.match_substring_regex(lines, _SPECIAL)
    if pc.any(special).as_py():
        lines = pc.replace_with_mask(lines, special, _without_special(lines.filter(special)))
    lines = pc.replace_substring_regex(lines, _DETAILS, MASK)
    return pc.replace_substring_regex(lines, _MASKS, MASK)


def _without_special(lines: pa.StringArray) -> pa.StringArray:
    """Replace what needs more than a mask, in the few lines that have it."""
    lines = pc.replace_substring_regex(lines, _PROGRESS, "...")
    lines = pc.replace_substring_regex(lines, _MODULE, r"\1")
    lines = pc.replace_substring_regex(lines, _NOTHING, r"no\1 \2\3")
    return pc.replace_substring_regex(lines, _COUNTED, r"\1 = <*>")


def shapes_of(templates: pa.StringArray) -> pa.StringArray:
    """Mask also what is quoted and names: a hundred findings of one linter have one shape.

    Example:
      >>> shapes_of(pa.array(["error: 'os.path' is unused", "error: 'sys' is unused"])).to_pylist()
      ['error: <*> is unused', 'error: <*> is unused']
    """
    return pc.replace_substring_regex(pc.replace_substring_regex(templates, _QUOTED, MASK), _NAME, MASK)


def template_digest(template: str) -> bytes:
    """Return what stands for a template where its text is not kept, or where templates are ordered by chance."""
    return hashlib.blake2b(template.encode(), digest_size=DIGEST_BYTES).digest()
