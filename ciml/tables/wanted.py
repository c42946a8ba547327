"""The content that a table should have by the manifests, and the actions that bring it there."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ciml.tables.delta_log import CURSOR, PROOF, Action, DataFile, DeltaState
from ciml.version import __version__

#: Nothing below the folder of stored files is ever a vacuum's to delete: it would take manifests for garbage.
KEEP_FOR_GOOD = "interval 36500 days"
_PROTOCOL: Action = {"minReaderVersion": 1, "minWriterVersion": 2}


@dataclass(frozen=True, slots=True)
class Wanted:
    """The content that a table should have.

    Attributes:
      name: for people.
      schema: as Delta writes it (`ciml.tables.delta_schema.delta_schema`).
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
