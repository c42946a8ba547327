"""Build the page of one experiment's results on one data set.

Write the results of experiments as pages into a folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ciml.errors import CimlError
from ciml.progress import Progress, no_progress
from ciml.reports.drawing import Plot, runs_of, shown
from ciml.reports.experiments import plots, tables
from ciml.reports.experiments.comparison import comparison_page
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
    fold_bars,
    history,
    slice_bars,
)
from ciml.reports.page import PAGE, Page, Section, Table, Tile, save
from ciml.storage import Store, open_store
from ciml.training.estimators import ESTIMATORS
from ciml.training.experiment import Experiment
from ciml.training.experiments.results import Predictions, Stored, stored_trials
from ciml.training.experiments.text import beaten_lines
from ciml.training.experiments.trials import experiment_names, load_experiment


def result_page(trial: Stored, found: Predictions | None) -> Page:
    """Return the page of a trial. ``found``: its predictions; None if the file is missing."""
    folds = [_folded(number, each) for number, each in enumerate(trial.folds, 1)]
    title = f"{trial.experiment} on {trial.dataset}"
    result = trial.result
    if result is None:
        lead = "Cross-validated only: not yet trained on all training runs and not yet tested."
        return Page(title, lead, _fold_tiles(trial.folds[0]), tuple(folds))
    test = result["test"]
    baselines = result["baselines"]
    lead = (
        f"{_settings(result['experiment'])}, trained on {runs_of(test['trained_on'])} and tested on "
        f"{runs_of(test['runs'])} that were held out. Intervals are 95 %."
    )
    if not test["runs"]:
        return Page(
            title, f"{lead} Without test runs there are no figures.", (), (*_learned(result), *folds, _made(trial))
        )
    lead = " ".join([lead, *map(str.strip, beaten_lines(result))])
    guess = constant(result, test)
    sections = [
        Section(
            "Figures",
            "Base rate: the same answer for all runs, namely the class shares of the training runs. "
            + "".join(f"{name.capitalize()} alone: {each['what']}. " for name, each in baselines.items()),
            tables=(tables.metrics_table("on the test runs", test, guess, baselines), *_dev(result)),
        ),
        Section("Classes", tables=tables.class_tables(test, guess, baselines), plots=_class_plots(test, baselines)),
        _curves(found),
        _calibration(result),
        *_verdicts(result),
        *_learned(result),
        *(_sliced(number, fact, each) for number, (fact, each) in enumerate(test["slices"].items(), 1)),
        *_elsewhere(trial),
        *folds,
        _made(trial),
    ]
    return Page(title, lead, _tiles(result, guess), tuple(sections))


def _settings(experiment: Mapping[str, Any]) -> str:
    """Return the estimator and its non-default settings, in a line."""
    defaults = Experiment().to_json()
    own = [
        f"{key.replace('_', ' ')} {'/'.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in experiment.items()
        if key not in ("name", "estimator", "parameters") and value != defaults.get(key)
    ]
    own += [f"{key} {value}" for key, value in experiment["parameters"].items()]
    return f"{experiment['estimator']}{' with ' + ', '.join(own) if own else ''}"


def _tiles(result: Figures, guess: Figures) -> tuple[Tile, ...]:
    test = result["test"]
    base = test["base_rate"]
    macro = test["macro"]["f1"]
    return (
        Tile("accuracy", figure(test["accuracy"]["value"]), interval(test["accuracy"])),
        Tile("base rate", figure(base["value"]), f"always {shown(base['class'])}"),
        *(
            Tile(f"{name} alone", figure(each["accuracy"]["value"]), f"accuracy, {interval(each['accuracy'])}")
            for name, each in result["baselines"].items()
        ),
        Tile(
            "macro F1", figure(macro["value"]), f"{interval(macro)}; base rate {figure(guess['macro']['f1']['value'])}"
        ),
    )


def _dev(result: Figures) -> tuple[Table, ...]:
    if not result["dev"] or not result["dev"]["runs"]:
        return ()
    dev = result["dev"]
    return (tables.metrics_table(f"on {runs_of(dev['runs'])} of dev", dev, constant(result, dev), {}),)


def _class_plots(test: Figures, baselines: Figures) -> tuple[Plot, ...]:
    return plots.confusion_plot(test["confusion"]), plots.errors_plot(errors_by_class(test, baselines))


def _curves(found: Predictions | None) -> Section:
    title = "Separation of classes"
    if found is None:
        return Section(title, "No curves: the predictions file is missing.")
    of = len(curved(found))
    if not of:
        return Section(title, "No curves: all test runs are of one class.")
    return Section(title, plots=(plots.curves_plot(curves(found, plots.MOST_CURVES), of),))


def _calibration(result: Figures) -> Section:
    known = result.get("calibration")
    text = ""
    if known is not None:
        loss = known["before"]["log_loss"], result["test"]["log_loss"]
        text = (
            f"Calibrated by {known['method']} on {runs_of(known['fitted_to'])} of dev, which the model did not learn. "
            f"The log loss on the test runs is {loss[1]:.3f}; without the calibration it is {loss[0]:.3f}."
        )
    before = None if known is None else known["before"]["calibration"]
    return Section("Calibration", text, plots=(plots.calibration_plot(result["test"]["calibration"], before),))


def _verdicts(result: Figures) -> tuple[Section, ...]:
    found = result.get("verdicts")
    if not found:
        return ()
    text = (
        "A verdict names the cause of a failed run where only one is likely; else it is unknown. Coverage: the share "
        f"of runs whose cause is among the likely ones, stated as {found['coverage']['stated']:g}."
    )
    return (Section("Verdicts", text, tables=tables.verdict_tables(found)),)


def _learned(result: Figures) -> tuple[Section, ...]:
    passes = history(result)
    if not passes:
        return (Section("Learning", "No curve: this estimator does not train in passes over the runs."),)
    best = result["training"].get("best_epoch")
    return (Section("Learning", plots=(plots.learning_plot(passes, best if "dev" in passes["loss"] else None),)),)


def _sliced(number: int, fact: str, slices: Figures) -> Section:
    bars = slice_bars(slices)
    drawn = plots.slices_plot(number, fact, bars)
    return Section(f"By {shown(fact)}", tables=(tables.slices_table(fact, slices, bars),), plots=(drawn,))


def _elsewhere(trial: Stored) -> tuple[Section, ...]:
    result = trial.result
    known = [each for each in trial.elsewhere if each["test"]["runs"]]
    if result is None or not trial.elsewhere:
        return ()
    accuracies: list[Bar] = []
    f1s: list[Bar] = []
    for name, each in ((f"{trial.dataset} (trained on)", result), *((each["dataset"], each) for each in known)):
        guess = constant(result, each["test"])
        accuracies.append(accuracy_bar(name, each["test"], each["baselines"]))
        f1s.append(f1_bar(name, each["test"], each["baselines"], guess))
    drawn = (plots.elsewhere_plot([("accuracy", accuracies), ("macro F1", f1s)]),) if known else ()
    return (Section("On other data sets", tables=(tables.elsewhere_table(trial.elsewhere),), plots=drawn),)


def _folded(number: int, folds: Figures) -> Section:
    title = f"Cross-validation: {len(folds['folds'])} folds by {shown(folds['by'])}"
    text = "Folds of the training runs; the test runs were not used. Choose between experiments by these figures."
    drawn = plots.folds_plot(number, folds["by"], fold_bars(folds))
    return Section(title, text, tables=(tables.folds_table(folds),), plots=(drawn,))


def _fold_tiles(folds: Figures) -> tuple[Tile, ...]:
    mean = folds["mean"]
    base = folds["pooled"]["base_rate"]
    return (
        Tile("mean accuracy of the folds", figure(mean["accuracy"]["value"]), interval(mean["accuracy"])),
        Tile("base rate", figure(base["value"]), f"always {shown(base['class'])}"),
        Tile("mean macro F1", figure(mean["f1"]["value"]), interval(mean["f1"])),
    )


def _made(trial: Stored) -> Section:
    """Return how the model was trained, so that the training can be repeated."""
    result = trial.result or {}
    snapshot = result["snapshot"]
    experiment = result["experiment"]
    known = ESTIMATORS.get(experiment["estimator"])
    settings = [
        (key.replace("_", " "), _plain(value))
        for key, value in experiment.items()
        if key != "name" and (known is None or key in known.keys)
    ]
    names = list(snapshot["counts"]["train"])[: tables.MOST_ROWS]
    runs = [(role, *(f"{snapshot['counts'][role][name]:,}" for name in names)) for role in ("train", "dev", "test")]
    trust = [(f"trusted by rule {rule}", f"{count:,}") for rule, count in snapshot["rules"].items()]
    trust += [(f"not trusted: {reason}", f"{count:,}") for reason, count in snapshot["untrusted"].items()]
    trust += [(f"excluded: {reason}", f"{count:,}") for reason, count in snapshot["excluded"].items()]
    older = f" Older stored results on this data set: {trial.older}." if trial.older else ""
    spans = "1 span" if len(snapshot["spans"]) == 1 else f"{len(snapshot['spans'])} spans"
    return Section(
        "How it was made",
        f"Snapshot {snapshot['digest']}, {spans}; stored in {trial.store.url()}.{older}",
        tables=(
            Table(("hyper-parameter", "value"), tuple(settings), words=2, title="experiment"),
            Table(("runs", *(shown(name, 40) for name in names)), tuple(runs), title="runs by class"),
            *((Table(("decision", "runs"), tuple(trust), title="trust of the training runs"),) if trust else ()),
        ),
    )


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={each}" for key, each in value.items()) or "–"
    return "–" if value is None else str(value)


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
      CimlError: when there is no such experiment, or no result.
      IntegrityError: when a stored file was altered.
    """
    names = list(dict.fromkeys(experiments)) or experiment_names(store)
    for name in experiments:
        load_experiment(store, name)
    trials = [(trial, trial.predictions()) for trial in stored_trials(store, names, datasets)]
    if not trials:
        raise CimlError(_nothing(store, names, datasets))
    if missing := set(datasets) - {trial.dataset for trial, _ in trials}:
        raise CimlError(_nothing(store, names, sorted(missing)))
    root = open_store(folder)
    if len(trials) == 1:
        return save(root, result_page(*trials[0]))
    links = {}
    for done, (trial, found) in enumerate(trials):
        progress("pages", done, len(trials) + 1)
        subfolder = f"{trial.dataset}/{trial.experiment}"
        save(root.child(subfolder), result_page(trial, found))
        links[trial.experiment, trial.dataset] = quote(f"{subfolder}/{PAGE}")
    return save(root, comparison_page(trials, links))


def _nothing(store: Store, names: Sequence[str], datasets: Sequence[str]) -> str:
    of = f" of {names[0]}" if len(names) == 1 else f" of {len(names)} experiments"
    on = f" on {', '.join(datasets)}" if datasets else ""
    dataset = datasets[0] if datasets else "NAME"
    which = names[0] if len(names) == 1 else "EXPERIMENT"
    remedy = f"ciml experiment train --experiment {which} --dataset {dataset}"
    return f"no result{of}{on} in {store.url()}: {remedy}"
