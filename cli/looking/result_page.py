"""The page of one experiment's results on one data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cli.looking import result_plots as plots
from cli.looking.drawing import Plot, runs_of, shown
from cli.looking.page import Page, Section, Table, Tile
from cli.looking.results import (
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
from training.estimators import ESTIMATORS
from training.experiment import Experiment
from training.results import Predictions, Stored
from training.scores import BY_CLASS

#: Rows of a table of jobs, groups or classes.
MOST_ROWS = 100
_CALLED = {"precision": "precision", "recall": "recall", "f1": "F1", "roc_auc": "ROC-AUC", "pr_auc": "PR-AUC"}


def result_page(trial: Stored, found: Predictions | None) -> Page:
    """All that is stored of a trial. ``found``: its predictions, None where they are not there any more."""
    folds = [section for number, each in enumerate(trial.folds, 1) for section in _folded(number, each)]
    title = f"{trial.experiment} on {trial.dataset}"
    result = trial.result
    if result is None:
        lead = "Cross-validated only: it is not trained on all training runs yet, and the test runs are unread."
        return Page(title, lead, _fold_tiles(trial.folds[0]), tuple(folds))
    test, baselines = result["test"], result["baselines"]
    lead = (
        f"{_what(result['experiment'])}, trained on {runs_of(test['trained_on'])} and tested on {runs_of(test['runs'])}"
        " that were held out. Intervals are of 95 %."
    )
    if not test["runs"]:
        return Page(
            title, f"{lead} Without test runs there are no figures.", (), (*_learned(result), *folds, _made(trial))
        )
    guess = constant(result, test)
    sections = [
        Section(
            "Figures",
            "Base rate: the same answer for all runs, the shares of the classes among the training runs. "
            + "".join(f"{name.capitalize()} alone: {each['what']}. " for name, each in baselines.items()),
            tables=(metrics_table("on the test runs", test, guess, baselines), *_dev(result)),
        ),
        Section("Classes", tables=_classes(test, guess, baselines), plots=_class_plots(test, baselines)),
        _curves(found),
        Section("Can its probabilities be trusted?", plots=(plots.calibration_plot(test["calibration"]),)),
        *_learned(result),
        *(_sliced(number, fact, each) for number, (fact, each) in enumerate(test["slices"].items(), 1)),
        *_elsewhere(trial),
        *folds,
        _made(trial),
    ]
    return Page(title, lead, _tiles(result, guess), tuple(sections))


def figure(value: float | None) -> str:
    """Three digits, or a dash for what is not known."""
    return "–" if value is None else f"{value:.3f}"


def interval(told: Figures) -> str:
    """``0.363 to 0.477``, or a dash."""
    return "–" if told["low"] is None or told["value"] is None else f"{told['low']:.3f} to {told['high']:.3f}"


def _what(told: Mapping[str, Any]) -> str:
    """The estimator and what is not its default, in a line."""
    defaults = Experiment().to_json()
    own = [
        f"{key.replace('_', ' ')} {'/'.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in told.items()
        if key not in ("name", "estimator", "parameters") and value != defaults.get(key)
    ]
    own += [f"{key} {value}" for key, value in told["parameters"].items()]
    return f"{told['estimator']}{' with ' + ', '.join(own) if own else ''}"


def _tiles(result: Figures, guess: Figures) -> tuple[Tile, ...]:
    test = result["test"]
    base, macro = test["base_rate"], test["macro"]["f1"]
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


def metrics_table(title: str, found: Figures, guess: Figures, baselines: Figures) -> Table:
    """Each figure with its interval, beside that of a constant answer and of one number."""

    def row(name: str, told: Figures, base: Any, *path: str) -> tuple[str, ...]:
        return (
            name,
            figure(told["value"]),
            interval(told),
            figure(base),
            *(_of(each, *path) for each in baselines.values()),
        )

    rows = [row("accuracy", found["accuracy"], guess["accuracy"]["value"], "accuracy")]
    rows += [
        row(f"macro {_CALLED[name]}", found["macro"][name], guess["macro"][name]["value"], "macro", name)
        for name in BY_CLASS
    ]
    rows.append(row("Brier (less is better)", found["brier"], guess["brier"]["value"], "brier"))
    none = ("–",) * len(baselines)
    rows += [
        ("log loss (less is better)", figure(found["log_loss"]), "–", figure(guess["log_loss"]), *none),
        ("calibration error", figure(found["calibration"]["ece"]), "–", figure(guess["calibration"]["ece"]), *none),
    ]
    headings = ("figure", "value", "95 %", "base rate", *(f"{name} alone" for name in baselines))
    return Table(headings, tuple(rows), title=title)


def _of(told: Figures, *path: str) -> str:
    for key in path:
        told = told[key]
    return figure(told["value"])


def _dev(result: Figures) -> tuple[Table, ...]:
    if not result["dev"] or not result["dev"]["runs"]:
        return ()
    dev = result["dev"]
    return (metrics_table(f"on {runs_of(dev['runs'])} of dev", dev, constant(result, dev), {}),)


def _classes(test: Figures, guess: Figures, baselines: Figures) -> tuple[Table, Table]:
    answered, told = [], []
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
        told.append(
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
        Table(("class", "ROC-AUC", "95 %", "PR-AUC", "95 %", "of a guess", *alone), tuple(told), title=title),
    )


def _first(drawn: int, of: int, what: str) -> str:
    return f"the first {drawn} of {of} {what}" if drawn < of else ""


def _class_plots(test: Figures, baselines: Figures) -> tuple[Plot, ...]:
    return plots.confusion_plot(test["confusion"]), plots.errors_plot(errors_by_class(test, baselines))


def _curves(found: Predictions | None) -> Section:
    title = "How well classes are told apart"
    if found is None:
        return Section(title, "The file of the predictions is not there any more, so there are no curves.")
    of = len(curved(found))
    if not of:
        return Section(title, "All test runs are of one class: there is nothing to tell apart.")
    return Section(title, plots=(plots.curves_plot(curves(found, plots.MOST_CURVES), of),))


def _learned(result: Figures) -> tuple[Section, ...]:
    told = history(result)
    if not told:
        return (Section("Learning", "No curve: this estimator does not learn by passes over the runs."),)
    best = result["training"].get("best_epoch")
    return (Section("Learning", plots=(plots.learning_plot(told, best if "dev" in told["loss"] else None),)),)


def _sliced(number: int, fact: str, slices: Figures) -> Section:
    bars = slice_bars(slices)
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
    table = Table(headings, tuple(rows), title=_first(len(rows), len(bars), f"by {shown(fact)}"))
    return Section(f"By {shown(fact)}", tables=(table,), plots=(plots.slices_plot(number, fact, bars),))


def _elsewhere(trial: Stored) -> tuple[Section, ...]:
    result = trial.result
    known = [each for each in trial.elsewhere if each["test"]["runs"]]
    if result is None or not trial.elsewhere:
        return ()
    accuracies: list[Bar] = []
    f1s: list[Bar] = []
    for name, each in ((f"{trial.dataset}, its own", result), *((each["dataset"], each) for each in known)):
        guess = constant(result, each["test"])
        accuracies.append(accuracy_bar(name, each["test"], each["baselines"]))
        f1s.append(f1_bar(name, each["test"], each["baselines"], guess))
    rows = []
    for each in trial.elsewhere:
        test, left = each["test"], each["left_out"]
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
        "data set", "runs", "accuracy", "95 %", "base rate", "one number alone", "macro F1",
        "left out: trained on · of no known class",
    )  # fmt: skip
    drawn = (plots.elsewhere_plot([("accuracy", accuracies), ("macro F1", f1s)]),) if known else ()
    return (Section("On other data sets", tables=(Table(headings, tuple(rows)),), plots=drawn),)


def _folded(number: int, folds: Figures) -> tuple[Section, ...]:
    bars, mean, pooled = fold_bars(folds), folds["mean"], folds["pooled"]
    grouped = any(fold["held_out"] for fold in folds["folds"])
    rows = [
        (
            f"{place}",
            *([_listed(fold["held_out"])] if grouped else []),
            f"{fold['accuracy']['runs']:,}",
            figure(fold["accuracy"]["value"]),
            interval(fold["accuracy"]),
            figure(fold["base_rate"]["value"]),
            figure(fold["f1"]),
            "",
        )
        for place, fold in enumerate(folds["folds"], 1)
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
    title = f"Cross-validation: {len(rows) - 1} folds by {shown(folds['by'])}"
    text = "The training runs divided; the test runs took no part. Choose between experiments by this."
    table = Table(headings, tuple(rows), words=1 + grouped)
    return (Section(title, text, tables=(table,), plots=(plots.folds_plot(number, folds["by"], bars),)),)


def _listed(names: Sequence[str], most: int = 12) -> str:
    further = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name, 60) for name in names[:most]) + further


def _fold_tiles(folds: Figures) -> tuple[Tile, ...]:
    mean, base = folds["mean"], folds["pooled"]["base_rate"]
    return (
        Tile("mean accuracy of the folds", figure(mean["accuracy"]["value"]), interval(mean["accuracy"])),
        Tile("base rate", figure(base["value"]), f"always {shown(base['class'])}"),
        Tile("mean macro F1", figure(mean["f1"]["value"]), interval(mean["f1"])),
    )


def _made(trial: Stored) -> Section:
    """How the model came to be, so that it can be made again."""
    result = trial.result or {}
    snapshot, experiment = result["snapshot"], result["experiment"]
    known = ESTIMATORS.get(experiment["estimator"])
    told = [
        (key.replace("_", " "), _plain(value))
        for key, value in experiment.items()
        if key != "name" and (known is None or key in known.keys)
    ]
    names = list(snapshot["counts"]["train"])[:MOST_ROWS]
    runs = [(role, *(f"{snapshot['counts'][role][name]:,}" for name in names)) for role in ("train", "dev", "test")]
    trust = [(f"let in by {rule}", f"{count:,}") for rule, count in snapshot["rules"].items()]
    trust += [(f"left out: {reason}", f"{count:,}") for reason, count in snapshot["untrusted"].items()]
    trust += [(f"excluded: {reason}", f"{count:,}") for reason, count in snapshot["excluded"].items()]
    older = f" Older results of it on this data set that are stored: {trial.older}." if trial.older else ""
    spans = "1 span" if len(snapshot["spans"]) == 1 else f"{len(snapshot['spans'])} spans"
    return Section(
        "How it was made",
        f"Runs {snapshot['digest']}, {spans}; stored in {trial.store.url()}.{older}",
        tables=(
            Table(("hyper-parameter", "value"), tuple(told), words=2, title="the experiment"),
            Table(("runs", *(shown(name, 40) for name in names)), tuple(runs), title="by class"),
            *((Table(("trust", "runs"), tuple(trust), title="whom it learned from"),) if trust else ()),
        ),
    )


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={each}" for key, each in value.items()) or "–"
    return "–" if value is None else str(value)
