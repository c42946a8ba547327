"""Compute what the report of a sweep shows: ranked trials, and the best at each value of an axis. No drawing."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ciml.pipelines.sweep import Swept
from ciml.reports.drawing import shown
from ciml.training.experiment import Experiment
from ciml.training.sweeps.definition import Axis, Sweep, Value
from ciml.training.sweeps.study import Outcome

_STATES = ("complete", "pruned", "failed")
#: Display names of metrics.
METRICS = {
    "accuracy": "accuracy",
    "f1": "macro F1",
    "roc_auc": "macro ROC-AUC",
    "pr_auc": "macro PR-AUC",
    "brier": "Brier score",
    "log_loss": "log loss",
}
#: Display names of axes.
_AXIS_NAMES = {
    "sample_interval": "resolution",
    "features_regex": "features",
    "hidden_layers": "topology",
    "sample_statistic": "statistic",
    "aggregation_functions": "functions",
    "class_map": "classes",
    "class_label": "label",
    "build_name": "jobs",
}


def axis_name(axis: Axis) -> str:
    """Return the display name of an axis."""
    return _AXIS_NAMES.get(axis.key, axis.key.replace("_", " "))


def scored_on(sweep: Sweep) -> str:
    """Return which runs the trials are scored on, as text."""
    if sweep.on == "dev":
        return "the dev runs"
    return f"{sweep.folds} folds by {'+'.join(sweep.hold_out) or 'run'}"


def questions(sweep: Sweep) -> list[int]:
    """Return the questions in the order of the file."""
    axes = [axis for axis in sweep.axes if axis.question]
    positions = [tuple(axis.names.index(str(asked[axis.key])) for axis in axes) for asked in sweep.questions]
    return sorted(range(len(positions)), key=positions.__getitem__)


def question_name(sweep: Sweep, question: int) -> str:
    """Return the display name of a question; the label if there is only one question."""
    asked = sweep.questions[question]
    return ", ".join(map(str, asked.values())) or str(sweep.dataset.get("class_label", "status"))


def plain_axes(sweep: Sweep) -> list[Axis]:
    """Return the axes that do not change the question, in the order of the file."""
    return [axis for axis in sweep.axes if not axis.question]


def ranked(swept: Swept, question: int) -> list[Outcome]:
    """Return the trials of a question: complete ones, best first, then pruned ones, then failed ones."""
    sign = -1 if swept.sweep.maximise else 1
    found = [each for each in swept.outcomes if each.question == question]
    return sorted(found, key=lambda each: (_STATES.index(each.state), sign * (each.value or 0.0), each.number))


def complete(swept: Swept, question: int) -> list[Outcome]:
    """Return the complete trials of a question, best first."""
    return [each for each in ranked(swept, question) if each.state == "complete"]


def ended_early(swept: Swept, question: int) -> list[Outcome]:
    """Return the pruned trials of a question, best first."""
    return [each for each in ranked(swept, question) if each.state == "pruned"]


def best_at(outcomes: Sequence[Outcome], *axes: Axis) -> dict[tuple[Value, ...], Outcome]:
    """Return the best trial by the values of some axes. ``outcomes``: best first."""
    found: dict[tuple[Value, ...], Outcome] = {}
    for each in outcomes:
        if all(axis.key in each.parameters for axis in axes):
            found.setdefault(tuple(each.parameters[axis.key] for axis in axes), each)
    return found


def base_rate(swept: Swept, question: int) -> float | None:
    """Return the accuracy of always answering the most frequent class; None without a complete trial."""
    found = complete(swept, question)
    return found[0].scores.get("base_rate") if found else None


def number_text(value: Any) -> str:
    """Format a figure; a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def value_text(value: Value | None) -> str:
    """Format a value of an axis; a dash for None."""
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def state_text(sweep: Sweep, outcome: Outcome) -> str:
    """Return how a trial ended, as text."""
    text = f"{outcome.state}"
    if outcome.state == "pruned":
        text = f"pruned at {'fold' if sweep.on == 'folds' else 'epoch'} {outcome.steps[-1][0]}"
    if outcome.state == "failed":
        text = f"failed: {shown(outcome.reason, 160)}"
    return text if outcome.same_as is None else f"{text}, as trial {outcome.same_as}"


def baselines_of(swept: Swept, question: int) -> dict[str, Mapping[str, Any]]:
    """Return the one-number baselines of a question by name."""
    return {name: found for name, found in swept.baselines[question].items() if found["value"] is not None}


def define_lines(swept: Swept, outcome: Outcome, data_path: str) -> list[str]:
    """Return the commands that define a trial as an experiment, and train and test it once."""
    name = f"{swept.sweep.name}-{outcome.number}"
    defaults = Experiment().to_json()
    words = ["ciml", "experiment", "define", name, "--estimator", outcome.experiment["estimator"]]
    for key, value in outcome.experiment.items():
        if key in ("name", "estimator") or value == defaults[key]:
            continue
        if key == "parameters":
            words += [word for each, setting in value.items() for word in ("-p", f"{each}={_parameter(setting)}")]
        elif key == "hidden_layers":
            words += ["--hidden-layers", "/".join(map(str, value))]
        elif value is True:
            words.append(f"--{key.replace('_', '-')}")
        else:
            words += [f"--{key.replace('_', '-')}", str(value)]
    where = ["--data-path", data_path]
    train = ["ciml", "experiment", "train", "--experiment", name, "--dataset", outcome.dataset]
    return [shlex.join([*words, *where]), shlex.join([*train, *where])]


def _parameter(value: Any) -> str:
    """Format a parameter for ``-p``."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def rows_of(swept: Swept) -> list[dict[str, Any]]:
    """Return a flat row for each trial, for CSV: values of the axes, results and baselines."""
    keys = [axis.key for axis in swept.sweep.axes]
    rows = []
    for each in swept.outcomes:
        numbers = baselines_of(swept, each.question)
        row: dict[str, Any] = {"trial": each.number, "question": question_name(swept.sweep, each.question)}
        row |= {key: value_text(each.parameters[key]) if key in each.parameters else None for key in keys}
        row |= {"state": each.state, "metric": swept.sweep.metric, "value": each.value}
        row |= {"low": each.low, "high": each.high, "base_rate": each.scores.get("base_rate")}
        row |= {"accuracy": each.scores.get("accuracy"), "macro_f1": each.scores.get("f1")}
        row |= {"one_number": ", ".join(numbers) or None}
        row |= {"one_number_value": next((found["value"] for found in numbers.values()), None)}
        row |= {"steps": each.steps[-1][0] if each.steps else 0, "seconds": each.seconds}
        row |= {"trained_on": each.trained_on, "held_out": each.held_out, "dataset": each.dataset or None}
        row |= {"same_as": each.same_as, "reason": each.reason or None}
        rows.append(row)
    return rows


def csv_of(swept: Swept) -> bytes:
    """Return `rows_of` as CSV."""
    import pyarrow as pa
    import pyarrow.csv

    rows = rows_of(swept)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    numbers = {"value", "low", "high", "base_rate", "accuracy", "macro_f1", "one_number_value", "seconds"}
    integers = {"trial", "steps", "trained_on", "held_out", "same_as"}
    kinds = {
        name: pa.float64() if name in numbers else pa.int64() if name in integers else pa.string() for name in columns
    }
    table = pa.table({name: pa.array(values, kinds[name]) for name, values in columns.items()})
    sink = pa.BufferOutputStream()
    pa.csv.write_csv(table, sink)
    return bytes(sink.getvalue())
