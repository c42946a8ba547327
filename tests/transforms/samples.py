"""Runs for tests of data sets: the sample corpus, and tables that are written down by hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition, resolve
from ciml.events.records import RunFacts
from ciml.events.run_facts import facts_from_listing
from ciml.runs.neighbours import Neighbours
from ciml.transforms.examples.context import with_context
from ciml.transforms.examples.downsample import Windows, downsample
from ciml.transforms.examples.prepare import Examples, examples_from
from ciml.transforms.parse.logs import Log, parse_logs
from tests.corpus import CORPUS, builds

USR, LOAD = "total cpu usage:usr", "load avg:1m"
#: The projects of the corpus, sorted: a label that every run has.
PROJECTS = tuple(sorted({line["project"] for line in builds()}))


_parsed: dict[Path, pa.Table] = {}  # parts of the corpus have runs in common


@lru_cache
def corpus(count: int | None = None) -> tuple[tuple[RunFacts, ...], tuple[pa.Table, ...], tuple[Path, ...]]:
    """Return facts, telemetry and logs of so many runs of the corpus, in order of their end; of all by default.

    See `tests.corpus.builds`: a part of the corpus does not change when it grows.
    """
    lines = builds(count)
    runs = tuple(facts_from_listing({**line, "log_path": ""}) for line in lines)
    paths = tuple(CORPUS / line["log_path"] for line in lines)
    new = [(path, run) for path, run in zip(paths, runs, strict=True) if path not in _parsed]
    for (path, _), table in zip(
        new, parse_logs([Log(path.read_bytes(), run.start_us, run.end_us) for path, run in new]), strict=True
    ):
        assert isinstance(table, pa.Table), table
        _parsed[path] = table
    return runs, tuple(_parsed[path] for path in paths), paths


#: The providers that `by_recording` names.
RECORDINGS = ("first", "later")


def by_recording(run: RunFacts) -> RunFacts:
    """Return a run of the corpus with its recording as the provider: as for a cloud, absolute memory names it."""
    return run.replace(provider="later" if run.change else "first")


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


def make_examples(
    runs: Sequence[RunFacts],
    tables: Sequence[pa.Table],
    resolved: ResolvedDefinition,
    neighbours: Sequence[Neighbours | None] = (),
) -> Examples:
    """Make the examples of runs from their whole tables; ``neighbours`` of each run are empty if they are unknown."""

    def windows_of(indices: Sequence[int]) -> Windows:
        chosen_runs = [runs[index] for index in indices]
        chosen_tables = [tables[index] for index in indices]
        chosen_neighbours = [neighbours[index] for index in indices] if neighbours else ()
        windows = downsample(chosen_tables, resolved)
        return with_context(windows, chosen_runs, chosen_tables, resolved, chosen_neighbours)

    return examples_from(runs, windows_of, resolved)
