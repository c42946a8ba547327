"""The neighbours of failed runs: the finished runs of other changes on the same machines, in the hour before.

Only rows that precede a run in the raw manifest count, with the outcomes and the trust that they were stored with. So
the figures are those that were known when the run was stored, and no later event changes them.

Untrusted runs do not count. They displace no place and no figures of runs that are believed more, because anybody can
send some that fail.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from ciml.events.outcomes import FAILED
from ciml.events.records import RunFacts
from ciml.limits import MAX_NEAR_FOUND, MAX_NEAR_PLACES, MAX_NEAR_RUNS
from ciml.runs.causes import StandingMap
from ciml.runs.run_log import PROVED, TRUSTED, RunDelta, RunRecord

#: How long before a run's end its neighbours ended, microseconds.
NEAR_WITHIN_US = 3_600_000_000
#: The label with the name of a run's machine, where a recorder or a listing has one.
NODE = "node"
#: Names the format and the limits of `NearbyRuns.encode`: states of the same deltas and jobs are equal if this is.
NEIGHBOURS_KIND = (
    f"neighbours 2, {NEAR_WITHIN_US} us, {MAX_NEAR_RUNS} runs, {MAX_NEAR_PLACES} places, {MAX_NEAR_FOUND} found"
)
#: Outcomes that count: others are not evidence about machine or code.
_COUNTED = FAILED | {"success"}


class NearbyRuns:
    """The neighbours of the failed runs in the deltas of a raw manifest that were added.

    Args:
      selects: returns whether the neighbours of a job's runs are asked for. The runs of all jobs are neighbours.
    """

    def __init__(self, selects: Callable[[str], bool]) -> None:
        self._selects = selects
        self._finished: OrderedDict[tuple[str, ...], deque[_FinishedRun]] = OrderedDict()  # trusted runs by place
        self._near = StandingMap[str, Neighbours](MAX_NEAR_FOUND)

    def add(self, delta: RunDelta) -> None:
        """Add the next delta. Its rows count in their order."""
        for record in delta.runs:
            self._add_row(record, is_reclaim=False)
        for record in delta.reclaims:
            self._near.pop(record.mention.run_id)  # the neighbours of the row that this one replaces
            self._add_row(record, is_reclaim=True)
        for change in delta.trust_changes:
            self._change_trust(change.run_id, change.trust.trusted)

    def of(self, run_id: str) -> Neighbours | None:
        """Return the neighbours of a failed run; None if they are unknown."""
        return self._near.get(run_id)

    def encode(self) -> bytes:
        """Return the state by the deltas that were added, for `restore`."""
        finished = [(place, list(runs)) for place, runs in self._finished.items()]
        return msgspec.msgpack.encode((finished, self._near.lists()))

    def restore(self, state: bytes) -> None:
        """Continue after the deltas that were added before `encode`. Raises `msgspec.DecodeError` for other bytes."""
        finished, near = msgspec.msgpack.decode(state, type=_NearState)
        self._finished = OrderedDict((place, deque(runs, MAX_NEAR_RUNS)) for place, runs in finished)
        self._near.restore(near)

    def _change_trust(self, run_id: str, trusted: bool) -> None:
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
        finished = self._finished.get(place, ())
        change = (facts.project, facts.change) if facts.change else (facts.run_id,)
        if facts.outcome in FAILED and self._selects(facts.build_name):
            nearby = [
                run for run in finished if end_us - NEAR_WITHIN_US < run.end_us <= end_us and run.change != change
            ]
            neighbours = Neighbours(sum(run.failed for run in nearby), len(nearby))
            self._near.put(facts.run_id, neighbours, record.standing)
        if record.trust.trusted:
            self._add_finished(place, _FinishedRun(end_us, facts.outcome in FAILED, change), is_reclaim=is_reclaim)

    def _add_finished(self, place: tuple[str, ...], run: _FinishedRun, *, is_reclaim: bool) -> None:
        runs = self._finished.setdefault(place, deque(maxlen=MAX_NEAR_RUNS))
        self._finished.move_to_end(place)
        if not (is_reclaim and run in runs):  # a row that completes a trusted one is the same run
            runs.append(run)
        if len(self._finished) > MAX_NEAR_PLACES:
            self._finished.popitem(last=False)


class Neighbours(NamedTuple):
    """The finished runs of other changes near a run: how many failed, of how many."""

    failed: int
    runs: int


class _FinishedRun(NamedTuple):
    """A finished run at a place. Runs with an equal ``change`` are not neighbours of each other."""

    end_us: int
    failed: bool
    change: tuple[str, ...]


_Near = list[tuple[str, Neighbours]]
#: The runs of each place, and the neighbours of the failed runs of each standing.
_NearState = tuple[list[tuple[tuple[str, ...], list[_FinishedRun]]], tuple[_Near, _Near, _Near]]


def place_of(facts: RunFacts) -> tuple[str, ...]:
    """Return where a run was executed: its machine where known, else provider and region; () where neither is."""
    if node := facts.labels.get(NODE, ""):
        return facts.source, facts.provider, facts.region, node
    return (facts.source, facts.provider, facts.region) if facts.provider else ()
