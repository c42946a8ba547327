"""Rank the lines of a failed job's output, so that the cause comes first, and show the best of them.

A line is worth more if its words say that something failed, if its shape is rare, if it is close to the end of the step
that failed, and if no passing run of the job printed its template. What surrounds a strong line is worth a part of it.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ciml.globs import linear_pattern
from ciml.limits import MAX_OUTPUT_TEMPLATES
from ciml.transforms.logs.lines import blocks_of, lines_of_block
from ciml.transforms.logs.signals import KINDS, Signals, signals_of
from ciml.transforms.logs.templates import shapes_of, templates_of
from ciml.transforms.logs.text_arrays import RowOfText, codes_of, sizes_of, strings

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

#: A line of the same shape as k earlier ones is divided by 1 + `_REPEATED` k, and by 1 + `_COMMON` log(their number).
_REPEATED = 0.9
_COMMON = 0.15
#: What remains of a line of the cleaning up, of the printed text of a step's command, and of a template that is known.
_CLEANUP_KEEPS = 0.15
_ECHO_KEEPS = 0.25
_KNOWN_KEEPS = 0.05
#: The same of a known line next to a strong one.
_KNOWN_AROUND = 0.2
#: A new line without a signal, where it is known what passing runs print.
_NEW = 1.5
#: Lines before the end of a step that failed gain up to their own worth, less with each line. These are the constant
#: of the decay, the number of such steps, and the lines of each.
_NEAR_LINES = 40
_FAILED_STEPS = 3
_LONGEST_STEP = 400
#: The least strength of a line whose neighbours are shown, and the part of its worth that each neighbour has.
STRONG = 4.0
_NEIGHBOURS = {-3: 0.2, -2: 0.3, -1: 0.5, 1: 0.5, 2: 0.4, 3: 0.3, 4: 0.2}
#: All by which a line is worth something, given its signals.
WEIGHTS = (
    *(_REPEATED, _COMMON, _CLEANUP_KEEPS, _ECHO_KEEPS, _KNOWN_KEEPS, _KNOWN_AROUND, _NEW),
    *(_NEAR_LINES, _FAILED_STEPS, _LONGEST_STEP, STRONG, _NEIGHBOURS),
)
#: Longest line of an excerpt, and the most lines that are considered for one.
_LINE_CHARACTERS = 600
_CONSIDERED = 5000
#: The name in the line that begins a step, and the lines that are searched for one.
_STEP = linear_pattern(
    r"##\[group\](Run .++)$|(?:TASK|PLAY) \[(.+)\](?: \*++)?$|(?:section_end:\S++ )?section_start:(\S++)"
    r"|\[Pipeline\] \{ \((.+)\)$"
)
_STEP_LINES = 1000


@dataclass(frozen=True)
class ScannedOutput:
    """The output of a job whose lines have been reduced to templates. It holds no line but the bytes themselves.

    Attributes:
      data: the output.
      blocks: begin and end of each block of lines in ``data``, and the number of its first line, counted from 0.
      codes: int32 [n], for each line the index of its template. Index 0 is the empty line, and also stands for the
        templates beyond `MAX_OUTPUT_TEMPLATES`.
      templates: the t different templates, in the order of their first lines.
      signals: of the templates.
      lengths: int32 [n], bytes of each clean line.
    """

    data: bytes
    blocks: tuple[tuple[int, int, int], ...]
    codes: npt.NDArray[np.int32]
    templates: pa.StringArray
    signals: Signals
    lengths: npt.NDArray[np.int32]

    def marked(self, name: str) -> npt.NDArray[np.int64]:
        """Return the indices of the lines that have a mark of `ciml.transforms.logs.signals.MARKS`."""
        return np.flatnonzero(self.signals.marks[name][self.codes])

    def text_of(self, indices: npt.NDArray[np.int64]) -> list[str]:
        """Return the clean text of lines, given their ascending indices."""
        firsts = np.array([first for _, _, first in self.blocks])
        texts: list[str] = []
        for block in np.unique(np.searchsorted(firsts, indices, "right") - 1):
            begin, end, first = self.blocks[block]
            is_inside = (indices >= first) & (
                indices < (firsts[block + 1] if block + 1 < len(firsts) else len(self.codes))
            )
            texts += lines_of_block(self.data[begin:end], indices[is_inside] - first).to_pylist()
        return texts


class Line(NamedTuple):
    """A line of an excerpt.

    Attributes:
      number: counted from 1.
      text: clean, at most 600 characters.
      score: what it is worth; the cause of a failure should have the highest.
      is_new: whether no passing run printed its template; False if that is not known.
    """

    number: int
    text: str
    score: float
    is_new: bool


def step_of(output: ScannedOutput, index: int) -> str:
    """Return the step of the CI system that printed a line; "" if the output names none.

    It knows GitHub's groups of commands, the tasks and plays of Zuul, the sections of GitLab and the stages of Jenkins.

    Args:
      output: of a run.
      index: of the line, counted from 0.

    Example:
      >>> step_of(scan(b"##[group]Run pytest\\n##[endgroup]\\nImportError: attrs\\n"), 2)
      'Run pytest'
    """
    begins = output.marked("step")
    for text in reversed(output.text_of(begins[begins <= index][-_STEP_LINES:])):
        match = _STEP.match(text)
        if match is not None:
            return str(match[match.lastindex or 0]).strip()
    return ""


def scan(data: bytes) -> ScannedOutput:
    """Reduce an output to templates."""
    numbers: dict[str, int] = {"": 0}
    blocks = []
    codes = []
    lengths = []
    first = 0
    for begin, end in blocks_of(data):
        lines = lines_of_block(data[begin:end])
        blocks.append((begin, end, first))
        first += len(lines)
        codes.append(codes_of(templates_of(lines), numbers, MAX_OUTPUT_TEMPLATES))
        lengths.append(sizes_of(lines))
    templates = strings(numbers)
    none = np.zeros(0, np.int32)
    return ScannedOutput(
        data,
        tuple(blocks),
        np.concatenate([none, *codes]),
        templates,
        signals_of(templates),
        np.concatenate([none, *lengths]),
    )


def rank(output: ScannedOutput, known: Container[str] | None = None) -> Floats:
    """Return what each line is worth for the explanation of a failure, float64 [n], 0 for a line without a meaning.

    Args:
      output: of the failed run.
      known: the templates that passing runs of the job have printed; None if no run is known.
    """
    return _rank(output, None if known is None else is_known_template(output, known))


def _rank(output: ScannedOutput, is_known: Flags | None) -> Floats:
    """Do as `rank`, given which templates are known."""
    worth = _own_worth(output, is_known)
    weighted = worth * (1 + _nearness(output))
    around = _of_neighbours(np.where(worth >= STRONG, weighted, 0))
    if is_known is not None:
        around[is_known[output.codes]] *= _KNOWN_AROUND
    ranked = np.maximum(weighted, around)
    ranked[output.lengths == 0] = 0
    return ranked


def _own_worth(output: ScannedOutput, is_known: Flags | None) -> Floats:
    """Return the worth of each line by its own words, its shape, and its part of the output."""
    by_template = output.signals.strength.copy()
    if is_known is not None:
        by_template = np.where(is_known, by_template * _KNOWN_KEEPS, np.maximum(by_template, _NEW))
    _, shapes = np.unique(_shape_of(output.templates), return_inverse=True)
    # The status of a process is often in the middle of lines of its shape: it is compared with its template alone.
    is_status = output.signals.kinds[:, KINDS.index("exit")]
    shapes[is_status] = len(shapes) + np.flatnonzero(is_status)
    earlier, number = _repetitions(shapes[output.codes])
    worth = by_template[output.codes] / repetition(earlier, number)
    worth[_between(output, "echo", "echoed")] *= _ECHO_KEEPS
    cleanup = output.marked("cleanup")
    if len(cleanup):
        worth[cleanup[0] :] *= _CLEANUP_KEEPS
    return worth


def repetition(earlier: Floats, number: Floats) -> Floats:
    """Return by what the worth of lines is divided, given the earlier lines of their shape, and all lines of it."""
    divisor: Floats = (1 + _REPEATED * earlier) * (1 + _COMMON * np.log(number))
    return divisor


def is_known_template(output: ScannedOutput, known: Container[str]) -> Flags:
    """Return which templates of an output are known, bool [t]."""
    return np.fromiter((template in known for template in output.templates.to_pylist()), bool, len(output.templates))


def _hashes_of_shapes(templates: pa.StringArray) -> npt.NDArray[np.int64]:
    """Return what tells the shapes of n templates apart, int64 [n]."""
    return np.fromiter(map(hash, shapes_of(templates).to_pylist()), np.int64, len(templates))


_shape_of = RowOfText(_hashes_of_shapes)


def _repetitions(shapes: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return for each line the number of earlier lines of its shape, and of all lines of its shape."""
    counts = np.bincount(shapes)
    order = np.argsort(shapes, kind="stable")
    firsts = np.cumsum(counts) - counts
    earlier = np.empty(len(shapes))
    earlier[order] = np.arange(len(shapes)) - np.repeat(firsts, counts)
    return earlier, counts[shapes].astype(float)


