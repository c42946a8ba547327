"""A second reading of telemetry logs: slow, by the csv module and datetime, a row at a time, for UTC logs."""

from __future__ import annotations

import csv
import datetime as dt
import math
import re

import pyarrow as pa

from ciml.errors import RejectedInput

REASONS = {
    "not_telemetry", "empty_telemetry", "no_time", "ambiguous_time", "log_too_wide", "log_too_large", "corrupt_gzip",
    "too_many_restarts", "outside_run",
}  # fmt: skip
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def number(text: str) -> float | None:
    text = text.strip(" \t\n\v\f\r")
    if not NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def header_names(groups: list[str], columns: list[str]) -> list[str]:
    group, out, seen = "", [], {}
    for index, name in enumerate(columns):
        group = (groups[index] if index < len(groups) else "") or group
        full = name if name.startswith(group + ":") else f"{group}:{name}"
        seen[full] = seen.get(full, 0) + 1
        out.append(full if seen[full] == 1 else f"{full}#{seen[full]}")
    return out


def read(text: bytes) -> tuple[list[dt.datetime], dict[str, list[float | None]], int]:
    """Times, columns and number of dropped rows of a log with one header, a time column and a date in UTC."""
    lines = text.decode("latin-1").split("\n")
    torn = lines.pop()
    at = next(i for i, line in enumerate(lines) if re.match(r'"(time|usr)"', line))
    date = re.search(r'"Date:","(.*) UTC"', "\n".join(lines[:at]))
    assert date
    started = dt.datetime.strptime(date[1], "%d %b %Y %H:%M:%S").replace(tzinfo=dt.UTC)
    groups, columns = next(csv.reader([lines[at - 1]])), next(csv.reader([lines[at]]))
    names = header_names(groups, columns)
    time_at = columns.index("time")
    times: list[dt.datetime] = []
    values: dict[str, list[float | None]] = {name: [] for index, name in enumerate(names) if index != time_at}
    dropped = int(bool(torn.strip()))
    for line in lines[at + 1 :]:
        if not line:
            continue
        cells = next(csv.reader([line]))
        time = _time(cells[time_at], started) if len(cells) == len(columns) else None
        if time is None:
            dropped += 1
            continue
        times.append(time)
        for index, name in enumerate(names):
            if index != time_at:
                values[name].append(number(cells[index]))
    return times, values, dropped


def _time(cell: str, started: dt.datetime) -> dt.datetime | None:
    best = None
    for year in (started.year - 1, started.year, started.year + 1):
        for form in ("%Y %d-%m %H:%M:%S", "%Y %b-%d %H:%M:%S"):
            try:
                time = dt.datetime.strptime(f"{year} {cell.strip()}", form).replace(tzinfo=dt.UTC)
            except ValueError:
                continue
            if best is None or abs(time - started) < abs(best - started):
                best = time
    return best


def sound(result: pa.Table | RejectedInput) -> None:
    """Asserts that a result is a valid table or has a known reason."""
    if isinstance(result, RejectedInput):
        assert result.reason in REASONS
        return
    assert result.num_rows > 0
    assert result.column("time").null_count == 0
    assert result.column("boot").null_count == 0
    assert len(set(result.column_names)) == result.num_columns
    values = [value for name in result.column_names[2:] for value in result.column(name).to_pylist()]
    assert all(value is None or math.isfinite(value) for value in values)
    assert any(value is not None for value in values)
