"""Exclusions: which runs no model may learn from, and why.

An exclusion deletes nothing: the run stays stored, is predicted, and is in data sets. Snapshots omit it. A data root
stores its exclusions in a manifest log of additions and reverts, never edited in place. Two processes that exclude at
the same time are both stored: the losing writer of a version reloads and retries.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from ciml.data_root import DataRoot, StoredDataset
from ciml.datasets.state import DatasetState
from ciml.errors import CimlError, IntegrityError, UnknownExclusionError
from ciml.events.fields import is_clean, iso_time
from ciml.events.records import Record, RunFacts
from ciml.globs import glob_pattern
from ciml.limits import MAX_TEXT_CHARACTERS
from ciml.manifest.log import Delta, ManifestLog, catch_up, commit
from ciml.storage import Store

#: The reason of a line of ``--exclude FILE`` without one.
NO_REASON = "excluded"


class Exclusion(Record, frozen=True, omit_defaults=True, gc=False):
    """Runs to exclude: one run, or all that match each of the other fields that are set.

    ``run_id`` is the encoded run id, ``job`` a glob of jobs, ``source`` the name of a source. ``since_us`` and
    ``until_us`` (epoch microseconds) match a run that ran at some time in [since, until); a run without times matches
    neither.
    """

    reason: str
    run_id: str = ""
    job: str = ""
    source: str = ""
    since_us: int | None = None
    until_us: int | None = None

    def check(self) -> Exclusion:
        """Return the exclusion. Raises `CimlError` if it is invalid, or excludes everything."""
        for name in ("reason", "run_id", "job", "source"):
            value = getattr(self, name)
            if len(value) > MAX_TEXT_CHARACTERS or not is_clean(value):
                raise CimlError(
                    f"exclusion: {name}: {value!r:.80} is not one printable line of at most {MAX_TEXT_CHARACTERS} "
                    "characters"
                )
        if not self.reason.strip():
            raise CimlError("exclusion: reason: is empty; say why, for those who read the list")
        chosen = bool(self.job or self.source or self.since_us is not None)
        if self.run_id and chosen:
            raise CimlError("exclusion: run: cannot be combined with job, source or since; store two exclusions")
        if not self.run_id and not chosen:
            raise CimlError("exclusion: names no runs; give a run, a job, a source, or a time since when")
        if self.until_us is not None and (self.since_us is None or self.until_us <= self.since_us):
            raise CimlError("exclusion: until: want a time after since")
        return self

    @property
    def needs_facts(self) -> bool:
        """Whether it reads more of a run than its id and its job."""
        return bool(self.source) or self.since_us is not None

    def matches(self, facts: RunFacts) -> bool:
        """Return whether it excludes a run."""
        if self.run_id:
            return facts.run_id == self.run_id
        return (
            (not self.job or glob_pattern((self.job,)).fullmatch(facts.build_name) is not None)
            and self.source in ("", facts.source or facts.run_id.partition("~")[0])
            and (self.since_us is None or self._ran_meanwhile(facts))
        )

    def _ran_meanwhile(self, facts: RunFacts) -> bool:
        start = facts.end_us if facts.start_us is None else facts.start_us
        end = facts.start_us if facts.end_us is None else facts.end_us
        if start is None or end is None or self.since_us is None:
            return False
        return end >= self.since_us and (self.until_us is None or start < self.until_us)

    def describe(self) -> str:
        """Return what it excludes, in a few words: ``job tempest-*, since 2026-11-01T00:00:00Z``."""
        times = {"since": self.since_us, "until": self.until_us}
        parts = {"run": self.run_id, "job": self.job, "source": self.source}
        parts |= {name: iso_time(value) for name, value in times.items() if value is not None}
        return ", ".join(f"{name} {value}" for name, value in parts.items() if value)


@dataclass(frozen=True)
class Exclusions:
    """The exclusions that a training honours.

    Attributes:
      each: in order; of several that match a run, the first one's reason counts, that of a single run before others.
    """

    each: tuple[Exclusion, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.each)

    @cached_property
    def _by_run(self) -> dict[str, str]:
        return {exclusion.run_id: exclusion.reason for exclusion in reversed(self.each) if exclusion.run_id}

    @cached_property
    def _rules(self) -> tuple[Exclusion, ...]:
        return tuple(exclusion for exclusion in self.each if not exclusion.run_id)

    @property
    def needs_facts(self) -> bool:
        """Whether one of them reads more of a run than its id and its job."""
        return any(exclusion.needs_facts for exclusion in self._rules)

    def reason(self, facts: RunFacts) -> str | None:
        """Return why a run is excluded; None for a run that may be learned from."""
        if (reason := self._by_run.get(facts.run_id)) is not None:
            return reason
        return next((exclusion.reason for exclusion in self._rules if exclusion.matches(facts)), None)

    def to_json(self) -> Any:
        """Return the exclusions as JSON: the reasons by run id, as versions before other exclusions, or a list."""
        return [exclusion.to_json() for exclusion in self.each] if self._rules else dict(self._by_run)


def read_lines(path: str | None) -> tuple[Exclusion, ...]:
    """Return the exclusions in a file: a line is a run id, optionally followed by a blank and a reason. None: none.

    Raises:
      CimlError: the file or a line cannot be read.
    """
    return tuple(_parsed(path)) if path else ()


def _parsed(path: str) -> Iterable[Exclusion]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CimlError(f"--exclude {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    for number, line in enumerate(lines, 1):
        run_id, _, reason = line.strip().partition(" ")
        if not run_id or run_id.startswith("#"):
            continue
        try:
            yield Exclusion(reason.strip() or NO_REASON, run_id).check()
        except CimlError as error:
            raise CimlError(f"--exclude {path}, line {number}: {error}") from None


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
        kind = delta["kind"]
        time_us = delta["time_us"]
        if kind == "exclude":
            for value in delta["exclusions"]:
                number = len(self.kept) + 1
                self.kept[number] = Kept(number, _read(value, version), time_us)
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
        return [stored for stored in self.kept.values() if stored.reverted_us is None]


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
    return Exclusions(tuple(stored.exclusion for store in stores for stored in read_state(store).active()))


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
    requested = list(dict.fromkeys(exclusion.check() for exclusion in exclusions))
    state = ExclusionState()

    def build() -> Delta | None:
        there = {stored.exclusion for stored in state.active()}
        new = [exclusion.to_json() for exclusion in requested if exclusion not in there]
        return {"kind": "exclude", "time_us": _now(now_us), "exclusions": new} if new else None

    if requested:
        commit(ManifestLog(store), state, build)
    by_exclusion = {stored.exclusion: stored for stored in state.active()}
    return [by_exclusion[exclusion] for exclusion in exclusions]


def revert(store: Store, ids: Sequence[int], *, now_us: int | None = None) -> list[Kept]:
    """Revert exclusions: later trainings may learn from their runs again.

    Returns:
      The reverted exclusions, as they were in force.

    Raises:
      CimlError: an id is unknown, or was reverted before; then none is reverted.
    """
    state = ExclusionState()
    reverted = list[Kept]()

    def build() -> Delta | None:
        reverted.clear()
        for number in dict.fromkeys(ids):
            stored = state.kept.get(number)
            if stored is None or stored.reverted_us is not None:
                problem = "unknown" if stored is None else "reverted already"
                numbers = ", ".join(str(active.id) for active in state.active()) or "none"
                raise UnknownExclusionError(f"exclusion {number}: {problem}; in force: {numbers}")
            reverted.append(stored)
        return (
            {"kind": "revert", "time_us": _now(now_us), "ids": [stored.id for stored in reverted]} if reverted else None
        )

    commit(ManifestLog(store), state, build)
    return reverted


def _now(now_us: int | None) -> int:
    return time.time_ns() // 1000 if now_us is None else now_us
