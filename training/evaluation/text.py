"""A candidate's figures as text: accuracy, both baselines, abstention and coverage, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Figures = Mapping[str, Any]


def figure_lines(metrics: Figures) -> list[str]:
    """Return the lines of a candidate's metrics (see `assess`); none without a training."""
    evaluation = metrics.get("evaluation") or {}
    accuracy = evaluation.get("accuracy")
    base = evaluation.get("base_rate")
    if not accuracy or not base:
        return []
    lines = [f"accuracy {within(accuracy)} on {accuracy['runs']} held-out runs; base rate {within(base)}"]
    lines += [_baseline_line(number, baseline) for number, baseline in (metrics.get("baselines") or {}).items()]
    verdicts = metrics.get("verdicts")
    if verdicts and verdicts["runs"]:
        coverage = verdicts["coverage"]
        lines.append(
            f"abstention {within(verdicts['abstained'])}; coverage {within(coverage)}, stated {coverage['stated']:g}"
        )
    return lines


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


def figure_text(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Return a figure with its interval: ``0.913 (0.880 to 0.938)``."""
    if value is None or low is None or high is None:
        return number_text(value)
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def within(figure: Figures) -> str:
    """Return `figure_text` of a figure with ``value`` and perhaps ``low`` and ``high``."""
    return figure_text(figure["value"], figure.get("low"), figure.get("high"))


def number_text(value: float | None) -> str:
    """Return a number with three decimals; ``undefined`` for None."""
    return "undefined" if value is None else f"{value:.3f}"


def _baseline_line(number: str, baseline: Figures) -> str:
    line = f"{number} alone {within(baseline)}"
    comparison = baseline.get("comparison") or {}
    interval = comparison.get("interval")
    if comparison.get("difference") is None or interval is None:
        return line
    low, high = interval
    return f"{line}; the model against it {comparison['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
