"""The tables of a data root: names and folders. It is light: commands ask after each change if tables are in use."""

from __future__ import annotations

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.raw.packs import PACKS
from ciml.storage.open import Store
from ciml.tables.delta_log import DeltaLog

RAW, RUNS, DEAD_LETTERS = "raw", "runs", "dead_letters"
#: Tables of a data root besides those of its data sets.
NAMES = (RAW, RUNS, DEAD_LETTERS)
#: What the name of a data set's table begins with.
DATASETS = "datasets/"


def table_name(dataset: str) -> str:
    """Return the name of a data set's table."""
    return f"{DATASETS}{dataset}"


def dataset_name(table: str) -> str:
    """Return the inverse of `table_name`."""
    return table.removeprefix(DATASETS)


def store_of(data: DataRoot, name: str) -> Store:
    """Return the folder of a table. Raises `CimlError` for an unknown name."""
    if name == RAW:
        return data.raw.child(PACKS)
    if name in NAMES:
        return data.tables.child(name)
    if name.startswith(DATASETS):
        return data.dataset(dataset_name(name)).store
    raise CimlError(f"unknown table {name!r}; choose from {', '.join(NAMES)}, {DATASETS}NAME")


def in_use(data: DataRoot, name: str) -> bool:
    """Return whether a table was published: it, or for a new data set any that a data root has besides data sets."""
    return any(DeltaLog(store_of(data, each)).exists() for each in (name, *NAMES))
