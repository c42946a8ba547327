"""What other runs say of a failed run: its cause by reruns of the same code, and what else failed near it.

The cause is ``code`` or ``machine``.

A run that failed, and passed when its job ran again on the same code, was failed by its machine (or by a test that
does not always pass); one that failed again was failed by its code. Attempts belong together where they share
``attempt_of``, or source, project, pipeline, job and the tested commit (or change and patch set). The result follows
from the raw manifest alone, up to the delta that was added last.

Anybody can run a job on a commit that is under review. So attempts have a limit for each standing, and a run depends on
attempts of its own standing and of higher ones alone.

Its neighbours are the finished runs of other changes on the same machines, in the hour before its end. Only rows that
precede a run in the raw manifest count, with the outcomes and the trust that they were stored with. So the figures are
those that were known when the run was stored, and no later event changes them. Untrusted runs do not count. They
displace no place and no figures of runs that are believed more: anybody can send some that fail.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

import msgspec

from ciml.events.outcomes import CAUSE, CODE, FAILED, MACHINE
from ciml.events.records import RunFacts
from ciml.limits import MAX_CAUSE_ATTEMPTS, MAX_CAUSE_RUNS, MAX_NEAR_FOUND, MAX_NEAR_PLACES, MAX_NEAR_RUNS
from ciml.runs.run_log import PROVED, STANDINGS, TRUSTED, RunDelta, RunRecord, StandingMap, standing_of

#: A later rerun says little: what the job downloads has changed meanwhile. Seven days, in microseconds.
RERUN_WITHIN_US = 7 * 86_400_000_000
#: What `Causes.encode` depends on beside the deltas and the selection.
CAUSES_KIND = f"causes 2, {MAX_CAUSE_ATTEMPTS} attempts, {MAX_CAUSE_RUNS} runs"
#: How long before a run's end its neighbours ended, microseconds.
NEAR_WITHIN_US = 3_600_000_000
#: The label with the name of a run's machine, where a recorder or a listing has one.
NODE = "node"


class Attempt(NamedTuple):
    """One execution of a job, as far as causes depend on it.

    Attributes:
      time_us: its start (its end where unknown), epoch microseconds.
      outcome: as in `RunFacts`; "" without one.
      trusted: whether it is trusted, by its event and the updates since.
      proved: whether a receiver proved who sent its event.
      series: keys of the series that it belongs to.
      has_own: whether its event names the cause.
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
    """Return the cause of a failed attempt by the others of the same code; "" where they do not decide.

    Later attempts decide: if one passed, the machine; if none passed, the code, where any attempt failed too. A pass
    before it contradicts the code, and is no proof of the machine. An attempt says nothing of one of a higher standing.
    """
    if attempt.outcome not in FAILED:
        return ""
    counted = [
        rival
        for rival in others
        if rival.standing >= attempt.standing and abs(rival.time_us - attempt.time_us) <= RERUN_WITHIN_US
    ]
    passed = [rival.time_us for rival in counted if rival.outcome == "success"]
    if any(time_us > attempt.time_us for time_us in passed):
        return MACHINE
    return CODE if not passed and any(rival.outcome in FAILED for rival in counted) else ""


def series_of(facts: RunFacts) -> tuple[bytes, ...]:
    """Return the keys of the series of a run: none where the tested code is unknown."""
    parts = []
    if facts.attempt_of:
        parts.append(("attempts", facts.source, facts.build_name, facts.attempt_of))
    code = ("commit", facts.head) if facts.head else ("change", facts.change, facts.patchset)
    if all(code):
        parts.append((*code, facts.source, facts.project, facts.pipeline, facts.build_name))
    return tuple(
        hashlib.blake2b("\0".join(part).encode("utf-8", "surrogatepass"), digest_size=16).digest() for part in parts
    )


_Attempts = list[tuple[str, Attempt]]
#: The attempts of each standing.
_Lists = tuple[_Attempts, _Attempts, _Attempts]


