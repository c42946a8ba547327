"""The profile of a job's output: which templates its passing runs print, how often, and where.

A profile is a sum over runs, so the order of runs does not matter, and profiles of parts of the runs can be added. Its
size is bounded by a sample of templates (those of the smallest digests, a bottom-k sample), which is the same in any
order. What is outside of the sample is not judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ciml.limits import MAX_OUTPUT_PROFILE_TEMPLATES
from ciml.transforms.logs.ranking import ScannedOutput
from ciml.transforms.logs.templates import template_digest

_MILLION = 1_000_000


class Printed(NamedTuple):
    """A template in the output of one run.

    Attributes:
      lines: the number of its lines.
      place: of its first line, from 0, the first line, to 1, the last.
    """

    lines: int
    place: float


class Usual(NamedTuple):
    """A template in the outputs of the passing runs that print it.

    Attributes:
      runs: their number.
      low, high: the least and the greatest number of its lines in one of them.
      places: the sum of its places, see `Printed`, in millionths: whole numbers have the same sum in any order.
    """

    runs: int
    low: int
    high: int
    places: int

    @property
    def place(self) -> float:
        """Its mean place."""
        return self.places / self.runs / _MILLION

    def __add__(self, other: object) -> Usual:
        if not isinstance(other, Usual):
            return NotImplemented
        places = self.places + other.places
        return Usual(self.runs + other.runs, min(self.low, other.low), max(self.high, other.high), places)


@dataclass
class OutputProfile:
    """What passing runs of a job print.

    Attributes:
      runs: their number.
      templates: the sampled ones.
      below: all templates whose digest is less are in ``templates`` if a run printed them; None if all are.

    Example:
      >>> profile = OutputProfile()
      >>> profile.add(printed_templates(scan(b"collecting\\n3 passed\\n")))
      >>> profile.is_new("2 failed"), profile.is_new("<*> passed")
      (True, False)
    """

    runs: int = 0
    templates: dict[str, Usual] = field(default_factory=dict)
    below: bytes | None = None

    def add(self, printed: Mapping[str, Printed]) -> None:
        """Add the templates of a passing run."""
        self._add(
            1,
            {
                name: Usual(1, printed_lines.lines, printed_lines.lines, round(printed_lines.place * _MILLION))
                for name, printed_lines in printed.items()
            },
            None,
        )

    def merge(self, other: OutputProfile) -> None:
        """Add the runs of another profile, of other runs."""
        self._add(other.runs, other.templates, other.below)

    def _add(self, runs: int, templates: Mapping[str, Usual], below: bytes | None) -> None:
        self.runs += runs
        for name, usual in templates.items():
            present = self.templates.get(name)
            self.templates[name] = usual if present is None else present + usual
        if below is not None and (self.below is None or below < self.below):
            self.below = below
        self._bound()

    def _bound(self) -> None:
        """Keep the templates with the least digests: first all below the bound, then so many as are allowed."""
        if self.below is None and len(self.templates) <= MAX_OUTPUT_PROFILE_TEMPLATES:
            return
        digests = {name: template_digest(name) for name in self.templates}
        ordered = sorted(digests.values())
        if len(ordered) > MAX_OUTPUT_PROFILE_TEMPLATES:
            bound = ordered[MAX_OUTPUT_PROFILE_TEMPLATES]
            self.below = bound if self.below is None else min(self.below, bound)
        if self.below is not None:
            self.templates = {name: usual for name, usual in self.templates.items() if digests[name] < self.below}

    def judges(self, template: str) -> bool:
        """Return whether the profile would know a template if a run had printed it."""
        return self.below is None or template_digest(template) < self.below

    def is_new(self, template: str) -> bool:
        """Return whether no run printed a template; False if that is not known."""
        return template not in self.templates and self.judges(template)

    def __contains__(self, template: object) -> bool:
        """Return whether a template is not new: the profile stands for the known templates of a ranking."""
        return not self.is_new(str(template))

    def usual(self, share: float) -> dict[str, Usual]:
        """Return the templates that at least a share of the runs print, in the order of their places."""
        least = share * self.runs
        usual = ((name, usual_lines) for name, usual_lines in self.templates.items() if usual_lines.runs >= least)
        return dict(sorted(usual, key=lambda item: (item[1].place, item[0])))


def printed_templates(output: ScannedOutput) -> dict[str, Printed]:
    """Return what a run printed, by template, in the order of the first lines; without empty lines."""
    counts = np.bincount(output.codes, minlength=len(output.templates))
    firsts = _firsts(output.codes, len(output.templates)) / max(len(output.codes) - 1, 1)
    names = output.templates.to_pylist()
    return {
        names[code]: Printed(int(counts[code]), float(firsts[code])) for code in range(1, len(names)) if counts[code]
    }


def _firsts(codes: npt.NDArray[np.int32], number: int) -> npt.NDArray[np.float64]:
    """Return the index of the first line of each template."""
    firsts = np.zeros(number)
    present, first = np.unique(codes, return_index=True)
    firsts[present] = first
    return firsts


class Missing(NamedTuple):
    """A template that nearly all passing runs print, and this one does not."""

    template: str
    usual: Usual


class Unusual(NamedTuple):
    """A template with more or fewer lines than in any passing run."""

    template: str
    lines: int
    usual: Usual


class Differences(NamedTuple):
    """How an output departs from a profile, apart from its new lines.

    Attributes:
      missing: in the order of their places; with the first, the run began to differ.
      unusual: those that differ by the largest factor first.
    """

    missing: tuple[Missing, ...]
    unusual: tuple[Unusual, ...]


#: Runs that a profile needs before a template can be missing, or its number unusual.
MIN_RUNS = 5
#: The share of the runs that print what the others should.
_USUAL = 0.9
#: A number is unusual if it is outside of that of all runs by a half of it, and by more than two lines.
_FACTOR = 1.5
_LINES = 2


def differences_of(printed: Mapping[str, Printed], profile: OutputProfile) -> Differences:
    """Compare the output of a run with the profile of its job; a profile of fewer than `MIN_RUNS` shows nothing."""
    if profile.runs < MIN_RUNS:
        return Differences((), ())
    missing = [Missing(name, usual) for name, usual in profile.usual(_USUAL).items() if name not in printed]
    unusual = [
        Unusual(name, printed_lines.lines, usual)
        for name, printed_lines in printed.items()
        if (usual := profile.templates.get(name)) is not None and _is_unusual(printed_lines.lines, usual)
    ]
    return Differences(tuple(missing), tuple(sorted(unusual, key=lambda one: (-_factor(one), one.template))))


def _is_unusual(lines: int, usual: Usual) -> bool:
    more = lines > max(usual.high * _FACTOR, usual.high + _LINES)
    fewer = lines * _FACTOR < usual.low and lines + _LINES < usual.low
    return more or fewer


def _factor(unusual: Unusual) -> float:
    return max(unusual.lines / unusual.usual.high, unusual.usual.low / unusual.lines)


def profile_of(runs: Iterable[Mapping[str, Printed]]) -> OutputProfile:
    """Return the profile of passing runs."""
    profile = OutputProfile()
    for printed in runs:
        profile.add(printed)
    return profile
