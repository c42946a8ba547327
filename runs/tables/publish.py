"""Publish the tables of a data root, and list them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.manifest.log import ManifestLog
from ciml.runs.state import open_raw
from ciml.runs.tables import row_tables
from ciml.runs.tables.delta_log import CURSOR, DeltaLog, DeltaState
from ciml.runs.tables.publisher import (
    NAMES,
    RAW,
    RUNS,
    Published,
    Wanted,
    dataset_name,
    publish,
    store_of,
    table_name,
)
from ciml.runs.tables.row_tables import GRACE_S, former_files, wanted_parts
from ciml.runs.tables.stored_tables import deltas_of_packs, wanted_dataset, wanted_raw
from ciml.storage import Store


def table_names(data: DataRoot) -> list[str]:
    """Return the names of all tables that a data root can have."""
    return [*NAMES, *map(table_name, data.dataset_names())]


def publish_tables(data: DataRoot, names: Iterable[str] = ()) -> Iterator[Published]:
    """Publish tables, one after the other.

    Args:
      data: the data root.
      names: of the tables; all by default.

    Raises:
      CimlError: there is no table of that name.
      EngineError, IntegrityError: as `ciml.runs.tables.publisher.publish`.
    """
    for name in list(names) or _with_columns(data):
        yield _publish(data, name)


def _with_columns(data: DataRoot) -> list[str]:
    """Return the names of the tables that can be published: a data set without a span has no columns yet."""
    return [*NAMES, *(table_name(name) for name in data.dataset_names() if data.dataset(name).state().resolved)]


def _publish(data: DataRoot, name: str) -> Published:
    store = store_of(data, name)
    if name == RAW:
        return publish(store, partial(wanted_raw, data.raw))
    if name in NAMES:
        return _publish_made(data, name, store)
    return publish(store, partial(_wanted_dataset, data, name))


def _wanted_dataset(data: DataRoot, name: str, state: DeltaState) -> Wanted:
    from ciml.datasets.schema import schema_of

    dataset = data.dataset(dataset_name(name))
    present = dataset.state()
    if present.resolved is None:
        raise CimlError(f"data set {dataset.name!r} has no span yet: its columns are not known; ciml dataset update")
    return wanted_dataset(dataset, present, schema_of(present.resolved), state)


def _publish_made(data: DataRoot, name: str, store: Store) -> Published:
    """Publish a table whose files are made here, and delete files that left it long ago."""
    # Listed before the commit: a file that another publisher is about to commit is younger than the version that it
    # was computed from, so this commit makes it start over.
    before_s = time.time() - GRACE_S
    former = former_files(store, DeltaLog(store).read(), before_s)
    published = publish(store, partial(_wanted_made, data, name, store))
    if published.committed:
        named = DeltaLog(store).read().files
        for path in former:
            if path not in named:
                store.delete(path)
        data.tables.delete_leftovers(name, before_s)
    return published


def _wanted_made(data: DataRoot, name: str, store: Store, state: DeltaState) -> Wanted:
    log, raw = open_raw(data.raw)
    if name == RUNS:
        schema = row_tables.stored_table([]).schema
        make = partial(row_tables.make_runs, log, raw)
    else:
        schema = row_tables.dead_letter_table([]).schema
        make = partial(row_tables.make_dead_letters, log, raw.version)
    return wanted_parts(name, store, log, raw.version, schema, make, state)


@dataclass(frozen=True, slots=True)
class TableState:
    """A table as it is.

    Attributes:
      name: of the table.
      url: of its folder: what engines open.
      version: of the table; None if it was never published.
      rows, files: that it has.
      behind: number of commits to the manifests that it does not show.
    """

    name: str
    url: str
    version: int | None
    rows: int
    files: int
    behind: int


def list_tables(data: DataRoot, names: Iterable[str] = ()) -> Iterator[TableState]:
    """Yield the state of tables; all by default. Raises as `publish_tables`."""
    for name in list(names) or table_names(data):
        store = store_of(data, name)
        state = DeltaLog(store).read()
        behind = max(0, _position(data, name) - state.transactions.get(CURSOR, 0))
        version = state.version if state.version >= 0 else None
        yield TableState(name, store.url(), version, state.rows, len(state.files), behind)


def _position(data: DataRoot, name: str) -> int:
    """Return the present position of a table's manifest."""
    if name == RAW:
        return deltas_of_packs(data.raw)
    if name in NAMES:
        return ManifestLog(data.raw).end()
    return data.dataset(dataset_name(name)).state().version
