"""Runs, definitions and fixtures that the tests of data sets share."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition
from ciml.datasets.state import DatasetState
from ciml.events.records import RunFacts
from ciml.pipelines.datasets.update import create_dataset
from tests.golden import make_logs
from tests.transforms.samples import make_facts, table

NOON = make_logs.instant("2026-11-24T12:00:00Z")
SECOND = 1_000_000


def telemetry(number: int) -> pa.Table:
    times = [NOON + second * SECOND for second in range(0, 25, 5)]
    return table(times, usr=[number + 0.5 * second for second in range(5)], load=[1.0 / number] * 5)


def runs(first: int, last: int, **facts: Any) -> list[tuple[RunFacts, pa.Table]]:
    """Runs by number; every third has failed."""
    out = []
    for number in range(first, last + 1):
        outcome = "success" if number % 3 else "failure"
        out.append((make_facts(number, outcome=outcome, result=outcome.upper(), **facts), telemetry(number)))
    return out


def define(data: DataRoot, name: str = "cpu", **keys: Any) -> None:
    create_dataset(data, DatasetDefinition.from_json({"name": name, "span_runs": 4, "max_windows": 4, **keys}))


def resolved_of(state: DatasetState) -> ResolvedDefinition:
    """The resolved definition of a data set with spans."""
    assert state.resolved is not None
    return state.resolved


def run_ids(state: DatasetState) -> list[list[str]]:
    return [[run.run_id.split("~")[1] for run in span.runs] for span in state.latest()]


def ids(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last + 1)]


def files(data: DataRoot, name: str = "cpu") -> dict[str, bytes]:
    """All that makes up a data set, but for the manifest's deltas, which hold the time."""
    root = data.dataset(name).store
    return {path: root.read(path) for path in root.list() if not path.startswith("_manifest")}
