"""Build the page of a sweep."""

from __future__ import annotations

from ciml.pipelines.sweep import Swept
from ciml.reports.drawing import Plot, seconds, shown
from ciml.reports.page import Page, Section, Table, Tile
from ciml.reports.sweeps.plots import axis_plot, heat_plots, questions_plot, time_plot
from ciml.reports.sweeps.views import (
    METRICS,
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
    states = [each.state for each in swept.outcomes]
    metric = METRICS[sweep.metric]
    order = questions(sweep)
    best = [
        Tile(
            f"best {metric}",
            number_text(one.value),
            f"{shown(question_name(sweep, question))}: {_baselines(swept, question)}",
        )
        for question in order[:4]
        for one in complete(swept, question)[:1]
    ]
    counts = ", ".join(
        f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed") if state in states
    )
    took = sum(each.seconds for each in swept.outcomes)
    tiles = (
        Tile("trials", f"{len(states):,}", counts),
        *best,
        Tile("training", seconds(took), "sum over all trials, one thread each"),
    )
    by_axis = tuple(axis_plot(swept, axis, number) for number, axis in enumerate(plain_axes(sweep), 1))
    sections = [
        Section("Axes", _method(swept), tables=(_axes(swept),)),
        Section("By axis", plots=by_axis),
        *([Section("By question", plots=(questions_plot(swept),))] if len(order) > 1 else []),
        *([Section("By two axes", plots=maps)] if (maps := tuple(heat_plots(swept))) else []),
        Section("Time", plots=_timed(swept)),
        *(
            Section(f"Trials: {shown(question_name(sweep, question), _WIDTH)}", tables=(trials_table(swept, question),))
            for question in order
        ),
    ]
    lead = f"{metric[0].upper()}{metric[1:]} on {scored_on(sweep)}; the test runs were not read. "
    lead += "The best of many trials is biased upwards: test the chosen trial once."
    return Page(f"Sweep {sweep.name}", lead, tiles, tuple(sections))


def trials_table(swept: Swept, question: int) -> Table:
    """Return all trials of a question, best first, beside base rate and one-number baselines."""
    axes = plain_axes(swept.sweep)
    rows = []
    numbers = baselines_of(swept, question)
    base = base_rate(swept, question)
    for each in ranked(swept, question):
        values = [shown(value_text(each.parameters.get(axis.key)), _WIDTH) for axis in axes]
        interval = f"{each.low:.3f}–{each.high:.3f}" if each.low is not None and each.high is not None else ""
        against = [number_text(base), *(number_text(one["value"]) for one in numbers.values())]
        cells = (number_text(each.value), interval, *against, f"{each.seconds:.1f}")
        rows.append((str(each.number), *values, state_text(swept.sweep, each), *cells))
    headings = ("trial", *(shown(axis_name(axis), 24) for axis in axes), "state", METRICS[swept.sweep.metric], "95 %")
    headings = (*headings, "base rate", *(f"{name} alone" for name in numbers), "seconds")
    return Table(headings, tuple(rows), words=len(axes) + 2, best=frozenset({(0, len(axes) + 2)}))


def _baselines(swept: Swept, question: int) -> str:
    texts = [f"base rate {number_text(base_rate(swept, question))}"]
    texts += [f"{name} alone {number_text(one['value'])}" for name, one in baselines_of(swept, question).items()]
    return ", ".join(texts)


def _method(swept: Swept) -> str:
    sweep = swept.sweep
    chosen = "Every combination once" if sweep.trials is None else f"{sweep.trials} trials, sampled by TPE"
    pruned = "none are pruned" if sweep.pruner == "none" else f"pruned by {sweep.pruner.replace('_', ' ')}"
    asked = "Trials are compared and pruned within a question; trials of different questions are not comparable."
    return f"{chosen}, {pruned}; seed {sweep.seed}. {asked if len(sweep.questions) > 1 else ''}"


def _axes(swept: Swept) -> Table:
    rows = []
    for axis in swept.sweep.axes:
        if axis.values:
            values = " · ".join(shown(name, _WIDTH) for name in axis.names)
        else:
            values = f"{value_text(axis.low)} to {value_text(axis.high)}{', log scale' if axis.log else ''}"
        rows.append((f"{axis.part}.{axis.key}", values, "yes" if axis.question else ""))
    return Table(("axis", "values", "changes the question"), tuple(rows), words=3)


def _timed(swept: Swept) -> tuple[Plot, ...]:
    return (time_plot(swept),) if any(each.seconds and each.value is not None for each in swept.outcomes) else ()
