"""The state of the raw manifest: the sum of its deltas, and its checkpoints.

`open_raw` returns the present state. A state holds counts and open outcomes; the ids of events and runs are in its
`Index`, in memory or on disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ciml.errors import IntegrityError
from ciml.events.records import (
    FactUpdate,
    Kind,
    Origin,
    Outcome,
    PendingRun,
    RunFacts,
    lists_of,
    records_of,
    rows_of,
    totals_of,
)
from ciml.manifest.checkpoints import Checkpointed, Checkpoints
from ciml.manifest.coverage import TopicState
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

#: Number of sources that are counted separately, the first ones: events name their source freely.
MOST_SOURCES = 50
#: Name under which other sources, and messages without a run, are counted. No source can have this name.
OTHER_SOURCES = "_other"
NO_SOURCE = "_unknown"

#: The lists of a delta without records.
NO_RECORDS: Mapping[str, Any] = {**lists_of({}), "closes": []}

#: The entry of a snapshot whose ids are all by standing (`ciml.runs.run_log`).
BY_STANDING = "by_standing"


class RawState(TopicState):
    """The sum of the deltas of the raw manifest.

    Attributes:
      deferred: open deferred outcomes by (origin, run id): logs that were unavailable.
      index: ids of events and runs, and the open dead letters by (origin, run id).
      counts: number of (event, run) by (kind, reason). The sum is the number of all ever covered.
      trust: raw rows by (trusted, rule), as decided at ingestion; a reclaimed run counts under both of its rows.
      trust_changes: changes of trust by updates, by (trusted, rule) of the new decision.
      recorded: number of (event, run) ever settled, by (source, kind). Closing a dead letter does not reduce it. A
        deferred one counts once it is settled.
      closed: closed dead letters by reason.
      records: see `ciml.manifest.checkpoints.Restorable`; further entries in records, such as updates, count too.
    """

    def __init__(self, index: Index | None = None) -> None:
        super().__init__()
        self.index = index or Index()
        self.deferred: dict[tuple[Origin, str], Outcome] = {}
        self.counts: Counter[tuple[str, str]] = Counter()
        self.trust: Counter[tuple[bool, str]] = Counter()
        self.trust_changes: Counter[tuple[bool, str]] = Counter()
        self.recorded: Counter[tuple[str, str]] = Counter()
        self.closed: Counter[str] = Counter()
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
        changes = delta.get("trust_changes", ())
        run_ids = [record["mention"]["run_id"] for record in (*rows_of(delta), *delta["corrections"])]
        run_ids += [change["run_id"] for change in changes]
        self.index.prefetch(runs=run_ids, dead_letters=[key for key in closes if key not in self.deferred])
        updates = [
            (FactUpdate.from_json(update), record["event_key"])
            for record in delta.get("updates", ())
            for update in record["updates"]
        ]
        mentions = [record["mention"] for record in rows_of(delta)]
        subjects = [(update.source, update.subject) for update, _ in updates]
        for mention in mentions:
            source = mention["run_id"].partition("~")[0]
            subjects += [(source, subject) for subject in mention.get("subjects", ())]
        self.index.subjects.prefetch(subjects)
        self.torn = True
        self.cover(delta["offsets"])
        for key in closes:
            self._close(key)
        for kind, record in records_of(delta):
            self._apply_record(version, kind, record)
            self.records += 1
        for update, event_key in updates:
            self.index.subjects.add_update(update, event_key)
            self.records += 1
        for change in changes:
            self._change_trust(version, change)
            self.records += 1
        self.torn = False
        self.version = version
        self.time_us = delta["time_us"]

    def _apply_record(self, version: int, kind: Kind, record: dict[str, Any]) -> None:
        facts = record.get("mention", {})
        run_id: str = facts.get("run_id", "")
        reason: str = record.get("reason", "")
        trusted: bool = record.get("trust", {}).get("trusted", False)
        is_row = kind in ("run", "reclaim")
        self._add_ids(record)
        if not (is_row and trusted):
            claims = claims_of(facts, standing_of(trusted, bool(facts.get("auth"))))
            if claims:
                self.index.subjects.claim(run_id, claims)
        if is_row:
            self._apply_row(version, kind, record)
        elif kind == "correction":
            indexed = self.index.run(run_id)
            if indexed is None:
                raise IntegrityError(f"raw manifest: version {version} corrects the unknown run {run_id}")
            if trusted or not indexed.trusted:  # older versions also recorded corrections by untrusted events
                self.index.put_run(run_id, indexed._replace(outcome=facts.get("outcome", "")))
        elif kind == "deferred":
            key = (Origin.from_json(record["origin"]), run_id)
            if key in self.deferred:  # tried again, still unavailable: it stays deferred
                self._close(key)
            self.deferred[key] = Outcome.from_json(record)
        elif kind == "dead_letter":
            key = (Origin.from_json(record["origin"]), run_id)
            self.index.put_dead_letter(key, OpenDeadLetter(version, reason))
        self.counts[kind, reason] += 1
        if kind != "deferred":
            source = record["updates"][0]["source"] if kind == "update" else run_id.partition("~")[0]
            self.recorded[self._counted_source(source), kind] += 1

    def _add_ids(self, record: Mapping[str, Any]) -> None:
        """Remember the event of a record."""
        event_key = record.get("event_key")
        if not event_key:
            return
        facts = record.get("mention", {})
        trust = record.get("trust")
        # Older versions stored some records without a decision: their ids are plain, as those of trusted events.
        standing = standing_of(trust.get("trusted", False), bool(facts.get("auth"))) if trust else TRUSTED
        for event in recorded_ids(event_key, facts.get("run_id", ""), facts, standing):
            self.index.add_event(*event)

    def _apply_row(self, version: int, kind: Kind, record: Mapping[str, Any]) -> None:
        facts = record["mention"]
        run_id = facts["run_id"]
        if (self.index.run(run_id) is not None) != (kind == "reclaim"):
            fault = "holds the run {} again" if kind == "run" else "reclaims the unknown run {}"
            raise IntegrityError(f"raw manifest: version {version} {fault.format(run_id)}")
        trust = record.get("trust", {})
        trusted: bool = trust.get("trusted", False)
        run = KnownRun(facts.get("outcome", ""), record["file"]["digest"], trusted, proved=bool(facts.get("auth")))
        self.index.put_run(run_id, run)
        if kind == "reclaim" or is_marked(facts):
            self.index.subjects.add_run(RunFacts.from_json(facts), trusted=trusted)
        self.trust[trusted, trust.get("rule", "")] += 1

    def _change_trust(self, version: int, change: Mapping[str, Any]) -> None:
        run_id = change["run_id"]
        trusted = change["trust"]["trusted"]
        indexed = self.index.run(run_id)
        if indexed is None:
            raise IntegrityError(f"raw manifest: version {version} changes the trust of the unknown run {run_id}")
        self.index.put_run(run_id, indexed.judged(trusted))
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

    def _close(self, key: tuple[Origin, str]) -> None:
        kind: Kind
        if key in self.deferred:
            kind = "deferred"
            reason = self.deferred.pop(key).reason
        elif (dead_letter := self.index.dead_letter(key)) is not None:
            kind = "dead_letter"
            reason = dead_letter.reason
            self.index.put_dead_letter(key, None)
            self.closed[reason] += 1
        else:
            raise IntegrityError(f"raw manifest: {key[0]} {key[1]} is closed but was not open")
        self.counts[kind, reason] -= 1
        if not self.counts[kind, reason]:
            del self.counts[kind, reason]

    def snapshot(self) -> dict[str, Any]:
        """Return the state as JSON, without the content of the index."""
        return {
            "time_us": self.time_us,
            **self.coverage(),
            "counts": _rows(self.counts),
            "trust": _rows(self.trust),
            "recorded": _rows(self.recorded),
            "closed": dict(sorted(self.closed.items())),
            "deferred": [self.deferred[key].to_json() for key in sorted(self.deferred, key=_deferred_order)],
            "runs": self.index.run_count(),
            **({BY_STANDING: True} if self._by_standing else {}),
            **({"trust_changes": _rows(self.trust_changes)} if self.trust_changes else {}),
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
        state = cls(Index(tables, value.get("runs", 0)))
        state.version = state.restored = version
        state._by_standing = not version or bool(value.get(BY_STANDING))
        state.time_us = value.get("time_us", 0)
        state.restore_coverage(value)
        for name in ("counts", "trust", "trust_changes", "recorded"):
            setattr(state, name, Counter({(first, second): number for first, second, number in value.get(name, ())}))
        state.closed = Counter(value.get("closed", {}))
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


def _deferred_order(key: tuple[Origin, str]) -> tuple[str, str]:
    origin, run_id = key
    return str(origin), run_id


def _rows(counts: Mapping[tuple[Any, str], int]) -> list[list[Any]]:
    return [[*key, number] for key, number in sorted(counts.items())]


#: Defines the checkpoints of a raw manifest. Version 0.1 stored no trust with the outcome of a run.
#: Versions before 0.2 told no standings apart in the ids of events and of the runs of a subject, and knew no claims.
RAW = Checkpointed(
    TABLES,
    RawState.restored_from,
    older={"runs": frozenset({"outcome"})},
    marker=BY_STANDING,
    unmarked=frozenset({"events", "members", "facts"}),
)


def open_raw(raw: Store) -> tuple[ManifestLog, RawState]:
    """Return the raw manifest of a raw store and its present state, loaded from the newest checkpoint."""
    log = ManifestLog(raw)
    state = Checkpoints(log, RAW).open()
    catch_up(log, state)
    return log, state


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
