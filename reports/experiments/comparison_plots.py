"""Draw the plots that compare experiments on one data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.reports.drawing import COLORS, DASHES, WIDE, Plot, distinct, legend, percent, shown, whole_numbers
from ciml.reports.experiments.plots import MOST_CURVES, bars_plot
from ciml.reports.experiments.views import Bar, constant, curved, curves, first_by
from ciml.training.experiments.compare import Compared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Number of classes with a panel of their own.
MOST_PANELS = 8
_COLUMNS = 4


def standing_plot(panels: Sequence[tuple[str, Sequence[Bar]]]) -> Plot:
    """Plot accuracy and macro F1 of several experiments. ``panels``: as for `bars_plot`."""
    best = first_by(panels[0][1])
    title = f"{shown(best.name)} has the highest accuracy: {percent(best.value or 0)}" if best else "No figures"
    caption = (
        "95 % intervals. Overlapping intervals do not exclude a significant difference: the table compares experiments "
        "run by run."
    )
    return bars_plot("standing", title, caption, "per cent", panels)


def validated_plot(number: int, by: str, bars: Sequence[Bar]) -> Plot:
    """Plot the mean accuracy of the folds of several experiments."""
    best = first_by(bars)
    title = (
        f"Held out by {shown(by)}, {shown(best.name)} has the highest mean accuracy: {percent(best.value or 0)}"
        if best
        else ""
    )
    return bars_plot(
        f"validated-{number}", title, "Means of the folds; Student's 95 % interval.", "accuracy (%)", [("", bars)]
    )


def errors_plot(errors: Mapping[str, Mapping[str, Bar]], of: int) -> Plot:
    """Plot the errors of each class by experiment. ``of``: total number of classes."""
    names = list(dict.fromkeys(name for bars in errors.values() for name in bars))[:MOST_CURVES]
    rows = -(-len(errors) // _COLUMNS)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(rows, min(len(errors), _COLUMNS), sharex=True, sharey=True, squeeze=False)
        numbers: dict[str, Any] = {}
        titles = distinct(list(errors), 13)
        for axes, title, bars in zip(grid.flat, titles, errors.values(), strict=False):
            for y, name in enumerate(names):
                if name not in bars:
                    continue
                bar = bars[name]
                value, below, above = bar.percent
                axes.barh(y, value, 0.62, color=COLORS[y], alpha=0.55)
                axes.errorbar(
                    value, y, xerr=[[below], [above]], fmt="none", ecolor="#222222", capsize=2.5, linewidth=1.1
                )
            for (number, share), dash in zip(next(iter(bars.values())).beside.items(), DASHES[1:], strict=False):
                numbers[number] = axes.axvline(100 * share, color="#D55E00", linestyle=dash, linewidth=1.2)
            axes.set_title(f"{title} ({next(iter(bars.values())).runs:,})")
            axes.set_xlim(-2, 102)
            axes.set_ylim(len(names) - 0.4, -0.6)
            axes.grid(False, axis="y")
        grid[0, 0].set_yticks(np.arange(len(names)), distinct(names, 24))
        _labels(grid, len(errors), "missed (%)")
        if numbers:
            figure.legend(
                list(numbers.values()),
                [shown(name) for name in numbers],
                loc="outside lower left",
                ncols=2,
                fontsize=8.5,
            )

    caption = "Share of misclassified runs of a class, with 95 % intervals (Wilson)."
    caption += _drawn_of(len(names), max(len(bars) for bars in errors.values()), len(errors), of)
    return Plot(
        "errors", _largest_difference(errors, names), caption, (WIDE, 1.0 + rows * (0.75 + 0.24 * len(names))), paint
    )


def _largest_difference(errors: Mapping[str, Mapping[str, Bar]], names: Sequence[str]) -> str:
    """Describe the class in which the experiments differ most."""
    ranges = {}
    for label, bars in errors.items():
        shares = sorted((bars[name].value or 0.0, name) for name in names if name in bars)
        ranges[label] = shares[0], shares[-1]
    label = max(ranges, key=lambda each: ranges[each][1][0] - ranges[each][0][0])
    (least, low), (most, high) = ranges[label]
    if least == most:
        return "Each class is missed equally often by all"
    low, high = distinct([low, high])
    return f"They differ most in {shown(label)}: {low} misses {percent(least)} of its runs, {high} {percent(most)}"


def curves_plot(standing: Sequence[Compared]) -> Plot:
    """Plot the precision-recall curves of each class by experiment. ``standing``: experiments with predictions."""
    drawn = standing[:MOST_CURVES]
    names = [one.name for one in drawn]
    by_name = {
        one.name: {each.name: each for each in curves(one.predictions, MOST_PANELS)} for one in drawn if one.predictions
    }
    classes = list(by_name[names[0]])
    every = len(curved(drawn[0].predictions)) if drawn[0].predictions else 0
    rows = -(-len(classes) // _COLUMNS)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(rows, min(len(classes), _COLUMNS), sharex=True, sharey=True, squeeze=False)
        for axes, label, title in zip(grid.flat, classes, distinct(classes, 16), strict=False):
            for name, short, color, dash in zip(names, distinct(names), COLORS, DASHES, strict=False):
                if (each := by_name[name].get(label)) is not None:
                    axes.plot(
                        each.recall, each.precision, drawstyle="steps-pre", color=color, linestyle=dash, linewidth=1.4,
                        label=short,
                    )  # fmt: skip
                    axes.axhline(each.share, color="#888888", linestyle=":", linewidth=1)
            axes.set_title(f"{title} ({by_name[names[0]][label].runs:,})")
            axes.set_xlim(-0.02, 1.02)
            axes.set_ylim(-0.02, 1.02)
        _labels(grid, len(classes), "recall", "precision")
        legend(figure, grid.flat[0])

    best = max(drawn, key=lambda one: one.result["test"]["macro"]["pr_auc"]["value"])
    test = best.result["test"]
    area, guess = (scores["macro"]["pr_auc"]["value"] for scores in (test, constant(best.result, test)))
    title = f"{shown(best.name)} has the largest mean PR-AUC of the classes: {area:.2f}; a random guess has {guess:.2f}"
    caption = "Each class against all others. Dotted: a random guess."
    caption += _drawn_of(len(names), len(standing), len(classes), every)
    return Plot("curves", title, caption, (WIDE, 1.35 + 2.1 * rows), paint)


def learning_plot(learned: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]) -> Plot:
    """Plot loss and accuracy by pass. ``learned``: `history` by experiment."""
    names = list(learned)[:MOST_CURVES]
    dev = any("dev" in splits for name in names for splits in learned[name].values())

    def paint(figure: Figure) -> None:
        grid = figure.subplots(1, 2, squeeze=False)[0]
        for axes, what in zip(grid, ("loss", "accuracy"), strict=True):
            for name, short, color in zip(names, distinct(names), COLORS, strict=False):
                for split, values in learned[name].get(what, {}).items():
                    axes.plot(
                        np.arange(1, len(values) + 1), values, "-" if split == "train" else "--", color=color,
                        linewidth=1.5, label=short if split == "train" else None,
                    )  # fmt: skip
            axes.set_title(what)
            axes.set_xlabel("passes over the training runs")
            axes.set_ylim(*((0, 1.02) if what == "accuracy" else (0, None)))
            whole_numbers(axes.xaxis)
        legend(figure, grid[0])

    longest = max(names, key=lambda name: len(learned[name]["loss"]["train"]))
    title = f"Training losses; {shown(longest)} makes the most passes, {len(learned[longest]['loss']['train']):,}"
    caption = "Losses include the penalties of each experiment: compare their shape, and compare levels by accuracy."
    caption += " Dashed lines: dev runs, which are not trained on." if dev else ""
    return Plot("learning", title, caption, (WIDE, 3.2), paint)


def _labels(grid: Any, panels: int, horizontal: str, vertical: str = "") -> None:
    """Label the left column and the lowest panel of each column, and hide unused panels."""
    columns = grid.shape[1]
    for index, axes in enumerate(grid.flat):
        axes.set_visible(index < panels)
        if index % columns == 0:
            axes.set_ylabel(vertical)
        if index + columns >= panels:
            axes.set_xlabel(horizontal)
            axes.tick_params(labelbottom=True)


def _drawn_of(experiments: int, of: int, classes: int, of_classes: int) -> str:
    text = f" The first {experiments} of {of} experiments are drawn." if experiments < of else ""
    return text + (f" The {classes} largest of {of_classes} classes are drawn." if classes < of_classes else "")
