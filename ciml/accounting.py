"""Accounting of the raw store: each (event, run) is exactly one of raw row, repeat, correction, ignored, dead letter.

`reconcile` computes the delta that a set of batches adds to the state after the last delta. It is pure, and it is
what `ciml.manifests.commit` calls again whenever another writer came first. So a batch that is delivered twice, a
worker that wakes up late and a second committer change nothing: what is covered already is dropped, and what is known
already is counted as a repeat.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from ciml.errors import IntegrityError
from ciml.manifests import Delta
from ciml.offsets import RangeSet
from ciml.records import Batch, Candidate, Kind, OffsetRange, Origin, Outcome, RawFile

#: The list of a delta that holds the records of each kind.
LISTS: Mapping[Kind, str] = {
    "run": "runs",
    "repeat": "repeats",
    "correction": "corrections",
    "ignored": "ignored",
    "dead_letter": "dead_letters",
    "deferred": "deferred",
}
#: Reasons of ignored outcomes that say how a run ended. For a run that is stored they are corrections.
_FINAL_IGNORED = frozenset({"cancelled", "skipped", "node_lost", "never_started"})


class KnownRun(NamedTuple):
    """A run that has its raw row: the outcome that counts now, and the digest of the telemetry that was first."""

    outcome: str
    digest: str


class Index(Protocol):
    """The ids that were ever seen. The one thing here that grows with every event, so it can be replaced."""

    def has_event(self, event_key: str, run_id: str) -> bool:
        """Whether this event was seen to name this run (or, with an empty run id, was seen and not understood)."""

    def add_event(self, event_key: str, run_id: str) -> None: ...

    def run(self, run_id: str) -> KnownRun | None: ...

    def put_run(self, run_id: str, run: KnownRun) -> None: ...

    def run_count(self) -> int: ...


class MemoryIndex:
    """All ids in memory: about 150 bytes a (event, run), 300 more a run."""

    def __init__(self) -> None:
        self._events: set[bytes] = set()
        self._runs: dict[str, KnownRun] = {}

    def has_event(self, event_key: str, run_id: str) -> bool:
        return _fingerprint(event_key, run_id) in self._events

    def add_event(self, event_key: str, run_id: str) -> None:
        self._events.add(_fingerprint(event_key, run_id))

    def run(self, run_id: str) -> KnownRun | None:
        return self._runs.get(run_id)

    def put_run(self, run_id: str, run: KnownRun) -> None:
        self._runs[run_id] = run

    def run_count(self) -> int:
        return len(self._runs)


def _fingerprint(event_key: str, run_id: str) -> bytes:
    # 128 bits: with 10^9 ids the chance that any two meet is below 10^-20
    text = event_key.encode("utf-8", "surrogatepass") + b"\0" + run_id.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()


class OpenLetter(NamedTuple):
    """A dead letter that no later delta has closed: where it is recorded, and why it is one."""

    version: int
    reason: str


class RawState:
    """What the deltas of the raw manifest add up to.

    Attributes:
      version: that of the last delta applied, 0 at first.
      topic_ids: the broker's UUID of each topic as it was first seen ("" where the broker has none).
      deferred: open deferred outcomes by (origin, run id): logs that were not there yet.
      dead_letters: open dead letters by (origin, run id).
      counts: how many (event, run) there are by (kind, reason). The sum is the number of all that were ever covered.
      trust: raw rows by (trusted, rule), as decided at ingestion.
      time_us: when the last delta was committed.
    """

    def __init__(self, index: Index | None = None) -> None:
        self.version = 0
        self.index: Index = index if index is not None else MemoryIndex()
        self.topic_ids: dict[str, str] = {}
        self.deferred: dict[tuple[Origin, str], Outcome] = {}
        self.dead_letters: dict[tuple[Origin, str], OpenLetter] = {}
        self.counts: Counter[tuple[str, str]] = Counter()
        self.trust: Counter[tuple[bool, str]] = Counter()
        self.time_us = 0
        self._covered: dict[tuple[str, int], RangeSet] = {}

    def covered(self, topic: str, partition: int) -> RangeSet:
        """The offsets of a partition that are settled. Not to be changed by the caller."""
        return self._covered.get((topic, partition), _NOTHING)

    def partitions(self) -> Iterator[tuple[str, int, RangeSet]]:
        """(topic, partition, covered offsets) of all that was ever read, in order."""
        for (topic, partition), ranges in sorted(self._covered.items(), key=lambda item: item[0]):
            yield topic, partition, ranges

    def due(self, now_us: int) -> list[Candidate]:
        """The deferred runs whose log is to be tried (again) now, as candidates, the longest overdue first."""
        due = [outcome for outcome in self.deferred.values() if (outcome.not_before_us or 0) <= now_us]
        due.sort(key=lambda outcome: (outcome.not_before_us or 0, str(outcome.origin), outcome.run_id))
        return [retry(outcome) for outcome in due]

    def next_due_us(self) -> int | None:
        """When the next deferred run is due; None without one."""
        return min((outcome.not_before_us or 0 for outcome in self.deferred.values()), default=None)

    def totals(self) -> dict[str, int]:
        """How many (event, run) there are of each kind, zeros included."""
        totals = dict.fromkeys(LISTS, 0)
        for (kind, _), count in self.counts.items():
            totals[kind] += count  # type: ignore[index]
        return {str(kind): count for kind, count in totals.items()}

    def apply(self, version: int, delta: Delta) -> None:
        """Takes in the delta that follows.

        Raises:
          IntegrityError: when it does not follow, or contradicts what came before (a run twice, a topic made anew).
        """
        if version != self.version + 1:
            raise IntegrityError(f"raw manifest: version {version} after {self.version}")
        for topic, entry in delta["offsets"].items():
            known = self.topic_ids.get(topic, "")
            check_topic_id(topic, known, entry["id"])
            self.topic_ids[topic] = known or entry["id"]
            for partition, ranges in entry["partitions"].items():
                covered = self._covered.setdefault((topic, int(partition)), RangeSet())
                for start, end in ranges:
                    covered.add(start, end)
        for origin, run_id in delta["closes"]:
            self._close((Origin.from_json(origin), run_id))
        for kind, name in LISTS.items():
            for record in delta[name]:
                self._apply_record(version, kind, record)
        self.version = version
        self.time_us = delta["time_us"]

    def _apply_record(self, version: int, kind: Kind, record: dict[str, Any]) -> None:
        mention = record.get("mention", {})
        run_id: str = mention.get("run_id", "")
        reason: str = record.get("reason", "")
        if record.get("event_key"):
            self.index.add_event(record["event_key"], run_id)
        if kind == "run":
            if self.index.run(run_id) is not None:
                raise IntegrityError(f"raw manifest: version {version} holds the run {run_id} again")
            self.index.put_run(run_id, KnownRun(mention.get("outcome", ""), record["file"]["digest"]))
            trust = record.get("trust", {})
            self.trust[trust.get("trusted", False), trust.get("rule", "")] += 1
        elif kind == "correction":
            known = self.index.run(run_id)
            if known is None:
                raise IntegrityError(f"raw manifest: version {version} corrects the unknown run {run_id}")
            self.index.put_run(run_id, known._replace(outcome=mention.get("outcome", "")))
        elif kind in ("deferred", "dead_letter"):
            key = (Origin.from_json(record["origin"]), run_id)
            if kind == "deferred":
                if key in self.deferred:  # tried again, and still not there: it stays one
                    self._close(key)
                self.deferred[key] = Outcome.from_json(record)
            else:
                self.dead_letters[key] = OpenLetter(version, reason)
        self.counts[kind, reason] += 1

    def _close(self, key: tuple[Origin, str]) -> None:
        kind: Kind
        if key in self.deferred:
            kind, reason = "deferred", self.deferred.pop(key).reason
        elif key in self.dead_letters:
            kind, reason = "dead_letter", self.dead_letters.pop(key).reason
        else:
            raise IntegrityError(f"raw manifest: {key[0]} {key[1]} is closed, and was not open")
        self.counts[kind, reason] -= 1
        if not self.counts[kind, reason]:
            del self.counts[kind, reason]


_NOTHING = RangeSet()


def check_topic_id(topic: str, known: str, found: str) -> None:
    """Raises `IntegrityError` when a topic is not the one that was read before ("" is unknown and matches any)."""
    if known and found and known != found:
        raise IntegrityError(
            f"the topic {topic} was made anew: its offsets are covered under the id {known}, and the broker says "
            f"{found}; read it under another name, or start with another --data-path"
        )


def retry(outcome: Outcome) -> Candidate:
    """The candidate that tries a deferred outcome again."""
    if outcome.mention is None:
        raise IntegrityError(f"{outcome.origin}: deferred without a run")
    return Candidate(
        origin=outcome.origin,
        event_key=outcome.event_key,
        mention=outcome.mention,
        trust=outcome.trust,
        attempts=outcome.attempts + 1,
        first_seen_us=outcome.first_seen_us,
    )


def reconcile(state: RawState, batches: Iterable[Batch], time_us: int) -> Delta | None:
    """The delta that ``batches`` add to ``state``, or None where they add nothing.

    Args:
      state: not changed. It has to be the state after the last delta (`ciml.manifests.commit` sees to it).
      batches: whole ones, in any order: with nothing but ``settled``. One without ``covers`` holds retries, whose
        outcomes settle what is open under their origin and run id; anything else of it is dropped.
      time_us: the time of the commit.

    Raises:
      IntegrityError: for a batch that is not whole, outcomes outside of its range, or a topic made anew.
    """
    draft = _Draft(state)
    for batch in sorted(batches, key=_order):
        if batch.messages or batch.candidates:
            raise IntegrityError(f"{batch.covers}: a batch that is not settled cannot be committed")
        settled = sorted(batch.settled, key=_place)
        if batch.covers is None:
            for outcome in settled:
                draft.settle_retry(outcome)
        else:
            draft.settle_range(batch.covers, settled)
    return draft.delta(time_us)


def _order(batch: Batch) -> tuple[bool, str, int, int]:
    # retries first: their events came before everything that is read now
    covers = batch.covers
    return (True, covers.topic, covers.partition, covers.start) if covers else (False, "", 0, 0)


def _place(outcome: Outcome) -> tuple[str, int, int]:
    # Stages settle what they refuse before what they pass on; the last word on a run is the one that was sent last.
    origin = outcome.origin
    return origin.topic, origin.partition, origin.offset


class _Draft:
    """A delta in the making, laid over the state that it follows."""

    def __init__(self, state: RawState) -> None:
        self._state = state
        self._offsets: dict[str, dict[int, RangeSet]] = {}
        self._topic_ids: dict[str, str] = {}
        self._events: set[tuple[str, str]] = set()
        self._runs: dict[str, KnownRun] = {}
        self._closes: dict[tuple[Origin, str], None] = {}
        self._tried: set[tuple[Origin, str]] = set()
        self._lists: dict[Kind, list[Outcome]] = {kind: [] for kind in LISTS}

    def settle_range(self, covers: OffsetRange, settled: list[Outcome]) -> None:
        known = self._topic_ids.get(covers.topic) or self._state.topic_ids.get(covers.topic, "")
        check_topic_id(covers.topic, known, covers.topic_id)
        self._topic_ids[covers.topic] = known or covers.topic_id
        mine = self._offsets.setdefault(covers.topic, {}).setdefault(covers.partition, RangeSet())
        fresh = RangeSet()
        for start, end in self._state.covered(covers.topic, covers.partition).missing(covers.start, covers.end):
            for part in mine.missing(start, end):
                fresh.add(*part)
        seen: set[tuple[Origin, str]] = set()
        for outcome in settled:
            origin, key = outcome.origin, (outcome.origin, outcome.run_id)
            inside = covers.start <= origin.offset < covers.end
            if not inside or (origin.topic, origin.partition) != (covers.topic, covers.partition):
                raise IntegrityError(f"{origin} is not in the range that its batch covers: {covers}")
            if origin.offset in fresh and key not in seen:  # an event that names a run twice has named it
                seen.add(key)
                self._settle(outcome)
        for start, end in fresh:
            mine.add(start, end)

    def settle_retry(self, outcome: Outcome) -> None:
        key = (outcome.origin, outcome.run_id)
        if key in self._tried:
            return
        before = self._state.deferred.get(key)
        if before is not None:
            if outcome.kind == "deferred" and outcome.attempts <= before.attempts:
                return  # a replay of an earlier try
            outcome = replace(
                outcome,
                payload=outcome.payload or before.payload,
                first_seen_us=outcome.first_seen_us or before.first_seen_us,
            )
        elif key not in self._state.dead_letters or outcome.kind in ("dead_letter", "deferred"):
            return  # settled by another, or no better than before
        self._tried.add(key)
        if self._settle(outcome, again=True) != "deferred":
            self._closes[key] = None

    def _settle(self, outcome: Outcome, *, again: bool = False) -> Kind:
        run_id, event = outcome.run_id, (outcome.event_key, outcome.run_id)
        seen = bool(outcome.event_key) and (event in self._events or self._state.index.has_event(*event))
        run = (self._runs.get(run_id) or self._state.index.run(run_id)) if run_id else None
        outcome = _classify(outcome, run, repeated=seen and not again)
        if outcome.event_key:
            self._events.add(event)
        word = (outcome.mention.outcome or "") if outcome.mention else ""
        if outcome.kind == "run":
            if outcome.file is None or not run_id:
                raise IntegrityError(f"{outcome.origin} {run_id}: a run without its raw object")
            self._runs[run_id] = KnownRun(word, outcome.file.digest)
        elif outcome.kind == "correction" and run is not None:
            self._runs[run_id] = run._replace(outcome=word)
        self._lists[outcome.kind].append(outcome)
        return outcome.kind

    def delta(self, time_us: int) -> Delta | None:
        offsets: dict[str, Any] = {}
        for topic, partitions in self._offsets.items():
            parts = {str(number): [list(part) for part in ranges] for number, ranges in partitions.items() if ranges}
            if parts:
                offsets[topic] = {"id": self._topic_ids[topic], "partitions": parts}
        if not offsets and not any(self._lists.values()):
            return None
        return {
            "time_us": time_us,
            "offsets": offsets,
            **{name: [outcome.to_json() for outcome in self._lists[kind]] for kind, name in LISTS.items()},
            "closes": [[origin.to_json(), run_id] for origin, run_id in self._closes],
        }


def _classify(outcome: Outcome, run: KnownRun | None, *, repeated: bool) -> Outcome:
    """What an outcome is, given the raw row that its run has (or None), and whether its event was seen before."""
    other_log = _other(outcome.file, run)
    plain = replace(outcome, detail="", file=other_log, payload=None, not_before_us=None)
    if repeated:
        return replace(plain, kind="repeat", reason="event")
    if run is None or (outcome.kind == "ignored" and outcome.reason not in _FINAL_IGNORED):
        keeps = outcome.kind in ("dead_letter", "deferred")
        return outcome if keeps else replace(outcome, payload=None)
    word = outcome.mention.outcome if outcome.mention else None
    if word and word != run.outcome:
        return replace(plain, kind="correction", reason="outcome", detail=f"was {run.outcome}")
    return replace(plain, kind="repeat", reason="other_log" if other_log else "run")


def _other(file: RawFile | None, run: KnownRun | None) -> RawFile | None:
    return file if file is not None and run is not None and file.digest != run.digest else None
