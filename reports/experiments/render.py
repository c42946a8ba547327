"""The pages of experiments: one for each result, and one that compares several.

`report_experiments` writes them into a folder. `result_page` makes the page of one result: its sections, then the
tables in them. `ciml.reports.experiments.comparison` compares results.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any
from urllib.parse import quote

from ciml.datasets.definition import SPLITS
from ciml.errors import CimlError
from ciml.progress import Progress, no_progress
from ciml.reports.drawing import Estimate, runs_of, shown
from ciml.reports.experiments import plots
from ciml.reports.experiments.comparison import comparison_page
from ciml.reports.experiments.views import (
    Bar,
    Figures,
    alone_names,
    constant,
    curved,
    curves,
    errors_by_class,
    fold_bars,
    history,
    slice_bars,
    standing,
    value_at,
)
from ciml.reports.page import PAGE, Page, Section, Table, Tile, cells, save
from ciml.storage import Store, open_store
from ciml.training.estimators import used_keys
from ciml.training.evaluation.bootstrap import BY_CLASS
from ciml.training.evaluation.text import beaten_lines
from ciml.training.experiment import Experiment
from ciml.training.experiments.results import Predictions, StoredTrial, experiment_names, load_experiment, stored_trials

#: Rows of a table of jobs, groups or classes.
MOST_ROWS = 100
_METRIC_NAMES = {"precision": "precision", "recall": "recall", "f1": "F1", "roc_auc": "ROC-AUC", "pr_auc": "PR-AUC"}


def report_experiments(
    store: Store,
    experiments: Sequence[str],
    datasets: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    progress: Progress = no_progress,
) -> str:
    """Draw the latest result of each experiment on each data set, and compare them if there are several.

    Args:
      store: the folder of all experiments.
      experiments: names of experiments; all by default.
      datasets: names of data sets; all by default.
      folder: a folder or an ``s3://`` prefix. Files of the same names are overwritten. ``index.html`` shows a single
        result or compares several; then ``DATASET/EXPERIMENT/index.html`` is the page of each.
      progress: called with the number of finished pages and the total.

    Returns:
      Address of ``index.html``.

    Raises:
      CimlError: when there is no such experiment, or a named experiment or data set has no result.
      IntegrityError: when a stored file was altered.
    """
    names = list(dict.fromkeys(experiments)) or experiment_names(store)
    for name in experiments:
        load_experiment(store, name)
    trials = [(trial, trial.predictions()) for trial in stored_trials(store, names, datasets)]
    if not trials:
        raise CimlError(_no_result(store, names, datasets))
    if missing := set(datasets) - {trial.dataset for trial, _ in trials}:
        raise CimlError(_no_result(store, names, sorted(missing)))
    if missing := set(experiments) - {trial.experiment for trial, _ in trials}:
        raise CimlError(_no_result(store, sorted(missing), datasets))
    root = open_store(folder)
    if len(trials) == 1:
        return save(root, result_page(*trials[0]))
    links = {}
    for finished, (trial, predictions) in enumerate(trials):
        progress("pages", finished, len(trials) + 1)
        subfolder = f"{trial.dataset}/{trial.experiment}"
        save(root.child(subfolder), result_page(trial, predictions))
        links[trial.experiment, trial.dataset] = quote(f"{subfolder}/{PAGE}")
    progress("pages", len(trials), len(trials) + 1)
    address = save(root, comparison_page(trials, links))
    progress("pages", len(trials) + 1, len(trials) + 1)
    return address


def _no_result(store: Store, names: Sequence[str], datasets: Sequence[str]) -> str:
    single = len(names) == 1
    subject = names[0] if single else f"{len(names)} experiments"
    on = f" on {', '.join(datasets)}" if datasets else ""
    remedy = f"ciml experiment train --experiment {names[0] if single else 'EXPERIMENT'} "
    remedy += f"--dataset {datasets[0] if datasets else 'NAME'}"
    return f"no result of {subject}{on} in {store.url()}: {remedy}"


def result_page(trial: StoredTrial, predictions: Predictions | None) -> Page:
    """Return the page of a trial. ``predictions``: of the test runs; None if the file is missing."""
    folds = [_folds(number, figures) for number, figures in enumerate(trial.folds, 1)]
    title = f"{trial.experiment} on {trial.dataset}"
    result = trial.result
    if result is None:
        lead = "Cross-validated only: not yet trained on all training runs and not yet tested."
        return Page(title, lead, _fold_tiles(trial.folds[0]), tuple(folds))
    test = result["test"]
    lead = (
        f"{_settings(result['experiment'])}, trained on {runs_of(test['trained_on'])} and tested on "
        f"{runs_of(test['runs'])} that were held out. Intervals are 95 %."
    )
    if not test["runs"]:
        lead += " Without test runs there are no figures."
        return Page(title, lead, (), (_learning(result), *folds, _training(trial)))
    lead = " ".join([lead, *map(str.strip, beaten_lines(result))])
    guess = constant(result, test)
    sections = (*_test_sections(trial, result, guess, predictions), *folds, _training(trial))
    return Page(title, lead, _tiles(result, guess), sections)


def _settings(experiment: Mapping[str, Any]) -> str:
    """Return the estimator and its non-default settings, in a line."""
    defaults = Experiment().to_json()
    settings = [
        f"{key.replace('_', ' ')} {_plain(value)}"
        for key, value in experiment.items()
        if key not in ("name", "estimator", "parameters", "packages") and value != defaults.get(key)
    ]
    settings += [f"{key} {_setting(value)}" for key, value in experiment["parameters"].items()]
    return f"{experiment['estimator']}{' with ' + ', '.join(settings) if settings else ''}"


def _metric_tile(label: str, metric: Figures, note: str = "") -> Tile:
    value, interval = cells(Estimate.of(metric))
    return Tile(label, value, note.format(interval) if note else interval)


def _base_tile(base: Figures) -> Tile:
    (value,) = cells(base["value"])
    return Tile("base rate", value, f"always {shown(base['class'])}")


def _tiles(result: Figures, guess: Figures) -> tuple[Tile, ...]:
    test = result["test"]
    (base_f1,) = cells(guess["macro"]["f1"]["value"])
    return (
        _metric_tile("accuracy", test["accuracy"]),
        _base_tile(test["base_rate"]),
        *(
            _metric_tile(f"{name} alone", baseline["accuracy"], "accuracy, {}")
            for name, baseline in result["baselines"].items()
        ),
        _metric_tile("macro F1", test["macro"]["f1"], f"{{}}; base rate {base_f1}"),
    )


def _fold_tiles(folds: Figures) -> tuple[Tile, ...]:
    return (
        _metric_tile("mean accuracy of the folds", folds["mean"]["accuracy"]),
        _base_tile(folds["pooled"]["base_rate"]),
        _metric_tile("mean macro F1", folds["mean"]["f1"]),
    )


def _test_sections(
    trial: StoredTrial, result: Figures, guess: Figures, predictions: Predictions | None
) -> Iterator[Section]:
    """Yield the sections of the test runs."""
    test = result["test"]
    baselines = result["baselines"]
    yield Section(
        "Figures",
        "Base rate: the same answer for all runs, namely the class shares of the training runs. "
        + "".join(f"{name.capitalize()} alone: {baseline['what']}. " for name, baseline in baselines.items()),
        metrics_table("on the test runs", test, guess, baselines),
        _dev_table(result),
    )
    yield Section(
        "Classes",
        *class_tables(test, guess, baselines),
        plots.confusion_plot(test["confusion"]),
        plots.errors_plot(errors_by_class(test, baselines)),
    )
    yield _separation(predictions)
    yield _calibration(result)
    if verdicts := result.get("verdicts"):
        text = (
            "A verdict names the cause of a failed run where only one is likely; else it is unknown. Coverage: the "
            f"share of runs whose cause is among the likely ones, stated as {verdicts['coverage']['stated']:g}."
        )
        yield Section("Verdicts", text, *verdict_tables(verdicts))
    yield _learning(result)
    for number, (fact, slices) in enumerate(test["slices"].items(), 1):
        bars = slice_bars(slices)
        table = slices_table(fact, slices, bars)
        yield Section(f"By {shown(fact)}", table, plots.slices_plot(number, fact, bars))
    if trial.elsewhere:
        yield _elsewhere(trial, result)


def _dev_table(result: Figures) -> Table | None:
    dev = result["dev"]
    if not dev or not dev["runs"]:
        return None
    return metrics_table(f"on {runs_of(dev['runs'])} of dev", dev, constant(result, dev), {})


def _separation(predictions: Predictions | None) -> Section:
    title = "Separation of classes"
    if predictions is None:
        return Section(title, "No curves: the predictions file is missing.")
    total = len(curved(predictions))
    if not total:
        return Section(title, "No curves: all test runs are of one class.")
    return Section(title, plots.curves_plot(curves(predictions, plots.MOST_CURVES), total))


def _calibration(result: Figures) -> Section:
    calibration = result.get("calibration")
    text = ""
    before = None
    if calibration is not None:
        before = calibration["before"]["calibration"]
        text = (
            f"Calibrated by {calibration['method']} on {runs_of(calibration['fitted_to'])} of dev, which the model did "
            f"not learn. The log loss on the test runs is {result['test']['log_loss']:.3f}; without the calibration it "
            f"is {calibration['before']['log_loss']:.3f}."
        )
    return Section("Calibration", text, plots.calibration_plot(result["test"]["calibration"], before))


def _learning(result: Figures) -> Section:
    passes = history(result)
    if not passes:
        return Section("Learning", "No curve: this estimator does not train in passes over the runs.")
    best = result["training"].get("best_epoch") if "dev" in passes["loss"] else None
    return Section("Learning", plots.learning_plot(passes, best))


def _elsewhere(trial: StoredTrial, result: Figures) -> Section:
    results = {f"{trial.dataset} (trained on)": result}
    results |= {tested["dataset"]: tested for tested in trial.elsewhere if tested["test"]["runs"]}
    groups = standing({name: (tested, constant(result, tested["test"])) for name, tested in results.items()})
    plot = plots.elsewhere_plot(groups) if len(results) > 1 else None
    return Section("On other data sets", elsewhere_table(trial.elsewhere), plot)


def _folds(number: int, folds: Figures) -> Section:
    return Section(
        f"Cross-validation: {len(folds['folds'])} folds by {shown(folds['by'])}",
        "Folds of the training runs; the test runs were not used. Choose between experiments by these figures.",
        folds_table(folds),
        plots.folds_plot(number, folds["by"], fold_bars(folds)),
    )


def _training(trial: StoredTrial) -> Section:
    """Return how the model was trained, so that the training can be repeated."""
    result = trial.result or {}
    snapshot = result["snapshot"]
    experiment = result["experiment"]
    keys = used_keys(experiment) | {"estimator"}
    settings = [
        (key.replace("_", " "), _plain(value)) for key, value in experiment.items() if key != "name" and key in keys
    ]
    counts = snapshot["counts"]
    runs = [
        cells(shown(name, 80), *(counts[role][name] for role in SPLITS)) for name in list(counts["train"])[:MOST_ROWS]
    ]
    left_out = _first(len(runs), len(counts["train"]), "classes")
    trust = [cells(f"trusted by rule {rule}", count) for rule, count in snapshot["rules"].items()]
    trust += [cells(f"not trusted: {reason}", count) for reason, count in snapshot["untrusted"].items()]
    trust += [cells(f"excluded: {reason}", count) for reason, count in snapshot["excluded"].items()]
    trust += [cells(f"withheld: {reason}", count) for reason, count in snapshot.get("withheld", {}).items()]
    older = f" Older stored results on this data set: {trial.older}." if trial.older else ""
    spans = "1 span" if len(snapshot["spans"]) == 1 else f"{len(snapshot['spans'])} spans"
    return Section(
        "How it was made",
        f"Snapshot {snapshot['digest']}, {spans}; stored in {trial.store.url()}.{older}",
        Table(("hyper-parameter", "value"), tuple(settings), words=2, title="experiment"),
        Table(("class", *SPLITS), tuple(runs), title="; ".join(filter(None, ("runs by class", left_out)))),
        Table(("decision", "runs"), tuple(trust), title="trust of the training runs") if trust else None,
    )


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_setting(setting)}" for key, setting in value.items()) or "–"
    return "–" if value is None else str(value)


def _setting(value: Any) -> str:
    """Return a parameter of an estimator: a list or an estimator as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (Mapping, list)) else str(value)


