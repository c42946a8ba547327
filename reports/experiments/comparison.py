"""Compare experiments, by data set: the page, its tables and its plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.reports.drawing import (
    COLORS,
    DASHES,
    WIDE,
    Estimate,
    Plot,
    distinct,
    draw_estimates,
    label_panels,
    legend,
    panels,
    percent,
    shown,
)
from ciml.reports.experiments.plots import MOST_CURVES, bars_plot, draw_passes, pass_axes
from ciml.reports.experiments.tables import alone_names
from ciml.reports.experiments.views import (
    Bar,
    Figures,
    accuracy_bar,
    constant,
    curved,
    curves,
    errors_by_class,
    f1_bar,
    first_by,
    history,
    mean_bar,
    value_at,
)
from ciml.reports.page import Page, Section, Table, Tile, cells
from ciml.training.experiments.compare import Compared, Tested, by_accuracy, compare
from ciml.training.experiments.results import Stored

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Number of classes with a panel of their own.
MOST_PANELS = 8
_COLUMNS = 4


def comparison_page(trials: Sequence[Tested], links: Mapping[tuple[str, str], str]) -> Page:
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
        sections += (_validation(number, group).prefixed(dataset) for number, group in enumerate(groups, 1))
    lead = (
        "Figures are of the test runs, with 95 % intervals. Choosing the best experiment by its test runs overfits: "
        "choose by cross-validation."
    )
    title = "Experiments side by side" if len(experiments) > 1 else experiments[0]
    return Page(title, lead, tuple(tiles[:8]), tuple(sections))


def _best_tile(dataset: str, best: Compared) -> Tile:
    test = best.result["test"]
    accuracy, base = cells(test["accuracy"]["value"], test["base_rate"]["value"])
    return Tile(f"highest accuracy on {dataset}", accuracy, f"{best.name}; base rate {base}")


def _tested(rows: Sequence[Compared], links: Mapping[tuple[str, str], str], beaten: str) -> Iterator[Section]:
    """Yield the sections of the test runs. ``rows``: not empty."""
    comparable = [row for row in rows if row.same_runs]
    others = [row.name for row in rows if not row.same_runs]
    columns = "The last columns compare accuracies with the best experiment, run by run (McNemar's test)."
    text = " ".join(filter(None, [beaten, columns if len(rows) > 1 else ""]))
    if others:
        text += f" Tested on other runs than the rest, so not comparable: {', '.join(others)}."
    accuracies = []
    f1s = []
    for row in rows:
        name = row.name if row.same_runs else f"{row.name} (other runs)"
        test = row.result["test"]
        accuracies.append(accuracy_bar(name, test, row.result["baselines"]))
        f1s.append(f1_bar(name, test, row.result["baselines"], constant(row.result, test)))
    plot = standing_plot([("accuracy", accuracies), ("macro F1", f1s)])
    yield Section("the test runs", text, *_tables(rows, links), plot)
    if len(comparable) < 2:
        return
    classes = sum(bool(scores["runs"]) for scores in comparable[0].result["test"]["classes"].values())
    yield Section("errors by class", errors_plot(errors_of(comparable, MOST_PANELS), classes))
    drawn = [row for row in comparable if row.predictions is not None and curved(row.predictions)]
    if drawn:
        yield Section("separation of classes", curves_plot(drawn))
    if missing := [row.name for row in comparable if row.predictions is None]:
        yield Section("missing predictions", f"No curves for {', '.join(missing)}.")
    if learned := {row.name: passes for row in comparable if (passes := history(row.result))}:
        yield Section("learning", learning_plot(learned))


def _tables(rows: Sequence[Compared], links: Mapping[tuple[str, str], str]) -> tuple[Table, Table]:
    baselines = dict.fromkeys(name for row in rows for name in row.result["baselines"])
    accuracies = []
    others = []
    for rank, row in enumerate(rows):
        test = row.result["test"]
        macro = test["macro"]
        alone = [row.result["baselines"].get(name) for name in baselines]
        accuracies.append(
            cells(
                row.name,
                row.result["experiment"]["estimator"].replace("_", " "),
                test["runs"],
                Estimate.of(test["accuracy"]),
                test["base_rate"]["value"],
                *(baseline and value_at(baseline, "accuracy") for baseline in alone),
                *(_difference(row.against) if rank else ("the best", "")),
            )
        )
        others.append(
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
    return Table(headings, tuple(accuracies), words=2, links=addresses), Table(further, tuple(others))


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


def errors_of(rows: Sequence[Compared], limit: int) -> dict[str, dict[str, Bar]]:
    """Return errors by class and experiment, for the ``limit`` classes with the most runs."""
    by_name = {
        row.name: {bar.name: bar for bar in errors_by_class(row.result["test"], row.result["baselines"])}
        for row in rows
    }
    runs = {name: scores["runs"] for name, scores in rows[0].result["test"]["classes"].items() if scores["runs"]}
    return {
        label: {name: bars[label] for name, bars in by_name.items() if label in bars}
        for label in sorted(runs, key=lambda label: (-runs[label], label))[:limit]
    }


def errors_plot(errors: Mapping[str, Mapping[str, Bar]], classes: int) -> Plot:
    """Plot the errors of each class by experiment. ``classes``: total number of classes."""
    names = list(dict.fromkeys(name for bars in errors.values() for name in bars))[:MOST_CURVES]
    rows = -(-len(errors) // _COLUMNS)

    def paint(figure: Figure) -> None:
        grid = panels(figure, len(errors), _COLUMNS)
        numbers: dict[str, Any] = {}
        for axes, title, bars in zip(grid, distinct(list(errors), 13), errors.values(), strict=True):
            for y, name in enumerate(names):
                if name in bars:
                    axes.barh(y, 100 * bars[name].value, 0.62, color=COLORS[y], alpha=0.55)
                    draw_estimates(axes, [y], [bars[name].estimate], color="#222222", marker="none", horizontal=True)
            first = next(iter(bars.values()))
            for (number, share), dash in zip(first.beside.items(), DASHES[1:], strict=False):
                numbers[shown(number)] = axes.axvline(100 * share, color="#D55E00", linestyle=dash, linewidth=1.2)
            axes.set(title=f"{title} ({first.runs:,})", xlim=(-2, 102), ylim=(len(names) - 0.4, -0.6))
            axes.grid(False, axis="y")
        grid[0].set_yticks(np.arange(len(names)), distinct(names, 24))
        label_panels(grid, _COLUMNS, "missed (%)")
        if numbers:
            place: Any = {"loc": "outside lower left", "ncols": 2, "fontsize": 8.5}
            figure.legend(list(numbers.values()), list(numbers), **place)

    caption = "Share of misclassified runs of a class, with 95 % intervals (Wilson)."
    caption += _drawn_of(len(names), max(len(bars) for bars in errors.values()), len(errors), classes)
    height = 1.0 + rows * (0.75 + 0.24 * len(names))
    return Plot("errors", _largest_difference(errors, names), caption, (WIDE, height), paint)


def _largest_difference(errors: Mapping[str, Mapping[str, Bar]], names: Sequence[str]) -> str:
    """Describe the class in which the experiments differ most."""
    ranges = {}
    for label, bars in errors.items():
        shares = sorted((bars[name].value, name) for name in names if name in bars)
        ranges[label] = (shares[0], shares[-1])
    label = max(ranges, key=lambda label: ranges[label][1][0] - ranges[label][0][0])
    (least, low), (largest, high) = ranges[label]
    if least == largest:
        return "Each class is missed equally often by all"
    low, high = distinct([low, high])
    return f"They differ most in {shown(label)}: {low} misses {percent(least)} of its runs, {high} {percent(largest)}"


def curves_plot(rows: Sequence[Compared]) -> Plot:
    """Plot the precision-recall curves of each class by experiment. ``rows``: experiments with predictions."""
    drawn = rows[:MOST_CURVES]
    names = [row.name for row in drawn]
    by_name = {
        row.name: {curve.name: curve for curve in curves(row.predictions, MOST_PANELS)}
        for row in drawn
        if row.predictions
    }
    classes = list(by_name[names[0]])
    total = len(curved(drawn[0].predictions)) if drawn[0].predictions else 0

    def paint(figure: Figure) -> None:
        grid = panels(figure, len(classes), _COLUMNS)
        for axes, label, title in zip(grid, classes, distinct(classes, 16), strict=True):
            for name, text, color, dash in zip(names, distinct(names), COLORS, DASHES, strict=False):
                if (curve := by_name[name].get(label)) is not None:
                    axes.step(curve.recall, curve.precision, color=color, linestyle=dash, label=text)
                    axes.axhline(curve.share, color="#888888", linestyle=":", linewidth=1)
            runs = by_name[names[0]][label].runs
            axes.set(title=f"{title} ({runs:,})", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        label_panels(grid, _COLUMNS, "recall", "precision")
        legend(figure, grid[0])

    best = max(drawn, key=lambda row: row.result["test"]["macro"]["pr_auc"]["value"])
    test = best.result["test"]
    area, guess = (value_at(scores, "macro", "pr_auc") for scores in (test, constant(best.result, test)))
    title = f"{shown(best.name)} has the largest mean PR-AUC of the classes: {area:.2f}; a random guess has {guess:.2f}"
    caption = "Each class against all others. Dotted: a random guess."
    caption += _drawn_of(len(names), len(rows), len(classes), total)
    return Plot("curves", title, caption, (WIDE, 1.35 + 2.1 * -(-len(classes) // _COLUMNS)), paint)


def learning_plot(learned: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]) -> Plot:
    """Plot loss and accuracy by pass. ``learned``: `history` by experiment."""
    names = list(learned)[:MOST_CURVES]
    dev = any("dev" in splits for name in names for splits in learned[name].values())

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for axes, metric in ((left, "loss"), (right, "accuracy")):
            for name, text, color in zip(names, distinct(names), COLORS, strict=False):
                for split, values in learned[name].get(metric, {}).items():
                    train = split == "train"
                    draw_passes(axes, values, color, "-" if train else "--", text if train else None)
            pass_axes(axes, metric)
        legend(figure, left)

    longest = max(names, key=lambda name: len(learned[name]["loss"]["train"]))
    title = f"Training losses; {shown(longest)} makes the most passes, {len(learned[longest]['loss']['train']):,}"
    caption = "Losses include the penalties of each experiment: compare their shape, and compare levels by accuracy."
    caption += " Dashed lines: dev runs, which are not trained on." if dev else ""
    return Plot("learning", title, caption, (WIDE, 3.2), paint)


def _drawn_of(experiments: int, all_experiments: int, classes: int, all_classes: int) -> str:
    text = ""
    if experiments < all_experiments:
        text += f" The first {experiments} of {all_experiments} experiments are drawn."
    if classes < all_classes:
        text += f" The {classes} largest of {all_classes} classes are drawn."
    return text


@dataclass(frozen=True)
class Validated:
    """Cross-validation results of experiments with the same kind of folds.

    Attributes:
      by: the groups that were held out together; ``run`` for none.
      folds: number of folds.
      means: (experiment, `ciml.training.evaluation.cross_validation.cross_validate` result), by falling mean accuracy.
    """

    by: str
    folds: int
    means: tuple[tuple[str, Figures], ...]


def validated(trials: Sequence[Stored]) -> list[Validated]:
    """Return the cross-validations on one data set, by held-out groups and number of folds."""
    groups: dict[tuple[str, int], list[tuple[str, Figures]]] = {}
    for trial in trials:
        for folds in trial.folds:
            groups.setdefault((folds["by"], len(folds["folds"])), []).append((trial.experiment, folds))
    return [
        Validated(by, count, tuple(sorted(means, key=lambda pair: (-pair[1]["mean"]["accuracy"]["value"], pair[0]))))
        for (by, count), means in sorted(groups.items())
    ]


def _validation(number: int, group: Validated) -> Section:
    bars = [mean_bar(name, folds) for name, folds in group.means]
    rows = [
        cells(name, bar.runs, bar.estimate, bar.beside.get("base rate"), Estimate.of(folds["mean"]["f1"]))
        for bar, (name, folds) in zip(bars, group.means, strict=True)
    ]
    best = first_by(bars)
    title = f"Held out by {shown(group.by)}"
    title += f", {shown(best.name)} has the highest mean accuracy: {percent(best.value)}" if best else ""
    caption = "Means of the folds; Student's 95 % interval."
    return Section(
        f"cross-validation, {group.folds} folds by {group.by}",
        "Means of the folds, with Student's interval; the test runs were not used.",
        Table(("experiment", "runs", "mean accuracy", "95 %", "base rate", "mean macro F1", "95 %"), tuple(rows)),
        bars_plot(f"validated-{number}", title, caption, "accuracy (%)", [("", bars)]),
    )
