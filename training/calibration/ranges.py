"""The ranges of the runs that a model learned, and how far outside of them a run like these may be."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ciml.events.records import RunFacts
from ciml.transforms.examples.split import subject_of
from ciml.verdicts import LearnedRanges, parts_outside

#: Of runs like the learned ones, this share counts as like them. A higher one makes the limit that of the strangest run
#: among some dozens: a hundred times the width of a range.
SHARE = 0.95


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
    high, high_of_others = (-each for each in _least(-means, subject))
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
