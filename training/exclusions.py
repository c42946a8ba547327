"""Exclusions: which runs no model may learn from, and why.

An exclusion deletes nothing: the run stays stored, is predicted, and is in data sets. Snapshots omit it. A data root
stores its exclusions in a manifest log of additions and reverts, never edited in place. If two processes exclude at
the same time, the losing writer reloads and retries, so both are stored.

An `Exclusion` names runs and a reason. A `StoredExclusion` is one of the log. `Exclusions` are those that apply to a
snapshot.
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
from ciml.globs import matches_any
from ciml.limits import MAX_TEXT_CHARACTERS
from ciml.manifest.log import Delta, ManifestLog, catch_up, commit
from ciml.runs.latest_runs import ran_within, source_name
from ciml.storage import Store

#: Fields of an exclusion that are globs, and those that are compared with the whole fact.
_GLOBS = ("job", "project", "branch")
_NAMES = ("source", "owner", "change")
#: The reason of a line of ``--exclude FILE`` without one.
NO_REASON = "excluded"


class Exclusion(Record, frozen=True, omit_defaults=True, gc=False):
    """Runs to exclude: one run, or all that match each of the other fields that are set.

    ``run_id`` is the encoded run id; ``job``, ``project`` and ``branch`` are globs; ``source``, ``owner`` (who started
    the run) and ``change`` are names. ``since_us`` and ``until_us`` (epoch microseconds) match a run that ran at some
    time in [since, until); a run without times matches neither.
    """

    reason: str
    run_id: str = ""
    job: str = ""
    source: str = ""
    since_us: int | None = None
    until_us: int | None = None
    project: str = ""
    branch: str = ""
    owner: str = ""
    change: str = ""

    def check(self) -> Exclusion:
        """Return the exclusion unchanged. Raises `CimlError` if it is invalid, or excludes everything."""
        for name in ("reason", "run_id", *_GLOBS, *_NAMES):
            value = getattr(self, name)
            if len(value) > MAX_TEXT_CHARACTERS or not is_clean(value):
                raise CimlError(
                    f"exclusion: {name}: {value!r:.80} is not one printable line of at most {MAX_TEXT_CHARACTERS} "
                    "characters"
                )
        if not self.reason.strip():
            raise CimlError("exclusion: reason: is empty; state the reason, for readers of the list")
        by_rule = any(getattr(self, name) for name in (*_GLOBS, *_NAMES)) or self.since_us is not None
        if self.run_id and by_rule:
            raise CimlError("exclusion: run: cannot be combined with others; store two exclusions")
        if not self.run_id and not by_rule:
            choices = ", ".join((*_GLOBS, *_NAMES))
            raise CimlError(f"exclusion: names no runs; give a run, a time since when, or one of {choices}")
        if self.until_us is not None and (self.since_us is None or self.until_us <= self.since_us):
            raise CimlError("exclusion: until: want a time after since")
        return self

    @property
    def needs_facts(self) -> bool:
        """Whether `matches` reads more of a run than its id and its job."""
        criteria = (name for name in (*_GLOBS, *_NAMES) if name != "job")
        return self.since_us is not None or any(getattr(self, name) for name in criteria)

    @property
    def is_recent(self) -> bool:
        """Whether it has a field that versions before 0.2 do not know. They would exclude every run by it."""
        return any((self.project, self.branch, self.owner, self.change))

    def matches(self, facts: RunFacts) -> bool:
        """Return whether it excludes a run."""
        if self.run_id:
            return facts.run_id == self.run_id
        return (
            (not self.job or matches_any((self.job,), facts.build_name))
            and (not self.source or source_name(facts) == self.source)
            and (not self.project or matches_any((self.project,), facts.project))
            and (not self.branch or matches_any((self.branch,), facts.branch))
            and (not self.owner or facts.owner == self.owner)
            and (not self.change or facts.change == self.change)
            and ran_within(facts, self.since_us, self.until_us)
        )

    def describe(self) -> str:
        """Describe the excluded runs in a few words: ``job tempest-*, since 2026-11-01T00:00:00Z``."""
        parts = {"run": self.run_id, **{name: getattr(self, name) for name in (*_GLOBS, *_NAMES)}}
        if self.since_us is not None:
            parts["since"] = iso_time(self.since_us)
        if self.until_us is not None:
            parts["until"] = iso_time(self.until_us)
        return ", ".join(f"{name} {value}" for name, value in parts.items() if value)


@dataclass(frozen=True)
class Exclusions:
    """The exclusions that a snapshot honours.

    Attributes:
      exclusions: in order. Of several that match a run, the one that names the run gives the reason, else the first.
    """

    exclusions: tuple[Exclusion, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.exclusions)

    @cached_property
    def _reason_by_run(self) -> dict[str, str]:
        return {exclusion.run_id: exclusion.reason for exclusion in reversed(self.exclusions) if exclusion.run_id}

    @cached_property
    def _rules(self) -> tuple[Exclusion, ...]:
        return tuple(exclusion for exclusion in self.exclusions if not exclusion.run_id)

    @property
    def needs_facts(self) -> bool:
        """Whether one of them reads more of a run than its id and its job."""
        return any(exclusion.needs_facts for exclusion in self._rules)

    def reason(self, facts: RunFacts) -> str | None:
        """Return the reason why a run is excluded; None for a run that may be learned from."""
        reason = self._reason_by_run.get(facts.run_id)
        if reason is not None:
            return reason
        return next((rule.reason for rule in self._rules if rule.matches(facts)), None)

    def to_json(self) -> Any:
        """Return the exclusions as JSON: a list, or reasons by run id (as older versions do) if each names a run."""
        return [exclusion.to_json() for exclusion in self.exclusions] if self._rules else dict(self._reason_by_run)


@dataclass(frozen=True)
class StoredExclusion:
    """A stored exclusion.

    Attributes:
      id: its number, from 1, in the order of the additions.
      exclusion: the excluded runs, and the reason.
      time_us: time of the addition, epoch microseconds.
      author: who added it; "" if that is not known.
      reverted_us: time of its revert; None while it is in force.
      reverted_by: who reverted it.
      revert_reason: why.
    """

    id: int
    exclusion: Exclusion
    time_us: int
    author: str = ""
    reverted_us: int | None = None
    reverted_by: str = ""
    revert_reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            **self.exclusion.to_json(),
            **{name: value for name, value in vars(self).items() if name != "exclusion"},
        }


def stored_exclusions(dataset: StoredDataset, state: DatasetState) -> Exclusions:
    """Return the exclusions in force for a data set: of its data root, and of the one whose raw store it reads."""
    return _of_stores(dataset.exclusion_stores(state))


def exclusions_of(*roots: DataRoot) -> Exclusions:
    """Return the exclusions in force of some data roots."""
    return _of_stores([root.exclusions for root in dict.fromkeys(roots)])


def _of_stores(stores: Iterable[Store]) -> Exclusions:
    return Exclusions(tuple(stored.exclusion for store in stores for stored in read_state(store).active()))


def read_state(store: Store) -> ExclusionState:
    """Read the exclusions of a store, such as ``DATA/exclusions``."""
    return catch_up(ManifestLog(store), ExclusionState())


def add(
    store: Store, exclusions: Sequence[Exclusion], *, author: str = "", now_us: int | None = None
) -> list[StoredExclusion]:
    """Store exclusions; one that is in force already is not stored twice.

    Args:
      store: ``DATA/exclusions``.
      exclusions: what to exclude.
      author: who excludes; "" if that is not known.
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
        active = {stored.exclusion for stored in state.active()}
        new = [exclusion.to_json() for exclusion in requested if exclusion not in active]
        kind = "exclude_by" if any(exclusion.is_recent for exclusion in requested) else "exclude"
        return {"kind": kind, "time_us": _now(now_us), "author": author, "exclusions": new} if new else None

    if requested:
        commit(ManifestLog(store), state, build)
    by_exclusion = {stored.exclusion: stored for stored in state.active()}
    return [by_exclusion[exclusion] for exclusion in exclusions]


