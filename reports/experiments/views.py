"""Compute the numbers of an experiment's report: curves, errors, and shares next to their baselines. No drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ciml.reports.drawing import Estimate
from ciml.training.evaluation.metrics import prepare_probabilities, scores
from ciml.training.experiments.results import Predictions

#: Suffix of the names of one-number baselines.
ALONE = " alone"
#: Classes, jobs or experiments that a plot of bars names.
MOST_BARS = 20
#: Points of a curve; longer curves are thinned evenly.
MOST_POINTS = 400

Figures = Mapping[str, Any]
#: Metrics by pass over the training runs, float64 [epochs], by metric and by ``train`` or ``dev``.
Passes = Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Bar:
    """A share with its interval, next to its baselines.

    Attributes:
      name: label; may come from outside.
      estimate: the share and its 95 % interval, 0 to 1.
      runs: number of runs; None to show none.
      beside: baselines by name.
    """

    name: str
    estimate: Estimate
    runs: int | None = None
    beside: Mapping[str, float] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """Return the share; 0 if it is undefined."""
        return self.estimate.value or 0.0


@dataclass(frozen=True)
class Curves:
    """Precision-recall and ROC curve of a class against all others.

    Attributes:
      name: name of the class.
      runs: number of runs of the class.
      recall, precision: float64 [n], by falling threshold.
      false_positive, true_positive: float64 [m], by falling threshold.
      pr_auc, roc_auc: areas under the curves, from scikit-learn.
      share: share of the class in the runs, which is the precision of a random guess.
    """

    name: str
    runs: int
    recall: np.ndarray
    precision: np.ndarray
    false_positive: np.ndarray
    true_positive: np.ndarray
    pr_auc: float
    roc_auc: float
    share: float


def value_at(figures: Figures, *path: str) -> float | None:
    """Return the value of a metric, below the keys of its path."""
    for key in path:
        figures = figures[key]
    value: float | None = figures["value"]
    return value


def alone_names(baselines: Figures) -> list[str]:
    """Return the headings of one-number baselines."""
    return [f"{name} alone" for name in baselines]


def curved(predictions: Predictions) -> list[int]:
    """Return the classes with curves: neither empty nor the only class. The class with the most runs comes first."""
    counts = np.bincount(predictions.labels, minlength=len(predictions.classes))
    order = np.argsort(-counts, kind="stable").tolist()
    return [label for label in order if 0 < counts[label] < len(predictions.labels)]


def curves(predictions: Predictions, limit: int | None = None) -> list[Curves]:
    """Return the curves of the `curved` classes, at most ``limit``."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    probabilities = prepare_probabilities(predictions.probabilities)
    result = []
    for label in curved(predictions)[:limit]:
        member = predictions.labels == label
        probability = probabilities[:, label]
        precision, recall, _ = precision_recall_curve(member, probability, drop_intermediate=True)
        false_positive, true_positive, _ = roc_curve(member, probability)
        recall, precision = _thinned(recall[::-1], precision[::-1])
        false_positive, true_positive = _thinned(false_positive, true_positive)
        areas = float(average_precision_score(member, probability)), float(roc_auc_score(member, probability))
        lines = (recall, precision, false_positive, true_positive)
        result.append(Curves(predictions.classes[label], int(member.sum()), *lines, *areas, float(member.mean())))
    return result


def _thinned(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    count = len(arrays[0])
    places = np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int))
    return tuple(array[places] for array in arrays)


def constant(result: Figures, observed: Figures) -> dict[str, Any]:
    """Return the scores of one answer for all runs: the class shares of the training runs.

    Its accuracy is the base rate. There are no intervals.

    Args:
      result: result of a trial, with the number of training runs by class.
      observed: scores of the same runs, which give the number of runs of each class.
    """
    classes = observed["confusion"]["classes"]
    roles = result["snapshot"]["counts"]
    trained = np.array([roles["train"].get(name, 0) for name in classes], np.int64)
    if trained.sum() != observed["trained_on"]:  # the dev runs were trained on too
        trained += np.array([roles["dev"].get(name, 0) for name in classes], np.int64)
    runs = [observed["classes"][name]["runs"] for name in classes]
    labels = np.repeat(np.arange(len(classes)), runs)
    shares = np.tile(trained / max(trained.sum(), 1), (len(labels), 1))
    return scores(shares, labels, classes, np.repeat(np.arange(len(classes)), trained), resamples=0)


