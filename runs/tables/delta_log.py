"""The log of a Delta table: reads the table's present state, and commits its next version.

The *content* of a table is what it should have by the manifests of ciml. `publish` compares it with the *state* of the
table by its log, and commits the difference as *actions*, which are Delta's JSON objects.

A commit is one object, created exclusively by `ciml.storage`, like a delta of a manifest. So it exists whole or not at
all, is synced to disk, and the losing publisher of a race starts over (deltalake would not retry). deltalake's own
writer cannot express these commits: where a folder keeps a file, it would add and remove the same file in one commit.
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

from ciml.digest import canonical_json, sha256_hex
from ciml.errors import IntegrityError
from ciml.runs.tables import FOLDER
from ciml.storage import S3Store, Store
from ciml.storage.json_files import seal, seal_of
from ciml.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa

#: The types of a table's columns as Delta writes them, by name, in order.
Fields = Mapping[str, Any]
#: An action of a commit as JSON: an object whose only key is its kind. Or the object below that key.
Action = dict[str, Any]
#: The key in a column's metadata that marks one that no trusted run has.
_UNTRUSTED = "ciml.untrusted"
#: Application id of the transaction whose version is the position in the manifest that a table shows.
CURSOR = "ciml"
#: Application id of the transaction whose version is a digest of the manifest at that position.
PROOF = "ciml-proof"
#: A vacuum must not delete anything in a folder of stored files: it would take manifests for garbage.
KEEP_FOR_GOOD = "interval 36500 days"
#: A checkpoint is made after this many commits.
CHECKPOINT_EVERY = 10
_PROTOCOL: Action = {"minReaderVersion": 1, "minWriterVersion": 2}
_KINDS = ("metaData", "protocol", "add", "remove", "txn")
_INFO = b'{"commitInfo":'
_FILE = re.compile(FOLDER + r"/(\d{20})\.(json|checkpoint\.parquet)")
_SAFE = "/!$&'()*+,;=:@~"  # RFC 2396 allows them in a path
#: Age of a half-written commit of a killed publisher at its removal, seconds.
_LEFTOVERS_S = 24 * 3600
_REMEDY = "delete this folder and publish again: all that it holds follows from ciml's own manifests"


def now_ms() -> int:
    """Return the present time, epoch milliseconds."""
    return time.time_ns() // 1_000_000


def publish(
    store: Store, compute: Callable[[DeltaState], TableContent], clock_ms: Callable[[], int] = now_ms
) -> Published:
    """Commit the version of a table that has the content it should have, unless the present one has it.

    May be killed at any line, and run by any number of processes. The content is computed from the manifests after the
    table's state was read, so no version undoes a newer one.

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
        content = compute(state)
        time_ms = clock_ms()
        actions = changes(state, content, time_ms)
        if not actions or log.try_commit(state.version + 1, actions, time_ms):
            break
    notes = list(content.notes)
    if actions:
        state.apply(state.version + 1, actions)
        if state.version and state.version % CHECKPOINT_EVERY == 0:
            store.delete_leftovers(FOLDER, time_ms / 1000 - _LEFTOVERS_S)
            if fault := make_checkpoint(store):
                notes.append(fault)
    added = sum("add" in action for action in actions)
    removed = sum("remove" in action for action in actions)
    return Published(
        content.name, store.url(), state.version, state.rows, len(state.files), added, removed, bool(actions), notes
    )


@dataclass(frozen=True, slots=True)
class Published:
    """A table after its publication.

    Attributes:
      name: the table's name.
      url: the address of its folder, which engines open.
      version: its version, from 0.
      rows, files: numbers of its rows and files.
      added, removed: numbers of files that this publication added and removed; both 0 if the table was up to date.
      committed: whether this publication made a version.
      notes: packs, columns and files that are left out, with the reasons, a line each.
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


@dataclass(frozen=True, slots=True)
class TableContent:
    """The content that a table should have.

    Attributes:
      name: the table's name, for messages.
      schema: as Delta writes it (`encode_fields`).
      partition_columns: the columns whose values are in the log and not in the files.
      files: the files by path; None if the table has the file already, unchanged.
      cursor: the position in the manifest up to which this is complete.
      proof: a digest of the manifest at that position, 63 bits; None if it is not needed.
      retention: time for which a vacuum keeps files that are not in the table, as Delta writes it.
      notes: packs, columns and files that are left out, with the reasons, a line each.
    """

    name: str
    schema: str
    partition_columns: tuple[str, ...]
    files: Mapping[str, DataFile | None]
    cursor: int
    proof: int | None = None
    retention: str = KEEP_FOR_GOOD
    notes: Sequence[str] = ()


def changes(state: DeltaState, content: TableContent, time_ms: int) -> list[Action]:
    """Return the actions of a commit that gives a table its content; none if it has it.

    Args:
      state: the table's present state.
      content: computed after ``state`` was read, so that the table never goes back.
      time_ms: the time of the commit, epoch milliseconds.
    """
    actions: list[Action] = []
    if state.protocol is None or any(state.protocol.get(name) != value for name, value in _PROTOCOL.items()):
        actions.append({"protocol": _PROTOCOL})
    if (metadata := _metadata(state, content, time_ms)) != state.metadata:
        actions.append({"metaData": metadata})
    for path, add in state.files.items():
        if path not in content.files:
            remove = {
                "path": add["path"],
                "deletionTimestamp": time_ms,
                "dataChange": True,
                "extendedFileMetadata": True,
                "partitionValues": add.get("partitionValues") or {},
                "size": add["size"],
            }
            actions.append({"remove": remove})
    for path, file in content.files.items():
        if file is not None and not _is_same(state.files.get(path), add := file.to_action()):
            actions.append({"add": add})
    for app, version in ((CURSOR, content.cursor), (PROOF, content.proof)):
        if version is not None and state.transactions.get(app) != version:
            actions.append({"txn": {"appId": app, "version": version, "lastUpdated": time_ms}})
    return actions


def _metadata(state: DeltaState, content: TableContent, time_ms: int) -> Action:
    before = state.metadata or {"id": str(uuid.uuid4()), "createdTime": time_ms}
    return {
        "id": before["id"],
        "name": content.name,
        "format": {"provider": "parquet", "options": {}},
        "schemaString": content.schema,
        "partitionColumns": list(content.partition_columns),
        "configuration": {"delta.deletedFileRetentionDuration": content.retention},
        "createdTime": before.get("createdTime", time_ms),
    }


def _is_same(before: Action | None, after: Action) -> bool:
    return before is not None and all(before.get(name) == after[name] for name in ("size", "partitionValues"))


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
    """Return deltalake's options for opening a store, credentials included."""
    if not isinstance(store, S3Store):
        return {}
    settings = store.settings()
    return {**settings, "aws_allow_http": "true"} if settings.get("aws_endpoint", "").startswith("http:") else settings


