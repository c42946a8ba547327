"""Draw the plots of a sweep: the metric by axis, by question and by two axes, and training times."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.datasets.definition import interval_us
from ciml.pipelines.sweep import Swept
from ciml.reports.drawing import DASHES, WIDE, Plot, colors_of, seconds, shown
from ciml.reports.sweeps.views import (
    METRICS,
    axis_name,
    base_rate,
    baselines_of,
    best_at,
    complete,
    ended_early,
    plain_axes,
    question_name,
    questions,
    value_text,
)
from ciml.training.sweeps.definition import Axis, Value
from ciml.training.sweeps.study import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 2
_MOST_PANELS = 8
_MOST_LINES = 8
_MOST_MAPS = 3
#: Longer names of axes, for labels.
_EXPLAINED = {"sample_interval": "resolution (length of a window)", "hidden_layers": "topology (hidden layers)"}
_TICKS_S = (0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10800)
_STATE_COLORS = {"complete": "#0072B2", "pruned": "#E69F00"}


def axis_plot(swept: Swept, axis: Axis, number: int) -> Plot:
    """Plot the metric by one axis, with a line for each value of another."""
    by = _lines_by(swept, axis)
    metric = METRICS[swept.sweep.metric]

    def paint(figure: Figure) -> None:
        names = _names(by)
        for axes, question in _panels(figure, swept):
            found = complete(swept, question)
            early = ended_early(swept, question)
            for color, dash, name, shift in zip(colors_of(names), DASHES, names, _shifts(axis, names), strict=False):
                of = [each for each in found if by is None or each.parameters.get(by.key) == name]
                _one_line(axes, axis, of, shift, color=color, linestyle=dash, label=shown(name))
                of = [each for each in early if by is None or each.parameters.get(by.key) == name]
                of = [each for each in of if axis.key in each.parameters]
                x = [_x(axis, each.parameters[axis.key], shift) for each in of]
                axes.scatter(x, _values(of), 12, facecolors="none", edgecolors=color, alpha=0.6, linewidths=0.7)
            _axis_ticks(axes, axis)
            _references(axes, swept, question, found)
            axes.set_xlabel(_EXPLAINED.get(axis.key, axis_name(axis)))
        figure.supylabel(metric, fontsize=9)
        _legend(figure)

    others = [each for each in plain_axes(swept.sweep) if each not in (axis, by)]
    caption = "Dots: complete trials; hollow: pruned, at their last value. "
    if axis.values:
        rest = f" over all values of {' and '.join(axis_name(each) for each in others)}" if others else ""
        caption += f"Lines: the best trial{rest}, with its 95 % interval. "
    caption += "The best of many is biased upwards: compare differences, not heights."
    title = f"{metric.capitalize() if metric.islower() else metric} by {axis_name(axis)}{_best_text(swept, axis)}"
    return Plot(f"by-{number:02}-{_slug(axis.key)}", title, caption, (WIDE, _height(swept)), paint)


def questions_plot(swept: Swept) -> Plot:
    """Plot the best trial of each question beside its baselines."""
    order = [question for question in questions(swept.sweep) if complete(swept, question)]
    metric = METRICS[swept.sweep.metric]
    best = [complete(swept, question)[0] for question in order]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        x = np.arange(len(order))
        axes.errorbar(x, _values(best), _bars(best), fmt="o", color="#0072B2", capsize=3, label="best trial", zorder=3)
        for position, one in zip(x, best, strict=True):
            axes.annotate(f"{one.value:.3f}", (position, one.value), (9, 0), textcoords="offset points", va="center")
        bases = [base for question in order if (base := base_rate(swept, question)) is not None]
        if len(bases) == len(order) and swept.sweep.metric == "accuracy":
            axes.plot(x, bases, "_", color="#444444", markersize=26, label="base rate: the most frequent class")
        for name, color in zip(_number_names(swept), ("#D55E00", "#CC79A7"), strict=False):
            numbers = [baselines_of(swept, question).get(name, {}).get("value", np.nan) for question in order]
            axes.plot(x, numbers, "x", color=color, label=f"{name} alone")
        axes.set_xticks(x, [shown(question_name(swept.sweep, question), 30) for question in order])
        axes.set_xlim(-0.6, len(order) - 0.4)
        axes.set_ylabel(metric)
        axes.grid(False, axis="x")
        _legend(figure)

    keys = " and ".join(axis_name(axis) for axis in swept.sweep.axes if axis.question)
    gains = ", ".join(
        f"{shown(question_name(swept.sweep, question), 20)} {one.value:.3f}"
        for question, one in zip(order, best, strict=True)
    )
    caption = "A question with fewer classes is easier: compare each with its own base rate."
    return Plot("questions", f"Best {metric} by {keys}: {gains}", caption, (WIDE, 3.4), paint)


def heat_plots(swept: Swept) -> Iterator[Plot]:
    """Yield a map of the best metric for each pair of listed axes."""
    listed = [axis for axis in plain_axes(swept.sweep) if len(axis.names) > 1]
    order = ["sample_interval", "features_regex", "hidden_layers"]
    listed.sort(key=lambda axis: order.index(axis.key) if axis.key in order else len(order))
    for number, (across, down) in enumerate(itertools.islice(itertools.combinations(listed, 2), _MOST_MAPS), 1):
        yield _heat_plot(swept, across, down, number)


def _heat_plot(swept: Swept, across: Axis, down: Axis, number: int) -> Plot:
    metric = METRICS[swept.sweep.metric]

    def paint(figure: Figure) -> None:
        for axes, question in _panels(figure, swept, share=True):
            found = best_at(complete(swept, question), across, down)
            early = best_at(ended_early(swept, question), across, down)
            cells = np.full((len(down.names), len(across.names)), np.nan)
            for (column, row), one in found.items():
                cells[down.names.index(str(row)), across.names.index(str(column))] = one.value
            axes.set_xticks(np.arange(len(across.names)), [shown(name, 16) for name in across.names])
            axes.set_yticks(np.arange(len(down.names)), [shown(name, 22) for name in down.names])
            axes.set_xlabel(_EXPLAINED.get(across.key, axis_name(across)))
            axes.grid(False)
            if np.isnan(cells).all():
                continue
            low = np.nanmin(cells)
            high = np.nanmax(cells)
            colors = "viridis" if swept.sweep.maximise else "viridis_r"
            axes.imshow(cells, cmap=colors, vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
            middle = (low + high) / 2
            for row, column in zip(*np.nonzero(np.isfinite(cells)), strict=True):
                dark = (cells[row, column] < middle) == swept.sweep.maximise
                axes.annotate(
                    f"{cells[row, column]:.3f}",
                    (column, row),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "black",
                )
            for (column, row), one in early.items():
                if (column, row) not in found:
                    cell = (across.names.index(str(column)), down.names.index(str(row)))
                    axes.annotate(f"({one.value:.3f})", cell, ha="center", va="center", fontsize=8, color="#777777")
        figure.supylabel(_EXPLAINED.get(down.key, axis_name(down)), fontsize=9)

    title = f"Best {metric} by {axis_name(across)} and {axis_name(down)}"
    caption = "Each panel has its own colour scale; brighter is better. In brackets: the last value if all were pruned."
    rows = -(-len(_drawn(swept)) // _COLUMNS)
    size = (WIDE, 0.9 + rows * (0.7 + 0.3 * len(down.names)))
    return Plot(f"map-{number:02}-{_slug(across.key)}-{_slug(down.key)}", title, caption, size, paint)


def time_plot(swept: Swept) -> Plot:
    """Plot the training time and the value of each trial."""
    took = [each for each in swept.outcomes if each.seconds > 0 and each.value is not None]
    total = sum(each.seconds for each in took)
    pruned = [each for each in took if each.state == "pruned"]

    def paint(figure: Figure) -> None:
        for axes, question in _panels(figure, swept):
            for state, color in _STATE_COLORS.items():
                of = [each for each in took if each.question == question and each.state == state]
                filled = color if state == "complete" else "none"
                axes.scatter(
                    [each.seconds for each in of], _values(of), 22, facecolors=filled, edgecolors=color, label=state
                )
            axes.set_xscale("log")
            _seconds_ticks(axes, [each.seconds for each in took])
            axes.set_xlabel("training and scoring")
        figure.supylabel(METRICS[swept.sweep.metric], fontsize=9)
        _legend(figure)

    early = f"; {len(pruned)} {'was' if len(pruned) == 1 else 'were'} pruned" if pruned else ""
    title = f"{len(took)} trials took {seconds(total)} of training in all{early}"
    caption = "Hollow: pruned trials, at their last value, of fewer held-out runs."
    return Plot("seconds", title, caption if pruned else "", (WIDE, _height(swept)), paint)


def _panels(figure: Figure, swept: Swept, share: bool = False) -> Iterator[tuple[Any, int]]:
    """Yield axes for each question with a complete trial."""
    drawn = _drawn(swept)
    columns = min(_COLUMNS, len(drawn))
    grid = figure.subplots(-(-len(drawn) // columns), columns, squeeze=False, sharex=share, sharey=share)
    for index, axes in enumerate(grid.flat):
        if index >= len(drawn):
            axes.set_visible(False)
            continue
        if len(drawn) > 1:
            axes.set_title(shown(question_name(swept.sweep, drawn[index]), 40))
        yield axes, drawn[index]


def _drawn(swept: Swept) -> list[int]:
    return [question for question in questions(swept.sweep) if complete(swept, question)][:_MOST_PANELS]


def _height(swept: Swept) -> float:
    return 1.2 + 2.5 * -(-len(_drawn(swept)) // _COLUMNS)


def _lines_by(swept: Swept, axis: Axis) -> Axis | None:
    """Return the axis whose values are lines: features, else resolution, else the first listed axis."""
    listed = [each for each in plain_axes(swept.sweep) if each != axis and 1 < len(each.names) <= _MOST_LINES]
    order = ["features_regex", "sample_interval"]
    listed.sort(key=lambda each: order.index(each.key) if each.key in order else len(order))
    return listed[0] if listed else None


def _names(by: Axis | None) -> tuple[str, ...]:
    return ("trials",) if by is None else by.names


def _shifts(axis: Axis, names: Sequence[str]) -> list[float]:
    """Shift lines horizontally, so that their intervals do not overlap."""
    middle = (len(names) - 1) / 2
    return [(index - middle) * 0.06 if axis.values else 0.0 for index in range(len(names))]


def _one_line(axes: Any, axis: Axis, of: Sequence[Outcome], shift: float, **style: Any) -> None:
    dots = [each for each in of if axis.key in each.parameters]
    color = style["color"]
    label = style["label"]
    x = [_x(axis, each.parameters[axis.key], shift) for each in dots]
    alone = not axis.values
    axes.scatter(
        x,
        _values(dots),
        14 if axis.values else 18,
        color=color,
        alpha=0.45 if axis.values else 0.8,
        linewidths=0,
        label=label if alone else None,
    )
    if alone or not dots:
        return
    best = best_at(dots, axis)
    names = _sorted(axis)
    chosen = [best[name,] for name in names if (name,) in best]
    x = [_x(axis, each.parameters[axis.key], shift) for each in chosen]
    axes.errorbar(x, _values(chosen), _bars(chosen), fmt="o", markersize=4, capsize=2.5, color=color, label=label)
    # the line has a gap where all trials were pruned
    every = [best[name,].value if (name,) in best else np.nan for name in names]
    axes.plot([_x(axis, name, shift) for name in names], every, color=color, linestyle=style["linestyle"])


def _sorted(axis: Axis) -> list[str]:
    if axis.key == "sample_interval":
        return sorted(axis.names, key=interval_us)
    return list(axis.names)


def _is_time(axis: Axis) -> bool:
    return axis.key == "sample_interval" and len(axis.names) > 1


def _x(axis: Axis, value: Value, shift: float) -> float:
    if not axis.values:
        return float(value)
    if _is_time(axis):
        return float(interval_us(str(value)) / 1e6 * (1 + shift * 1.5))
    return axis.names.index(str(value)) + shift


def _axis_ticks(axes: Any, axis: Axis) -> None:
    if _is_time(axis):
        axes.set_xscale("log")
        names = _sorted(axis)
        axes.set_xticks([interval_us(name) / 1e6 for name in names], names)
        axes.minorticks_off()
    elif axis.values:
        axes.set_xticks(range(len(axis.names)), [shown(name, 18) for name in axis.names])
        axes.set_xlim(-0.5, len(axis.names) - 0.5)
    elif axis.log:
        axes.set_xscale("log")


def _seconds_ticks(axes: Any, values: Sequence[float]) -> None:
    """Put ticks at round durations, since a range below a decade may contain no power of ten."""
    low = min(values)
    high = max(values)
    ticks = [tick for tick in _TICKS_S if low / 1.5 <= tick <= high * 1.5]
    axes.set_xticks(ticks, [seconds(tick) for tick in ticks])
    axes.minorticks_off()


def _references(axes: Any, swept: Swept, question: int, found: Sequence[Outcome]) -> None:
    """Draw base rate and one-number baselines, unless they are so far away that they would compress the plot."""
    values = [value for each in found for value in (each.value, each.low, each.high) if value is not None]
    if not values:
        return
    spread = max(max(values) - min(values), 0.05)
    lines = {"base rate": base_rate(swept, question) if swept.sweep.metric == "accuracy" else None}
    lines |= {f"{name} alone": one["value"] for name, one in baselines_of(swept, question).items()}
    for (name, value), style in zip(lines.items(), ("--", ":", "-."), strict=False):
        if value is not None and min(values) - 1.5 * spread <= value <= max(values) + 1.5 * spread:
            axes.axhline(value, color="#444444", linewidth=1.1, linestyle=style, label=name, zorder=1)


def _best_text(swept: Swept, axis: Axis) -> str:
    """Return where the best trials are, for the title."""
    values = []
    for question in _drawn(swept)[:2]:
        one = complete(swept, question)[0]
        if axis.key in one.parameters:
            values.append(shown(value_text(one.parameters[axis.key]), 20))
    if not values:
        return ""
    return f": best at {values[0]}" if len(set(values)) == 1 else f": best at {' and at '.join(values)}"


def _values(outcomes: Sequence[Outcome]) -> list[float]:
    return [float(each.value or 0.0) for each in outcomes]


def _bars(outcomes: Sequence[Outcome]) -> np.ndarray | None:
    """Return the lengths of the error bars, float [2, n]; None if the metric has no interval."""
    if any(each.low is None or each.high is None for each in outcomes):
        return None
    return np.array([[each.value - each.low, each.high - each.value] for each in outcomes]).T.clip(0)  # type: ignore[operator]


def _number_names(swept: Swept) -> list[str]:
    return sorted({name for question in questions(swept.sweep) for name in baselines_of(swept, question)})


def _legend(figure: Figure) -> None:
    """Add one legend for all panels below the figure."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        handles = list(found.values())
        labels = list(found)
        figure.legend(handles, labels, loc="outside lower left", ncols=min(5, len(labels)), fontsize=8.5)


def _slug(key: str) -> str:
    return "".join(char if char.isascii() and char.isalnum() else "-" for char in key)[:40]
