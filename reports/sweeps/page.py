"""Build the page of a sweep."""

from __future__ import annotations

from ciml.pipelines.sweep import Swept
from ciml.reports.drawing import Estimate, seconds, shown
from ciml.reports.page import Page, Section, Table, Tile, cells
from ciml.reports.sweeps.plots import axis_plot, heat_plots, questions_plot, time_plot
from ciml.reports.sweeps.views import (
    METRICS,
    STATES,
    axis_name,
    base_rate,
    baselines_of,
    complete,
    number_text,
    plain_axes,
    question_name,
    questions,
    ranked,
    scored_on,
    state_text,
    value_text,
)

_WIDTH = 60


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
        *(Section(f"Trials: {shown(name, _WIDTH)}", trials_table(swept, question)) for question, name in names.items()),
    ]
    lead = f"{metric[0].upper()}{metric[1:]} on {scored_on(sweep)}; the test runs were not read. "
    lead += "The best of many trials is biased upwards: test the chosen trial once."
    return Page(f"Sweep {sweep.name}", lead, tiles, tuple(sections))


def trials_table(swept: Swept, question: int) -> Table:
    """Return all trials of a question, best first, beside base rate and one-number baselines."""
    axes = plain_axes(swept.sweep)
    baselines = baselines_of(swept, question)
    references = (base_rate(swept, question), *(baseline["value"] for baseline in baselines.values()))
    rows = []
    for trial in ranked(swept, question):
        values = [shown(value_text(trial.parameters.get(axis.key)), _WIDTH) for axis in axes]
        estimate = Estimate(trial.value, trial.low, trial.high)
        state = state_text(swept.sweep, trial)
        rows.append(cells(str(trial.number), *values, state, estimate, *references, f"{trial.seconds:.1f}"))
    headings = ("trial", *(shown(axis_name(axis), 24) for axis in axes), "state", METRICS[swept.sweep.metric], "95 %")
    headings = (*headings, "base rate", *(f"{name} alone" for name in baselines), "seconds")
    return Table(headings, tuple(rows), words=len(axes) + 2, best=frozenset({(0, len(axes) + 2)}))


def _baselines(swept: Swept, question: int) -> str:
    values = {"base rate": base_rate(swept, question)}
    values |= {f"{name} alone": baseline["value"] for name, baseline in baselines_of(swept, question).items()}
    return ", ".join(f"{name} {number_text(value)}" for name, value in values.items())


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
            values = " · ".join(shown(name, _WIDTH) for name in axis.names)
        else:
            values = f"{value_text(axis.low)} to {value_text(axis.high)}{', log scale' if axis.log else ''}"
        rows.append((f"{axis.part}.{axis.key}", values, "yes" if axis.question else ""))
    return Table(("axis", "values", "changes the question"), tuple(rows), words=3)
