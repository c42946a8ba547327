"""The causes of failed runs: their code or their machine, by other attempts of the same job on the same code.

A run that failed, and passed when its job ran again on the same code, was failed by its machine (or by a test that
does not always pass). A run that failed again was failed by its code.

Attempts form a *series* where they share ``attempt_of``, or source, project, pipeline, job and the tested commit (or
change and patch set). The result depends only on the raw manifest, up to the delta that was added last.

Anybody can run a job on a commit that is under review. So the number of attempts is limited for each standing, and the
cause of a run depends only on attempts of its own standing and of higher ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

import msgspec

from ciml.events.outcomes import CAUSE, CODE, FAILED, MACHINE
from ciml.events.records import RunFacts
from ciml.limits import MAX_CAUSE_ATTEMPTS, MAX_CAUSE_RUNS
from ciml.manifest.id_index import fingerprint
from ciml.runs.run_log import STANDINGS, RunDelta, standing_of

#: A later rerun is weak evidence: what the job downloads has changed meanwhile. Seven days, in microseconds.
RERUN_WITHIN_US = 7 * 86_400_000_000
#: Names the format and the limits of `Causes.encode`: states of the same deltas and selection are equal if this is.
CAUSES_KIND = f"causes 2, {MAX_CAUSE_ATTEMPTS} attempts, {MAX_CAUSE_RUNS} runs"

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Causes:
    """The causes of runs by their reruns, for the deltas of a raw manifest that were added.

    Args:
      selects: returns whether a job's runs are attempts, given the job's name.
      given: causes that reviewers gave, by run id. They take precedence over the run's own event and its reruns.

    Example:
      causes = Causes(definition.selects)
      for _, delta in raw.since(0):
          causes.add(delta)
      causes.of(run_id)
    """

    def __init__(self, selects: Callable[[str], bool], given: Mapping[str, str] | None = None) -> None:
        self._selects = selects
        self._given = given or {}
        self._attempts = StandingMap[str, Attempt](MAX_CAUSE_RUNS)
        # The run ids of attempts by series and standing, in the order in which they were added.
        self._series: dict[tuple[bytes, int], dict[str, None]] = {}

    def add(self, delta: RunDelta) -> set[str]:
        """Add the next delta; return the ids of the runs whose cause may have changed."""
        changed: set[str] = set()
        related: set[str] = set()  # runs that depended on a run before it left its series or its standing
        for record in delta.rows:
            facts = record.facts
            related.update(self._depending(facts.run_id))  # a reclaim replaces the attempt
            self._forget(facts.run_id)
            if attempt := self._attempt(facts, record.trust.trusted):
                changed.update(self._put(facts.run_id, attempt))
            changed.add(facts.run_id)
        for correction in delta.corrections:
            run_id = correction.mention.run_id
            attempt = self._attempts.get(run_id)
            if attempt is not None and (correction.binding or not attempt.trusted):
                self._attempts.replace(run_id, attempt._replace(outcome=correction.mention.outcome or ""))
                changed.add(run_id)
        for change in delta.trust_changes:
            if attempt := self._attempts.get(change.run_id):
                related.update(self._depending(change.run_id))
                self._forget(change.run_id)
                changed.update(self._put(change.run_id, attempt._replace(trusted=change.trust.trusted)))
                changed.add(change.run_id)
        return changed.union(filter(self._counts, related), *map(self._depending, changed))

    def of(self, run_id: str) -> str:
        """Return the cause of a run by a reviewer or by its reruns; "" if they do not decide, or its own event does."""
        if reviewed := self._given.get(run_id):
            return reviewed
        attempt = self._attempts.get(run_id)
        return "" if attempt is None or attempt.has_own else self.by_reruns(run_id)

    def is_trusted(self, run_id: str) -> bool:
        """Return whether a run is an attempt, and trusted."""
        attempt = self._attempts.get(run_id)
        return attempt is not None and attempt.trusted

    def has_own(self, run_id: str) -> bool:
        """Return whether a run's own event names its cause."""
        attempt = self._attempts.get(run_id)
        return attempt is not None and attempt.has_own

    def by_reruns(self, run_id: str) -> str:
        """Return the cause of a run by its reruns only; "" if they do not decide."""
        attempt = self._attempts.get(run_id)
        if attempt is None:
            return ""
        rerun_ids = {
            rerun_id
            for key in attempt.series
            if run_id in self._last(key, attempt.standing)
            for standing in STANDINGS[attempt.standing :]
            for rerun_id in self._last(key, standing)
        }
        reruns = (self._attempts.get(rerun_id) for rerun_id in rerun_ids - {run_id})
        return cause_of(attempt, (rerun for rerun in reruns if rerun is not None))

    def encode(self) -> bytes:
        """Return the state by the deltas that were added, for `restore`."""
        return msgspec.msgpack.encode(self._attempts.lists())

    def restore(self, state: bytes) -> None:
        """Continue after the deltas that were added before `encode`. Raises `msgspec.DecodeError` for other bytes."""
        lists = msgspec.msgpack.decode(state, type=_Lists)
        self._attempts.restore(lists)
        self._series = {}
        for attempts in lists:
            for run_id, attempt in attempts:
                self._enter(run_id, attempt)

    def _attempt(self, facts: RunFacts, trusted: bool) -> Attempt | None:
        series = series_of(facts)
        if not series or not self._selects(facts.build_name):
            return None
        time_us = facts.start_us or facts.end_us or 0
        return Attempt(time_us, facts.outcome or "", trusted, bool(facts.auth), series, CAUSE in facts.labels)

    def _last(self, series: bytes, standing: int) -> list[str]:
        """Return the attempts of a series that count: the last ones of a standing, up to the limit."""
        attempts = self._series.get((series, standing), {})
        return list(islice(reversed(attempts), MAX_CAUSE_ATTEMPTS))

    def _counts(self, run_id: str) -> bool:
        attempt = self._attempts.get(run_id)
        return attempt is not None and any(run_id in self._last(key, attempt.standing) for key in attempt.series)

    def _depending(self, run_id: str) -> Iterator[str]:
        """Yield the runs whose cause may depend on a run: the attempts of its series with no higher standing."""
        attempt = self._attempts.get(run_id)
        if attempt is not None:
            for key in attempt.series:
                for standing in STANDINGS[: attempt.standing + 1]:
                    yield from self._last(key, standing)

    def _put(self, run_id: str, attempt: Attempt) -> list[str]:
        """Add an attempt; return the ones that do not count any more, because of the limits."""
        self._enter(run_id, attempt)
        displaced_ids = [
            other
            for key in attempt.series
            for other in islice(
                reversed(self._series[key, attempt.standing]), MAX_CAUSE_ATTEMPTS, MAX_CAUSE_ATTEMPTS + 1
            )
        ]
        if displaced := self._attempts.put(run_id, attempt, attempt.standing):
            self._leave(*displaced)
            displaced_ids.append(displaced[0])
        return displaced_ids

    def _forget(self, run_id: str) -> None:
        if attempt := self._attempts.pop(run_id):
            self._leave(run_id, attempt)

    def _enter(self, run_id: str, attempt: Attempt) -> None:
        for key in attempt.series:
            self._series.setdefault((key, attempt.standing), {})[run_id] = None

    def _leave(self, run_id: str, attempt: Attempt) -> None:
        for key in attempt.series:
            place = key, attempt.standing
            del self._series[place][run_id]
            if not self._series[place]:
                del self._series[place]