def revert(
    store: Store, ids: Sequence[int], *, author: str = "", reason: str = "", now_us: int | None = None
) -> list[StoredExclusion]:
    """Revert exclusions: later trainings may learn from their runs again.

    Args:
      store: ``DATA/exclusions``.
      ids: of the exclusions.
      author: who reverts them; "" if that is not known.
      reason: why.
      now_us: time of the revert, epoch microseconds; the present by default.

    Returns:
      The reverted exclusions.

    Raises:
      CimlError: an id is unknown, or was reverted before; then none is reverted.
    """
    state = ExclusionState()
    numbers = list(dict.fromkeys(ids))

    def build() -> Delta | None:
        for number in numbers:
            _check_in_force(state, number)
        delta = {"kind": "revert", "time_us": _now(now_us), "author": author, "reason": reason, "ids": numbers}
        return delta if numbers else None

    commit(ManifestLog(store), state, build)
    return [state.by_id[number] for number in numbers]


def _check_in_force(state: ExclusionState, number: int) -> None:
    stored = state.by_id.get(number)
    if stored is None or stored.reverted_us is not None:
        problem = "unknown" if stored is None else "reverted already"
        active = ", ".join(str(entry.id) for entry in state.active()) or "none"
        raise UnknownExclusionError(f"exclusion {number}: {problem}; in force: {active}")