class Causes:
    """The causes of runs by their reruns, for the deltas of a raw manifest that were added.

    Args:
      selects: whether a job's runs count.
      given: causes that reviewers gave, by run id. They come before the run's own event and its reruns.

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
        self._series: dict[tuple[bytes, int], dict[str, None]] = {}  # by series and standing, in the order of attempts

    def add(self, delta: RunDelta) -> set[str]:
        """Add the next delta; return the ids of the runs whose cause may have changed."""
        changed: set[str] = set()
        related: set[str] = set()  # to runs as they were before
        for record in delta.rows:
            facts = record.facts
            related.update(self._depending(facts.run_id))  # a reclaim may leave its series
            self._forget(facts.run_id)
            if attempt := self._attempt(facts, record.trust.trusted):
                self._put(facts.run_id, attempt)
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
                self._put(change.run_id, attempt._replace(trusted=change.trust.trusted))
                changed.add(change.run_id)
        return changed.union(filter(self._counts, related), *map(self._depending, changed))

    def of(self, run_id: str) -> str:
        """Return the cause of a run that its own event does not name; "" where nothing says it."""
        if reviewed := self._given.get(run_id):
            return reviewed
        attempt = self._attempts.get(run_id)
        return "" if attempt is None or attempt.has_own else self.by_reruns(run_id)

    def is_trusted(self, run_id: str) -> bool:
        """Return whether a run is known and trusted."""
        attempt = self._attempts.get(run_id)
        return attempt is not None and attempt.trusted

    def has_own(self, run_id: str) -> bool:
        """Return whether a run's own event names its cause."""
        attempt = self._attempts.get(run_id)
        return attempt is not None and attempt.has_own

    def by_reruns(self, run_id: str) -> str:
        """Return the cause of a run by its reruns alone; "" where they do not say it."""
        attempt = self._attempts.get(run_id)
        if attempt is None:
            return ""
        rivals = {
            rival
            for key in attempt.series
            if run_id in self._last(key, attempt.standing)
            for standing in STANDINGS[attempt.standing :]
            for rival in self._last(key, standing)
        }
        reruns = (self._attempts.get(rival) for rival in rivals - {run_id})
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
        """Return the attempts of a series that count, the last ones of a standing."""
        attempts = self._series.get((series, standing), {})
        return list(islice(reversed(attempts), MAX_CAUSE_ATTEMPTS))

    def _counts(self, run_id: str) -> bool:
        attempt = self._attempts.get(run_id)
        return attempt is not None and any(run_id in self._last(key, attempt.standing) for key in attempt.series)

    def _depending(self, run_id: str) -> Iterator[str]:
        """Yield the runs whose cause may depend on a run: those of its series that are not believed more."""
        attempt = self._attempts.get(run_id)
        if attempt is not None:
            for key in attempt.series:
                for standing in STANDINGS[: attempt.standing + 1]:
                    yield from self._last(key, standing)

    def _put(self, run_id: str, attempt: Attempt) -> None:
        self._enter(run_id, attempt)
        if displaced := self._attempts.put(run_id, attempt, attempt.standing):
            self._leave(*displaced)

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


#: What `NearbyRuns.encode` depends on beside the deltas and the jobs that are asked for.
NEIGHBOURS_KIND = (
    f"neighbours 2, {NEAR_WITHIN_US} us, {MAX_NEAR_RUNS} runs, {MAX_NEAR_PLACES} places, {MAX_NEAR_FOUND} found"
)
#: Outcomes that count: others say nothing about machine or code.
_COUNTED = FAILED | {"success"}


class Neighbours(NamedTuple):
    """The finished runs of other changes near a run: how many failed, of how many."""

    failed: int
    runs: int


class _Ended(NamedTuple):
    end_us: int
    failed: bool
    change: tuple[str, ...]


