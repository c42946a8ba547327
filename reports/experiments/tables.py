"""Build the tables of an experiment's results: every figure with its interval, beside its baselines."""

from __future__ import annotations

from collections.abc import Sequence

from ciml.reports.drawing import Estimate, shown
from ciml.reports.experiments.views import Bar, Figures, value_at
from ciml.reports.page import Table, cells
from ciml.training.evaluation.scores import BY_CLASS

#: Rows of a table of jobs, groups or classes.
MOST_ROWS = 100
_METRIC_NAMES = {"precision": "precision", "recall": "recall", "f1": "F1", "roc_auc": "ROC-AUC", "pr_auc": "PR-AUC"}


def metrics_table(title: str, scores: Figures, guess: Figures, baselines: Figures) -> Table:
    """Return each metric with its interval, beside those of a constant answer and of one number."""
    paths: dict[str, tuple[str, ...]] = {"accuracy": ("accuracy",)}
    paths |= {f"macro {_METRIC_NAMES[name]}": ("macro", name) for name in BY_CLASS}
    paths |= {"Brier (less is better)": ("brier",)}
    rows = []
    for name, path in paths.items():
        metric = scores
        for key in path:
            metric = metric[key]
        alone = (value_at(baseline, *path) for baseline in baselines.values())
        rows.append(cells(name, Estimate.of(metric), value_at(guess, *path), *alone))
    missing = (None,) * len(baselines)
    rows += [
        cells("log loss (less is better)", scores["log_loss"], None, guess["log_loss"], *missing),
        cells("calibration error", scores["calibration"]["ece"], None, guess["calibration"]["ece"], *missing),
    ]
    return Table(("metric", "value", "95 %", "base rate", *alone_names(baselines)), tuple(rows), title=title)


def alone_names(baselines: Figures) -> list[str]:
    """Return the headings of one-number baselines."""
    return [f"{name} alone" for name in baselines]


def class_tables(test: Figures, guess: Figures, baselines: Figures) -> tuple[Table, Table]:
    """Return the metrics of answers by class, and the metrics of probabilities by class."""
    answers = []
    probabilities = []
    classes = sorted(test["classes"].items(), key=lambda item: (-item[1]["runs"], item[0]))
    for name, scores in classes[:MOST_ROWS]:
        precision, recall = (scores[key]["value"] for key in ("precision", "recall"))
        base = value_at(guess["classes"][name], "f1")
        f1s, areas = (
            [value_at(baseline["classes"][name], key) for baseline in baselines.values()] for key in ("f1", "pr_auc")
        )
        f1 = Estimate.of(scores["f1"])
        answers.append(cells(shown(name, 80), scores["runs"], precision, recall, f1, base, *f1s))
        separation = (Estimate.of(scores["roc_auc"]), Estimate.of(scores["pr_auc"]))
        probabilities.append(cells(shown(name, 80), *separation, scores["share"], *areas))
    alone = alone_names(baselines)
    title = _first(len(answers), len(classes), "classes")
    headings = ("class", "runs", "precision", "recall", "F1", "95 %", "base rate", *alone)
    return (
        Table(headings, tuple(answers), title=title),
        Table(
            ("class", "ROC-AUC", "95 %", "PR-AUC", "95 %", "random guess", *alone), tuple(probabilities), title=title
        ),
    )


def _first(drawn: int, total: int, things: str) -> str:
    return f"the first {drawn} of {total} {things}" if drawn < total else ""


def verdict_tables(figures: Figures) -> tuple[Table, Table]:
    """Return coverage and abstentions, and precision and recall of the verdicts by cause."""
    coverage = figures["coverage"]
    runs = figures["runs"]
    rows = [cells("all runs", runs, Estimate.of(coverage))]
    rows += [cells(shown(name, 80), part["runs"], Estimate.of(part)) for name, part in coverage["by_class"].items()]
    rows.append(cells("unknown", runs, Estimate.of(figures["abstained"])))
    if outside := figures.get("outside"):  # earlier results have none
        rows.append(cells("unknown, since unlike the learned runs", runs, Estimate.of(outside)))
    causes = [
        cells(shown(name, 80), cause["verdicts"], Estimate.of(cause["precision"]), Estimate.of(cause["recall"]))
        for name, cause in figures["causes"].items()
    ]
    sizes = ", ".join(f"{size}: {count:,}" for size, count in figures["set_sizes"].items())
    return (
        Table(
            ("coverage", "runs", "share", "95 %"), tuple(rows), title=f"runs by the number of likely causes: {sizes}"
        ),
        Table(("cause", "verdicts", "precision", "95 %", "recall", "95 %"), tuple(causes)),
    )


def slices_table(fact: str, slices: Figures, bars: Sequence[Bar]) -> Table:
    """Return the accuracy by job or provider. ``bars``: of `ciml.reports.experiments.views.slice_bars`."""
    rows = []
    for bar in bars[:MOST_ROWS]:
        figures = slices[bar.name]
        rows.append(cells(shown(bar.name, 80), bar.runs, bar.estimate, figures["majority"], figures.get("f1")))
    headings = (shown(fact), "runs", "accuracy", "95 %", "most frequent class", "macro F1")
    return Table(headings, tuple(rows), title=_first(len(rows), len(bars), f"by {shown(fact)}"))


def elsewhere_table(elsewhere: Sequence[Figures]) -> Table:
    """Return the same model on other data sets."""
    rows = []
    for result in elsewhere:
        test = result["test"]
        omitted = result["left_out"]
        alone = [
            " ".join(cells(name, value_at(baseline, "accuracy"))) for name, baseline in result["baselines"].items()
        ]
        rows.append(
            cells(
                result["dataset"],
                test["runs"],
                Estimate.of(test["accuracy"]),
                test["base_rate"]["value"],
                ", ".join(alone) or None,
                test["macro"]["f1"]["value"],
                f"{omitted['trained_on']:,} · {omitted['unknown_class']:,}",
            )
        )
    headings = ("data set", "runs", "accuracy", "95 %", "base rate", "one number alone", "macro F1")
    return Table((*headings, "left out: trained on · unknown class"), tuple(rows))


def folds_table(folds: Figures) -> Table:
    """Return each fold of a cross-validation, and the mean."""
    mean = folds["mean"]
    pooled = folds["pooled"]
    grouped = any(fold["held_out"] for fold in folds["folds"])
    rows = []
    for number, fold in enumerate(folds["folds"], 1):
        names = [_listed(fold["held_out"])] if grouped else []
        accuracy = fold["accuracy"]
        base = fold["base_rate"]["value"]
        rows.append(cells(f"{number}", *names, accuracy["runs"], Estimate.of(accuracy), base, fold["f1"], ""))
    names = [""] if grouped else []
    base = pooled["base_rate"]["value"]
    rows.append(cells("mean", *names, pooled["runs"], Estimate.of(mean["accuracy"]), base, Estimate.of(mean["f1"])))
    held_out = (f"{shown(folds['by'])} held out",) if grouped else ()
    headings = ("fold", *held_out, "runs", "accuracy", "95 %", "base rate", "macro F1", "95 %")
    return Table(headings, tuple(rows), words=1 + grouped)


def _listed(names: Sequence[str], limit: int = 12) -> str:
    further = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shown(name, 60) for name in names[:limit]) + further
