"""The table of telemetry: the present packs of the raw store, by job and day.

Runs that are not in a pack are not in the table: their objects lack the columns that say whose rows they are, each
would be a file of its own, and compaction removes them soon. The present packs are found by a listing. A folder whose
files are those of the table needs no look at its manifest: a pack is written before it is committed, and the files that
it replaces are removed only after that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from urllib.parse import unquote

from ciml.digest import sha256_hex
from ciml.errors import IntegrityError
from ciml.limits import MAX_TABLE_COLUMNS
from ciml.raw.packs import PACKS, PackFile, PackState, pack_state
from ciml.raw.seal import damaged
from ciml.storage.open import Entry, Store
from ciml.tables.delta_log import DataFile, DeltaState
from ciml.tables.delta_schema import decode_fields, delta_fields, encode_fields, without_case_twins
from ciml.tables.places import RAW
from ciml.tables.wanted import Wanted
from ciml.telemetry import BOOT, TIME

#: Of the folder: the job as its name has it, and the day (UTC) of the start of its runs.
PARTITION = ("job", "date")
_TWINS = "{} differ only in upper and lower case"
_FIRST: Mapping[str, Any] = {"run_id": "string", "digest": "string", TIME: "timestamp", BOOT: "boolean"}


@dataclass(slots=True)
class _Folder:
    """What is stored of a folder of packs: its files, the number of deltas of its manifest, what the table has."""

    files: dict[str, Entry] = field(default_factory=dict)
    deltas: int = 0
    published: set[str] = field(default_factory=set)


def wanted_raw(raw: Store, state: DeltaState) -> Wanted:
    """Return the content of the table of telemetry, whose folder is that of the packs.

    Args:
      raw: the raw store.
      state: the table's present state.

    Raises:
      IntegrityError: a folder's manifest is damaged.
    """
    columns = _Columns(raw, state)
    files: dict[str, DataFile | None] = {}
    folders = _folders(raw, state)
    for name, folder in sorted(folders.items()):
        if folder.published == folder.files.keys():
            files |= dict.fromkeys(folder.published)
            continue
        for pack in _present(raw, name, pack_state(raw, name)):
            path = pack.path.removeprefix(f"{PACKS}/")
            if path in folder.published:
                files[path] = None
            elif columns.add(pack):
                modified_s = folder.files[path].modified_s if path in folder.files else 0.0
                files[path] = DataFile(path, pack.size, int(modified_s * 1000), pack.rows, partition_of(name))
    fields, notes = columns.fields(), columns.notes
    cursor = sum(folder.deltas for folder in folders.values())
    return Wanted(RAW, encode_fields(fields), PARTITION, files, cursor, notes=notes)


def _folders(raw: Store, state: DeltaState) -> dict[str, _Folder]:
    folders: dict[str, _Folder] = {}
    for path in state.files:
        folders.setdefault(path.rpartition("/")[0], _Folder()).published.add(path)
    for entry in raw.entries(PACKS):
        path = entry.path.removeprefix(f"{PACKS}/")
        parts = path.split("/")
        if len(parts) < 3 or not parts[0].startswith("job=") or not parts[1].startswith("date="):
            continue  # the table's log, the cursor of compaction
        folder = folders.setdefault("/".join(parts[:2]), _Folder())
        if len(parts) == 3 and path.endswith(".parquet"):
            folder.files[path] = entry
        elif len(parts) == 4:
            folder.deltas += 1
    return folders


def deltas_of_packs(raw: Store) -> int:
    """Return the number of deltas in the manifests of all folders of packs: the cursor of an up-to-date table."""
    return sum(folder.deltas for folder in _folders(raw, DeltaState()).values())


def _present(raw: Store, name: str, state: PackState) -> list[PackFile]:
    """Return the packs of a folder that readers use: where one is missing, also those that it replaced."""
    there = [pack for pack in state.packs.values() if raw.exists(pack.path)]
    if len(there) < len(state.packs):
        state = pack_state(raw, name)  # it may have been replaced since
        there = [pack for pack in state.packs.values() if raw.exists(pack.path)]
    if len(there) < len(state.packs):
        there += [pack for pack in state.replaced.values() if raw.exists(pack.path)]
    return there


def partition_of(folder: str) -> dict[str, str | None]:
    """Return the values of a folder's partition columns."""
    job, _, day = folder.partition("/")
    try:
        when: str | None = date.fromisoformat(day.removeprefix("date=")).isoformat()
    except ValueError:
        when = None
    return {"job": unquote(job.removeprefix("job=")), "date": when}


class _Columns:
    """The columns of the table: those it has, and those of new packs. A footer is read for each kind of pack."""

    def __init__(self, raw: Store, state: DeltaState) -> None:
        self._raw = raw
        self._known: dict[str, dict[str, Any]] = {}
        before = decode_fields(state.metadata["schemaString"]) if state.metadata else {}
        self._fields: dict[str, Any] = {
            **_FIRST,
            **{name: kind for name, kind in before.items() if name not in PARTITION},
        }
        self._left_out: dict[str, str] = {}
        self._unreadable: list[str] = []

    def add(self, pack: PackFile) -> bool:
        """Add the columns of a pack; return whether it can be in the table."""
        if pack.columns not in self._known:
            try:
                self._known[pack.columns] = _fields_of(self._raw, pack)
            except (IntegrityError, TypeError, FileNotFoundError) as error:
                self._unreadable.append(f"{pack.path} is left out: {error}")
                return False
        columns = self._known[pack.columns]
        if without_case_twins(columns)[1]:
            self._unreadable.append(f"{pack.path} is left out: {_TWINS.format('two columns')}")  # Spark cannot read it
            return False
        if any(self._fields.get(name, kind) != kind for name, kind in columns.items()):
            self._unreadable.append(f"{pack.path} is left out: a column has another type than in other packs")
            return False
        self._fields |= columns
        return True

    def fields(self) -> dict[str, Any]:
        """Return all columns: those of the run first, telemetry by name, partition columns last."""
        telemetry = sorted(self._fields.keys() - _FIRST.keys())
        names, twins = without_case_twins([*_FIRST, *PARTITION, *telemetry])
        self._left_out |= dict.fromkeys(twins, _TWINS.format("it and another"))
        most = MAX_TABLE_COLUMNS
        self._left_out |= dict.fromkeys(names[most:], f"the table has {most:,} columns already")
        kinds = {**self._fields, "job": "string", "date": "date"}
        kept = [name for name in names[:most] if name not in PARTITION]
        return {name: kinds[name] for name in (*kept, *PARTITION)}

    @property
    def notes(self) -> list[str]:
        """What is left out, a line each."""
        lines = [f"column {name!r} is left out: {why}" for name, why in self._left_out.items()]
        return [*self._unreadable, *lines]


def _fields_of(raw: Store, pack: PackFile) -> dict[str, Any]:
    """Return the columns of a pack. A damaged footer is not parsed: Parquet's reader may crash on it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    footer = raw.read_range(pack.path, pack.size - pack.footer, pack.footer)
    if sha256_hex(footer)[:32] != pack.footer_digest:
        raise damaged(raw.url(pack.path))
    return delta_fields(pq.read_schema(pa.BufferReader(b"PAR1" + footer)))
