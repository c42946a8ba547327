"""Check the examples of a data set against a direct computation from the text of the logs.

The computation shares no code with the pipelines, and uses sums instead of arrays.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ciml.cli.demo.checks import make_check
from ciml.cli.demo.result import Check

if TYPE_CHECKING:
    from ciml.datasets.definition import ResolvedDefinition

#: Largest difference relative to max(|x|, 1) that counts as equal: examples are stored as float32.
TOLERANCE = 1e-6
_FUNCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "min": min,
    "max": max,
    "median": statistics.median,
    "sum": math.fsum,
    "std": lambda values: statistics.stdev(values) if len(values) > 1 else 0.0,
}


def check_examples(
    examples: Mapping[str, Mapping[str, Any]], texts: Mapping[str, str], resolved: ResolvedDefinition
) -> Check:
    """Check that every example equals the direct computation from the log that the log server served.

    Args:
      examples: the row of each run by run id: ``n_windows``, and a list of values by feature.
      texts: the text of the log of each run, by run id.
      resolved: the definition of the data set.
    """
    definition = resolved.definition
    worst = 0.0
    findings = [] if examples else ["there are none"]
    for run_id, row in examples.items():
        expected = direct_example(
            texts[run_id],
            resolved.columns,
            definition.interval_us // 1_000_000,
            definition.aggregation_functions,
            resolved.windows,
            first=definition.count_first_sample,
        )
        if row["n_windows"] != expected.n_windows:
            findings.append(f"{run_id} has {row['n_windows']} windows, not {expected.n_windows}")
            continue
        for column, feature in zip(resolved.columns, resolved.telemetry_features, strict=True):
            apart = difference(expected.values[column], row[feature], expected.n_windows)
            worst = max(worst, apart)
            if not apart <= TOLERANCE:
                findings.append(f"{run_id} {column}: {apart:.1e} apart")
    name = f"examples of {definition.name} equal a direct computation"
    return make_check(name, findings, f"{len(examples)} runs, at most {worst:.0e} apart")


class DirectExample(NamedTuple):
    """The example of a run.

    Attributes:
      values: the values of each column, without padding.
      n_windows: number of complete windows, or of aggregations over them.
    """

    values: dict[str, list[float]]
    n_windows: int


def direct_example(
    text: str, columns: Sequence[str], interval_s: int, functions: Sequence[str], windows: int, *, first: bool = True
) -> DirectExample:
    """Compute the example of a run by sums.

    Args:
      text: a log of dstat or dool, with a date in the header (UTC).
      columns: full names, such as ``load avg:1m``.
      interval_s: length of a window in seconds. It divides a day, so windows do not depend on the first midnight.
      functions: aggregations over the windows; empty for the windows themselves.
      windows: L.
      first: whether the first sample, an average since boot, counts.
    """
    bins: dict[int, list[list[float]]] = defaultdict(lambda: [[] for _ in columns])
    for time_s, cells in _samples(text, columns, first=first):
        for samples, cell in zip(bins[time_s // interval_s], cells, strict=True):
            if cell:
                samples.append(float(cell))
    complete = [bins[number] for number in sorted(bins) if all(bins[number])]
    if not complete:
        return DirectExample({column: [] for column in columns}, 0)
    series = [[math.fsum(samples) / len(samples) for samples in column] for column in zip(*complete, strict=True)]
    if functions:
        series = [[_FUNCTIONS[name](means) for name in functions] for means in series]
    values = {column: means[:windows] for column, means in zip(columns, series, strict=True)}
    return DirectExample(values, len(values[columns[0]]))


def _samples(text: str, columns: Sequence[str], *, first: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield the epoch second and the cells of the columns of each complete line of a log.

    Lines have no year. They are in order of time, from the date in the header on.
    """
    rows = list(csv.reader(text.splitlines()))
    day = next(row[row.index("Date:") + 1].split()[:3] for row in rows if "Date:" in row)
    last = datetime.strptime(" ".join(day), "%d %b %Y").replace(tzinfo=UTC)
    heading = next(index for index, row in enumerate(rows) if "time" in row)
    groups: list[str] = []
    for cell in rows[heading - 1]:
        groups.append(cell or groups[-1])
    names = [f"{group}:{name}" for group, name in zip(groups, rows[heading], strict=False)]
    places = [names.index(column) for column in columns]
    clock = rows[heading].index("time")
    time_format = "%Y %b-%d %H:%M:%S" if "dool" in rows[0][0] else "%Y %d-%m %H:%M:%S"
    for row in rows[heading + (1 if first else 2) :]:
        if len(row) >= len(rows[heading]):
            time = datetime.strptime(f"{last.year} {row[clock]}", time_format).replace(tzinfo=UTC)
            last = time if time.month >= last.month else time.replace(year=last.year + 1)
            yield int(last.timestamp()), [row[place] for place in places]


def difference(expected: Sequence[float], stored: Sequence[float], n_windows: int) -> float:
    """Return the largest difference relative to max(|x|, 1) over values and padding.

    It is infinite if lengths differ, and NaN if a value is NaN.
    """
    if len(expected) != n_windows or len(stored) < n_windows:
        return math.inf
    padded = [*expected, *([0.0] * (len(stored) - n_windows))]
    differences = [abs(a - b) / max(abs(b), 1.0) for a, b in zip(stored, padded, strict=True)]
    return float(np.max(differences, initial=0.0))
