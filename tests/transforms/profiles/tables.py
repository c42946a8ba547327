"""Telemetry tables from plain lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from ciml.events.records import OutcomeWord, RunFacts
from tests.transforms.samples import table

USR, STEAL, USED = "total cpu usage:usr", "total cpu usage:stl", "memory usage:used"
START_US = 1_700_000_000_000_000


def table_of(
    columns: Mapping[str, Sequence[float | None]],
    *,
    every_s: float = 1.0,
    boot: bool = False,
    times: Sequence[int] | None = None,
) -> pa.Table:
    """Return a table with a sample each ``every_s`` seconds; with ``boot``, the first is of the time since the boot."""
    rows = len(next(iter(columns.values())))
    stamps = times if times is not None else [START_US + round(row * every_s * 1e6) for row in range(rows)]
    return table(stamps, boot=[boot and row == 0 for row in range(rows)], **columns)


def facts_of(job: str = "unit", outcome: OutcomeWord = "success", number: int = 0) -> RunFacts:
    return RunFacts(
        run_id=f"zuul~{job}-{number}~1", build_uuid=f"{job}-{number}", build_name=job, source="zuul", outcome=outcome
    )
