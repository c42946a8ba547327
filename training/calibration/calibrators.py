"""Calibrators of probabilities, and the sets of classes that a run may have.

A calibrator maps a model's probabilities to calibrated ones, in numpy and in a model's graph. Both forms compute in
float64 and round once, so they agree in float32's last digit.

The sets have a stated coverage: conformal prediction by crepes, Mondrian by job. The scores of crepes' calibration are
stored in the model's assets; `ciml.verdict_rules` gets crepes' sets from them by counting. A run outside of the ranges
of the learned runs, by more than a run like these may be, has all classes in its set.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ciml.errors import IntegrityError
from ciml.events.records import RunFacts
from ciml.transforms.examples.prepare import subject_of
from ciml.verdict_rules import MAX_SCORES, POOLED, Group, LearnedRanges, VerdictRules, parts_outside

#: Of runs like the learned ones, this share counts as like them. A higher one makes the limit that of the strangest run
#: among some dozens: a hundred times the width of a range.
SHARE = 0.95
#: Calibration runs of a job with sets of its own: then the coverage varies by about 0.03.
GROUP_RUNS = 100
#: Calibration runs of each class of a group from which on the coverage holds for each class.
CLASS_RUNS = 50


def learned_ranges(
    means: NDArray[np.float64], runs: Sequence[RunFacts], features: Sequence[str]
) -> LearnedRanges | None:
    """Return the ranges of runs; None if all are of one change, so that nothing says how far another one may be.

    The limit is that of conformal prediction: each run's distance from the ranges of the runs of all other changes is
    computed, and a new run may be as far as all but some of these. Since the ranges of all runs are at least as wide,
    runs like these are outside at most as often as `SHARE` says.

    Args:
      means: float64 [n, F], by `ciml.transforms.examples.prepare.run_means`.
      runs: facts of the n runs.
      features: names of the F features.
    """
    names = [subject_of(run.project, run.change, run.run_id) for run in runs]
    if len(set(names)) < 2:
        return None
    _, subject = np.unique(np.array(names, object), return_inverse=True)
    low, low_of_others = _least(means, subject)
    high, high_of_others = (-values for values in _least(-means, subject))
    distances = np.sort(parts_outside(means, low_of_others, high_of_others).max(axis=1))
    rank = min(math.ceil(SHARE * (len(distances) + 1)), len(distances))
    return LearnedRanges(
        len(runs), tuple(features), tuple(low.tolist()), tuple(high.tolist()), float(distances[rank - 1])
    )


def _least(means: NDArray[np.float64], subject: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the least values of all runs [F], and for each run those of the runs of other subjects [n, F]."""
    by_subject = np.full((int(subject.max()) + 1, means.shape[1]), np.inf)
    np.minimum.at(by_subject, subject, means)
    least, second = np.sort(by_subject, axis=0)[:2]
    first = by_subject.argmin(axis=0)
    return least, np.where(subject[:, None] == first, second, least)


def job_groups(jobs: Sequence[str]) -> set[str]:
    """Return the jobs that are compared with their own runs only. All others together keep `GROUP_RUNS` runs too."""
    left = len(jobs)
    own = set[str]()
    for job, runs in sorted(Counter(jobs).items(), key=lambda item: (-item[1], item[0])):
        if runs >= GROUP_RUNS and left - runs >= GROUP_RUNS:
            own.add(job)
            left -= runs
    return own


def make_rules(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.integer],
    jobs: Sequence[str],
    classes: Sequence[str],
    *,
    coverage: float,
    calibration: Mapping[str, Any],
) -> VerdictRules:
    """Calibrate the sets of classes.

    Args:
      probabilities: calibrated, float32 [n, C], of runs that neither model nor calibrator learned from.
      labels: int [n].
      jobs: of each run.
      classes: names of the C classes.
      coverage: the share of runs whose class shall be in their set, below 1.
      calibration: how the probabilities were calibrated, for reports.

    Raises:
      IntegrityError: if `ciml.verdict_rules` and crepes disagree on the sets of these runs.
    """
    own = job_groups(jobs)
    group_of = np.array([job if job in own else POOLED for job in jobs], object)
    scores = _scores(probabilities)
    scores_of_own = scores[np.arange(len(labels)), labels]
    groups: dict[str, Group] = {}
    for name in (POOLED, *sorted(own)):
        inside = np.flatnonzero(group_of == name)
        counts = np.bincount(labels[inside], minlength=len(classes))
        by_class = bool(counts.min() >= CLASS_RUNS)
        scores_by_class = {
            kind: tuple(sorted(_some(scores_of_own[inside[labels[inside] == label] if by_class else inside])))
            for label, kind in (enumerate(classes) if by_class else [(-1, POOLED)])
        }
        shares = counts / max(len(inside), 1)
        groups[name] = Group(len(inside), dict(zip(classes, shares.tolist(), strict=True)), scores_by_class)
    rules = VerdictRules(tuple(classes), coverage, dict(calibration), groups)
    _compare(rules, probabilities, jobs)
    return rules


def sets_by_crepes(rules: VerdictRules, probabilities: NDArray[np.float32], jobs: Sequence[str]) -> NDArray[np.bool_]:
    """Return which classes each run may have, bool [n, C], by crepes from the same scores.

    Args:
      rules: with the scores.
      probabilities: float32 [n, C].
      jobs: of each run.
    """
    from crepes import ConformalClassifier

    scores = _scores(probabilities)
    is_in_set = np.zeros(probabilities.shape, bool)
    for name, group in rules.groups.items():
        rows = np.flatnonzero([rules.group_of(job) == name for job in jobs])
        for label, kind in enumerate(rules.classes):
            classifier = ConformalClassifier()
            classifier.fit(np.array(group.scores[kind if kind in group.scores else POOLED]))
            # Without smoothing: with it, a set would depend on a random number.
            sets = classifier.predict_set(scores[rows, label : label + 1], confidence=rules.coverage, smoothing=False)
            is_in_set[rows, label] = sets[:, 0] == 1
    return is_in_set


