"""The stored runs, each with its last row and its present outcome."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ciml.events.records import RawFile, RunFacts, rows_of
from ciml.manifest.log import ManifestLog
from ciml.raw.state import RawState


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


def latest_runs(log: ManifestLog, state: RawState) -> Iterator[StoredRun]:
    """Yield all runs up to the state, the last committed first. Reads the manifest lazily.

    A run that was reclaimed appears once, with the row that counts.
    """
    return (row.run for row in latest_rows(log, state) if row.counts)


def latest_rows(log: ManifestLog, state: RawState) -> Iterator[StoredRow]:
    """Yield all raw rows up to the state, the last committed first, those that no longer count too."""
    reclaimed: set[str] = set()
    decisions: dict[str, Mapping[str, Any]] = {}  # of rows that are still to come
    for version in range(state.version, 0, -1):
        delta = log.read(version)
        for change in delta.get("trust_changes", ()):
            decisions.setdefault(change["run_id"], change["trust"])
        records = rows_of(delta)
        own = [RunFacts.from_json(record["mention"]) for record in records]
        state.index.prefetch(runs=[facts.run_id for facts in own])
        state.index.subjects.prefetch_runs(own)
        for facts, record in zip(reversed(own), reversed(records), strict=True):
            run_id, counts = facts.run_id, facts.run_id not in reclaimed
            if record["kind"] == "reclaim":
                reclaimed.add(run_id)
            trust = decisions.pop(run_id, record.get("trust", {}))
            known = state.index.run(run_id)
            outcome = known.outcome if known else facts.outcome or ""
            file = RawFile.from_json(record["file"])
            run = StoredRun(facts, state.index.subjects.join(facts), outcome, trust, file, version)
            yield StoredRow(run, record["kind"], counts)


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
