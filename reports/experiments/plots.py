"""Draw the plots of an experiment's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.reports.drawing import COLORS, DASHES, WIDE, Plot, colors_of, distinct, legend, percent, shown, whole_numbers
from ciml.reports.experiments.views import ALONE, MOST_BARS, Bar, Curves, Figures, calibration_bars, folded_confusion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Number of classes whose curves share a pair of axes.
MOST_CURVES = len(COLORS) - 1
#: Cells of larger matrices show counts only.
_MOST_SHARES = 10
#: Markers and colours of one-number baselines; other baselines are black strokes.
_NUMBERS = (("D", "#D55E00"), ("s", "#009E73"))


def confusion_plot(confusion: Figures) -> Plot:
    """Plot the confusion matrix: counts and row shares."""
    names, counts = folded_confusion(confusion)
    labels = distinct(names, 20)
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    wrong = counts * (1 - np.eye(len(counts), dtype=np.int64))
    row, column = np.unravel_index(int(wrong.argmax()), wrong.shape)
    most = int(wrong[row, column])
    title = (
        f"Most frequent error: {labels[row]} classified as {labels[column]}, {most:,} of {totals[row]:,} runs"
        if most
        else "No run is misclassified"
    )
    side = min(WIDE - 0.4, 2.6 + 0.62 * len(names))

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100, aspect="auto", interpolation="nearest")
        small = len(names) > _MOST_SHARES
        for at in np.ndindex(counts.shape):
            if counts[at] or not small:
                cell = f"{counts[at]:,}" if small else f"{counts[at]:,}\n{100 * shares[at]:.0f} %"
                color = "white" if shares[at] > 0.5 else "black"
                axes.annotate(cell, at[::-1], ha="center", va="center", color=color, fontsize=7 if small else 8)
        ticks = np.arange(len(names))
        long = len(names) > 4
        rotation, ha = (40, "right") if long else (0, "center")
        axes.set_xticks(ticks, labels, rotation=rotation, ha=ha, rotation_mode="anchor")
        axes.set_yticks(ticks, [f"{name} ({total:,})" for name, total in zip(labels, totals, strict=True)])
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.grid(False)

    caption = "Number of test runs; the shade and the per cent are shares of the row, which is the true class."
    if len(names) < len(confusion["classes"]):
        caption += f" Classes beyond the {len(names) - 1} largest are merged."
    return Plot("confusion", title, caption, (min(WIDE, side + 1.4), side * 0.72 + 0.7), paint)


def errors_plot(bars: Sequence[Bar]) -> Plot:
    """Plot the errors of each class with their intervals. ``bars``: from `errors_by_class`, not empty."""
    worst = bars[0]
    title = (
        f"{shown(worst.name)} is misclassified most often: {percent(worst.value or 0)} "
        f"({_interval(worst)}) of its {worst.runs:,} test runs"
        if worst.value
        else "No run is misclassified"
    )
    caption = (
        "Share of misclassified runs of a class, with 95 % intervals (Wilson). Always guessing one class has no errors "
        "in that class, and 100 % in the others."
    )
    return bars_plot("errors", title, caption, "misclassified runs (%)", [("", bars)])


def bars_plot(name: str, title: str, caption: str, unit: str, panels: Sequence[tuple[str, Sequence[Bar]]]) -> Plot:
    """Plot shares with their intervals beside their baselines, one row for each name.

    Args:
      name: file name without suffix.
      title: the finding, in one sentence.
      caption: how to read the plot.
      unit: label of the x axis, in per cent.
      panels: (heading, bars), drawn side by side. All panels have the same names in the same order; the first
        `MOST_BARS` are drawn.
    """
    count = len(panels[0][1])
    panels = [(heading, bars[:MOST_BARS]) for heading, bars in panels]
    rows = panels[0][1]
    names = distinct([bar.name for bar in rows], 34)
    if len(rows) < count:
        caption = f"{caption} The first {len(rows)} of {count} are drawn."

    def paint(figure: Figure) -> None:
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (heading, bars) in zip(grid, panels, strict=True):
            _bars(axes, bars)
            axes.set_title(heading)
            axes.set_xlabel(unit)
        grid[0].set_yticks(
            np.arange(len(rows)),
            [
                f"{name}{f' ({bar.runs:,})' if bar.runs is not None else ''}"
                for name, bar in zip(names, rows, strict=True)
            ],
        )
        legend(figure, max(grid, key=lambda axes: len(axes.get_legend_handles_labels()[1])))

    return Plot(name, title, caption, (WIDE, 1.55 + 0.29 * len(rows)), paint)


def _bars(axes: Axes, bars: Sequence[Bar]) -> None:
    defined = [(y, bar) for y, bar in enumerate(bars) if bar.value is not None]
    numbers = iter(_NUMBERS)
    for name in dict.fromkeys(name for bar in bars for name in bar.beside):
        found = [(100 * bar.beside[name], y) for y, bar in enumerate(bars) if name in bar.beside]
        style: Any = {"marker": "|", "markersize": 13, "markeredgewidth": 2, "color": "#222222"}
        if name.endswith(ALONE):
            marker, color = next(numbers)
            style = {"marker": marker, "markersize": 5, "markerfacecolor": "none", "color": color}
        axes.plot(*zip(*found, strict=True), linestyle="", label=shown(name), **style)
    if defined:
        value, below, above = np.array([bar.percent for _, bar in defined]).T
        axes.errorbar(
            value,
            [y for y, _ in defined],
            xerr=[below, above],
            fmt="o",
            color=COLORS[0],
            capsize=3,
            linewidth=1.5,
            label="experiment, 95 % interval",
        )
    for y, bar in enumerate(bars):
        if bar.value is None:
            axes.annotate("undefined", (2, y), va="center", color="#666666", fontsize=8)
    axes.set_xlim(-2, 102)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.grid(False, axis="y")


def _interval(bar: Bar) -> str:
    value, below, above = bar.percent
    return f"{value - below:.0f} to {value + above:.0f} %"


def curves_plot(found: Sequence[Curves], of: int) -> Plot:
    """Plot the precision-recall and ROC curves of each class. ``of``: number of classes that have curves."""
    worst, best = (pick(found, key=lambda each: each.roc_auc) for pick in (min, max))

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        names = [one.name for one in found]
        for color, dash, name, each in zip(colors_of(names), DASHES, distinct(names, 20), found, strict=False):
            label = f"{name}: PR {each.pr_auc:.2f}, ROC {each.roc_auc:.2f}"
            left.plot(
                each.recall,
                each.precision,
                drawstyle="steps-pre",
                color=color,
                linestyle=dash,
                linewidth=1.5,
                label=label,
            )
            left.axhline(each.share, color=color, linestyle=":", linewidth=0.9)
            right.plot(each.false_positive, each.true_positive, color=color, linestyle=dash, linewidth=1.5)
        left.set_xlabel("recall")
        left.set_ylabel("precision")
        left.set_title("precision and recall")
        right.plot([0, 1], [0, 1], color="#888888", linestyle=":", linewidth=1)
        right.set_xlabel("false positives, share of the other runs")
        right.set_ylabel("true positives (recall)")
        right.set_title("ROC")
        for axes in (left, right):
            axes.set_xlim(-0.02, 1.02)
            axes.set_ylim(-0.02, 1.02)
        legend(figure, left, 2)

    title = f"ROC-AUC {best.roc_auc:.2f}"
    if best.roc_auc - worst.roc_auc > 0.005:
        title = (
            f"ROC-AUC from {worst.roc_auc:.2f} ({shown(worst.name, 20)}) to {best.roc_auc:.2f} ({shown(best.name, 20)})"
        )
    title += "; a random guess has 0.50"
    caption = "Each class against all others, by its probability. Dotted: a random guess."
    if len(found) < of:
        caption += f" The {len(found)} largest of {of} classes are drawn."
    return Plot("curves", title, caption, (WIDE, 3.9 + 0.2 * -(-len(found) // 2)), paint)


def calibration_plot(calibration: Figures, before: Figures | None = None) -> Plot:
    """Plot the reliability: the share of right answers by confidence.

    Args:
      calibration: ``ece`` and ``bins`` of the test runs.
      before: the same without the experiment's calibration; None for an experiment that has none.
    """
    bins = calibration_bars(calibration)
    uncalibrated = [] if before is None else calibration_bars(before)

    def paint(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 100], [0, 100], color="#888888", linestyle=":", linewidth=1, label="perfect calibration")
        value, below, above = np.array([bar.percent for _, bar in bins]).T
        upper.errorbar(
            [100 * sure for sure, _ in bins],
            value,
            yerr=[below, above],
            fmt="o-",
            color=COLORS[0],
            capsize=3,
            label="right answers, 95 % interval",
        )
        if uncalibrated:
            upper.plot(
                [100 * sure for sure, _ in uncalibrated],
                [bar.percent[0] for _, bar in uncalibrated],
                "s--",
                color=COLORS[1],
                markersize=4,
                linewidth=1.2,
                label="without calibration",
            )
        upper.set_ylabel("right answers (%)")
        upper.set_ylim(-2, 102)
        lower.bar(
            [100 * float(bar.name) + 5 for _, bar in bins], [bar.runs or 0 for _, bar in bins], 9, color="#8a8a8a"
        )
        lower.set_ylabel("runs")
        whole_numbers(lower.yaxis, 3)
        lower.set_xlabel("confidence: the probability of the answer (%)")
        lower.set_xlim(-2, 102)
        legend(figure, upper)

    sure = float(np.average([c for c, _ in bins], weights=[bar.runs or 0 for _, bar in bins]))
    hits = float(np.average([bar.value or 0.0 for _, bar in bins], weights=[bar.runs or 0 for _, bar in bins]))
    kind = (
        "Overconfident"
        if sure > hits + 0.02
        else "Underconfident"
        if hits > sure + 0.02
        else "Confidence matches accuracy"
    )
    title = (
        f"{kind}: mean confidence {percent(sure)}, accuracy {percent(hits)}; calibration error {calibration['ece']:.2f}"
    )
    if before is not None:
        title += f", {before['ece']:.2f} without calibration"
    caption = "Answers below the dotted line are overconfident, answers above it underconfident."
    return Plot("calibration", title, caption, (6.4, 4.2), paint)


def learning_plot(metrics: Mapping[str, Mapping[str, np.ndarray]], best_epoch: int | None) -> Plot:
    """Plot loss and accuracy by pass. ``metrics``: from `history`, not empty."""

    def paint(figure: Figure) -> None:
        grid = figure.subplots(1, len(metrics), squeeze=False)[0]
        for axes, (name, splits) in zip(grid, metrics.items(), strict=True):
            for (split, values), color, dash in zip(splits.items(), (COLORS[0], COLORS[5]), DASHES, strict=False):
                passes = np.arange(1, len(values) + 1)
                axes.plot(
                    passes,
                    values,
                    marker="." if len(values) == 1 else "",
                    color=color,
                    linestyle=dash,
                    label=split,
                    linewidth=1.6,
                )
            if best_epoch:
                axes.axvline(
                    best_epoch, color="#888888", linestyle=":", linewidth=1.2, label=f"kept: pass {best_epoch}"
                )
            axes.set_xlabel("passes over the training runs")
            axes.set_title(name)
            axes.set_ylim(*((0, 1.02) if name == "accuracy" else (0, None)))
            whole_numbers(axes.xaxis)
        legend(figure, grid[0])

    losses = metrics["loss"] if "loss" in metrics else next(iter(metrics.values()))
    train = losses["train"]
    passes = "1 pass" if len(train) == 1 else f"{len(train):,} passes"
    title = f"Over {passes} the loss goes from {train[0]:.3g} to {train[-1]:.3g}"
    if "dev" in losses:
        low = int(np.argmin(losses["dev"]))
        title += f"; the dev loss is lowest, {losses['dev'][low]:.3g}, after {low + 1}"
        caption = "Train: the mean over a pass during training, with penalties. Dev runs are not trained on."
    else:
        caption = "The mean over a pass during training, with penalties. No dev runs were evaluated during training."
    return Plot("learning", title, caption, (WIDE, 3.1), paint)


def slices_plot(number: int, fact: str, bars: Sequence[Bar]) -> Plot:
    """Plot the accuracy by job or provider. ``bars``: from `slice_bars`."""
    known = [bar for bar in bars if bar.value is not None]
    below = [bar for bar in known if (bar.value or 0.0) < next(iter(bar.beside.values()), 0.0)]
    if below:
        title = f"For {len(below)} of {len(bars)} values of {shown(fact)}, guessing the most frequent class is better"
    else:
        low, high = (pick(known, key=lambda bar: bar.value or 0.0) for pick in (min, max))
        title = (
            f"By {shown(fact)}, from {percent(low.value or 0)} ({shown(low.name, 20)}) to {percent(high.value or 0)}"
        )
        title += f" ({shown(high.name, 20)})" if len(known) > 1 else ""
    caption = f"Accuracy by {shown(fact)}, the most test runs first, with 95 % intervals (Wilson)."
    return bars_plot(f"slices-{number}", title, caption, "accuracy (%)", [("", bars)])


def folds_plot(number: int, by: str, bars: Sequence[Bar]) -> Plot:
    """Plot the accuracy of each fold. ``bars``: from `fold_bars`."""
    mean = bars[-1]
    folds = [bar.value for bar in bars[:-1] if bar.value is not None]
    spread = f", folds from {percent(min(folds))} to {percent(max(folds))}" if folds else ""
    title = f"Held out by {shown(by)}: mean accuracy {percent(mean.value or 0)} ({_interval(mean)}){spread}"
    caption = "Each fold by a model of all others; test runs are not used. The interval of the mean is Student's."
    return bars_plot(f"folds-{number}", title, caption, "accuracy (%)", [("", bars)])


def elsewhere_plot(panels: Sequence[tuple[str, Sequence[Bar]]]) -> Plot:
    """Plot accuracy and macro F1 of one model on several data sets; the first is its own."""
    own, *others = panels[0][1]
    worst = min((bar for bar in others if bar.value is not None), key=lambda bar: bar.value or 0.0, default=None)
    title = f"Accuracy {percent(own.value or 0)} on its own data set"
    if worst is not None:
        title += f", {percent(worst.value or 0)} on {shown(worst.name)}"
    caption = "The same model on the test runs of each data set; its training runs are left out."
    return bars_plot("elsewhere", title, caption, "per cent", panels)
