"""The line of a failed job's output that no passing run printed, as a sentence of its evidence.

The line is ranked by its template, and quoted from the stored text, which has no secrets. Before the sentence is used,
the quoted line is looked up again in the text, by its number.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from ciml.runs.outputs import KeptOutput
from ciml.transforms.logs.failure_keys import TROUBLES, without_margin
from ciml.transforms.logs.profile import OutputProfile
from ciml.transforms.logs.ranking import STRONG, ScannedOutput, is_known_template, rank, step_of
from ciml.transforms.logs.signals import KINDS

#: Longest quotations of a line, and of a name.
MAX_CHARACTERS = 200
MAX_NAME_CHARACTERS = 80
_SENTENCE = re.compile(
    r"“(?P<line>.*)” is new in this job \((?:(?P<file>[A-Za-z0-9_.-]+), line )?(?:line )?(?P<number>[0-9,]+)"
    r"(?: of its output)?(?:, step “(?P<step>.*)”)?\)\."
)


class QuotedLine(NamedTuple):
    """A line of the output of a run that no passing run of its job printed.

    Attributes:
      text: visible characters in one row, at most `MAX_CHARACTERS`.
      number: in the whole output, counted from 1.
      file: name of the output's file; "" if it is not known.
      step: of the CI system, at most `MAX_NAME_CHARACTERS`; "" if the output names none.
      template: the line without numbers, paths and ids.
      is_trouble: whether it names memory, a disk, the network, a service or a crash.
    """

    text: str
    number: int
    file: str = ""
    step: str = ""
    template: str = ""
    is_trouble: bool = False

    @property
    def sentence(self) -> str:
        """The line as a sentence of evidence."""
        place = f"{self.file}, line {self.number:,}" if self.file else f"line {self.number:,} of its output"
        step = f", step “{self.step}”" if self.step else ""
        return f"“{self.text}” is new in this job ({place}{step})."


def quote(kept: KeptOutput, output: ScannedOutput, profile: OutputProfile, file: str = "") -> QuotedLine | None:
    """Return the best line that no passing run printed; None without passing runs or such a line.

    Args:
      kept: the output.
      output: the same, scanned.
      profile: of passing runs of the job.
      file: name of the output's file; "" if it is not known.
    """
    if not profile.runs:
        return None
    worth = rank(output, profile)
    worth[is_known_template(output, profile)[output.codes]] = 0
    if worth.max(initial=0) < STRONG:
        return None
    index = int(np.argmax(worth))
    code = int(output.codes[index])
    (text,) = output.text_of(np.array([index]))
    step = shortened(step_of(output, index), MAX_NAME_CHARACTERS)
    line = QuotedLine(
        shortened(text),
        kept.number(index + 1),
        file,
        step if _is_in(step, kept) else "",
        without_margin(output.templates[code].as_py()),
        any(output.signals.kinds[code, KINDS.index(kind)] for kind in TROUBLES),
    )
    return line if is_quoted(line.sentence, kept) else None


def is_quoted(sentence: str, kept: KeptOutput) -> bool:
    """Return whether a sentence quotes a line that has its number in an output, and a step that the output names."""
    match = _SENTENCE.fullmatch(sentence)
    if match is None:
        return False
    number = int(match["number"].replace(",", ""))
    return is_in_line(match["line"], number, kept) and _is_in(match["step"] or "", kept)


def is_in_line(quotation: str, number: int, kept: KeptOutput) -> bool:
    """Return whether a line of an output has a quotation, which may be shortened."""
    line = kept.line(number)
    return line is not None and quotation.removesuffix("…") in _visible(line.decode("utf-8", "replace"))


def shortened(text: str, most: int = MAX_CHARACTERS) -> str:
    """Return a text in one row of visible characters, at most ``most``."""
    visible = _visible(text).strip()
    return visible if len(visible) <= most else f"{visible[: most - 1].rstrip()}…"


def _is_in(quotation: str, kept: KeptOutput) -> bool:
    return quotation.removesuffix("…").encode() in kept.data


def _visible(text: str) -> str:
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
