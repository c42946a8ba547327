"""What is drawn of an experiment's results, as numbers: curves, errors, shares with what costs nothing beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.evaluation.metrics import wilson
from training.evaluation.scores import answers, scores
from training.experiments.results import Predictions

#: Ends the name of what one number does by itself.
ALONE = " alone"
#: Classes, jobs or experiments that a plot of bars names.
MOST_BARS = 20
#: Points of a curve: of longer ones, evenly chosen ones.
MOST_POINTS = 400

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Bar:
    """A share with its 95 % interval, None where it cannot be said, and what it stands beside.

    Attributes:
      name: may come from outside.
      value, low, high: 0 to 1.
      runs: that it is of; None where that says nothing.
      beside: what costs nothing, by what it is.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    runs: int | None = None
    beside: Mapping[str, float] = field(default_factory=dict)

    @property
    def percent(self) -> tuple[float, float, float]:
        """The value in per cent, and how far its interval goes below and above; 0 where that is not known."""
        value = self.value or 0.0
        below, above = (0.0 if each is None else abs(each - value) for each in (self.low, self.high))
        return 100 * value, 100 * below, 100 * above


@dataclass(frozen=True)
class Curves:
    """Precision-recall and ROC curve of a class against all others.

    Attributes:
      name: of the class.
      runs: of the class.
      recall, precision: float64 [n], along falling thresholds.
      false_positive, true_positive: float64 [m], the same.
      pr_auc, roc_auc: the areas below, by scikit-learn.
      share: of the class in the runs: the precision of a guess.
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
    """The classes that have curves, for they occur and are not all that occurs; the one of the most runs first."""
    counts = np.bincount(found.labels, minlength=len(found.classes))
    return [label for label in np.argsort(-counts, kind="stable").tolist() if 0 < counts[label] < len(found.labels)]


def curves(found: Predictions, most: int | None = None) -> list[Curves]:
    """Return the curves of the classes that are `curved`, or of the first so many."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    clean, _ = answers(found.probabilities)
    out = []
    for label in curved(found)[:most]:
        own, given = found.labels == label, clean[:, label]
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
    """Return the `training.evaluation.scores.scores` of one answer for all runs: the class shares of the training runs.

    Its accuracy is the base rate. There are no intervals.

    Args:
      result: of a trial; it knows how many runs of each class were trained on.
      found: its scores whose runs are asked, by their confusion matrix.
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

    Of more than ``most`` classes, those with the fewest runs become one.
    """
    names, counts = list(confusion["classes"]), np.array(confusion["rows_are_labels"], np.int64)
    if len(names) <= most:
        return names, counts
    order = np.lexsort((-counts.sum(axis=0), -counts.sum(axis=1)))
    kept = np.sort(order[: most - 1])
    place = np.full(len(names), len(kept))
    place[kept] = np.arange(len(kept))
    out = np.zeros((most, most), np.int64)
    np.add.at(out, (place[:, None], place[None, :]), counts)
    return [*(names[at] for at in kept), f"{len(names) - len(kept)} others"], out


def errors_by_class(found: Figures, baselines: Figures) -> list[Bar]:
    """Return the share of each class's runs that were taken for another (Wilson's interval), the largest first."""
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
    """Return an accuracy beside the base rate, and beside what one number does."""
    return _bar(name, found["accuracy"], found["runs"], _beside(found["base_rate"], baselines, "accuracy"))


def f1_bar(name: str, found: Figures, baselines: Figures, guess: Figures) -> Bar:
    """Return a macro F1 beside that of a `constant` answer, and beside what one number does."""
    return _bar(name, found["macro"]["f1"], found["runs"], _beside(guess["macro"]["f1"], baselines, "macro", "f1"))


def _bar(name: str, figure: Figures, runs: int, beside: Mapping[str, float]) -> Bar:
    return Bar(name, figure["value"], figure["low"], figure["high"], runs, beside)


def _beside(base: Figures, baselines: Figures, *path: str) -> dict[str, float]:
    told = {"base rate": base["value"]}
    for number, each in baselines.items():
        for key in path:
            each = each[key]
        told[f"{number}{ALONE}"] = each["value"]
    return {name: value for name, value in told.items() if value is not None}


def slice_bars(slices: Figures) -> list[Bar]:
    """The accuracy by job or provider, the one of the most runs first, beside the share of its most frequent class; not
    where each has one class alone, such as providers where they are the classes."""
    alone = all(one["majority"] in (1.0, None) for one in slices.values())
    bars = [
        Bar(
            name, one["value"], one["low"], one["high"], one["runs"],
            {} if alone else {"its most frequent class": one["majority"]},
        )
        for name, one in slices.items()
    ]  # fmt: skip
    return sorted(bars, key=lambda bar: (-(bar.runs or 0), bar.name))


def fold_bars(folds: Figures) -> list[Bar]:
    """Return the accuracy of each fold beside its base rate; last their mean, with Student's interval."""
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
    """Loss and accuracy by pass, float64 [epochs], for ``train`` and, where it was looked at, ``dev``; {} without."""
    told = result["training"].get("history") or {}
    return {
        name: {
            split: np.array(told[key], np.float64)
            for split, key in (("train", name), ("dev", f"val_{name}"))
            if key in told
        }
        for name in ("loss", "accuracy")
        if name in told
    }


def calibration_bars(calibration: Figures) -> list[tuple[float, Bar]]:
    """For each bin of confidence that has runs its mean confidence, and how many of its runs were right (Wilson)."""
    out = []
    for each in calibration["bins"]:
        hits = round(each["accuracy"] * each["runs"])
        low, high = wilson(hits, each["runs"])
        out.append((each["confidence"], Bar(f"{each['low']:.1f}", each["accuracy"], low, high, each["runs"])))
    return out


def first_by(bars: Sequence[Bar]) -> Bar | None:
    """Return the bar of the largest value, of equal ones the first."""
    return max((bar for bar in bars if bar.value is not None), key=lambda bar: bar.value or 0.0, default=None)
