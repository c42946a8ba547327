"""Sets of classes that a run may have, at a stated coverage: conformal prediction by crepes, Mondrian by job.

The scores of crepes' calibration are stored in the model's assets; `ciml.verdicts` gets crepes' sets from them by
counting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ciml.errors import IntegrityError
from ciml.verdicts import MAX_SCORES, POOLED, Group, VerdictRules

#: Calibration runs of a job with sets of its own: then the coverage varies by about 0.03.
GROUP_RUNS = 100
#: Calibration runs of each class of a group from which on the coverage holds for each class.
CLASS_RUNS = 50


def job_groups(jobs: Sequence[str]) -> set[str]:
    """Return the jobs that are compared with their own runs only. All others together keep `GROUP_RUNS` runs too."""
    left, own = len(jobs), set[str]()
    for job, runs in sorted(Counter(jobs).items(), key=lambda each: (-each[1], each[0])):
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
      IntegrityError: if `ciml.verdicts` and crepes disagree on the sets of these runs.
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
        found = {
            kind: tuple(sorted(_some(scores_of_own[inside[labels[inside] == label] if by_class else inside])))
            for label, kind in (enumerate(classes) if by_class else [(-1, POOLED)])
        }
        shares = counts / max(len(inside), 1)
        groups[name] = Group(len(inside), dict(zip(classes, shares.tolist(), strict=True)), found)
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

    scores, found = _scores(probabilities), np.zeros(probabilities.shape, bool)
    for name, group in rules.groups.items():
        rows = np.flatnonzero([rules.group_of(job) == name for job in jobs])
        for label, kind in enumerate(rules.classes):
            classifier = ConformalClassifier()
            classifier.fit(np.array(group.scores[kind if kind in group.scores else POOLED]))
            # Without smoothing: with it, a set would depend on a random number.
            sets = classifier.predict_set(scores[rows, label : label + 1], confidence=rules.coverage, smoothing=False)
            found[rows, label] = sets[:, 0] == 1
    return found


def _compare(rules: VerdictRules, probabilities: NDArray[np.float32], jobs: Sequence[str]) -> None:
    """Raise `IntegrityError` unless crepes and `ciml.verdicts` agree on some of the runs."""
    some = np.linspace(0, len(jobs) - 1, min(len(jobs), 500)).round().astype(int)
    names = [jobs[row] for row in some]
    wanted = sets_by_crepes(rules, probabilities[some], names)
    for row, (job, shares) in enumerate(zip(names, decimals(probabilities[some]).tolist(), strict=True)):
        found = rules.set_of(job, dict(zip(rules.classes, shares, strict=True)))
        if found != tuple(name for name, inside in zip(rules.classes, wanted[row], strict=True) if inside):
            raise IntegrityError(
                f"the set of a calibration run of {job!r:.80} is {found}, but crepes' is {wanted[row]}"
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
