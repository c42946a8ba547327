"""Publishes the tables of a data root, and lists them.

The table ``raw`` has the telemetry of the present packs, by job and day. Runs that are not in a pack are not in it:
their objects lack the columns with the run id, and compaction removes them soon. The table of a data set has the
examples of the last version of each span. The rows of ``runs`` and ``dead_letters`` come from the raw manifest, by
`ciml.runs.tables.row_tables`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property, partial
from itertools import chain
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
from ciml.runs.tables import NAMES, RAW, RUNS, dataset_name, row_tables, store_of, table_name
from ciml.runs.tables.delta_log import (
    CURSOR,
    DataFile,
    DeltaLog,
    DeltaState,
    Published,
    TableContent,
    decode_fields,
    delta_fields,
    encode_fields,
    publish,
    without_case_twins,
)
from ciml.runs.tables.row_tables import GRACE_S, content_in_parts, former_files
from ciml.storage import Entry, Store
from ciml.telemetry import BOOT, TIME

#: Partition columns of the table ``raw``: the job, and the day (UTC) of the start of its runs.
RAW_PARTITION = ("job", "date")
DATASET_PARTITION = ("span",)
#: The first columns of the table ``raw``, and their types.
_FIRST_COLUMNS: Mapping[str, Any] = {"run_id": "string", "digest": "string", TIME: "timestamp", BOOT: "boolean"}
#: The columns of the table ``raw`` that are not telemetry.
_OWN_COLUMNS = (*_FIRST_COLUMNS, *RAW_PARTITION)
_TWINS = "{} differ only in upper and lower case"


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
            yield publish(store, partial(raw_content, data.raw))
        elif name in NAMES:
            yield _publish_rows(data, name, store)
        else:
            yield publish(store, partial(dataset_content, data.dataset(dataset_name(name))))


def _publish_rows(data: DataRoot, name: str, store: Store) -> Published:
    """Publish the table of runs or of dead letters, and delete files that left it long ago."""
    # Files are listed before the commit. Another publisher's file that is not committed yet may be among them; if so,
    # its table version is older than this commit, which makes that publisher start over.
    before_s = time.time() - GRACE_S
    former = former_files(store, DeltaLog(store).read(), before_s)
    published = publish(store, partial(_row_content, data, name, store))
    if published.committed:
        named = DeltaLog(store).read().files
        for path in former:
            if path not in named:
                store.delete(path)
        data.tables.delete_leftovers(name, before_s)
    return published


def _row_content(data: DataRoot, name: str, store: Store, state: DeltaState) -> TableContent:
    log, raw = open_raw(data.raw)
    if name == RUNS:
        schema = row_tables.stored_table([]).schema
        make = partial(row_tables.make_runs, log, raw)
    else:
        schema = row_tables.dead_letter_table([]).schema
        make = partial(row_tables.make_dead_letters, log, raw.version)
    return content_in_parts(name, store, log, raw.version, schema, make, state)


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


@dataclass(frozen=True, slots=True)
class TableState:
    """The present state of a table.

    Attributes:
      name: the table's name.
      url: the address of its folder, which engines open.
      version: its version; None if it was never published.
      rows, files: numbers of its rows and files.
      behind: number of commits to the manifests that it does not show.
    """

    name: str
    url: str
    version: int | None
    rows: int
    files: int
    behind: int


def raw_content(raw: Store, state: DeltaState) -> TableContent:
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
            # No pack is new, and none is removed: a pack is written before it is committed, and the packs that it
            # replaces are removed after the commit. So the folder's manifest need not be read.
            files |= dict.fromkeys(folder.published)
            continue
        for pack in _present(raw, name, pack_state(raw, name)):
            path = pack.path.removeprefix(f"{PACKS}/")
            if path in folder.published:
                files[path] = None
            elif columns.add(pack):
                modified_s = folder.files[path].modified_s if path in folder.files else 0.0
                files[path] = DataFile(path, pack.size, int(modified_s * 1000), pack.rows, partition_of(name))
    fields, untrusted = columns.select()
    cursor = sum(folder.deltas for folder in folders.values())
    schema = encode_fields(fields, untrusted)
    return TableContent(RAW, schema, RAW_PARTITION, files, cursor, notes=columns.notes)


@dataclass(slots=True)
class _Folder:
    """A folder of packs. Paths are relative to the table's folder.

    Attributes:
      files: its packs in the store, by path.
      deltas: number of deltas of its manifest.
      published: paths of its packs in the table.
    """

    files: dict[str, Entry] = field(default_factory=dict)
    deltas: int = 0
    published: set[str] = field(default_factory=set)


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
    """Return the packs of a folder that readers use: if one is missing, the replaced ones that still exist, too."""
    packs = [pack for pack in state.packs.values() if raw.exists(pack.path)]
    if len(packs) < len(state.packs):
        state = pack_state(raw, name)  # the missing one may have been replaced since
        packs = [pack for pack in state.packs.values() if raw.exists(pack.path)]
    if len(packs) < len(state.packs):
        packs += [pack for pack in state.replaced.values() if raw.exists(pack.path)]
    return packs


def partition_of(folder: str) -> dict[str, str | None]:
    """Return the values of a folder's partition columns."""
    job, _, day = folder.partition("/")
    try:
        start_date: str | None = date.fromisoformat(day.removeprefix("date=")).isoformat()
    except ValueError:
        start_date = None
    return {"job": unquote(job.removeprefix("job=")), "date": start_date}


