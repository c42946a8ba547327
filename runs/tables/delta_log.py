"""The log of a Delta table: read its present state, and commit the next version.

A commit is one object, created exclusively by `ciml.storage`, like a delta of a manifest. So it exists whole or not at
all, is synced to disk, and the losing publisher of a race starts over (which deltalake calls no retries). deltalake's
own writer cannot express these commits: where a folder keeps a file, it would add and remove the same file at once.

The publisher makes the next version of a table from the content that it should have by the manifests. This module is
light: commands ask after each change if tables are in use.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from ciml.data_root import DataRoot
from ciml.digest import canonical_json, sha256_hex
from ciml.errors import CimlError, IntegrityError
from ciml.runs.pack_index import PACKS
from ciml.storage import LocalStore, S3Store, Store
from ciml.storage.json_files import seal, seal_of
from ciml.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa

#: The types of a table's columns as Delta writes them, by name, in order.
Fields = Mapping[str, Any]
#: The key in a column's metadata that marks one that no trusted run has.
_UNTRUSTED = "ciml.untrusted"
#: The folder of the log, in that of the table.
FOLDER = "_delta_log"
#: Application id of the transaction whose version is the position in the manifest that a table shows.
CURSOR = "ciml"
#: Application id of the transaction whose version is a digest of the manifest at that position.
PROOF = "ciml-proof"
_KINDS = ("metaData", "protocol", "add", "remove", "txn")
_INFO = b'{"commitInfo":'
_REMEDY = "delete this folder and publish again: all that it holds follows from ciml's own manifests"
_SAFE = "/!$&'()*+,;=:@~"  # RFC 2396 allows them in a path
RAW = "raw"
RUNS = "runs"
DEAD_LETTERS = "dead_letters"
#: What the name of a data set's table begins with.
DATASETS = "datasets/"
#: Nothing below the folder of stored files is ever a vacuum's to delete: it would take manifests for garbage.
KEEP_FOR_GOOD = "interval 36500 days"
#: A checkpoint is made after this many commits.
CHECKPOINT_EVERY = 10
#: Age of a half-written commit of a killed publisher at its removal, seconds.
_LEFTOVERS_S = 24 * 3600


def delta_fields(schema: pa.Schema) -> dict[str, Any]:
    """Return the columns of an Arrow schema. Raises `TypeError` for a type that no stored file has."""
    return {column.name: _type(column.type) for column in schema}


def encode_fields(fields: Fields, untrusted: Container[str] = ()) -> str:
    """Return the schema of a table as Delta writes it, JSON. Every column may hold nulls.

    Args:
      fields: the columns.
      untrusted: those that no trusted run has. Their metadata says so.
    """
    entries = [
        {"name": name, "type": kind, "nullable": True, "metadata": {_UNTRUSTED: True} if name in untrusted else {}}
        for name, kind in fields.items()
    ]
    return canonical_json({"type": "struct", "fields": entries}).decode()


def decode_fields(text: str) -> tuple[dict[str, Any], set[str]]:
    """Return the inverse of `encode_fields`: the columns, and the untrusted ones."""
    columns = json.loads(text)["fields"]
    untrusted = {column["name"] for column in columns if (column.get("metadata") or {}).get(_UNTRUSTED)}
    return {column["name"]: column["type"] for column in columns}, untrusted


def _type(kind: pa.DataType) -> Any:
    import pyarrow as pa

    names = {
        pa.string(): "string",
        pa.bool_(): "boolean",
        pa.int32(): "integer",
        pa.int64(): "long",
        pa.float32(): "float",
        pa.float64(): "double",
        pa.date32(): "date",
        pa.timestamp("us", tz="UTC"): "timestamp",
    }
    if kind in names:
        return names[kind]
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        return {"type": "array", "elementType": _type(kind.value_type), "containsNull": kind.value_field.nullable}
    if pa.types.is_map(kind):
        values = {"valueType": _type(kind.item_type), "valueContainsNull": kind.item_field.nullable}
        return {"type": "map", "keyType": _type(kind.key_type), **values}
    raise TypeError(f"no Delta type for {kind}")


def without_case_twins(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Divide names into those that differ in more than upper and lower case, and later twins of these.

    Delta, Spark and DuckDB take such names for the same column.
    """
    unique: dict[str, str] = {}
    twins = [name for name in names if unique.setdefault(name.lower(), name) != name]
    return list(unique.values()), twins


_FILE = re.compile(FOLDER + r"/(\d{20})\.(json|checkpoint\.parquet)")

Action = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DataFile:
    """A Parquet file of a table.

    Attributes:
      path: below the table's folder, as the store knows it.
      size: in bytes.
      modified_ms: its time in the storage, epoch milliseconds.
      rows: number of rows.
      partition: value of each partition column; None is null.
    """

    path: str
    size: int
    modified_ms: int
    rows: int
    partition: Mapping[str, str | None] = field(default_factory=dict)

    def to_action(self) -> Action:
        """Return the action that adds it."""
        return {
            "path": quote(self.path, safe=_SAFE),
            "partitionValues": dict(self.partition),
            "size": self.size,
            "modificationTime": self.modified_ms,
            "dataChange": True,
            "stats": canonical_json({"numRecords": self.rows}).decode(),
        }


