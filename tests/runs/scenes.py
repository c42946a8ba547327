"""A raw store with runs in it, written as ingest writes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from ciml.data_root import DataRoot
from ciml.digest import telemetry_digest
from ciml.events.records import Origin, Outcome, OutputFile, RawFile, RunFacts, Trust
from ciml.manifest.log import ManifestLog
from ciml.runs.outputs import store_output
from ciml.runs.writer import run_path, write_run
from ciml.transforms.logs.prepare import prepare_output

TRUSTED, UNTRUSTED = Trust(True, "gate", "0"), Trust(False, "none", "0")


class RawStore:
    """Appends deltas to the raw manifest of a data root."""

    def __init__(self, data: DataRoot) -> None:
        self.store = data.raw
        self.log = ManifestLog(self.store)
        deltas = [delta for _, delta in self.log.since(0)]
        self._version = len(deltas)
        covered = [delta["offsets"]["ci-events"] for delta in deltas if "ci-events" in delta["offsets"]]
        self._offset = covered[-1]["partitions"]["0"][-1][1] - 1 if covered else 0

    def add(
        self,
        runs: Sequence[tuple[RunFacts, pa.Table]] = (),
        corrections: Sequence[RunFacts] = (),
        others: Sequence[tuple[RunFacts, pa.Table]] = (),
        trust: Trust = TRUSTED,
        reclaims: Sequence[tuple[RunFacts, pa.Table]] = (),
        outputs: Mapping[str, bytes] | None = None,
        missing: str | None = None,
    ) -> int:
        """One delta with these runs, corrections, and known runs with another log. Returns its version.

        ``outputs`` are those of the runs, by run id; ``missing`` is why the others have none.
        """
        first = self._offset + 1
        rows = [self._with_output(self._run(facts, table, trust), outputs or {}, missing) for facts, table in runs]
        delta: dict[str, Any] = {
            "time_us": 0,
            "runs": [row.to_json() for row in rows],
            "repeats": [
                {**self._run(*each, trust).to_json(), "kind": "repeat", "reason": "other_log"} for each in others
            ],
            "corrections": [self._outcome("correction", facts, trust).to_json() for facts in corrections],
            "ignored": [],
            "dead_letters": [],
            "deferred": [],
            "closes": [],
        }
        if reclaims:
            reclaiming = (self._run(facts, table, TRUSTED) for facts, table in reclaims)
            delta["reclaims"] = [row.replace(kind="reclaim").to_json() for row in reclaiming]
        delta["offsets"] = {"ci-events": {"id": "", "partitions": {"0": [[first, self._offset + 1]]}}}
        self._version += 1
        assert self.log.try_append(self._version, delta)
        return self._version

    def write(self, facts: RunFacts, table: pa.Table) -> RawFile:
        """The raw object of a run, which no manifest names."""
        digest = telemetry_digest(facts.run_id, table)
        path = run_path(facts, table, digest)
        data = write_run(table, path)
        self.store.create(path, data)
        return RawFile(path, digest, table.num_rows, len(data))

    def _with_output(self, row: Outcome, outputs: Mapping[str, bytes], missing: str | None) -> Outcome:
        if row.file is None or row.run_id not in outputs:
            return row if missing is None else row.replace(output=OutputFile(missing=missing))
        return row.replace(output=store_output(self.store, row.file, prepare_output([outputs[row.run_id]])))

    def _run(self, facts: RunFacts, table: pa.Table, trust: Trust) -> Outcome:
        return self._outcome("run", facts, trust, self.write(facts, table))

    def _outcome(self, kind: Any, facts: RunFacts, trust: Trust, file: RawFile | None = None) -> Outcome:
        self._offset += 1
        origin = Origin("ci-events", 0, self._offset)
        return Outcome(kind, origin, f"zuul {self._offset}", facts, trust=trust, file=file)