class _Columns:
    """The columns of the table: the present ones, and those of new packs.

    A column is *trusted* if the recorders write it, if a trusted run has it, or if the table had it before it marked
    untrusted columns. Untrusted columns have a limit of their own. One whose name differs from that of a trusted column
    only in case is left out. So no untrusted run displaces a column of a trusted one. A trusted column is never
    removed.

    Args:
      raw: the raw store.
      state: the table's present state.
    """

    def __init__(self, raw: Store, state: DeltaState) -> None:
        self._raw = raw
        fields: dict[str, Any] = {}
        untrusted: set[str] = set()
        if state.metadata:
            fields, untrusted = decode_fields(state.metadata["schemaString"])
        self._types: dict[str, Any] = {**fields, **_FIRST_COLUMNS, "job": "string", "date": "date"}
        self._pack_types: dict[str, dict[str, Any]] = {}  # by the digest of a pack's columns
        # Columns of telemetry, and whether they are trusted.
        self._published = {name: name not in untrusted for name in fields if name not in _OWN_COLUMNS}
        self._new: dict[str, bool] = {}
        self._left_out_columns: dict[str, str] = {}  # with the reasons
        self._left_out_packs: list[str] = []

    def add(self, pack: PackFile) -> bool:
        """Add the columns of a pack; return whether it can be in the table."""
        try:
            columns = self._columns_of(pack)
        except (IntegrityError, TypeError, FileNotFoundError) as error:
            self._left_out_packs.append(f"{pack.path} is left out: {error}")
            return False
        if without_case_twins(columns)[1]:  # Spark could not read it
            self._left_out_packs.append(f"{pack.path} is left out: {_TWINS.format('two columns')}")
            return False
        types = {name: kind for name, kind in columns.items() if name not in RAW_PARTITION}
        if any(self._types.get(name, kind) != kind for name, kind in types.items()):
            self._left_out_packs.append(f"{pack.path} is left out: a column has another type than in other packs")
            return False
        self._types |= types
        names = types.keys() - _FIRST_COLUMNS.keys()
        # The runs of the pack are looked up only if they can make a column trusted.
        has_trusted_run = not all(map(self._is_trusted, names)) and self._has_trusted_run(pack)
        for name in names:
            self._new[name] = has_trusted_run or self._is_trusted(name)
        return True

    @cached_property
    def _index(self) -> Index:
        """The ids of the raw manifest, which is opened when they are first needed."""
        return open_raw(self._raw)[1].index

    def _has_trusted_run(self, pack: PackFile) -> bool:
        """Return whether one of the runs of a pack is trusted."""
        run_ids = [run_of(run.name) for run in open_pack(self._raw, pack).runs]
        self._index.prefetch(runs=run_ids)
        return any((run := self._index.run(run_id)) is not None and run.trusted for run_id in run_ids)

    def _columns_of(self, pack: PackFile) -> dict[str, Any]:
        if pack.columns not in self._pack_types:
            self._pack_types[pack.columns] = delta_fields(open_pack(self._raw, pack).schema)
        return self._pack_types[pack.columns]

    def _is_trusted(self, name: str) -> bool:
        return name in RECORDED_COLUMNS or self._published.get(name, False) or self._new.get(name, False)

    def select(self) -> tuple[dict[str, Any], set[str]]:
        """Return the types of all columns, by name, and the untrusted columns.

        Columns of the run come first, then telemetry by name, then the partition columns.
        """
        most_important_first = (
            [name for name, is_trusted in self._published.items() if is_trusted],
            sorted(name for name in self._new if name in RECORDED_COLUMNS),
            sorted(name for name in {**self._published, **self._new} if self._is_trusted(name)),
            [name for name in self._published if not self._is_trusted(name)],
            sorted(name for name in self._new if not self._is_trusted(name)),
        )
        ordered = dict.fromkeys(chain.from_iterable(most_important_first))
        names, twins = without_case_twins([*_OWN_COLUMNS, *ordered])
        self._left_out_columns |= dict.fromkeys(twins, _TWINS.format("it and another"))
        telemetry = self._within_limits([name for name in names if name not in _OWN_COLUMNS])
        types = {name: self._types[name] for name in (*_FIRST_COLUMNS, *sorted(telemetry), *RAW_PARTITION)}
        return types, {name for name in telemetry if not self._is_trusted(name)}

    def _within_limits(self, names: Sequence[str]) -> list[str]:
        """Return the first columns, up to the limits, and all published ones.

        Args:
          names: columns of telemetry, the most important ones first.
        """
        trusted_limit = MAX_TABLE_COLUMNS - MAX_TABLE_UNTRUSTED_COLUMNS - len(_OWN_COLUMNS)
        selected: list[str] = []
        numbers: Counter[bool] = Counter()
        for name in names:
            is_trusted = self._is_trusted(name)
            limit = trusted_limit if is_trusted else MAX_TABLE_UNTRUSTED_COLUMNS
            if numbers[is_trusted] < limit or name in self._published:
                selected.append(name)
                numbers[is_trusted] += 1
            else:
                whose = "of trusted runs" if is_trusted else "that no trusted run has"
                self._left_out_columns[name] = f"the table has {limit:,} columns {whose} already"
        return selected

    @property
    def notes(self) -> list[str]:
        """The packs and columns that are left out, with the reasons, a line each."""
        lines = [f"column {name!r} is left out: {why}" for name, why in self._left_out_columns.items()]
        return [*self._left_out_packs, *lines]


def dataset_content(dataset: StoredDataset, state: DeltaState) -> TableContent:
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
    return TableContent(
        table_name(dataset.name), encode_fields(partitioned), DATASET_PARTITION, files, present.version, notes=notes
    )