class DeltaLog:
    """The log of the Delta table in a folder.

    Args:
      store: the folder of the table; its files are in it.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def path(self, version: int) -> str:
        """Return the path of a commit."""
        return f"{FOLDER}/{version:020d}.json"

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
                state.apply(version, map(json.loads, data.splitlines()))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise self._broken(f"commit {version}: {error}") from None

    def _apply_checkpoint(self, state: DeltaState, version: int) -> None:
        import pyarrow as pa

        from ciml.runs.arrow import read_parquet

        data = self.store.read(f"{FOLDER}/{version:020d}.checkpoint.parquet")
        try:
            state.apply(version, _actions(read_parquet(data, list(_KINDS))))
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
            raise self._broken(f"checkpoint {version}: {' '.join(str(error).split()):.200}") from None

    def _check(self, version: int, data: bytes) -> None:
        """Compare a commit with its seal; one of another writer or of an older version has none."""
        first, _, actions = data.partition(b"\n")
        seal = seal_of(first[len(_INFO) : -1], self.store.url(self.path(version)), _REMEDY)
        if seal is not None and (not first.startswith(_INFO) or seal.text != sha256_hex(actions)):
            raise self._broken(f"commit {version} differs from its digest")

    def _broken(self, what: str) -> IntegrityError:
        return IntegrityError(f"{self.store.url(FOLDER)}: {what}; {_REMEDY}")

    def try_commit(self, version: int, actions: Iterable[Action], time_ms: int) -> bool:
        """Create a commit; return False if another publisher's exists.

        Its first action, ``commitInfo``, has a seal (`ciml.storage.json_files`), with the digest of the other actions.

        Args:
          version: of the commit.
          actions: its actions.
          time_ms: its time, epoch milliseconds.
        """
        info = {
            "timestamp": time_ms,
            "operation": "WRITE",
            "operationParameters": {"mode": "Overwrite"},
            "engineInfo": f"ciml/{__version__}",
        }
        lines = b"".join(canonical_json(action) + b"\n" for action in actions)
        sealed = seal(canonical_json(info), sha256_hex(lines))
        return self.store.create(self.path(version), _INFO + sealed + b"}\n" + lines)


def _actions(checkpoint: pa.Table) -> Iterator[Action]:
    """Yield the actions of a checkpoint, without its nulls."""
    for row in checkpoint.to_pylist(maps_as_pydicts="strict"):
        for kind, value in row.items():
            if value is not None:
                yield {kind: {name: part for name, part in value.items() if part is not None}}


@dataclass(slots=True)
class DeltaState:
    """The state of a Delta table after its last commit.

    Attributes:
      version: the version of that commit; -1 for a table that does not exist.
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

    def apply(self, version: int, actions: Iterable[Action]) -> None:
        """Apply the actions of a commit or of a checkpoint."""
        for action in actions:
            for kind, value in action.items():
                self._apply(kind, value)
        self.version = version

    def _apply(self, kind: str, value: Action) -> None:
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


@dataclass(frozen=True, slots=True)
class DataFile:
    """A Parquet file of a table.

    Attributes:
      path: its path in the table's folder, not quoted.
      size: its size in bytes.
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
        """Return the action that adds the file to the table."""
        return {
            "path": quote(self.path, safe=_SAFE),
            "partitionValues": dict(self.partition),
            "size": self.size,
            "modificationTime": self.modified_ms,
            "dataChange": True,
            "stats": canonical_json({"numRecords": self.rows}).decode(),
        }


def delta_fields(schema: pa.Schema) -> dict[str, Any]:
    """Return the columns of an Arrow schema. Raises `TypeError` for a type that no stored file has."""
    return {column.name: _type(column.type) for column in schema}


def encode_fields(fields: Fields, untrusted: Container[str] = ()) -> str:
    """Return the schema of a table as Delta writes it, JSON. Every column may hold nulls.

    Args:
      fields: the columns.
      untrusted: the columns that no trusted run has; their metadata marks them.
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
    """Divide names into those that differ in more than case, and later ones that differ from one of these only in case.

    Delta, Spark and DuckDB take such names for the same column.
    """
    unique: dict[str, str] = {}
    twins = [name for name in names if unique.setdefault(name.lower(), name) != name]
    return list(unique.values()), twins
