"""Quarantine: exclude trusted runs that are unlike the others of their job and class, until a person releases them.

The distance of a run is that of the modified z-score (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993):
|x - median| / (1.4826 * MAD) of each feature's mean over the run, with median and MAD of the runs of its job and class.
Both resist up to half of the runs. The largest distance of a feature counts.

A quarantined run is an exclusion of `AUTHOR`, so nothing else must know of it, and a release is its revert.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ciml.data_root import StoredDataset
from ciml.errors import UnknownExclusionError
from ciml.storage import Store
from ciml.training.data.examples import read_snapshot_examples
from ciml.training.data.snapshot import facts_of_spans, snapshot_of
from ciml.training.exclusions import Exclusion, Exclusions, StoredExclusion, add, read_state, revert, stored_exclusions
from ciml.transforms.examples.prepare import run_means
from ciml.trust import TrustPolicy

#: The author of the exclusions.
AUTHOR = "ciml quarantine"
#: Least distance of a quarantined run. Of 205 recorded runs, none is so far from the others of its job.
DISTANCE = 10.0
#: Number of the latest runs of a job and class that a run is compared with, and the least number.
REFERENCE_RUNS = 500
LEAST_RUNS = 50
#: Largest share of the reference that is in quarantine.
SHARE = 0.02
#: Runs that are compared with the same reference.
_BLOCK_RUNS = 100
_MAD_TO_DEVIATION = 1.4826


class Outlier(NamedTuple):
    """A run unlike the others, by its index: the feature that is farthest from its median, and the distance."""

    run: int
    feature: int
    distance: float


def outliers(
    means: np.ndarray, groups: Sequence[str], held: frozenset[int] = frozenset(), released: frozenset[int] = frozenset()
) -> list[Outlier]:
    """Return the runs to quarantine, in order. The time is linear in the runs.

    A run is compared with the latest `REFERENCE_RUNS` of its group, itself and up to `_BLOCK_RUNS` later ones included.
    At most `SHARE` of these are held, those farthest away first. A feature whose MAD is 0 is not compared.

    Args:
      means: float64 [n, F], in the order of the runs.
      groups: job and class of each run.
      held: indices of the runs that are in quarantine. They count in the share, and are not returned.
      released: indices of the runs that a person released; they are not returned.
    """
    by_group: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        by_group.setdefault(group, []).append(index)
    chosen: list[Outlier] = []
    excluded = set(held)
    for indices in by_group.values():
        for start in range(0, len(indices), _BLOCK_RUNS):
            block = indices[start : start + _BLOCK_RUNS]
            reference = indices[max(0, start + len(block) - REFERENCE_RUNS) : start + len(block)]
            if len(reference) < LEAST_RUNS:
                continue
            room = int(SHARE * len(reference)) - sum(index in excluded for index in reference)
            candidates = [index for index in block if index not in excluded and index not in released]
            farthest = sorted(_distances(means, reference, candidates), key=lambda outlier: -outlier.distance)
            added = farthest[: max(0, room)]
            excluded |= {outlier.run for outlier in added}
            chosen += added
    return sorted(chosen)


def _distances(means: np.ndarray, reference: list[int], candidates: list[int]) -> list[Outlier]:
    """Return the candidates that are at least `DISTANCE` from the medians of a reference."""
    reference_means = means[reference]
    median = np.median(reference_means, axis=0)
    deviation = _MAD_TO_DEVIATION * np.median(np.abs(reference_means - median), axis=0)
    compared = np.flatnonzero(deviation > 0)
    if not compared.size or not candidates:
        return []
    distances = np.abs(means[candidates][:, compared] - median[compared]) / deviation[compared]
    features = distances.argmax(axis=1)
    return [
        Outlier(index, int(compared[feature]), float(row[feature]))
        for index, feature, row in zip(candidates, features, distances, strict=True)
        if row[feature] >= DISTANCE
    ]


def quarantine(dataset: StoredDataset, policy: TrustPolicy, *, now_us: int | None = None) -> list[StoredExclusion]:
    """Exclude the trusted training runs of a data set that are unlike the others of their job and class.

    Args:
      dataset: a data set; its features are compared. The exclusions hold for all data sets of its data root.
      policy: the trust policy.
      now_us: time of the exclusion, epoch microseconds; the present by default.

    Returns:
      The new exclusions. A run that was released is never excluded again.

    Raises:
      CimlError: the data set has no sealed span, or cannot be read.
    """
    state = dataset.state()
    by_quarantine = [stored for stored in read_state(dataset.root.exclusions).by_id.values() if stored.author == AUTHOR]
    held_ids = {stored.exclusion.run_id for stored in by_quarantine if stored.reverted_us is None}
    released_ids = {stored.exclusion.run_id for stored in by_quarantine} - held_ids
    by_people = Exclusions(
        tuple(
            exclusion for exclusion in stored_exclusions(dataset, state).exclusions if exclusion.run_id not in held_ids
        )
    )
    facts = facts_of_spans(dataset.raw(state), state.latest())
    snapshot = snapshot_of(dataset, state, facts, policy, by_people)
    runs, examples = read_snapshot_examples(dataset.store, snapshot, "train", "dev")
    means = run_means(examples.inputs, examples.n_windows)
    ids = [run.run_id for run in runs]
    held = frozenset(index for index, run_id in enumerate(ids) if run_id in held_ids)
    released = frozenset(index for index, run_id in enumerate(ids) if run_id in released_ids)
    unusual = outliers(means, [f"{run.build_name}\0{run.label}" for run in runs], held, released)
    features = snapshot.resolved.features
    exclusions = [
        Exclusion(f"quarantine: unusual {features[outlier.feature]}", ids[outlier.run]) for outlier in unusual
    ]
    return add(dataset.root.exclusions, exclusions, author=AUTHOR, now_us=now_us)


def in_quarantine(store: Store) -> list[StoredExclusion]:
    """Return the quarantined runs of a store, such as ``DATA/exclusions``."""
    return [stored for stored in read_state(store).active() if stored.author == AUTHOR]


def release(store: Store, run_ids: Sequence[str], *, author: str, reason: str) -> list[StoredExclusion]:
    """Release runs from quarantine: later trainings may learn from them, and they are not quarantined again.

    Args:
      store: ``DATA/exclusions``.
      run_ids: encoded ids of the runs.
      author: who releases them.
      reason: why.

    Raises:
      UnknownExclusionError: a run is not in quarantine; then none is released.
    """
    held = in_quarantine(store)
    held_ids = {stored.exclusion.run_id for stored in held}
    for run_id in run_ids:
        if run_id not in held_ids:
            raise UnknownExclusionError(f"run {run_id!r} is not in quarantine; list: ciml trust quarantine list")
    # Two trainers at a time may have excluded one run by two features.
    released = [stored.id for stored in held if stored.exclusion.run_id in set(run_ids)]
    return revert(store, released, author=author, reason=reason)
