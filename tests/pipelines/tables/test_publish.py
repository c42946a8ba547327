"""Each table has the rows that ciml itself reads, in each engine, and is never behind what was stored before it."""

from __future__ import annotations

import pytest

from ciml.data_root import DataRoot
from ciml.tables.publisher import storage_options
from pipelines.tables.publish import publish_tables, store_of
from tests.pipelines.tables.readers import ENGINES
from tests.pipelines.tables.scenes import expected, make_dataset, make_store

TABLES = ("raw", "runs", "dead_letters", "datasets/cpu")


def read(data: DataRoot, name: str, engine: str = "delta-rs"):  # type: ignore[no-untyped-def]
    store = store_of(data, name)
    return ENGINES[engine](store.root, storage_options(store))[1]


def check(data: DataRoot, engine: str = "delta-rs") -> None:
    for name in TABLES:
        assert read(data, name, engine) == expected(data, name), name


@pytest.mark.parametrize("engine", ENGINES)
def test_each_engine_reads_the_rows_that_ciml_reads(anywhere: DataRoot, engine: str) -> None:
    make_store(anywhere)
    make_dataset(anywhere)
    assert [done.version for done in publish_tables(anywhere)] == [0, 0, 0, 0]
    check(anywhere, engine)
