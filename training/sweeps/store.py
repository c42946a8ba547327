"""Where a sweep is: its file as it was begun, and what its trials came to. There is no other state.

sweeps/<sweep>/sweep.json              first: what all its trials rest on
sweeps/<sweep>/trials/000000.json      what each came to, created once
sweeps/<sweep>/baselines/0.json        of each question, what one number of a run can do
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ciml.digest import canonical_json
from ciml.errors import CimlError, IntegrityError
from ciml.storage.open import Store
from training.experiments.trials import read_stored
from training.sweeps.definition import Sweep, differences
from training.sweeps.outcome import Outcome

_FORMAT = 1


def sweep_store(sweeps: Store, name: str) -> Store:
    """Return the folder of a sweep. Its name is checked, for it may come from a user."""
    Sweep.from_json({"name": name, "vary": {"dataset": {"sample_interval": ["1s"]}}}, "sweep")
    return sweeps.child(name)


def begin_sweep(store: Store, sweep: Sweep, rests_on: Mapping[str, Any], raw_version: Callable[[], int]) -> int:
    """Begin a sweep, or goes on with it.

    Args:
      store: its folder.
      sweep: as its file says now; of one that was begun only ``trials`` may have changed.
      rests_on: digests of what else decides about the runs; may not change either.
      raw_version: of the raw manifest, where the sweep is new.

    Returns:
      The version of the raw manifest that its data sets are pinned to.

    Raises:
      CimlError: there is another sweep of that name.
    """
    told = {"format": _FORMAT, "sweep": sweep.to_json(), **rests_on}
    there = read_stored(store, "sweep.json")
    if there is None:
        store.create("sweep.json", canonical_json({**told, "raw_version": raw_version()}))
        there = read_stored(store, "sweep.json") or {}
    version = there.get("raw_version")
    if not isinstance(version, int) or not isinstance(there.get("sweep"), dict):
        raise IntegrityError(f"{store.url('sweep.json')} is no sweep")
    old = {key: value for key, value in there.items() if key != "raw_version"}
    sampled = sweep.trials is not None and old["sweep"].get("trials") is not None
    if sampled:
        old["sweep"] = {**old["sweep"], "trials": sweep.trials}
    if keys := [key.removeprefix("sweep.") for key in differences(old, told)]:
        raise CimlError(
            f"sweep {sweep.name!r} was begun with another {', '.join(keys)}; take another name, data sets are shared"
        )
    return version


def read_outcome(store: Store, number: int) -> Outcome | None:
    """What a trial came to; None where it has not. Raises `IntegrityError` for a file that is not what it should be."""
    value = read_stored(store, _path(number))
    if value is None:
        return None
    try:
        found = Outcome.from_json(value)
    except CimlError as error:
        raise IntegrityError(f"{store.url(_path(number))}: {error}") from None
    if found.number != number:
        raise IntegrityError(f"{store.url(_path(number))} is of trial {found.number}")
    return found


def keep_outcome(store: Store, outcome: Outcome) -> Outcome:
    """Store what a trial came to. Where another command was first, what it has stored is what the trial came to."""
    if store.create(_path(outcome.number), canonical_json(outcome.to_json())):
        return outcome
    return read_outcome(store, outcome.number) or outcome


def read_baseline(store: Store, question: int) -> dict[str, Any] | None:
    """What one number of a run can do; None where nobody has looked."""
    return read_stored(store, f"baselines/{question}.json")


def keep_baseline(store: Store, question: int, found: Mapping[str, Any]) -> None:
    """Store that, once."""
    store.create(f"baselines/{question}.json", canonical_json(found))


def _path(number: int) -> str:
    return f"trials/{number:06}.json"
