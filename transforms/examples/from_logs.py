"""Make windows directly from logs, which are fetched, parsed and downsampled without a raw store.

A definition is resolved before windows can be made: first by the logs' columns, then by their lengths. So a `LogReader`
keeps the telemetry that it has parsed, up to a limit; other logs are read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ciml.datasets.definition import ResolvedDefinition
from ciml.errors import EngineError, RejectedInput
from ciml.events.records import Origin, PendingRun, RunFacts
from ciml.runs.neighbours import Neighbours
from ciml.transforms.examples.context import with_context
from ciml.transforms.examples.downsample import Windows, downsample, merge_windows
from ciml.transforms.fetch.policy import FetchPolicy

#: Limit of telemetry that is kept until its windows are computed.
KEPT_BYTES = 256 << 20


class LogOf(NamedTuple):
    """A run's log: its address, the run's facts, whose times decide those of the log, and the run's neighbours."""

    address: str
    facts: RunFacts
    near: Neighbours | None = None

    @property
    def run_id(self) -> str:
        return self.facts.run_id

    def pending(self, index: int) -> PendingRun:
        """Return the run for fetching its log, with ``index`` as its origin."""
        facts = RunFacts(self.run_id, "", log_url=self.address, start_us=self.facts.start_us, end_us=self.facts.end_us)
        return PendingRun(Origin("", 0, index), "", facts)


class LogReader:
    """Reads logs. Keeps telemetry that `columns` has read until its windows are requested.

    Args:
      fetch: the allowed addresses, and the limits.
      kept_bytes: limit of kept telemetry, bytes.
    """

    def __init__(self, fetch: FetchPolicy, kept_bytes: int = KEPT_BYTES) -> None:
        self._fetch = fetch
        self._free_bytes = kept_bytes
        self._kept: dict[str, pa.Table] = {}

    def columns(self, logs: Sequence[LogOf]) -> list[tuple[str, ...] | None]:
        """Read the column names of each log; None for an unusable one.

        Raises:
          EngineError: if a log cannot be read for a transient reason.
        """
        names_by_log: dict[int, tuple[str, ...]] = {}
        shared: dict[tuple[str, ...], tuple[str, ...]] = {}
        for part in self._parts(logs, range(len(logs))):
            tables = {index: table for index, table in part.items() if isinstance(table, pa.Table)}
            for index, table in tables.items():
                names = tuple(table.column_names)
                names_by_log[index] = shared.setdefault(names, names)  # shared: it may be sent to another process
            size = sum(8 * table.num_rows * table.num_columns for table in tables.values())
            if size <= self._free_bytes:  # all or none: tables of a part share their buffers
                self._kept.update((logs[index].run_id, table) for index, table in tables.items())
                self._free_bytes -= size
            del part, tables
        return [names_by_log.get(index) for index in range(len(logs))]

    def tables(self, logs: Sequence[LogOf]) -> list[pa.Table | None]:
        """Read the telemetry of each log; None for an unusable one.

        Raises:
          EngineError: if a log cannot be read for a transient reason.
        """
        tables = {index: self._kept[log.run_id] for index, log in enumerate(logs) if log.run_id in self._kept}
        for part in self._parts(logs, [index for index in range(len(logs)) if index not in tables]):
            tables.update((index, table) for index, table in part.items() if isinstance(table, pa.Table))
        return [tables.get(index) for index in range(len(logs))]

    def lengths(self, logs: Sequence[LogOf], resolved: ResolvedDefinition) -> np.ndarray:
        """Compute the number of windows of each run, int32 [n]; 0 for an unusable log.

        Raises:
          EngineError: if a log cannot be read for a transient reason.
        """
        tables = {index: self._kept[log.run_id] for index, log in enumerate(logs) if log.run_id in self._kept}
        return self._windows(logs, resolved, tables).n_windows

    def windows(self, logs: Sequence[LogOf], resolved: ResolvedDefinition) -> Windows:
        """Compute the windows of the runs, and forget their telemetry. An unusable log is rejected with its reason.

        Raises:
          EngineError: if a log cannot be read for a transient reason.
        """
        tables = {index: self._kept.pop(log.run_id) for index, log in enumerate(logs) if log.run_id in self._kept}
        return self._windows(logs, resolved, tables)

    def _windows(self, logs: Sequence[LogOf], resolved: ResolvedDefinition, kept: dict[int, pa.Table]) -> Windows:
        parts = [_windows_of(kept, logs, resolved)] if kept or not logs else []
        rejected: list[tuple[int, RejectedInput]] = []
        for part in self._parts(logs, [index for index in range(len(logs)) if index not in kept]):
            rejected += [(index, reason) for index, reason in part.items() if isinstance(reason, RejectedInput)]
            tables = {index: table for index, table in part.items() if isinstance(table, pa.Table)}
            if tables or not parts:
                parts.append(_windows_of(tables, logs, resolved))
            del part, tables
        merged = merge_windows(parts, len(logs))
        return replace(merged, rejected=tuple(sorted((*merged.rejected, *rejected), key=itemgetter(0))))

    def _parts(self, logs: Sequence[LogOf], indices: Sequence[int]) -> Iterator[dict[int, pa.Table | RejectedInput]]:
        """Read the logs at some indices; yield the results by index, part by part."""
        # The processes that read import it in parallel.
        from ciml.transforms.ingest.run_stages import TRANSIENT, read_logs

        for batch in read_logs([logs[index].pending(index) for index in indices], self._fetch):
            parsed: dict[int, pa.Table | RejectedInput] = {
                pending.origin.offset: pending.telemetry for pending in batch.pending_runs
            }
            for outcome in batch.settled:
                if outcome.reason in TRANSIENT:
                    raise EngineError(f"{outcome.run_id}: cannot read its log: {outcome.reason}, {outcome.detail}")
                parsed[outcome.origin.offset] = RejectedInput(outcome.reason, outcome.detail)
            del batch
            yield parsed
            del parsed


def _windows_of(
    tables: dict[int, pa.Table], logs: Sequence[LogOf], resolved: ResolvedDefinition
) -> tuple[np.ndarray, Windows]:
    """Compute the windows of the runs with tables; return (their indices int64 [m], their windows)."""
    indices = sorted(tables)
    ordered = [tables[index] for index in indices]
    facts = [logs[index].facts for index in indices]
    neighbours = [logs[index].near for index in indices]
    windows = with_context(downsample(ordered, resolved), facts, ordered, resolved, neighbours)
    return np.array(indices, np.int64), windows
