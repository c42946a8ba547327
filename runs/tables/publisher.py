"""The content that a table should have by the manifests, and the actions that bring it there.

The tables of a data root: names and folders. It is light: commands ask after each change if tables are in use.

The publisher: makes the next version of a Delta table from the state of the manifests.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.runs.pack_index import PACKS
from ciml.runs.tables.delta_log import CURSOR, FOLDER, PROOF, Action, DataFile, DeltaLog, DeltaState
from ciml.storage import LocalStore, S3Store, Store
from ciml.version import __version__

RAW = "raw"
RUNS = "runs"
DEAD_LETTERS = "dead_letters"
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
    return any(DeltaLog(store_of(data, table)).exists() for table in (name, *NAMES))


#: Nothing below the folder of stored files is ever a vacuum's to delete: it would take manifests for garbage.
KEEP_FOR_GOOD = "interval 36500 days"
_PROTOCOL: Action = {"minReaderVersion": 1, "minWriterVersion": 2}


@dataclass(frozen=True, slots=True)
class Wanted:
    """The content that a table should have.

    Attributes:
      name: for people.
      schema: as Delta writes it (`ciml.runs.tables.delta_log.delta_schema`).
      partition_columns: those of the columns whose values are in the log, not in the files.
      files: the files by path; None where the table has the file already, unchanged.
      cursor: the position in the manifest up to which this is complete.
      proof: a digest of the manifest at that position, 63 bits; None where it is not needed.
      retention: time for which a vacuum keeps files that are not in the table, as Delta writes it.
      notes: what is left out, a line each.
    """

    name: str
    schema: str
    partition_columns: tuple[str, ...]
    files: Mapping[str, DataFile | None]
    cursor: int
    proof: int | None = None
    retention: str = KEEP_FOR_GOOD
    notes: Sequence[str] = ()

    @property
    def properties(self) -> dict[str, str]:
        """The table's properties."""
        return {"delta.deletedFileRetentionDuration": self.retention}


def changes(state: DeltaState, wanted: Wanted, now_ms: int) -> list[Action]:
    """Return the actions of a commit that makes a table as wanted; none where it is.

    Args:
      state: the table's present state.
      wanted: computed after ``state`` was read, so that the table never goes back.
      now_ms: the time of the commit, epoch milliseconds.
    """
    actions: list[Action] = []
    if state.protocol is None or any(state.protocol.get(name) != value for name, value in _PROTOCOL.items()):
        actions.append({"protocol": _PROTOCOL})
    if (metadata := _metadata(state, wanted, now_ms)) != state.metadata:
        actions.append({"metaData": metadata})
    for path, add in state.files.items():
        if path not in wanted.files:
            removed = {"path": add["path"], "deletionTimestamp": now_ms, "dataChange": True}
            about = {"partitionValues": add.get("partitionValues") or {}, "size": add["size"]}
            actions.append({"remove": {**removed, "extendedFileMetadata": True, **about}})
    for path, file in wanted.files.items():
        if file is not None and not _is_same(state.files.get(path), add := file.to_action()):
            actions.append({"add": add})
    for app, version in ((CURSOR, wanted.cursor), (PROOF, wanted.proof)):
        if version is not None and state.transactions.get(app) != version:
            actions.append({"txn": {"appId": app, "version": version, "lastUpdated": now_ms}})
    if not actions:
        return []
    about = {"timestamp": now_ms, "operation": "WRITE", "operationParameters": {"mode": "Overwrite"}}
    return [{"commitInfo": {**about, "engineInfo": f"ciml/{__version__}"}}, *actions]


def _metadata(state: DeltaState, wanted: Wanted, now_ms: int) -> Action:
    before = state.metadata or {"id": str(uuid.uuid4()), "createdTime": now_ms}
    return {
        "id": before["id"],
        "name": wanted.name,
        "format": {"provider": "parquet", "options": {}},
        "schemaString": wanted.schema,
        "partitionColumns": list(wanted.partition_columns),
        "configuration": wanted.properties,
        "createdTime": before.get("createdTime", now_ms),
    }


def _is_same(before: Action | None, after: Action) -> bool:
    return before is not None and all(before.get(name) == after[name] for name in ("size", "partitionValues"))


def now_ms() -> int:
    """Return the present time, epoch milliseconds."""
    return time.time_ns() // 1_000_000


#: A checkpoint is made after this many commits.
CHECKPOINT_EVERY = 10
#: Age of a half-written commit of a killed publisher at its removal, seconds.
_LEFTOVERS_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Published:
    """A table after its publication.

    Attributes:
      name: of the table.
      url: of its folder: what engines open.
      version: of the table, from 0.
      rows, files: that it has.
      added, removed: files, by this publication; both 0 where the table was up to date.
      committed: whether this publication made a version.
      notes: what is left out, a line each.
    """

    name: str
    url: str
    version: int
    rows: int
    files: int
    added: int
    removed: int
    committed: bool
    notes: Sequence[str] = ()


def publish(store: Store, compute: Callable[[DeltaState], Wanted], clock_ms: Callable[[], int] = now_ms) -> Published:
    """Commit the version of a table that its manifests want, unless it is the present one.

    May be killed at any line, and run by any number of processes: each version is computed from the state of the
    manifests after the version before it was read, so no version undoes a newer one.

    Args:
      store: the table's folder.
      compute: returns the content that the table should have, given the table's present state.
      clock_ms: epoch milliseconds.

    Raises:
      EngineError: the store does not answer.
      IntegrityError: a manifest, or the table's log, is damaged.
    """
    log = DeltaLog(store)
    while True:
        state = log.read()
        target = compute(state)
        actions = changes(state, target, clock_ms())
        if not actions or log.try_commit(state.version + 1, actions):
            break
    for action in actions:
        for kind, value in action.items():
            state.apply(kind, value)
    notes = list(target.notes)
    if actions:
        state.version += 1
        if state.version and state.version % CHECKPOINT_EVERY == 0:
            store.delete_leftovers(FOLDER, clock_ms() / 1000 - _LEFTOVERS_S)
            if failed := make_checkpoint(store):
                notes.append(failed)
    added, removed = (sum(kind in action for action in actions) for kind in ("add", "remove"))
    return Published(
        target.name, store.url(), state.version, state.rows, len(state.files), added, removed, bool(actions), notes
    )


def make_checkpoint(store: Store) -> str:
    """Make a checkpoint of a table, and delete expired commits before it. Return "", or why it failed.

    Without checkpoints a table is complete, but takes longer to open.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        table = DeltaTable(store.root, storage_options=storage_options(store))
        table.create_checkpoint()
        table.cleanup_metadata()
    except (DeltaError, OSError) as error:
        return f"{store.url()}: no checkpoint: {' '.join(str(error).split()):.200}"
    return ""


def storage_options(store: Store) -> dict[str, str]:
    """Return what deltalake needs to open a store, credentials included."""
    if isinstance(store, LocalStore):
        return {}
    if not isinstance(store, S3Store):
        raise TypeError(f"{store!r} is neither a folder nor on S3")
    settings = store.settings()
    return {**settings, "aws_allow_http": "true"} if settings.get("aws_endpoint", "").startswith("http:") else settings