def _between(output: ScannedOutput, begin: str, end: str) -> Flags:
    """Return which lines follow a mark that begins a part, before the mark that ends it."""
    events = np.zeros(len(output.codes), np.int8)
    events[output.marked(begin)] = 1
    events[output.marked(end)] = -1
    if not len(events):
        return np.zeros(0, bool)
    last = np.maximum.accumulate(np.where(events, np.arange(len(events)), 0))
    is_inside: Flags = events[last] == 1
    return is_inside


def _nearness(output: ScannedOutput) -> Floats:
    """Return for each line of a step that failed how close it is to the end of the step, 0 to 1."""
    nearness = np.zeros(len(output.codes))
    begins = output.marked("echo")
    for end in output.marked("failed")[:_FAILED_STEPS]:
        before = np.searchsorted(begins, end)
        begin = max(end - _LONGEST_STEP, begins[before - 1] if before else 0, 0)
        distance = end - np.arange(begin, end)
        nearness[begin:end] = np.maximum(nearness[begin:end], np.exp(-distance / _NEAR_LINES))
    return nearness


def _of_neighbours(strong: Floats) -> Floats:
    """Return the part of a line's worth that the strongest of its neighbours gives it."""
    shares = np.zeros(len(strong))
    for distance, part in _NEIGHBOURS.items():
        source = strong[: max(len(strong) - distance, 0)] if distance > 0 else strong[-distance:]
        target = shares[distance:] if distance > 0 else shares[: max(len(shares) + distance, 0)]
        np.maximum(target, part * source, out=target)
    return shares


