"""A replaced pack stays until a grace after the version of the table without it: readers of older versions succeed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.runs.compact import Compaction, compact
from ciml.runs.tables import FOLDER, store_of
from ciml.runs.tables.delta_log import DeltaLog
from ciml.runs.tables.publish import publish_tables
from tests.runs.compacting import DAY, FAR, all_there, run, squeeze
from tests.runs.scenes import RawStore
from tests.runs.tables.readers import Rows, by_delta_rs
from tests.runs.tables.scenes import expected


class Table:
    """The table of telemetry of a store with two packs, of which a merge makes one."""

    def __init__(self, data: DataRoot) -> None:
        self.data, self.raw = data, RawStore(data)
        self.raw.add([run(1), run(2)])
        squeeze(data.raw)
        self.publish()
        self.raw.add([run(3), run(4)])
        self.squeeze_later()

    def publish(self) -> None:
        list(publish_tables(self.data, ["raw"]))

    def squeeze_later(self, grace_s: float = 4_000_000_000) -> Compaction:
        """Pack and merge; nothing is old enough to be removed."""
        return squeeze(self.data.raw, grace_s=grace_s)

    def collect(self, grace_s: float, now_s: float = FAR.now_s) -> Compaction:
        """Collect garbage; all files are old by this clock."""
        return compact(self.data.raw, grace_s=grace_s, older_than_s=0, min_runs=1, clock=lambda: now_s)

    def read(self) -> Rows:
        return by_delta_rs(store_of(self.data, "raw").root, {})[1]

    def packs(self) -> int:
        return sum(path.endswith(".parquet") for path in self.data.raw.list("packs/job=unit-tests"))


@pytest.fixture
def table(data: DataRoot) -> Table:
    return Table(data)


def test_packs_that_the_table_has_are_never_removed(table: Table) -> None:
    assert table.packs() == 3
    done = table.collect(grace_s=0)  # the merged pack is not published yet
    assert (done.swept.packs, done.swept.held, table.packs()) == (1, 1, 2)  # that of 3 and 4 was never published
    assert len(table.read()) == 8
    all_there(table.data.raw)
    table.publish()
    assert len(table.read()) == 16


def test_packs_that_left_the_table_stay_for_the_grace(table: Table) -> None:
    from deltalake import DeltaTable

    old = DeltaTable(store_of(table.data, "raw").root)
    table.publish()
    removed_s = next(iter(DeltaLog(store_of(table.data, "raw")).read().removed.values())) / 1000
    # By their own times and by that of the manifest, packs are old enough; by the table's version, a second is missing.
    for path in Path(table.data.raw.root, "packs").rglob("*.parquet"):
        os.utime(path, (1, 1))
    _age_manifests(table.data)
    done = table.collect(grace_s=DAY, now_s=removed_s + DAY - 1)
    assert (done.swept.packs, done.swept.held) == (1, 1)
    assert old.to_pyarrow_table().num_rows == 8
    done = table.collect(grace_s=DAY, now_s=removed_s + DAY + 1)
    assert (done.swept.packs, done.swept.held, table.packs()) == (1, 0, 1)
    assert table.read() == expected(table.data, "raw")


def _age_manifests(data: DataRoot) -> None:
    """Let all packs be replaced long ago."""
    for path in data.raw.list("packs/job=unit-tests"):
        if "/_manifest/" in path:
            data.raw.replace(path, json.dumps({**json.loads(data.raw.read(path)), "time_us": 1}).encode())
    cursor = json.loads(data.raw.read("packs/compaction.json"))
    data.raw.replace("packs/compaction.json", json.dumps({**cursor, "tidy": dict.fromkeys(cursor["tidy"], 1)}).encode())


def test_without_a_table_nothing_is_held(table: Table) -> None:
    for path in table.data.raw.list(f"packs/{FOLDER}"):
        table.data.raw.delete(path)
    done = table.collect(grace_s=0)
    assert (done.swept.packs, done.swept.held, table.packs()) == (2, 0, 1)


def test_while_the_log_is_damaged_packs_stay_and_it_is_reported(table: Table) -> None:
    log = DeltaLog(store_of(table.data, "raw"))
    log.store.replace(log.path(0), b"{")
    done = table.collect(grace_s=0)
    assert (done.swept.packs, done.swept.held, table.packs()) == (0, 2, 3)
    assert [fault.partition(":")[0] for fault in done.swept.faults] == ["replaced packs are kept"]
    assert "delete this folder and publish again" in done.swept.faults[0]
    all_there(table.data.raw)