_Near = list[tuple[str, Neighbours]]
#: The runs of each place, and the neighbours of the failed runs of each standing.
_NearState = tuple[list[tuple[tuple[str, ...], list[_Ended]]], tuple[_Near, _Near, _Near]]


def place_of(facts: RunFacts) -> tuple[str, ...]:
    """Return where a run was executed: its machine where known, else provider and region; () where neither is."""
    if node := facts.labels.get(NODE, ""):
        return facts.source, facts.provider, facts.region, node
    return (facts.source, facts.provider, facts.region) if facts.provider else ()


class NearbyRuns:
    """The neighbours of the failed runs in the deltas of a raw manifest that were added.

    Args:
      wants: whether a job's runs are asked for. The runs of all jobs are neighbours.
    """

    def __init__(self, wants: Callable[[str], bool]) -> None:
        self._wants = wants
        self._ended: OrderedDict[tuple[str, ...], deque[_Ended]] = OrderedDict()  # trusted runs by place
        self._near = StandingMap[str, Neighbours](MAX_NEAR_FOUND)

    def add(self, delta: RunDelta) -> None:
        """Add the next delta. Its rows count in their order."""
        for record in delta.runs:
            self._add_row(record, is_reclaim=False)
        for record in delta.reclaims:
            self._near.pop(record.mention.run_id)  # those of the row that it replaces
            self._add_row(record, is_reclaim=True)
        for change in delta.trust_changes:
            self._move(change.run_id, change.trust.trusted)

    def _move(self, run_id: str, trusted: bool) -> None:
        neighbours = self._near.get(run_id)
        standing = self._near.standing(run_id)
        if neighbours is not None and trusted != (standing == TRUSTED):
            # Where it was trusted once, runs without proof do not displace it.
            self._near.put(run_id, neighbours, TRUSTED if trusted else PROVED)

    def _add_row(self, record: RunRecord, *, is_reclaim: bool) -> None:
        facts = record.facts
        place = place_of(facts)
        end_us = facts.end_us
        if not place or end_us is None or facts.outcome not in _COUNTED:
            return
        ended = self._ended.get(place, ())
        change = (facts.project, facts.change) if facts.change else (facts.run_id,)
        if facts.outcome in FAILED and self._wants(facts.build_name):
            nearby = [run for run in ended if end_us - NEAR_WITHIN_US < run.end_us <= end_us and run.change != change]
            neighbours = Neighbours(sum(run.failed for run in nearby), len(nearby))
            self._near.put(facts.run_id, neighbours, record.standing)
        if record.trust.trusted:
            self._end(place, _Ended(end_us, facts.outcome in FAILED, change), is_reclaim=is_reclaim)

    def _end(self, place: tuple[str, ...], run: _Ended, *, is_reclaim: bool) -> None:
        runs = self._ended.setdefault(place, deque(maxlen=MAX_NEAR_RUNS))
        self._ended.move_to_end(place)
        if not (is_reclaim and run in runs):  # a row that completes a trusted one is the same run
            runs.append(run)
        if len(self._ended) > MAX_NEAR_PLACES:
            self._ended.popitem(last=False)

    def of(self, run_id: str) -> Neighbours | None:
        """Return the neighbours of a failed run; None where they are unknown."""
        return self._near.get(run_id)

    def encode(self) -> bytes:
        """Return the state by the deltas that were added, for `restore`."""
        ended = [(place, list(runs)) for place, runs in self._ended.items()]
        return msgspec.msgpack.encode((ended, self._near.lists()))

    def restore(self, state: bytes) -> None:
        """Continue after the deltas that were added before `encode`. Raises `msgspec.DecodeError` for other bytes."""
        ended, nearby = msgspec.msgpack.decode(state, type=_NearState)
        self._ended = OrderedDict((place, deque(runs, MAX_NEAR_RUNS)) for place, runs in ended)
        self._near.restore(nearby)
