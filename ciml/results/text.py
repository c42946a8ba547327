"""Tables of text, read line by line within limits: CSV and its kin with any of four delimiters, and JSON lines."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any

from ciml.errors import CimlError, RejectedInput
from ciml.events.json_input import parse_json
from ciml.limits import MAX_RESULTS_CELL_CHARACTERS, MAX_RESULTS_ROW_BYTES
from ciml.results.columns import Row, checked_columns
from ciml.results.values import NO_VALUE

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_BOM = b"\xef\xbb\xbf"
_SNIFFED_LINES = 20


class DelimitedTable:
    """A table of delimited text in UTF-8, with a header.

    Args:
      name: for messages.
      file: binary and seekable; it is read anew by each `rows`.

    Raises:
      CimlError: the header is too long, has too many columns, or names one twice.
    """

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self.name, self._file = name, file
        lines = _Lines(file)
        head = list(islice(lines, _SNIFFED_LINES))
        if not head:
            raise CimlError(f"{name}: its first line has more than {MAX_RESULTS_ROW_BYTES:,} bytes; is it a table?")
        self._delimiter = _sniff(head)
        self.form = f"text with {DELIMITERS[self._delimiter]}"
        try:
            header = next(filter(None, csv.reader(head, delimiter=self._delimiter)), None)
        except csv.Error as error:
            raise CimlError(f"{name}: cannot read the header: {error}") from None
        if header is None:
            raise CimlError(f"{name}: its first {len(head)} lines are blank; begin with the names of the columns")
        self.columns = checked_columns(name, (column.strip() for column in header))

    def rows(self) -> Iterator[Row]:
        """Yield the rows. A row with another number of cells than the header, or beyond a limit, has a fault."""
        lines, number = _Lines(self._file), -1
        reader = csv.reader(lines, delimiter=self._delimiter)
        while True:
            lines.begin_row()
            cells, fault = [], ""
            try:
                cells = next(reader)
            except StopIteration:
                if not lines.too_long:
                    return
            except csv.Error as error:
                fault = str(error)
            if lines.too_long:  # the reader saw an end there
                fault = f"more than {MAX_RESULTS_ROW_BYTES:,} bytes"
                reader = csv.reader(lines, delimiter=self._delimiter)
            if not cells and not fault:
                continue  # a blank line
            number += 1
            if number:  # the first is the header
                fault = fault or self._fault_of(cells)
                yield Row(number, {} if fault else dict(zip(self.columns, map(_value, cells), strict=True)), fault)

    def _fault_of(self, cells: list[str]) -> str:
        if len(cells) != len(self.columns):
            return f"{len(cells):,} cells, but the header has {len(self.columns):,}"
        if max(map(len, cells)) > MAX_RESULTS_CELL_CHARACTERS:
            return f"a cell has more than {MAX_RESULTS_CELL_CHARACTERS:,} characters"
        return ""


class JsonLinesTable:
    """A table of JSON lines: an object a line; its columns are all keys.

    Args:
      name: for messages.
      file: binary and seekable; it is read anew by each `rows`.

    Raises:
      CimlError: no line is an object, or there are too many keys.
    """

    form = "JSON lines"

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self.name, self._file = name, file
        keys: dict[str, None] = {}
        for row in self.rows():
            if not row.cells.keys() <= keys.keys():
                keys.update(dict.fromkeys(row.cells))
                checked_columns(name, keys)
        if not keys:
            raise CimlError(f"{name} holds no line that is a JSON object; write JSON lines, an object a run")
        self.columns = tuple(keys)

    def rows(self) -> Iterator[Row]:
        """Yield the rows; a line that is no object has a fault."""
        number = 0
        self._file.seek(0)
        while line := self._file.readline(MAX_RESULTS_ROW_BYTES + 1):
            too_long = len(line) > MAX_RESULTS_ROW_BYTES
            rest = line
            while too_long and rest and not rest.endswith(b"\n"):
                rest = self._file.readline(MAX_RESULTS_ROW_BYTES)
            line = line.removeprefix(_BOM).strip()
            if line:
                number += 1
                yield Row(number, {}, f"more than {MAX_RESULTS_ROW_BYTES:,} bytes") if too_long else _row(number, line)


class _Lines:
    """The lines of a file as texts. It ends early where a row is too long; the next call goes on after that line.

    Bytes that are not UTF-8 become lone surrogates, which no field of a listing may hold.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = MAX_RESULTS_ROW_BYTES
        self.too_long = False
        file.seek(0)
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(self._left + 1)
        if not line:
            raise StopIteration
        self._left -= len(line)
        if self._left < 0:
            while line and not line.endswith(b"\n"):
                line = self._file.readline(MAX_RESULTS_ROW_BYTES)
            self.too_long = True
            raise StopIteration
        return line.decode("utf-8", "surrogateescape")

    def begin_row(self) -> None:
        """Give the next row its own limit. The lines of a quoted cell count together."""
        self._left, self.too_long = MAX_RESULTS_ROW_BYTES, False


def _sniff(head: list[str]) -> str:
    """Return the delimiter by which the header has several cells, and the most lines as many as the header."""

    def agreement(delimiter: str) -> tuple[float, int]:
        try:
            widths = [len(cells) for cells in csv.reader(head, delimiter=delimiter) if cells]
        except csv.Error:
            return (0.0, 0)
        if not widths or widths[0] == 1:
            return (0.0, 0)
        return (sum(width == widths[0] for width in widths) / len(widths), widths[0])

    return max(DELIMITERS, key=agreement)


def _value(cell: str) -> str | None:
    return None if cell in NO_VALUE else cell


def _row(number: int, line: bytes) -> Row:
    try:
        cells: Any = parse_json(line)
    except RejectedInput as rejected:
        return Row(number, {}, rejected.detail)
    return Row(number, cells) if type(cells) is dict else Row(number, {}, "not an object")
