"""Publishes the tables of a data root, and lists them.

The table ``raw`` has the telemetry of the present packs, by job and day. Runs that are not in a pack are not in it:
their objects lack the columns with the run id, and compaction removes them soon. The present packs are found by a
listing. A folder whose files are those of the table needs no look at its manifest: a pack is written before it is
committed, and the files that it replaces are removed only after that.

The table of a data set has the examples of the last version of each span.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property, partial
from typing import Any
from urllib.parse import unquote

from ciml.data_root import DataRoot, StoredDataset
from ciml.dstat import RECORDED_COLUMNS
from ciml.errors import CimlError, IntegrityError
from ciml.limits import MAX_TABLE_COLUMNS, MAX_TABLE_UNTRUSTED_COLUMNS
from ciml.manifest.log import ManifestLog
from ciml.runs.known_ids import Index
from ciml.runs.pack_index import PACKS, PackFile, PackState, pack_state, run_of
from ciml.runs.packs import open_pack
from ciml.runs.state import open_raw
from ciml.runs.tables import row_tables
from ciml.runs.tables.delta_log import (
    CURSOR,
    NAMES,
    RAW,
    RUNS,
    DataFile,
    DeltaLog,
    DeltaState,
    Published,
    Wanted,
    dataset_name,
    decode_fields,
    delta_fields,
    encode_fields,
    publish,
    store_of,
    table_name,
    without_case_twins,
)
from ciml.runs.tables.row_tables import GRACE_S, former_files, wanted_parts
from ciml.storage import Entry, Store
from ciml.telemetry import BOOT, TIME

#: Of the folder: the job as its name has it, and the day (UTC) of the start of its runs.
RAW_PARTITION = ("job", "date")
_TWINS = "{} differ only in upper and lower case"
DATASET_PARTITION = ("span",)


def publish_tables(data: DataRoot, names: Iterable[str] = ()) -> Iterator[Published]:
    """Publish tables, one after the other.

    Args:
      data: the data root.
      names: of the tables; all by default, without data sets that have no span and so no columns yet.

    Raises:
      CimlError: there is no table of that name.
      EngineError, IntegrityError: as `ciml.runs.tables.delta_log.publish`.
    """
    with_columns = (table_name(name) for name in data.dataset_names() if data.dataset(name).state().resolved)
    for name in list(names) or [*NAMES, *with_columns]:
        store = store_of(data, name)
        if name == RAW:
            yield publish(store, partial(wanted_raw, data.raw))
        elif name in NAMES:
            yield _publish_made(data, name, store)
        else:
            yield publish(store, partial(wanted_dataset, data.dataset(dataset_name(name))))


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
    for name in list(names) or [*NAMES, *map(table_name, data.dataset_names())]:
        store = store_of(data, name)
        state = DeltaLog(store).read()
        if name == RAW:
            end = sum(folder.deltas for folder in _folders(data.raw, DeltaState()).values())
        elif name in NAMES:
            end = ManifestLog(data.raw).end()
        else:
            end = data.dataset(dataset_name(name)).state().version
        behind = max(0, end - state.transactions.get(CURSOR, 0))
        version = state.version if state.version >= 0 else None
        yield TableState(name, store.url(), version, state.rows, len(state.files), behind)


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
    fields = columns.fields()
    cursor = sum(folder.deltas for folder in folders.values())
    schema = encode_fields(fields, columns.untrusted)
    return Wanted(RAW, schema, RAW_PARTITION, files, cursor, notes=columns.notes)


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
    """The columns of the table: those it has, and those of new packs.

    A column has standing if the recorders write it, if a trusted run has it, or if the table had it before columns
    were marked. The others have a limit of their own, and give way to a column with standing that differs from them in
    upper and lower case alone. So no untrusted run displaces a column of a trusted one. A published column with
    standing stays.

    Args:
      raw: the raw store.
      state: the table's present state.
    """

    def __init__(self, raw: Store, state: DeltaState) -> None:
        self._raw = raw
        self._packs: dict[str, dict[str, Any]] = {}
        before, marked = decode_fields(state.metadata["schemaString"]) if state.metadata else ({}, set())
        self._kinds: dict[str, Any] = {**before, **_FIRST, "job": "string", "date": "date"}
        self._published = {
            name: name not in marked for name in before if name not in _FIRST and name not in RAW_PARTITION
        }
        self._new: dict[str, bool] = {}
        self._left_out: dict[str, str] = {}
        self._unreadable: list[str] = []
        self.untrusted: set[str] = set()

    def add(self, pack: PackFile) -> bool:
        """Add the columns of a pack; return whether it can be in the table."""
        try:
            columns = self._columns_of(pack)
        except (IntegrityError, TypeError, FileNotFoundError) as error:
            self._unreadable.append(f"{pack.path} is left out: {error}")
            return False
        if without_case_twins(columns)[1]:
            self._unreadable.append(f"{pack.path} is left out: {_TWINS.format('two columns')}")  # Spark cannot read it
            return False
        kinds = {name: kind for name, kind in columns.items() if name not in RAW_PARTITION}
        if any(self._kinds.get(name, kind) != kind for name, kind in kinds.items()):
            self._unreadable.append(f"{pack.path} is left out: a column has another type than in other packs")
            return False
        names = kinds.keys() - _FIRST.keys()
        unsettled = {name for name in names if not self._has_standing(name)}
        is_trusted = bool(unsettled) and self._has_trusted(pack)
        for name in names:
            self._new[name] = is_trusted or self._has_standing(name)
        self._kinds |= kinds
        return True

    @cached_property
    def _index(self) -> Index:
        """The ids of the raw manifest, which is opened for the first question."""
        return open_raw(self._raw)[1].index

    def _has_trusted(self, pack: PackFile) -> bool:
        """Return whether one of the runs of a pack is trusted."""
        run_ids = [run_of(run.name) for run in open_pack(self._raw, pack).runs]
        self._index.prefetch(runs=run_ids)
        return any((run := self._index.run(run_id)) is not None and run.trusted for run_id in run_ids)

    def _columns_of(self, pack: PackFile) -> dict[str, Any]:
        if pack.columns not in self._packs:
            self._packs[pack.columns] = delta_fields(open_pack(self._raw, pack).schema)
        return self._packs[pack.columns]

    def _has_standing(self, name: str) -> bool:
        return name in RECORDED_COLUMNS or self._published.get(name, False) or self._new.get(name, False)

    def fields(self) -> dict[str, Any]:
        """Return all columns: those of the run first, telemetry by name, partition columns last."""
        groups = (
            [name for name, has_standing in self._published.items() if has_standing],
            sorted(name for name in self._new if name in RECORDED_COLUMNS),
            sorted(name for name in {**self._published, **self._new} if self._has_standing(name)),
            [name for name in self._published if not self._has_standing(name)],
            sorted(name for name in self._new if not self._has_standing(name)),
        )
        ordered = dict.fromkeys(name for group in groups for name in group)
        names, twins = without_case_twins([*_FIRST, *RAW_PARTITION, *ordered])
        self._left_out |= dict.fromkeys(twins, _TWINS.format("it and another"))
        names_within = self._within_limits([name for name in names if name not in _FIRST and name not in RAW_PARTITION])
        self.untrusted = {name for name in names_within if not self._has_standing(name)}
        return {name: self._kinds[name] for name in (*_FIRST, *sorted(names_within), *RAW_PARTITION)}

    def _within_limits(self, names: Sequence[str]) -> list[str]:
        """Return the columns that the limits allow, of telemetry columns with the most important ones first."""
        own_columns = len(_FIRST) + len(RAW_PARTITION)
        limits = {
            True: MAX_TABLE_COLUMNS - MAX_TABLE_UNTRUSTED_COLUMNS - own_columns,
            False: MAX_TABLE_UNTRUSTED_COLUMNS,
        }
        selected: list[str] = []
        number = {True: 0, False: 0}
        for name in names:
            has_standing = self._has_standing(name)
            if number[has_standing] < limits[has_standing] or name in self._published:
                selected.append(name)
                number[has_standing] += 1
            else:
                whose = "of trusted runs" if has_standing else "that no trusted run has"
                self._left_out[name] = f"the table has {limits[has_standing]:,} columns {whose} already"
        return selected

    @property
    def notes(self) -> list[str]:
        """What is left out, a line each."""
        lines = [f"column {name!r} is left out: {why}" for name, why in self._left_out.items()]
        return [*self._unreadable, *lines]


def wanted_dataset(dataset: StoredDataset, state: DeltaState) -> Wanted:
    """Return the content of a data set's table, whose folder is that of the data set.

    Args:
      dataset: the data set.
      state: the table's present state.

    Raises:
      CimlError: the data set has no span yet.
      IntegrityError: a file of the manifest does not exist.
    """
    from ciml.datasets.schema import schema_of

    present = dataset.state()
    if present.resolved is None:
        raise CimlError(f"data set {dataset.name!r} has no span yet: its columns are not known; ciml dataset update")
    named = {
        file.path: (span.span, file.rows)
        for span in present.latest()
        for split_files in span.files.values()
        for file in split_files
    }
    files: dict[str, DataFile | None] = {path: None for path in named if path in state.files}
    if missing := named.keys() - files.keys():
        for entry in dataset.store.entries():
            if entry.path in missing:
                span, rows = named[entry.path]
                partition = {"span": str(span)}
                files[entry.path] = DataFile(entry.path, entry.size, int(entry.modified_s * 1000), rows, partition)
    if lost := named.keys() - files.keys():
        raise IntegrityError(f"{dataset.store.url(min(lost))} is in the manifest but does not exist; restore a backup")
    fields = {**delta_fields(schema_of(present.resolved)), "span": "integer"}
    names, twins = without_case_twins([*DATASET_PARTITION, *fields])
    partitioned = {name: fields[name] for name in (*names[1:], *DATASET_PARTITION)}
    notes = [f"column {name!r} is left out: it differs from another only in upper and lower case" for name in twins]
    return Wanted(
        table_name(dataset.name), encode_fields(partitioned), DATASET_PARTITION, files, present.version, notes=notes
    )