def _now(now_us: int | None) -> int:
    return time.time_ns() // 1000 if now_us is None else now_us


def read_lines(path: str | None) -> tuple[Exclusion, ...]:
    """Read the exclusions of a file: a line is a run id, optionally followed by a blank and a reason.

    Blank lines and lines that begin with ``#`` are ignored. Without a path there are no exclusions.

    Raises:
      CimlError: the file or a line cannot be read.
    """
    if not path:
        return ()
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CimlError(f"--exclude {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    exclusions = []
    for number, line in enumerate(lines, 1):
        run_id, _, reason = line.strip().partition(" ")
        if not run_id or run_id.startswith("#"):
            continue
        try:
            exclusions.append(Exclusion(reason.strip() or NO_REASON, run_id).check())
        except CimlError as error:
            raise CimlError(f"--exclude {path}, line {number}: {error}") from None
    return tuple(exclusions)


class ExclusionState:
    """The exclusions after the last delta applied.

    Attributes:
      version: of the manifest; 0 if nothing was ever excluded.
      by_id: all exclusions by id, reverted ones too.
    """

    def __init__(self) -> None:
        self.version = 0
        self.by_id: dict[int, StoredExclusion] = {}

    def apply(self, version: int, delta: Delta) -> None:
        """Apply the next delta. Raises `IntegrityError` if it contradicts the earlier ones."""
        kind = delta["kind"]
        time_us = delta["time_us"]
        if kind in ("exclude", "exclude_by"):
            for exclusion in msgspec.convert(delta["exclusions"], list[Exclusion]):
                number = len(self.by_id) + 1
                self.by_id[number] = StoredExclusion(number, exclusion, time_us, delta.get("author", ""))
        elif kind == "revert":
            for number in delta["ids"]:
                if number not in self.by_id or self.by_id[number].reverted_us is not None:
                    raise IntegrityError(f"exclusions: version {version} reverts {number}, which is not in force")
                self.by_id[number] = replace(
                    self.by_id[number],
                    reverted_us=time_us,
                    reverted_by=delta.get("author", ""),
                    revert_reason=delta.get("reason", ""),
                )
        else:
            raise IntegrityError(f"exclusions: version {version} has the unknown kind {kind!r}; upgrade ciml")

    def active(self) -> list[StoredExclusion]:
        """Return the exclusions in force, in order."""
        return [stored for stored in self.by_id.values() if stored.reverted_us is None]
