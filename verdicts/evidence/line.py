"""The line of a failed job's output that no passing run printed, as a sentence of its evidence.

The line is ranked by its template, and quoted from the stored text, which has no secrets. Before the sentence is used,
the quoted line is looked up again in the text, by its number.
"""

from __future__ import annotations

import re

import msgspec
import numpy as np

from ciml.data_root import DataRoot
from ciml.events.records import OutputFile
from ciml.manifest.log import ManifestLog
from ciml.runs.latest_runs import entries_of, row_of
from ciml.runs.outputs import KeptOutput, read_output
from ciml.runs.state import open_raw
from ciml.transforms.logs.profile import OutputProfile
from ciml.transforms.logs.ranking import STRONG, is_known_template, rank, scan
from ciml.transforms.logs.stored import stored_profile

#: Longest quotation.
MAX_CHARACTERS = 200
_SENTENCE = re.compile(r"“(?P<line>.*)” is new in this job \(line (?P<number>[0-9,]+) of its output\)\.")


def new_line_of(data: DataRoot, run_id: str, job: str) -> str:
    """Return a sentence that quotes the best new line of a stored run's output; "" where there is none to quote.

    Raises:
      IntegrityError: an output is damaged.
      EngineError: the store does not answer.

    Example:
      >>> new_line_of(data, "zuul~5f0c~1", "tox-py311")  # doctest: +SKIP
      "“E ModuleNotFoundError: No module named 'attrs'” is new in this job (line 812 of its output)."
    """
    log = ManifestLog(data.raw)
    row = row_of(entries_of(log, log.end(), run_id))
    output = row.record.get("output") if row is not None else None
    if not output:
        return ""
    kept = read_output(data.raw, msgspec.convert(output, OutputFile))
    if isinstance(kept, str):
        return ""
    log, state = open_raw(data.raw)
    sentence = quote(kept, stored_profile(data.raw, log, state, job))
    return sentence if is_quoted(sentence, kept) else ""


def quote(kept: KeptOutput, profile: OutputProfile) -> str:
    """Return the sentence on the best line that no passing run printed; "" without passing runs or such a line."""
    if not profile.runs:
        return ""
    output = scan(kept.data)
    worth = rank(output, profile)
    worth[is_known_template(output, profile)[output.codes]] = 0
    if worth.max(initial=0) < STRONG:
        return ""
    index = int(np.argmax(worth))
    (text,) = output.text_of(np.array([index]))
    return f"“{_shortened(text)}” is new in this job (line {kept.number(index + 1):,} of its output)."


def is_quoted(sentence: str, kept: KeptOutput) -> bool:
    """Return whether a sentence quotes a line of an output that has the number which it says."""
    match = _SENTENCE.fullmatch(sentence)
    if match is None:
        return False
    line = kept.line(int(match["number"].replace(",", "")))
    return line is not None and match["line"].removesuffix("…") in _visible(line.decode("utf-8", "replace"))


def _shortened(text: str) -> str:
    """Return a line in one row of visible characters, at most `MAX_CHARACTERS`."""
    visible = _visible(text).strip()
    return visible if len(visible) <= MAX_CHARACTERS else f"{visible[: MAX_CHARACTERS - 1].rstrip()}…"


def _visible(text: str) -> str:
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
