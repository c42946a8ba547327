"""Convert the rows of a table to lines of a listing: each row becomes a line (`GoodRow`) or a `BadRow` with a reason.

A field of the listing is called *ours*, the table's column for it *theirs* (`ciml.transforms.results.columns`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple

import orjson

from ciml.errors import CimlError, RejectedInput
from ciml.events.fields import iso_time
from ciml.events.listing import Reading, decode_line
from ciml.events.outcomes import outcome_of
from ciml.events.redaction import shown
from ciml.limits import MAX_RESULTS_ROWS
from ciml.transforms.results.columns import SYNONYMS, find_columns, normal_name, suggest
from ciml.transforms.results.table import ResultsTable, Row
from ciml.transforms.results.values import (
    is_missing,
    number_text,
    parse_attempt,
    parse_label,
    parse_path,
    parse_result,
    parse_time,
    text_of,
    zone_of,
)

#: Why a row cannot become a line of a listing, and what to do: a closed set, for people. It is not stored.
REASONS: Mapping[str, str] = {
    "broken_row": "correct the row, or its quotation marks",
    "missing_field": "fill the cell, or name another column by --map COLUMN=FIELD",
    "no_zone": "name the zone of these times, such as --zone UTC or --zone Europe/Berlin",
    "bad_time": "write ISO 8601, such as 2026-11-24T14:39:48Z, or epoch numbers, or name another column by --map "
    "COLUMN=start_time",
    "bad_result": "write success or failure, or name another column by --map COLUMN=result",
    "bad_path": "write paths relative to LOGS, or name as LOGS a folder that all of them are below",
    "bad_run_id": "name the column of the run id by --map COLUMN=build_uuid, of the attempt by --map COLUMN=attempt",
    "bad_field": "save the table in UTF-8, correct the text, or leave a column out by --map COLUMN=-",
    "duplicate_id": "name the column of the attempt by --map COLUMN=attempt, or leave the row out",
}
_SAMPLE_ROWS = 1000


class BadRow(NamedTuple):
    """A row that cannot be loaded.

    Attributes:
      number: of the row, from 1.
      reason: one of `REASONS`.
      column: the table's column, or "".
      value: the begin of the cell, or "".
      detail: the fault.
    """

    number: int
    reason: str
    column: str
    value: str
    detail: str


class GoodRow(NamedTuple):
    """A row as a line of a listing, and the row's number from 1."""

    number: int
    line: bytes


