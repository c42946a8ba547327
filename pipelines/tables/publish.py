"""Publish the tables of a data root, and list them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.extras import is_installed
from ciml.manifest.log import ManifestLog
from ciml.raw.packs import PACKS
from ciml.raw.state import open_raw
from ciml.storage.open import Store
from ciml.tables import raw_table
from ciml.tables.dataset_table import PREFIX, table_name, wanted_dataset
from ciml.tables.delta_log import CURSOR, DeltaLog, DeltaState
from ciml.tables.publisher import Published, publish
from ciml.tables.raw_table import deltas_of_packs, wanted_raw
from ciml.tables.wanted import Wanted
from pipelines.tables import dead_letters, runs
from pipelines.tables.made_parts import GRACE_S, former_files, wanted_parts

#: Tables of a data root besides those of its data sets.
NAMES = (raw_table.NAME, runs.NAME, dead_letters.NAME)


def table_names(data: DataRoot) -> list[str]:
    """Return the names of all tables that a data root can have."""
    return [*NAMES, *map(table_name, data.dataset_names())]


def store_of(data: DataRoot, name: str) -> Store:
    """Return the folder of a table. Raises `CimlError` for an unknown name."""
    if name == raw_table.NAME:
        return data.raw.child(PACKS)
    if name in NAMES:
        return data.tables.child(name)
    if name.startswith(PREFIX):
        return data.dataset(name.removeprefix(PREFIX)).store
    raise CimlError(f"unknown table {name!r}; choose from {', '.join(NAMES)}, {PREFIX}NAME")


def _in_use(data: DataRoot, name: str) -> bool:
    """Return whether a table was published: it, or for a new data set any that a data root has besides data sets."""
    return any(DeltaLog(store_of(data, each)).exists() for each in (name, *NAMES))


def publish_tables(data: DataRoot, names: Iterable[str] = ()) -> Iterator[Published]:
    """Publish tables, one after the other.

    Args:
      data: the data root.
      names: of the tables; all by default.

    Raises:
      CimlError: there is no table of that name.
      EngineError, IntegrityError: as `ciml.tables.publisher.publish`.
    """
    for name in list(names) or _with_columns(data):
        yield _publish(data, name)


def _with_columns(data: DataRoot) -> list[str]:
    """Return the names of the tables that can be published: a data set without a span has no columns yet."""
    return [*NAMES, *(table_name(name) for name in data.dataset_names() if data.dataset(name).state().resolved)]


def update_tables(data: DataRoot, names: Iterable[str]) -> list[str]:
    """Publish tables after a change, where the tables of the data root are in use and the extra is installed.

    Returns:
      What failed or was left out, a line each. Nothing is raised: the change itself is complete.
    """
    try:
        if not is_installed("deltalake"):
            return []
        due = [name for name in names if _in_use(data, name)]
        return [f"{done.name}: {note}" for done in publish_tables(data, due) for note in done.notes] if due else []
    except Exception as error:  # noqa: BLE001 - the tables are a copy of what is stored: the next call publishes it
        return [f"tables not published: {error}; retry: ciml tables publish"]


def _publish(data: DataRoot, name: str) -> Published:
    store = store_of(data, name)
    if name == raw_table.NAME:
        return publish(store, partial(wanted_raw, data.raw))
    if name in NAMES:
        return _publish_made(data, name, store)
    return publish(store, partial(_wanted_dataset, data, name))


def _wanted_dataset(data: DataRoot, name: str, state: DeltaState) -> Wanted:
    from transforms.examples.prepare import schema_of

    dataset = data.dataset(name.removeprefix(PREFIX))
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
    done = publish(store, partial(_wanted_made, data, name, store))
    if done.committed:
        named = DeltaLog(store).read().files
        for path in former:
            if path not in named:
                store.delete(path)
        data.tables.delete_leftovers(name, before_s)
    return done


def _wanted_made(data: DataRoot, name: str, store: Store, state: DeltaState) -> Wanted:
    log, raw = open_raw(data.raw)
    if name == runs.NAME:
        schema, make = runs.stored_table([]).schema, partial(runs.make_runs, log, raw)
    else:
        schema, make = (
            dead_letters.dead_letter_table([]).schema,
            partial(dead_letters.make_dead_letters, log, raw.version),
        )
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
    if name == raw_table.NAME:
        return deltas_of_packs(data.raw)
    if name in NAMES:
        return ManifestLog(data.raw).end()
    return data.dataset(name.removeprefix(PREFIX)).state().version
