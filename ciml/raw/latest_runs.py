"""The stored runs, each with its last row and its present outcome."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ciml.events.records import RawFile, RunFacts, rows_of
from ciml.manifest.log import ManifestLog
from ciml.raw.state import RawState


class StoredRun(NamedTuple):
    """A stored run.

    Attributes:
      facts: of the event that its row came from.
      outcome: with corrections.
      trust: the decision when it was ingested: ``trusted``, ``rule`` and ``policy``; empty in rows of older versions.
      file: its raw object.
      version: the version of the raw manifest that committed the row.
    """

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


def latest_runs(log: ManifestLog, state: RawState) -> Iterator[StoredRun]:
    """Yield all runs up to the state, the last committed first. Reads the manifest lazily.

    A run that was reclaimed appears once, with the row that counts.
    """
    for version in range(state.version, 0, -1):
        records = rows_of(log.read(version))
        state.index.prefetch(runs=[record["mention"]["run_id"] for record in records])
        for record in reversed(records):
            facts, file = RunFacts.from_json(record["mention"]), RawFile.from_json(record["file"])
            known = state.index.run(facts.run_id)
            if known and known.digest != file.digest:
                continue  # reclaimed: a later row counts
            outcome = known.outcome if known else facts.outcome or ""
            yield StoredRun(facts, outcome, record.get("trust", {}), file, version)
