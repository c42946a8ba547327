"""The runs of the simulated year: recorded ones on a made-up calendar, and what its events do to them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ciml.errors import RejectedInput
from ciml.events.records import RunFacts
from ciml.events.run_facts import facts_from_listing
from ciml.services.trainer import Triggers
from ciml.transforms.parse.logs import Log, parse_logs

DAY_US = 86_400_000_000
START_US = 1_767_225_600_000_000  # 2026-01-01
SOURCE, BAD_SOURCE = "farm-1", "farm-2"
TRIGGERS = Triggers(new_runs=400, on_drift=True, on_accuracy=True)


@dataclass(frozen=True)
class Plan:
    """The events of a year. Weeks count from 0; None leaves an event out.

    Attributes:
      weeks: length of the year.
      seed: of labels' delays, sources and authors.
      label_delay_days: largest delay; a run is stored, with its label, 1 to so many days after it ended.
      drift: from this week on, machines are faster.
      speed: a faster machine needs this share of a run's seconds, and has this share of its load.
      bad: in this week, most runs come from a second source, which reports the class of the next run in sorted order.
      purge: at the beginning of this week, an operator purges that week of that source.
      rollback: at the beginning of this week, an operator rolls back.
      erase: at the beginning of each of these weeks, the runs of an author are purged and erased; later ones are
        for runs that were stored after the first.
      triggers: when the trainer refreshes.
    """

    weeks: int = 52
    seed: int = 1
    label_delay_days: int = 10
    drift: int | None = 18
    speed: float = 0.6
    bad: int | None = 27
    purge: int | None = 30
    rollback: int | None = 37
    erase: tuple[int, ...] = (44, 46)
    triggers: Triggers = TRIGGERS


@dataclass(frozen=True)
class Run:
    """A run of the year.

    Attributes:
      facts: with its times, source and author of the year, and the reported class.
      table: its telemetry.
      day: on which it ended.
      stored: on which it is stored.
      name: its true class.
    """

    facts: RunFacts
    table: pa.Table
    day: int
    stored: int
    name: str


def read(listing: Path, label: str) -> list[tuple[RunFacts, pa.Table]]:
    """Read a listing with its logs; runs without a usable log or without the label are left out.

    The order is that of the recording within each provider, with the providers interleaved.
    """
    by_provider: dict[str, list[dict[str, Any]]] = {}
    lines = [json.loads(line) for line in listing.read_text().splitlines()]
    for line in sorted(lines, key=lambda line: (line["end_time"], line["build_uuid"])):
        by_provider.setdefault(line.get("node_provider", ""), []).append(line)
    placed = [
        ((index + 0.5) / len(of_one), number, line)
        for number, of_one in enumerate(by_provider.values())
        for index, line in enumerate(of_one)
    ]
    ordered = [line for _, _, line in sorted(placed, key=lambda place: place[:2])]
    facts = [facts_from_listing(line) for line in ordered]
    logs = (gzip.decompress((listing.parent / line["log_path"]).read_bytes()) for line in ordered)
    tables = parse_logs([Log(log, run.start_us, run.end_us) for log, run in zip(logs, facts, strict=True)])
    return [
        (run, table)
        for run, table in zip(facts, tables, strict=True)
        if not isinstance(table, RejectedInput) and run.labels.get(label)
    ]


def year_of(recorded: Sequence[tuple[RunFacts, pa.Table]], label: str, plan: Plan) -> list[Run]:
    """Return the runs of the year: their times, sources and authors, and what its events do to them."""
    random = np.random.default_rng(plan.seed)
    names = sorted({facts.labels[label] for facts, _ in recorded})
    runs = []
    for index, (facts, table) in enumerate(recorded):
        at = (index + 0.5) / len(recorded) * plan.weeks * 7
        week = int(at // 7)
        if plan.drift is not None and week >= plan.drift:
            table = faster(table, plan.speed)
        seconds = table.num_rows
        end_us = START_US + round(at * DAY_US)
        name = facts.labels[label]
        is_bad = week == plan.bad and random.random() < 0.6
        is_other = is_bad or random.random() < 0.1
        reported = names[(names.index(name) + 1) % len(names)] if is_bad else name
        changes = {"start_us": end_us - seconds * 1_000_000, "end_us": end_us, "labels": {label: reported}}
        owner = f"author-{random.integers(20)}"
        stored = int(at) + 1 + int(random.integers(plan.label_delay_days))
        told = facts.replace(source=BAD_SOURCE if is_other else SOURCE, owner=owner, **changes)
        runs.append(Run(told, moved(table, end_us - seconds * 1_000_000), int(at), stored, name))
    return runs


def faster(table: pa.Table, speed: float) -> pa.Table:
    """Return the telemetry of a run on a faster machine: fewer samples, and a smaller load."""
    count = max(1, int(table.num_rows * speed))
    rows = np.minimum((np.arange(count) / speed).astype(int), table.num_rows - 1)
    sped = table.take(pa.array(rows))
    for index, name in enumerate(table.column_names):
        if name in ("time", "boot"):
            sped = sped.set_column(index, table.field(index), table.column(index)[:count])
        elif name.startswith("load avg"):
            sped = sped.set_column(index, table.field(index), pa.compute.multiply(sped.column(index), speed))
    return sped


def moved(table: pa.Table, start_us: int) -> pa.Table:
    """Return telemetry that begins at a time."""
    times = table.column("time")
    whole = times.cast(pa.int64())
    new = pa.compute.add(whole, start_us - whole[0].as_py())
    return table.set_column(table.column_names.index("time"), table.field("time"), new.cast(times.type))
