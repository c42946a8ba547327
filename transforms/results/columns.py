"""Find which column of a table is which field of a listing: by the user's mapping, by name or by content.

A field is called *ours*, the table's column for it *theirs*. `find_columns` finds them. Other columns become labels.
`suggest` names labels that look like a field without a column.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ciml.errors import CimlError, RejectedInput
from ciml.limits import MAX_ID_CHARACTERS
from ciml.settings import read_toml
from ciml.transforms.results.values import is_log_path, is_missing, is_result_word, parse_time

#: In a mapping: leave the column out.
LEAVE_OUT = "-"
#: The least similarity of names, 0 to 1, of a suggestion: one letter of five may differ.
_MIN_SIMILARITY = 0.8
_TIMES = ("start_time", "end_time")
_NAMES = read_toml(Path(__file__).with_name("columns.toml"))
#: The fields of a listing, and the names under which tables have them, the likeliest first.
SYNONYMS: Mapping[str, tuple[str, ...]] = {field: tuple(names.split()) for field, names in _NAMES["synonyms"].items()}
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SEPARATORS = re.compile(r"[^a-z0-9]+")
_UNIT = re.compile(r"_(?:utc|ms|us|ns|s)$")
#: Names of an index that pandas writes.
_INDEX = re.compile(r"(?:Unnamed: \d+|__index_level_\d+__)?")

#: How the column of a field was found: by the user's mapping, its name or its values.
How = Literal["given", "name", "content"]


class Guess(NamedTuple):
    """A field of the listing (ours), the table's column for it (theirs), and how it was found."""

    ours: str
    theirs: str
    how: How


@dataclass(frozen=True)
class Columns:
    """The meaning of a table's columns.

    Attributes:
      guesses: in the order of `SYNONYMS`.
      labels: columns that become labels of the run.
      left_out: columns that are not read: nameless ones (an index), and those that the user leaves out.
    """

    guesses: tuple[Guess, ...]
    labels: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @property
    def not_found(self) -> tuple[str, ...]:
        """The fields without a column, in the order of `SYNONYMS`."""
        guessed = {guess.ours for guess in self.guesses}
        return tuple(ours for ours in SYNONYMS if ours not in guessed)

    def theirs(self, ours: str) -> str:
        """Return the table's column for a field, or ""."""
        return next((guess.theirs for guess in self.guesses if guess.ours == ours), "")


def normal_name(name: str) -> str:
    """Return a column's name in snake case: ``startTime``, ``Start Time`` and ``start_time`` are one."""
    return _SEPARATORS.sub("_", _HUMP.sub("_", name).lower()).strip("_")


def find_columns(
    columns: Sequence[str], sample: Sequence[Mapping[str, Any]], mapping: Mapping[str, str], table: str
) -> Columns:
    """Find which of a table's columns is which field.

    Args:
      columns: the names of the table's columns.
      sample: some of its rows, by column.
      mapping: the user's mapping, their column → our field, or → `LEAVE_OUT`. It takes precedence.
      table: the table's name, for messages.

    Raises:
      CimlError: if the mapping has an unknown column or field, or a field that every run needs has no column.
    """
    mapped = _check_mapping(columns, mapping, table)
    left_out = [name for name in columns if _INDEX.fullmatch(name) and name not in mapped]
    left_out += [name for name, ours in mapped.items() if ours == LEAVE_OUT]
    guesses = {ours: Guess(ours, theirs, "given") for theirs, ours in mapped.items() if ours != LEAVE_OUT}
    unused = [name for name in columns if name not in left_out and name not in mapped]
    by_name: dict[str, str] = {}
    for name in unused:
        by_name.setdefault(normal_name(name), name)
        by_name.setdefault(_UNIT.sub("", normal_name(name)), name)
    for ours, synonyms in SYNONYMS.items():
        theirs = next((by_name[synonym] for synonym in synonyms if by_name.get(synonym, "") in unused), None)
        if ours not in guesses and theirs is not None:
            guesses[ours] = Guess(ours, theirs, "name")
            unused.remove(theirs)
    for ours, theirs in _guess_by_content(unused, sample, guesses.keys()).items():
        guesses[ours] = Guess(ours, theirs, "content")
        unused.remove(theirs)
    _check_needed(columns, guesses.keys(), table)
    return Columns(tuple(guesses[ours] for ours in SYNONYMS if ours in guesses), tuple(unused), tuple(left_out))


