"""The sweep report: the metric by axis and question, and all trials, as a page and as CSV.

This module computes the figures of the report, such as the trials by rank; `ciml.reports.sweeps.page` draws it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ciml.pipelines.sweep import Swept
from ciml.reports.drawing import shown
from ciml.training.experiment import Experiment
from ciml.training.sweeps.definition import Axis, Sweep, Value
from ciml.training.sweeps.study import Outcome

#: How a trial can end, in the order of tables.
STATES = ("complete", "pruned", "failed")
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
    positions = [tuple(axis.names.index(str(values[axis.key])) for axis in axes) for values in sweep.questions]
    return sorted(range(len(positions)), key=positions.__getitem__)


def question_name(sweep: Sweep, question: int) -> str:
    """Return the display name of a question; the label if there is only one question."""
    values = sweep.questions[question]
    return ", ".join(map(str, values.values())) or str(sweep.dataset.get("class_label", "status"))


def plain_axes(sweep: Sweep) -> list[Axis]:
    """Return the axes that do not change the question, in the order of the file."""
    return [axis for axis in sweep.axes if not axis.question]


def ranked(swept: Swept, question: int) -> list[Outcome]:
    """Return the trials of a question: complete ones, best first, then pruned ones, then failed ones."""
    sign = -1 if swept.sweep.maximise else 1
    trials = [trial for trial in swept.outcomes if trial.question == question]
    return sorted(trials, key=lambda trial: (STATES.index(trial.state), sign * (trial.value or 0.0), trial.number))


def complete(swept: Swept, question: int) -> list[Outcome]:
    """Return the complete trials of a question, best first."""
    return [trial for trial in ranked(swept, question) if trial.state == "complete"]


def ended_early(swept: Swept, question: int) -> list[Outcome]:
    """Return the pruned trials of a question, best first."""
    return [trial for trial in ranked(swept, question) if trial.state == "pruned"]


def best_at(outcomes: Sequence[Outcome], *axes: Axis) -> dict[tuple[Value, ...], Outcome]:
    """Return the best trial by the values of some axes. ``outcomes``: best first."""
    best: dict[tuple[Value, ...], Outcome] = {}
    for trial in outcomes:
        if all(axis.key in trial.parameters for axis in axes):
            best.setdefault(tuple(trial.parameters[axis.key] for axis in axes), trial)
    return best


def base_rate(swept: Swept, question: int) -> float | None:
    """Return the accuracy of always answering the most frequent class; None without a complete trial."""
    trials = complete(swept, question)
    return trials[0].scores.get("base_rate") if trials else None


def references(swept: Swept, question: int) -> dict[str, float | None]:
    """Return the base rate and the one-number baselines of a question by name."""
    alone = {f"{name} alone": baseline["value"] for name, baseline in baselines_of(swept, question).items()}
    return {"base rate": base_rate(swept, question), **alone}


def number_text(value: Any) -> str:
    """Format a figure; a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def value_text(value: Value | None) -> str:
    """Format a value of an axis; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
    return {name: number for name, number in swept.baselines[question].items() if number["value"] is not None}


def define_lines(swept: Swept, outcome: Outcome, data_path: str) -> list[str]:
    """Return the commands that define a trial as an experiment, and train and test it once."""
    name = f"{swept.sweep.name}-{outcome.number}"
    defaults = Experiment().to_json()
    words = ["ciml", "experiment", "define", name, "--estimator", outcome.experiment["estimator"]]
    for key, value in outcome.experiment.items():
        if key in ("name", "estimator", "packages") or value == defaults.get(key):
            continue
        if key == "parameters":
            words += [word for name, setting in value.items() for word in ("-p", f"{name}={_parameter(setting)}")]
        elif key == "hidden_layers":
            words += ["--hidden-layers", "/".join(map(str, value))]
        elif value is True:
            words.append(f"--{key.replace('_', '-')}")
        else:
            words += [f"--{key.replace('_', '-')}", str(value)]
    train = ["ciml", "experiment", "train", "--experiment", name, "--dataset", outcome.dataset]
    train += [word for module in swept.sweep.modules for word in ("--allow-module", module)]
    return [shlex.join([*command, "--data-path", data_path]) for command in (words, train)]


def _parameter(value: Any) -> str:
    """Format a parameter for ``-p``, which reads JSON, or else a text."""
    if value is None:
        return "none"
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    try:
        json.loads(value)
    except ValueError:
        return json.dumps(value) if value.lower() in ("none", "true", "false") else value
    return json.dumps(value)


def rows_of(swept: Swept) -> list[dict[str, Any]]:
    """Return a flat row for each trial, for CSV: values of the axes, results and baselines."""
    keys = [axis.key for axis in swept.sweep.axes]
    rows = []
    for trial in swept.outcomes:
        baselines = baselines_of(swept, trial.question)
        row: dict[str, Any] = {"trial": trial.number, "question": question_name(swept.sweep, trial.question)}
        row |= {key: value_text(trial.parameters[key]) if key in trial.parameters else None for key in keys}
        row |= {"state": trial.state, "metric": swept.sweep.metric, "value": trial.value}
        row |= {"low": trial.low, "high": trial.high, "base_rate": trial.scores.get("base_rate")}
        row |= {"accuracy": trial.scores.get("accuracy"), "macro_f1": trial.scores.get("f1")}
        row |= {"one_number": ", ".join(baselines) or None}
        row |= {"one_number_value": next((baseline["value"] for baseline in baselines.values()), None)}
        row |= {"steps": trial.steps[-1][0] if trial.steps else 0, "seconds": trial.seconds}
        row |= {"trained_on": trial.trained_on, "held_out": trial.held_out, "dataset": trial.dataset or None}
        row |= {"same_as": trial.same_as, "reason": trial.reason or None}
        rows.append(row)
    return rows


def csv_of(swept: Swept) -> bytes:
    """Return `rows_of` as CSV."""
    import pyarrow as pa
    import pyarrow.csv

    sink = pa.BufferOutputStream()
    pa.csv.write_csv(pa.Table.from_pylist(rows_of(swept)), sink)
    return bytes(sink.getvalue())
