"""Writes the packs of a folder of runs (a job and a day): packs its runs, and merges its small packs.

Both may be killed at any line, and run concurrently. The name of a pack is derived from its bytes, and the *pack
manifest* of the folder names it in one commit, which fails if another process has committed since it was planned. A run
that is not packed is *alone*: it stays an object of its own, and the pack manifest has the reason.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ciml.digest import canonical_json, sha256_json, telemetry_digest
from ciml.errors import IntegrityError
from ciml.manifest.log import Delta, commit
from ciml.runs import arrow
from ciml.runs.pack_index import PACKS, Alone, NamedRun, PackFile, PackState, pack_log, pack_state, run_of
from ciml.runs.packs import (
    CHECKSUMS,
    DESCRIPTION,
    RUN_COLUMNS,
    OpenPack,
    PackedRun,
    batches,
    chunk_checksums,
    open_pack,
    pack_digest,
)
from ciml.runs.reader import FolderPacks, default_threads, load_packs, read_verified
from ciml.storage import Store
from ciml.telemetry import TIME

#: A row group ends with the run that brings it to this number of rows. A reader of one run reads its whole group, and a
#: writer holds the last group in memory.
GROUP_ROWS = 32_768
#: Maximum number of runs in a pack.
PACK_RUNS = 5_000
_OPEN_PACKS = 4
# Small packs are merged if none is larger than this many times the smaller ones together. So a run is rewritten only
# when its folder has grown by about this factor.
_GROWTH = 2
_TEXT = pa.dictionary(pa.int32(), pa.string())


@dataclass(slots=True)
class PackCounts:
    """The result of packing and merging.

    Attributes:
      runs, rows: numbers of packed runs and of their rows.
      packs, packs_bytes: number and size of the packs that were written and committed.
      merged: number of packs that were merged into larger ones, or written again.
      alone: number of runs that are not packed because their folder has too few.
      faults: runs that cannot be packed, damaged packs and damaged manifests of packs, a line each. These runs keep
        their objects, and these packs are left in place.
    """

    runs: int = 0
    rows: int = 0
    packs: int = 0
    packs_bytes: int = 0
    merged: int = 0
    alone: int = 0
    faults: list[str] = field(default_factory=list)


class FolderPacker:
    """Packs the runs of folders, and merges their packs.

    Args:
      raw: the raw store.
      min_runs: the runs of a folder with fewer are not packed.
      pack_bytes: a pack ends with the run that brings it to this size.
      clock: epoch seconds.

    Attributes:
      counts: the result so far.
    """

    def __init__(self, raw: Store, min_runs: int, pack_bytes: int, clock: Callable[[], float]) -> None:
        self.counts = PackCounts()
        self._raw = raw
        self._min_runs = min_runs
        self._pack_bytes = pack_bytes
        self._clock = clock

    def pack(self, folder: str, named_runs: Mapping[str, NamedRun]) -> bool:
        """Pack those runs of a folder that are in no pack; return whether a pack was written.

        Args:
          folder: ``job=…/date=…``.
          named_runs: the runs that the raw manifest names there, by file name.

        Raises:
          IntegrityError: the manifest of the folder's packs is damaged.
        """
        written = None
        while written is None:
            written = self._try_to_pack(folder, named_runs)
        self._count(written.packs)
        self.counts.runs += sum(pack.runs for pack in written.packs)
        self.counts.rows += sum(pack.rows for pack in written.packs)
        faults = [f"runs/{folder}/{name}: {run.why}" for name, run in written.alone.items() if run.why]
        self.counts.faults += faults
        self.counts.alone += len(written.alone) - len(faults)
        return bool(written.packs)

    def _try_to_pack(self, folder: str, named_runs: Mapping[str, NamedRun]) -> WrittenPacks | None:
        """Pack and commit the runs; return None if the manifest has changed, so that it must be read again."""
        packs = load_packs(self._raw, folder)
        if packs.missing:
            self._restore_replaced(folder, packs)
            return None
        alone = packs.state.alone
        new_runs = [run for name, run in named_runs.items() if name not in packs.runs and name not in alone]
        if not new_runs:
            return WrittenPacks([], {})
        # Together with the runs that were left alone, there may be enough.
        new_runs += [NamedRun(folder, name, run.digest, run.rows) for name, run in alone.items()]
        written = self._write_runs(folder, new_runs)
        return written if self._commit(folder, packs.state, written.packs, written.alone) else None

    def merge(self, folder: str, *, renew: bool = False) -> bool:
        """Merge the small packs of a folder that have the same columns; return whether a pack was written.

        Nothing is merged if another process changes the packs meanwhile, or if a run cannot be packed again. A damaged
        pack is a fault; that of a single run is reported by a verification.

        Args:
          folder: ``job=…/date=…``.
          renew: also write the packs of older versions again.
        """
        try:
            return self._try_to_merge(folder, renew=renew)
        except FileNotFoundError:  # merged by another process
            return False
        except IntegrityError as error:
            self.counts.faults.append(str(error))
            return False

    def _try_to_merge(self, folder: str, *, renew: bool) -> bool:
        packs = load_packs(self._raw, folder)
        old_packs = _small_packs(packs.packs, self._pack_bytes)
        if renew:
            old_packs += [pack for pack in packs.packs if pack.renewable and pack not in old_packs]
        if packs.missing or not old_packs:
            return False
        written = self._write_again(folder, old_packs)
        replaced = [pack.file.path for pack in old_packs]
        if written.alone or not self._commit(folder, packs.state, written.packs, packs.state.alone, replaced):
            return False
        self._count(written.packs)
        self.counts.merged += len(old_packs)
        return True

    def erase(self, folder: str, is_erased: Callable[[str], bool]) -> int:
        """Write the packs with erased runs again, without these, and remove the old packs. Return how many these were.

        Replaced packs that hold such a run are removed too, without a grace: readers find the other runs in the packs
        that replaced them.

        Args:
          folder: ``job=…/date=…``.
          is_erased: whether a run is erased, by the name of its file.
        """
        committed = False
        while not committed:
            packs = load_packs(self._raw, folder)
            old_packs = [pack for pack in packs.packs if any(is_erased(run.name) for run in pack.runs)]
            alone = {name: run for name, run in packs.state.alone.items() if not is_erased(name)}
            if not old_packs and len(alone) == len(packs.state.alone):
                break
            try:
                written = self._write_again(folder, old_packs, is_erased)
            except FileNotFoundError:  # merged by another process
                continue
            replaced = [pack.file.path for pack in old_packs]
            committed = self._commit(folder, packs.state, written.packs, {**alone, **written.alone}, replaced)
        return sum(self._remove_replaced(pack, is_erased) for pack in pack_state(self._raw, folder).replaced.values())

    def _remove_replaced(self, pack: PackFile, is_erased: Callable[[str], bool]) -> bool:
        try:
            has_erased = any(is_erased(run.name) for run in open_pack(self._raw, pack).runs)
        except FileNotFoundError:
            return False
        if has_erased:
            self._raw.delete(pack.path)
        return has_erased

    def _count(self, packs: Sequence[PackFile]) -> None:
        self.counts.packs += len(packs)
        self.counts.packs_bytes += sum(pack.size for pack in packs)

    def _restore_replaced(self, folder: str, packs: FolderPacks) -> None:
        """Remove missing packs from the manifest, and restore those that they replaced.

        A pack is missing if its compactor was suspended for longer than the grace before the commit: another one has
        collected it. Nothing is lost, since replaced packs are kept until their replacement has been read back.
        """
        old_packs = [pack.file for pack in packs.packs if pack.file.path in packs.state.replaced]
        self._commit(folder, packs.state, old_packs, packs.state.alone, packs.missing)

    def _write_runs(self, folder: str, runs: Sequence[NamedRun]) -> WrittenPacks:
        if len(runs) < self._min_runs:
            return WrittenPacks([], {run.name: Alone(run.digest, run.rows) for run in runs})
        writer = _FolderWriter(self._raw, folder, self._pack_bytes)
        for read in _read_objects(self._raw, runs):
            if read.table is None:
                writer.leave_alone(read.run.name, Alone(read.run.digest, read.run.rows, read.fault))
            else:
                writer.add(read.run.name, read.run.digest, read.table)
        return writer.finish()

    def _write_again(
        self, folder: str, packs: Iterable[OpenPack], leaves_out: Callable[[str], bool] = lambda name: False
    ) -> WrittenPacks:
        """Write the runs of packs to new ones, each run once. Raises `FileNotFoundError`.

        Args:
          folder: of the runs.
          packs: with the runs.
          leaves_out: whether a run is not written, by the name of its file.
        """
        writer = _FolderWriter(self._raw, folder, self._pack_bytes)
        written_names: set[str] = set()
        for pack in packs:
            for numbers in pack.batches():
                remaining = [number for number in numbers if not leaves_out(pack.runs[number].name)]
                for number, table in pack.read(self._raw, remaining, None).items():
                    run = pack.runs[number]
                    if run.name not in written_names:
                        written_names.add(run.name)
                        writer.add(run.name, run.digest, table)
        return writer.finish()

    def _commit(
        self,
        folder: str,
        planned_on: PackState,
        packs: Sequence[PackFile],
        alone: Mapping[str, Alone],
        replaced: Sequence[str] = (),
    ) -> bool:
        """Commit packs; return False, without a commit, if another process has committed since this was planned."""
        state = PackState()

        def delta() -> Delta | None:
            if state.version != planned_on.version:
                return None
            return {
                "time_us": int(self._clock() * 1e6),
                "packs": [pack.to_json() for pack in packs],
                "replaces": list(replaced),
                "alone": {name: run.to_json() for name, run in sorted(alone.items())},
            }

        return commit(pack_log(self._raw, folder), state, delta) is not None


def _small_packs(packs: Iterable[OpenPack], pack_bytes: int) -> list[OpenPack]:
    """Return the packs to merge: for each set of columns, the smallest ones within the growth factor."""
    by_columns: dict[str, list[OpenPack]] = {}
    for pack in packs:
        if pack.file.size < pack_bytes // 2 and pack.file.runs < PACK_RUNS // 2:
            by_columns.setdefault(pack.file.columns, []).append(pack)
    small: list[OpenPack] = []
    for group in by_columns.values():
        group.sort(key=lambda pack: (pack.file.size, pack.file.path))
        total = group[0].file.size
        count = 1
        while count < len(group) and group[count].file.size <= _GROWTH * total:
            total += group[count].file.size
            count += 1
        if count > 1:
            small += group[:count]
    return small


class _ReadObject(NamedTuple):
    """The telemetry in the object of a run; None and a fault if the run cannot be packed."""

    run: NamedRun
    table: pa.Table | None
    fault: str = ""


def _read_objects(raw: Store, runs: Iterable[NamedRun]) -> Iterator[_ReadObject]:
    """Read runs in the order of their names, in batches; compare each with its digest."""

    def read(run: NamedRun) -> _ReadObject:
        try:
            return _ReadObject(run, read_verified(raw, run.run_id, run.file))
        except IntegrityError as error:
            return _ReadObject(run, None, str(error))

    with ThreadPoolExecutor(default_threads(raw)) as pool:
        for batch in batches(sorted(runs, key=lambda run: run.name), lambda run: run.rows):
            yield from pool.map(read, batch)


class WrittenPacks(NamedTuple):
    """Packs that are stored, but not committed.

    Attributes:
      packs: the packs.
      alone: runs that stay objects of their own, by name.
    """

    packs: list[PackFile]
    alone: dict[str, Alone]


class _FolderWriter:
    """Writes runs of a folder to packs, one for each set of columns; each is stored when it is full."""

    def __init__(self, raw: Store, folder: str, pack_bytes: int) -> None:
        self._raw = raw
        self._folder = folder
        self._pack_bytes = pack_bytes
        self._written = WrittenPacks([], {})
        self._open: dict[str, PackWriter] = {}  # by digest of the columns

    def add(self, name: str, digest: str, table: pa.Table) -> None:
        """Add a run to the pack of its columns."""
        columns = columns_digest(table.schema)
        if columns not in self._open:
            if len(self._open) >= _OPEN_PACKS:  # bounds the memory; small packs are merged later
                self._store(max(self._open, key=lambda columns: self._open[columns].size))
            self._open[columns] = PackWriter(self._folder, table.schema)
        writer = self._open[columns]
        writer.add(name, digest, table)
        if writer.size >= self._pack_bytes or len(writer.runs) >= PACK_RUNS:
            self._store(columns)

    def leave_alone(self, name: str, run: Alone) -> None:
        """Leave a run as an object of its own."""
        self._written.alone[name] = run

    def finish(self) -> WrittenPacks:
        """Store the open packs; return all."""
        for columns in list(self._open):
            self._store(columns)
        return self._written

    def _store(self, columns: str) -> None:
        writer = self._open.pop(columns)
        try:
            pack, data = writer.finish()
        except IntegrityError as error:
            for run in writer.runs:
                self.leave_alone(run.name, Alone(run.digest, run.rows, str(error)))
            return
        self._raw.create(pack.path, data)  # an existing one has the same bytes, since the name is their digest
        self._written.packs.append(pack)


def columns_digest(schema: pa.Schema) -> str:
    """Return the digest that runs of one pack share: of the names, types and order of their columns."""
    return sha256_json([[field.name, str(field.type), field.nullable] for field in schema])[:16]


class PackWriter:
    """A pack being written, in memory: its compressed bytes, and one uncompressed row group.

    Args:
      folder: of the runs.
      schema: of the runs; their metadata may differ.

    Attributes:
      runs: the runs so far.
    """

    def __init__(self, folder: str, schema: pa.Schema) -> None:
        self.runs: list[PackedRun] = []
        self._folder = folder
        self._columns = columns_digest(schema)
        self._rows = 0
        self._schema = schema.remove_metadata()
        # Telemetry columns have a colon in their names, but nothing else prevents these names.
        self._added = () if set(RUN_COLUMNS) & set(schema.names) else RUN_COLUMNS
        stored_schema = self._schema
        for name in self._added:
            stored_schema = stored_schema.append(pa.field(name, _TEXT))
        self._stored_columns = len(stored_schema)
        self._sink = io.BytesIO()
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._groups = 0
        # Telemetry repeats from run to run, which zstd compresses and a dictionary hides. Statistics of a pack are
        # never read, and the schema is not stored a second time in Arrow's own form.
        self._writer = pq.ParquetWriter(
            self._sink,
            stored_schema,
            compression="zstd",
            use_dictionary=list(self._added) or False,
            column_encoding={TIME: "DELTA_BINARY_PACKED"} if TIME in self._schema.names else None,
            write_statistics=False,
            store_schema=False,
            write_page_checksum=True,
            version="2.6",
        )

    @property
    def size(self) -> int:
        """Bytes of the row groups so far."""
        return self._sink.tell()

    def add(self, name: str, digest: str, table: pa.Table) -> None:
        """Append a run with the columns of the pack."""
        self.runs.append(PackedRun(name, digest, self._rows, table.num_rows, table.schema.metadata))
        self._rows += table.num_rows
        self._waiting.append(table.replace_schema_metadata(None))
        self._waiting_rows += table.num_rows
        if self._waiting_rows >= GROUP_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        if self._waiting_rows:
            rows = _with_run_columns(pa.concat_tables(self._waiting), self.runs[-len(self._waiting) :], self._added)
            self._writer.write_table(rows, row_group_size=self._waiting_rows)
            self._groups += 1
        self._waiting = []
        self._waiting_rows = 0

    def finish(self) -> tuple[PackFile, bytes]:
        """Finish the pack, and verify that every run reads back unchanged. Return the pack and its bytes.

        Raises:
          IntegrityError: a run does not read back unchanged.
        """
        self._write_group()
        description = _describe(self._folder, self.runs, self._added)
        zeros = _encode_checksums([0] * self._groups * self._stored_columns)
        # Checksums are the last entry: see `_with_checksums`.
        self._writer.add_key_value_metadata({DESCRIPTION: description, CHECKSUMS: zeros})
        self._writer.close()
        data = _with_checksums(self._sink.getvalue())
        footer = int.from_bytes(data[-8:-4], "little") + 8
        path = f"{PACKS}/{self._folder}/{pack_digest(data)}.parquet"
        footer_digest = pack_digest(data[-footer:])
        pack = PackFile(path, len(data), footer, footer_digest, self._rows, len(self.runs), self._columns)
        self._verify(OpenPack(pack, data[-footer:]), data)
        return pack, data

    def _verify(self, pack: OpenPack, data: bytes) -> None:
        for numbers in pack.batches():
            for number, table in pack.decode(data, numbers).items():
                run = pack.runs[number]
                same = table.schema.equals(self._schema) and telemetry_digest(run_of(run.name), table) == run.digest
                if not same or run.metadata != self.runs[number].metadata:
                    raise IntegrityError(f"{pack.file.path}: {run.name} does not read back from the pack unchanged")


def _with_run_columns(rows: pa.Table, runs: Sequence[PackedRun], names: Sequence[str]) -> pa.Table:
    """Append `RUN_COLUMNS` to the rows of these runs."""
    indices = arrow.numbers(np.repeat(np.arange(len(runs), dtype=np.int32), [run.rows for run in runs]))
    values = {"run_id": [run_of(run.name) for run in runs], "digest": [run.digest for run in runs]}
    for name in names:
        column = pa.DictionaryArray.from_arrays(indices, arrow.texts(values[name]))
        rows = rows.append_column(pa.field(name, _TEXT), column)
    return rows


def _describe(folder: str, runs: Iterable[PackedRun], added: Sequence[str]) -> bytes:
    """Return the runs of a pack as JSON; shared metadata is stored once."""
    indices: dict[str, int] = {}
    metadata: list[Any] = []
    encoded_runs = []
    for run in runs:
        entries = None if run.metadata is None else [[_text(key), _text(value)] for key, value in run.metadata.items()]
        key = json.dumps(entries)
        if key not in indices:
            indices[key] = len(metadata)
            metadata.append(entries)
        encoded_runs.append([run.name, run.digest, run.first, run.rows, indices[key]])
    return canonical_json({"folder": folder, "metadata": metadata, "runs": encoded_runs, "run_columns": list(added)})


def _text(data: bytes) -> str:
    return data.decode("latin-1")  # reversible for any bytes


def _with_checksums(data: bytes) -> bytes:
    """Fill in the checksums of a pack's column chunks, which are known only after it is written."""
    checksums = _encode_checksums(chunk_checksums(pq.ParquetFile(pa.BufferReader(data)).metadata, data))
    offset = data.rindex(CHECKSUMS + b"=")
    return data[:offset] + checksums + data[offset + len(checksums) :]


def _encode_checksums(checksums: Sequence[int]) -> bytes:
    return CHECKSUMS + b"=" + b"".join(b"%08x" % checksum for checksum in checksums)
