"""Calibrates the sets of classes of verdicts. A set holds the run's class with a stated probability, its coverage.

The sets are those of split conformal prediction. The *score* of a run for a class is 1 - the probability that the model
gives to the class. A run's set contains the classes for which its score is usual among the calibration runs of its
*group*: a job with many runs is a group, and all other jobs are one together (Mondrian prediction).

A model's assets store the scores of the calibration runs, from which `ciml.verdict_rules` derives the sets by counting.
The library crepes computes the same sets, as a check. A run too far outside of the ranges of the learned runs has all
classes in its set.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ciml.errors import IntegrityError
from ciml.events.records import RunFacts
from ciml.serving.decimals import shortest_decimals
from ciml.transforms.examples.prepare import subject_of
from ciml.verdict_rules import MAX_SCORES, POOLED, Group, LearnedRanges, VerdictRules, parts_outside

#: The share of runs like the learned ones that the ranges accept. With a higher share, the strangest of a few dozen
#: runs would set the limit, at up to a hundred times the width of a range.
SHARE = 0.95
#: Least number of calibration runs for a job's own sets: with so many, the coverage varies by about 0.03.
GROUP_RUNS = 100
#: Least number of calibration runs of each class of a group for sets whose coverage holds for each class.
CLASS_RUNS = 50
#: Least number of pooled calibration runs with an output, and of those without, for own sets of each. Of fewer than 20
#: runs, a single wrong one leaves all classes possible at a coverage of 0.9.
OUTPUT_RUNS = 20
#: Most calibration runs for which the sets of `ciml.verdict_rules` are compared with those of crepes.
_COMPARED_RUNS = 500


def make_rules(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.integer],
    jobs: Sequence[str],
    classes: Sequence[str],
    *,
    coverage: float,
    calibration: Mapping[str, Any],
    without_output: NDArray[np.bool_] | None = None,
    without_telemetry: NDArray[np.float32] | None = None,
) -> VerdictRules:
    """Calibrate the sets of classes.

    Args:
      probabilities: calibrated, float32 [n, C], of runs that neither model nor calibrator learned from.
      labels: int [n].
      jobs: of each run.
      classes: names of the C classes.
      coverage: the share of runs whose class shall be in their set, below 1.
      calibration: how the probabilities were calibrated, for reports.
      without_output: bool [n], the runs without an output; None for a model that takes none. Of the pooled runs, they
        are compared with each other if `OUTPUT_RUNS` of these have an output, and as many have none.
      without_telemetry: the same probabilities when the model sees no telemetry of the runs; None for a model that
        gives no verdicts without it.

    Raises:
      IntegrityError: if `ciml.verdict_rules` and crepes disagree on the sets of these runs.
    """
    jobs_with_sets = job_groups(jobs)
    group_of = np.array([job if job in jobs_with_sets else POOLED for job in jobs], object)
    label_scores = _nonconformity_scores(probabilities)[np.arange(len(labels)), labels]
    is_apart = _compared_apart(group_of == POOLED, without_output)
    groups: dict[str, Group] = {}
    for name in (POOLED, *sorted(jobs_with_sets)):
        is_member = (group_of == name) & ~is_apart
        groups[name] = _make_group(label_scores[is_member], labels[is_member], classes)
    apart = _make_group(label_scores[is_apart], labels[is_apart], classes) if is_apart.any() else None
    rules = VerdictRules(tuple(classes), coverage, dict(calibration), groups, without_output=apart)
    _check_by_crepes(rules, probabilities, jobs, is_apart)
    if without_telemetry is not None and without_output is not None:
        has_output = ~without_output
        withheld_scores = _nonconformity_scores(without_telemetry)[np.arange(len(labels)), labels]
        group = _make_group(withheld_scores[has_output], labels[has_output], classes)
        rules = rules.replace(without_telemetry=group if group.runs else None)
    return rules.replace(keeps_likely=True)


def _compared_apart(is_pooled: NDArray[np.bool_], without_output: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Return which runs without an output are compared with each other, bool [n]: none if a part has too few runs."""
    if without_output is None:
        return np.zeros_like(is_pooled)
    is_apart: NDArray[np.bool_] = is_pooled & without_output
    fewest = min(int(is_apart.sum()), int((is_pooled & ~without_output).sum()))
    return is_apart if fewest >= OUTPUT_RUNS else np.zeros_like(is_pooled)


def job_groups(jobs: Sequence[str]) -> set[str]:
    """Return the jobs with their own sets: the largest, as long as `GROUP_RUNS` runs remain for all other jobs.

    Args:
      jobs: the job of each run.
    """
    remaining_runs = len(jobs)
    groups: set[str] = set()
    for job, runs in sorted(Counter(jobs).items(), key=lambda item: (-item[1], item[0])):
        if runs >= GROUP_RUNS and remaining_runs - runs >= GROUP_RUNS:
            groups.add(job)
            remaining_runs -= runs
    return groups


def _make_group(label_scores: NDArray[np.float64], labels: NDArray[np.integer], classes: Sequence[str]) -> Group:
    """Build a group from the scores that its runs have for their own class, and from their labels.

    The scores are kept by class if each class has `CLASS_RUNS` runs, else together.
    """
    counts = np.bincount(labels, minlength=len(classes))
    shares = counts / max(len(labels), 1)
    if counts.min() >= CLASS_RUNS:
        scores = {name: _stored_scores(label_scores[labels == label]) for label, name in enumerate(classes)}
    else:
        scores = {POOLED: _stored_scores(label_scores)}
    return Group(len(labels), dict(zip(classes, shares.tolist(), strict=True)), scores)


