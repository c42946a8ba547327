"""Measure how long the tables of many runs take to publish and to open. Writes the table of docs/tables.md.

    python -m studies.tables DATA RUNS

Seconds of CPU of whole processes, with wall seconds in parentheses.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from ciml.data_root import DataRoot
from ciml.digest import telemetry_digest
from ciml.events.records import Origin, Outcome, RawFile, RunFacts
from ciml.manifest.checkpoints import Checkpoints
from ciml.manifest.log import ManifestLog
from ciml.runs.pack_index import pack_log
from ciml.runs.packing import PackWriter
from ciml.runs.state import RAW
from ciml.storage import open_store
from studies.many_runs import DAY_US, fill_store
from tests.runs.scenes import TRUSTED
from tests.transforms.samples import table

JOBS = 40
SAMPLES = 8
_START_US = 1_700_000_000_000_000
_PUBLISH = (
    "from ciml.cli.main import main; import sys; sys.argv = ['ciml', 'tables', 'publish', '--data-path', {!r}]; main()"
)
_DUCKDB = """
import duckdb
from tests.runs.tables.readers import load_delta
connection = duckdb.connect()
load_delta(connection, {{}})
print(connection.sql({query!r}).fetchall())
"""
_QUERIES = {
    "open runs in DuckDB, outcomes by job": "SELECT count(*) FROM (SELECT build_name, outcome, count(*) "
    "FROM delta_scan('{data}/tables/runs') GROUP BY ALL)",
    "open raw in DuckDB, count": "SELECT count(*) FROM delta_scan('{data}/raw/packs')",
    "open raw in DuckDB, one job and day": "SELECT avg(\"total cpu usage:usr\") FROM delta_scan('{data}/raw/packs') "
    "WHERE job = 'job-7' AND date = '2023-11-20'",
    "open raw in DuckDB, join with failed runs": "SELECT count(*) FROM delta_scan('{data}/raw/packs') JOIN "
    "delta_scan('{data}/tables/runs') USING (run_id, digest) WHERE outcome = 'failure'",
}


def runs(number: int) -> Iterator[tuple[RunFacts, pa.Table]]:
    """Yield runs of some jobs, 357 a job and day."""
    per_day = 357
    for index in range(number):
        folder, position = divmod(index, per_day)
        day, job = divmod(folder, JOBS)
        start = _START_US + day * DAY_US + position * 1_000_000
        facts = RunFacts(
            f"zuul~{index}~1",
            f"{index}",
            f"job-{job}",
            outcome="success" if index % 5 else "failure",
            start_us=start,
            source="zuul",
            project=f"project-{job % 7}",
            change=f"{index // 3}",
            provider=f"cloud-{index % 4}",
        )
        times = [start + second * 1_000_000 for second in range(SAMPLES)]
        yield facts, table(times, usr=[index % 100 + second for second in range(SAMPLES)], load=[1.0] * SAMPLES)


def add(data: DataRoot, new: Sequence[tuple[RunFacts, pa.Table]], corrected: Sequence[RunFacts]) -> None:
    """Append a delta of runs, in one pack of a new folder, and of corrections."""
    log = ManifestLog(data.raw)
    folder = "job=new/date=2024-01-01"
    writer = PackWriter(folder, new[0][1].schema)
    rows = []
    for index, (facts, telemetry) in enumerate(new):
        digest = telemetry_digest(facts.run_id, telemetry)
        name = f"{facts.run_id}.{digest[:16]}.parquet"
        writer.add(name, digest, telemetry)
        file = RawFile(f"runs/{folder}/{name}", digest, telemetry.num_rows, 0)
        rows.append(Outcome("run", Origin("more", 0, index), "", facts, trust=TRUSTED, file=file).to_json())
    pack, content = writer.finish()
    data.raw.create(pack.path, content)
    delta = {"time_us": 0, "packs": [pack.to_json()], "replaces": [], "alone": {}}
    assert pack_log(data.raw, folder).try_append(1, delta)
    fixes = [
        Outcome("correction", Origin("fixes", 0, index), "", facts.replace(outcome="timeout"), trust=TRUSTED).to_json()
        for index, facts in enumerate(corrected)
    ]
    lists: dict[str, list[object]] = {name: [] for name in ("repeats", "ignored", "dead_letters", "deferred", "closes")}
    assert log.try_append(log.end() + 1, {"time_us": 0, "runs": rows, "corrections": fixes, "offsets": {}, **lists})


def measure(what: str, code: str) -> None:
    """Run code in a process of its own, and print its seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{what}: {cpu:.2f} s ({time.perf_counter() - start:.2f} s)  {process.stdout.strip()[:300]}", flush=True)


def main() -> None:
    folder = Path(sys.argv[1])
    number = int(sys.argv[2])
    data = DataRoot.open(folder)
    if not folder.exists():
        fill_store(open_store(folder), runs(number), per_folder=357)
        checkpoints = Checkpoints(ManifestLog(data.raw), RAW)
        while checkpoints.maintain():
            pass
    print(f"{number:,} runs, {sum(path.endswith('.parquet') for path in data.raw.list('packs')):,} packs", flush=True)
    publish = _PUBLISH.format(os.fspath(folder))
    measure("first", publish)
    measure("nothing to do", publish)
    add(data, list(runs(number + 100))[-100:], [facts for facts, _ in runs(number)][-20_000::2_000])
    measure("after 100 more runs in a pack and 10 corrections of the last 20,000 runs", publish)
    for label, query in _QUERIES.items():
        measure(label, _DUCKDB.format(query=query.format(data=folder)))


if __name__ == "__main__":
    main()