def _compare(rules: VerdictRules, probabilities: NDArray[np.float32], jobs: Sequence[str]) -> None:
    """Raise `IntegrityError` unless crepes and `ciml.verdict_rules` agree on some of the runs."""
    sampled = np.linspace(0, len(jobs) - 1, min(len(jobs), 500)).round().astype(int)
    names = [jobs[row] for row in sampled]
    by_crepes = sets_by_crepes(rules, probabilities[sampled], names)
    for row, (job, shares) in enumerate(zip(names, decimals(probabilities[sampled]).tolist(), strict=True)):
        by_rules = rules.set_of(job, dict(zip(rules.classes, shares, strict=True)))
        if by_rules != tuple(name for name, inside in zip(rules.classes, by_crepes[row], strict=True) if inside):
            raise IntegrityError(
                f"the set of a calibration run of {job!r:.80} is {by_rules}, but crepes' is {by_crepes[row]}"
            )


def decimals(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return each float32 as the shortest decimal that reads back as it: predictions record these numbers."""
    flat = [float(str(value)) for value in probabilities.astype(np.float32).reshape(-1)]
    return np.array(flat, np.float64).reshape(probabilities.shape)


def _scores(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return crepes' non-conformity scores of each class, float64 [n, C]."""
    from crepes.extras import hinge

    scores: NDArray[np.float64] = hinge(decimals(probabilities))
    return scores


def _some(scores: NDArray[np.float64]) -> list[float]:
    """Return at most `MAX_SCORES` of the scores, drawn reproducibly."""
    if len(scores) > MAX_SCORES:
        scores = np.random.default_rng(0).choice(scores, MAX_SCORES, replace=False)
    return list(map(float, scores))


Method = Literal["temperature", "isotonic"]

#: The least probability, before and after: the smallest normal float32. TensorFlow may take smaller ones for 0.
LEAST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Temperature:
    """Divides the logits by a temperature; above 1 the answers become less certain. Keeps the order of the classes.

    Attributes:
      temperature: above 0.
    """

    temperature: float
    method: Method = "temperature"

    def apply(self, probabilities: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return calibrated probabilities float32 [n, C], rows that sum to 1, of probabilities [n, C]."""
        logits = np.log(np.maximum(probabilities.astype(np.float64), LEAST)) / self.temperature
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        calibrated = np.maximum(shares / shares.sum(axis=1, keepdims=True), LEAST)
        return calibrated.astype(np.float32)  # type: ignore[no-any-return]

    def graph(self, probabilities: Any) -> Any:
        """Return the same for a tensor float32 [n, C], as TensorFlow operations that a served model may have."""
        import tensorflow as tf

        logits = tf.math.log(tf.maximum(tf.cast(probabilities, tf.float64), LEAST)) / self.temperature
        shares = tf.exp(logits - tf.reduce_max(logits, axis=1, keepdims=True))
        shares = shares / tf.reduce_sum(shares, axis=1, keepdims=True)
        return tf.cast(tf.maximum(shares, LEAST), tf.float32)

    def to_json(self) -> dict[str, Any]:
        return {"method": self.method, "temperature": self.temperature}


@dataclass(frozen=True)
class Isotonic:
    """Maps the probability of each class by a rising line of its own, then scales the row to a sum of 1.

    Attributes:
      lines: for each class the points (x, y), float64 [k, 2] with rising x from `LEAST`, and y above 0; k at least 2.
    """

    lines: tuple[NDArray[np.float64], ...]
    method: Method = "isotonic"

    def apply(self, probabilities: NDArray[np.floating]) -> NDArray[np.float32]:
        clipped = np.maximum(probabilities.astype(np.float64), LEAST)
        columns = [np.interp(values, *line.T) for line, values in zip(self.lines, clipped.T, strict=True)]
        mapped = np.stack(columns, axis=1)
        calibrated = mapped / mapped.sum(axis=1, keepdims=True)
        return calibrated.astype(np.float32)  # type: ignore[no-any-return]

    def graph(self, probabilities: Any) -> Any:
        import tensorflow as tf

        clipped = tf.maximum(tf.cast(probabilities, tf.float64), LEAST)
        columns = []
        for number, line in enumerate(self.lines):
            x, y = (tf.constant(column, tf.float64) for column in line.T)
            values = clipped[:, number]
            index = tf.clip_by_value(tf.searchsorted(x, values, side="right") - 1, 0, len(line) - 2)
            x_at = tf.gather(x, index)
            y_at = tf.gather(y, index)
            share = tf.clip_by_value((values - x_at) / (tf.gather(x, index + 1) - x_at), 0.0, 1.0)
            columns.append(y_at + (tf.gather(y, index + 1) - y_at) * share)
        mapped = tf.stack(columns, axis=1)
        return tf.cast(mapped / tf.reduce_sum(mapped, axis=1, keepdims=True), tf.float32)

    def to_json(self) -> dict[str, Any]:
        return {"method": self.method, "points": [len(line) for line in self.lines]}


#: A fitted calibrator.
Calibrator = Temperature | Isotonic