class Attempt(NamedTuple):
    """The facts of a run on which causes depend.

    Attributes:
      time_us: its start (its end where unknown), epoch microseconds.
      outcome: as in `RunFacts`; "" without one.
      trusted: whether it is trusted, by its event and the updates since.
      proved: whether a receiver proved who sent its event.
      series: the keys of its series.
      has_own: whether its own event names the cause.
    """

    time_us: int
    outcome: str
    trusted: bool
    proved: bool
    series: tuple[bytes, ...]
    has_own: bool

    @property
    def standing(self) -> int:
        """How far it is believed, one of `ciml.runs.run_log.STANDINGS`."""
        return standing_of(self.trusted, self.proved)


def cause_of(attempt: Attempt, others: Iterable[Attempt]) -> str:
    """Return the cause of a failed attempt by other attempts on the same code; "" if they do not decide.

    Attempts of a lower standing, and those at a distance of more than `RERUN_WITHIN_US`, do not count. If a later
    attempt passed, the machine is the cause. If no attempt passed and another one failed, the code is. If only an
    earlier attempt passed, neither is known.
    """
    if attempt.outcome not in FAILED:
        return ""
    counted = [
        peer
        for peer in others
        if peer.standing >= attempt.standing and abs(peer.time_us - attempt.time_us) <= RERUN_WITHIN_US
    ]
    passed = [peer for peer in counted if peer.outcome == "success"]
    if any(peer.time_us > attempt.time_us for peer in passed):
        return MACHINE
    if not passed and any(peer.outcome in FAILED for peer in counted):
        return CODE
    return ""