def metrics_table(title: str, scores: Figures, guess: Figures, baselines: Figures) -> Table:
    """Return a table of the metrics with their intervals, next to those of a constant answer and one number."""
    paths: dict[str, tuple[str, ...]] = {"accuracy": ("accuracy",)}
    paths |= {f"macro {_METRIC_NAMES[name]}": ("macro", name) for name in BY_CLASS}
    paths |= {"Brier (less is better)": ("brier",)}
    rows = []
    for name, path in paths.items():
        metric = reduce(getitem, path, scores)
        alone = (value_at(baseline, *path) for baseline in baselines.values())
        rows.append(cells(name, Estimate.of(metric), value_at(guess, *path), *alone))
    missing = (None,) * len(baselines)
    rows += [
        cells("log loss (less is better)", scores["log_loss"], None, guess["log_loss"], *missing),
        cells("calibration error", scores["calibration"]["ece"], None, guess["calibration"]["ece"], *missing),
    ]
    return Table(("metric", "value", "95 %", "base rate", *alone_names(baselines)), tuple(rows), title=title)


def class_tables(test: Figures, guess: Figures, baselines: Figures) -> tuple[Table, Table]:
    """Return two tables by class: the metrics of answers, and the metrics of probabilities."""
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
    """Return two tables: coverage and abstentions, and precision and recall of the verdicts by cause."""
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
    """Return a table of the accuracy by job or provider. ``bars``: from `ciml.reports.experiments.views.slice_bars`."""
    rows = []
    for bar in bars[:MOST_ROWS]:
        figures = slices[bar.name]
        rows.append(cells(shown(bar.name, 80), bar.runs, bar.estimate, figures["majority"], figures.get("f1")))
    headings = (shown(fact), "runs", "accuracy", "95 %", "most frequent class", "macro F1")
    return Table(headings, tuple(rows), title=_first(len(rows), len(bars), f"by {shown(fact)}"))


def elsewhere_table(elsewhere: Sequence[Figures]) -> Table:
    """Return a table of the same model on other data sets."""
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
                f"{omitted['trained_on']:,} · {omitted.get('dev', 0):,} · {omitted['unknown_class']:,}",
            )
        )
    headings = ("data set", "runs", "accuracy", "95 %", "base rate", "one number alone", "macro F1")
    return Table((*headings, "left out: trained on · dev · unknown class"), tuple(rows))


def folds_table(folds: Figures) -> Table:
    """Return a table of the folds of a cross-validation, and their mean."""
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
