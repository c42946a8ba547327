"""Tables that are made from the raw manifest, part by part: which parts to make, their files, and their garbage."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ciml.digest import sha256_hex
from ciml.manifest.log import ManifestLog
from ciml.storage.open import Store
from ciml.tables.delta_log import CURSOR, PROOF, DataFile, DeltaState
from ciml.tables.delta_schema import delta_fields, encode_fields
from ciml.tables.parts import Part, manifest_parts, part_of
from ciml.tables.wanted import Wanted, now_ms

#: Time for which the files of earlier versions of a table stay, seconds.
GRACE_S = 24 * 3600
_GROUP_ROWS = 65_536


class Due(NamedTuple):
    """What to make.

    Attributes:
      parts: all parts of the manifest, in order.
      missing: those of them that the table has no file for.
      since: the version that the files of the other parts show, as far as no later delta changes them.
    """

    parts: Sequence[Part]
    missing: frozenset[Part]
    since: int


#: Yields the due parts with their rows, those too that deltas after ``since`` change.
Make = Callable[[Due], Iterator[tuple[Part, pa.Table]]]


def wanted_parts(
    name: str, store: Store, log: ManifestLog, version: int, schema: pa.Schema, make: Make, state: DeltaState
) -> Wanted:
    """Write the files that the table lacks, and return the content that it should have.

    Args:
      name: of the table.
      store: the table's folder.
      log: the raw manifest.
      version: the version that the table is to show.
      schema: of the rows.
      make: makes the rows.
      state: the table's present state.
    """
    fields = encode_fields(delta_fields(schema))
    since = _since(log, version, fields, state)
    parts = manifest_parts(log, version)
    known = {part: path for path in state.files if since and (part := part_of(path)) is not None}
    due = Due(parts, frozenset(parts) - known.keys(), since)
    files: dict[str, DataFile | None] = {known[part]: None for part in parts if part in known}
    for part, rows in make(due):
        data = _encode(rows)
        path = part.path(sha256_hex(data))
        store.create(path, data)  # an existing one has the same bytes
        files.pop(known.get(part, ""), None)
        files[path] = None if path in state.files else DataFile(path, len(data), now_ms(), rows.num_rows)
    retention = f"interval {GRACE_S // 3600} hours"
    return Wanted(name, fields, (), files, version, _proof(log, version), retention)


def _since(log: ManifestLog, version: int, fields: str, state: DeltaState) -> int:
    """Return the version of the manifest that a table shows; 0 where it shows none, or that of another manifest."""
    since = state.transactions.get(CURSOR, 0)
    if since > version or state.metadata is None or state.metadata["schemaString"] != fields:
        return 0
    return since if since and state.transactions.get(PROOF) == _proof(log, since) else 0


def _proof(log: ManifestLog, version: int) -> int:
    """Return 63 bits of the digest of a delta. A manifest from a backup may have another delta there."""
    return int.from_bytes(hashlib.sha256(log.read_raw(version)).digest()[:8]) >> 1 if version else 0


def _encode(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(
        rows, sink, compression="zstd", row_group_size=_GROUP_ROWS, store_schema=False, write_page_checksum=True,
        version="2.6",
    )  # fmt: skip
    return sink.getvalue()


def former_files(store: Store, state: DeltaState, before_s: float) -> list[str]:
    """Return the files that may be deleted once another version of the table is committed.

    Args:
      store: the table's folder.
      state: the table's state.
      before_s: those that were removed from the table, or written and not added to it, before then; epoch seconds.
    """
    return [
        entry.path
        for entry in store.entries()
        if part_of(entry.path) is not None
        and entry.path not in state.files
        and state.removed.get(entry.path, int(entry.modified_s * 1000)) < before_s * 1000
    ]
