"""Read runs from the raw store by name: each from its own object, or from a pack that holds it.

A run may move between its own object and packs while it is read. The new copy exists and is in a manifest before the
old one is removed. So a reader that does not find the run reads the manifest again, and finds the new copy.

Many runs are read pack by pack. The packs of the folders that were read last are cached.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Literal, NamedTuple, TypeVar

import pyarrow as pa

from ciml.digest import telemetry_digest
from ciml.errors import IntegrityError
from ciml.events.records import RawFile
from ciml.runs.arrow import read_parquet
from ciml.runs.pack_index import SWEPT, PackFile, PackState, pack_state, split_path
from ciml.runs.packs import OpenPack, batches, open_pack
from ciml.runs.writer import SEAL, damaged, is_sealed, unreadable
from ciml.storage import LocalStore, Store

_THREADS = 16
#: Number of runs whose positions in packs a process caches; about a kilobyte each.
_CACHED_RUNS = 25_000
#: Number of objects that `read_joined` reads together.
_OBJECTS = 500
_NAME = re.compile(r"(?P<run_id>.+)\.(?P<digest>[0-9a-f]{16})\.parquet")
_TIMES = pa.timestamp("us", tz="UTC")

T = TypeVar("T")
U = TypeVar("U")


def read_run(store: Store, file: RawFile | str, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the telemetry of a run. Raises `IntegrityError` where it is missing, damaged or has other rows."""
    path = file if isinstance(file, str) else file.path
    table = _find(store, path, columns)
    if isinstance(file, RawFile):
        _check_rows(store, file, table.num_rows)
    return table


def read_runs(
    store: Store, files: Iterable[RawFile | str], *, columns: Sequence[str] | None = None, threads: int | None = None
) -> list[pa.Table]:
    """Read the telemetry of many runs, in the order given. A pack is read once for all its runs.

    Args:
      store: the raw store.
      files: files from manifests; or paths in the store, whose number of rows is not checked.
      columns: only these, in this order; all by default. A name that a file lacks is left out.
      threads: number of reading threads; by default 16 for S3, where opening a file waits, and 1 for a folder, where it
        holds the interpreter.

    Raises:
      IntegrityError: a run is missing, damaged or has other rows.
    """
    requested = list(files)
    paths = [file if isinstance(file, str) else file.path for file in requested]
    threads = default_threads(store) if threads is None else threads
    folders, singles = _by_folder(paths)
    for folder in [name for name, runs in folders.items() if len(runs) == 1 and _cache.get(store, name) is None]:
        # The run's own object is more likely than a pack, and saves a request.
        singles += [run.file_index for run in folders.pop(folder)]
    tables: dict[int, pa.Table] = {}

    def read(pack: OpenPack, indices: Mapping[int, int]) -> dict[int, pa.Table]:
        runs = pack.read(store, indices, columns)
        return {index: runs[number] for number, index in indices.items()}

    for tables_by_pack, unpacked in _read_folders(store, folders, read, threads):
        for pack_tables in tables_by_pack:
            tables |= pack_tables
        singles += unpacked
    for index, table in zip(
        singles, _ahead(lambda index: _find(store, paths[index], columns), singles, threads), strict=True
    ):
        tables[index] = table
    for index, file in enumerate(requested):
        if isinstance(file, RawFile):
            _check_rows(store, file, tables[index].num_rows)
    return [tables[index] for index in range(len(requested))]


class Joined(NamedTuple):
    """Runs of one pack in one table, one after the other.

    Attributes:
      indices: of the runs among the requested files.
      table: their telemetry.
      rows: number of rows of each run.
    """

    indices: list[int]
    table: pa.Table
    rows: list[int]


