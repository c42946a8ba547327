"""The table of stored runs: a row each, with corrections, updates and reclaims applied."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from ciml.manifest.log import ManifestLog
from ciml.pipelines.tables.made_parts import Due
from ciml.raw.latest_runs import StoredRun, changed_runs, latest_rows
from ciml.raw.state import RawState
from ciml.tables.parts import Part
from ciml.transforms.raw.arrow_arrays import numbers
from ciml.transforms.raw.run_table import run_table


def make_runs(log: ManifestLog, state: RawState, due: Due) -> Iterator[tuple[Part, pa.Table]]:
    """Yield the parts to make and their rows, the newest part first; rows are in the order of the manifest.

    The manifest is read backwards, until all due parts are made and the first row of each changed run was found.
    """
    missing = set(due.missing)
    changed = changed_runs(log, state, due.since) if due.since else set()
    rows = latest_rows(log, state)
    row = next(rows, None)
    for part in reversed(due.parts):
        if not missing and not changed:
            return
        found: list[StoredRun] = []
        make = part in missing
        while row is not None and row.run.version >= part.first:
            run_id = row.run.facts.run_id
            if run_id in changed:
                make = True
                if row.kind == "run":  # a run's first row
                    changed.discard(run_id)
            if row.counts:
                found.append(row.run)
            row = next(rows, None)
        missing.discard(part)
        if make:
            yield part, stored_table(found[::-1])


def stored_table(runs: list[StoredRun]) -> pa.Table:
    """Return `run_table` and the column ``version``, of the delta that committed the row."""
    versions = np.array([run.version for run in runs], np.int64)
    return run_table(runs).append_column("version", numbers(versions))
