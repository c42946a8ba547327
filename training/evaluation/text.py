"""Figures as lines of text: of a candidate, and of the results of experiments.

An accuracy is printed with its interval, next to the base rate and the one-number baselines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: A JSON object of figures.
Figures = Mapping[str, Any]
#: Names that a line lists.
_LISTED = 5


def figure_lines(metrics: Figures) -> list[str]:
    """Return the lines of a candidate's metrics (`ciml.training.evaluation.candidate.assess`); none if it is empty."""
    evaluation = metrics.get("evaluation") or {}
    accuracy = evaluation.get("accuracy")
    base = evaluation.get("base_rate")
    if not accuracy or not base:
        return []
    held_out = _runs_text(evaluation, accuracy["runs"], "held-out")
    lines = [f"accuracy {within(accuracy)} on {held_out}; base rate {within(base)}"]
    lines += [_baseline_line(number, baseline) for number, baseline in (metrics.get("baselines") or {}).items()]
    verdicts = metrics.get("verdicts")
    if verdicts and verdicts["runs"]:
        coverage = verdicts["coverage"]
        lines.append(
            f"abstention {within(verdicts['abstained'])}; coverage {within(coverage)}, stated {coverage['stated']:g}"
        )
    return lines


def _runs_text(figures: Figures, runs: int, kind: str = "") -> str:
    """Return the number of runs, and that of their changes if it is smaller: the intervals are by changes."""
    text = f"{runs} {kind} runs" if kind else f"{runs} runs"
    changes = figures.get("changes", runs)  # older results lack it
    return f"{text} of {changes} changes" if changes < runs else text


def _baseline_line(number: str, baseline: Figures) -> str:
    line = f"{number} alone {within(baseline)}"
    comparison = baseline.get("comparison") or {}
    interval = comparison.get("interval")
    if comparison.get("difference") is None or interval is None:
        return line
    low, high = interval
    return f"{line}; the model against it {comparison['difference']:+.3f} ({low:+.3f} to {high:+.3f})"


def result_lines(result: Figures) -> list[str]:
    """Return the lines of a result of `ciml.training.experiments.trials.Trial.run`."""
    lines = [f"{result['experiment']['name']} on {result['dataset']}: {training_text(result['training'])}"]
    if result["dev"]:
        lines += score_lines("dev", result["dev"])
    lines += score_lines("test", result["test"])
    if "calibration" in result:
        lines.append(calibration_line(result["calibration"]))
    if "verdicts" in result:
        lines += verdict_lines(result["verdicts"])
    return [*lines, *baseline_lines(result["baselines"]), *beaten_lines(result)]


def other_lines(result: Figures) -> list[str]:
    """Return the lines of a result of `ciml.training.experiments.trials.Trial.run_on`."""
    omitted = [f"{count} {reason.replace('_', ' ')}" for reason, count in result["left_out"].items() if count]
    line = f"the same on the test runs of {result['dataset']}"
    if omitted:
        line += f", without {', '.join(omitted)}"
    return [line, *score_lines("test", result["test"]), *baseline_lines(result["baselines"])]


def fold_lines(result: Figures) -> list[str]:
    """Return the lines of a result of `ciml.training.evaluation.cross_validation.cross_validate`."""
    mean = result["mean"]
    lines = [f"{len(result['folds'])} folds by {result['by']}, test runs unread"]
    for number, fold in enumerate(result["folds"], 1):
        line = f"  fold {number}  accuracy {_value(fold['accuracy'])}, base rate {_value(fold['base_rate'])}"
        groups = fold["held_out"]
        if groups:
            line += f"; held out {listed(groups)}"
        lines.append(line)
    lines.append(f"  mean    accuracy {within(mean['accuracy'])}; macro F1 {within(mean['f1'])}")
    lines += score_lines("pooled", result["pooled"])
    for name, scores in result.get("baselines", {}).items():
        by_folds = scores["mean"]["accuracy"]
        pooled = scores["pooled"]["macro"]["f1"]
        lines.append(f"  {name} alone: mean accuracy {within(by_folds)}; pooled macro F1 {within(pooled)}")
    return lines


def training_text(training: Figures) -> str:
    """Return the runs, epochs and steps of a training."""
    if "epochs" not in training:
        return f"{training['runs']} runs"
    text = f"{training['runs']} runs, {training['epochs']} epochs, {training['steps']} steps"
    if training["best_epoch"] != training["epochs"]:
        text += f", the best of them {training['best_epoch']}"
    return text


