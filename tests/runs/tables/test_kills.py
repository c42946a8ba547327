"""Publishers are killed, doubled and overtaken: afterwards the tables show what is stored, and readers never fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from deltalake import DeltaTable

from ciml.data_root import DataRoot
from ciml.pipelines.datasets.update import update_dataset
from ciml.runs.tables import store_of
from ciml.runs.tables.publish import publish_tables
from tests.durable import Steps
from tests.runs.compacting import run, squeeze
from tests.runs.scenes import RawStore
from tests.runs.tables.scenes import expected
from tests.runs.tables.test_publish import TABLES, check, read
from tests.transforms.samples import make_facts

GRACE_S = 5_000_000_000  # the test clock of `squeeze` is far ahead


@pytest.fixture(scope="module")
def grown(published_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], DataRoot]:
    """Return a function that makes a data root whose tables are behind its store."""
    folder = shutil.copytree(published_once, tmp_path_factory.mktemp("grown") / "data")
    grow(DataRoot.open(folder), 20, "failure")
    return lambda: DataRoot.open(shutil.copytree(folder, tmp_path_factory.mktemp("grown") / "data"))


def grow(data: DataRoot, number: int, outcome: str = "success") -> None:
    """Add runs, correct an outcome, compact, and build a new span and a new version of another one."""
    raw = RawStore(data)
    runs = [run(number), run(number + 1), run(number + 2, 1)]
    raw.add(runs, corrections=[make_facts(4, outcome=outcome)])
    squeeze(data.raw, grace_s=GRACE_S)
    update_dataset(data.dataset("cpu"))


#: Rows are stored before a version of the log names them. Two tables name files that are stored already.
STEPS = [
    "create raw/packs/_delta_log/00000000000000000001.json",
    "create tables/runs/000000000001-000000000006.*.parquet",
    "create tables/runs/_delta_log/00000000000000000001.json",
    "create tables/dead_letters/000000000001-000000000006.*.parquet",
    "create tables/dead_letters/_delta_log/00000000000000000001.json",
    "create datasets/cpu/_delta_log/00000000000000000001.json",
]


def test_killed_before_each_step(grown: Callable[[], DataRoot]) -> None:
    data = grown()
    assert [versions for versions in data.dataset("cpu").state().spans.values() if len(versions) == 2]
    wanted = {name: expected(data, name) for name in TABLES}
    assert [name for name in TABLES if read(data, name) == wanted[name]] == ["dead_letters"]
    for index in range(len(STEPS) + 1):
        data = grown()
        with Steps(data.url, index).recording() as steps:
            list(publish_tables(data))
        assert steps.steps == STEPS[:index]
        list(publish_tables(data))
        assert {name: read(data, name) for name in TABLES} == wanted, index


def test_overtaken_before_each_step(grown: Callable[[], DataRoot]) -> None:
    """The store grows and another publisher is done, before each step of the first. Readers never fail."""
    for index in range(len(STEPS)):
        data = grown()
        opened = [DeltaTable(store_of(data, name).root) for name in TABLES]

        def overtake(data: DataRoot = data) -> None:
            grow(data, 30)
            list(publish_tables(data))

        with Steps(data.url, index, overtake).recording():
            list(publish_tables(data))
        check(data)
        assert all(table.to_pyarrow_table().num_rows > 2 for table in opened)  # a reader keeps its version
        assert not any(done.committed for done in publish_tables(data))


def test_publishers_at_once_make_one_version(stored_once: Path, tmp_path: Path) -> None:
    data = DataRoot.open(shutil.copytree(stored_once, tmp_path / "data"))
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: list(publish_tables(data)), range(3)))
    assert sum(table.committed for tables in done for table in tables) == len(TABLES)
    assert {table.version for tables in done for table in tables} == {0}
    check(data)
