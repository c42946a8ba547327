"""Suggestions of a mapping: columns that became labels, but look like a field that no column was found for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ciml.results.columns import SYNONYMS, Columns, are_ordered, are_times, normal_name
from ciml.results.values import is_missing

#: Similarity of names, 0 to 1, from which a column is suggested: one letter of five may differ.
_SIMILAR = 0.8
_TIMES = ("start_time", "end_time")


class Suggestion(NamedTuple):
    """A mapping that the user may mean: ``--map COLUMN=FIELD``.

    Attributes:
      ours: the field of a listing, which no column was found for.
      theirs: the table's column.
      why: what the column has in common with the field.
    """

    ours: str
    theirs: str
    why: str

    @property
    def option(self) -> str:
        """The option of ``ciml load``."""
        mapping = f"{self.theirs}={self.ours}"
        return f'--map "{mapping}"' if " " in mapping else f"--map {mapping}"


def suggest(columns: Columns, sample: Sequence[Mapping[str, Any]]) -> tuple[Suggestion, ...]:
    """Return suggestions for the fields without a column, one at most for each, and for each column.

    Times are suggested by their values: a column of times that is before the end, or after the start. Other fields are
    suggested by names that are spelled alike.

    Args:
      columns: the meaning of the table's columns.
      sample: some of its rows, by column.
    """
    found: list[Suggestion] = []
    free = list(columns.labels)
    for ours in columns.not_found:
        names = _time_columns(ours, free, columns, sample) if ours in _TIMES else free
        near = _most_similar(ours, names)
        if near is None and ours in _TIMES and len(names) == 1:
            found.append(Suggestion(ours, names[0], "holds times"))
        elif near is not None:
            why = "holds times" if ours in _TIMES else f"is spelled like {near[1]}"
            found.append(Suggestion(ours, near[0], why))
        else:
            continue
        free.remove(found[-1].theirs)
    return tuple(found)


def _time_columns(ours: str, free: Sequence[str], columns: Columns, sample: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns whose values are times that may be the start, or the end, of the runs."""
    start, end = (columns.theirs(name) for name in _TIMES)
    found = []
    for name in free:
        cells = [cell for row in sample if not is_missing(cell := row.get(name))]
        if not cells or not are_times(cells):
            continue
        first, second = (name, end) if ours == "start_time" else (start, name)
        if are_ordered(sample, first, second):
            found.append(name)
    return found


def _most_similar(ours: str, names: Sequence[str]) -> tuple[str, str] | None:
    """Return the column whose name is most like a name of the field, and that name; None where none is alike."""
    normal = {normal_name(name)[:200]: name for name in reversed(names)}
    matches = [
        (difflib.SequenceMatcher(None, name, match[0]).ratio(), match[0], name)
        for name in SYNONYMS[ours]
        if (match := difflib.get_close_matches(name, normal, n=1, cutoff=_SIMILAR))
    ]
    if not matches:
        return None
    _, column, synonym = max(matches)
    return normal[column], synonym
