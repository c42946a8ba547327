"""Build the tables of an experiment's results: every figure with its interval, beside its baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ciml.reports.drawing import shown
from ciml.reports.experiments.views import Bar, Figures
from ciml.reports.page import Table
from ciml.training.evaluation.scores import BY_CLASS

#: Rows of a table of jobs, groups or classes.
MOST_ROWS = 100
_METRIC_NAMES = {"precision": "precision", "recall": "recall", "f1": "F1", "roc_auc": "ROC-AUC", "pr_auc": "PR-AUC"}


def figure(value: float | None) -> str:
    """Format a figure with three decimals; a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def interval(metric: Figures) -> str:
    """Format an interval as ``0.363 to 0.477``; a dash if it is unknown."""
    unknown = metric["low"] is None or metric["value"] is None
    return "–" if unknown else f"{metric['low']:.3f} to {metric['high']:.3f}"


def metrics_table(title: str, found: Figures, guess: Figures, baselines: Figures) -> Table:
    """Return each metric with its interval, beside those of a constant answer and of one number."""

    def row(name: str, metric: Figures, base: Any, *path: str) -> tuple[str, ...]:
        return (
            name,
            figure(metric["value"]),
            interval(metric),
            figure(base),
            *(_of(each, *path) for each in baselines.values()),
        )

    rows = [row("accuracy", found["accuracy"], guess["accuracy"]["value"], "accuracy")]
    rows += [
        row(f"macro {_METRIC_NAMES[name]}", found["macro"][name], guess["macro"][name]["value"], "macro", name)
        for name in BY_CLASS
    ]
    rows.append(row("Brier (less is better)", found["brier"], guess["brier"]["value"], "brier"))
    none = ("–",) * len(baselines)
    rows += [
        ("log loss (less is better)", figure(found["log_loss"]), "–", figure(guess["log_loss"]), *none),
        ("calibration error", figure(found["calibration"]["ece"]), "–", figure(guess["calibration"]["ece"]), *none),
    ]
    headings = ("metric", "value", "95 %", "base rate", *(f"{name} alone" for name in baselines))
    return Table(headings, tuple(rows), title=title)


def _of(figures: Figures, *path: str) -> str:
    for key in path:
        figures = figures[key]
    return figure(figures["value"])


def class_tables(test: Figures, guess: Figures, baselines: Figures) -> tuple[Table, Table]:
    """Return the metrics of answers by class, and the metrics of probabilities by class."""
    answered = []
    separated = []
    ordered = sorted(test["classes"].items(), key=lambda item: (-item[1]["runs"], item[0]))
    for name, one in ordered[:MOST_ROWS]:
        answered.append(
            (
                shown(name, 80),
                f"{one['runs']:,}",
                *(figure(one[key]["value"]) for key in BY_CLASS[:3]),
                interval(one["f1"]),
                figure(guess["classes"][name]["f1"]["value"]),
                *(_of(each["classes"][name], "f1") for each in baselines.values()),
            )
        )
        separated.append(
            (
                shown(name, 80),
                figure(one["roc_auc"]["value"]),
                interval(one["roc_auc"]),
                figure(one["pr_auc"]["value"]),
                interval(one["pr_auc"]),
                figure(one["share"]),
                *(_of(each["classes"][name], "pr_auc") for each in baselines.values()),
            )
        )
    alone = [f"{name} alone" for name in baselines]
    title = _first(len(answered), len(ordered), "classes")
    return (
        Table(
            ("class", "runs", "precision", "recall", "F1", "95 %", "base rate", *alone), tuple(answered), title=title
        ),
        Table(("class", "ROC-AUC", "95 %", "PR-AUC", "95 %", "random guess", *alone), tuple(separated), title=title),
    )


def _first(drawn: int, of: int, what: str) -> str:
    return f"the first {drawn} of {of} {what}" if drawn < of else ""


