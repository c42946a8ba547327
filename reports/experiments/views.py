"""Compute the numbers of an experiment's report: curves, errors, and shares beside their baselines. No drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ciml.intervals import wilson
from ciml.training.evaluation.scores import answers, scores
from ciml.training.experiments.results import Predictions

#: Suffix of the names of one-number baselines.
ALONE = " alone"
#: Classes, jobs or experiments that a plot of bars names.
MOST_BARS = 20
#: Points of a curve; longer curves are thinned evenly.
MOST_POINTS = 400

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Bar:
    """A share with its 95 % interval, beside its baselines.

    Attributes:
      name: label; may come from outside.
      value, low, high: 0 to 1; None if undefined.
      runs: number of runs; None to show none.
      beside: baselines by name.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    runs: int | None = None
    beside: Mapping[str, float] = field(default_factory=dict)

    @property
    def percent(self) -> tuple[float, float, float]:
        """Return the value and the lengths of its interval below and above, in per cent; 0 if unknown."""
        value = self.value or 0.0
        below, above = (0.0 if each is None else abs(each - value) for each in (self.low, self.high))
        return 100 * value, 100 * below, 100 * above


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


def curved(found: Predictions) -> list[int]:
    """Return the classes with curves: neither empty nor the only class. The class with the most runs comes first."""
    counts = np.bincount(found.labels, minlength=len(found.classes))
    return [label for label in np.argsort(-counts, kind="stable").tolist() if 0 < counts[label] < len(found.labels)]


def curves(found: Predictions, most: int | None = None) -> list[Curves]:
    """Return the curves of the `curved` classes, at most ``most``."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    clean, _ = answers(found.probabilities)
    out = []
    for label in curved(found)[:most]:
        own = found.labels == label
        given = clean[:, label]
        precision, recall, _ = precision_recall_curve(own, given, drop_intermediate=True)
        false_positive, true_positive, _ = roc_curve(own, given)
        recall, precision = _thinned(recall[::-1], precision[::-1])
        false_positive, true_positive = _thinned(false_positive, true_positive)
        areas = float(average_precision_score(own, given)), float(roc_auc_score(own, given))
        drawn = (recall, precision, false_positive, true_positive)
        out.append(Curves(found.classes[label], int(own.sum()), *drawn, *areas, float(own.mean())))
    return out


def _thinned(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    count = len(arrays[0])
    places = np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int))
    return tuple(each[places] for each in arrays)


def constant(result: Figures, found: Figures) -> dict[str, Any]:
    """Return the `ciml.training.evaluation.scores.scores` of one answer for all runs: the class shares of the training
    runs.

    Its accuracy is the base rate. There are no intervals.

    Args:
      result: result of a trial, with the number of training runs by class.
      found: scores of the same runs; the confusion matrix gives their classes.
    """
    classes = found["confusion"]["classes"]
    roles = result["snapshot"]["counts"]
    trained = np.array([roles["train"].get(name, 0) for name in classes], np.int64)
    if trained.sum() != found["trained_on"]:  # the dev runs were trained on too
        trained += np.array([roles["dev"].get(name, 0) for name in classes], np.int64)
    labels = np.repeat(np.arange(len(classes)), np.sum(found["confusion"]["rows_are_labels"], axis=1, dtype=np.int64))
    shares = np.tile(trained / max(trained.sum(), 1), (len(labels), 1))
    return scores(shares, labels, classes, np.repeat(np.arange(len(classes)), trained), resamples=0)


def folded_confusion(confusion: Figures, most: int = MOST_BARS) -> tuple[list[str], np.ndarray]:
    """Return class names and counts int64 [C, C] with the true class in rows.

    If there are more than ``most`` classes, those with the fewest runs are merged.
    """
    names = list(confusion["classes"])
    counts = np.array(confusion["rows_are_labels"], np.int64)
    if len(names) <= most:
        return names, counts
    order = np.lexsort((-counts.sum(axis=0), -counts.sum(axis=1)))
    kept = np.sort(order[: most - 1])
    index = np.full(len(names), len(kept))
    index[kept] = np.arange(len(kept))
    out = np.zeros((most, most), np.int64)
    np.add.at(out, (index[:, None], index[None, :]), counts)
    return [*(names[at] for at in kept), f"{len(names) - len(kept)} others"], out


def errors_by_class(found: Figures, baselines: Figures) -> list[Bar]:
    """Return the share of misclassified runs by class, with Wilson's interval, the largest first."""
    out = []
    for name, one in found["classes"].items():
        if not one["runs"]:
            continue
        wrong = one["runs"] - round(_value(one["recall"]) * one["runs"])
        beside = {
            f"{number}{ALONE}": 1 - _value(each["classes"][name]["recall"])
            for number, each in baselines.items()
            if name in each["classes"] and each["classes"][name]["runs"]
        }
        out.append(Bar(name, wrong / one["runs"], *wilson(wrong, one["runs"]), one["runs"], beside))
    return sorted(out, key=lambda bar: (-(bar.value or 0.0), bar.name))


