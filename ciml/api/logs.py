"""Logs: telemetry from a file, a table or a data frame."""

from __future__ import annotations

import os
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ciml.errors import CimlError, RejectedInput
from ciml.telemetry import BOOT, TIME

if TYPE_CHECKING:
    import pyarrow as pa

#: A moment: a datetime with a zone, an ISO 8601 text with a zone, or epoch seconds.
Moment = datetime | str | float


def parse_log(
    path: str | os.PathLike[str], *, start: Moment | None = None, end: Moment | None = None, zone: str | None = None
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
      CimlError: the file cannot be read, or is not telemetry.

    Example:
      >>> table = ciml.parse_log("logs/unit-001.csv")
      >>> table.num_rows, table.column_names[:3]
      (60, ['time', 'boot', 'total cpu usage:usr'])
      >>> len(table.to_pandas())
      60
    """
    from ciml.transforms.parse.logs import parse_files

    (found,) = parse_files([path], start_us=micros(start, "start"), end_us=micros(end, "end"), zone=zone)
    if isinstance(found, RejectedInput):
        raise CimlError(f"{os.fspath(path)}: {found}")
    return found


def is_frame(value: Any) -> bool:
    """Return whether a value is a pandas DataFrame. pandas itself may not be installed."""
    return type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "columns")


def telemetry_of(value: Any) -> pa.Table:
    """Return telemetry in the form of `parse_log`, from such a table or its data frame.

    Args:
      value: a table, or a DataFrame whose times are the column or the index ``time``. Times without a zone are UTC. A
        missing ``boot`` means no start of the recorder. Columns that hold no numbers are left out.

    Raises:
      CimlError: it has no times.
    """
    import pyarrow as pa

    if is_frame(value):
        frame = value.reset_index() if value.index.name == TIME else value
        value = pa.Table.from_pandas(frame, preserve_index=False)
    kinds = dict(zip(value.column_names, value.schema.types, strict=True))
    if TIME not in kinds or not pa.types.is_timestamp(kinds[TIME]):
        found = f"it has the type {kinds[TIME]}" if TIME in kinds else f"columns: {', '.join(map(str, kinds))[:200]}"
        raise CimlError(f"telemetry needs a column {TIME!r} of times, as ciml.parse_log returns it; {found}")
    columns = {TIME: value.column(TIME).cast(pa.timestamp("us", "UTC"), safe=False)}
    if BOOT in kinds and pa.types.is_boolean(kinds[BOOT]):
        columns[BOOT] = value.column(BOOT)
    else:
        columns[BOOT] = pa.chunked_array([pa.nulls(value.num_rows, pa.bool_()).fill_null(False)])
    for name, kind in kinds.items():
        if name not in columns and (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            columns[name] = value.column(name).cast(pa.float64())
    return pa.table(columns)


def micros(moment: Moment | None, name: str) -> int | None:
    """Return a moment as epoch microseconds. Raises `CimlError`, naming the argument, for an invalid one."""
    from ciml.events.fields import time_us

    value = moment.isoformat() if isinstance(moment, datetime) else moment
    try:
        return time_us({name: value}, name)
    except RejectedInput as rejected:
        raise CimlError(rejected.detail) from None
