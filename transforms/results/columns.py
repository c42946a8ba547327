"""Rows and columns of a table, and which column is which field of a listing: by the user's word, name or content.

Suggestions of a mapping: columns that became labels, but look like a field that no column was found for.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ciml.errors import CimlError, RejectedInput
from ciml.limits import MAX_COLUMN_NAME_CHARACTERS, MAX_ID_CHARACTERS, MAX_RESULTS_COLUMNS
from ciml.settings import read_toml
from ciml.transforms.results.values import is_log_path, is_missing, is_result_word, parse_time

#: Similarity of names, 0 to 1, from which a column is suggested: one letter of five may differ.
_SIMILAR = 0.8
_TIMES = ("start_time", "end_time")
#: In a mapping: leave the column out.
LEAVE_OUT = "-"


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
    suggestions: list[Suggestion] = []
    unused = list(columns.labels)
    for ours in columns.not_found:
        names = _time_columns(ours, unused, columns, sample) if ours in _TIMES else unused
        similar = _most_similar(ours, names)
        if similar is None and ours in _TIMES and len(names) == 1:
            suggestions.append(Suggestion(ours, names[0], "holds times"))
        elif similar is not None:
            why = "holds times" if ours in _TIMES else f"is spelled like {similar[1]}"
            suggestions.append(Suggestion(ours, similar[0], why))
        else:
            continue
        unused.remove(suggestions[-1].theirs)
    return tuple(suggestions)


def _time_columns(ours: str, free: Sequence[str], columns: Columns, sample: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns whose values are times that may be the start, or the end, of the runs."""
    start, end = (columns.theirs(name) for name in _TIMES)
    fitting = []
    for name in free:
        cells = [cell for row in sample if not is_missing(cell := row.get(name))]
        if not cells or not are_times(cells):
            continue
        first, second = (name, end) if ours == "start_time" else (start, name)
        if are_ordered(sample, first, second):
            fitting.append(name)
    return fitting


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


_NAMES = read_toml(Path(__file__).with_name("columns.toml"))
#: The fields of a listing, and the names under which tables have them, the likeliest first.
SYNONYMS: Mapping[str, tuple[str, ...]] = {field: tuple(names.split()) for field, names in _NAMES["synonyms"].items()}
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_OTHER = re.compile(r"[^a-z0-9]+")
_UNIT = re.compile(r"_(?:utc|ms|us|ns|s)$")
_INDEX = re.compile(r"(?:Unnamed: \d+|__index_level_\d+__)?")

How = Literal["given", "name", "content"]


class Row(NamedTuple):
    """A row: its number from 1 (a header is no row), and its cells by column, or why they cannot be read."""

    number: int
    cells: Mapping[str, Any]
    fault: str = ""


@dataclass(frozen=True)
class ResultsTable:
    """A table that can be read repeatedly, in bounded memory.

    Attributes:
      name: for messages.
      form: its format, such as ``text with semicolons``.
      columns: the names of its columns.
      rows: yields the rows in order, from the first, at each call. Blank lines are no rows.
    """

    name: str
    form: str
    columns: tuple[str, ...]
    rows: Callable[[], Iterator[Row]]


