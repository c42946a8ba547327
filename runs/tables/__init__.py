"""Delta tables over the store's own Parquet files, for other engines: their names and folders, and their updates.

Nothing reads these tables to answer a question about runs: without them the store is complete. Garbage collection asks
which packs the readers of the table ``raw`` may still read.

`ciml.runs.tables.publish` computes the files of a table from the manifests; `ciml.runs.tables.row_tables` makes those
of ``runs`` and ``dead_letters``; `ciml.runs.tables.delta_log` commits the difference. This module is light, because
commands ask after each change whether tables are in use. Only checkpoints use deltalake.
"""

from __future__ import annotations

from collections.abc import Iterable

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.extras import is_installed
from ciml.runs.pack_index import PACKS
from ciml.storage import Store

RAW = "raw"
RUNS = "runs"
DEAD_LETTERS = "dead_letters"
#: Tables of a data root besides those of its data sets.
NAMES = (RAW, RUNS, DEAD_LETTERS)
#: Prefix of the name of a data set's table.
DATASETS = "datasets/"
#: Folder of a table's log, in the folder of the table.
FOLDER = "_delta_log"


def update_tables(data: DataRoot, names: Iterable[str]) -> list[str]:
    """Publish tables after a change, where the tables of the data root are in use and the extra is installed.

    Returns:
      A line for each failure or omission. Nothing is raised: the change itself is complete.
    """
    try:
        published_names = [name for name in names if in_use(data, name)]
        if not published_names or not is_installed("deltalake"):
            return []
        from ciml.runs.tables.publish import publish_tables

        return [f"{table.name}: {note}" for table in publish_tables(data, published_names) for note in table.notes]
    except Exception as error:  # noqa: BLE001 - the tables are a copy of what is stored: the next call publishes it
        return [f"tables not published: {error}; retry: ciml tables publish"]


def in_use(data: DataRoot, name: str) -> bool:
    """Return whether a table is kept up to date: it was published, or any table besides those of data sets was."""
    return any(entry for table in (name, *NAMES) for entry in store_of(data, table).entries(FOLDER))


def store_of(data: DataRoot, name: str) -> Store:
    """Return the folder of a table. Raises `CimlError` for an unknown name."""
    if name == RAW:
        return data.raw.child(PACKS)
    if name in NAMES:
        return data.tables.child(name)
    if name.startswith(DATASETS):
        return data.dataset(dataset_name(name)).store
    raise CimlError(f"unknown table {name!r}; choose from {', '.join(NAMES)}, {DATASETS}NAME")


def table_name(dataset: str) -> str:
    """Return the name of a data set's table."""
    return f"{DATASETS}{dataset}"


def dataset_name(table: str) -> str:
    """Return the inverse of `table_name`."""
    return table.removeprefix(DATASETS)