def excerpt(output: ScannedOutput, characters: int = 4000, known: Container[str] | None = None) -> list[Line]:
    """Return the lines that explain a failure, in their order.

    Args:
      output: of the failed run.
      characters: most characters of all lines, with a line feed each. An output that is shorter is returned whole.
      known: see `rank`.

    Example:
      >>> [line.text for line in excerpt(scan(b"collecting\nE   ImportError: No module named 'attrs'\n"), 50)]
      ["E   ImportError: No module named 'attrs'"]
    """
    is_known = None if known is None else is_known_template(output, known)
    scores = _rank(output, is_known)
    chosen = _chosen(output, scores, characters)
    return [
        Line(
            int(index) + 1,
            text[:_LINE_CHARACTERS],
            float(scores[index]),
            is_known is not None and not is_known[output.codes[index]],
        )
        for index, text in zip(chosen, output.text_of(chosen), strict=True)
    ]


def _chosen(output: ScannedOutput, scores: Floats, characters: int) -> npt.NDArray[np.int64]:
    """Return the ascending indices of the best lines that fit. A byte counts as a character: no text gets longer."""
    sizes = np.minimum(output.lengths, 4 * _LINE_CHARACTERS) + 1
    if sizes.sum() <= characters:
        return np.arange(len(scores))
    candidates = np.flatnonzero(scores > 0)
    best = candidates[np.lexsort((candidates, -scores[candidates]))[:_CONSIDERED]]
    chosen = []
    remaining = characters
    for index in best:
        size = min(int(sizes[index]), _LINE_CHARACTERS + 1)
        if size <= remaining:
            chosen.append(index)
            remaining -= size
    return np.sort(np.array(chosen, np.int64))