def _check_mapping(columns: Sequence[str], mapping: Mapping[str, str], table: str) -> dict[str, str]:
    """Return the user's mapping with the fields' own names."""
    mapped: dict[str, str] = {}
    for theirs, name in mapping.items():
        if theirs not in columns:
            similar = difflib.get_close_matches(theirs[:200], columns, n=1)
            hint = f"did you mean {similar[0]!r:.80}?" if similar else f"it has {_listed(columns)}"
            raise CimlError(f"{table}: no column {theirs!r:.80}; {hint}")
        ours = _NAMES["aliases"].get(name, name)
        if ours not in SYNONYMS and ours != LEAVE_OUT:
            raise CimlError(f"unknown field {name!r:.80}; choose from {', '.join(SYNONYMS)}, or {LEAVE_OUT} for none")
        if ours != LEAVE_OUT and ours in mapped.values():
            raise CimlError(f"{ours} has two columns, {theirs!r:.80} is the second; give one")
        mapped[theirs] = ours
    return mapped


def _guess_by_content(
    unused: Sequence[str], sample: Sequence[Mapping[str, Any]], found: Collection[str]
) -> dict[str, str]:
    """Return the column of each needed field that is not ``found``, if the values of exactly one column fit."""
    cells_of: dict[str, list[Any]] = {}
    for name in unused:
        cells = [row.get(name) for row in sample]
        cells_of[name] = [cell for cell in cells if not is_missing(cell)]
    guesses: dict[str, str] = {}

    def fitting(fits: Callable[[list[Any]], bool]) -> list[str]:
        free = [name for name in unused if name not in guesses.values()]
        return [name for name in free if cells_of[name] and fits(cells_of[name])]

    if "start_time" not in found and "end_time" not in found:
        times = fitting(are_times)
        if len(times) == 2 and are_ordered(sample, times[1], times[0]):
            times.reverse()
        if len(times) == 1:
            guesses["start_time"] = times[0]
        elif len(times) == 2 and are_ordered(sample, times[0], times[1]):
            guesses["start_time"] = times[0]
            guesses["end_time"] = times[1]
    for ours, fits in _FITS.items():
        names = [] if ours in found else fitting(fits)
        if len(names) == 1:
            guesses[ours] = names[0]
    return guesses


def _time_us(cell: Any) -> int | None:
    """Return a cell's instant if it is a time, in any zone."""
    try:
        return parse_time(cell, "UTC")
    except RejectedInput:
        return None


def are_times(cells: Sequence[Any]) -> bool:
    """Return whether all cells are times, in any zone."""
    return all(_time_us(cell) is not None for cell in cells)


def are_ordered(sample: Sequence[Mapping[str, Any]], first: str, second: str) -> bool:
    """Return whether no time in one column is after that in another, as far as both are known and times."""
    pairs = [(_time_us(row.get(first)), _time_us(row.get(second))) for row in sample]
    return all(start <= end for start, end in pairs if start is not None and end is not None)


def _is_id(cells: list[Any]) -> bool:
    texts = {str(cell) for cell in cells if type(cell) in (str, int)}
    return len(texts) == len(cells) > 1 and not any(" " in text or len(text) > MAX_ID_CHARACTERS for text in texts)


#: Tests of a column's values for a field. Their order matters: a path is an id, too.
_FITS: Mapping[str, Callable[[list[Any]], bool]] = {
    "result": lambda cells: all(map(is_result_word, cells)),
    "log_path": lambda cells: all(map(is_log_path, cells)),
    "build_uuid": _is_id,
}


