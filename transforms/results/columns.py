"""Find which column of a table is which field of a listing: by the user's mapping, by name or by content.

A *field* is one of ciml's, a *column* one of the table's. `find_columns` looks for the column of each field in three
steps, and each step uses only the fields and columns that the steps before left: the mapping, the columns' names, and
the columns' values. Other columns become labels. `suggest` names labels that look like a field without a column.

``columns.toml`` has three tables: ``synonyms``, by field the names that its columns usually have; ``aliases``, other
names of fields that users may write in a mapping; and ``meanings``, the fields that every run needs, for messages.
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
    """The column of a field.

    Attributes:
      ours: the field.
      theirs: the table's column.
      how: how it was found.
    """

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
        return tuple(field for field in SYNONYMS if field not in guessed)

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
      mapping: the user's mapping, column → field, or → `LEAVE_OUT`. It takes precedence.
      table: the table's name, for messages.

    Raises:
      CimlError: if the mapping has an unknown column or field, or a field that every run needs has no column.
    """
    mapped = _check_mapping(columns, mapping, table)
    skipped = [column for column in columns if _INDEX.fullmatch(column) and column not in mapped]
    skipped += [column for column, field in mapped.items() if field == LEAVE_OUT]
    by_field = {field: Guess(field, column, "given") for column, field in mapped.items() if field != LEAVE_OUT}
    unused = [column for column in columns if column not in skipped and column not in mapped]
    by_field |= _find_by_name(unused, by_field.keys())
    unused = _without(unused, by_field)
    by_field |= _find_by_content(unused, sample, by_field.keys())
    _check_needed(columns, by_field.keys(), table)
    guesses = tuple(by_field[field] for field in SYNONYMS if field in by_field)
    return Columns(guesses, tuple(_without(unused, by_field)), tuple(skipped))


def _without(columns: Sequence[str], found: Mapping[str, Guess]) -> list[str]:
    """Return the columns of no field."""
    used = {guess.theirs for guess in found.values()}
    return [column for column in columns if column not in used]


def _check_mapping(columns: Sequence[str], mapping: Mapping[str, str], table: str) -> dict[str, str]:
    """Return the user's mapping with the fields' own names instead of aliases."""
    fields: dict[str, str] = {}
    for column, name in mapping.items():
        if column not in columns:
            similar = difflib.get_close_matches(column[:200], columns, n=1)
            hint = f"did you mean {similar[0]!r:.80}?" if similar else f"it has {_listed(columns)}"
            raise CimlError(f"{table}: no column {column!r:.80}; {hint}")
        field = _NAMES["aliases"].get(name, name)
        if field not in SYNONYMS and field != LEAVE_OUT:
            raise CimlError(f"unknown field {name!r:.80}; choose from {', '.join(SYNONYMS)}, or {LEAVE_OUT} for none")
        if field != LEAVE_OUT and field in fields.values():
            raise CimlError(f"{field} has two columns, {column!r:.80} is the second; give one")
        fields[column] = field
    return fields


def _find_by_name(columns: Sequence[str], known: Collection[str]) -> dict[str, Guess]:
    """Return the columns of fields that are not ``known``, by their names, which may end with a unit.

    The likeliest synonym of a field counts. A column is that of the first field whose synonym it has.
    """
    by_name: dict[str, str] = {}
    for column in columns:
        by_name.setdefault(normal_name(column), column)
        by_name.setdefault(_UNIT.sub("", normal_name(column)), column)
    by_field: dict[str, Guess] = {}
    for field in SYNONYMS:
        columns_of_field = _without([by_name[name] for name in SYNONYMS[field] if name in by_name], by_field)
        if columns_of_field and field not in known:
            by_field[field] = Guess(field, columns_of_field[0], "name")
    return by_field


def _find_by_content(
    columns: Sequence[str], sample: Sequence[Mapping[str, Any]], known: Collection[str]
) -> dict[str, Guess]:
    """Return the columns of needed fields that are not ``known``, if the values of exactly one column fit."""
    by_field: dict[str, Guess] = {}
    if "start_time" not in known and "end_time" not in known:
        times = _fitting(columns, sample, are_times)
        if len(times) == 2 and are_ordered(sample, times[1], times[0]):
            times.reverse()
        if len(times) == 1 or (len(times) == 2 and are_ordered(sample, times[0], times[1])):
            by_field = {field: Guess(field, column, "content") for field, column in zip(_TIMES, times, strict=False)}
    for field, fits in _FITS.items():
        fitting = _fitting(_without(columns, by_field), sample, fits)
        if len(fitting) == 1 and field not in known:
            by_field[field] = Guess(field, fitting[0], "content")
    return by_field


def _fitting(
    columns: Sequence[str], sample: Sequence[Mapping[str, Any]], fits: Callable[[list[Any]], bool]
) -> list[str]:
    """Return the columns that have values, all of which fit."""
    values_of = {column: [row[column] for row in sample if not is_missing(row.get(column))] for column in columns}
    return [column for column, values in values_of.items() if values and fits(values)]


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
    missing = {field: f"the {meaning}" for field, meaning in _NAMES["meanings"].items() if field not in found}
    if "start_time" not in found and "end_time" not in found:
        missing["start_time"] = "the start or end time"
    if not missing:
        return
    *leading, last = missing.values()
    meanings = f"{', '.join(leading)} or {last}" if leading else last
    pronoun = "them" if leading else "it"
    options = " ".join(f"--map COLUMN={field}" for field in missing)
    raise CimlError(
        f"{table}: no column is {meanings}; name {pronoun} by {options}, or add {pronoun}{_header_hint(columns)}; "
        f"columns: {_listed(columns)}"
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
    unused = columns.labels
    for field in columns.not_found:
        suggestion = _suggest_for(field, unused, columns, sample)
        if suggestion is not None:
            suggestions.append(suggestion)
            unused = tuple(column for column in unused if column != suggestion.theirs)
    return tuple(suggestions)


def _suggest_for(
    field: str, unused: Sequence[str], columns: Columns, sample: Sequence[Mapping[str, Any]]
) -> Suggestion | None:
    """Suggest one of the unused columns for a field; None if none, or more than one column of times, may be meant."""
    if field not in _TIMES:
        similar = _most_similar(field, unused)
        return Suggestion(field, similar[0], f"is spelled like {similar[1]}") if similar else None
    time_columns = _time_columns(field, unused, columns, sample)
    similar = _most_similar(field, time_columns)
    if similar is None and len(time_columns) != 1:
        return None
    return Suggestion(field, similar[0] if similar else time_columns[0], "holds times")


def _time_columns(
    field: str, unused: Sequence[str], columns: Columns, sample: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return the columns whose values may be the start, or the end, of the runs."""
    times = _fitting(unused, sample, are_times)
    if field == "start_time":
        return [column for column in times if are_ordered(sample, column, columns.theirs("end_time"))]
    return [column for column in times if are_ordered(sample, columns.theirs("start_time"), column)]


def _most_similar(field: str, columns: Sequence[str]) -> tuple[str, str] | None:
    """Return the column whose name is most like a synonym of the field, and the synonym; None if none is alike."""
    column_of = {normal_name(column)[:200]: column for column in reversed(columns)}
    matches = [
        (difflib.SequenceMatcher(None, synonym, name).ratio(), name, synonym)
        for synonym in SYNONYMS[field]
        for name in difflib.get_close_matches(synonym, column_of, n=1, cutoff=_MIN_SIMILARITY)
    ]
    if not matches:
        return None
    _, name, synonym = max(matches)
    return column_of[name], synonym
