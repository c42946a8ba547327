"""A raw store that is compacted, and what has to hold of it whenever it is looked at."""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa

from ciml.digest import telemetry_digest
from ciml.events.records import RawFile, RunFacts
from ciml.manifest.log import ManifestLog
from ciml.runs.compact import Compaction, compact
from ciml.runs.pack_index import named_runs, run_of
from ciml.runs.reader import read_runs, verify_run
from ciml.storage import Store
from tests.runs.raw_world import Clock
from tests.transforms.samples import make_facts, table

DAY = 86_400
#: Noon of 2 January 1970: the first day is over.
NOON = 1.5 * DAY
FIRST, SECOND = "job=unit-tests/date=1970-01-01", "job=unit-tests/date=1970-01-02"


def run(number: int, day: int = 0, rows: int = 4, **facts: Any) -> tuple[RunFacts, pa.Table]:
    start = day * DAY * 1_000_000
    times = [start + at * 1_000_000 for at in range(rows)]
    made = table(times, usr=[number + at / 4 for at in range(rows)], load=[1.0] * rows)
    return make_facts(number, start_us=start, **facts), made


def named(raw: Store) -> dict[str, RawFile]:
    """The raw objects that the manifest names, by run id (with more than one: by path)."""
    files = [one for _, delta in ManifestLog(raw).since(0) for one in named_runs(delta)]
    return {one.path: RawFile(one.path, one.digest, one.rows, 0) for one in files}


def all_there(raw: Store) -> None:
    """Every named run is there as it was named, alone and in company."""
    files = named(raw)
    wrong = [verify_run(raw, run_of(os.path.basename(path)), file) for path, file in files.items()]
    assert wrong == [""] * len(files)
    for path, found in zip(files, read_runs(raw, files.values()), strict=True):
        assert telemetry_digest(run_of(os.path.basename(path)), found) == files[path].digest


def squeeze(raw: Store, **settings: Any) -> Compaction:
    """Compaction now, without any grace: the objects' times are real, so the clock is far ahead of them."""
    return compact(raw, **{"grace_s": 0, "aside_s": 0, "older_than_s": 0, "min_runs": 1, "clock": FAR, **settings})


FAR = Clock(4_000_000_000.0)


def objects(raw: Store) -> dict[str, int]:
    """How many objects there are of each kind."""
    paths = raw.list()
    return {
        "runs": sum(path.startswith("runs/") for path in paths),
        "packs": sum(path.startswith("packs/") and path.endswith(".parquet") for path in paths),
        "swept": sum(path.startswith("swept/") for path in paths),
    }
