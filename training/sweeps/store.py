"""The files of a sweep: its first definition, and its trials' outcomes. There is no other state.

sweeps/<sweep>/sweep.json              first: the inputs of all trials
sweeps/<sweep>/trials/000000.json      outcome of each trial, created once
sweeps/<sweep>/baselines/0.json        one-number baselines of each question
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ciml.digest import canonical_json
from ciml.errors import CimlError, IntegrityError
from ciml.storage.json_seal import seal
from ciml.storage.open import Store
from ciml.training.experiment import NORMALISATION
from ciml.training.experiments.trials import read_stored
from ciml.training.sweeps.definition import Sweep, differences
from ciml.training.sweeps.outcome import Outcome

_FORMAT = 1


def sweep_store(sweeps: Store, name: str) -> Store:
    """Return the folder of a sweep. The name is validated, since it may come from a user."""
    Sweep.from_json({"name": name, "vary": {"dataset": {"sample_interval": ["1s"]}}}, "sweep")
    return sweeps.child(name)


def begin_sweep(store: Store, sweep: Sweep, inputs: Mapping[str, Any], raw_version: Callable[[], int]) -> int:
    """Begin or resume a sweep.

    Args:
      store: its folder.
      sweep: its present file; for a begun sweep only ``trials`` may have changed.
      inputs: digests of other inputs that decide the runs; they must not change.
      raw_version: returns the raw manifest's version for a new sweep.

    Returns:
      The version of the raw manifest that its data sets are pinned to.

    Raises:
      CimlError: if a different sweep has that name.
    """
    new = {"format": _FORMAT, "sweep": sweep.to_json(), **inputs}
    first = {**new, "normalisation": NORMALISATION}
    there = read_stored(store, "sweep.json")
    if there is None:
        store.create("sweep.json", seal(canonical_json({**first, "raw_version": raw_version()})))
        there = read_stored(store, "sweep.json") or {}
    version = there.get("raw_version")
    if not isinstance(version, int) or not isinstance(there.get("sweep"), dict):
        raise IntegrityError(f"{store.url('sweep.json')} is not a sweep")
    old = {key: value for key, value in there.items() if key not in ("raw_version", "normalisation")}
    sampled = sweep.trials is not None and old["sweep"].get("trials") is not None
    if sampled:
        old["sweep"] = {**old["sweep"], "trials": sweep.trials}
    if keys := [key.removeprefix("sweep.") for key in differences(old, new)]:
        raise CimlError(
            f"sweep {sweep.name!r} was begun with another {', '.join(keys)}; choose another name (data sets are shared)"
        )
    return version


def check_normalisation(store: Store, name: str) -> None:
    """Check that a begun sweep may train further trials: all trials of a sweep are normalised alike.

    Raises:
      CimlError: if an older version of ciml began it with another normalisation.
    """
    there = read_stored(store, "sweep.json") or {}
    if there.get("normalisation", 1) != NORMALISATION:
        raise CimlError(
            f"sweep {name!r} was begun by a version of ciml that normalises otherwise: its finished trials stay "
            "readable, but new trials would not be comparable; choose another name (data sets are shared)"
        )


def read_outcome(store: Store, number: int) -> Outcome | None:
    """Read the outcome of a trial, or None. Raises `IntegrityError` for an invalid file."""
    value = read_stored(store, _path(number))
    if value is None:
        return None
    try:
        found = Outcome.from_json(value)
    except CimlError as error:
        raise IntegrityError(f"{store.url(_path(number))}: {error}") from None
    if found.number != number:
        raise IntegrityError(f"{store.url(_path(number))} belongs to trial {found.number}")
    return found


def keep_outcome(store: Store, outcome: Outcome) -> Outcome:
    """Store the outcome of a trial and return it; if another process was first, return its outcome."""
    if store.create(_path(outcome.number), seal(canonical_json(outcome.to_json()))):
        return outcome
    return read_outcome(store, outcome.number) or outcome


def read_baseline(store: Store, question: int) -> dict[str, Any] | None:
    """Read the one-number baselines of a question, or None."""
    return read_stored(store, f"baselines/{question}.json")


def keep_baseline(store: Store, question: int, found: Mapping[str, Any]) -> None:
    """Store the one-number baselines of a question once."""
    store.create(f"baselines/{question}.json", seal(canonical_json(found)))


def _path(number: int) -> str:
    return f"trials/{number:06}.json"
