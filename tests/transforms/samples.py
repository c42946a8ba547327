"""Runs for tests of data sets: the sample corpus, and tables that are written down by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition, resolve
from ciml.errors import RejectedInput
from ciml.events.records import RunFacts
from transforms.parse.logs import Log, parse_logs

CORPUS = Path(__file__).parents[2] / "examples" / "corpus"
USR, LOAD = "total cpu usage:usr", "load avg:1m"


@lru_cache
def corpus(limit: int | None = None) -> tuple[tuple[RunFacts, ...], tuple[pa.Table, ...], tuple[Path, ...]]:
    """What is known of the corpus' runs, their telemetry, and their logs."""
    lines = [json.loads(line) for line in (CORPUS / "builds.jsonl").read_text().splitlines()][:limit]
    runs = tuple(_mention(line) for line in lines)
    paths = tuple(CORPUS / line["log_path"] for line in lines)
    tables = parse_logs(
        [Log(path.read_bytes(), run.start_us, run.end_us) for path, run in zip(paths, runs, strict=True)]
    )
    assert [table for table in tables if isinstance(table, RejectedInput)] == []
    return runs, tuple(tables), paths


def _mention(line: Mapping[str, Any]) -> RunFacts:
    return RunFacts(
        run_id=f"backfill~{line['build_uuid']}~1",
        build_uuid=line["build_uuid"],
        build_name=line["build_name"],
        outcome="success",
        result=line["result"],
        source="backfill",
        provider=line["node_provider"],
        flavour=line["node_flavor"],
        start_us=_us(line["start_time"]),
        end_us=_us(line["end_time"]),
        labels={"framework": line["framework"], "size": line["size"]},
    )


def _us(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1_000_000)


def make_facts(number: int = 1, **facts: Any) -> RunFacts:
    values = {"build_name": "unit-tests", "outcome": "success", "result": "SUCCESS", "source": "zuul", **facts}
    return RunFacts(run_id=f"zuul~{number}~1", build_uuid=str(number), **values)


def table(times_us: Sequence[int], *, boot: Sequence[bool] = (), **columns: Sequence[float | None]) -> pa.Table:
    """Telemetry with the columns ``usr``, ``load`` or ``group__name``."""
    full = {"usr": USR, "load": LOAD}
    return pa.table(
        {
            "time": pa.array(list(times_us), pa.timestamp("us", tz="UTC")),
            "boot": pa.array(list(boot) or [False] * len(times_us), pa.bool_()),
            **{
                full.get(name, name.replace("__", ":")): pa.array(list(values), pa.float64())
                for name, values in columns.items()
            },
        }
    )


def resolved(columns: Sequence[str] = (USR, LOAD), **keys: Any) -> ResolvedDefinition:
    """A definition that resolved to these columns."""
    definition = DatasetDefinition.from_json({"name": "tests", **keys})
    if definition.classes is None and definition.class_label != "status":
        definition = definition.replace(classes=("a", "b"))
    return resolve(definition, [columns], [])