def read_joined(
    store: Store, files: Sequence[RawFile], *, columns: Sequence[str], threads: int | None = None
) -> Iterator[Joined | list[tuple[int, pa.Table]]]:
    """Yield the telemetry of many runs, pack by pack, in no order.

    Args:
      store: the raw store.
      files: the files named by manifests.
      columns: only these. A name that a file lacks is left out.
      threads: see `read_runs`.

    Yields:
      `Joined` for the runs of a pack; a list of (index, table) for other runs, at most `_OBJECTS` of them.

    Raises:
      IntegrityError: a run is missing, damaged or has other rows.
    """
    threads = default_threads(store) if threads is None else threads
    folders, singles = _by_folder(file.path for file in files)

    def join(pack: OpenPack, indices: Mapping[int, int]) -> Joined:
        numbers = sorted(indices)
        rows = [pack.runs[number].rows for number in numbers]
        joined = Joined([indices[number] for number in numbers], pack.read_joined(store, numbers, columns), rows)
        for index, count in zip(joined.indices, rows, strict=True):
            _check_rows(store, files[index], count)
        return joined

    for joined_by_pack, unpacked in _read_folders(store, folders, join, threads):
        yield from joined_by_pack
        singles += unpacked
    for start in range(0, len(singles), _OBJECTS):
        part = singles[start : start + _OBJECTS]
        tables = read_runs(store, [files[index] for index in part], columns=columns, threads=threads)
        yield list(zip(part, tables, strict=True))


def read_columns(store: Store, files: Sequence[RawFile]) -> list[tuple[str, ...]]:
    """Return the column names of many runs, in the order given. For runs in packs no telemetry is read.

    Raises:
      IntegrityError: a run is missing or damaged.
    """
    names: dict[int, tuple[str, ...]] = {}
    folders, singles = _by_folder(file.path for file in files)
    for folder, runs in folders.items():
        packs = _packs_of(store, folder)
        for run in runs:
            position = packs.runs.get(run.name)
            if position is None:
                singles.append(run.file_index)
            else:
                names[run.file_index] = position.pack.names

    def read(index: int) -> tuple[str, ...]:
        return tuple(read_run(store, files[index]).column_names)

    names |= zip(singles, _ahead(read, singles, default_threads(store)), strict=True)
    return [names[index] for index in range(len(files))]


def read_verified(store: Store, run_id: str, file: RawFile) -> pa.Table:
    """Read a run's telemetry as `read_run` does. Raises `IntegrityError` also where its digest is another one."""
    table = read_run(store, file)
    try:
        digest = telemetry_digest(run_id, table)
    except TypeError as error:  # columns of another type
        raise IntegrityError(str(error)) from None
    if digest != file.digest:
        raise IntegrityError(f"{store.url(file.path)} has the digest {digest}, expected {file.digest}")
    return table


def verify_run(store: Store, run_id: str, file: RawFile) -> str:
    """Check a run's telemetry (existence, rows, digest). Return its fault in one line, "" without one."""
    try:
        read_verified(store, run_id, file)
    except IntegrityError as error:
        return str(error)
    return ""


def verify_runs(store: Store, runs: Iterable[tuple[str, RawFile]]) -> Iterator[str]:
    """Yield the result of `verify_run` for many runs, in order; about `BATCH_ROWS` rows are read at a time."""
    for part in batches(runs, lambda run: run[1].rows):
        try:
            tables = read_runs(store, [file for _, file in part])
            digests = [telemetry_digest(run_id, table) for (run_id, _), table in zip(part, tables, strict=True)]
        except (IntegrityError, TypeError):
            digests = [""] * len(part)  # at least one is damaged: check them one by one
        for (run_id, file), digest in zip(part, digests, strict=True):
            yield "" if digest == file.digest else verify_run(store, run_id, file)


def _find(store: Store, path: str, columns: Sequence[str] | None) -> pa.Table:
    """Read a run from its own object or from a pack, whichever exists. Raises `IntegrityError` where none does."""
    parts = split_path(path)
    if parts is None:
        with suppress(FileNotFoundError):
            return read_object(store, path, columns)
        raise _missing(store, path)
    folder, name = parts
    packs = _cache.get(store, folder)
    position = packs.runs.get(name) if packs is not None else None
    while True:
        if position is not None:
            with suppress(FileNotFoundError):  # replaced by another pack
                return position.pack.read(store, [position.number], columns)[position.number]
        with suppress(FileNotFoundError):  # packed meanwhile
            return read_object(store, path, columns)
        packs = _cache.load(store, folder)
        next_position = packs.runs.get(name)
        if next_position is None or (position is not None and next_position.pack.file == position.pack.file):
            break  # no other pack has it
        position = next_position
    # A run that was committed long after it was written is in ``swept/``, or is being moved back.
    for last_path in (f"{SWEPT}/{path}", path):
        with suppress(FileNotFoundError):
            return read_object(store, last_path, columns)
    if packs.broken:
        raise IntegrityError(
            f"{store.url(path)} does not exist, and a pack that may hold it is damaged: {packs.broken[0]}"
        )
    raise _missing(store, path)