def _check_needed(columns: Sequence[str], found: Collection[str], table: str) -> None:
    """Raise `CimlError` if a field that every run needs is not ``found``."""
    missing = {ours: meaning for ours, meaning in _NAMES["meanings"].items() if ours not in found}
    if "start_time" not in found and "end_time" not in found:
        missing["start_time"] = "start or end time"
    if missing:
        *meanings, last = [f"the {meaning}" for meaning in missing.values()]
        problem = f"no column is {', '.join(meanings)} or {last}" if meanings else f"no column is {last}"
        options = " ".join(f"--map COLUMN={ours}" for ours in missing)
        pronoun = "them" if meanings else "it"
        raise CimlError(
            f"{table}: {problem}; name {pronoun} by {options}, or add {pronoun}{_header_hint(columns)}; columns: "
            f"{_listed(columns)}"
        )


def _header_hint(columns: Sequence[str]) -> str:
    """Return the likely mistake if the first row does not look like names of columns, or ""."""
    if len(columns) == 1:
        return "; only commas, semicolons, tabs or vertical bars separate columns"
    synonyms = {name for names in SYNONYMS.values() for name in names}
    named = any(normal_name(name) in synonyms for name in columns if not is_result_word(name))
    if not named and any(is_log_path(name) or (not name.isdigit() and are_times([name])) for name in columns):
        return "; the first row looks like a run, but must have the names of the columns"
    return ""


def _listed(columns: Sequence[str], most: int = 30) -> str:
    more = f" and {len(columns) - most} more" if len(columns) > most else ""
    return ", ".join(f"{name:.60}" if name else "(no name)" for name in columns[:most]) + more


class Suggestion(NamedTuple):
    """A mapping that the user may mean: ``--map COLUMN=FIELD``.

    Attributes:
      ours: a field without a column.
      theirs: the table's column.
      why: the reason, such as ``holds times``.
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
    """Suggest columns for the fields without one, at most one for each field.

    Times are suggested by their values: a column of times before the end, or after the start. Other fields are
    suggested by names that are spelled alike.

    Args:
      columns: the meaning of the table's columns.
      sample: some of its rows, by column.
    """
    suggestions: list[Suggestion] = []
    unused = list(columns.labels)
    for ours in columns.not_found:
        is_time = ours in _TIMES
        names = _time_columns(ours, unused, columns, sample) if is_time else unused
        similar = _most_similar(ours, names)
        if similar is not None:
            theirs, synonym = similar
            why = "holds times" if is_time else f"is spelled like {synonym}"
        elif is_time and len(names) == 1:
            theirs = names[0]
            why = "holds times"
        else:
            continue
        suggestions.append(Suggestion(ours, theirs, why))
        unused.remove(theirs)
    return tuple(suggestions)


def _time_columns(ours: str, unused: Sequence[str], columns: Columns, sample: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns whose values may be the start, or the end, of the runs."""
    fitting = []
    for name in unused:
        cells = [row.get(name) for row in sample]
        times = [cell for cell in cells if not is_missing(cell)]
        if not times or not are_times(times):
            continue
        start = name if ours == "start_time" else columns.theirs("start_time")
        end = name if ours == "end_time" else columns.theirs("end_time")
        if are_ordered(sample, start, end):
            fitting.append(name)
    return fitting


def _most_similar(ours: str, names: Sequence[str]) -> tuple[str, str] | None:
    """Return the column whose name is most like a synonym of the field, and the synonym; None if none is alike."""
    columns = {normal_name(name)[:200]: name for name in reversed(names)}
    matches = []
    for synonym in SYNONYMS[ours]:
        for name in difflib.get_close_matches(synonym, columns, n=1, cutoff=_MIN_SIMILARITY):
            matches.append((difflib.SequenceMatcher(None, synonym, name).ratio(), name, synonym))
    if not matches:
        return None
    _, name, synonym = max(matches)
    return columns[name], synonym
