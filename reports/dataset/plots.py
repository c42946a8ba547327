"""Draw the features of a data set over time, and examples as an estimator sees them.

Draw the plots of a data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.reports.dataset.read import Runs
from ciml.reports.dataset.views import (
    Calendar,
    Course,
    Groups,
    class_splits,
    image,
    lengths,
    typical,
    unit_of,
    unrolled,
)
from ciml.reports.drawing import (
    DASHES,
    WIDE,
    Plot,
    colors_of,
    distinct,
    feature_bounds,
    legend,
    percent,
    quantity,
    runs_of,
    seconds,
    shown,
    units,
    whole_numbers,
)
from ciml.transforms.examples.prepare import SPLITS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SPLIT_ALPHA = {"train": 1.0, "dev": 0.6, "test": 0.35}


def classes_plot(runs: Runs, groups: Groups) -> Plot:
    """Plot runs by class and split."""
    counts = class_splits(runs, groups)
    totals = counts.sum(axis=1)
    share = percent(groups.counts[0] / len(runs))
    largest = shown(groups.names[0])
    title = f"{runs_of(len(runs))} in {len(set(runs.label.tolist()))} classes; the largest is {largest} with {share}"
    colors = colors_of(groups.names)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        y = np.arange(len(groups.names))[::-1]
        left = np.zeros(len(groups.names))
        for at, split in enumerate(SPLITS):
            axes.barh(y, counts[:, at], 0.68, left=left, color=colors, alpha=_SPLIT_ALPHA[split], edgecolor="white")
            if counts[:, at].any():
                axes.bar(0, 0, color="#444444", alpha=_SPLIT_ALPHA[split], label=f"{split} ({counts[:, at].sum():,})")
            left += counts[:, at]
        for position, total in zip(y, totals, strict=True):
            text = f"{total:,} ({percent(total / totals.sum())})"
            axes.annotate(text, (total, position), (5, 0), textcoords="offset points", va="center")
        axes.set_yticks(y, distinct(groups.names))
        axes.set_xlim(0, totals.max() * 1.2)
        axes.set_xlabel("runs")
        whole_numbers(axes.xaxis)
        axes.grid(False, axis="y")
        legend(figure, axes)

    caption = f"The class is {runs.resolved.definition.class_label}. Always guessing {largest} is right for {share}."
    return Plot("classes", title, caption, (WIDE, 1.5 + 0.3 * len(groups.names)), paint)


def lengths_plot(runs: Runs, groups: Groups) -> Plot:
    """Plot the share of runs that still run after t seconds, by class."""
    found = lengths(runs, groups)
    middle = [float(np.median(runs.n_windows[groups.of == group])) for group in range(groups.named)]
    title = f"The median run takes {seconds(float(np.median(runs.n_windows)) * runs.interval_s)}"
    spread = sorted(zip(middle, groups.names, strict=False))
    if spread[0][0] < spread[-1][0]:
        (low, first) = spread[0]
        (high, last) = spread[-1]
        low_s = seconds(low * runs.interval_s)
        high_s = seconds(high * runs.interval_s)
        title += f", from {low_s} ({shown(first)}) to {high_s} ({shown(last)})"

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for color, dash, name, share in zip(
            colors_of(groups.names), DASHES, distinct(groups.names), 100 * found.share, strict=False
        ):
            axes.step(found.times_s, share, where="post", color=color, linestyle=dash, label=name, linewidth=1.7)
        axes.set_xlabel("seconds from the first sample")
        axes.set_ylabel("runs that still run (%)")
        axes.set_ylim(0, 102)
        axes.set_xlim(0, max(float(found.times_s[-1]), runs.interval_s))
        legend(figure, axes)

    filled = f"fill all {runs.resolved.windows} windows of {runs.resolved.definition.sample_interval}"
    caption = (
        f"{percent(found.full)} of the runs {filled}, and may be cut there; shorter ones are padded with zeros. Where "
        "classes differ in length, a model can learn the length alone."
    )
    return Plot("lengths", title, caption, (WIDE, 3.4), paint)


def calendar_plot(found: Calendar) -> Plot:
    """Plot runs over time, by outcome."""
    colors = colors_of(found.groups.names)
    totals = found.counts.sum(axis=0)
    busiest = int(totals.argmax())
    what = {"day": "on", "week": "in the week from", "month": "in the month from"}[found.unit]
    most = f"{totals[busiest]:,} {what} {found.begins[busiest]}"
    title = f"{runs_of(int(totals.sum()))} by {found.unit} and outcome; at most {most}"

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        x = np.arange(len(found.begins))
        base = np.zeros(len(x))
        for color, name, counts in zip(colors, distinct(found.groups.names), found.counts, strict=False):
            axes.bar(x, counts, min(0.8, 0.12 * len(x)), bottom=base, color=color, label=f"{name} ({counts.sum():,})")
            base += counts
        axes.set_ylabel("runs")
        axes.set_xlim(-0.6, len(x) - 0.4)
        whole_numbers(axes.yaxis)
        _date_ticks(axes, found)
        axes.grid(False, axis="x")
        legend(figure, axes)

    return Plot("outcomes", title, _undated(found), (WIDE, 3.3), paint)


def jobs_plot(found: Calendar, unsuccessful: np.ndarray) -> Plot:
    """Plot jobs × time, shaded by the number of runs. A job's label counts its unsuccessful runs."""
    names = found.groups.names

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        counts = np.where(found.counts > 0, found.counts, np.nan)
        shade = axes.imshow(counts, cmap="viridis_r", aspect="auto", vmin=0, interpolation="nearest")
        if len(found.begins) <= 31:
            half = np.nanmax(counts) / 2
            for row, column in zip(*np.nonzero(found.counts), strict=True):
                count = int(found.counts[row, column])
                axes.annotate(
                    f"{count}",
                    (column, row),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if count > half else "black",
                )
        axes.set_yticks(
            np.arange(len(names)),
            [
                f"{name} ({count:,}{f', {bad:,} unsuccessful' if bad else ''})"
                for name, count, bad in zip(distinct(names, 30), found.groups.counts, unsuccessful, strict=True)
            ],
            fontsize=8,
        )
        _date_ticks(axes, found)
        axes.set_xticks(np.arange(len(found.begins) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
        axes.grid(False)
        axes.grid(True, which="minor", color="white", linewidth=1)
        axes.tick_params(which="minor", length=0)
        figure.colorbar(shade, ax=axes, label=f"runs per {found.unit}", pad=0.01)

    title = f"Runs by job and {found.unit}; most are of {shown(names[0])}"
    return Plot("jobs", title, _undated(found), (WIDE, 1.6 + 0.24 * len(names)), paint)


def _date_ticks(axes: Any, found: Calendar) -> None:
    """Label at most twelve dates."""
    ticks = np.arange(0, len(found.begins), -(-len(found.begins) // 12))
    slant: Any = {"rotation": 35, "ha": "right"} if len(ticks) > 6 else {}
    axes.set_xticks(ticks, [str(found.begins[tick]) for tick in ticks], fontsize=8, **slant)
    axes.set_xlabel({"day": "day (UTC)", "week": "week from (UTC)", "month": "month from (UTC)"}[found.unit])


def _undated(found: Calendar) -> str:
    return f"By start. {found.undated:,} runs without a time are not counted." if found.undated else ""


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
                    course.times_s,
                    course.mean[group],
                    color=color,
                    linestyle=DASHES[group],
                    linewidth=1.8,
                    label=f"{name} ({course.runs[group, 0]:,})",
                )
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
    colors = colors_of(groups.names)
    names = distinct(groups.names, 20)
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
    high = int(means.argmax())
    low = int(means.argmin())
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