def score_lines(role: str, scores: Figures) -> list[str]:
    """Return the lines of the figures of some runs."""
    accuracy = scores["accuracy"]
    base = scores["base_rate"]
    macro = scores["macro"]
    if not scores["runs"]:
        return [f"  {role}: no runs"]
    base_rate = f"base rate {_value(base)} ({base['class']})"
    lines = [
        f"  {role}: {_runs_text(scores, scores['runs'])}: accuracy {within(accuracy)}, {base_rate}",
        f"    macro F1 {within(macro['f1'])}, ROC-AUC {within(macro['roc_auc'])}, PR-AUC {within(macro['pr_auc'])}",
        f"    Brier {within(scores['brier'])}, calibration error {number_text(scores['calibration']['ece'])}",
    ]
    for name in scores["confusion"]["classes"]:
        class_scores = scores["classes"][name]
        lines.append(
            f"    {name}: {class_scores['runs']} runs, precision {_value(class_scores['precision'])}, "
            f"recall {_value(class_scores['recall'])}, F1 {within(class_scores['f1'])}"
        )
    return lines


def calibration_line(calibration: Figures) -> str:
    """Return the line of a calibration: its method, and the test runs' figures without it."""
    temperature = f" {calibration['temperature']:.2f}" if "temperature" in calibration else ""
    before = calibration["before"]
    method = f"{calibration['method']}{temperature} on {calibration['fitted_to']} dev runs"
    error = number_text(before["calibration"]["ece"])
    return f"    calibrated by {method}; before: log loss {number_text(before['log_loss'])}, calibration error {error}"


def verdict_lines(verdicts: Figures) -> list[str]:
    """Return the lines of `ciml.training.evaluation.candidate.verdict_figures`."""
    if not verdicts["runs"]:
        return []
    coverage = verdicts["coverage"]
    unknown = verdicts["abstained"]
    lines = [f"    verdicts: coverage {within(coverage)}, stated {coverage['stated']:g}; unknown {within(unknown)}"]
    if (verdicts.get("outside") or {}).get("value"):  # earlier results have none
        lines.append(f"    unlike the learned runs, and so unknown: {within(verdicts['outside'])}")
    for name, cause in verdicts["causes"].items():
        figures = f"precision {within(cause['precision'])}, recall {within(cause['recall'])}"
        lines.append(f"    {name}: {cause['verdicts']} verdicts, {figures}")
    return lines


def baseline_lines(baselines: Figures) -> list[str]:
    """Return the lines of the one-number baselines on the test runs."""
    if not baselines:
        return ["  no one-number baseline: the runs have no such number here"]
    return [
        f"  {name} alone: accuracy {within(scores['accuracy'])}, macro F1 {within(scores['macro']['f1'])}"
        for name, scores in baselines.items()
    ]


def beaten_lines(result: Figures) -> list[str]:
    """Return a sentence if one number of a run is more accurate on the test runs than the result; else none."""
    if not result["test"]["runs"]:
        return []
    accuracies = {result["experiment"]["name"]: result["test"]["accuracy"]["value"]}
    baselines = {name: scores["accuracy"]["value"] for name, scores in result["baselines"].items()}
    sentence = beaten_by(accuracies, baselines)
    return [f"  {sentence}"] if sentence else []


def beaten_by(accuracies: Mapping[str, float], baselines: Mapping[str, float]) -> str:
    """Return a sentence if one number of a run is more accurate than every model; else "".

    Args:
      accuracies: of each model on the same test runs, by name.
      baselines: accuracy of each number alone on these runs, by name.
    """
    if not accuracies or not baselines:
        return ""
    number = max(baselines, key=lambda name: baselines[name])
    best = max(accuracies, key=lambda name: accuracies[name])
    if baselines[number] <= accuracies[best]:
        return ""
    models = "this model" if len(accuracies) == 1 else "every model"
    return (
        f"The {number} of a run alone is right more often than {models}: {baselines[number]:.3f}, "
        f"{best} {accuracies[best]:.3f}."
    )


def listed(names: Sequence[str]) -> str:
    """Return the first names, with a mark where there are more."""
    return ", ".join(names[:_LISTED]) + (" …" if len(names) > _LISTED else "")


def within(figure: Figures) -> str:
    """Return `figure_text` of a figure with the key ``value``, and optionally ``low`` and ``high``."""
    return figure_text(figure["value"], figure.get("low"), figure.get("high"))


def figure_text(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Return a figure with its interval: ``0.913 (0.880 to 0.938)``."""
    if value is None or low is None or high is None:
        return number_text(value)
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def number_text(value: float | None) -> str:
    """Return a number with three decimals; ``undefined`` for None."""
    return "undefined" if value is None else f"{value:.3f}"


def _value(figure: Figures) -> str:
    return number_text(figure["value"])
