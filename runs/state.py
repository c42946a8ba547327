"""The state of the raw manifest: the sum of its deltas, and its checkpoints.

`open_raw` returns the present state. A state holds counts and deferred outcomes; the ids of events and runs are in its
`Index`, in memory or on disk.

While an erasure rewrites the manifest, a record of an erased run may refer to one that still has the run's own id
(`ciml.manifest.rewrite`). The state ignores that; the checkpoints that are made afterwards do not depend on it.

Older versions differ in four ways:

- They stored some records without a trust decision (`_Decoded.trust`). Such a record is untrusted, but its event's id
  is stored as that of a trusted event (`RawState._add_ids`), as in the tables of those versions.
- They stored corrections by untrusted events, even of trusted runs, which `RawState._apply_correction` ignores.
- Their checkpoints lack the number of records by source (`RawState.restored_from`), and standings or the trust of runs
  in their tables (`RAW`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from ciml.errors import IntegrityError
from ciml.events.records import (
    FactUpdate,
    Kind,
    Origin,
    Outcome,
    PendingRun,
    RunFacts,
    records_of,
    rows_of,
    totals_of,
)
from ciml.events.run_id import erased_id, is_erased, source_of
from ciml.manifest.checkpoints import Checkpointed, Checkpoints
from ciml.manifest.coverage import TopicState, counts_json, counts_of
from ciml.manifest.id_index import IdTable, Rows
from ciml.manifest.log import Delta, ManifestLog, catch_up
from ciml.runs.known_ids import (
    TABLES,
    DeadLetterKey,
    Index,
    KnownRun,
    OpenDeadLetter,
    recorded_ids,
)
from ciml.runs.known_subjects import claims_of, is_marked
from ciml.runs.run_log import TRUSTED, standing_of
from ciml.storage import Store

#: Only the first sources, this many, are counted separately: senders choose the names of their sources.
MOST_SOURCES = 50
#: The names under which all other sources, and messages without a run, are counted. No source can have such a name.
OTHER_SOURCES = "_other"
NO_SOURCE = "_unknown"

#: What became of an output that is stored; otherwise the reason why it is missing.
STORED = "stored"
#: The entry of a snapshot whose ids are all by standing (`ciml.runs.run_log`).
BY_STANDING = "by_standing"


class _Decoded(NamedTuple):
    """A record of a delta, as far as the state depends on it.

    Attributes:
      kind: its kind.
      value: its JSON.
      reason: "" without one.
      facts: the facts of its run, as JSON; empty without a run.
      run_id: the id of its run; "" without a run.
      proved: whether a receiver proved who sent the event.
      trust: the decision on its event, as JSON; empty if none was stored.
      trusted: that decision; False if none was stored.
    """

    kind: Kind
    value: Mapping[str, Any]
    reason: str
    facts: Mapping[str, Any]
    run_id: str
    proved: bool
    trust: Mapping[str, Any]
    trusted: bool

    @classmethod
    def of(cls, kind: Kind, value: Mapping[str, Any]) -> _Decoded:
        facts = value.get("mention", {})
        trust = value.get("trust", {})
        run = (facts, facts.get("run_id", ""), bool(facts.get("auth")))
        return cls(kind, value, value.get("reason", ""), *run, trust, trust.get("trusted", False))

    @property
    def standing(self) -> int:
        """How far the event is believed, one of `ciml.runs.run_log.STANDINGS`."""
        return standing_of(self.trusted, self.proved)

    @property
    def key(self) -> DeadLetterKey:
        """The key under which a deferred run or a dead letter is open."""
        return Origin.from_json(self.value["origin"]), self.run_id


class RawState(TopicState):
    """The sum of the deltas of the raw manifest.

    Attributes:
      deferred: the outcomes of runs whose log was unavailable, by (origin, run id).
      index: ids of events and runs, and the open dead letters.
      counts: number of records by (kind, reason), without those of closed deferred runs and dead letters.
      trust: number of raw rows by (trusted, rule), as decided at ingestion; each row of a reclaimed run counts.
      trust_changes: number of changes of trust by updates, by (trusted, rule) of the new decision.
      outputs: number of raw rows by what became of the output of their job: `STORED`, or why it is missing; rows for
        which none was looked for do not count.
      output_bytes: bytes of stored texts, and bytes that were dropped from them.
      recorded: number of records by (source, kind), with those of closed dead letters, and without deferred ones.
      closed: number of closed dead letters by reason.
      erased: ids of erased runs (`ciml.runs.erased`).
      erased_before_us: runs that ended before this time are erased, epoch microseconds; 0 for none.
      records: see `ciml.manifest.checkpoints.Restorable`; each update and each change of trust counts as one more.
    """

    counters = ("counts", "trust", "recorded")
    mappings = ("closed",)

    def __init__(self, index: Index | None = None) -> None:
        super().__init__()
        self.index = index or Index()
        self.deferred: dict[tuple[Origin, str], Outcome] = {}
        self.counts: Counter[tuple[str, str]] = Counter()
        self.trust: Counter[tuple[bool, str]] = Counter()
        self.trust_changes: Counter[tuple[bool, str]] = Counter()
        self.outputs: Counter[str] = Counter()
        self.output_bytes = (0, 0)
        self.recorded: Counter[tuple[str, str]] = Counter()
        self.closed: Counter[str] = Counter()
        self.erased: set[str] = set()
        self.erased_before_us = 0
        self._sources: set[str] = set()
        self._by_standing = True  # whether all ids in the index are of this version

    def due(self, now_us: int) -> list[PendingRun]:
        """Return the deferred runs whose log is due for another try, as pending runs, the longest overdue first."""
        due = [outcome for outcome in self.deferred.values() if (outcome.not_before_us or 0) <= now_us]
        due.sort(key=lambda outcome: (outcome.not_before_us or 0, str(outcome.origin), outcome.run_id))
        return [retry(outcome) for outcome in due]

    def next_due_us(self) -> int | None:
        """Return the due time of the next deferred run, epoch microseconds; None without one."""
        return min((outcome.not_before_us or 0 for outcome in self.deferred.values()), default=None)

    def is_erased(self, facts: RunFacts) -> bool:
        """Return whether a run is erased, so that its events are ignored."""
        if is_erased(facts.run_id) or (self.erased and erased_id(facts.run_id) in self.erased):
            return True
        ended_us = facts.end_us or facts.start_us
        return ended_us is not None and ended_us < self.erased_before_us

    def totals(self) -> dict[str, int]:
        """Return the number of (event, run) of each kind, zeros included."""
        return totals_of(self.counts)

    def apply(self, version: int, delta: Delta) -> None:
        """Apply the next delta.

        Raises:
          IntegrityError: it is not the next one, or contradicts earlier ones (a run twice, a topic created again).
        """
        if version != self.version + 1:
            raise IntegrityError(f"raw manifest: version {version} after {self.version}")
        closes: list[DeadLetterKey] = [(Origin.from_json(origin), run_id) for origin, run_id in delta["closes"]]
        updates = [
            (FactUpdate.from_json(update), record["event_key"])
            for record in delta.get("updates", ())
            for update in record["updates"]
        ]
        self._prefetch(delta, closes, [update for update, _ in updates])
        self.torn = True  # a failure so far changes nothing; from here on, it leaves the delta applied in part
        self.cover(delta["offsets"])
        self.erased.update(delta.get("erases", ()))
        self.erased_before_us = max(self.erased_before_us, delta.get("erases_before_us", 0))
        for key in closes:
            self._close(key)
        for kind, value in records_of(delta):
            self._apply_record(version, _Decoded.of(kind, value))
            self.records += 1
        for update, event_key in updates:
            self.index.subjects.add_update(update, event_key)
            self.records += 1
        for change in delta.get("trust_changes", ()):
            self._change_trust(version, change)
            self.records += 1
        self.torn = False
        self.version = version
        self.time_us = delta["time_us"]

    def _prefetch(self, delta: Delta, closes: list[DeadLetterKey], updates: list[FactUpdate]) -> None:
        """Look up the ids that a delta concerns in one batch, for speed."""
        rows = [row["mention"] for row in rows_of(delta)]
        run_ids = [facts["run_id"] for facts in rows]
        run_ids += [record["mention"]["run_id"] for record in delta["corrections"]]
        run_ids += [change["run_id"] for change in delta.get("trust_changes", ())]
        self.index.prefetch(runs=run_ids, dead_letters=[key for key in closes if key not in self.deferred])
        subjects = [(update.source, update.subject) for update in updates]
        subjects += [(source_of(facts["run_id"]), subject) for facts in rows for subject in facts.get("subjects", ())]
        self.index.subjects.prefetch_runs((), *subjects)

    def _apply_record(self, version: int, record: _Decoded) -> None:
        self._add_ids(record)
        is_row = record.kind in ("run", "reclaim")
        if not (is_row and record.trusted):  # a trusted row itself has its event's facts, and none is believed more
            claims = claims_of(record.facts, record.standing)
            if claims:
                self.index.subjects.add_claims(record.run_id, claims)
        if is_row:
            self._apply_row(version, record)
        elif record.kind == "correction":
            self._apply_correction(version, record)
        elif record.kind == "deferred":
            if record.key in self.deferred:  # tried again: this record replaces the earlier one, in the counts too
                self._close(record.key)
            self.deferred[record.key] = Outcome.from_json(record.value)
        elif record.kind == "dead_letter":
            self.index.put_dead_letter(record.key, OpenDeadLetter(version, record.reason))
        self.counts[record.kind, record.reason] += 1
        if record.kind != "deferred":
            source = record.value["updates"][0]["source"] if record.kind == "update" else source_of(record.run_id)
            self.recorded[self._counted_source(source), record.kind] += 1

    def _add_ids(self, record: _Decoded) -> None:
        """Remember the event of a record, if it has a key."""
        event_key = record.value.get("event_key")
        if event_key:
            standing = record.standing if record.trust else TRUSTED
            for event in recorded_ids(event_key, record.run_id, record.facts, standing):
                self.index.add_event(*event)

    def _apply_row(self, version: int, record: _Decoded) -> None:
        run_id = record.run_id
        is_stored = self.index.run(run_id) is not None
        if is_stored and record.kind == "run":
            raise IntegrityError(f"raw manifest: version {version} holds the run {run_id} again")
        if not is_stored and record.kind == "reclaim" and not is_erased(run_id):
            raise IntegrityError(f"raw manifest: version {version} reclaims the unknown run {run_id}")
        digest = record.value["file"]["digest"]
        self.index.put_run(run_id, KnownRun(record.facts.get("outcome", ""), digest, record.trusted, record.proved))
        if record.kind == "reclaim" or is_marked(record.facts):  # the row before a reclaim may have been marked
            self.index.subjects.add_run(RunFacts.from_json(record.facts), trusted=record.trusted)
        self.trust[record.trusted, record.trust.get("rule", "")] += 1
        self._count_output(record.value.get("output"))

    def _count_output(self, output: Mapping[str, Any] | None) -> None:
        if output is None:
            return
        self.outputs[output.get("missing") or STORED] += 1
        stored, dropped = self.output_bytes
        self.output_bytes = (stored + output.get("size", 0), dropped + output.get("dropped_bytes", 0))

    def _apply_correction(self, version: int, record: _Decoded) -> None:
        run = self.index.run(record.run_id)
        if run is None:
            if is_erased(record.run_id):
                return
            raise IntegrityError(f"raw manifest: version {version} corrects the unknown run {record.run_id}")
        if record.trusted or not run.trusted:
            self.index.put_run(record.run_id, run._replace(outcome=record.facts.get("outcome", "")))

    def _change_trust(self, version: int, change: Mapping[str, Any]) -> None:
        run_id = change["run_id"]
        trusted = change["trust"]["trusted"]
        run = self.index.run(run_id)
        if run is None:
            raise IntegrityError(f"raw manifest: version {version} changes the trust of the unknown run {run_id}")
        self.index.put_run(run_id, run.judged(trusted))
        if trusted:
            self.index.subjects.trust_run(run_id)
        self.trust_changes[trusted, change["trust"]["rule"]] += 1

    def _counted_source(self, source: str) -> str:
        """Return the name under which a source is counted."""
        if source in self._sources:
            return source
        if not source:
            return NO_SOURCE
        if len(self._sources) >= MOST_SOURCES:
            return OTHER_SOURCES
        self._sources.add(source)
        return source

    def _close(self, key: DeadLetterKey) -> None:
        """Close a deferred run or a dead letter: remove it, and its record from the counts."""
        kind: Kind
        if key in self.deferred:
            kind = "deferred"
            reason = self.deferred.pop(key).reason
        elif (dead_letter := self.index.dead_letter(key)) is not None:
            kind = "dead_letter"
            reason = dead_letter.reason
            self.index.put_dead_letter(key, None)
            self.closed[reason] += 1
        elif is_erased(key[1]):
            return
        else:
            raise IntegrityError(f"raw manifest: {key[0]} {key[1]} is closed but was not open")
        self.counts[kind, reason] -= 1
        if not self.counts[kind, reason]:
            del self.counts[kind, reason]

    def snapshot(self) -> dict[str, Any]:
        """Return the state as JSON, without the content of the index."""
        deferred = sorted(self.deferred.values(), key=lambda outcome: (str(outcome.origin), outcome.run_id))
        return {
            **self.coverage(),
            "deferred": [outcome.to_json() for outcome in deferred],
            "runs": self.index.run_count(),
            **({BY_STANDING: True} if self._by_standing else {}),
            **({"trust_changes": counts_json(self.trust_changes)} if self.trust_changes else {}),
            **({"erased": sorted(self.erased)} if self.erased else {}),
            **({"erased_before_us": self.erased_before_us} if self.erased_before_us else {}),
            **(
                {"outputs": dict(sorted(self.outputs.items())), "output_bytes": [*self.output_bytes]}
                if self.outputs
                else {}
            ),
        }

    @classmethod
    def restored_from(cls, version: int, value: Mapping[str, Any], tables: Mapping[str, IdTable]) -> RawState:
        """Return the state at a checkpoint.

        Args:
          version: the checkpoint's version; 0 for the state before all deltas.
          value: the value of `snapshot` at that version; empty for version 0.
          tables: the ids up to that version.

        Raises:
          IntegrityError: the checkpoint is of an older ciml that lacks some of the counts.
        """
        if value and "recorded" not in value:
            raise IntegrityError(
                f"raw manifest: the checkpoint of version {version} is of an older ciml; delete the folders "
                "checkpoints and index, they will be rebuilt (docs/manifests.md)"
            )
        state = cls(Index(tables, runs=value.get("runs", 0)))
        state._by_standing = not version or bool(value.get(BY_STANDING))
        state.restore_coverage(version, value)
        state.trust_changes = counts_of(value.get("trust_changes", ()))
        state.outputs = Counter(value.get("outputs", {}))
        state.erased = set(value.get("erased", ()))
        state.erased_before_us = value.get("erased_before_us", 0)
        stored, dropped = value.get("output_bytes", (0, 0))
        state.output_bytes = (stored, dropped)
        state._sources = {source for source, _ in state.recorded} - {OTHER_SOURCES, NO_SOURCE}
        for record in value.get("deferred", ()):
            outcome = Outcome.from_json(record)
            state.deferred[outcome.origin, outcome.run_id] = outcome
        return state

    def recent(self) -> dict[str, Rows]:
        """Return the ids since the checkpoint it was restored from, for the tables of the next one.

        Raises:
          TypeError: its index has no tables.
        """
        return self.index.recent()


#: Defines the checkpoints of a raw manifest. Version 0.1 stored no trust with the outcome of a run.
#: Versions before 0.2 told no standings apart in the ids of events and of the runs of a subject, and knew no claims.
RAW = Checkpointed(
    TABLES,
    RawState.restored_from,
    marker=BY_STANDING,
    older={"runs": frozenset({"outcome"})}
    | {name: frozenset({"high", "low", *TABLES[name].columns}) for name in ("events", "members", "facts")},
)


def open_raw(raw: Store) -> tuple[ManifestLog, RawState]:
    """Return the raw manifest of a raw store and its present state, loaded from the newest checkpoint."""
    log = ManifestLog(raw)
    return log, catch_up(log, Checkpoints(log, RAW).open())


def retry(outcome: Outcome) -> PendingRun:
    """Return the pending run that retries a deferred outcome."""
    if outcome.mention is None:
        raise IntegrityError(f"{outcome.origin}: deferred without a run")
    return PendingRun(
        origin=outcome.origin,
        event_key=outcome.event_key,
        mention=outcome.mention,
        trust=outcome.trust,
        attempts=outcome.attempts + 1,
        first_seen_us=outcome.first_seen_us,
    )
