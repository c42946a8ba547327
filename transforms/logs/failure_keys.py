"""The keys of a failed run: templates of its output by which it is compared with other failed runs.

A key is one of the strongest templates that no passing run of the job printed, and that says more than that something
failed. Without one, it is the place where the output ends: the first template that passing runs print next.

A line that the tested code prints, such as the end of a traceback, is compared within the job: the same words in two
jobs are not evidence for one cause. A line about disk, memory, network or a tool is compared across all jobs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ciml.globs import linear_pattern
from ciml.transforms.logs.profile import OutputProfile, Printed, differences_of
from ciml.transforms.logs.ranking import STRONG, repetition
from ciml.transforms.logs.signals import KINDS, signals_of
from ciml.transforms.logs.templates import shapes_of
from ciml.transforms.logs.text_arrays import codes_of, strings

#: Keys of a run, and the strongest new templates that are searched for them.
MAX_KEYS = 3
_CONSIDERED = 200
#: Kinds that name a trouble by themselves.
TROUBLES = frozenset({"memory", "disk", "network", "service", "crash"})
#: Kinds of lines that the tested code prints, or the runner of its tests.
_OF_CODE = frozenset({"exception", "test", "summary", "exit", "detail", "trace"})
#: Kinds that only say that something failed.
_EMPTY = frozenset({"summary", "exit"})
#: A template needs so many words besides those of every failure.
_WORDS = 2
_WORD = linear_pattern(r"[A-Za-z][A-Za-z']++")
_EXCEPTION = ("Error", "Exception", "Failure", "Warning")
_OF_EVERY_FAILURE = frozenset(
    {
        *("error", "errors", "failed", "failure", "failures", "fail", "assert", "stopping", "interrupted"),
        *("after", "during", "in", "collection", "raise", "exit", "exited", "code", "status"),
        *("process", "completed", "command", "script", "returned", "with", "test", "tests", "job", "step", "run"),
    }
)
_QUOTED_CODE = " " * 4
_ID_DIGITS = 12


class Key(NamedTuple):
    """A key of a failed run.

    Attributes:
      template: a line without numbers, paths and ids.
      job: whose failed runs it compares; "" if it compares runs of all jobs.
      is_end: whether the output ends before the template, which passing runs print.
    """

    template: str
    job: str
    is_end: bool = False

    @property
    def id(self) -> str:
        """A digest, of 12 hexadecimal digits."""
        text = "\0".join((self.template, self.job, "end" if self.is_end else ""))
        return hashlib.blake2b(text.encode()).hexdigest()[:_ID_DIGITS]


def keys_of(printed: Mapping[str, Printed], job: str, profile: OutputProfile) -> tuple[Key, ...]:
    """Return the keys of a failed run, the best first; none if its output has no line that tells failures apart.

    Args:
      printed: the templates of its output, in the order of their first lines.
      job: of the run.
      profile: of passing runs of the job that are older; an empty one if there is none.

    Example:
      >>> printed = printed_templates(scan(b"collecting\\nOSError: [Errno 28] No space left on device\\n"))
      >>> keys_of(printed, "unit", OutputProfile())
      (Key(template='OSError: [Errno <*>] No space left on device', job='', is_end=False),)
    """
    keys = dict.fromkeys(
        Key(without_margin(template), "" if _is_of_surroundings(template, kinds) else job)
        for template, kinds in _strongest(printed, profile)
        if is_specific(template, kinds)
    )
    if keys or not printed:
        return tuple(keys)[:MAX_KEYS]
    return tuple(
        Key(difference.template, job, is_end=True) for difference in differences_of(printed, profile).missing[:1]
    )


def is_specific(template: str, kinds: frozenset[str]) -> bool:
    """Return whether a template says more than that something failed."""
    if kinds & TROUBLES:
        return True
    return not kinds <= _EMPTY and sum(map(_is_specific_word, _WORD.findall(template))) >= _WORDS


def _is_specific_word(word: str) -> bool:
    return word.lower() not in _OF_EVERY_FAILURE and not word.endswith(_EXCEPTION)


def without_margin(line: str) -> str:
    """Return a line or a template without the margin of pytest, and with single blanks."""
    words = line.split()
    return " ".join(words[1:] if words[:1] == ["E"] else words)


def _is_of_surroundings(template: str, kinds: frozenset[str]) -> bool:
    """Return whether a line is about what surrounds the tested code. Code that is quoted is indented."""
    return bool(kinds & TROUBLES) or not (kinds & _OF_CODE or template.startswith(_QUOTED_CODE))


def _strongest(printed: Mapping[str, Printed], profile: OutputProfile) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield new templates with the kinds of their signals, the strongest first, of equal ones the earliest."""
    new = {name: counts.lines for name, counts in printed.items() if profile.is_new(name)}
    if not new:
        return
    signals = signals_of(strings(new))
    strong = np.flatnonzero(signals.strength >= STRONG).tolist()
    names = list(new)
    lines = {names[index]: new[names[index]] for index in strong}
    worth = _worth(lines, signals.strength[strong])
    for place in np.argsort(-worth, kind="stable")[:_CONSIDERED].tolist():
        index = strong[place]
        yield names[index], frozenset(kind for kind, has in zip(KINDS, signals.kinds[index], strict=True) if has)


def _worth(lines: Mapping[str, int], strength: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the worth of templates as `ciml.transforms.logs.ranking.rank` has it for lines, without their places."""
    shapes = codes_of(shapes_of(strings(lines)), {}, len(lines)).tolist()
    number: Counter[int] = Counter()
    for shape, count in zip(shapes, lines.values(), strict=True):
        number[shape] += count
    counts: Counter[int] = Counter()
    earlier = np.zeros(len(shapes))
    for index, shape in enumerate(shapes):
        earlier[index] = counts[shape]
        counts[shape] += 1
    return strength / repetition(earlier, np.array([float(number[shape]) for shape in shapes]))