def series_of(facts: RunFacts) -> tuple[bytes, ...]:
    """Return the keys of the series of a run; none if the tested code is unknown."""
    parts = []
    if facts.attempt_of:
        parts.append(("attempts", facts.source, facts.build_name, facts.attempt_of))
    code = ("commit", facts.head) if facts.head else ("change", facts.change, facts.patchset)
    if all(code):
        parts.append((*code, facts.source, facts.project, facts.pipeline, facts.build_name))
    return tuple(fingerprint(*part) for part in parts)


_Attempts = list[tuple[str, Attempt]]
#: The attempts of each standing.
_Lists = tuple[_Attempts, _Attempts, _Attempts]


class StandingMap(Generic[_Key, _Value]):
    """A map that keeps the last entries of each standing.

    The limit applies to each standing separately, so entries of one standing never displace those of another.

    Args:
      limit: the most entries of one standing; a further one displaces the one that was put first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: tuple[OrderedDict[_Key, _Value], ...] = tuple(OrderedDict() for _ in STANDINGS)

    def get(self, key: _Key) -> _Value | None:
        """Return the value of a key; None without one."""
        return next((entries[key] for entries in self._entries if key in entries), None)

    def standing(self, key: _Key) -> int | None:
        """Return the standing under which a key was put; None without it."""
        return next((standing for standing in STANDINGS if key in self._entries[standing]), None)

    def put(self, key: _Key, value: _Value, standing: int) -> tuple[_Key, _Value] | None:
        """Put an entry last among those of its standing; return the entry that it displaces, None without one."""
        self.pop(key)
        entries = self._entries[standing]
        entries[key] = value
        return entries.popitem(last=False) if len(entries) > self._limit else None

    def replace(self, key: _Key, value: _Value) -> None:
        """Replace the value of a present key. Its standing and its place in the order do not change."""
        entries = next(entries for entries in self._entries if key in entries)
        entries[key] = value

    def pop(self, key: _Key) -> _Value | None:
        """Remove a key; return its value, None without one."""
        return next((entries.pop(key) for entries in self._entries if key in entries), None)

    def lists(self) -> list[list[tuple[_Key, _Value]]]:
        """Return the entries of each standing, in the order in which they were put."""
        return [list(entries.items()) for entries in self._entries]

    def restore(self, lists: Iterable[Iterable[tuple[_Key, _Value]]]) -> None:
        """Replace all entries by the result of an earlier `lists`."""
        self._entries = tuple(OrderedDict(entries) for entries in lists)
