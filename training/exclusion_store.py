"""The stored exclusions of a data root: a manifest log of additions and reverts, never edited in place.

Two processes that exclude at once are both stored: the losing writer of a version reloads and retries.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from ciml.data_root import DataRoot, StoredDataset
from ciml.datasets.state import DatasetState
from ciml.errors import CimlError, IntegrityError
from ciml.manifest.log import Delta, ManifestLog, catch_up, commit
from ciml.storage.open import Store
from ciml.training.exclusions import Exclusion, Exclusions


@dataclass(frozen=True)
class Kept:
    """A stored exclusion.

    Attributes:
      id: its number, from 1, in the order of the additions.
      exclusion: the excluded runs, and the reason.
      time_us: time of the addition, epoch microseconds.
      reverted_us: time of its revert; None while it is in force.
    """

    id: int
    exclusion: Exclusion
    time_us: int
    reverted_us: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, **self.exclusion.to_json(), "time_us": self.time_us, "reverted_us": self.reverted_us}


class ExclusionState:
    """The exclusions after the last delta applied.

    Attributes:
      version: of the manifest; 0 where nothing was ever excluded.
      kept: all exclusions by id, reverted ones too.
    """

    def __init__(self) -> None:
        self.version = 0
        self.kept: dict[int, Kept] = {}

    def apply(self, version: int, delta: Delta) -> None:
        """Apply the next delta. Raises `IntegrityError` if it contradicts the earlier ones."""
        if version != self.version + 1:
            raise IntegrityError(f"exclusions: version {version} follows {self.version}")
        kind, time_us = delta["kind"], delta["time_us"]
        if kind == "exclude":
            for one in delta["exclusions"]:
                number = len(self.kept) + 1
                self.kept[number] = Kept(number, _read(one, version), time_us)
        elif kind == "revert":
            for number in delta["ids"]:
                if number not in self.kept or self.kept[number].reverted_us is not None:
                    raise IntegrityError(f"exclusions: version {version} reverts {number}, which is not in force")
                self.kept[number] = replace(self.kept[number], reverted_us=time_us)
        else:
            raise IntegrityError(f"exclusions: version {version} has the unknown kind {kind!r}; upgrade ciml")
        self.version = version

    def active(self) -> list[Kept]:
        """Return the exclusions in force, in order."""
        return [one for one in self.kept.values() if one.reverted_us is None]


def _read(value: Any, version: int) -> Exclusion:
    try:
        return msgspec.convert(value, Exclusion)
    except msgspec.ValidationError as error:
        raise IntegrityError(f"exclusions: version {version}: {error}") from None


def read_state(store: Store) -> ExclusionState:
    """Return the exclusions below ``DATA/exclusions``."""
    state = ExclusionState()
    catch_up(ManifestLog(store), state)
    return state


def stored_exclusions(dataset: StoredDataset, state: DatasetState) -> Exclusions:
    """Return the exclusions that count for a data set: of its data root, and of the one whose raw store it reads."""
    return _of_stores(dataset.exclusion_stores(state))


def exclusions_of(*roots: DataRoot) -> Exclusions:
    """Return the exclusions in force of some data roots."""
    return _of_stores([root.exclusions for root in dict.fromkeys(roots)])


def _of_stores(stores: Iterable[Store]) -> Exclusions:
    return Exclusions(tuple(kept.exclusion for store in stores for kept in read_state(store).active()))


def add(store: Store, exclusions: Sequence[Exclusion], *, now_us: int | None = None) -> list[Kept]:
    """Store exclusions; one that is in force already is not stored twice.

    Args:
      store: ``DATA/exclusions``.
      exclusions: what to exclude.
      now_us: time of the addition, epoch microseconds; the present by default.

    Returns:
      The stored exclusion of each, in the same order.

    Raises:
      CimlError: one is invalid; then none is stored.

    Example:
      add(data.exclusions, [Exclusion("disk was full", job="tempest-*", since_us=1767225600000000)])
    """
    wanted = list(dict.fromkeys(one.check() for one in exclusions))
    state = ExclusionState()

    def build() -> Delta | None:
        there = {kept.exclusion for kept in state.active()}
        new = [one.to_json() for one in wanted if one not in there]
        return {"kind": "exclude", "time_us": _now(now_us), "exclusions": new} if new else None

    if wanted:
        commit(ManifestLog(store), state, build)
    by_exclusion = {kept.exclusion: kept for kept in state.active()}
    return [by_exclusion[one] for one in exclusions]


def revert(store: Store, ids: Sequence[int], *, now_us: int | None = None) -> list[Kept]:
    """Revert exclusions: later trainings may learn from their runs again.

    Returns:
      The reverted exclusions, as they were in force.

    Raises:
      CimlError: an id is unknown, or was reverted before; then none is reverted.
    """
    state, found = ExclusionState(), list[Kept]()

    def build() -> Delta | None:
        found.clear()
        for number in dict.fromkeys(ids):
            kept = state.kept.get(number)
            if kept is None or kept.reverted_us is not None:
                what = "unknown" if kept is None else "reverted already"
                known = ", ".join(str(one.id) for one in state.active()) or "none"
                raise CimlError(f"exclusion {number}: {what}; in force: {known}")
            found.append(kept)
        return {"kind": "revert", "time_us": _now(now_us), "ids": [kept.id for kept in found]} if found else None

    commit(ManifestLog(store), state, build)
    return found


def _now(now_us: int | None) -> int:
    return time.time_ns() // 1000 if now_us is None else now_us
