"""The stored runs as an Arrow table."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import numpy as np
import pyarrow as pa

from ciml.raw.latest_runs import StoredRun
from ciml.transforms.raw.arrow_arrays import flags, numbers, text_maps, texts, times

_TIME = pa.timestamp("us", tz="UTC")
_BEFORE = ("run_id", "build_uuid", "build_name")
_FACTS = (
    "source", "event", "pipeline", "project", "branch", "change", "patchset", "review", "provider", "region", "flavour",
)  # fmt: skip


def run_table(runs: Sequence[StoredRun]) -> pa.Table:
    """Return a row for each run, in order.

    Returns:
      ``run_id``, ``build_uuid``, ``build_name``; ``outcome`` with corrections, and ``result``, the producer's own word
      unless the outcome was corrected; the other facts; ``start_time`` and ``end_time`` (timestamp[us, UTC], null if
      unknown), ``labels`` (map); ``trusted`` and ``rule`` of the decision at ingestion; of the telemetry ``rows``,
      ``digest`` and ``path``.
    """
    facts = [run.facts for run in runs]
    results = [run.facts.result if run.outcome == (run.facts.outcome or "") else "" for run in runs]
    columns = {
        **{name: texts(list(map(attrgetter(name), facts))) for name in _BEFORE},
        "outcome": texts([run.outcome for run in runs]),
        "result": texts(results),
        **{name: texts(list(map(attrgetter(name), facts))) for name in _FACTS},
        "start_time": times([each.start_us for each in facts], _TIME),
        "end_time": times([each.end_us for each in facts], _TIME),
        "labels": text_maps([each.labels for each in facts]),
        "trusted": flags([run.trust.get("trusted", False) for run in runs]),
        "rule": texts([run.trust.get("rule", "") for run in runs]),
        "rows": numbers(np.array([run.file.rows for run in runs], np.int64)),
        "digest": texts([run.file.digest for run in runs]),
        "path": texts([run.file.path for run in runs]),
    }
    return pa.Table.from_arrays(list(columns.values()), names=list(columns))
