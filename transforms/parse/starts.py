"""All starts of the recorder in one log: the size check of their table, and the table."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa

from ciml.dstat.header import Columns, Segment
from ciml.errors import RejectedInput
from ciml.limits import CELLS_PER_LOG_BYTE, MAX_LOG_CELLS, MAX_LOG_COLUMNS, MAX_LOG_HEADERS, MIN_ROW_CELLS
from ciml.telemetry import OWN_COLUMNS, telemetry_columns
from ciml.transforms.parse.rows import with_nans
from ciml.transforms.parse.times import Bool


def check_size(segments: Sequence[Segment]) -> None:
    """Check the size of a log's table before it is built.

    Args:
      segments: the starts of the recorder.

    Raises:
      RejectedInput: ``too_many_restarts`` for too many different headers; ``log_too_wide`` for too many columns of all
        starts together; ``log_too_large`` for too many cells, or too many for the log's size. A start has nulls in the
        columns of the others, so a kilobyte of headers could demand any number of them.
    """
    headers = {segment.columns for segment in segments} if len(segments) > 1 else {segments[0].columns}
    if len(headers) > MAX_LOG_HEADERS:
        raise RejectedInput("too_many_restarts", f"{len(headers)} different headers, at most {MAX_LOG_HEADERS}")
    columns = _columns(headers)
    if columns > MAX_LOG_COLUMNS:
        raise RejectedInput("log_too_wide", f"{columns} columns, at most {MAX_LOG_COLUMNS}")
    wide = max(columns, MIN_ROW_CELLS)
    size = sum(segment.size for segment in segments)
    if len(segments) == 1 and size * wide <= MAX_LOG_CELLS:
        return  # the common case; a row has at least a byte
    rows = sum(_lines(segment.body) for segment in segments)
    if rows * wide > MAX_LOG_CELLS:
        raise RejectedInput("log_too_large", f"{rows * wide} cells in {rows} rows, at most {MAX_LOG_CELLS}")
    if len(segments) > 1 and rows * columns > size * CELLS_PER_LOG_BYTE:
        raise RejectedInput(
            "log_too_large",
            f"{len(segments)} starts with different columns: {rows * columns} cells for {size} bytes, "
            f"at most {CELLS_PER_LOG_BYTE} per byte",
        )


def _columns(headers: Collection[Columns]) -> int:
    """Return the number of columns of all headers, without time columns."""
    if len(headers) == 1:
        return sum(len(each.names) - each.names.count("") for each in headers)
    return len({name for each in headers for name in each.names if name})


def _lines(body: bytes) -> int:
    """Return an upper limit of a body's rows: a carriage return ends one as well."""
    lines = body.count(b"\n")
    return lines if b"\r" not in body else lines + body.count(b"\r") - body.count(b"\r\n")


def join_starts(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the table of a log from those of its starts, at least two.

    Work is linear in the cells of the tables, for any difference of columns. To Arrow a column that a table lacks is a
    chunk of that column, of which thousands of starts would have millions.
    """
    if all(table.schema.equals(tables[0].schema) for table in tables):
        return pa.concat_tables(tables).combine_chunks()
    names = list(dict.fromkeys(name for table in tables for name in telemetry_columns(table.column_names)))
    index_of = {name: index for index, name in enumerate(names)}
    values = np.full((len(names), sum(table.num_rows for table in tables)), np.nan)
    begin = 0
    for table in tables:
        end = begin + table.num_rows
        for name in telemetry_columns(table.column_names):
            values[index_of[name], begin:end] = with_nans(table.column(name).combine_chunks())
        begin = end
    own = pa.concat_tables([table.select(OWN_COLUMNS) for table in tables]).combine_chunks()
    return pa.Table.from_arrays([*own.columns, *map(_to_arrow, values)], names=[*own.column_names, *names])


def _to_arrow(column: np.ndarray) -> pa.Array:
    """Convert float64 [n] to Arrow without a copy; NaN becomes null."""
    there = ~np.isnan(column)
    return pa.Array.from_buffers(
        pa.float64(), len(column), [None if there.all() else bits_of(there), pa.py_buffer(column)]
    )


def bits_of(values: Bool) -> pa.Buffer:
    """Pack booleans as Arrow does."""
    return pa.py_buffer(np.packbits(values, bitorder="little"))
