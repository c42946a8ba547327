"""Build the page of a sweep, and draw its plots: the metric by axis and by question, and training times."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.datasets.definition import interval_us
from ciml.pipelines.sweep import Swept
from ciml.reports.drawing import (
    DASHES,
    WIDE,
    Estimate,
    Plot,
    add_legend,
    add_panels,
    colors_of,
    draw_estimates,
    draw_matrix,
    seconds,
    shown,
    slug,
)
from ciml.reports.page import Page, Section, Table, Tile, cells
from ciml.reports.sweeps import (
    METRICS,
    STATES,
    axis_name,
    best_at,
    complete,
    ended_early,
    number_text,
    plain_axes,
    question_name,
    questions,
    ranked,
    references,
    scored_on,
    state_text,
    value_text,
)
from ciml.training.sweeps.definition import Axis, Value
from ciml.training.sweeps.study import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: Longest name of a question or value in a table, characters.
_MOST_CHARACTERS = 60
_COLUMNS = 2
_MOST_PANELS = 8
_MOST_LINES = 8
_MOST_MAPS = 3
#: Longer names of axes, for labels.
_EXPLAINED = {"sample_interval": "resolution (length of a window)", "hidden_layers": "topology (hidden layers)"}
#: Axes that come first as lines, and as sides of a map.
_LINE_ORDER = ["features_regex", "sample_interval"]
_MAP_ORDER = ["sample_interval", "features_regex", "hidden_layers"]
_STATE_COLORS = {"complete": "#0072B2", "pruned": "#E69F00"}
_TICKS_S = (0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10800)


def sweep_page(swept: Swept) -> Page:
    """Return the page: the metric by axis, by question and by two axes, and all trials."""
    sweep = swept.sweep
    metric = METRICS[sweep.metric]
    names = {question: question_name(sweep, question) for question in questions(sweep)}
    states = [outcome.state for outcome in swept.outcomes]
    counts = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
    total_s = sum(outcome.seconds for outcome in swept.outcomes)
    tiles = (
        Tile("trials", f"{len(states):,}", counts),
        *(
            Tile(f"best {metric}", number_text(best.value), f"{shown(name)}: {_baselines(swept, question)}")
            for question, name in list(names.items())[:4]
            for best in complete(swept, question)[:1]
        ),
        Tile("training", seconds(total_s), "sum over all trials, one thread each"),
    )
    timed = any(outcome.seconds and outcome.value is not None for outcome in swept.outcomes)
    maps = tuple(heat_plots(swept))
    sections = [
        Section("Axes", _method(swept), _axes(swept)),
        Section("By axis", *(axis_plot(swept, axis, number) for number, axis in enumerate(plain_axes(sweep), 1))),
        *([Section("By question", questions_plot(swept))] if len(names) > 1 else []),
        *([Section("By two axes", *maps)] if maps else []),
        Section("Time", time_plot(swept) if timed else None),
        *(
            Section(f"Trials: {shown(name, _MOST_CHARACTERS)}", trials_table(swept, question))
            for question, name in names.items()
        ),
    ]
    lead = f"{metric[0].upper()}{metric[1:]} on {scored_on(sweep)}; the test runs were not read. "
    lead += "The best of many trials is biased upwards: test the chosen trial once."
    return Page(f"Sweep {sweep.name}", lead, tiles, tuple(sections))


def trials_table(swept: Swept, question: int) -> Table:
    """Return all trials of a question, best first, next to base rate and one-number baselines."""
    axes = plain_axes(swept.sweep)
    values_beside = references(swept, question)
    rows = []
    for trial in ranked(swept, question):
        values = [shown(value_text(trial.parameters.get(axis.key)), _MOST_CHARACTERS) for axis in axes]
        estimate = Estimate(trial.value, trial.low, trial.high)
        state = state_text(swept.sweep, trial)
        rows.append(cells(str(trial.number), *values, state, estimate, *values_beside.values(), f"{trial.seconds:.1f}"))
    headings = ("trial", *(shown(axis_name(axis), 24) for axis in axes), "state", METRICS[swept.sweep.metric], "95 %")
    headings = (*headings, *values_beside, "seconds")
    return Table(headings, tuple(rows), words=len(axes) + 2, best=frozenset({(0, len(axes) + 2)}))


def _baselines(swept: Swept, question: int) -> str:
    return ", ".join(f"{name} {number_text(value)}" for name, value in references(swept, question).items())


def _method(swept: Swept) -> str:
    sweep = swept.sweep
    trials = "Every combination once" if sweep.trials is None else f"{sweep.trials} trials, sampled by TPE"
    pruned = "none are pruned" if sweep.pruner == "none" else f"pruned by {sweep.pruner.replace('_', ' ')}"
    note = "Trials are compared and pruned within a question; trials of different questions are not comparable."
    return f"{trials}, {pruned}; seed {sweep.seed}. {note if len(sweep.questions) > 1 else ''}"


def _axes(swept: Swept) -> Table:
    rows = []
    for axis in swept.sweep.axes:
        if axis.values:
            values = " · ".join(shown(name, _MOST_CHARACTERS) for name in axis.names)
        else:
            values = f"{value_text(axis.low)} to {value_text(axis.high)}{', log scale' if axis.log else ''}"
        rows.append((f"{axis.part}.{axis.key}", values, "yes" if axis.question else ""))
    return Table(("axis", "values", "changes the question"), tuple(rows), words=3)


def axis_plot(swept: Swept, axis: Axis, number: int) -> Plot:
    """Plot the metric by one axis, with a line for each value of another."""
    by = _lines_by(swept, axis)
    names = ("trials",) if by is None else by.names
    metric = METRICS[swept.sweep.metric]

    def trials_of(trials: Sequence[Outcome], name: str) -> list[Outcome]:
        return [
            trial
            for trial in trials
            if axis.key in trial.parameters and (by is None or trial.parameters.get(by.key) == name)
        ]

    def paint(figure: Figure) -> None:
        for axes, question in _panels(figure, swept):
            finished = complete(swept, question)
            for index, (color, dash, name) in enumerate(zip(colors_of(names), DASHES, names, strict=False)):
                # shifted, so that the intervals of lines do not overlap
                shift = (index - (len(names) - 1) / 2) * 0.06 if axis.values else 0.0
                _draw_line(axes, axis, trials_of(finished, name), shift, color, dash, shown(name))
                pruned = trials_of(ended_early(swept, question), name)
                x = [_x(axis, trial.parameters[axis.key], shift) for trial in pruned]
                axes.scatter(x, _values(pruned), 12, facecolors="none", edgecolors=color, alpha=0.6, linewidths=0.7)
            _axis_ticks(axes, axis)
            _references(axes, swept, question, finished)
            axes.set_xlabel(_EXPLAINED.get(axis.key, axis_name(axis)))
        figure.supylabel(metric, fontsize=9)
        add_legend(figure)

    maximised = [third for third in plain_axes(swept.sweep) if third not in (axis, by)]
    caption = "Dots: complete trials; hollow: pruned, at their last value. "
    if axis.values:
        scope = f" over all values of {' and '.join(map(axis_name, maximised))}" if maximised else ""
        caption += f"Lines: the best trial{scope}, with its 95 % interval. "
    caption += "The best of many is biased upwards: compare differences, not heights."
    title = f"{metric.capitalize() if metric.islower() else metric} by {axis_name(axis)}{_best_text(swept, axis)}"
    return Plot(f"by-{number:02}-{slug(axis.key, 40)}", title, caption, (WIDE, _height(swept)), paint)


def questions_plot(swept: Swept) -> Plot:
    """Plot the best trial of each question next to its baselines."""
    best = {question: trials[0] for question in questions(swept.sweep) if (trials := complete(swept, question))}
    names = [question_name(swept.sweep, question) for question in best]
    metric = METRICS[swept.sweep.metric]
    lines = [references(swept, question) for question in best]
    marks = dict.fromkeys(name for line in lines for name in line)
    if swept.sweep.metric != "accuracy" or any(line["base rate"] is None for line in lines):
        del marks["base rate"]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        x = np.arange(len(best))
        _draw_best(axes, x, list(best.values()), "#0072B2", "best trial")
        for position, trial in zip(x, best.values(), strict=True):
            place = (position, trial.value)
            axes.annotate(f"{trial.value:.3f}", place, (9, 0), textcoords="offset points", va="center")
        colors = iter(("#D55E00", "#CC79A7"))
        for name in marks:
            values = np.array([line.get(name) for line in lines], np.float64)  # None becomes NaN
            style: Any = {"marker": "_", "color": "#444444", "markersize": 26}
            if name != "base rate":
                style = {"marker": "x", "color": next(colors)}
            axes.plot(x, values, linestyle="", label=name, **style)
        axes.set_xticks(x, [shown(name, 30) for name in names])
        axes.set_xlim(-0.6, len(best) - 0.4)
        axes.set_ylabel(metric)
        axes.grid(False, axis="x")
        add_legend(figure)

    keys = " and ".join(axis_name(axis) for axis in swept.sweep.axes if axis.question)
    gains = ", ".join(f"{shown(name, 20)} {trial.value:.3f}" for name, trial in zip(names, best.values(), strict=True))
    caption = "A question with fewer classes is easier: compare each with its own base rate."
    return Plot("questions", f"Best {metric} by {keys}: {gains}", caption, (WIDE, 3.4), paint)


def heat_plots(swept: Swept) -> Iterator[Plot]:
    """Yield a map of the best metric for each pair of listed axes."""
    axes = _ordered([axis for axis in plain_axes(swept.sweep) if len(axis.names) > 1], _MAP_ORDER)
    for number, (across, down) in enumerate(itertools.islice(itertools.combinations(axes, 2), _MOST_MAPS), 1):
        yield _heat_plot(swept, across, down, number)


def _heat_plot(swept: Swept, across: Axis, down: Axis, number: int) -> Plot:
    metric = METRICS[swept.sweep.metric]
    colors = "viridis" if swept.sweep.maximise else "viridis_r"

    def best_by_cell(trials: Sequence[Outcome]) -> dict[tuple[int, int], float]:
        return {
            (down.names.index(str(row)), across.names.index(str(column))): float(trial.value or 0.0)
            for (column, row), trial in best_at(trials, across, down).items()
        }

    def paint(figure: Figure) -> None:
        for axes, question in _panels(figure, swept, share=True):
            best = best_by_cell(complete(swept, question))
            values = np.full((len(down.names), len(across.names)), np.nan)
            for cell, value in best.items():
                values[cell] = value
            low = min(best.values(), default=0.0)
            high = max(best.values(), default=1.0)
            dark = (values < (low + high) / 2) == swept.sweep.maximise
            texts = {cell: f"{value:.3f}" for cell, value in best.items()}
            pruned = best_by_cell(ended_early(swept, question))
            texts |= {cell: f"({value:.3f})" for cell, value in pruned.items() if cell not in best}
            rows = [shown(name, 22) for name in down.names]
            columns = [shown(name, 16) for name in across.names]
            shades: Any = {
                "dark": dark & np.isfinite(values),
                "cmap": colors,
                "vmin": low,
                "vmax": max(high, low + 1e-9),
            }
            draw_matrix(axes, values, rows, columns, texts, **shades)
            axes.set_xlabel(_EXPLAINED.get(across.key, axis_name(across)))
        figure.supylabel(_EXPLAINED.get(down.key, axis_name(down)), fontsize=9)

    title = f"Best {metric} by {axis_name(across)} and {axis_name(down)}"
    caption = "Each panel has its own colour scale; brighter is better. In brackets: the last value if all were pruned."
    rows = -(-len(_drawn(swept)) // _COLUMNS)
    size = (WIDE, 0.9 + rows * (0.7 + 0.3 * len(down.names)))
    return Plot(f"map-{number:02}-{slug(across.key, 40)}-{slug(down.key, 40)}", title, caption, size, paint)


def time_plot(swept: Swept) -> Plot:
    """Plot the metric of each trial against its training time."""
    trials = [trial for trial in swept.outcomes if trial.seconds > 0 and trial.value is not None]
    total_s = sum(trial.seconds for trial in trials)
    pruned = [trial for trial in trials if trial.state == "pruned"]

    def paint(figure: Figure) -> None:
        for axes, question in _panels(figure, swept):
            for state, color in _STATE_COLORS.items():
                dots = [trial for trial in trials if trial.question == question and trial.state == state]
                fill = color if state == "complete" else "none"
                times_s = [trial.seconds for trial in dots]
                axes.scatter(times_s, _values(dots), 22, facecolors=fill, edgecolors=color, label=state)
            axes.set_xscale("log")
            _seconds_ticks(axes, [trial.seconds for trial in trials])
            axes.set_xlabel("training and scoring")
        figure.supylabel(METRICS[swept.sweep.metric], fontsize=9)
        add_legend(figure)

    early = f"; {len(pruned)} {'was' if len(pruned) == 1 else 'were'} pruned" if pruned else ""
    title = f"{len(trials)} trials took {seconds(total_s)} of training in all{early}"
    caption = "Hollow: pruned trials, at their last value, of fewer held-out runs."
    return Plot("seconds", title, caption if pruned else "", (WIDE, _height(swept)), paint)


def _panels(figure: Figure, swept: Swept, share: bool = False) -> Iterator[tuple[Any, int]]:
    """Yield axes for each question with a complete trial."""
    drawn = _drawn(swept)
    for axes, question in zip(add_panels(figure, len(drawn), _COLUMNS, share), drawn, strict=True):
        if len(drawn) > 1:
            axes.set_title(shown(question_name(swept.sweep, question), 40))
        yield axes, question


def _drawn(swept: Swept) -> list[int]:
    return [question for question in questions(swept.sweep) if complete(swept, question)][:_MOST_PANELS]


def _height(swept: Swept) -> float:
    return 1.2 + 2.5 * -(-len(_drawn(swept)) // _COLUMNS)


def _ordered(axes: Sequence[Axis], keys: list[str]) -> list[Axis]:
    """Return the axes with these keys first."""
    return sorted(axes, key=lambda axis: keys.index(axis.key) if axis.key in keys else len(keys))


def _lines_by(swept: Swept, axis: Axis) -> Axis | None:
    """Return the axis whose values are lines: features, else resolution, else the first listed axis."""
    lines = [third for third in plain_axes(swept.sweep) if third != axis and 1 < len(third.names) <= _MOST_LINES]
    return next(iter(_ordered(lines, _LINE_ORDER)), None)


def _draw_line(
    axes: Any, axis: Axis, trials: Sequence[Outcome], shift: float, color: str, dash: Any, label: str
) -> None:
    """Draw all trials as dots and, on a listed axis, a line through the best at each value."""
    x = [_x(axis, trial.parameters[axis.key], shift) for trial in trials]
    if not axis.values:
        axes.scatter(x, _values(trials), 18, color=color, alpha=0.8, linewidths=0, label=label)
        return
    axes.scatter(x, _values(trials), 14, color=color, alpha=0.45, linewidths=0)
    if not trials:
        return
    best = best_at(trials, axis)
    names = sorted(axis.names, key=interval_us) if axis.key == "sample_interval" else list(axis.names)
    x = [_x(axis, name, shift) for name in names]
    drawn = [(place, best[name,]) for place, name in zip(x, names, strict=True) if (name,) in best]
    _draw_best(axes, [place for place, _ in drawn], [trial for _, trial in drawn], color, label, size=4)
    # the line has a gap where all trials were pruned
    axes.plot(x, [best[name,].value if (name,) in best else np.nan for name in names], color=color, linestyle=dash)


def _draw_best(
    axes: Any, x: Sequence[float] | np.ndarray, trials: Sequence[Outcome], color: str, label: str, size: float = 6
) -> None:
    estimates = [Estimate(trial.value, trial.low, trial.high) for trial in trials]
    draw_estimates(axes, list(x), estimates, color=color, label=label, size=size, scale=1)


def _x(axis: Axis, value: Value, shift: float) -> float:
    if not axis.values:
        return float(value)
    if _is_time(axis):
        return float(interval_us(str(value)) / 1e6 * (1 + shift * 1.5))
    return axis.names.index(str(value)) + shift


def _is_time(axis: Axis) -> bool:
    return axis.key == "sample_interval" and len(axis.names) > 1


def _axis_ticks(axes: Any, axis: Axis) -> None:
    if _is_time(axis):
        axes.set_xscale("log")
        names = sorted(axis.names, key=interval_us)
        axes.set_xticks([interval_us(name) / 1e6 for name in names], names)
        axes.minorticks_off()
    elif axis.values:
        axes.set_xticks(range(len(axis.names)), [shown(name, 18) for name in axis.names])
        axes.set_xlim(-0.5, len(axis.names) - 0.5)
    elif axis.log:
        axes.set_xscale("log")


def _seconds_ticks(axes: Any, times_s: Sequence[float]) -> None:
    """Put ticks at round durations, since a range below a decade may contain no power of ten."""
    ticks = [tick for tick in _TICKS_S if min(times_s) / 1.5 <= tick <= max(times_s) * 1.5]
    axes.set_xticks(ticks, [seconds(tick) for tick in ticks])
    axes.minorticks_off()


def _references(axes: Any, swept: Swept, question: int, trials: Sequence[Outcome]) -> None:
    """Draw base rate and one-number baselines, unless they are so far away that they would compress the plot."""
    values = [value for trial in trials for value in (trial.value, trial.low, trial.high) if value is not None]
    if not values:
        return
    spread = 1.5 * max(max(values) - min(values), 0.05)
    lines = references(swept, question)
    if swept.sweep.metric != "accuracy":
        del lines["base rate"]
    for (name, value), style in zip(lines.items(), ("--", ":", "-."), strict=False):
        if value is not None and min(values) - spread <= value <= max(values) + spread:
            axes.axhline(value, color="#444444", linewidth=1.1, linestyle=style, label=name, zorder=1)


def _best_text(swept: Swept, axis: Axis) -> str:
    """Return the values of the best trials, for the title."""
    best = [complete(swept, question)[0].parameters for question in _drawn(swept)[:2]]
    values = dict.fromkeys(shown(value_text(parameters[axis.key]), 20) for parameters in best if axis.key in parameters)
    return f": best at {' and at '.join(values)}" if values else ""


def _values(trials: Sequence[Outcome]) -> list[float]:
    return [float(trial.value or 0.0) for trial in trials]
