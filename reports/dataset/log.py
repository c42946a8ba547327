"""One telemetry log as plots and one page: the course of its columns, group by group."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ciml.errors import CimlError, RejectedInput
from ciml.reports.dataset.views import value_range
from ciml.reports.drawing import COLORS, DASHES, WIDE, Plot, add_legend, distinct, quantity, seconds, set_units, shown
from ciml.reports.page import Page, Section, Table, Tile, cells, save
from ciml.storage import open_store
from ciml.telemetry import TIME, Anomaly, find_anomalies, select_columns, telemetry_columns, unit_of
from ciml.transforms.parse.logs import parse_files

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure

#: Columns that are drawn unless a pattern chooses others, and lines of one plot.
MOST_COLUMNS = 30
MOST_LINES = 7
#: Points of a line; a longer course has the means of neighbouring samples.
MOST_POINTS = 1000
_CAPTION = "A gap is a sample without a value."
_MEANS = " Each point is the mean of {} neighbouring samples."


@dataclass(frozen=True)
class _Course:
    """The samples of a column, float64 [S]; NaN where there is no value."""

    column: str
    values: np.ndarray

    @property
    def name(self) -> str:
        return self.column.rpartition(":")[2] or self.column

    @property
    def group(self) -> str:
        return self.column.rpartition(":")[0]


def plot_log(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    features_regex: str | None = None,
    zone: str | None = None,
) -> str:
    """Draw a log into a folder: each plot as SVG and PNG, and ``index.html`` with all of them.

    Args:
      path: a log of dstat, dool or pcp-dstat, text or gzip, on local disk.
      folder: a folder or an ``s3://`` prefix; existing files of the same names are replaced.
      features_regex: pattern of the drawn columns, as in a definition; by default the first 30 are drawn.
      zone: zone of a log that names none, or an ambiguous one.

    Returns:
      The address of the page.

    Raises:
      CimlError: the file cannot be read, is not telemetry, or has no such column.
    """
    return save(open_store(folder), log_page(os.path.basename(path), _read(path, zone), features_regex))


def _read(path: str | os.PathLike[str], zone: str | None) -> pa.Table:
    (table,) = parse_files([path], zone=zone)
    if isinstance(table, RejectedInput) and table.reason == "no_time":  # the samples' distances suffice to draw them
        (table,) = parse_files([path], start_us=os.stat(path).st_mtime_ns // 1000, zone=zone)
    if isinstance(table, RejectedInput):
        option = " (--zone)" if table.reason == "ambiguous_time" else ""
        raise CimlError(f"{os.fspath(path)}: not a usable log: {table}{option}")
    return table


def log_page(name: str, table: pa.Table, features_regex: str | None = None) -> Page:
    """Return the page of a log.

    Args:
      name: of its file.
      table: of `ciml.transforms.parse.logs.parse_logs`.
      features_regex: see `plot_log`.
    """
    columns = telemetry_columns(table.column_names)
    selected = columns[:MOST_COLUMNS] if features_regex is None else select_columns(columns, features_regex)
    if not selected:
        names = ", ".join(column.rpartition(":")[2] for column in columns[:MOST_COLUMNS])
        raise CimlError(f"--features-regex {features_regex!r} selects none of the columns {names}")
    times = table.column(TIME).cast("int64").to_numpy() / 1e6
    courses = {name: _Course(name, table.column(name).to_numpy()) for name in columns}
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    steps = np.diff(times)
    interval = f"a sample every {seconds(float(np.median(steps)))}" if steps.size else ""
    stride = _stride(len(times))
    caption = _CAPTION + (_MEANS.format(stride) if stride > 1 else "")
    caption += f" {len(selected)} of {len(columns)} columns are drawn." if len(selected) < len(columns) else ""
    tiles = (
        Tile("samples", f"{table.num_rows:,}", interval),
        Tile("duration", seconds(float(times.max() - times.min()))),
        Tile("columns", f"{len(columns)}", metadata.get("recorder", "")),
        Tile("starts of the recorder", f"{int(metadata.get('starts', '1'))}"),
    )
    sections = (
        Section("Course", caption, *_plots(times - times[0], [courses[column] for column in selected])),
        _columns(list(courses.values()), find_anomalies(table), table.num_rows),
    )
    begin = np.datetime64(int(times[0] * 1e6), "us").astype("datetime64[s]")
    return Page(f"Log {shown(name, 60)}", f"First sample {begin} UTC.", tiles, sections)


def _stride(samples: int) -> int:
    """Return how many neighbouring samples a point stands for."""
    return -(-samples // MOST_POINTS)


def _thinned(values: np.ndarray) -> np.ndarray:
    """Return the means of neighbouring values, without those that are NaN; all values if there are few."""
    starts = np.arange(0, len(values), _stride(len(values)))
    defined = ~np.isnan(values)
    counts = np.add.reduceat(defined.astype(np.int64), starts)
    sums = np.add.reduceat(np.where(defined, values, 0.0), starts)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _plots(times_s: np.ndarray, courses: Sequence[_Course]) -> list[Plot]:
    """Return a plot for each group of columns, several for a large group."""
    groups: dict[str, list[_Course]] = {}
    for course in courses:
        groups.setdefault(course.group, []).append(course)
    parts = [
        (group, members[start : start + MOST_LINES])
        for group, members in groups.items()
        for start in range(0, len(members), MOST_LINES)
    ]
    return [_plot(number, group, times_s, members) for number, (group, members) in enumerate(parts, 1)]


def _plot(number: int, group: str, times_s: np.ndarray, courses: Sequence[_Course]) -> Plot:
    all_units = {unit_of(course.column) for course in courses}
    unit = all_units.pop() if len(all_units) == 1 else ""
    names = distinct([course.name for course in courses])
    means = [float(np.nanmean(course.values)) if np.isfinite(course.values).any() else -np.inf for course in courses]
    highest = int(np.argmax(means))
    title = shown(group or courses[highest].name, 40)
    if np.isfinite(means[highest]):
        mean = quantity(means[highest], unit_of(courses[highest].column))
        title += f": {names[highest]} has the highest mean, {mean}"

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        x = _thinned(times_s)
        for course, name, color, dash in zip(courses, names, COLORS, DASHES, strict=False):
            axes.plot(x, _thinned(course.values), color=color, linestyle=dash, linewidth=1.2, label=name)
        axes.set_xlim(min(0.0, float(times_s.min())), float(times_s.max()) or 1.0)
        axes.set_xlabel("seconds from the first sample")
        axes.set_ylabel(unit or "value")
        if not any((course.values < 0).any() for course in courses):
            axes.set_ylim(bottom=0)
        set_units(axes.yaxis, unit)
        add_legend(figure)

    return Plot(f"log-{number:03}", title, "", (WIDE, 2.9), paint)


def _columns(courses: Sequence[_Course], findings: Sequence[Anomaly], samples: int) -> Section:
    """Return minimum, mean and maximum of each column, and the anomalies of the log."""
    rows = []
    for course in courses:
        values = course.values[np.isfinite(course.values)]
        missing = samples - values.size
        rows.append(cells(course.column, unit_of(course.column), *value_range(values), missing))
    anomalies = tuple(
        cells(finding.kind.replace("_", " "), finding.column or "all", finding.count) for finding in findings
    )
    return Section(
        "Columns",
        Table(("column", "unit", "min", "mean", "max", "missing"), tuple(rows), words=2),
        Table(("anomaly", "column", "count"), anomalies, words=2) if anomalies else None,
    )
