"""Queries of the raw manifest: all stored runs as they are now, and the records and attempts of one run.

A *row* stores a run, or replaces its row (a reclaim); the last row of a run counts. Later deltas may change its
outcome, its trust and its facts. `review` and `trace` show what a trust policy says of stored runs.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ciml.events.records import RawFile, RunFacts, records_of, rows_of
from ciml.manifest.log import Delta, ManifestLog
from ciml.progress import Progress
from ciml.runs.state import RawState
from ciml.trust import TrustPolicy, evaluate

#: The kind of a change of trust among the records of a run; it is no `ciml.events.records.Kind`.
TRUST_CHANGE = "trust_change"


def latest_runs(log: ManifestLog, state: RawState) -> Iterator[StoredRun]:
    """Yield all runs up to the state, the last committed first. Reads the manifest lazily.

    A run that was reclaimed appears once, with the row that counts.
    """
    return (row.run for row in latest_rows(log, state) if row.counts)


def latest_rows(log: ManifestLog, state: RawState) -> Iterator[StoredRow]:
    """Yield all raw rows up to the state, the last committed first, those that no longer count too."""
    reclaimed: set[str] = set()  # runs with a later row
    decisions: dict[str, Mapping[str, Any]] = {}  # of rows that are still to come
    for version in range(state.version, 0, -1):
        delta = log.read(version)
        for change in delta.get("trust_changes", ()):
            decisions.setdefault(change["run_id"], change["trust"])
        records = rows_of(delta)
        run_facts = [RunFacts.from_json(record["mention"]) for record in records]
        state.index.prefetch(runs=[facts.run_id for facts in run_facts])
        state.index.subjects.prefetch_runs(run_facts)
        for facts, record in zip(reversed(run_facts), reversed(records), strict=True):
            run_id = facts.run_id
            counts = run_id not in reclaimed
            if record["kind"] == "reclaim":
                reclaimed.add(run_id)
            trust = decisions.pop(run_id, record.get("trust", {}))
            indexed = state.index.run(run_id)
            outcome = indexed.outcome if indexed else facts.outcome or ""
            file = RawFile.from_json(record["file"])
            run = StoredRun(facts, state.index.subjects.join(facts), outcome, trust, file, version)
            yield StoredRow(run, record["kind"], counts)


class StoredRun(NamedTuple):
    """A stored run.

    Attributes:
      own: facts of the event that its row came from.
      facts: the same, joined with all updates.
      outcome: with corrections.
      trust: the last stored decision, when it was ingested or by an update: ``trusted``, ``rule`` and ``policy``; empty
        in rows of older versions.
      file: its raw object.
      version: the version of the raw manifest that committed the row.
    """

    own: RunFacts
    facts: RunFacts
    outcome: str
    trust: Mapping[str, Any]
    file: RawFile
    version: int

    def summary(self) -> dict[str, Any]:
        """Return the run as a row of ``ciml runs list --json``."""
        return {
            "run_id": self.facts.run_id,
            "build_name": self.facts.build_name,
            "outcome": self.outcome,
            "trusted": self.trust.get("trusted", False),
            "rule": self.trust.get("rule", ""),
            "rows": self.file.rows,
            "path": self.file.path,
            "digest": self.file.digest,
            "version": self.version,
        }


class StoredRow(NamedTuple):
    """A raw row: the run as it is with this row, the row's kind (run or reclaim), and whether no later row counts."""

    run: StoredRun
    kind: str
    counts: bool


def changed_runs(log: ManifestLog, state: RawState, since: int) -> set[str]:
    """Return the runs with rows up to a version to which later deltas gave another row, outcome, trust or other facts.

    Args:
      log: the raw manifest.
      state: its present state; deltas after it are ignored.
      since: the version.
    """
    changed: set[str] = set()
    for version, delta in log.since(since):
        if version > state.version:
            break
        for name in ("reclaims", "corrections"):
            changed.update(record["mention"]["run_id"] for record in delta.get(name, ()))
        changed.update(change["run_id"] for change in delta.get("trust_changes", ()))
        for record in delta.get("updates", ()):
            for update in record["updates"]:
                runs = state.index.subjects.runs((update["source"], update["subject"]), sys.maxsize)
                changed.update(facts.run_id for facts in runs)
    return changed


class RunEntry(NamedTuple):
    """A record of a run: its version, its kind (or `TRUST_CHANGE`), and its JSON."""

    version: int
    kind: str
    record: Mapping[str, Any]


def entries_of(log: ManifestLog, until: int, run_id: str, progress: Progress | None = None) -> list[RunEntry]:
    """Return all records of a run up to a version, in order."""
    entries = []
    for version, delta in _deltas_with(log, until, run_id, progress):
        for kind, record in records_of(delta):
            if record.get("mention", {}).get("run_id") == run_id:
                entries.append(RunEntry(version, kind, record))
        for change in delta.get("trust_changes", ()):
            if change["run_id"] == run_id:
                entries.append(RunEntry(version, TRUST_CHANGE, change))
    return entries


def row_of(entries: list[RunEntry]) -> RunEntry | None:
    """Return the raw row that counts: the last; None for a run without a row."""
    return next((entry for entry in reversed(entries) if entry.kind in ("run", "reclaim")), None)


