"""Draw the features of a data set over time, and examples as an estimator sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.reports.dataset.read import Runs
from ciml.reports.dataset.views import Course, Groups, image, typical, unit_of, unrolled
from ciml.reports.drawing import (
    DASHES,
    WIDE,
    Plot,
    colors_of,
    distinct,
    feature_bounds,
    legend,
    quantity,
    runs_of,
    shown,
    units,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Number of classes that share one pair of axes; of more, each class has its own.
_TOGETHER = 2


def course_plot(runs: Runs, groups: Groups, course: Course, number: int) -> Plot:
    """Plot the mean and quartiles of a feature over time, by class."""
    unit = unit_of(course.column)
    paint: Callable[[Figure], None]
    rows = 1
    if runs.aggregated:

        def paint(figure: Figure) -> None:
            _functions(figure, runs, groups, course, unit)

    elif len(groups.names) <= _TOGETHER:

        def paint(figure: Figure) -> None:
            axes = figure.add_subplot()
            for group, color in enumerate(colors_of(groups.names)):
                axes.fill_between(
                    course.times_s, course.low[group], course.high[group], color=color, alpha=0.18, linewidth=0
                )
            for group, (color, name) in enumerate(zip(colors_of(groups.names), distinct(groups.names), strict=True)):
                axes.plot(
                    course.times_s, course.mean[group], color=color, linestyle=DASHES[group], linewidth=1.8,
                    label=f"{name} ({course.runs[group, 0]:,})",
                )  # fmt: skip
            _time_axes(axes, course, unit)
            axes.set_xlabel("seconds from the first sample")
            axes.set_ylabel(unit or "value")
            legend(figure, axes)

    else:
        rows = -(-len(groups.names) // 4)

        def paint(figure: Figure) -> None:
            _panels(figure, groups, course, unit, rows)

    title = f"{shown(course.column, 40)}: {_finding(runs, groups, course, unit)}"
    return Plot(
        f"course-{number:03}-{_slug(course.feature)}",
        title,
        "",
        (WIDE, 2.9 if rows == 1 else 1.3 + 1.7 * rows),
        paint,
    )


COURSES_CAPTION = (
    "Line: mean of the runs that are that long, without padding. Band: the middle half of them. A line ends where "
    "fewer than five runs are left. Compare classes at times at which most runs of both still run."
)
AGGREGATES_CAPTION = "Point: mean of the class. Bar: the middle half of its runs."


def _panels(figure: Figure, groups: Groups, course: Course, unit: str, rows: int) -> None:
    columns = -(-len(groups.names) // rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    colors, names = colors_of(groups.names), distinct(groups.names, 20)
    for group, axes in enumerate(grid.flat):
        if group >= len(groups.names):
            axes.set_visible(False)
            continue
        for other in range(len(groups.names)):
            if other != group:
                axes.plot(course.times_s, course.mean[other], color="#bbbbbb", linewidth=0.8)
        color = colors[group]
        axes.fill_between(course.times_s, course.low[group], course.high[group], color=color, alpha=0.2, linewidth=0)
        axes.plot(course.times_s, course.mean[group], color=color, linewidth=1.8)
        axes.set_title(f"{names[group]} ({course.runs[group, 0]:,})")
        _time_axes(axes, course, unit)
    figure.supxlabel("seconds from the first sample", fontsize=9)
    figure.supylabel(unit or "value", fontsize=9)


def _functions(figure: Figure, runs: Runs, groups: Groups, course: Course, unit: str) -> None:
    names = runs.resolved.definition.aggregation_functions
    axes = figure.add_subplot()
    step = 0.8 / len(groups.names)
    for group, (color, name) in enumerate(zip(colors_of(groups.names), distinct(groups.names), strict=True)):
        x = np.arange(len(names)) - 0.4 + step * (group + 0.5)
        bars = np.nan_to_num([course.mean[group] - course.low[group], course.high[group] - course.mean[group]])
        label = f"{name} ({course.runs[group, 0]:,})"
        axes.errorbar(x, course.mean[group], yerr=np.maximum(bars, 0), color=color, fmt="o", capsize=3, label=label)
    axes.set_xticks(np.arange(len(names)), names)
    axes.set_xlabel("function of a run's windows")
    axes.set_ylabel(unit or "value")
    units(axes.yaxis, unit)
    axes.grid(False, axis="x")
    legend(figure, axes)


def _time_axes(axes: Any, course: Course, unit: str) -> None:
    seen = np.flatnonzero(np.isfinite(course.mean).any(axis=0))
    end = float(course.times_s[seen[-1]]) if seen.size else 0.0
    axes.set_xlim(0, end or 1.0)
    if unit.startswith("%"):
        axes.set_ylim(0, max(1.0, min(100.0, float(np.nanmax([course.high, course.mean]) * 1.05))))
    elif np.nanmin(course.low) >= 0:
        axes.set_ylim(bottom=0)
    units(axes.yaxis, unit)


def _finding(runs: Runs, groups: Groups, course: Course, unit: str) -> str:
    """Compare classes by the mean over the windows that all of them have, or by the first function."""
    mean = course.mean[: groups.named, : 1 if runs.aggregated else None]
    together = np.isfinite(mean).all(axis=0)
    if groups.named < 2 or not together.any():
        return "course by class"
    means = mean[:, together].mean(axis=1)
    high, low = int(means.argmax()), int(means.argmin())
    if np.isclose(means[high], means[low], rtol=0.05):
        return "hardly any difference"
    first, last = (f"{shown(groups.names[at], 20)} ({quantity(means[at], unit)})" for at in (high, low))
    return f"highest in {first}, lowest in {last}"


def examples_plot(runs: Runs, groups: Groups) -> Plot:
    """Plot a few runs, normalised and unrolled, as an estimator sees them."""
    indices = typical(runs, groups)
    values = unrolled(runs, indices)
    of = groups.of[runs.drawn][indices]
    colors = colors_of(groups.names)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(indices), 1, sharex=True, sharey=True, squeeze=False)
        for axes, row, group, run in zip(grid[:, 0], values, of, runs.drawn[indices], strict=True):
            axes.plot(row, "." if runs.aggregated else "-", color=colors[group], linewidth=0.9)
            axes.set_title(
                f"{shown(groups.names[group])} · {shown(runs.build_name[run])} · {shown(runs.run_id[run], 44)}",
                fontsize=8,
            )
            axes.set_ylim(-1.05, 1.05)
            axes.set_yticks([-1, 0, 1])
            feature_bounds(axes, runs.resolved.features, runs.resolved.windows)
            axes.grid(False, axis="x")
        figure.supylabel("normalised, no unit", fontsize=9)
        figure.supxlabel(_unrolled_label(runs), fontsize=9)

    title = f"{'Some runs' if runs.aggregated else 'Runs of median length'} of each class, as an estimator sees them"
    caption = "(x − mean) / (max − min) of each window of each feature, by the training split. Flat ends are padding."
    if runs.aggregated:
        caption = "(x − mean) / (max − min) of each function of each feature, by the training split."
    return Plot("examples", title, caption, (WIDE, 1.2 + 0.85 * len(indices)), paint)


def image_plot(runs: Runs, groups: Groups) -> Plot:
    """Plot all runs, or an even sample, as an image: runs × unrolled features."""
    found = image(runs, groups)
    tall = 2.2 + 4.4 * min(1.0, len(found.indices) / 200)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        shade = axes.imshow(found.values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
        ends = np.cumsum(found.rows)
        for end in ends[:-1]:
            axes.axhline(end - 0.5, color="black", linewidth=0.9)
        _class_ticks(axes, groups.names, found.rows)
        feature_bounds(axes, runs.resolved.features, found.width)
        axes.set_xlabel(_unrolled_label(runs))
        axes.grid(False)
        figure.colorbar(shade, ax=axes, label="normalised, no unit", shrink=0.7, pad=0.01)

    part = "All" if len(found.indices) == len(runs) else f"{len(found.indices):,} of"
    title = f"{part} {runs_of(len(runs))} as an image: one row per run, by class, the longest first"
    caption = "Red is above the training mean of the window, blue is below, white is equal."
    if not runs.aggregated:
        caption += " The uniform areas to the right of each feature are padding."
    return Plot("image", title, caption, (WIDE, tall), paint)


def _class_ticks(axes: Any, names: Sequence[str], rows: np.ndarray) -> None:
    """Label classes in the middle of their rows, without labels that would overlap."""
    middles = np.cumsum(rows) - rows / 2 - 0.5
    ticks: list[tuple[float, str]] = []
    for middle, name, count in zip(middles, distinct(names, 20), rows, strict=True):
        if count and (not ticks or middle - ticks[-1][0] >= rows.sum() / 30):
            ticks.append((float(middle), name))
    axes.set_yticks([middle for middle, _ in ticks], [name for _, name in ticks])
    axes.tick_params(axis="y", length=0)


def _unrolled_label(runs: Runs) -> str:
    functions = runs.resolved.definition.aggregation_functions
    each = (
        ", ".join(functions)
        if functions
        else f"{runs.resolved.windows} windows of {runs.resolved.definition.sample_interval}"
    )
    return f"unrolled features, each {each}"


def _slug(name: str) -> str:
    return "".join(char if char.isascii() and char.isalnum() else "-" for char in name)[:60]