def checked_columns(table: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return a table's column names. Several may have none, as the index that pandas writes.

    Raises:
      CimlError: too many columns, a name that is too long, or one that appears twice.
    """
    columns = tuple(names)
    if len(columns) > MAX_RESULTS_COLUMNS:
        raise CimlError(f"{table} has {len(columns):,} columns, at most {MAX_RESULTS_COLUMNS:,}; leave some out")
    unique = set[str]()
    for name in columns:
        if len(name) > MAX_COLUMN_NAME_CHARACTERS:
            raise CimlError(f"{table}: the column {name!r:.60} has a name that is too long; shorten it")
        if name and name in unique:
            raise CimlError(f"{table}: the column {name!r} appears twice; rename one")
        unique.add(name)
    return columns


class Guess(NamedTuple):
    """A field of the listing, the table's column for it, and how it was found."""

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
        """The fields that no column was found for, in the order of `SYNONYMS`."""
        guessed = {guess.ours for guess in self.guesses}
        return tuple(ours for ours in SYNONYMS if ours not in guessed)

    def theirs(self, ours: str) -> str:
        """Return the table's column for a field, or ""."""
        return next((guess.theirs for guess in self.guesses if guess.ours == ours), "")


def normal_name(name: str) -> str:
    """Return a column's name in snake case: ``startTime``, ``Start Time`` and ``start_time`` are one."""
    return _OTHER.sub("_", _HUMP.sub("_", name).lower()).strip("_")


def find_columns(
    columns: Sequence[str], sample: Sequence[Mapping[str, Any]], mapping: Mapping[str, str], table: str
) -> Columns:
    """Find which of a table's columns is which field.

    Args:
      columns: the names of the table's columns.
      sample: some of its rows, by column.
      mapping: the user's word, their column → our field, or → `LEAVE_OUT`. It precedes every guess.
      table: the table's name, for messages.

    Raises:
      CimlError: the mapping names no such column or field; a field that every run needs is not found.
    """
    mapped = _given(columns, mapping, table)
    left_out = [name for name in columns if _INDEX.fullmatch(name) and name not in mapped]
    left_out += [name for name, ours in mapped.items() if ours == LEAVE_OUT]
    guesses = {ours: Guess(ours, theirs, "given") for theirs, ours in mapped.items() if ours != LEAVE_OUT}
    unused = [name for name in columns if name not in left_out and name not in mapped]
    by_name: dict[str, str] = {}
    for name in unused:
        by_name.setdefault(normal_name(name), name)
        by_name.setdefault(_UNIT.sub("", normal_name(name)), name)
    for ours, names in SYNONYMS.items():
        theirs = next((by_name[synonym] for synonym in names if by_name.get(synonym, "") in unused), None)
        if ours not in guesses and theirs is not None:
            guesses[ours] = Guess(ours, theirs, "name")
            unused.remove(theirs)
    for ours, theirs in _by_content(unused, sample, guesses.keys()):
        guesses[ours] = Guess(ours, theirs, "content")
        unused.remove(theirs)
    _check_needed(columns, guesses.keys(), table)
    return Columns(tuple(guesses[ours] for ours in SYNONYMS if ours in guesses), tuple(unused), tuple(left_out))


def _given(columns: Sequence[str], mapping: Mapping[str, str], table: str) -> dict[str, str]:
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


def _by_content(
    free: Sequence[str], sample: Sequence[Mapping[str, Any]], found: Sequence[str] | Any
) -> list[tuple[str, str]]:
    """Return (field, column) for needed fields without a column, where the values leave exactly one choice."""
    values = {name: [value for row in sample if not is_missing(value := row.get(name))] for name in free}
    guesses: list[tuple[str, str]] = []

    def only(fits: Callable[[list[Any]], bool]) -> list[str]:
        used = {theirs for _, theirs in guesses}
        return [name for name in free if name not in used and values[name] and fits(values[name])]

    if "start_time" not in found and "end_time" not in found:
        times = only(are_times)
        if len(times) == 2 and are_ordered(sample, *times[::-1]):
            times.reverse()
        if len(times) == 1 or (len(times) == 2 and are_ordered(sample, *times)):
            guesses += zip(("start_time", "end_time"), times, strict=False)
    for ours, fits in _FITS.items():
        if ours not in found and len(names := only(fits)) == 1:
            guesses.append((ours, names[0]))
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


#: What the values of a column have to be for a field, in the order of trying: a path is an id, too.
_FITS: Mapping[str, Callable[[list[Any]], bool]] = {
    "result": lambda cells: all(map(is_result_word, cells)),
    "log_path": lambda cells: all(map(is_log_path, cells)),
    "build_uuid": _is_id,
}


def _check_needed(columns: Sequence[str], found: Any, table: str) -> None:
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
    """Return what is wrong where the first row does not look like names of columns."""
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
