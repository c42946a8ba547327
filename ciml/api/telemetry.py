"""Telemetry as an argument: of log files, and of tables of pyarrow, pandas and others."""

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
      A table with ``time`` (timestamp[us, UTC]) and ``boot`` (bool: the first sample after a start of the recorder).
      Each column of the log is a float64 column under its full name. Cells that are not numbers are null. The metadata
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


def _table_telemetry(value: Table) -> pa.Table | RejectedInput:
    """Return a table or DataFrame in the form of `parse_log`, or why it is not telemetry.

    A DataFrame has its times in the column or the index ``time``. Times without a zone are UTC. Without a column
    ``boot``, no sample counts as the first after a start of the recorder. Columns that hold no numbers are left out.
    """
    import pyarrow as pa

    try:
        table = arrow_table(value.reset_index() if is_frame(value) and value.index.name == TIME else value)
    except pa.ArrowException as error:
        return RejectedInput("not_telemetry", str(error)[:200])
    types = dict(zip(table.column_names, table.schema.types, strict=True))
    if TIME not in types or not pa.types.is_timestamp(types[TIME]):
        problem = f"it has the type {types[TIME]}" if TIME in types else f"columns: {', '.join(map(str, types))[:200]}"
        return RejectedInput(
            "not_telemetry",
            f"telemetry needs a column {TIME!r} of times, as ciml.parse_log returns it; {problem}",
        )
    if BOOT in types and not pa.types.is_boolean(types[BOOT]):
        return RejectedInput("not_telemetry", f"the column {BOOT!r} must be boolean; it has the type {types[BOOT]}")
    boot = table.column(BOOT) if BOOT in types else pa.array([False] * table.num_rows, pa.bool_())
    columns = {TIME: table.column(TIME).cast(pa.timestamp("us", "UTC"), safe=False), BOOT: boot}
    for name, column_type in types.items():
        if name not in columns and (pa.types.is_floating(column_type) or pa.types.is_integer(column_type)):
            columns[name] = table.column(name).cast(pa.float64())
    return pa.table(columns)


def parse_runs(runs: Iterable[Run], zone: str | None) -> Iterator[pa.Table | RejectedInput]:
    """Yield the telemetry of paths and tables in order, or why one has none.

    Args:
      runs: paths of logs, and tables.
      zone: zone of logs that do not name one.
    """
    from ciml.transforms.parse.logs import parse_files

    for are_tables, group in groupby(runs, is_table):  # consecutive paths are parsed together
        values: list[Any] = list(group)
        if are_tables:
            yield from map(_table_telemetry, values)
        else:
            yield from parse_files(values, zone=zone)


def micros(moment: Moment | None, name: str) -> int | None:
    """Return a moment as epoch microseconds. Raises `CimlError`, naming the argument, for an invalid one."""
    from ciml.events.fields import time_field

    value = moment.isoformat() if isinstance(moment, datetime) else moment
    try:
        return time_field({name: value}, name)
    except RejectedInput as rejected:
        raise CimlError(rejected.detail) from None
