"""Compare experiments, by data set: the page, its tables and its plots."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ciml.reports.drawing import (
    COLORS,
    DASHES,
    WIDE,
    Estimate,
    Plot,
    add_legend,
    add_panels,
    distinct,
    label_panels,
    percent,
    shown,
)
from ciml.reports.experiments.plots import MOST_CURVES, bars_plot, draw_passes
from ciml.reports.experiments.views import (
    Bar,
    Figures,
    Passes,
    alone_names,
    constant,
    curved,
    curves,
    errors_by_class,
    first_by,
    history,
    mean_bar,
    standing,
    value_at,
)
from ciml.reports.page import Page, Section, Table, Tile, cells
from ciml.training.experiments.comparison import ComparisonRow, by_accuracy, compare
from ciml.training.experiments.results import StoredTrial, TestedTrial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Number of classes with a panel of their own.
MOST_PANELS = 8
_COLUMNS = 4


def comparison_page(trials: Sequence[TestedTrial], links: Mapping[tuple[str, str], str]) -> Page:
    """Return the page that compares experiments on each data set.

    Args:
      trials: at most one trial of each experiment on each data set, with its predictions or None.
      links: addresses of the pages of single results, by (experiment, data set).
    """
    datasets = list(dict.fromkeys(trial.dataset for trial, _ in trials))
    experiments = list(dict.fromkeys(trial.experiment for trial, _ in trials))
    sections: list[Section] = []
    tiles = [Tile("experiments", f"{len(experiments):,}"), Tile("data sets", f"{len(datasets):,}")]
    for dataset in datasets:
        selected = [(trial, predictions) for trial, predictions in trials if trial.dataset == dataset]
        comparison = compare(by_accuracy(selected))
        if comparison.rows:
            tiles.append(_best_tile(dataset, comparison.rows[0]))
            sections += (part.prefixed(dataset) for part in _tested(comparison.rows, links, comparison.beaten))
        groups = validated([trial for trial, _ in selected])
        validations = (_validation(number, *group) for number, group in enumerate(groups.items(), 1))
        sections += (part.prefixed(dataset) for part in validations)
    lead = (
        "Figures are of the test runs, with 95 % intervals. Choosing the best experiment by its test runs overfits: "
        "choose by cross-validation."
    )
    title = "Experiments side by side" if len(experiments) > 1 else experiments[0]
    return Page(title, lead, tuple(tiles[:8]), tuple(sections))


def _best_tile(dataset: str, best: ComparisonRow) -> Tile:
    test = best.result["test"]
    accuracy, base = cells(test["accuracy"]["value"], test["base_rate"]["value"])
    return Tile(f"highest accuracy on {dataset}", accuracy, f"{best.name}; base rate {base}")


def _tested(rows: Sequence[ComparisonRow], links: Mapping[tuple[str, str], str], beaten: str) -> Iterator[Section]:
    """Yield the sections of the test runs. ``rows``: not empty."""
    comparable = [row for row in rows if row.comparable]
    incomparable = [row.name for row in rows if not row.comparable]
    columns = "The last columns compare accuracies with the best experiment, run by run (McNemar's test)."
    text = " ".join(filter(None, [beaten, columns if len(rows) > 1 else ""]))
    if incomparable:
        text += f" Tested on other runs than the rest, so not comparable: {', '.join(incomparable)}."
    names = [row.name if row.comparable else f"{row.name} (other runs)" for row in rows]
    results = {
        name: (row.result, constant(row.result, row.result["test"])) for name, row in zip(names, rows, strict=True)
    }
    plot = standing_plot(standing(results))
    yield Section("the test runs", text, *_tables(rows, links), plot)
    if len(comparable) < 2:
        return
    yield Section("errors by class", errors_plot(comparable))
    if any(row.predictions is not None and curved(row.predictions) for row in comparable):
        yield Section("separation of classes", curves_plot(comparable))
    if missing := [row.name for row in comparable if row.predictions is None]:
        yield Section("missing predictions", f"No curves for {', '.join(missing)}.")
    if learned := {row.name: passes for row in comparable if (passes := history(row.result))}:
        yield Section("learning", learning_plot(learned))


def _tables(rows: Sequence[ComparisonRow], links: Mapping[tuple[str, str], str]) -> tuple[Table, Table]:
    baselines = dict.fromkeys(name for row in rows for name in row.result["baselines"])
    accuracies = []
    comparisons = []
    for rank, row in enumerate(rows):
        test = row.result["test"]
        macro = test["macro"]
        alone = [row.result["baselines"].get(name) for name in baselines]
        accuracies.append(
            cells(
                row.name,
                row.result["experiment"]["estimator"].rpartition(":")[2].replace("_", " "),
                test["runs"],
                Estimate.of(test["accuracy"]),
                test["base_rate"]["value"],
                *(baseline and value_at(baseline, "accuracy") for baseline in alone),
                *(_difference(row.paired) if rank else ("the best", "")),
            )
        )
        comparisons.append(
            cells(
                row.name,
                Estimate.of(macro["f1"]),
                value_at(constant(row.result, test), "macro", "f1"),
                *(baseline and value_at(baseline, "macro", "f1") for baseline in alone),
                *(macro["roc_auc"]["value"], macro["pr_auc"]["value"], test["brier"]["value"]),
                test["calibration"]["ece"],
            )
        )
    names = alone_names(baselines)
    headings = ("experiment", "estimator", "runs", "accuracy", "95 %", "base rate", *names, "difference", "McNemar p")
    keys = [(row.name, row.trial.dataset) for row in rows]
    addresses = {(number, 0): links[key] for number, key in enumerate(keys) if key in links}
    further = ("experiment", "macro F1", "95 %", "base rate", *names, "ROC-AUC", "PR-AUC", "Brier", "calibration error")
    return Table(headings, tuple(accuracies), words=2, links=addresses), Table(further, tuple(comparisons))


def _difference(compared: Mapping[str, Any] | None) -> tuple[str, str]:
    if compared is None or compared["difference"] is None:
        return "–", "–"
    difference = f"{compared['difference']:+.3f}" if compared["difference"] else "0.000"
    return difference, "< 0.001" if compared["mcnemar"] < 0.001 else f"{compared['mcnemar']:.3f}"


def standing_plot(bars: Sequence[tuple[str, Sequence[Bar]]]) -> Plot:
    """Plot accuracy and macro F1 of several experiments. ``bars``: panels of `bars_plot`."""
    best = first_by(bars[0][1])
    title = f"{shown(best.name)} has the highest accuracy: {percent(best.value)}" if best else "No figures"
    caption = (
        "95 % intervals. Overlapping intervals do not exclude a significant difference: the table compares experiments "
        "run by run."
    )
    return bars_plot("standing", title, caption, "per cent", bars)


def errors_of(rows: Sequence[ComparisonRow]) -> dict[str, list[Bar]]:
    """Return the errors of each experiment by class, for the `MOST_PANELS` classes with the most runs."""
    runs = {name: scores["runs"] for name, scores in rows[0].result["test"]["classes"].items() if scores["runs"]}
    largest = sorted(runs, key=lambda label: (-runs[label], label))[:MOST_PANELS]
    errors: dict[str, list[Bar]] = {label: [] for label in largest}
    for row in rows:
        for bar in errors_by_class(row.result["test"], row.result["baselines"]):
            if bar.name in errors:
                errors[bar.name].append(replace(bar, name=row.name, runs=None))
    return errors


def errors_plot(rows: Sequence[ComparisonRow]) -> Plot:
    """Plot the errors of each class by experiment."""
    errors = errors_of(rows)
    classes = {name: scores["runs"] for name, scores in rows[0].result["test"]["classes"].items() if scores["runs"]}
    groups = [
        (f"{title} ({classes[label]:,})", bars)
        for title, (label, bars) in zip(distinct(list(errors), 13), errors.items(), strict=True)
    ]
    caption = "Share of misclassified runs of a class, with 95 % intervals (Wilson)."
    caption += _classes_drawn(len(errors), len(classes))
    return bars_plot("errors", _largest_difference(errors), caption, "missed (%)", groups, _COLUMNS)


def _largest_difference(errors: Mapping[str, Sequence[Bar]]) -> str:
    """Describe the class in which the experiments differ most."""
    ranges = {label: sorted((bar.value, bar.name) for bar in bars) for label, bars in errors.items()}
    label = max(ranges, key=lambda label: ranges[label][-1][0] - ranges[label][0][0])
    (least, low), *_, (largest, high) = ranges[label]
    if least == largest:
        return "Each class is missed equally often by all"
    low, high = distinct([low, high])
    return f"They differ most in {shown(label)}: {low} misses {percent(least)} of its runs, {high} {percent(largest)}"


def curves_plot(rows: Sequence[ComparisonRow]) -> Plot:
    """Plot the precision-recall curves of each class by experiment. ``rows``: some of them with predictions."""
    predicted = [(row, row.predictions) for row in rows if row.predictions is not None and curved(row.predictions)]
    drawn = predicted[:MOST_CURVES]
    names = distinct([row.name for row, _ in drawn])
    experiments = [{curve.name: curve for curve in curves(predictions, MOST_PANELS)} for _, predictions in drawn]
    classes = list(experiments[0])

    def paint(figure: Figure) -> None:
        grid = add_panels(figure, len(classes), _COLUMNS)
        for axes, label, title in zip(grid, classes, distinct(classes, 16), strict=True):
            for name, by_class, color, dash in zip(names, experiments, COLORS, DASHES, strict=False):
                if (curve := by_class.get(label)) is not None:
                    axes.step(curve.recall, curve.precision, color=color, linestyle=dash, label=name)
                    axes.axhline(curve.share, color="#888888", linestyle=":", linewidth=1)
            runs = experiments[0][label].runs
            axes.set(title=f"{title} ({runs:,})", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        label_panels(grid, _COLUMNS, "recall", "precision")
        add_legend(figure)

    best, _ = max(drawn, key=lambda pair: pair[0].result["test"]["macro"]["pr_auc"]["value"])
    test = best.result["test"]
    area, guess = (value_at(scores, "macro", "pr_auc") for scores in (test, constant(best.result, test)))
    title = f"{shown(best.name)} has the largest mean PR-AUC of the classes: {area:.2f}; a random guess has {guess:.2f}"
    caption = "Each class against all others. Dotted: a random guess."
    caption += _experiments_drawn(len(drawn), len(predicted))
    caption += _classes_drawn(len(classes), len(curved(drawn[0][1])))
    return Plot("curves", title, caption, (WIDE, 1.35 + 2.1 * -(-len(classes) // _COLUMNS)), paint)


def learning_plot(learned: Mapping[str, Passes]) -> Plot:
    """Plot loss and accuracy by pass. ``learned``: `history` by experiment."""
    drawn = dict(itertools.islice(learned.items(), MOST_CURVES))
    longest = max(drawn, key=lambda name: len(drawn[name]["loss"]["train"]))
    title = f"Training losses; {shown(longest)} makes the most passes, {len(drawn[longest]['loss']['train']):,}"
    caption = "Losses include the penalties of each experiment: compare their shape, and compare levels by accuracy."
    if any("dev" in splits for passes in drawn.values() for splits in passes.values()):
        caption += " Dashed lines: dev runs, which are not trained on."
    caption += _experiments_drawn(len(drawn), len(learned))
    return Plot("learning", title, caption, (WIDE, 3.2), partial(draw_passes, drawn, None))


def _experiments_drawn(drawn: int, total: int) -> str:
    return f" The first {drawn} of {total} experiments are drawn." if drawn < total else ""


def _classes_drawn(drawn: int, total: int) -> str:
    return f" The {drawn} largest of {total} classes are drawn." if drawn < total else ""


def validated(trials: Sequence[StoredTrial]) -> dict[tuple[str, int], list[tuple[str, Figures]]]:
    """Return the cross-validations on one data set by held-out groups (``run`` for none) and number of folds.

    Returns:
      Of each, (experiment, result of `cross_validate`), by falling mean accuracy.
    """
    groups: dict[tuple[str, int], list[tuple[str, Figures]]] = {}
    for trial in trials:
        for folds in trial.folds:
            groups.setdefault((folds["by"], len(folds["folds"])), []).append((trial.experiment, folds))
    for means in groups.values():
        means.sort(key=lambda pair: (-pair[1]["mean"]["accuracy"]["value"], pair[0]))
    return dict(sorted(groups.items()))


def _validation(number: int, kind: tuple[str, int], means: Sequence[tuple[str, Figures]]) -> Section:
    by, folds_each = kind
    bars = [mean_bar(name, folds) for name, folds in means]
    rows = [
        cells(name, bar.runs, bar.estimate, bar.beside.get("base rate"), Estimate.of(folds["mean"]["f1"]))
        for bar, (name, folds) in zip(bars, means, strict=True)
    ]
    best = first_by(bars)
    title = f"Held out by {shown(by)}"
    title += f", {shown(best.name)} has the highest mean accuracy: {percent(best.value)}" if best else ""
    caption = "Means of the folds; 95 % interval, at least as wide as that of all runs."
    return Section(
        f"cross-validation, {folds_each} folds by {by}",
        "Means of the folds, with an interval at least as wide as that of all runs; the test runs were not used.",
        Table(("experiment", "runs", "mean accuracy", "95 %", "base rate", "mean macro F1", "95 %"), tuple(rows)),
        bars_plot(f"validated-{number}", title, caption, "accuracy (%)", [("", bars)]),
    )
