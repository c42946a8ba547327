"""Read recordings of real CI jobs: runs whose true causes are known, which no CI system knows.

A recording is a folder with ``builds.jsonl`` and the logs that it names.
"""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ciml.errors import RejectedInput
from ciml.events.outcomes import CAUSE, CAUSES, FAILED
from ciml.events.records import RawFile, RunFacts, Trust
from ciml.events.run_facts import facts_from_listing
from ciml.runs.causes import Causes
from ciml.runs.run_log import RunDelta, RunRecord
from ciml.transforms.parse.logs import Log, parse_logs

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@dataclass(frozen=True)
class Recorded:
    """The runs of recordings, in order of their ends.

    Attributes:
      facts: of all n runs, as a CI system knows them.
      tables: their telemetry.
      known: by run id, the cause that the recording knows.
      rerun: by run id, the cause by reruns alone.
      groups: str [n], the change of each run, or the run where it has none.
    """

    facts: tuple[RunFacts, ...]
    tables: tuple[pa.Table, ...]
    known: Mapping[str, str]
    rerun: Mapping[str, str]
    groups: np.ndarray

    def truth(self, run_id: str) -> str:
        """Return the cause of a failed run: as recorded, else by reruns; "" where neither says it."""
        return self.known.get(run_id) or self.rerun.get(run_id, "")

    def of(self, runs: Sequence[int]) -> Recorded:
        """Return some of the runs, by their indices."""
        facts = tuple(self.facts[index] for index in runs)
        tables = tuple(self.tables[index] for index in runs)
        return Recorded(facts, tables, self.known, self.rerun, self.groups[runs])

    @property
    def failed(self) -> list[int]:
        """The indices of the failed runs with a cause."""
        return [index for index, run in enumerate(self.facts) if run.outcome in FAILED and self.truth(run.run_id)]

    @property
    def failed_facts(self) -> list[RunFacts]:
        """The facts of the failed runs."""
        return [self.facts[index] for index in self.failed]

    @property
    def failed_groups(self) -> np.ndarray:
        """The groups of the failed runs, str [failed]."""
        return self.groups[self.failed]

    @property
    def labels(self) -> np.ndarray:
        """The positions in `CAUSES` of the causes of the failed runs, int64 [failed]."""
        return np.array([CAUSES.index(self.truth(run.run_id)) for run in self.failed_facts])


def read(folders: Sequence[Path]) -> Recorded:
    """Read recordings; runs without a usable log are left out."""
    collect = _collect()
    rejected: list[str] = []
    runs = [run for folder in folders for run in collect.read_recording(folder, rejected)]
    runs.sort(key=lambda run: (run.line["end_time"], run.line["build_uuid"]))
    explaining = {"patch", "trouble", "trouble_s", "fault", CAUSE}
    facts = []
    causes = {}
    for run in runs:
        line = {key: value for key, value in run.line.items() if key not in explaining and key != "log_path"}
        line_facts = facts_from_listing({**line, "log_path": ""})
        facts.append(line_facts)
        if CAUSE in run.line:
            causes[line_facts.run_id] = str(run.line[CAUSE])
    tables = parse_logs(
        [
            Log(gzip.decompress(run.log), line_facts.start_us, line_facts.end_us)
            for run, line_facts in zip(runs, facts, strict=True)
        ]
    )
    usable = [index for index, table in enumerate(tables) if not isinstance(table, RejectedInput)]
    by_run = Causes(lambda job: True)
    rows = tuple(RunRecord(facts[index], RawFile("", "", 0, 0), Trust(True, "", "")) for index in usable)
    by_run.add(RunDelta(runs=rows))
    by_reruns = {facts[index].run_id: cause for index in usable if (cause := by_run.by_reruns(facts[index].run_id))}
    groups = np.array([facts[index].change or facts[index].run_id for index in usable])
    return Recorded(
        tuple(facts[index] for index in usable), tuple(tables[index] for index in usable), causes, by_reruns, groups
    )


def _collect() -> Any:
    spec = importlib.util.spec_from_file_location("collect", EXAMPLES / "corpus" / "collect.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def day_us(text: str) -> int:
    """Return the begin of a day (UTC), epoch microseconds."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1e6)
