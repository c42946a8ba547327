"""Draw the plots of an experiment's results.

A function ``…_plot`` returns a `Plot`, whose title is the finding. ``_draw_…`` draws it when the image is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.reports.drawing import (
    COLORS,
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
    label_panels,
    percent,
    shown,
    use_whole_numbers,
)
from ciml.reports.experiments.views import (
    ALONE,
    MOST_BARS,
    Bar,
    Curves,
    Figures,
    Passes,
    folded_confusion,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Largest number of curves that share a pair of axes: each has a colour of its own.
MOST_CURVES = len(COLORS) - 1
#: Largest matrix whose cells also show shares, classes.
_MOST_SHARES = 10
#: Heights of a row of bars, of the title and ticks of a panel, and of the legend of a figure, inches.
_BAR_INCHES = 0.29
_PANEL_INCHES = 0.8
_LEGEND_INCHES = 0.75
#: Markers of the first and the second one-number baseline; other baselines are black strokes.
_NUMBERS: Sequence[Mapping[str, Any]] = (
    {"marker": "D", "markersize": 5, "markerfacecolor": "none", "color": "#D55E00"},
    {"marker": "s", "markersize": 5, "markerfacecolor": "none", "color": "#009E73"},
)
_STROKE: Mapping[str, Any] = {"marker": "|", "markersize": 13, "markeredgewidth": 2, "color": "#222222"}


def confusion_plot(confusion: Figures) -> Plot:
    """Plot the confusion matrix: counts and row shares."""
    names, counts = folded_confusion(confusion)
    labels = distinct(names, 20)
    caption = "Number of test runs; the shade and the per cent are shares of the row, which is the true class."
    if len(names) < len(confusion["classes"]):
        caption += f" Classes beyond the {len(names) - 1} largest are merged."
    side = min(WIDE - 0.4, 2.6 + 0.62 * len(names))  # of the matrix with its labels, inches
    size = (min(WIDE, side + 1.4), side * 0.72 + 0.7)
    return Plot("confusion", _confusion_title(labels, counts), caption, size, partial(_draw_confusion, labels, counts))


def _confusion_title(labels: Sequence[str], counts: np.ndarray) -> str:
    errors = counts.copy()
    np.fill_diagonal(errors, 0)
    if not errors.any():
        return "No run is misclassified"
    row, column = divmod(int(errors.argmax()), len(labels))
    frequency = f"{errors[row, column]:,} of {counts[row].sum():,} runs"
    return f"Most frequent error: {labels[row]} classified as {labels[column]}, {frequency}"


def _draw_confusion(labels: Sequence[str], counts: np.ndarray, figure: Figure) -> None:
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, np.newaxis]
    rows = [f"{label} ({total:,})" for label, total in zip(labels, totals, strict=True)]
    texts = {cell: f"{counts[cell]:,}\n{100 * shares[cell]:.0f} %" for cell in np.ndindex(counts.shape)}
    font_size = 8
    if len(labels) > _MOST_SHARES:
        texts = {cell: f"{counts[cell]:,}" for cell in texts if counts[cell]}
        font_size = 7
    axes = figure.add_subplot()
    draw_matrix(axes, shares, rows, labels, texts, dark=shares > 0.5, size=font_size, cmap="Blues", vmin=0, vmax=1)
    if len(labels) > 4:
        axes.set_xticks(np.arange(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor")
    axes.set(xlabel="predicted class", ylabel="true class")


def errors_plot(bars: Sequence[Bar]) -> Plot:
    """Plot the share of misclassified runs of each class. ``bars``: from `errors_by_class`, not empty."""
    worst = bars[0]
    title = "No run is misclassified"
    if worst.value:
        share = f"{percent(worst.value)} ({worst.estimate.percent}) of its {worst.runs:,} test runs"
        title = f"{shown(worst.name)} is misclassified most often: {share}"
    caption = (
        "Share of misclassified runs of a class, with 95 % intervals (Wilson). Always guessing one class has no errors "
        "in that class, and 100 % in the others."
    )
    return bars_plot("errors", title, caption, "misclassified runs (%)", [("", bars)])


def bars_plot(
    name: str, title: str, caption: str, unit: str, groups: Sequence[tuple[str, Sequence[Bar]]], columns: int = 2
) -> Plot:
    """Plot shares with their intervals next to their baselines, one row for each name.

    Args:
      name: file name without suffix.
      title: the finding, in one sentence.
      caption: how to read the plot.
      unit: label of the x axis, in per cent.
      groups: (heading, bars) of each panel, at least one. The panels have the same names in the same order; the first
        `MOST_BARS` are drawn.
      columns: number of panels side by side.
    """
    total = len(groups[0][1])
    drawn = min(total, MOST_BARS)
    if drawn < total:
        caption = f"{caption} The first {drawn} of {total} are drawn."
    panel_rows = math.ceil(len(groups) / columns)
    height = _LEGEND_INCHES + panel_rows * (_PANEL_INCHES + _BAR_INCHES * drawn)
    panels = [(heading, bars[:MOST_BARS]) for heading, bars in groups]
    return Plot(name, title, caption, (WIDE, height), partial(_draw_panels, panels, columns, unit))


def _draw_panels(panels: Sequence[tuple[str, Sequence[Bar]]], columns: int, unit: str, figure: Figure) -> None:
    _, named_bars = panels[0]
    names = distinct([bar.name for bar in named_bars], 34)
    counts = ["" if bar.runs is None else f" ({bar.runs:,})" for bar in named_bars]
    labels = [name + count for name, count in zip(names, counts, strict=True)]
    grid = add_panels(figure, len(panels), columns)
    for axes, (heading, bars) in zip(grid, panels, strict=True):
        _draw_bars(axes, bars)
        axes.set_title(heading)
    grid[0].set_yticks(np.arange(len(labels)), labels)
    label_panels(grid, columns, unit)
    add_legend(figure)


def _draw_bars(axes: Axes, bars: Sequence[Bar]) -> None:
    """Draw a row for each bar: markers of the baselines, and the share with the interval, or "undefined"."""
    styles = chain(_NUMBERS, repeat(_STROKE))
    for name in dict.fromkeys(name for bar in bars for name in bar.beside):
        rows = [row for row, bar in enumerate(bars) if name in bar.beside]
        shares = [100 * bars[row].beside[name] for row in rows]
        style = next(styles) if name.endswith(ALONE) else _STROKE
        axes.plot(shares, rows, linestyle="", label=shown(name), **style)
    defined = [row for row, bar in enumerate(bars) if bar.estimate.value is not None]
    if defined:
        estimates = [bars[row].estimate for row in defined]
        draw_estimates(axes, defined, estimates, label="experiment, 95 % interval", horizontal=True)
    for row in set(range(len(bars))).difference(defined):
        axes.annotate("undefined", (2, row), va="center", color="#666666", fontsize=8)
    axes.set_xlim(-2, 102)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.grid(False, axis="y")


def curves_plot(curves: Sequence[Curves], total: int) -> Plot:
    """Plot the precision-recall and ROC curves of each class.

    Args:
      curves: of the classes with the most runs, 1 to `MOST_CURVES`.
      total: number of classes that have curves.
    """
    worst = min(curves, key=lambda curve: curve.roc_auc)
    best = max(curves, key=lambda curve: curve.roc_auc)
    area = f"{best.roc_auc:.2f}"
    if best.roc_auc - worst.roc_auc > 0.005:
        low = f"{worst.roc_auc:.2f} ({shown(worst.name, 20)})"
        area = f"from {low} to {best.roc_auc:.2f} ({shown(best.name, 20)})"
    caption = "Each class against all others, by its probability. Dotted: a random guess."
    if len(curves) < total:
        caption += f" The {len(curves)} largest of {total} classes are drawn."
    size = (WIDE, 3.9 + 0.2 * math.ceil(len(curves) / 2))  # two curves share a row of the legend
    return Plot("curves", f"ROC-AUC {area}; a random guess has 0.50", caption, size, partial(_draw_curves, curves))


def _draw_curves(curves: Sequence[Curves], figure: Figure) -> None:
    names = [curve.name for curve in curves]
    dashes = DASHES[: len(curves)]
    left, right = figure.subplots(1, 2)
    for color, dash, name, curve in zip(colors_of(names), dashes, distinct(names, 20), curves, strict=True):
        label = f"{name}: PR {curve.pr_auc:.2f}, ROC {curve.roc_auc:.2f}"
        left.step(curve.recall, curve.precision, color=color, linestyle=dash, label=label)
        left.axhline(curve.share, color=color, linestyle=":", linewidth=0.9)
        right.plot(curve.false_positive, curve.true_positive, color=color, linestyle=dash)
    right.plot([0, 1], [0, 1], color="#888888", linestyle=":", linewidth=1)
    left.set(title="precision and recall", xlabel="recall", ylabel="precision")
    right.set(title="ROC", xlabel="false positives, share of the other runs", ylabel="true positives (recall)")
    for axes in (left, right):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    add_legend(figure, 2)


def calibration_plot(calibration: Figures, before: Figures | None = None) -> Plot:
    """Plot the share of right answers by confidence.

    Args:
      calibration: ``ece`` and ``bins`` of at least one test run.
      before: the same figures before the calibration; None for an experiment without calibration.
    """
    caption = "Answers below the dotted line are overconfident, answers above it underconfident."
    draw = partial(_draw_calibration, calibration["bins"], before["bins"] if before is not None else [])
    return Plot("calibration", _calibration_title(calibration, before), caption, (6.4, 4.2), draw)


def _calibration_title(calibration: Figures, before: Figures | None) -> str:
    runs = [group["runs"] for group in calibration["bins"]]
    confidence = float(np.average([group["confidence"] for group in calibration["bins"]], weights=runs))
    accuracy = float(np.average([group["accuracy"] for group in calibration["bins"]], weights=runs))
    finding = "Confidence matches accuracy"
    if abs(confidence - accuracy) > 0.02:
        finding = "Overconfident" if confidence > accuracy else "Underconfident"
    means = f"mean confidence {percent(confidence)}, accuracy {percent(accuracy)}"
    uncalibrated = f", {before['ece']:.2f} without calibration" if before is not None else ""
    return f"{finding}: {means}; calibration error {calibration['ece']:.2f}{uncalibrated}"


def _draw_calibration(bins: Sequence[Figures], bins_before: Sequence[Figures], figure: Figure) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 100], [0, 100], color="#888888", linestyle=":", linewidth=1, label="perfect calibration")
    runs = [group["runs"] for group in bins]
    estimates = [Estimate.of_share(round(group["accuracy"] * group["runs"]), group["runs"]) for group in bins]
    places = [100 * group["confidence"] for group in bins]
    draw_estimates(upper, places, estimates, marker="o-", label="right answers, 95 % interval")
    if bins_before:
        places = [100 * group["confidence"] for group in bins_before]
        values = [100 * group["accuracy"] for group in bins_before]
        upper.plot(places, values, "s--", label="without calibration", color=COLORS[1], markersize=4, linewidth=1.2)
    upper.set(ylabel="right answers (%)", ylim=(-2, 102))
    lower.bar([100 * group["low"] + 5 for group in bins], runs, 9, color="#8a8a8a")  # bins are 10 % wide
    lower.set(ylabel="runs", xlabel="confidence: the probability of the answer (%)", xlim=(-2, 102))
    use_whole_numbers(lower.yaxis, 3)
    add_legend(figure)


def learning_plot(metrics: Passes, best_epoch: int | None) -> Plot:
    """Plot loss and accuracy by pass over the training runs.

    Args:
      metrics: from `history`, not empty.
      best_epoch: the pass whose model was kept; None for no mark.
    """
    losses = metrics["loss"] if "loss" in metrics else next(iter(metrics.values()))
    train = losses["train"]
    passes = "1 pass" if len(train) == 1 else f"{len(train):,} passes"
    title = f"Over {passes} the loss goes from {train[0]:.3g} to {train[-1]:.3g}"
    caption = "The mean over a pass during training, with penalties. No dev runs were evaluated during training."
    if "dev" in losses:
        best = int(np.argmin(losses["dev"]))
        title += f"; the dev loss is lowest, {losses['dev'][best]:.3g}, after {best + 1}"
        caption = "Train: the mean over a pass during training, with penalties. Dev runs are not trained on."
    return Plot("learning", title, caption, (WIDE, 3.1), partial(draw_passes, {"": metrics}, best_epoch))


def draw_passes(learned: Mapping[str, Passes], best_epoch: int | None, figure: Figure) -> None:
    """Draw metrics by pass over the training runs, a panel each.

    Args:
      learned: metrics of each experiment by name, at most `MOST_CURVES`; the name of a single experiment is "".
      best_epoch: the pass whose model was kept; None for no mark.
      figure: an empty figure.
    """
    metrics = list(dict.fromkeys(metric for passes in learned.values() for metric in passes))
    names = distinct(list(learned))
    for axes, metric in zip(add_panels(figure, len(metrics), 2, share=False), metrics, strict=True):
        for name, color, passes in zip(names, COLORS[: len(names)], learned.values(), strict=True):
            for split, values in passes.get(metric, {}).items():
                label: str | None = name or split
                if name and split != "train":
                    label = None  # the legend names each experiment once
                style = "-" if split == "train" else "--"
                marker = "." if len(values) == 1 else ""
                x = np.arange(1, len(values) + 1)
                axes.plot(x, values, marker=marker, color=color, linestyle=style, label=label)
        if best_epoch:
            axes.axvline(best_epoch, color="#888888", linestyle=":", linewidth=1.2, label=f"kept: pass {best_epoch}")
        limits = (0, 1.02) if metric == "accuracy" else (0, None)
        axes.set(title=metric, xlabel="passes over the training runs", ylim=limits)
        use_whole_numbers(axes.xaxis)
    add_legend(figure)


def slices_plot(number: int, fact: str, bars: Sequence[Bar]) -> Plot:
    """Plot the accuracy by job or provider. ``bars``: from `slice_bars`; one at least is defined."""
    defined = [bar for bar in bars if bar.estimate.value is not None]
    below = [bar for bar in defined if bar.value < next(iter(bar.beside.values()), 0.0)]
    if below:
        title = f"For {len(below)} of {len(bars)} values of {shown(fact)}, guessing the most frequent class is better"
    elif len(defined) == 1:
        title = f"By {shown(fact)}, {percent(defined[0].value)} for {shown(defined[0].name, 20)}"
    else:
        low = min(defined, key=lambda bar: bar.value)
        high = max(defined, key=lambda bar: bar.value)
        ends = [f"{percent(bar.value)} ({shown(bar.name, 20)})" for bar in (low, high)]
        title = f"By {shown(fact)}, from {ends[0]} to {ends[1]}"
    caption = f"Accuracy by {shown(fact)}, the most test runs first, with 95 % intervals (Wilson)."
    return bars_plot(f"slices-{number}", title, caption, "accuracy (%)", [("", bars)])


def folds_plot(number: int, by: str, bars: Sequence[Bar]) -> Plot:
    """Plot the accuracy of each fold. ``bars``: from `fold_bars`."""
    mean = bars[-1]
    folds = [bar.value for bar in bars[:-1] if bar.estimate.value is not None]
    spread = f", folds from {percent(min(folds))} to {percent(max(folds))}" if folds else ""
    title = f"Held out by {shown(by)}: mean accuracy {percent(mean.value)} ({mean.estimate.percent}){spread}"
    caption = (
        "Each fold by a model of all others; test runs are not used. The interval of the mean is at least as wide as "
        "the interval of all runs."
    )
    return bars_plot(f"folds-{number}", title, caption, "accuracy (%)", [("", bars)])


def elsewhere_plot(groups: Sequence[tuple[str, Sequence[Bar]]]) -> Plot:
    """Plot accuracy and macro F1 of one model on several data sets; the first one is the data set of the model."""
    first, *further = groups[0][1]
    worst = min((bar for bar in further if bar.estimate.value is not None), key=lambda bar: bar.value, default=None)
    title = f"Accuracy {percent(first.value)} on its own data set"
    title += f", {percent(worst.value)} on {shown(worst.name)}" if worst else ""
    caption = "The same model on the test runs of each data set; its training runs are left out."
    return bars_plot("elsewhere", title, caption, "per cent", groups)
