"""Draw the plots of a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.reports.dataset.read import Runs
from ciml.reports.dataset.views import Calendar, Groups, class_splits, lengths
from ciml.reports.drawing import (
    DASHES,
    WIDE,
    Plot,
    colors_of,
    distinct,
    legend,
    percent,
    runs_of,
    seconds,
    shown,
    whole_numbers,
)
from ciml.transforms.examples.split import SPLITS

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
        (low, first), (high, last) = spread[0], spread[-1]
        low_s, high_s = seconds(low * runs.interval_s), seconds(high * runs.interval_s)
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
                    f"{count}", (column, row), ha="center", va="center", fontsize=7,
                    color="white" if count > half else "black",
                )  # fmt: skip
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
