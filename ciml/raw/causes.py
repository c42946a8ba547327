"""The cause of failed runs, ``code`` or ``machine``, from reruns of the same code.

A run that failed, and passed when its job ran again on the same code, was failed by its machine (or by a test that
does not always pass); one that failed again was failed by its code. Attempts belong together where they share
``attempt_of``, or source, project, pipeline, job and the tested commit (or change and patch set). The result follows
from the raw manifest alone, up to the delta that was added last.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from ciml.events.records import RunFacts
from ciml.limits import MAX_CAUSE_ATTEMPTS, MAX_CAUSE_RUNS
from ciml.raw.run_log import RunDelta

#: The classes of the label ``cause``, and its name among a run's labels, which a run's own event may set.
CAUSES = CODE, MACHINE = "code", "machine"
CAUSE = "cause"
#: Outcomes of a run that failed; only these have a cause.
FAILED = frozenset({"failure", "timeout"})
#: A later rerun says little: what the job downloads has changed meanwhile. Seven days, in microseconds.
RERUN_WITHIN_US = 7 * 86_400_000_000
#: What `Causes.encode` depends on beside the deltas and the selection.
CAUSES_KIND = f"causes 1, {MAX_CAUSE_ATTEMPTS} attempts, {MAX_CAUSE_RUNS} runs"


class Attempt(NamedTuple):
    """One execution of a job, as far as causes depend on it.

    Attributes:
      time_us: its start (its end where unknown), epoch microseconds.
      outcome: as in `RunFacts`; "" without one.
      trusted: whether its event is trusted.
      series: keys of the series that it belongs to.
      has_own: whether its event names the cause.
    """

    time_us: int
    outcome: str
    trusted: bool
    series: tuple[bytes, ...]
    has_own: bool


def cause_of(attempt: Attempt, others: Iterable[Attempt]) -> str:
    """Return the cause of a failed attempt by the others of the same code; "" where they do not decide.

    Later attempts decide: if one passed, the machine; if none passed, the code, where any attempt failed too. A pass
    before it contradicts the code, and is no proof of the machine. An untrusted attempt says nothing of a trusted one.
    """
    if attempt.outcome not in FAILED:
        return ""
    counted = [
        other
        for other in others
        if (other.trusted or not attempt.trusted) and abs(other.time_us - attempt.time_us) <= RERUN_WITHIN_US
    ]
    passed = [other.time_us for other in counted if other.outcome == "success"]
    if any(time_us > attempt.time_us for time_us in passed):
        return MACHINE
    return CODE if not passed and any(other.outcome in FAILED for other in counted) else ""


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
        self._selects, self._given = selects, given or {}
        self._attempts: dict[str, Attempt] = {}  # in the order of their first record
        self._series: dict[bytes, deque[str]] = {}

    def add(self, delta: RunDelta) -> set[str]:
        """Add the next delta; return the ids of the runs whose cause may have changed."""
        touched: set[str] = set()
        for record in delta.rows:
            facts = record.facts
            touched.update(self._related(facts.run_id))  # a reclaim may leave its series
            self._put(facts, record.trust.trusted)
            touched.add(facts.run_id)
        for correction in delta.corrections:
            run_id = correction.mention.run_id
            if (known := self._attempts.get(run_id)) and (correction.binding or not known.trusted):
                self._attempts[run_id] = known._replace(outcome=correction.mention.outcome or "")
                touched.add(run_id)
        for changed in delta.trust_changes:
            if known := self._attempts.get(changed.run_id):
                self._attempts[changed.run_id] = known._replace(trusted=changed.trust.trusted)
                touched.add(changed.run_id)
        return touched.union(*map(self._related, touched))

    def of(self, run_id: str) -> str:
        """Return the cause of a run that its own event does not name; "" where nothing says it."""
        if given := self._given.get(run_id):
            return given
        known = self._attempts.get(run_id)
        return "" if known is None or known.has_own else self.by_reruns(run_id)

    def by_reruns(self, run_id: str) -> str:
        """Return the cause of a run by its reruns alone; "" where they do not say it."""
        known = self._attempts.get(run_id)
        if known is None:
            return ""
        return cause_of(known, (self._attempts[other] for other in self._related(run_id) if other != run_id))

    def encode(self) -> bytes:
        """Return the state by the deltas that were added, for `restore`."""
        return msgspec.msgpack.encode(list(self._attempts.items()))

    def restore(self, state: bytes) -> None:
        """Continue after the deltas that were added before `encode`. Raises `msgspec.DecodeError` for other bytes."""
        self._attempts = dict(msgspec.msgpack.decode(state, type=list[tuple[str, Attempt]]))
        self._series = {}
        for run_id, attempt in self._attempts.items():
            for key in attempt.series:
                self._series.setdefault(key, deque()).append(run_id)

    def _related(self, run_id: str) -> Iterator[str]:
        """Yield the runs of a run's series, itself included."""
        if known := self._attempts.get(run_id):
            yield from dict.fromkeys(other for key in known.series for other in self._series[key])

    def _put(self, facts: RunFacts, trusted: bool) -> None:
        self._forget(facts.run_id)
        series = series_of(facts)
        if not series or not self._selects(facts.build_name):
            return
        time_us = facts.start_us or facts.end_us or 0
        self._attempts[facts.run_id] = Attempt(time_us, facts.outcome or "", trusted, series, CAUSE in facts.labels)
        for key in series:
            ids = self._series.setdefault(key, deque())
            ids.append(facts.run_id)
            if len(ids) > MAX_CAUSE_ATTEMPTS:
                self._forget(ids[0])
        if len(self._attempts) > MAX_CAUSE_RUNS:
            self._forget(next(iter(self._attempts)))

    def _forget(self, run_id: str) -> None:
        if known := self._attempts.pop(run_id, None):
            for key in known.series:
                ids = self._series[key]
                ids.remove(run_id)
                if not ids:
                    del self._series[key]