@dataclass(slots=True)
class DeltaState:
    """The state of a Delta table after its last commit.

    Attributes:
      version: of that commit; -1 for a table that does not exist.
      files: the actions that added the present files, by path.
      removed: the time at which each former file was removed, epoch milliseconds, by path.
      metadata, protocol: the actions in force.
      transactions: the last version by application id.
    """

    version: int = -1
    files: dict[str, Action] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    metadata: Action | None = None
    protocol: Action | None = None
    transactions: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of rows of the present files."""
        return sum(json.loads(add.get("stats") or "{}").get("numRecords", 0) for add in self.files.values())

    def apply(self, kind: str, value: Action) -> None:
        """Apply an action of a commit or of a checkpoint."""
        if kind == "add":
            path = unquote(value["path"])
            self.files[path] = value
            self.removed.pop(path, None)
        elif kind == "remove":
            path = unquote(value["path"])
            self.files.pop(path, None)
            self.removed[path] = value.get("deletionTimestamp") or 0
        elif kind == "txn":
            self.transactions[value["appId"]] = value["version"]
        elif kind == "metaData":
            self.metadata = value
        elif kind == "protocol":
            self.protocol = value


class DeltaLog:
    """The log of the Delta table in a folder.

    Args:
      store: the folder of the table; its files are below it.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def path(self, version: int) -> str:
        """Return the path of a commit."""
        return f"{FOLDER}/{version:020d}.json"

    def exists(self) -> bool:
        """Return whether anything was ever committed here."""
        return next(iter(self.store.entries(FOLDER)), None) is not None

    def read(self) -> DeltaState:
        """Return the present state.

        Raises:
          IntegrityError: commits are missing or damaged. The log can be deleted and published again.
        """
        while True:
            state = DeltaState()
            files = [match for path in self.store.list(FOLDER) if (match := _FILE.fullmatch(path)) is not None]
            checkpoints = [int(match[1]) for match in files if match[2] != "json"]
            try:
                if checkpoints:
                    self._apply_checkpoint(state, max(checkpoints))
                versions = [int(match[1]) for match in files if match[2] == "json"]
                self._apply_commits(state, [version for version in versions if version > state.version])
            except FileNotFoundError:
                continue  # cleaned up since it was listed: there is a newer checkpoint
            return state

    def _apply_commits(self, state: DeltaState, versions: list[int]) -> None:
        if versions != list(range(state.version + 1, state.version + 1 + len(versions))):
            raise self._broken(f"commit {state.version + 1} is missing")
        commits = self.store.read_while([self.path(version) for version in versions])
        if len(commits) < len(versions):
            raise FileNotFoundError(self.path(versions[len(commits)]))
        for version, data in zip(versions, commits, strict=True):
            self._check(version, data)
            try:
                for line in data.splitlines():
                    for kind, value in json.loads(line).items():
                        state.apply(kind, value)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise self._broken(f"commit {version}: {error}") from None
            state.version = version

    def _apply_checkpoint(self, state: DeltaState, version: int) -> None:
        import pyarrow as pa

        from ciml.runs.arrow import read_parquet

        data = self.store.read(f"{FOLDER}/{version:020d}.checkpoint.parquet")
        try:
            for kind, value in _actions(read_parquet(data, list(_KINDS))):
                state.apply(kind, value)
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
            raise self._broken(f"checkpoint {version}: {' '.join(str(error).split()):.200}") from None
        state.version = version

    def _check(self, version: int, data: bytes) -> None:
        """Compare a commit with its seal; one of another writer or of an older version has none."""
        first, _, actions = data.partition(b"\n")
        seal = seal_of(first[len(_INFO) : -1], self.store.url(self.path(version)), _REMEDY)
        if seal is not None and (not first.startswith(_INFO) or seal.text != sha256_hex(actions)):
            raise self._broken(f"commit {version} differs from its digest")

    def _broken(self, what: str) -> IntegrityError:
        return IntegrityError(f"{self.store.url(FOLDER)}: {what}; {_REMEDY}")

    def try_commit(self, version: int, actions: Iterable[Action]) -> bool:
        """Create a commit; return False where another publisher's exists.

        Its first action, ``commitInfo``, has a seal (`ciml.storage.json_files`), with the digest of the other actions.
        """
        changes = list(actions)
        info = changes.pop(0)["commitInfo"] if changes and "commitInfo" in changes[0] else {}
        lines = b"".join(canonical_json(action) + b"\n" for action in changes)
        sealed = seal(canonical_json(info), sha256_hex(lines))
        return self.store.create(self.path(version), _INFO + sealed + b"}\n" + lines)


def _actions(table: Any) -> Iterator[tuple[str, Action]]:
    """Yield the actions of a checkpoint."""
    for row in table.to_pylist(maps_as_pydicts="strict"):
        for kind, value in row.items():
            if value is not None:
                yield kind, {name: field for name, field in value.items() if field is not None}


#: Tables of a data root besides those of its data sets.
NAMES = (RAW, RUNS, DEAD_LETTERS)


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


_PROTOCOL: Action = {"minReaderVersion": 1, "minWriterVersion": 2}


@dataclass(frozen=True, slots=True)
class Wanted:
    """The content that a table should have.

    Attributes:
      name: for people.
      schema: as Delta writes it (`encode_fields`).
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
        "configuration": {"delta.deletedFileRetentionDuration": wanted.retention},
        "createdTime": before.get("createdTime", now_ms),
    }


def _is_same(before: Action | None, after: Action) -> bool:
    return before is not None and all(before.get(name) == after[name] for name in ("size", "partitionValues"))


def now_ms() -> int:
    """Return the present time, epoch milliseconds."""
    return time.time_ns() // 1_000_000


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