def _stored_scores(scores: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the scores in ascending order; of more than `MAX_SCORES`, a reproducible random sample."""
    if len(scores) > MAX_SCORES:
        scores = np.random.default_rng(0).choice(scores, MAX_SCORES, replace=False)
    return tuple(np.sort(scores).tolist())


def _nonconformity_scores(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the scores of runs for each class by crepes, float64 [n, C]: 1 - the probability of the class."""
    from crepes.extras import hinge

    scores: NDArray[np.float64] = hinge(shortest_decimals(probabilities))
    return scores


def _check_by_crepes(
    rules: VerdictRules, probabilities: NDArray[np.float32], jobs: Sequence[str], is_apart: NDArray[np.bool_]
) -> None:
    """Raise `IntegrityError` if crepes and `ciml.verdict_rules` disagree on the sets of evenly spread runs."""
    rows = np.linspace(0, len(jobs) - 1, min(len(jobs), _COMPARED_RUNS)).round().astype(int)
    compared_jobs = [jobs[row] for row in rows]
    by_crepes = sets_by_crepes(rules, probabilities[rows], compared_jobs, is_apart[rows])
    shares_of_rows = shortest_decimals(probabilities[rows]).tolist()
    for job, shares, apart, is_in_set in zip(compared_jobs, shares_of_rows, is_apart[rows], by_crepes, strict=True):
        group = rules.compared_with(job, without_output=bool(apart))
        set_by_rules = rules.set_of(group, dict(zip(rules.classes, shares, strict=True)))
        set_by_crepes = tuple(rules.classes[label] for label in np.flatnonzero(is_in_set))
        if set_by_rules != set_by_crepes:
            raise IntegrityError(
                f"the set of a calibration run of {job!r:.80} is {set_by_rules}, but crepes' is {is_in_set}"
            )


def sets_by_crepes(
    rules: VerdictRules,
    probabilities: NDArray[np.float32],
    jobs: Sequence[str],
    without_output: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Return the sets of runs by crepes, bool [n, C].

    Args:
      rules: hold the scores of the calibration runs.
      probabilities: float32 [n, C].
      jobs: of each run.
      without_output: bool [n], the runs without an output; None if all have one.
    """
    from crepes import ConformalClassifier

    scores = _nonconformity_scores(probabilities)
    is_in_set = np.zeros(probabilities.shape, bool)
    lacks = np.zeros(len(jobs), bool) if without_output is None else without_output
    compared = [rules.compared_with(job, without_output=bool(flag)) for job, flag in zip(jobs, lacks, strict=True)]
    for group in filter(None, (*rules.groups.values(), rules.without_output)):
        rows = np.flatnonzero([compared_group is group for compared_group in compared])
        for label, class_name in enumerate(rules.classes):
            calibration_scores = group.scores_of(class_name)
            classifier = ConformalClassifier()
            classifier.fit(np.array(calibration_scores))
            # Without smoothing: with it, a set would depend on a random number.
            sets = classifier.predict_set(scores[rows, label : label + 1], confidence=rules.coverage, smoothing=False)
            is_in_set[rows, label] = sets[:, 0] == 1
    return is_in_set


def learned_ranges(
    means: NDArray[np.float64], runs: Sequence[RunFacts], features: Sequence[str]
) -> LearnedRanges | None:
    """Compute the ranges of runs, and how far outside of them a new run may be, by conformal prediction.

    The distance of each run from the ranges of all other subjects is computed; a subject is a change, or a run without
    one. The limit is the distance that `SHARE` of these do not exceed. The ranges of all runs are at least as wide, so
    at most 1 - `SHARE` of runs like these are outside. None for a single subject, which leaves no distances.

    Args:
      means: float64 [n, F], by `ciml.transforms.examples.prepare.run_means`.
      runs: facts of the n runs.
      features: names of the F features.
    """
    names = [subject_of(run.project, run.change, run.run_id) for run in runs]
    if len(set(names)) < 2:
        return None
    _, subjects = np.unique(np.array(names, object), return_inverse=True)
    low_of_others = _low_of_others(means, subjects)
    high_of_others = -_low_of_others(-means, subjects)
    distances = np.sort(parts_outside(means, low_of_others, high_of_others).max(axis=1))
    rank = min(math.ceil(SHARE * (len(distances) + 1)), len(distances))
    low = tuple(means.min(axis=0).tolist())
    high = tuple(means.max(axis=0).tolist())
    return LearnedRanges(len(runs), tuple(features), low, high, limit=float(distances[rank - 1]))


def _low_of_others(means: NDArray[np.float64], subjects: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return for each run the least mean of each feature among the runs of all other subjects, float64 [n, F].

    That is the least mean of all runs, except for the runs of the subject that has it: for these, it is the least mean
    of the subject that comes second.

    Args:
      means: float64 [n, F].
      subjects: int64 [n], the subject of each run, numbered from 0; at least two.
    """
    low_of_subject = np.full((int(subjects.max()) + 1, means.shape[1]), np.inf)
    np.minimum.at(low_of_subject, subjects, means)
    lowest_subject = low_of_subject.argmin(axis=0)
    lowest, second_lowest = np.sort(low_of_subject, axis=0)[:2]
    return np.asarray(np.where(subjects[:, np.newaxis] == lowest_subject, second_lowest, lowest), np.float64)
