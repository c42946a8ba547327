"""Queries of the raw manifest: all stored runs as they are now, their selection, and the records of one run.

A *row* stores a run, or replaces its row (a reclaim); the last row of a run counts. Later deltas may change its
outcome, its trust and its facts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ciml.events.records import OutputFile, RawFile, RunFacts, Trust, records_of
from ciml.events.run_id import source_of
from ciml.globs import matches_any
from ciml.manifest.log import Delta, ManifestLog
from ciml.progress import Progress, no_progress
from ciml.runs.run_log import RunRecord, StoredRunLog
from ciml.runs.state import RawState

#: The kind of a change of trust among the records of a run; it is no `ciml.events.records.Kind`.
TRUST_CHANGE = "trust_change"
#: The decision on rows that older versions stored without one.
_NO_DECISION = Trust(False, "", "")


def latest_runs(log: ManifestLog, state: RawState) -> Iterator[StoredRun]:
    """Yield all runs up to the state, the last committed first. Reads the manifest lazily.

    A run that was reclaimed appears once, with the row that counts.
    """
    return (row.run for row in latest_rows(log, state) if row.counts)


def latest_rows(log: ManifestLog, state: RawState) -> Iterator[StoredRow]:
    """Yield all raw rows up to the state, the last committed first, even those that were reclaimed."""
    reclaimed: set[str] = set()  # runs with a later row
    decisions: dict[str, Trust] = {}  # the last one on each run, until its row that counts is read
    run_log = StoredRunLog(log, lambda facts: _NO_DECISION)
    for version in range(state.version, 0, -1):
        delta = run_log.read(version)
        for change in delta.trust_changes:
            # Deltas are read backwards, so the first change of a run's trust is the last.
            decisions.setdefault(change.run_id, change.trust)
        run_facts = [row.mention for row in delta.rows]
        state.index.prefetch(runs=[facts.run_id for facts in run_facts])
        state.index.subjects.prefetch_runs(run_facts)
        for index, row in reversed(list(enumerate(delta.rows))):
            facts = row.mention
            run_id = facts.run_id
            counts = run_id not in reclaimed
            is_reclaim = index >= len(delta.runs)
            if is_reclaim:
                reclaimed.add(run_id)
            trust = decisions.pop(run_id, row.trust)
            indexed = state.index.run(run_id)
            outcome = indexed.outcome if indexed else facts.outcome or ""
            run = StoredRun(facts, state.index.subjects.join(facts), outcome, trust, row.file, version, row.output)
            yield StoredRow(run, is_reclaim, counts)


class StoredRun(NamedTuple):
    """A stored run.

    Attributes:
      own: facts of the event that its row came from.
      facts: the same, joined with all updates.
      outcome: with corrections.
      trust: the last stored decision, by the ingestion of the row or a later update.
      file: its raw object.
      version: the version of the raw manifest that committed the row.
      output: the output of its job; None if none was looked for.
    """

    own: RunFacts
    facts: RunFacts
    outcome: str
    trust: Trust
    file: RawFile
    version: int
    output: OutputFile | None = None

    def summary(self) -> dict[str, Any]:
        """Return the run as a row of ``ciml runs list --json``."""
        return {
            "run_id": self.facts.run_id,
            "build_name": self.facts.build_name,
            "outcome": self.outcome,
            "trusted": self.trust.trusted,
            "rule": self.trust.rule,
            "rows": self.file.rows,
            "path": self.file.path,
            "digest": self.file.digest,
            "version": self.version,
        }


class StoredRow(NamedTuple):
    """A raw row.

    Attributes:
      run: the run with the facts and the file of this row.
      is_reclaim: whether it replaces an earlier row of the run.
      counts: whether it is the run's last row.
    """

    run: StoredRun
    is_reclaim: bool
    counts: bool


@dataclass(frozen=True)
class RunSelection:
    """Criteria of stored runs; a run must meet all of them. By default every run does.

    Attributes:
      jobs: globs of the jobs.
      outcomes: the outcomes, with corrections.
      sources: names of the sources.
      since_us, until_us: bounds of the time of the run, see `ran_within`.
      trusted: the last stored decision on the run's trust.
    """

    jobs: Sequence[str] = ()
    outcomes: Sequence[str] = ()
    sources: Sequence[str] = ()
    since_us: int | None = None
    until_us: int | None = None
    trusted: bool | None = None

    def matches(self, run: StoredRun) -> bool:
        """Return whether a run meets all criteria."""
        return (
            (self.trusted is None or run.trust.trusted is self.trusted)
            and (not self.outcomes or run.outcome in self.outcomes)
            and (not self.jobs or matches_any(self.jobs, run.facts.build_name))
            and (not self.sources or source_name(run.facts) in self.sources)
            and ran_within(run.facts, self.since_us, self.until_us)
        )


def source_name(facts: RunFacts) -> str:
    """Return the name of a run's source: as its event names it, else from its run id."""
    return facts.source or source_of(facts.run_id)


