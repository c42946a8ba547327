"""Draw a data set as plots and one page: its runs, its features over time, and examples as an estimator sees them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.data_root import StoredDataset
from ciml.datasets.definition import SPLITS
from ciml.errors import CimlError
from ciml.progress import Progress, no_progress
from ciml.reports.dataset.read import Runs, read_runs
from ciml.reports.dataset.views import (
    Calendar,
    Course,
    Groups,
    choose_typical_runs,
    compute_courses,
    count_by_split,
    count_unsuccessful,
    group_values,
    make_calendar,
    make_image,
    running_shares,
    unroll,
    value_range,
)
from ciml.reports.drawing import (
    DASHES,
    WIDE,
    Estimate,
    Plot,
    add_legend,
    add_panels,
    colors_of,
    distinct,
    draw_estimates,
    draw_matrix,
    mark_features,
    percent,
    quantity,
    runs_of,
    seconds,
    set_units,
    shown,
    slug,
    use_whole_numbers,
)
from ciml.reports.page import Page, Section, Table, Tile, cells, save
from ciml.storage import open_store
from ciml.telemetry import select_columns, unit_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: Number of jobs with a row of their own in a plot; the rest share one row.
MOST_JOBS = 20
#: Number of courses drawn without ``features_regex``.
MOST_COURSES = 30
#: Number of classes that share one pair of axes; of more, each class has its own.
_TOGETHER = 2
#: Opacity of the bars of a split.
_SPLIT_ALPHA = {"train": 1.0, "dev": 0.6, "test": 0.35}


def plot_dataset(
    dataset: StoredDataset,
    folder: str | os.PathLike[str],
    *,
    features_regex: str | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> str:
    """Draw a data set into a folder: each plot as SVG and PNG, and ``index.html`` with all of them.

    Args:
      dataset: a data set.
      folder: a folder or an ``s3://`` prefix; files of the same names are overwritten.
      features_regex: features whose courses are drawn, as in a definition. Default: the first 30.
      seed: random seed of the sample, if not all runs fit in memory.
      progress: called with the number of files read and the total.

    Returns:
      Address of the page.

    Raises:
      CimlError: when there is no such data set, no example in it, or no such feature.
      IntegrityError: when a file differs from the manifest.
    """
    runs = read_runs(dataset, seed=seed, progress=progress)
    return save(open_store(folder), dataset_page(runs, _features(runs, features_regex)))


def dataset_page(runs: Runs, features: list[int]) -> Page:
    """Return the page of a data set. ``features``: indices of the features whose courses are drawn."""
    groups = group_values(runs.class_name)
    resolved = runs.resolved
    definition = resolved.definition
    outcomes = make_calendar(runs, group_values(runs.outcome))
    by_job = group_values(runs.build_name, MOST_JOBS)
    jobs = make_calendar(runs, by_job)
    total = len(resolved.features)
    chosen = f"{len(features)} of {total} features {'is' if len(features) == 1 else 'are'} drawn."
    sections = (
        Section(
            "Classes",
            _excluded(runs),
            classes_plot(runs, groups),
            None if runs.aggregated else lengths_plot(runs, groups),
        ),
        Section(
            "Runs over time",
            "Runs by start, UTC." if outcomes else "No run has a time.",
            calendar_plot(outcomes) if outcomes else None,
            jobs_plot(jobs, count_unsuccessful(runs, by_job)) if jobs else None,
        ),
        Section(
            "Features" if runs.aggregated else "Features over time",
            courses_caption(runs, chosen if len(features) < total else ""),
            *course_plots(runs, groups, features),
        ),
        Section("Examples", examples_plot(runs, groups), image_plot(runs, groups)),
        _columns(runs),
    )
    counts = [f"{split} {np.count_nonzero(runs.split == split):,}" for split in SPLITS]
    windows = ", ".join(definition.aggregation_functions) or f"windows of {definition.sample_interval}"
    tiles = (
        Tile("runs", f"{len(runs):,}", " · ".join(counts)),
        Tile("classes", f"{len(resolved.classes)}", f"label: {definition.class_label}"),
        Tile("features", f"{total} × {resolved.windows}", windows),
        Tile("jobs", f"{len(set(runs.build_name.tolist())):,}", f"build_name: {', '.join(definition.build_name)}"),
    )
    lead = f"Definition version {definition.version}; {definition.sample_statistic} of the samples of each window."
    if len(runs.sampled) < len(runs):
        lead += f" Counts are of all runs; courses and examples of an even sample of {len(runs.sampled):,}."
    return Page(f"Data set {runs.dataset}", lead, tiles, sections)


def _features(runs: Runs, pattern: str | None) -> list[int]:
    columns = runs.resolved.columns
    if pattern is None:
        return list(range(len(columns)))[:MOST_COURSES]
    matches = select_columns(columns, pattern)
    if not matches:
        names = ", ".join(runs.resolved.features)
        raise CimlError(f"--features-regex {pattern!r} selects none of the features {names}")
    return [columns.index(column) for column in matches]


def _excluded(runs: Runs) -> Table | None:
    rows = tuple(cells(reason.replace("_", " "), count) for reason, count in sorted(runs.excluded.items()))
    return Table(("why selected runs have no example", "runs"), rows) if rows else None


def _columns(runs: Runs) -> Section:
    """Return minimum, mean and maximum of each column over the windows of the sampled runs, without padding."""
    inside = np.arange(runs.resolved.windows)[None, :] < runs.n_windows[runs.sampled][:, None]
    rows = []
    constant = []
    for index, (name, column) in enumerate(zip(runs.resolved.telemetry_features, runs.resolved.columns, strict=True)):
        values = runs.inputs[:, :, index][inside].astype(np.float64)
        rows.append((name, column, unit_of(column), *value_range(values)))
        constant += [name] if values.min() == values.max() else []
    text = f"Constant in all runs: {', '.join(constant)}." if constant else ""
    return Section("Columns", text, Table(("feature", "column", "unit", "min", "mean", "max"), tuple(rows), words=3))


def classes_plot(runs: Runs, groups: Groups) -> Plot:
    """Plot runs by class and split."""
    counts = count_by_split(runs, groups)
    totals = counts.sum(axis=1)
    share = percent(groups.counts[0] / len(runs))
    largest = shown(groups.names[0])
    title = f"{runs_of(len(runs))} in {len(set(runs.label.tolist()))} classes; the largest is {largest} with {share}"
    colors = colors_of(groups.names)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        y = np.arange(len(groups.names))[::-1]
        starts = np.zeros(len(groups.names), np.int64)
        for (split, alpha), widths in zip(_SPLIT_ALPHA.items(), counts.T, strict=True):
            axes.barh(y, widths, 0.68, left=starts, color=colors, alpha=alpha, edgecolor="white")
            if widths.any():
                axes.bar(0, 0, color="#444444", alpha=alpha, label=f"{split} ({widths.sum():,})")
            starts += widths
        for position, total in zip(y, totals, strict=True):
            text = f"{total:,} ({percent(total / totals.sum())})"
            axes.annotate(text, (total, position), (5, 0), textcoords="offset points", va="center")
        axes.set_yticks(y, distinct(groups.names))
        axes.set_xlim(0, totals.max() * 1.2)
        axes.set_xlabel("runs")
        use_whole_numbers(axes.xaxis)
        axes.grid(False, axis="y")
        add_legend(figure)

    caption = f"The class is {runs.resolved.definition.class_label}. Always guessing {largest} is right for {share}."
    return Plot("classes", title, caption, (WIDE, 1.5 + 0.3 * len(groups.names)), paint)


def lengths_plot(runs: Runs, groups: Groups) -> Plot:
    """Plot the share of runs that still run after t seconds, by class."""
    times_s, shares = running_shares(runs, groups)
    medians = [float(np.median(runs.n_windows[groups.assigned == group])) for group in range(groups.named)]
    title = f"The median run takes {seconds(float(np.median(runs.n_windows)) * runs.interval_s)}"
    spread = sorted(zip(medians, groups.names, strict=False))
    if spread[0][0] < spread[-1][0]:
        low, high = (f"{seconds(median * runs.interval_s)} ({shown(name)})" for median, name in (spread[0], spread[-1]))
        title += f", from {low} to {high}"

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        styles = zip(colors_of(groups.names), DASHES, distinct(groups.names), strict=False)
        for (color, dash, name), share in zip(styles, shares, strict=False):
            axes.step(times_s, 100 * share, where="post", color=color, linestyle=dash, label=name, linewidth=1.7)
        axes.set(xlabel="seconds from the first sample", ylabel="runs that still run (%)")
        axes.set(xlim=(0, max(float(times_s[-1]), runs.interval_s)), ylim=(0, 102))
        add_legend(figure)

    full = percent(float(np.mean(runs.n_windows == runs.resolved.windows)))
    windows = f"{runs.resolved.windows} windows of {runs.resolved.definition.sample_interval}"
    caption = (
        f"{full} of the runs fill all {windows}, and may be cut there; shorter ones are padded with zeros. Where "
        "classes differ in length, a model can learn the length alone."
    )
    return Plot("lengths", title, caption, (WIDE, 3.4), paint)


def calendar_plot(outcomes: Calendar) -> Plot:
    """Plot runs over time, by outcome."""
    names = outcomes.groups.names
    totals = outcomes.counts.sum(axis=0)
    busiest = int(totals.argmax())
    preposition = {"day": "on", "week": "in the week from", "month": "in the month from"}[outcomes.unit]
    largest = f"{totals[busiest]:,} {preposition} {outcomes.starts[busiest]}"
    title = f"{runs_of(int(totals.sum()))} by {outcomes.unit} and outcome; at most {largest}"

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        x = np.arange(len(outcomes.starts))
        width = min(0.8, 0.12 * len(x))
        base = np.zeros(len(x))
        for color, name, counts in zip(colors_of(names), distinct(names), outcomes.counts, strict=False):
            axes.bar(x, counts, width, bottom=base, color=color, label=f"{name} ({counts.sum():,})")
            base += counts
        axes.set_ylabel("runs")
        axes.set_xlim(-0.6, len(x) - 0.4)
        use_whole_numbers(axes.yaxis)
        _date_ticks(axes, outcomes)
        axes.grid(False, axis="x")
        add_legend(figure)

    return Plot("outcomes", title, _undated(outcomes), (WIDE, 3.3), paint)


def jobs_plot(jobs: Calendar, failures: np.ndarray) -> Plot:
    """Plot jobs × time, shaded by the number of runs. A job's label counts its unsuccessful runs (``failures``)."""
    names = jobs.groups.names
    labels = [
        f"{name} ({count:,}{f', {failed:,} unsuccessful' if failed else ''})"
        for name, count, failed in zip(distinct(names, 30), jobs.groups.counts, failures, strict=True)
    ]
    texts = {(row, column): f"{jobs.counts[row, column]}" for row, column in np.argwhere(jobs.counts).tolist()}

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        counts = np.where(jobs.counts > 0, jobs.counts, np.nan)
        cells = texts if len(jobs.starts) <= 31 else {}
        shade = draw_matrix(axes, counts, labels, [], cells, size=7, cmap="viridis_r", vmin=0)
        _date_ticks(axes, jobs)
        axes.set_xticks(np.arange(len(jobs.starts) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
        axes.grid(True, which="minor", color="white", linewidth=1)
        axes.tick_params(which="minor", length=0)
        figure.colorbar(shade, ax=axes, label=f"runs per {jobs.unit}", pad=0.01)

    title = f"Runs by job and {jobs.unit}; most are of {shown(names[0])}"
    return Plot("jobs", title, _undated(jobs), (WIDE, 1.6 + 0.24 * len(names)), paint)


def _date_ticks(axes: Any, dates: Calendar) -> None:
    """Label at most twelve dates."""
    ticks = np.arange(0, len(dates.starts), -(-len(dates.starts) // 12))
    slant: Any = {"rotation": 35, "ha": "right"} if len(ticks) > 6 else {}
    axes.set_xticks(ticks, [str(dates.starts[tick]) for tick in ticks], fontsize=8, **slant)
    axes.set_xlabel({"day": "day (UTC)", "week": "week from (UTC)", "month": "month from (UTC)"}[dates.unit])


def _undated(dates: Calendar) -> str:
    return f"By start. {dates.undated:,} runs without a time are not counted." if dates.undated else ""


def courses_caption(runs: Runs, selection: str = "") -> str:
    """Return how to read `course_plots`, and which features are drawn."""
    caption = (
        "Line: mean of the runs that are that long, without padding. Band: the middle half of them. A line ends where "
        "fewer than five runs are left. Compare classes at times at which most runs of both still run."
    )
    if runs.aggregated:
        caption = "Point: mean of the class. Bar: the middle half of its runs."
    return f"{caption} {selection}".strip()


def course_plots(runs: Runs, groups: Groups, features: Sequence[int]) -> list[Plot]:
    """Plot the mean and quartiles of features over time, by class. ``features``: indices into the definition's."""
    return [
        _course_plot(runs, groups, course, number)
        for number, course in enumerate(compute_courses(runs, groups, features), 1)
    ]


def _course_plot(runs: Runs, groups: Groups, course: Course, number: int) -> Plot:
    unit = unit_of(course.column)
    single = runs.aggregated or len(groups.names) <= _TOGETHER
    rows = 1 if single else -(-len(groups.names) // 4)

    def paint(figure: Figure) -> None:
        if runs.aggregated:
            _draw_functions(figure.add_subplot(), runs, groups, course)
        else:
            _draw_courses(figure, groups, course, single, -(-len(groups.names) // rows))
        for axes in figure.axes:
            set_units(axes.yaxis, unit)
        figure.supylabel(unit or "value", fontsize=9)
        if single:
            add_legend(figure)

    title = f"{shown(course.column, 40)}: {_finding(runs, groups, course, unit)}"
    size = (WIDE, 2.9 if rows == 1 else 1.3 + 1.7 * rows)
    return Plot(f"course-{number:03}-{slug(course.feature)}", title, "", size, paint)


def _labels(names: Sequence[str], course: Course) -> list[str]:
    return [f"{name} ({count:,})" for name, count in zip(names, course.runs[:, 0], strict=True)]


def _draw_courses(figure: Figure, groups: Groups, course: Course, single: bool, columns: int) -> None:
    """Draw all classes in one panel, or each in a panel of its own with the means of the others in grey."""
    labels = _labels(distinct(groups.names, 26 if single else 20), course)
    all_groups = list(range(len(labels)))
    groups_by_panel = [all_groups] if single else [[group] for group in all_groups]
    styles = list(zip(colors_of(groups.names), DASHES if single else ["-"] * len(labels), strict=False))
    for axes, panel_groups in zip(add_panels(figure, len(groups_by_panel), columns), groups_by_panel, strict=True):
        for group in [group for group in all_groups if group not in panel_groups]:
            axes.plot(course.times_s, course.mean[group], color="#bbbbbb", linewidth=0.8)
        for group in panel_groups:
            color, dash = styles[group]
            band: Any = {"color": color, "alpha": 0.18, "linewidth": 0}
            axes.fill_between(course.times_s, course.low[group], course.high[group], **band)
            line: Any = {"color": color, "linestyle": dash, "linewidth": 1.8, "label": labels[group]}
            axes.plot(course.times_s, course.mean[group], **line)
        if not single:
            axes.set_title(labels[panel_groups[0]])
        _set_limits(axes, course)
    figure.supxlabel("seconds from the first sample", fontsize=9)


def _draw_functions(axes: Any, runs: Runs, groups: Groups, course: Course) -> None:
    """Draw the aggregates of each class, side by side."""
    names = runs.resolved.definition.aggregation_functions
    step = 0.8 / len(groups.names)
    labels = _labels(distinct(groups.names), course)
    for group, (color, label) in enumerate(zip(colors_of(groups.names), labels, strict=True)):
        places = (np.arange(len(names)) - 0.4 + step * (group + 0.5)).tolist()
        quartiles = zip(course.mean[group], course.low[group], course.high[group], strict=True)
        estimates = [Estimate(mean, min(mean, low), max(mean, high)) for mean, low, high in quartiles]
        draw_estimates(axes, places, estimates, color=color, label=label, scale=1)
    axes.set_xticks(np.arange(len(names)), names)
    axes.set_xlabel("function of a run's windows")
    axes.grid(False, axis="x")


def _set_limits(axes: Any, course: Course) -> None:
    drawn_points = np.flatnonzero(np.isfinite(course.mean).any(axis=0))
    end = float(course.times_s[drawn_points[-1]]) if drawn_points.size else 0.0
    axes.set_xlim(0, end or 1.0)
    if unit_of(course.column).startswith("%"):
        axes.set_ylim(0, max(1.0, min(100.0, float(np.nanmax([course.high, course.mean]) * 1.05))))
    elif np.nanmin(course.low) >= 0:
        axes.set_ylim(bottom=0)


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
    first, last = (f"{shown(groups.names[group], 20)} ({quantity(means[group], unit)})" for group in (high, low))
    return f"highest in {first}, lowest in {last}"


def examples_plot(runs: Runs, groups: Groups) -> Plot:
    """Plot a few runs, normalised and unrolled, as an estimator sees them."""
    indices = choose_typical_runs(runs, groups)
    values = unroll(runs, indices)
    assigned = groups.assigned[runs.sampled][indices]
    colors = colors_of(groups.names)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(indices), 1, sharex=True, sharey=True, squeeze=False)
        for axes, row, group, run in zip(grid[:, 0], values, assigned, runs.sampled[indices], strict=True):
            axes.plot(row, "." if runs.aggregated else "-", color=colors[group], linewidth=0.9)
            names = (shown(groups.names[group]), shown(runs.build_name[run]), shown(runs.run_id[run], 44))
            axes.set_title(" · ".join(names), fontsize=8)
            axes.set_ylim(-1.05, 1.05)
            axes.set_yticks([-1, 0, 1])
            mark_features(axes, runs.resolved.features, runs.resolved.windows)
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
    rows = make_image(runs, groups)
    height = 2.2 + 4.4 * min(1.0, len(rows.indices) / 200)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        shade = axes.imshow(rows.values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
        ends = np.cumsum(rows.rows)
        for end in ends[:-1]:
            axes.axhline(end - 0.5, color="black", linewidth=0.9)
        _class_ticks(axes, groups.names, rows.rows)
        mark_features(axes, runs.resolved.features, rows.width)
        axes.set_xlabel(_unrolled_label(runs))
        axes.grid(False)
        figure.colorbar(shade, ax=axes, label="normalised, no unit", shrink=0.7, pad=0.01)

    part = "All" if len(rows.indices) == len(runs) else f"{len(rows.indices):,} of"
    title = f"{part} {runs_of(len(runs))} as an image: one row per run, by class, the longest first"
    caption = "Red is above the training mean of the window, blue is below, white is equal."
    if not runs.aggregated:
        caption += " The uniform areas to the right of each feature are padding."
    return Plot("image", title, caption, (WIDE, height), paint)


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
    windows = f"{runs.resolved.windows} windows of {runs.resolved.definition.sample_interval}"
    return f"unrolled features, each {', '.join(functions) or windows}"
