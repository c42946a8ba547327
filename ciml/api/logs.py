"""Telemetry of a run from a log file or a table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeGuard

from ciml.api.types import DataFrame, Moment, Path, Run, Table
from ciml.errors import CimlError, RejectedInput, UnusableRunError
from ciml.telemetry import BOOT, TIME

if TYPE_CHECKING:
    import pyarrow as pa


def parse_log(
    path: Path, *, start: Moment | None = None, end: Moment | None = None, zone: str | None = None
) -> pa.Table:
    """Parse a log of dstat, dool or pcp-dstat.

    Args:
      path: a plain or gzip file.
      start: start of the run: a datetime with a zone, an ISO 8601 text with a zone, or epoch seconds. Together with
        ``end`` it decides year and zone where the log does not, and times the samples of a log without times.
      end: end of the run, in the same forms.
      zone: zone of a log that names none, such as ``Europe/Berlin`` or ``+02:00``.

    Returns:
      A table with ``time`` (timestamp[us, UTC]), ``boot`` (bool: the first sample after a start of the recorder), and a
      float64 column for each column of the log under its full name. Cells that are not numbers are null. The metadata
      of its schema has ``recorder``, ``starts``, ``dropped_rows`` and ``null_cells``.

    Raises:
      UnusableRunError: the file cannot be read, or is not telemetry.

    Example:
      >>> table = ciml.parse_log("logs/unit-001.csv")
      >>> table.num_rows, table.column_names[:3]
      (60, ['time', 'boot', 'total cpu usage:usr'])
      >>> len(table.to_pandas())
      60
    """
    from ciml.transforms.parse.logs import parse_files

    (parsed,) = parse_files([path], start_us=micros(start, "start"), end_us=micros(end, "end"), zone=zone)
    if isinstance(parsed, RejectedInput):
        raise UnusableRunError(f"{os.fspath(path)}: {parsed}", parsed.reason)
    return parsed


def is_frame(value: object) -> TypeGuard[DataFrame]:
    """Return whether a value is a pandas DataFrame. pandas itself may not be installed."""
    return type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "columns")


def is_table(value: object) -> TypeGuard[Table]:
    """Return whether a value is a table of pyarrow, pandas, or a library with the Arrow PyCapsule interface."""
    return is_frame(value) or hasattr(value, "__arrow_c_stream__")


def arrow_table(value: Table) -> pa.Table:
    """Return a table as one of pyarrow. The index of a DataFrame is dropped."""
    import pyarrow as pa

    return pa.Table.from_pandas(value, preserve_index=False) if is_frame(value) else pa.table(value)


def telemetry_of(value: Table) -> pa.Table:
    """Return telemetry in the form of `parse_log`, from such a table or DataFrame.

    Args:
      value: a table, or a DataFrame whose times are the column or the index ``time``. Times without a zone are UTC. A
        missing ``boot`` means no start of the recorder. Columns that hold no numbers are left out.

    Raises:
      UnusableRunError: it has no times.
    """
    import pyarrow as pa

    table = arrow_table(value.reset_index() if is_frame(value) and value.index.name == TIME else value)
    types = dict(zip(table.column_names, table.schema.types, strict=True))
    if TIME not in types or not pa.types.is_timestamp(types[TIME]):
        problem = f"it has the type {types[TIME]}" if TIME in types else f"columns: {', '.join(map(str, types))[:200]}"
        raise UnusableRunError(
            f"telemetry needs a column {TIME!r} of times, as ciml.parse_log returns it; {problem}", "not_telemetry"
        )
    columns = {TIME: table.column(TIME).cast(pa.timestamp("us", "UTC"), safe=False)}
    if BOOT in types and pa.types.is_boolean(types[BOOT]):
        columns[BOOT] = table.column(BOOT)
    else:
        columns[BOOT] = pa.chunked_array([pa.nulls(table.num_rows, pa.bool_()).fill_null(False)])
    for name, column_type in types.items():
        if name not in columns and (pa.types.is_floating(column_type) or pa.types.is_integer(column_type)):
            columns[name] = table.column(name).cast(pa.float64())
    return pa.table(columns)


def tables_of(runs: Iterable[Run], zone: str | None) -> Iterator[pa.Table | RejectedInput]:
    """Yield the telemetry of paths and tables in order, or why a file has none.

    Args:
      runs: paths of logs, and tables.
      zone: zone of logs that do not name one.
    """
    from ciml.transforms.parse.logs import parse_files

    for are_tables, group in groupby(runs, is_table):
        values: list[Any] = list(group)
        yield from map(telemetry_of, values) if are_tables else parse_files(values, zone=zone)


def micros(moment: Moment | None, name: str) -> int | None:
    """Return a moment as epoch microseconds. Raises `CimlError`, naming the argument, for an invalid one."""
    from ciml.events.fields import time_field

    value = moment.isoformat() if isinstance(moment, datetime) else moment
    try:
        return time_field({name: value}, name)
    except RejectedInput as rejected:
        raise CimlError(rejected.detail) from None