class Conversion:
    """The conversion of one table's rows.

    Args:
      table: the table.
      reading: how a listing's lines are read; its ``logs`` are the folder of the logs.
      roots: other spellings of that folder, for paths that begin with one.
      mapping: the user's columns: theirs → ours, or → ``-`` to leave one out.
      zone: IANA name of the zone of times without one.

    Attributes:
      columns: the meaning of the table's columns.
      suggestions: mappings that the user may mean.

    Raises:
      CimlError: if a needed column is missing, the zone is unknown, or there is no row.
    """

    def __init__(
        self,
        table: ResultsTable,
        reading: Reading,
        *,
        roots: tuple[str, ...] = (),
        mapping: Mapping[str, str] | None = None,
        zone: str | None = None,
    ) -> None:
        if zone is not None:
            zone_of(zone)
        self._table = table
        self._reading = reading
        sample = [row.cells for row in islice(table.rows(), _SAMPLE_ROWS)]
        if not sample:
            raise CimlError(f"{table.name} has no row; give a table with a row a run")
        sample = [cells for cells in sample if cells]
        self.columns = find_columns(table.columns, sample, mapping or {}, table.name)
        self.suggestions = suggest(self.columns, sample)
        result = self.columns.theirs("result")
        self._converters: dict[str, Callable[[Any], Any]] = {
            **dict.fromkeys(SYNONYMS, text_of),
            "change": number_text,
            "patchset": number_text,
            "attempt": parse_attempt,
            "result": partial(parse_result, column=normal_name(result)),
            "start_time": lambda cell: iso_time(parse_time(cell, zone)),
            "end_time": lambda cell: iso_time(parse_time(cell, zone)),
            "log_path": partial(parse_path, roots=(reading.logs, *roots)),
            "output_path": partial(_output_path, roots=(reading.logs, *roots)),
        }

    def rows(self) -> Iterator[GoodRow | BadRow]:
        """Yield each row of the table once, as a line or with its reason. Of two rows with an id, the first is good.

        Raises:
          CimlError: if the table has more than `MAX_RESULTS_ROWS` rows.
        """
        number_of: dict[bytes, int] = {}  # by digests, which are smaller than run ids
        for row in self._table.rows():
            if row.number > MAX_RESULTS_ROWS:
                raise CimlError(f"{self._table.name} has more than {MAX_RESULTS_ROWS:,} rows; split it")
            converted = self._convert(row)
            if isinstance(converted, BadRow):
                yield converted
                continue
            run_id, good = converted
            first = number_of.setdefault(blake2b(run_id.encode(), digest_size=12).digest(), row.number)
            if first == row.number:
                yield good
            else:
                column = self.columns.theirs("build_uuid")
                detail = f"row {first} has the same id and attempt"
                yield BadRow(row.number, "duplicate_id", column, _begin_of(row.cells[column]), detail)

    def _convert(self, row: Row) -> tuple[str, GoodRow] | BadRow:
        """Return the run id and the line of a row; or the row's fault."""
        if row.fault:
            return BadRow(row.number, "broken_row", "", "", row.fault)
        line: dict[str, Any] = {}
        for ours, theirs, _ in self.columns.guesses:
            cell = row.cells.get(theirs)
            if is_missing(cell):
                continue
            try:
                line[ours] = self._converters[ours](cell)
            except RejectedInput as rejected:
                return self._bad(row, rejected.reason, theirs, rejected.detail)
        if "result" in line:
            line["result"], outcome = line["result"]
            if outcome_of(line["result"]) is None:
                line["outcome"] = outcome
        labels = self._labels(row.cells)
        if labels:
            line["labels"] = labels
        try:
            data = orjson.dumps(line, option=orjson.OPT_SORT_KEYS)
            run = decode_line(data, self._reading)
        except orjson.JSONEncodeError:
            return BadRow(row.number, "bad_field", "", "", "a label is not UTF-8, or a number beyond 64 bits")
        except RejectedInput as rejected:
            return self._bad_line(row, rejected)
        if run.fault is not None:
            return self._bad_line(row, run.fault)
        return run.facts.run_id, GoodRow(row.number, data)

    def _labels(self, cells: Mapping[str, Any]) -> dict[str, Any]:
        labels = {name: parse_label(cells.get(name)) for name in self.columns.labels}
        nested = cells.get("labels") if "labels" in labels else None
        labels.update(nested if type(nested) is dict else {})
        return {name: label for name, label in labels.items() if not is_missing(label)}

    def _bad_line(self, row: Row, rejected: RejectedInput) -> BadRow:
        """Return the fault of a line, with the name of the table's column."""
        ours = rejected.detail.partition(":")[0]
        name = ours.removeprefix("labels.")
        return self._bad(row, rejected.reason, self.columns.theirs(ours) or name, rejected.detail)

    def _bad(self, row: Row, reason: str, column: str, detail: str) -> BadRow:
        reason = reason if reason in REASONS else "bad_field"
        return BadRow(row.number, reason, column, _begin_of(row.cells.get(column)), detail)


def _output_path(cell: Any, roots: Sequence[str]) -> str:
    """Convert a cell to the path of an output. One that leads elsewhere is not a fault of the row."""
    try:
        return parse_path(cell, roots)
    except RejectedInput:
        return text_of(cell)


def _begin_of(cell: Any) -> str:
    """Return the begin of a cell for a message; a text has quotation marks, and no secrets."""
    if cell is None:
        return ""
    return shown(cell, 60) if isinstance(cell, str) else f"{cell!s:.60}"
