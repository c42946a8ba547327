"""Features of a failed run's output: which kind of failure its new lines name.

A model of causes must hold for jobs that it has not learned, and for kinds of trouble that no learned run had. So the
features are few: the output names at most one reason, and a reason joins words of many tools. Words of a single job,
hashed templates and counts of lines are not features; docs/verdicts.md has the comparison.

A long output names many things that are no reason: a limit in a command, an address that is tried again. So only lines
count that are worth almost as much as the best one (`ciml.transforms.logs.ranking.rank`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Container, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ciml.datasets.definition import LOG_FEATURES, LOG_PREFIX
from ciml.transforms.logs.ranking import WEIGHTS, ScannedOutput, rank
from ciml.transforms.logs.signals import KINDS, WORDS, Signals, matches, signals_of
from ciml.transforms.logs.templates import DIGEST_BYTES, MASKS
from ciml.transforms.logs.text_arrays import RowOfText, int64s, strings

Flags = npt.NDArray[np.bool_]


class Reason(NamedTuple):
    """What an output names as the reason of the failure.

    Attributes:
      name: of the feature, without its prefix.
      kinds: kinds of signals that name it.
      pattern: further words that name it, a regular expression of RE2 over templates; "" for none.
      unless: words by which a template does not name it.
    """

    name: str
    kinds: tuple[str, ...] = ()
    pattern: str = ""
    unless: str = ""


#: Exceptions that come from the environment as often as of the code.
_ENVIRONMENT = (
    r"\b(?:OS|IO|FileNotFound|Permission|FileExists|BlockingIO|ChildProcess|CalledProcess|Memory|Connection\w*"
    r"|\w*Timeout"
    r"|BrokenPipe|Process\w*|HTTP|URL|SSL|Socket|Network\w*)(?:Error|Exception)\b|Errno <\*>"
    r"|^\s*ERROR$"  # Zuul's mark of a task that failed
)

#: A row of tests, a character each, of which one failed. It may be the last that a run prints before its time is over.
_ROW = r"^[.sxX]*(?:\.[.sxX]*[FE]|[FE][.sxXFE]*\.)[.sxXFE]*(?: +\[ *(?:<\*>|\d+)?%?\])?$"

#: What a compiler, a parser, a linter or a tool reports of what it was given.
_CONTENT = (
    r"\w(?:Error|Exception)\b|\bpanicked at\b|^panic:|DATA RACE|AddressSanitizer|\berror(?:\[|: )|\berror TS<\*>"
    # names
    r"|[Uu]ndefined (?:reference|symbol|name|variable|method)|undefined: |is (?:not defined|undefined)|has no attribute"
    r"|[Uu]ndeclared|(?i:cannot find (?:symbol|name|type|module|value))|[Uu]nresolved import"
    r"|[Uu]nknown (?:instruction|field)"
    r"|[Uu]nknown (?:\w+ )?(?:command|option|argument|flag|key)\b|[Uu]nsupported (?:argument|block)"
    r"|[Uu]nexpected (?:input|token)"
    r"|[Nn]o rule to make target|[Mm]issing script|no such target|Task .{1,40} not found in|no matches for kind|misspel"
    r"|[Dd]id you mean|fatal error: .{1,80}: No such file"
    # syntax and types
    r"|(?i:syntax error|parse error|invalid syntax|error parsing|failed to parse|failed to compile|could not compile)"
    r"|mapping values are not allowed|[Nn]on-parseable|missing separator|Expected a |bad-setting|[Mm]ismatched types"
    r"|COMPILATION ERROR|[Mm]erge conflict"
    # tests and style
    r"|assertion .{0,80}failed|DID NOT RAISE|[Ww]ould reformat|[Cc]ode style issue|not (?:properly )?formatted"
    rf"|✖ <\*> problem|^\s+\^-+\^ |{_ROW}"
)
#: In the order of their precedence: a test that fails for want of memory names a resource, and no program.
REASONS = (
    Reason(
        "resource",
        ("memory", "disk", "network", "service"),
        unless=r"not accessible|[Uu]nauthorized|Forbidden|[Dd]enied",
    ),
    Reason("dependency", ("missing",)),
    Reason("crash", pattern=r"[Ss]egmentation fault|\bsegfault\b|\bSIG(?:SEGV|ABRT|BUS|ILL)\b|core dumped"),
    Reason("program", ("test", "summary"), _CONTENT, _ENVIRONMENT),
)
#: Numbers that name a reason are masked in templates, so they are searched in the lines: by reason, a pattern.
_NUMBERS = {
    "resource": r"(?i)\b(?:HTTP\S*|status|error|returned)\b\D{0,20}\b(?:5\d\d|429)\b|\bexit(?:ed)?\b\D{0,20}\b137\b"
    r"|\"rc\": (?:-9|137)\b",
    "dependency": r"(?i)\b(?:HTTP\S*|status|error|returned|code)\b\D{0,20}\bE?(?:404|410)\b",
}
#: The status of a task of Ansible. It counts whatever its line is worth: it is in the middle of others of its shape.
_RESULT = r"^\s*\"rc\": <\*>,?$"
#: Kinds of signals of such lines, and the most lines.
_NUMBERED = ("status", "exit")
_MAX_NUMBERED = 20
#: An output that names no reason has another signal, or none: then it was cut off, or is empty.
NO_REASONS = ("other", "silent")
#: There is no output. A model that learned no such run must not take it for one that names no reason.
UNAVAILABLE = "unavailable"
#: Its value. A learned run that alone has a reason is 1 outside of the ranges of the others; this has to be farther.
_FAR = 10.0
#: The strength from which a template has a signal. Lines of tools that work have less.
_SIGNAL = 3.0
#: The least worth of a line that names a reason: any new line has more.
_LEAST = 0.1
#: The worth of a line that may name the reason, as a part of the best line's.
_PROMINENT = 0.4

#: Raise it where code, and no constant of `VOCABULARY`, makes an output name another reason.
_CODE = 1
#: Names all by which an output names its reason. Features by different vocabularies are not comparable.
VOCABULARY = hashlib.blake2b(
    repr(
        (
            *(_CODE, MASKS, WORDS, WEIGHTS, REASONS, NO_REASONS, _NUMBERS, _RESULT, _NUMBERED, _MAX_NUMBERED),
            *(_FAR, _SIGNAL, _LEAST, _PROMINENT),
        )
    ).encode(),
    digest_size=DIGEST_BYTES,
).hexdigest()


def output_features(output: ScannedOutput | None, known: Container[str] = ()) -> tuple[float, ...]:
    """Return `LOG_FEATURES` of a run's output: 1 for the reason that it names, 10 for its absence, else 0.

    Args:
      output: of the run; None if it is unavailable.
      known: the templates that passing runs of the job have printed, or its `OutputProfile`; those of passing runs of
        all jobs where the job has too few.

    Example:
      >>> features = output_features(scan(b"E   OSError: [Errno 28] No space left on device"))
      >>> dict(zip(LOG_FEATURES, features))["log:resource"]
      1.0
    """
    named = UNAVAILABLE if output is None else reason_of(output, known)
    value = _FAR if output is None else 1.0
    return tuple(value * (feature == LOG_PREFIX + named) for feature in LOG_FEATURES)


def reason_of(output: ScannedOutput, known: Container[str] = ()) -> str:
    """Return the reason that the output of a failed run names, of `REASONS` and `NO_REASONS`."""
    telling = _telling(output.templates)
    indices = np.flatnonzero(telling.is_any)
    texts = dict(zip(indices.tolist(), output.templates.take(int64s(indices)).to_pylist(), strict=True))
    known_ones = [index for index, text in texts.items() if text in known]
    is_new = telling.is_any.copy()
    is_new[known_ones] = False
    worth = _best_worth(output, {texts[index] for index in known_ones}) * is_new
    is_prominent = worth >= max(_PROMINENT * worth.max(initial=0), _LEAST)
    is_result = telling.is_result & (worth > 0)
    by_number = _named_by_number(output, (is_prominent | is_result) & telling.is_numbered)
    for name, names in telling.reasons.items():
        if (is_prominent & names).any() or name in by_number:
            return name
    return "other" if (telling.is_signal & is_new).any() else "silent"


def telling_templates(templates: Sequence[str]) -> list[str]:
    """Return the templates that name a reason or have a signal: of those of passing runs, only these matter."""
    candidates = strings(templates)
    telling: list[str] = candidates.take(int64s(np.flatnonzero(_telling(candidates).is_any))).to_pylist()
    return telling


def _named_by_number(output: ScannedOutput, is_numbered: Flags) -> set[str]:
    """Return the reasons that numbers in the lines of some templates name, bool [t]."""
    if not is_numbered.any():
        return set()
    lines = np.flatnonzero(is_numbered[output.codes])[:_MAX_NUMBERED]
    texts = strings(output.text_of(lines))
    return {name for name, pattern in _NUMBERS.items() if matches(texts, pattern).any()}


#: What a template names.
_TELLS = np.dtype([("reasons", bool, len(REASONS)), ("is_numbered", bool), ("is_result", bool), ("is_signal", bool)])


class _Telling(NamedTuple):
    """Which of t templates name what; each bool [t].

    Attributes:
      reasons: by name.
      is_numbered: its lines may name a reason by a number.
      is_result: it is the status of a task.
      is_signal: it has a signal.
      is_any: it has a signal, or names a reason.
    """

    reasons: dict[str, Flags]
    is_numbered: Flags
    is_result: Flags
    is_signal: Flags
    is_any: Flags


def _telling(templates: pa.StringArray) -> _Telling:
    rows = _rows_of(templates)
    reasons = {reason.name: rows["reasons"][:, index] for index, reason in enumerate(REASONS)}
    any_of = rows["is_signal"] | rows["reasons"].any(axis=1)
    return _Telling(reasons, rows["is_numbered"], rows["is_result"], rows["is_signal"], any_of)


def _find_telling(templates: pa.StringArray) -> npt.NDArray[np.void]:
    """Return what n templates name, as `_TELLS` [n]."""
    signals = signals_of(templates)
    is_signal = signals.strength >= _SIGNAL
    is_benign = (signals.strength > 0) & ~is_signal
    rows = np.zeros(len(templates), _TELLS)
    for index, reason in enumerate(REASONS):
        rows["reasons"][:, index] = _names(templates, signals, reason) & ~is_benign
    rows["is_numbered"] = signals.kinds[:, [KINDS.index(kind) for kind in _NUMBERED]].any(axis=1) & is_signal
    rows["is_result"] = matches(templates, _RESULT)
    rows["is_signal"] = is_signal
    return rows


def _best_worth(output: ScannedOutput, known: Collection[str]) -> npt.NDArray[np.float64]:
    """Return what the best line of each template is worth, float64 [t]."""
    best = np.zeros(len(output.templates))
    np.maximum.at(best, output.codes, rank(output, known))
    return best


def _names(templates: pa.StringArray, signals: Signals, reason: Reason) -> Flags:
    """Return which templates name a reason, bool [t]."""
    names = matches(templates, reason.pattern) if reason.pattern else np.zeros(len(templates), bool)
    for kind in reason.kinds:
        names |= signals.kinds[:, KINDS.index(kind)]
    if reason.unless:
        names &= ~matches(templates, reason.unless)
    return names


_rows_of = RowOfText(_find_telling)