def folded_confusion(confusion: Figures, limit: int = MOST_BARS) -> tuple[list[str], np.ndarray]:
    """Return class names and counts int64 [C, C] with the true class in rows.

    If there are more than ``limit`` classes, those with the fewest runs are merged.
    """
    names = list(confusion["classes"])
    counts = np.array(confusion["rows_are_labels"], np.int64)
    if len(names) <= limit:
        return names, counts
    order = np.lexsort((-counts.sum(axis=0), -counts.sum(axis=1)))
    largest = np.sort(order[: limit - 1])
    index = np.full(len(names), len(largest))
    index[largest] = np.arange(len(largest))
    folded = np.zeros((limit, limit), np.int64)
    np.add.at(folded, (index[:, None], index[None, :]), counts)
    return [*(names[label] for label in largest), f"{len(names) - len(largest)} others"], folded


def errors_by_class(scores: Figures, baselines: Figures) -> list[Bar]:
    """Return the share of misclassified runs by class, with Wilson's interval, the largest first."""
    bars = []
    for name, figures in scores["classes"].items():
        runs = figures["runs"]
        if not runs:
            continue
        beside = {
            f"{number}{ALONE}": 1 - float(baseline["classes"][name]["recall"]["value"])
            for number, baseline in baselines.items()
            if name in baseline["classes"] and baseline["classes"][name]["runs"]
        }
        wrong = runs - round(figures["recall"]["value"] * runs)
        bars.append(Bar(name, Estimate.of_share(wrong, runs), runs, beside))
    return sorted(bars, key=lambda bar: (-bar.value, bar.name))


def accuracy_bar(name: str, scores: Figures, baselines: Figures) -> Bar:
    """Return an accuracy next to the base rate and the one-number baselines."""
    beside = _beside(scores["base_rate"], baselines, "accuracy")
    return Bar(name, Estimate.of(scores["accuracy"]), scores["runs"], beside)


def f1_bar(name: str, scores: Figures, baselines: Figures, guess: Figures) -> Bar:
    """Return a macro F1 next to the macro F1 of a `constant` answer and of the one-number baselines."""
    beside = _beside(guess["macro"]["f1"], baselines, "macro", "f1")
    return Bar(name, Estimate.of(scores["macro"]["f1"]), scores["runs"], beside)


def _beside(base: Figures, baselines: Figures, *path: str) -> dict[str, float]:
    values = {"base rate": base["value"]}
    values |= {f"{number}{ALONE}": value_at(baseline, *path) for number, baseline in baselines.items()}
    return {name: value for name, value in values.items() if value is not None}


def standing(results: Mapping[str, tuple[Figures, Figures]]) -> list[tuple[str, list[Bar]]]:
    """Return accuracies and macro F1s, as panels of `bars_plot`. ``results``: (result, `constant` answer) by name."""
    accuracies = [accuracy_bar(name, result["test"], result["baselines"]) for name, (result, _) in results.items()]
    f1s = [f1_bar(name, result["test"], result["baselines"], guess) for name, (result, guess) in results.items()]
    return [("accuracy", accuracies), ("macro F1", f1s)]


def slice_bars(slices: Figures) -> list[Bar]:
    """Return the accuracy by job or provider, next to the share of its most frequent class. The largest comes first.

    There is no such baseline if each slice has only one class, for example if providers are the classes.
    """
    single = all(part["majority"] in (1.0, None) for part in slices.values())
    bars = [
        Bar(name, Estimate.of(part), part["runs"], {} if single else {"its most frequent class": part["majority"]})
        for name, part in slices.items()
    ]
    return sorted(bars, key=lambda bar: (-(bar.runs or 0), bar.name))


def fold_bars(folds: Figures) -> list[Bar]:
    """Return the accuracy of each fold next to its base rate, then the mean with its interval."""
    bars = []
    for number, fold in enumerate(folds["folds"], 1):
        names = f": {', '.join(fold['held_out'])}" if fold["held_out"] else ""
        accuracy = fold["accuracy"]
        beside = _beside(fold["base_rate"], {})
        bars.append(Bar(f"fold {number}{names}", Estimate.of(accuracy), accuracy["runs"], beside))
    return [*bars, mean_bar("mean of the folds", folds)]


def mean_bar(name: str, folds: Figures) -> Bar:
    """Return the mean accuracy of a cross-validation next to the base rate, with its interval."""
    pooled = folds["pooled"]
    return Bar(name, Estimate.of(folds["mean"]["accuracy"]), pooled["runs"], _beside(pooled["base_rate"], {}))


def history(result: Figures) -> Passes:
    """Return loss and accuracy by pass, float64 [epochs], for ``train`` and ``dev``; {} without a history."""
    passes = result["training"].get("history") or {}
    return {
        name: {
            split: np.array(passes[key], np.float64)
            for split, key in (("train", name), ("dev", f"val_{name}"))
            if key in passes
        }
        for name in ("loss", "accuracy")
        if name in passes
    }


def first_by(bars: Sequence[Bar]) -> Bar | None:
    """Return the first bar with the largest value."""
    return max((bar for bar in bars if bar.estimate.value is not None), key=lambda bar: bar.value, default=None)