class Attempt(NamedTuple):
    """An attempt of a job: run id, number, outcome with corrections, start (µs; None if unknown), kind of record."""

    run_id: str
    attempt: int
    outcome: str
    start_us: int | None
    kind: str


def attempts_of(
    log: ManifestLog, state: RawState, entries: list[RunEntry], progress: Progress | None = None
) -> list[Attempt]:
    """Return all attempts of the job of a run, itself included, by number and start; none where they are not linked.

    Args:
      log: the raw manifest.
      state: its present state.
      entries: the records of the run, from `entries_of`.
      progress: called while the manifest is searched.
    """
    mentions = [entry.record["mention"] for entry in entries if "mention" in entry.record]
    linked = next((mention["attempt_of"] for mention in reversed(mentions) if mention.get("attempt_of")), "")
    if not linked:
        return []
    source = mentions[0]["run_id"].partition("~")[0]
    attempts: dict[str, Attempt] = {}
    for _, delta in _deltas_with(log, state.version, linked, progress):
        for kind, record in records_of(delta):
            mention = record.get("mention", {})
            run_id: str = mention.get("run_id", "")
            if mention.get("attempt_of") != linked or run_id.partition("~")[0] != source:
                continue
            indexed = state.index.run(run_id)
            outcome = indexed.outcome if indexed else mention.get("outcome", "")
            counted_kind = kind if run_id not in attempts or indexed is None else attempts[run_id].kind
            number = int(run_id.rpartition("~")[2])
            attempts[run_id] = Attempt(run_id, number, outcome, mention.get("start_us"), counted_kind)
    return sorted(attempts.values(), key=lambda attempt: (attempt.attempt, attempt.start_us or 0, attempt.run_id))


def _deltas_with(log: ManifestLog, until: int, text: str, progress: Progress | None) -> Iterator[tuple[int, Delta]]:
    needle = json.dumps(text, ensure_ascii=False).encode()  # as the manifest encodes it: most deltas are not parsed
    for version, data in log.raw_since(0):
        if version > until:
            return
        if progress is not None:
            progress("deltas", version, until)
        if needle in data:
            yield version, log.parse(version, data)


class Decision(NamedTuple):
    """A decision on a run: whether it is trusted, and the rule."""

    trusted: bool
    rule: str


class ChangedRun(NamedTuple):
    """A run whose trust a policy would change."""

    run_id: str
    build_name: str
    source: str
    before: Decision
    after: Decision


@dataclass
class Review:
    """Counts of stored runs by what a policy would change of their trust.

    Attributes:
      runs: number of stored runs.
      trusted: number that are trusted now.
      trusted_after: number that the policy would trust.
      rules: by the decisions before and after, where the trust changes.
      places: by source, job and whether the run would be trusted, where the trust changes.
    """

    runs: int = 0
    trusted: int = 0
    trusted_after: int = 0
    rules: Counter[tuple[Decision, Decision]] = field(default_factory=Counter)
    places: Counter[tuple[str, str, bool]] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "trusted": self.trusted,
            "trusted_after": self.trusted_after,
            "changed": sum(self.rules.values()),
            "rules": [
                {"from": before._asdict(), "to": after._asdict(), "runs": number}
                for (before, after), number in self.rules.most_common()
            ],
            "places": [
                {"source": source, "build_name": job, "trusted": trusted, "runs": number}
                for (source, job, trusted), number in self.places.most_common()
            ],
        }


def review(runs: Iterable[StoredRun], policy: TrustPolicy, counts: Review) -> Iterator[ChangedRun]:
    """Yield the runs whose trust a policy would change, and count all runs.

    Args:
      runs: stored runs, with their joined facts and their last decision.
      policy: the policy to try.
      counts: receives the counts.
    """
    for run in runs:
        facts = run.facts
        before = Decision(run.trust.get("trusted", False), run.trust.get("rule", ""))
        trust = evaluate(policy, facts)
        after = Decision(trust.trusted, trust.rule)
        counts.runs += 1
        counts.trusted += before.trusted
        counts.trusted_after += after.trusted
        if before.trusted != after.trusted:
            counts.rules[before, after] += 1
            counts.places[facts.source, facts.build_name, after.trusted] += 1
            yield ChangedRun(facts.run_id, facts.build_name, facts.source, before, after)


class Mismatch(NamedTuple):
    """A fact of a run that none of a rule's globs matches."""

    fact: str
    value: str
    globs: tuple[str, ...]


class RuleTrace(NamedTuple):
    """How a rule matches a run.

    Attributes:
      rule: its name.
      trusted: its decision, where it matches.
      decides: whether it is the first that matches.
      mismatches: the facts that do not match; none where the rule matches.
    """

    rule: str
    trusted: bool
    decides: bool
    mismatches: tuple[Mismatch, ...]


def trace(policy: TrustPolicy, facts: RunFacts) -> list[RuleTrace]:
    """Return how each rule of a policy matches a run, in order."""
    traces: list[RuleTrace] = []
    decided = False
    for rule in policy.rules:
        missed = tuple(
            Mismatch(name, getattr(facts, name), globs)
            for name, globs in rule.facts
            if not policy.matcher(globs).fullmatch(getattr(facts, name))
        )
        traces.append(RuleTrace(rule.name, rule.trusted, not missed and not decided, missed))
        decided = decided or not missed
    return traces
