"""Draw the plots that compare experiments on one data set.

Several experiments on one data set: their errors by class, and their cross-validations.

Build the page that compares experiments, by data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.reports.drawing import COLORS, DASHES, WIDE, Plot, distinct, legend, percent, shown, whole_numbers
from ciml.reports.experiments.plots import MOST_CURVES, bars_plot
from ciml.reports.experiments.tables import figure, interval
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
)
from ciml.reports.page import Page, Section, Table, Tile
from ciml.training.experiments.compare import Compared, Tested, by_accuracy, compare
from ciml.training.experiments.results import Stored

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def errors_of(found: Sequence[Compared], most_classes: int) -> dict[str, dict[str, Bar]]:
    """Return errors by class and experiment, for the ``most_classes`` classes with the most runs."""
    by_name = {
        one.name: {bar.name: bar for bar in errors_by_class(one.result["test"], one.result["baselines"])}
        for one in found
    }
    classes = found[0].result["test"]["classes"]
    order = sorted(
        (name for name, one in classes.items() if one["runs"]), key=lambda name: (-classes[name]["runs"], name)
    )
    return {
        name: {experiment: bars[name] for experiment, bars in by_name.items() if name in bars}
        for name in order[:most_classes]
    }


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
    found: dict[tuple[str, int], list[tuple[str, Figures]]] = {}
    for trial in trials:
        for each in trial.folds:
            found.setdefault((each["by"], len(each["folds"])), []).append((trial.experiment, each))
    return [
        Validated(by, folds, tuple(sorted(means, key=lambda one: (-one[1]["mean"]["accuracy"]["value"], one[0]))))
        for (by, folds), means in sorted(found.items())
    ]


#: Number of classes with a panel of their own.
MOST_PANELS = 8
_COLUMNS = 4


def standing_plot(panels: Sequence[tuple[str, Sequence[Bar]]]) -> Plot:
    """Plot accuracy and macro F1 of several experiments. ``panels``: as for `bars_plot`."""
    best = first_by(panels[0][1])
    title = f"{shown(best.name)} has the highest accuracy: {percent(best.value or 0)}" if best else "No figures"
    caption = (
        "95 % intervals. Overlapping intervals do not exclude a significant difference: the table compares experiments "
        "run by run."
    )
    return bars_plot("standing", title, caption, "per cent", panels)


def validated_plot(number: int, by: str, bars: Sequence[Bar]) -> Plot:
    """Plot the mean accuracy of the folds of several experiments."""
    best = first_by(bars)
    title = (
        f"Held out by {shown(by)}, {shown(best.name)} has the highest mean accuracy: {percent(best.value or 0)}"
        if best
        else ""
    )
    return bars_plot(
        f"validated-{number}", title, "Means of the folds; Student's 95 % interval.", "accuracy (%)", [("", bars)]
    )


def errors_plot(errors: Mapping[str, Mapping[str, Bar]], of: int) -> Plot:
    """Plot the errors of each class by experiment. ``of``: total number of classes."""
    names = list(dict.fromkeys(name for bars in errors.values() for name in bars))[:MOST_CURVES]
    rows = -(-len(errors) // _COLUMNS)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(rows, min(len(errors), _COLUMNS), sharex=True, sharey=True, squeeze=False)
        numbers: dict[str, Any] = {}
        titles = distinct(list(errors), 13)
        for axes, title, bars in zip(grid.flat, titles, errors.values(), strict=False):
            for y, name in enumerate(names):
                if name not in bars:
                    continue
                bar = bars[name]
                value, below, above = bar.percent
                axes.barh(y, value, 0.62, color=COLORS[y], alpha=0.55)
                axes.errorbar(
                    value, y, xerr=[[below], [above]], fmt="none", ecolor="#222222", capsize=2.5, linewidth=1.1
                )
            for (number, share), dash in zip(next(iter(bars.values())).beside.items(), DASHES[1:], strict=False):
                numbers[number] = axes.axvline(100 * share, color="#D55E00", linestyle=dash, linewidth=1.2)
            axes.set_title(f"{title} ({next(iter(bars.values())).runs:,})")
            axes.set_xlim(-2, 102)
            axes.set_ylim(len(names) - 0.4, -0.6)
            axes.grid(False, axis="y")
        grid[0, 0].set_yticks(np.arange(len(names)), distinct(names, 24))
        _labels(grid, len(errors), "missed (%)")
        if numbers:
            figure.legend(
                list(numbers.values()),
                [shown(name) for name in numbers],
                loc="outside lower left",
                ncols=2,
                fontsize=8.5,
            )

    caption = "Share of misclassified runs of a class, with 95 % intervals (Wilson)."
    caption += _drawn_of(len(names), max(len(bars) for bars in errors.values()), len(errors), of)
    return Plot(
        "errors", _largest_difference(errors, names), caption, (WIDE, 1.0 + rows * (0.75 + 0.24 * len(names))), paint
    )


def _largest_difference(errors: Mapping[str, Mapping[str, Bar]], names: Sequence[str]) -> str:
    """Describe the class in which the experiments differ most."""
    ranges = {}
    for label, bars in errors.items():
        shares = sorted((bars[name].value or 0.0, name) for name in names if name in bars)
        ranges[label] = shares[0], shares[-1]
    label = max(ranges, key=lambda each: ranges[each][1][0] - ranges[each][0][0])
    (least, low), (most, high) = ranges[label]
    if least == most:
        return "Each class is missed equally often by all"
    low, high = distinct([low, high])
    return f"They differ most in {shown(label)}: {low} misses {percent(least)} of its runs, {high} {percent(most)}"


def curves_plot(standing: Sequence[Compared]) -> Plot:
    """Plot the precision-recall curves of each class by experiment. ``standing``: experiments with predictions."""
    drawn = standing[:MOST_CURVES]
    names = [one.name for one in drawn]
    by_name = {
        one.name: {each.name: each for each in curves(one.predictions, MOST_PANELS)} for one in drawn if one.predictions
    }
    classes = list(by_name[names[0]])
    every = len(curved(drawn[0].predictions)) if drawn[0].predictions else 0
    rows = -(-len(classes) // _COLUMNS)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(rows, min(len(classes), _COLUMNS), sharex=True, sharey=True, squeeze=False)
        for axes, label, title in zip(grid.flat, classes, distinct(classes, 16), strict=False):
            for name, short, color, dash in zip(names, distinct(names), COLORS, DASHES, strict=False):
                if (each := by_name[name].get(label)) is not None:
                    axes.plot(
                        each.recall,
                        each.precision,
                        drawstyle="steps-pre",
                        color=color,
                        linestyle=dash,
                        linewidth=1.4,
                        label=short,
                    )
                    axes.axhline(each.share, color="#888888", linestyle=":", linewidth=1)
            axes.set_title(f"{title} ({by_name[names[0]][label].runs:,})")
            axes.set_xlim(-0.02, 1.02)
            axes.set_ylim(-0.02, 1.02)
        _labels(grid, len(classes), "recall", "precision")
        legend(figure, grid.flat[0])

    best = max(drawn, key=lambda one: one.result["test"]["macro"]["pr_auc"]["value"])
    test = best.result["test"]
    area, guess = (scores["macro"]["pr_auc"]["value"] for scores in (test, constant(best.result, test)))
    title = f"{shown(best.name)} has the largest mean PR-AUC of the classes: {area:.2f}; a random guess has {guess:.2f}"
    caption = "Each class against all others. Dotted: a random guess."
    caption += _drawn_of(len(names), len(standing), len(classes), every)
    return Plot("curves", title, caption, (WIDE, 1.35 + 2.1 * rows), paint)


def learning_plot(learned: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]) -> Plot:
    """Plot loss and accuracy by pass. ``learned``: `history` by experiment."""
    names = list(learned)[:MOST_CURVES]
    dev = any("dev" in splits for name in names for splits in learned[name].values())

    def paint(figure: Figure) -> None:
        grid = figure.subplots(1, 2, squeeze=False)[0]
        for axes, what in zip(grid, ("loss", "accuracy"), strict=True):
            for name, short, color in zip(names, distinct(names), COLORS, strict=False):
                for split, values in learned[name].get(what, {}).items():
                    axes.plot(
                        np.arange(1, len(values) + 1),
                        values,
                        "-" if split == "train" else "--",
                        color=color,
                        linewidth=1.5,
                        label=short if split == "train" else None,
                    )
            axes.set_title(what)
            axes.set_xlabel("passes over the training runs")
            axes.set_ylim(*((0, 1.02) if what == "accuracy" else (0, None)))
            whole_numbers(axes.xaxis)
        legend(figure, grid[0])

    longest = max(names, key=lambda name: len(learned[name]["loss"]["train"]))
    title = f"Training losses; {shown(longest)} makes the most passes, {len(learned[longest]['loss']['train']):,}"
    caption = "Losses include the penalties of each experiment: compare their shape, and compare levels by accuracy."
    caption += " Dashed lines: dev runs, which are not trained on." if dev else ""
    return Plot("learning", title, caption, (WIDE, 3.2), paint)


def _labels(grid: Any, panels: int, horizontal: str, vertical: str = "") -> None:
    """Label the left column and the lowest panel of each column, and hide unused panels."""
    columns = grid.shape[1]
    for index, axes in enumerate(grid.flat):
        axes.set_visible(index < panels)
        if index % columns == 0:
            axes.set_ylabel(vertical)
        if index + columns >= panels:
            axes.set_xlabel(horizontal)
            axes.tick_params(labelbottom=True)


def _drawn_of(experiments: int, of: int, classes: int, of_classes: int) -> str:
    text = f" The first {experiments} of {of} experiments are drawn." if experiments < of else ""
    return text + (f" The {classes} largest of {of_classes} classes are drawn." if classes < of_classes else "")


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
        mine = [(trial, found) for trial, found in trials if trial.dataset == dataset]
        comparison = compare(by_accuracy(mine))
        found = comparison.rows
        tiles += [_best(dataset, found)] if found else []
        parts = [*_tested(found, links, comparison.beaten), *_validated([trial for trial, _ in mine])]
        sections += [
            replace(
                section,
                title=f"{dataset}: {section.title}",
                plots=tuple(replace(plot, name=f"{dataset}-{plot.name}") for plot in section.plots),
            )
            for section in parts
        ]
    lead = (
        "Figures are of the test runs, with 95 % intervals. Choosing the best experiment by its test runs overfits: "
        "choose by cross-validation."
    )
    return Page(
        "Experiments side by side" if len(experiments) > 1 else experiments[0], lead, tuple(tiles[:8]), tuple(sections)
    )


def _best(dataset: str, found: Sequence[Compared]) -> Tile:
    best = found[0].result["test"]
    note = f"{found[0].name}; base rate {figure(best['base_rate']['value'])}"
    return Tile(f"highest accuracy on {dataset}", figure(best["accuracy"]["value"]), note)


def _tested(found: Sequence[Compared], links: Mapping[tuple[str, str], str], beaten: str) -> list[Section]:
    if not found:
        return []
    alike = [one for one in found if one.same_runs]
    others = [one.name for one in found if not one.same_runs]
    columns = "The last columns compare accuracies with the best experiment, run by run (McNemar's test)."
    text = " ".join(filter(None, [beaten, columns if len(found) > 1 else ""]))
    if others:
        text += f" Tested on other runs than the rest, so not comparable: {', '.join(others)}."
    bars = (
        ("accuracy", [accuracy_bar(_called(one), one.result["test"], one.result["baselines"]) for one in found]),
        (
            "macro F1",
            [f1_bar(_called(one), one.result["test"], one.result["baselines"], _guess(one)) for one in found],
        ),
    )
    sections = [
        Section(
            "the test runs",
            text,
            tables=_tables(found, links),
            plots=(standing_plot(bars),),
        )
    ]
    if len(alike) < 2:
        return sections
    errors = errors_of(alike, MOST_PANELS)
    of = sum(bool(one["runs"]) for one in alike[0].result["test"]["classes"].values())
    sections.append(Section("errors by class", plots=(errors_plot(errors, of),)))
    drawn = [one for one in alike if one.predictions is not None and curved(one.predictions)]
    if drawn:
        sections.append(Section("separation of classes", plots=(curves_plot(drawn),)))
    if missing := [one.name for one in alike if one.predictions is None]:
        sections.append(Section("missing predictions", f"No curves for {', '.join(missing)}."))
    learned = {one.name: passes for one in alike if (passes := history(one.result))}
    if learned:
        sections.append(Section("learning", plots=(learning_plot(learned),)))
    return sections


def _guess(one: Compared) -> Mapping[str, Any]:
    """Return the figures of the same answer for all its test runs."""
    return constant(one.result, one.result["test"])


def _called(one: Compared) -> str:
    return one.name if one.same_runs else f"{one.name} (other runs)"


def _tables(found: Sequence[Compared], links: Mapping[tuple[str, str], str]) -> tuple[Table, Table]:
    numbers = list(dict.fromkeys(name for one in found for name in one.result["baselines"]))
    accuracies = []
    others = []
    for rank, one in enumerate(found):
        test = one.result["test"]
        beside = [one.result["baselines"].get(name) for name in numbers]
        accuracies.append(
            (
                one.name,
                one.result["experiment"]["estimator"].replace("_", " "),
                f"{test['runs']:,}",
                figure(test["accuracy"]["value"]),
                interval(test["accuracy"]),
                figure(test["base_rate"]["value"]),
                *("–" if each is None else figure(each["accuracy"]["value"]) for each in beside),
                *(("the best", "") if not rank else _against(one.against)),
            )
        )
        others.append(
            (
                one.name,
                figure(test["macro"]["f1"]["value"]),
                interval(test["macro"]["f1"]),
                figure(_guess(one)["macro"]["f1"]["value"]),
                *("–" if each is None else figure(each["macro"]["f1"]["value"]) for each in beside),
                figure(test["macro"]["roc_auc"]["value"]),
                figure(test["macro"]["pr_auc"]["value"]),
                figure(test["brier"]["value"]),
                figure(test["calibration"]["ece"]),
            )
        )
    alone = [f"{name} alone" for name in numbers]
    at = {(row, 0): links[key] for row, one in enumerate(found) if (key := (one.name, one.trial.dataset)) in links}
    return (
        Table(
            ("experiment", "estimator", "runs", "accuracy", "95 %", "base rate", *alone, "difference", "McNemar p"),
            tuple(accuracies),
            words=2,
            links=at,
        ),
        Table(
            ("experiment", "macro F1", "95 %", "base rate", *alone, "ROC-AUC", "PR-AUC", "Brier", "calibration error"),
            tuple(others),
        ),
    )


def _against(compared: Mapping[str, Any] | None) -> tuple[str, str]:
    if compared is None or compared["difference"] is None:
        return "–", "–"
    difference = f"{compared['difference']:+.3f}" if compared["difference"] else "0.000"
    return difference, "< 0.001" if compared["mcnemar"] < 0.001 else f"{compared['mcnemar']:.3f}"


def _validated(trials: Sequence[Stored]) -> list[Section]:
    return [_validation(number, each) for number, each in enumerate(validated(trials), 1)]


def _validation(number: int, group: Validated) -> Section:
    rows = []
    bars = []
    for name, each in group.means:
        accuracy = each["mean"]["accuracy"]
        f1 = each["mean"]["f1"]
        pooled = each["pooled"]
        base = pooled["base_rate"]["value"]
        bars.append(
            Bar(name, accuracy["value"], accuracy["low"], accuracy["high"], pooled["runs"], {"base rate": base})
        )
        rows.append(
            (
                name,
                f"{pooled['runs']:,}",
                figure(accuracy["value"]),
                interval(accuracy),
                figure(base),
                figure(f1["value"]),
                interval(f1),
            )
        )
    headings = ("experiment", "runs", "mean accuracy", "95 %", "base rate", "mean macro F1", "95 %")
    return Section(
        f"cross-validation, {group.folds} folds by {group.by}",
        "Means of the folds, with Student's interval; the test runs were not used.",
        tables=(Table(headings, tuple(rows)),),
        plots=(validated_plot(number, group.by, bars),),
    )
