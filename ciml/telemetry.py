"""The columns of telemetry: their names, their selection by a definition, and checks of a table.

A telemetry table has a column ``time`` (timestamp[us, UTC]), a column ``boot`` (bool) and one float64 column for each
column of the log, named ``group:name`` as in ``total cpu usage:usr``. It comes from
`ciml.transforms.parse.logs.parse_logs`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
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
_REPEATED = re.compile(r"#\d+$")
_MAX_PATTERN = 1000


def telemetry_columns(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the telemetry columns among a table's, in their order."""
    return tuple(name for name in names if name not in OWN_COLUMNS)


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """Append ``#2``, ``#3``, … to names that repeat an earlier one. Empty names are unchanged."""
    reserved = {name for name in names if name}
    counts: dict[str, int] = {}
    out: list[str] = []
    for name in names:
        count = counts.get(name, 0) + 1 if name else 1
        unique = name
        while count > 1 and (unique := f"{name}#{count}") in reserved:
            count += 1
        counts[name] = count
        reserved.add(unique)
        out.append(unique)
    return tuple(out)


def short_names(columns: Iterable[str]) -> dict[str, str]:
    """Map full names to short names, for columns in the order of the log.

    The short name (``usr`` for ``total cpu usage:usr``) belongs to its first occurrence; columns that repeat it keep
    their full name. ``time`` and ``boot`` are left out.
    """
    short: dict[str, str] = {}
    reserved: set[str] = set()
    for full in telemetry_columns(columns):
        _, _, name = full.rpartition(":")
        if not name or name in reserved or name in OWN_COLUMNS or _REPEATED.search(name):
            name = full
        reserved.add(name)
        short[full] = name
    return short


def select_columns(columns: Iterable[str], features_regex: str) -> tuple[str, ...]:
    """Return the full names of the columns that a definition's ``features_regex`` selects, in the order of the log.

    The pattern is searched in the short names, where ``1m``, ``5m`` and ``15m`` are also called ``1min``, ``5min`` and
    ``15min``. A pattern with a colon (other than in ``(?:…)``) is searched in the full names instead, such as
    ``load avg:1m``.

    Returns:
      Possibly none: the caller decides what to do then.

    Raises:
      CimlError: ``features_regex`` is not a regular expression.
    """
    if len(features_regex) > _MAX_PATTERN:
        raise CimlError(f"features_regex has {len(features_regex)} characters, at most {_MAX_PATTERN}")
    try:
        pattern = re.compile(features_regex)
    except (re.error, OverflowError, RecursionError, MemoryError, ValueError) as error:
        raise CimlError(f"{features_regex!r} is not a regular expression: {error}") from None
    full_names = ":" in re.sub(r"\(\?[a-zA-Z-]*:", "(", features_regex)
    selected: list[str] = []
    for full, short in short_names(columns).items():
        name = full if full_names else short
        head, colon, tail = name.rpartition(":")
        names = [name] if tail not in _ALIASES else [name, f"{head}{colon}{_ALIASES[tail]}"]
        if any(pattern.search(alias) for alias in names):
            selected.append(full)
    return tuple(selected)


@dataclass(frozen=True)
class Finding:
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


def validate(table: pa.Table) -> list[Finding]:
    """Find anomalies in a telemetry table, in the order of its columns; cheap enough for every run.

    A gap is a step of more than ten times the median step.
    """
    import numpy as np
    import pyarrow as pa

    rows = table.num_rows
    if rows == 0:
        return []
    findings: list[Finding] = []
    times = np.from_dlpack(table.column(TIME).combine_chunks().view(pa.int64()))
    steps = np.diff(times)
    if steps.size:
        back = int(np.count_nonzero(steps < 0))
        usual = np.partition(steps, steps.size // 2)[steps.size // 2]  # np.median takes five times as long
        gaps = int(np.count_nonzero(steps > 10 * usual)) if usual > 0 else 0
        for kind, count in (("clock_set_back", back), ("gaps", gaps)):
            if count:
                findings.append(Finding(kind, "", count, count / steps.size))
    names = telemetry_columns(table.column_names)
    if not names:
        return findings
    batch = table.select(names).combine_chunks().to_batches()[0]
    values = batch.to_tensor(null_to_nan=True).to_numpy()
    nulls = np.count_nonzero(np.isnan(values), axis=0)
    negative = np.count_nonzero(values < 0, axis=0)
    for index in np.flatnonzero(nulls + negative).tolist():
        for kind, count in (("nulls", int(nulls[index])), ("negative", int(negative[index]))):
            if count:
                findings.append(Finding(kind, names[index], count, count / rows))
    return findings
