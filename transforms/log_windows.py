"""Windows straight from logs: fetched, parsed and downsampled at once, for who stores no telemetry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ciml.definitions import ResolvedDefinition
from ciml.errors import EngineError, Refused
from ciml.records import Candidate, Mention, Origin
from transforms.downsample import Windows, downsample, merge_windows
from transforms.fetch_policy import FetchPolicy

KEPT_BYTES = 256 << 20  # of telemetry that need not be read again once the columns are known


class LogOf(NamedTuple):
    """A run's log: where it is, and what settles its times (`transforms.parse.Log`)."""

    run_id: str
    address: str
    start_us: int | None
    end_us: int | None


class LogReader:
    """Reads logs, and keeps what it parsed for its names until its windows are asked for.

    Args:
      fetch: from where logs may be read, and the limits.
      kept_bytes: the telemetry that is kept at most.
    """

    def __init__(self, fetch: FetchPolicy, kept_bytes: int = KEPT_BYTES) -> None:
        self._fetch, self._left = fetch, kept_bytes
        self._kept: dict[str, pa.Table] = {}

    def columns(self, logs: Sequence[LogOf]) -> list[tuple[str, ...]]:
        """The names of the columns of each log that can be used, in log order.

        Raises:
          EngineError: a log cannot be read for a reason that says nothing of it.
        """
        found, seen = [], dict[tuple[str, ...], tuple[str, ...]]()
        for log, table in zip(logs, self._tables(logs), strict=True):
            if isinstance(table, Refused):
                continue
            names = tuple(table.column_names)
            found.append(seen.setdefault(names, names))  # one for all: it may be on its way to another process
            size = 8 * table.num_rows * table.num_columns
            if size <= self._left:
                self._kept[log.run_id] = table
                self._left -= size
        return found

    def windows(self, logs: Sequence[LogOf], resolved: ResolvedDefinition) -> Windows:
        """The windows of the runs; a log that cannot be used is refused as its dead letter would be.

        Raises:
          EngineError: a log cannot be read for a reason that says nothing of it.
        """
        tables: list[pa.Table | Refused | None] = [self._kept.pop(log.run_id, None) for log in logs]
        missing = [at for at, table in enumerate(tables) if table is None]
        for at, table in zip(missing, self._tables([logs[at] for at in missing]), strict=True):
            tables[at] = table
        good = [at for at, table in enumerate(tables) if isinstance(table, pa.Table)]
        windows = downsample([tables[at] for at in good], resolved)
        if len(good) == len(logs):
            return windows
        whole = merge_windows([(np.array(good, np.int64), windows)], len(logs))
        refused = [(at, table) for at, table in enumerate(tables) if isinstance(table, Refused)]
        return Windows(
            whole.values, whole.run, whole.position, whole.n_windows,
            tuple(sorted((*whole.refused, *refused), key=lambda each: each[0])),
        )  # fmt: skip

    def _tables(self, logs: Sequence[LogOf]) -> list[pa.Table | Refused]:
        from transforms.settle import PASSING, read_logs  # the processes that read import it side by side

        found: dict[str, pa.Table | Refused] = {}
        candidates = [
            Candidate(
                Origin("", 0, at),
                "",
                Mention(log.run_id, "", log_url=log.address, start_us=log.start_us, end_us=log.end_us),
            )
            for at, log in enumerate(logs)
        ]
        for batch in read_logs(candidates, self._fetch):
            found.update((each.mention.run_id, each.telemetry) for each in batch.candidates)
            for outcome in batch.settled:
                if outcome.reason in PASSING:
                    raise EngineError(f"{outcome.run_id}: its log cannot be read: {outcome.reason}, {outcome.detail}")
                found[outcome.run_id] = Refused(outcome.reason, outcome.detail)
        return [found[log.run_id] for log in logs]
