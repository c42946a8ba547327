"""Read many runs pack by pack: the runs of a pack stay one table."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import pyarrow as pa

from ciml.events.records import RawFile
from ciml.raw.packs import split_path
from ciml.storage.open import Store
from ciml.transforms.raw.packs import OpenPack
from ciml.transforms.raw.reader import check_rows, packs_of, read_runs, threads_for

#: Number of objects per read.
_OBJECTS = 500

T = TypeVar("T")
U = TypeVar("U")


class Joined(NamedTuple):
    """Runs of one pack in one table, one after the other.

    Attributes:
      at: indices of the runs among the requested files.
      table: their telemetry.
      rows: number of rows of each run.
    """

    at: list[int]
    table: pa.Table
    rows: list[int]


def read_joined(
    store: Store, files: Sequence[RawFile], *, columns: Sequence[str], threads: int | None = None
) -> Iterator[Joined | list[tuple[int, pa.Table]]]:
    """Yield the telemetry of many runs, pack by pack, in no order; the runs of a pack stay one table.

    Args:
      store: the raw store.
      files: the files named by manifests.
      columns: only these. A name that a file lacks is left out.
      threads: see `read_runs`.

    Yields:
      The runs of a pack; or (number, table) of runs that are objects of their own, about a hundred at a time.

    Raises:
      IntegrityError: a run is missing, damaged or has other rows.
    """
    threads = threads_for(store, threads)
    folders: dict[str, list[tuple[int, str]]] = {}
    rest: list[int] = []
    for at, file in enumerate(files):
        parts = split_path(file.path)
        if parts is None:
            rest.append(at)
        else:
            folders.setdefault(parts[0], []).append((at, parts[1]))
    for found, others in _ahead(lambda item: _join_folder(store, *item, files, columns), folders.items(), threads):
        yield from found
        rest += others
    for start in range(0, len(rest), _OBJECTS):
        part = rest[start : start + _OBJECTS]
        tables = read_runs(store, [files[at] for at in part], columns=columns, threads=threads)
        yield list(zip(part, tables, strict=True))


def _join_folder(
    store: Store, folder: str, runs: Sequence[tuple[int, str]], files: Sequence[RawFile], columns: Sequence[str]
) -> tuple[list[Joined], list[int]]:
    """Read the runs of a folder that are in its packs; also return the indices of the others."""
    packs = packs_of(store, folder)
    rest: list[int] = []
    joined: list[Joined] = []
    wanted: dict[OpenPack, dict[int, int]] = {}
    for at, name in runs:
        found = packs.find(name)
        if found is None or found[1] in wanted.setdefault(found[0], {}):
            rest.append(at)
        else:
            wanted[found[0]][found[1]] = at
    for pack, numbers in wanted.items():
        try:
            ordered, table, rows = pack.read_joined(store, list(numbers), columns)
        except FileNotFoundError:  # replaced meanwhile: `read_runs` finds them
            rest.extend(numbers.values())
            continue
        at_of = [numbers[number] for number in ordered]
        for at, count in zip(at_of, rows, strict=True):
            check_rows(store, files[at], count)
        joined.append(Joined(at_of, table, rows))
    return joined, rest


def _ahead(work: Callable[[T], U], items: Iterable[T], threads: int) -> Iterator[U]:
    """Call ``work`` on items in order, with threads a few items ahead of the consumer, because results are large."""
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
