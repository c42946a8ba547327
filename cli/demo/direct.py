"""An independent computation of examples from the text of the log, without the pipeline's code."""

from __future__ import annotations

import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ciml.cli.demo.report.result import Check

DAY_S = 86_400
#: Largest difference relative to max(|x|, 1) that counts as equal: examples are stored as float32.
TOLERANCE = 1e-6


def direct_example(
    text: str, columns: Sequence[str], interval_s: int, functions: Sequence[str], windows: int, *, first: bool = True
) -> tuple[dict[str, list[float]], int]:
    """Compute one run's example from a log of dstat or dool with its date in the header (UTC).

    Args:
      text: the log.
      columns: full names (``load avg:1m``).
      interval_s: length of a window; divides a day, so that windows from any midnight are the same.
      functions: aggregations over the windows; empty for the windows themselves.
      windows: L.
      first: whether the first sample, an average since boot, counts.

    Returns:
      column -> its values without padding, and n_windows.
    """
    rows = list(csv.reader(text.splitlines()))
    year = next(int(row[row.index("Date:") + 1].split()[2]) for row in rows if "Date:" in row)
    head = next(index for index, row in enumerate(rows) if "time" in row)
    groups: list[str] = []
    for cell in rows[head - 1]:
        groups.append(cell or groups[-1])
    names = [f"{group}:{name}" for group, name in zip(groups, rows[head], strict=False)]
    at = [names.index(column) for column in columns]
    clock = rows[head].index("time")
    bins: dict[int, list[list[float]]] = defaultdict(lambda: [[] for _ in columns])
    form = "%Y %b-%d %H:%M:%S" if "dool" in rows[0][0] else "%Y %d-%m %H:%M:%S"
    for row in rows[head + (1 if first else 2) :]:
        if len(row) < len(rows[head]):
            continue  # a line that broke off
        time = datetime.strptime(f"{year} {row[clock]}", form).replace(tzinfo=UTC)
        found = bins[int(time.timestamp()) // interval_s]
        for values, index in zip(found, at, strict=True):
            if row[index]:
                values.append(float(row[index]))
    complete = [bins[number] for number in sorted(bins) if all(bins[number])]
    means = {column: [math.fsum(part[i]) / len(part[i]) for part in complete] for i, column in enumerate(columns)}
    if functions:
        means = {column: [_aggregate(name, values) for name in functions] for column, values in means.items()}
    cut = {column: values[:windows] for column, values in means.items()}
    return cut, len(next(iter(cut.values())))


_FUNCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "min": min,
    "max": max,
    "median": statistics.median,
    "sum": math.fsum,
}


def _aggregate(name: str, values: list[float]) -> float:
    if name == "std":
        return statistics.stdev(values) if len(values) > 1 else 0.0
    return _FUNCTIONS[name](values)


def difference(found: Sequence[float], direct: Sequence[float], n_windows: int) -> float:
    """Return the largest difference relative to max(|x|, 1) over values and padding; infinite if lengths differ."""
    if len(direct) != n_windows or len(found) < n_windows:
        return math.inf
    want = [*direct, *([0.0] * (len(found) - n_windows))]
    return max((abs(a - b) / max(abs(b), 1.0) for a, b in zip(found, want, strict=True)), default=0.0)


def check_examples(examples: Mapping[str, Mapping[str, Any]], texts: Mapping[str, str], resolved: Any) -> Check:
    """Check that every example equals the direct computation from the log that the log server served.

    Args:
      examples: run id -> its row: ``n_windows`` and each feature's list.
      texts: run id -> the text of its log.
      resolved: the data set's `ciml.datasets.definition.ResolvedDefinition`.
    """
    definition = resolved.definition
    worst = 0.0
    wrong = []
    for run_id, row in examples.items():
        direct, n_windows = direct_example(
            texts[run_id],
            resolved.columns,
            definition.interval_us // 1_000_000,
            definition.aggregation_functions,
            resolved.windows,
            first=definition.count_first_sample,
        )
        if row["n_windows"] != n_windows:
            wrong.append(f"{run_id} has {row['n_windows']} windows, not {n_windows}")
            continue
        for column, feature in zip(resolved.columns, resolved.telemetry_features, strict=True):
            apart = difference(row[feature], direct[column], n_windows)
            worst = max(worst, apart)
            if not apart <= TOLERANCE:
                wrong.append(f"{run_id} {column}: {apart:.1e} apart")
    name = f"examples of {definition.name} equal a direct computation"
    if wrong or not examples:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return Check(name=name, passed=False, detail=(wrong[0] if wrong else "there are none") + more)
    return Check(name=name, passed=True, detail=f"{len(examples)} runs, at most {worst:.0e} apart")