def ran_within(facts: RunFacts, since_us: int | None, until_us: int | None) -> bool:
    """Return whether a run ran at some time in [since, until), epoch microseconds. None is no bound.

    A single time of a run stands for both its start and its end. A run without times is within no bound.
    """
    if since_us is None and until_us is None:
        return True
    start_us = facts.end_us if facts.start_us is None else facts.start_us
    end_us = facts.start_us if facts.end_us is None else facts.end_us
    if start_us is None or end_us is None:
        return False
    return (since_us is None or end_us >= since_us) and (until_us is None or start_us < until_us)


def changed_runs(log: ManifestLog, state: RawState, since: int) -> set[str]:
    """Return the runs to which deltas after a version may have given another row, outcome, trust or facts.

    Runs that are stored only after that version may be among them.

    Args:
      log: the raw manifest.
      state: its present state; deltas after it are ignored.
      since: the version.
    """
    changed: set[str] = set()
    subjects: set[tuple[str, str]] = set()
    for version, delta in log.since(since):
        if version > state.version:
            break
        for name in ("reclaims", "corrections"):
            changed.update(record["mention"]["run_id"] for record in delta.get(name, ()))
        changed.update(change["run_id"] for change in delta.get("trust_changes", ()))
        for record in delta.get("updates", ()):
            subjects.update((update["source"], update["subject"]) for update in record["updates"])
    for subject in subjects:
        changed.update(facts.run_id for facts in state.index.subjects.runs(subject, sys.maxsize))
    return changed


class RunEntry(NamedTuple):
    """A record of a run: its version, its kind (or `TRUST_CHANGE`), and its JSON."""

    version: int
    kind: str
    record: Mapping[str, Any]


def entries_of(log: ManifestLog, until: int, run_id: str, progress: Progress = no_progress) -> list[RunEntry]:
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


def last_row(log: ManifestLog, state: RawState, run_id: str) -> RunRecord | None:
    """Return the raw row of a run that counts; None for an unknown run. The newest deltas are searched first."""
    if state.index.run(run_id) is None:
        return None
    needle = _needle(run_id)
    run_log = StoredRunLog(log)
    for version in range(state.version, 0, -1):
        if needle in log.read_raw(version):
            for row in reversed(run_log.read(version).rows):
                if row.mention.run_id == run_id:
                    return row
    return None


class Attempt(NamedTuple):
    """An attempt of a job: run id, number, outcome with corrections, start (µs; None if unknown), kind of record."""

    run_id: str
    attempt: int
    outcome: str
    start_us: int | None
    kind: str


def attempts_of(
    log: ManifestLog, state: RawState, entries: list[RunEntry], progress: Progress = no_progress
) -> list[Attempt]:
    """Return all attempts of a run's job, with the run itself, by number and start; none if they are not linked.

    An attempt with a raw row has the kind ``run``, another one that of its last record.

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
    source = source_of(mentions[0]["run_id"])
    attempts: dict[str, Attempt] = {}
    for _, delta in _deltas_with(log, state.version, linked, progress):
        for kind, record in records_of(delta):
            mention = record.get("mention", {})
            run_id: str = mention.get("run_id", "")
            if mention.get("attempt_of") != linked or source_of(run_id) != source:
                continue
            indexed = state.index.run(run_id)
            outcome = indexed.outcome if indexed else mention.get("outcome", "")
            number = int(run_id.rpartition("~")[2])
            attempts[run_id] = Attempt(
                run_id, number, outcome, mention.get("start_us"), kind if indexed is None else "run"
            )
    return sorted(attempts.values(), key=lambda attempt: (attempt.attempt, attempt.start_us or 0, attempt.run_id))


def _deltas_with(log: ManifestLog, until: int, text: str, progress: Progress) -> Iterator[tuple[int, Delta]]:
    """Yield the deltas that contain a JSON string, up to a version. The others are not parsed."""
    needle = _needle(text)
    for version, data in log.raw_since(0):
        if version > until:
            return
        progress("deltas", version, until)
        if needle in data:
            yield version, log.parse(version, data)


def _needle(text: str) -> bytes:
    """Return a JSON string as the manifest encodes it."""
    return json.dumps(text, ensure_ascii=False).encode(errors="replace")
