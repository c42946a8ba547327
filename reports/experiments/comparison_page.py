"""Build the page that compares experiments, by data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ciml.reports.experiments import comparison_plots as plots
from ciml.reports.experiments.comparison import Validated, errors_of, validated
from ciml.reports.experiments.tables import figure, interval
from ciml.reports.experiments.views import Bar, accuracy_bar, constant, curved, f1_bar, history
from ciml.reports.page import Page, Section, Table, Tile
from ciml.training.experiments.compare import Compared, Tested, by_accuracy, compare
from ciml.training.experiments.results import Stored


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
            plots=(plots.standing_plot(bars),),
        )
    ]
    if len(alike) < 2:
        return sections
    errors = errors_of(alike, plots.MOST_PANELS)
    of = sum(bool(one["runs"]) for one in alike[0].result["test"]["classes"].values())
    sections.append(Section("errors by class", plots=(plots.errors_plot(errors, of),)))
    drawn = [one for one in alike if one.predictions is not None and curved(one.predictions)]
    if drawn:
        sections.append(Section("separation of classes", plots=(plots.curves_plot(drawn),)))
    if missing := [one.name for one in alike if one.predictions is None]:
        sections.append(Section("missing predictions", f"No curves for {', '.join(missing)}."))
    learned = {one.name: passes for one in alike if (passes := history(one.result))}
    if learned:
        sections.append(Section("learning", plots=(plots.learning_plot(learned),)))
    return sections


def _guess(one: Compared) -> Mapping[str, Any]:
    """Return the figures of the same answer for all its test runs."""
    return constant(one.result, one.result["test"])


def _called(one: Compared) -> str:
    return one.name if one.same_runs else f"{one.name} (other runs)"


def _tables(found: Sequence[Compared], links: Mapping[tuple[str, str], str]) -> tuple[Table, Table]:
    numbers = list(dict.fromkeys(name for one in found for name in one.result["baselines"]))
    accuracies, others = [], []
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
    rows, bars = [], []
    for name, each in group.means:
        accuracy, f1, pooled = each["mean"]["accuracy"], each["mean"]["f1"], each["pooled"]
        base = pooled["base_rate"]["value"]
        bars.append(
            Bar(name, accuracy["value"], accuracy["low"], accuracy["high"], pooled["runs"], {"base rate": base})
        )
        rows.append(
            (
                name, f"{pooled['runs']:,}", figure(accuracy["value"]), interval(accuracy), figure(base),
                figure(f1["value"]), interval(f1),
            )
        )  # fmt: skip
    headings = ("experiment", "runs", "mean accuracy", "95 %", "base rate", "mean macro F1", "95 %")
    return Section(
        f"cross-validation, {group.folds} folds by {group.by}",
        "Means of the folds, with Student's interval; the test runs were not used.",
        tables=(Table(headings, tuple(rows)),),
        plots=(plots.validated_plot(number, group.by, bars),),
    )