def _value(figure: Any) -> float:
    return float(figure["value"] if isinstance(figure, Mapping) else figure)


def accuracy_bar(name: str, found: Figures, baselines: Figures) -> Bar:
    """Return an accuracy beside the base rate and the one-number baselines."""
    return _bar(name, found["accuracy"], found["runs"], _beside(found["base_rate"], baselines, "accuracy"))


def f1_bar(name: str, found: Figures, baselines: Figures, guess: Figures) -> Bar:
    """Return a macro F1 beside that of a `constant` answer and of the one-number baselines."""
    return _bar(name, found["macro"]["f1"], found["runs"], _beside(guess["macro"]["f1"], baselines, "macro", "f1"))


def _bar(name: str, figure: Figures, runs: int, beside: Mapping[str, float]) -> Bar:
    return Bar(name, figure["value"], figure["low"], figure["high"], runs, beside)


def _beside(base: Figures, baselines: Figures, *path: str) -> dict[str, float]:
    values = {"base rate": base["value"]}
    for number, each in baselines.items():
        for key in path:
            each = each[key]
        values[f"{number}{ALONE}"] = each["value"]
    return {name: value for name, value in values.items() if value is not None}


def slice_bars(slices: Figures) -> list[Bar]:
    """Return the accuracy by job or provider, beside the share of its most frequent class. The largest comes first.

    There is no such baseline if each slice has only one class, for example if providers are the classes.
    """
    alone = all(one["majority"] in (1.0, None) for one in slices.values())
    bars = [
        Bar(
            name,
            one["value"],
            one["low"],
            one["high"],
            one["runs"],
            {} if alone else {"its most frequent class": one["majority"]},
        )
        for name, one in slices.items()
    ]
    return sorted(bars, key=lambda bar: (-(bar.runs or 0), bar.name))


def fold_bars(folds: Figures) -> list[Bar]:
    """Return the accuracy of each fold beside its base rate, then the mean with Student's interval."""
    bars = []
    for number, fold in enumerate(folds["folds"], 1):
        name = f"fold {number}"
        if fold["held_out"]:
            name += f": {', '.join(fold['held_out'])}"
        bars.append(_bar(name, fold["accuracy"], fold["accuracy"]["runs"], _beside(fold["base_rate"], {})))
    pooled = folds["pooled"]
    return [
        *bars,
        _bar("mean of the folds", folds["mean"]["accuracy"], pooled["runs"], _beside(pooled["base_rate"], {})),
    ]


def history(result: Figures) -> dict[str, dict[str, np.ndarray]]:
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


def calibration_bars(calibration: Figures) -> list[tuple[float, Bar]]:
    """Return the mean confidence and the share of right answers (Wilson) of each non-empty bin of confidence."""
    out = []
    for each in calibration["bins"]:
        hits = round(each["accuracy"] * each["runs"])
        low, high = wilson(hits, each["runs"])
        out.append((each["confidence"], Bar(f"{each['low']:.1f}", each["accuracy"], low, high, each["runs"])))
    return out


def first_by(bars: Sequence[Bar]) -> Bar | None:
    """Return the first bar with the largest value."""
    return max((bar for bar in bars if bar.value is not None), key=lambda bar: bar.value or 0.0, default=None)
