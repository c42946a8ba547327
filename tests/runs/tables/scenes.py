"""A data root with packs, runs of every history and a data set; and the rows that its tables must have."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from ciml.data_root import DataRoot
from ciml.events.records import Origin, Outcome
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.update import update_dataset
from ciml.runs.dead_letters import Choice, all_dead_letters
from ciml.runs.latest_runs import latest_runs
from ciml.runs.pack_index import named_runs
from ciml.runs.reader import load_packs, read_run
from ciml.runs.state import open_raw
from ciml.runs.tables.row_tables import dead_letter_table, stored_table
from ciml.transforms.examples.spans import read_span
from tests.pipelines.datasets.dataset_scenes import define
from tests.runs.compacting import DAY, run, squeeze
from tests.runs.scenes import RawStore
from tests.runs.tables.readers import Rows, ordered
from tests.transforms.samples import make_facts, table

#: A job whose folder has a percent sign, a blank and what else a path can have.
ODD = "Tür #1: 100% a+b/c"


def odd_run(number: int) -> tuple[Any, pa.Table]:
    """A run of another job, with a column named as a partition's."""
    start = 7 * DAY * 1_000_000
    columns = {"load": [1.0, None], "disk__read": [2.0, 3.0], "job": [6.0, 7.0]}
    made = table([start, start + 1_000_000], **columns)
    return make_facts(number, start_us=start, build_name=ODD, labels={"nodes": "3", "ä": "ß"}), made


def make_store(data: DataRoot) -> RawStore:
    """Two days of a job and an odd one, packed: a corrected run, one with another log, a reclaimed one."""
    raw = RawStore(data)
    raw.add([run(number, outcome=("failure" if number % 3 == 0 else "success")) for number in range(1, 7)])
    raw.add([run(7, 1), run(8, 1), odd_run(9)], corrections=[make_facts(2, outcome="failure")])
    raw.add(others=[run(1, rows=3)], reclaims=[run(3, rows=5, outcome="success")])
    squeeze(raw.store)
    _add_dead_letters(data)
    return RawStore(data)


def _add_dead_letters(data: DataRoot) -> None:
    """Three dead letters: one that could not be decoded, one of a run, and one that is closed by the run's row."""
    raw, log = RawStore(data), ManifestLog(data.raw)
    facts = [make_facts(number, log_url="https://logs.example/ü?x=1", source="zuul") for number in (11, 12)]
    first = raw.log.end() * 100
    at = [Origin("ci-events", 0, first + number) for number in range(3)]
    letters = [
        Outcome("dead_letter", at[0], reason="broken_json", detail="line 1: ü", payload={"value": "eA=="}),
        Outcome("dead_letter", at[1], "zuul 11", facts[0], "log_not_found", first_seen_us=7),
        Outcome("dead_letter", at[2], "zuul 12", facts[1], "too_large"),
    ]
    closed = [letters[2].origin.to_json(), facts[1].run_id]
    ignored = letters[2].replace(kind="ignored", reason="skipped")
    nothing: dict[str, Any] = {name: [] for name in ("runs", "repeats", "corrections", "deferred")}
    version = log.end()
    for dead, others, closes in ((letters, [], []), ([], [ignored], [closed])):
        offsets = {
            "ci-events": {"id": "", "partitions": {"0": [[first, first + 3] if dead else [first + 3, first + 4]]}}
        }
        delta = {"time_us": 1_000_000, "offsets": offsets, "dead_letters": [each.to_json() for each in dead], **nothing}
        version += 1
        more = {"ignored": [each.to_json() for each in others], "closes": closes, "closed_letters": closes}
        assert log.try_append(version, {**delta, **more})


def make_dataset(data: DataRoot) -> None:
    define(data, span_runs=3)
    update_dataset(data.dataset("cpu"))


def expected_raw(data: DataRoot) -> Rows:
    """The rows of the runs that are in packs, each read by itself, with the columns of all."""
    found: list[dict[str, Any]] = []
    for _, delta in ManifestLog(data.raw).since(0):
        for each in named_runs(delta):
            if load_packs(data.raw, each.folder).runs.get(each.name) is None:
                continue
            job, _, day = each.folder.partition("/")
            about = {"run_id": each.run_id, "digest": each.digest, "date": day.removeprefix("date=")}
            for row in read_run(data.raw, each.path).to_pylist():
                row.pop("job", None)
                found.append({**row, **about, "job": unquote(job.removeprefix("job="))})
    names = sorted({name for row in found for name in row})
    return ordered(names, [[row.get(name) for name in names] for row in found])


def expected_runs(data: DataRoot) -> Rows:
    return rows_of(stored_table(list(latest_runs(*open_raw(data.raw)))))


def expected_dead_letters(data: DataRoot) -> Rows:
    return rows_of(dead_letter_table(list(all_dead_letters(ManifestLog(data.raw), Choice()))))


def expected_dataset(data: DataRoot, name: str = "cpu") -> Rows:
    dataset = data.dataset(name)
    tables = []
    for span in dataset.state().latest():
        rows = read_span(dataset.store, span)
        tables.append(rows.append_column("span", pa.array([span.span] * rows.num_rows, pa.int32())))
    return rows_of(pa.concat_tables(tables))


def expected(data: DataRoot, name: str) -> Rows:
    """The rows that a table must have."""
    direct = {"raw": expected_raw, "runs": expected_runs, "dead_letters": expected_dead_letters}
    return direct[name](data) if name in direct else expected_dataset(data, name.removeprefix("datasets/"))


def rows_of(rows: pa.Table) -> Rows:
    columns = [rows.column(name).to_pylist() for name in rows.column_names]
    return ordered(rows.column_names, list(zip(*columns, strict=True)))