def _missing(store: Store, path: str) -> IntegrityError:
    return IntegrityError(f"{store.url(path)} is in the manifest but does not exist")


def _check_rows(store: Store, file: RawFile, rows: int) -> None:
    """Raise `IntegrityError` where the number of rows differs from the manifest."""
    if rows != file.rows:
        raise IntegrityError(f"{store.url(file.path)} has {rows} rows, the manifest says {file.rows}; restore a backup")


def read_object(store: Store, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the telemetry of a run that has its own object.

    A sealed object is checked before it is parsed. One of an older version is read as a whole, and its telemetry is
    compared with the digest in its name, even for a few columns.

    Raises:
      FileNotFoundError: there is no such object.
      IntegrityError: it is damaged.
    """
    return decode_object(store.read(path), path, store.url(path), columns)[0]


def decode_object(
    data: bytes, path: str, url: str, columns: Sequence[str] | None = None
) -> tuple[pa.Table, Literal["1", "2"]]:
    """Return the telemetry of an object as `read_object` does, and its format: 2 has a seal, 1 has none.

    Args:
      data: the object.
      path: where it was read.
      url: its full address, for errors.
      columns: only these; all by default.
    """
    selected = None if columns is None else list(columns)
    old = not is_sealed(data, path, url)
    try:
        table = read_parquet(data, None if old else selected)
        if old:
            _check_telemetry(table, path, url)
            if selected is not None:
                table = table.select([name for name in dict.fromkeys(selected) if name in table.column_names])
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a name that is not UTF-8
        raise unreadable(url, error) from None
    facts = table.schema.metadata or {}
    metadata = {key: value for key, value in facts.items() if key != SEAL}
    return table.replace_schema_metadata(metadata or None), "1" if old else "2"


def _check_telemetry(table: pa.Table, path: str, url: str) -> None:
    """Compare telemetry with the digest in its object's name. Every name from `run_path` has one."""
    if (named := _NAME.fullmatch(path.rpartition("/")[2])) is None:
        return
    # The digest does not cover the unit of times.
    if any(pa.types.is_timestamp(kind) and kind != _TIMES for kind in table.schema.types):
        raise damaged(url)
    try:
        actual = telemetry_digest(named["run_id"], table)
    except TypeError:  # columns of another type
        raise damaged(url) from None
    if actual[:16] != named["digest"]:
        raise IntegrityError(f"{url} has the digest {actual}, which differs from its name; restore a backup")


class _RequestedRun(NamedTuple):
    """A run of a folder: its index among the requested files, and its file name."""

    file_index: int
    name: str


def _by_folder(paths: Iterable[str]) -> tuple[dict[str, list[_RequestedRun]], list[int]]:
    """Return the runs of each folder, and the indices of paths that are never in a pack."""
    folders: dict[str, list[_RequestedRun]] = {}
    singles: list[int] = []
    for index, path in enumerate(paths):
        parts = split_path(path)
        if parts is None:
            singles.append(index)
        else:
            folder, name = parts
            folders.setdefault(folder, []).append(_RequestedRun(index, name))
    return folders, singles


def _read_folders(
    store: Store,
    folders: Mapping[str, Sequence[_RequestedRun]],
    read: Callable[[OpenPack, Mapping[int, int]], T],
    threads: int,
) -> Iterator[tuple[list[T], list[int]]]:
    """Yield for each folder the results of ``read`` for its packs, and the indices of the runs that it did not read.

    These are in no pack, requested twice, or in a pack that was replaced meanwhile.

    Args:
      store: the raw store.
      folders: the runs by folder.
      read: reads the runs of a pack, given their indices by their number in it. It may raise `FileNotFoundError`.
      threads: number of reading threads.
    """

    def read_folder(folder: str) -> tuple[list[T], list[int]]:
        packs = _packs_of(store, folder)
        singles: list[int] = []
        by_pack: dict[OpenPack, dict[int, int]] = {}
        for run in folders[folder]:
            position = packs.runs.get(run.name)
            if position is None or position.number in by_pack.setdefault(position.pack, {}):
                singles.append(run.file_index)  # in no pack, or requested twice
            else:
                by_pack[position.pack][position.number] = run.file_index
        results: list[T] = []
        for pack, indices in by_pack.items():
            try:
                results.append(read(pack, indices))
            except FileNotFoundError:  # replaced meanwhile: each run is searched for
                singles += indices.values()
        return results, singles

    return _ahead(read_folder, folders, threads)


def default_threads(store: Store) -> int:
    """Return the number of threads that access objects of a store together: requests to S3 wait for answers."""
    return 1 if isinstance(store, LocalStore) else _THREADS


def _ahead(work: Callable[[T], U], items: Iterable[T], threads: int) -> Iterator[U]:
    """Yield ``work(item)`` for each item, in order.

    With several threads, at most as many results are under way, because results are large.
    """
    if threads <= 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[Future[U]] = deque()
        for item in items:
            under_way.append(pool.submit(work, item))
            if len(under_way) == threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


class PackPosition(NamedTuple):
    """A pack, and the number of a run in it."""

    pack: OpenPack
    number: int


class FolderPacks:
    """The packs of one folder of runs at one time.

    Attributes:
      state: the state of their manifest.
      packs: the present ones, opened, and, if one of them is missing, the replaced ones that still exist.
      runs: the position of each run, by the run's file name.
      missing: packs in the manifest that do not exist.
      broken: faults of packs that cannot be opened, one line each.
    """

    def __init__(
        self, state: PackState, packs: Sequence[OpenPack], missing: Sequence[str] = (), broken: Sequence[str] = ()
    ) -> None:
        self.state = state
        self.packs = packs
        self.missing = missing
        self.broken = broken
        self.runs = {name: PackPosition(pack, number) for pack in packs for name, number in pack.number.items()}


def load_packs(store: Store, folder: str) -> FolderPacks:
    """Open the present packs of a folder.

    A damaged or missing pack is left out: its runs may be elsewhere.
    """
    version = -1
    while True:
        state = pack_state(store, folder)
        packs, missing, broken = _open(store, state.packs.values())
        if not missing:
            return FolderPacks(state, packs, missing, broken)
        if state.version == version:  # otherwise the missing pack may have been replaced since the manifest was read
            return FolderPacks(state, packs + _open(store, state.replaced.values())[0], missing, broken)
        version = state.version


def _open(store: Store, files: Iterable[PackFile]) -> tuple[list[OpenPack], list[str], list[str]]:
    packs: list[OpenPack] = []
    missing: list[str] = []
    broken: list[str] = []
    for file in files:
        try:
            packs.append(open_pack(store, file))
        except FileNotFoundError:
            missing.append(file.path)
        except IntegrityError as error:
            broken.append(str(error))
    return packs, missing, broken


class _PackCache:
    """A cache of folders' packs; the least recently used is dropped first. Safe to use from threads."""

    def __init__(self) -> None:
        self._folders: OrderedDict[tuple[Store, str], FolderPacks] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, store: Store, folder: str) -> FolderPacks | None:
        with self._lock:
            packs = self._folders.get((store, folder))
            if packs is not None:
                self._folders.move_to_end((store, folder))
            return packs

    def load(self, store: Store, folder: str) -> FolderPacks:
        """Read the manifest again."""
        packs = load_packs(store, folder)
        with self._lock:
            former_packs = self._folders.pop((store, folder), None)
            if former_packs is not None:
                self._size -= _cache_size(former_packs)
            self._folders[store, folder] = packs
            self._size += _cache_size(packs)
            while self._size > _CACHED_RUNS and len(self._folders) > 1:
                _, dropped_packs = self._folders.popitem(last=False)
                self._size -= _cache_size(dropped_packs)
        return packs


def _cache_size(packs: FolderPacks) -> int:
    """Return the size of a cache's entry in runs; a folder without packs counts as one."""
    return len(packs.runs) + 1


_cache = _PackCache()


def _packs_of(store: Store, folder: str) -> FolderPacks:
    """Return the cached packs of a folder; read its manifest where none are cached."""
    return _cache.get(store, folder) or _cache.load(store, folder)
