"""The interface of a table of results, which its readers implement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from ciml.errors import CimlError
from ciml.limits import MAX_COLUMN_NAME_CHARACTERS, MAX_RESULTS_COLUMNS


class Row(NamedTuple):
    """A row: its number from 1 (a header is no row), and its cells by column, or why they cannot be read."""

    number: int
    cells: Mapping[str, Any]
    fault: str = ""


class ResultsTable(Protocol):
    """A table that can be read repeatedly, in bounded memory.

    Attributes:
      name: for messages.
      form: its format, such as ``text with semicolons``.
      columns: the names of its columns.
    """

    name: str
    form: str
    columns: tuple[str, ...]

    def rows(self) -> Iterator[Row]:
        """Yield the rows in order, from the first. Blank lines are no rows."""
        ...


def checked_columns(table: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return a table's column names. Several may have none, as the index that pandas writes.

    Raises:
      CimlError: too many columns, a name that is too long, or one that appears twice.
    """
    columns = tuple(names)
    if len(columns) > MAX_RESULTS_COLUMNS:
        raise CimlError(f"{table} has {len(columns):,} columns, at most {MAX_RESULTS_COLUMNS:,}; leave some out")
    seen = set[str]()
    for name in columns:
        if len(name) > MAX_COLUMN_NAME_CHARACTERS:
            raise CimlError(f"{table}: the column {name!r:.60} has a name that is too long; shorten it")
        if name and name in seen:
            raise CimlError(f"{table}: the column {name!r} appears twice; rename one")
        seen.add(name)
    return columns