def verdict_tables(found: Figures) -> tuple[Table, Table]:
    """Return coverage and abstentions, and precision and recall of the verdicts by cause."""
    coverage = found["coverage"]
    sizes = found["set_sizes"]
    rows = [("all runs", f"{found['runs']:,}", figure(coverage["value"]), interval(coverage))]
    rows += [
        (shown(name, 80), f"{one['runs']:,}", figure(one["value"]), interval(one))
        for name, one in coverage["by_class"].items()
    ]
    rows.append(("unknown", f"{found['runs']:,}", figure(found["abstained"]["value"]), interval(found["abstained"])))
    if outside := found.get("outside"):  # earlier results have none
        what = "unknown, since unlike the learned runs"
        rows.append((what, f"{found['runs']:,}", figure(outside["value"]), interval(outside)))
    causes = [
        (
            shown(name, 80),
            f"{one['verdicts']:,}",
            figure(one["precision"]["value"]),
            interval(one["precision"]),
            figure(one["recall"]["value"]),
            interval(one["recall"]),
        )
        for name, one in found["causes"].items()
    ]
    title = "runs by the number of likely causes: " + ", ".join(f"{size}: {runs:,}" for size, runs in sizes.items())
    return (
        Table(("coverage", "runs", "share", "95 %"), tuple(rows), title=title),
        Table(("cause", "verdicts", "precision", "95 %", "recall", "95 %"), tuple(causes)),
    )


def slices_table(fact: str, slices: Figures, bars: Sequence[Bar]) -> Table:
    """Return the accuracy by job or provider. ``bars``: of `ciml.reports.experiments.views.slice_bars`."""
    rows = [
        (
            shown(bar.name, 80),
            f"{bar.runs:,}",
            figure(bar.value),
            f"{figure(bar.low)} to {figure(bar.high)}",
            figure(slices[bar.name]["majority"]),
            figure(slices[bar.name].get("f1")),
        )
        for bar in bars[:MOST_ROWS]
    ]
    headings = (shown(fact), "runs", "accuracy", "95 %", "most frequent class", "macro F1")
    return Table(headings, tuple(rows), title=_first(len(rows), len(bars), f"by {shown(fact)}"))


def elsewhere_table(elsewhere: Sequence[Figures]) -> Table:
    """Return the same model on other data sets."""
    rows = []
    for each in elsewhere:
        test = each["test"]
        left = each["left_out"]
        numbers = [f"{name} {_of(one, 'accuracy')}" for name, one in each["baselines"].items()]
        rows.append(
            (
                each["dataset"],
                f"{test['runs']:,}",
                figure(test["accuracy"]["value"]),
                interval(test["accuracy"]),
                figure(test["base_rate"]["value"]),
                ", ".join(numbers) or "–",
                figure(test["macro"]["f1"]["value"]),
                f"{left['trained_on']:,} · {left['unknown_class']:,}",
            )
        )
    headings = (
        "data set",
        "runs",
        "accuracy",
        "95 %",
        "base rate",
        "one number alone",
        "macro F1",
        "left out: trained on · unknown class",
    )
    return Table(headings, tuple(rows))


def folds_table(folds: Figures) -> Table:
    """Return each fold of a cross-validation, and the mean."""
    mean = folds["mean"]
    pooled = folds["pooled"]
    grouped = any(fold["held_out"] for fold in folds["folds"])
    rows = [
        (
            f"{number}",
            *([_listed(fold["held_out"])] if grouped else []),
            f"{fold['accuracy']['runs']:,}",
            figure(fold["accuracy"]["value"]),
            interval(fold["accuracy"]),
            figure(fold["base_rate"]["value"]),
            figure(fold["f1"]),
            "",
        )
        for number, fold in enumerate(folds["folds"], 1)
    ]
    rows.append(
        (
            "mean",
            *([""] if grouped else []),
            f"{pooled['runs']:,}",
            figure(mean["accuracy"]["value"]),
            interval(mean["accuracy"]),
            figure(pooled["base_rate"]["value"]),
            figure(mean["f1"]["value"]),
            interval(mean["f1"]),
        )
    )
    held = (f"{shown(folds['by'])} held out",) if grouped else ()
    headings = ("fold", *held, "runs", "accuracy", "95 %", "base rate", "macro F1", "95 %")
    return Table(headings, tuple(rows), words=1 + grouped)


def _listed(names: Sequence[str], most: int = 12) -> str:
    further = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name, 60) for name in names[:most]) + further
