"""The columns of telemetry: their names, their selection by a definition, and the anomalies in them.

A telemetry table has a column ``time`` (timestamp[us, UTC]), a column ``boot`` (bool) and one float64 column for each
column of the log, named ``group:name`` as in ``total cpu usage:usr``. It comes from
`ciml.transforms.parse.logs.parse_logs`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ciml.errors import CimlError

if TYPE_CHECKING:
    import pyarrow as pa

TIME = "time"
BOOT = "boot"
#: Columns of every table that are not telemetry.
OWN_COLUMNS = (TIME, BOOT)

#: Common names of the load averages.
_ALIASES = {"1m": "1min", "5m": "5min", "15m": "15min"}
#: Units of telemetry columns, by a word of the group of the column. Of several words the first in this order decides.
_UNITS = {
    "cpu": "% of the time",
    "load": "processes",
    "memory": "B",
    "swap": "B",
    "dsk": "B/s",
    "net": "B/s",
    "paging": "B/s",
    "io": "requests/s",
    "system": "1/s",
    "interrupts": "1/s",
    "procs": "processes",
}
_REPEATED = re.compile(r"#\d+$")
_MAX_PATTERN_CHARACTERS = 1000


def telemetry_columns(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the telemetry columns among a table's, in their order."""
    return tuple(name for name in names if name not in OWN_COLUMNS)


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """Append ``#2``, ``#3``, … to names that repeat an earlier one. Empty names are unchanged."""
    reserved = set(names)
    counts: Counter[str] = Counter()
    result: list[str] = []
    for name in names:
        counts[name] += 1
        unique_name = name
        while name and counts[name] > 1:
            unique_name = f"{name}#{counts[name]}"
            if unique_name not in reserved:
                break
            counts[name] += 1
        reserved.add(unique_name)
        result.append(unique_name)
    return tuple(result)


def short_names(columns: Iterable[str]) -> dict[str, str]:
    """Map full names to short names, for columns in the order of the log.

    The short name (``usr`` for ``total cpu usage:usr``) belongs to its first occurrence; columns that repeat it keep
    their full name. ``time`` and ``boot`` are left out.
    """
    short_of_full: dict[str, str] = {}
    reserved = {"", *OWN_COLUMNS}
    for full in telemetry_columns(columns):
        short = full.rpartition(":")[2]
        if short in reserved or _REPEATED.search(short):
            short = full
        reserved.add(short)
        short_of_full[full] = short
    return short_of_full


def select_columns(columns: Iterable[str], features_regex: str) -> tuple[str, ...]:
    """Return the full names of the columns that a definition's ``features_regex`` selects, in the order of the log.

    The pattern is searched in the short names, where ``1m``, ``5m`` and ``15m`` are also called ``1min``, ``5min`` and
    ``15min``. A pattern with a colon (other than in ``(?:…)``) is searched in the full names instead, such as
    ``load avg:1m``.

    Returns:
      The names; empty if no column matches, which the caller has to handle.

    Raises:
      CimlError: ``features_regex`` is not a regular expression.
    """
    if len(features_regex) > _MAX_PATTERN_CHARACTERS:
        raise CimlError(f"features_regex has {len(features_regex)} characters, at most {_MAX_PATTERN_CHARACTERS}")
    try:
        pattern = re.compile(features_regex)
    except (re.error, OverflowError, RecursionError, MemoryError, ValueError) as error:
        raise CimlError(f"{features_regex!r} is not a regular expression: {error}") from None
    searches_full_names = ":" in re.sub(r"\(\?[a-zA-Z-]*:", "(", features_regex)
    selected: list[str] = []
    for full, short in short_names(columns).items():
        name = full if searches_full_names else short
        group, colon, column = name.rpartition(":")
        alias = f"{group}{colon}{_ALIASES.get(column, column)}"
        if pattern.search(name) or pattern.search(alias):
            selected.append(full)
    return tuple(selected)


def unit_of(column: str) -> str:
    """Return the unit of a telemetry column by its full name (``load avg:1m``), or "" if it is unknown."""
    group, _, name = column.partition(":")
    if (group, name) == ("procs", "new"):
        return "processes/s"
    return next((unit for word, unit in _UNITS.items() if word in group.replace("/", " ").split()), "")


@dataclass(frozen=True)
class Anomaly:
    """An anomaly in a table that is no reason to reject it.

    Attributes:
      kind: ``nulls``, ``negative`` (both with a column), ``clock_set_back`` or ``gaps``.
      column: the column's full name, "" for the table as a whole.
      count: number of cells or steps.
      share: that count over all cells or steps, from 0 to 1.
    """

    kind: str
    column: str
    count: int
    share: float

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "column": self.column, "count": self.count, "share": round(self.share, 6)}


def find_anomalies(table: pa.Table) -> list[Anomaly]:
    """Return the anomalies in a telemetry table, in the order of its columns; cheap enough for every run.

    A gap is a step of more than ten times the median step.
    """
    if table.num_rows == 0:
        return []
    return [*_time_anomalies(table), *_value_anomalies(table)]


def _time_anomalies(table: pa.Table) -> Iterator[Anomaly]:
    import numpy as np
    import pyarrow as pa

    times = np.from_dlpack(table.column(TIME).combine_chunks().view(pa.int64()))
    steps = np.diff(times)
    if steps.size == 0:
        return
    median_step = np.partition(steps, steps.size // 2)[steps.size // 2]  # np.median takes five times as long
    backward_steps = int(np.count_nonzero(steps < 0))
    if backward_steps:
        yield Anomaly("clock_set_back", "", backward_steps, backward_steps / steps.size)
    gaps = int(np.count_nonzero(steps > 10 * median_step)) if median_step > 0 else 0
    if gaps:
        yield Anomaly("gaps", "", gaps, gaps / steps.size)


def _value_anomalies(table: pa.Table) -> Iterator[Anomaly]:
    import numpy as np

    names = telemetry_columns(table.column_names)
    if not names:
        return
    batch = table.select(names).combine_chunks().to_batches()[0]
    values = batch.to_tensor(null_to_nan=True).to_numpy()
    nulls = np.count_nonzero(np.isnan(values), axis=0).tolist()
    negatives = np.count_nonzero(values < 0, axis=0).tolist()
    for name, null_count, negative_count in zip(names, nulls, negatives):
        if null_count:
            yield Anomaly("nulls", name, null_count, null_count / table.num_rows)
        if negative_count:
            yield Anomaly("negative", name, negative_count, negative_count / table.num_rows)
