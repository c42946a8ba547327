"""Stored objects of each kind and format, one of which can be altered, and what reading gives.

``tests/golden/stored`` is a data path that an older version wrote, before files had seals and packs had checksums:
three runs in a pack, three runs as objects, and a data set of them. `make` writes the same as it is written now.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ciml.data_root import DataRoot
from ciml.datasets.state import DatasetState, ExampleFile
from ciml.errors import IntegrityError
from ciml.events.records import RawFile
from ciml.manifest.log import ManifestLog
from ciml.runs.pack_index import NamedRun, named_runs, pack_log, pack_state
from ciml.runs.packing import PackWriter
from ciml.runs.reader import Joined, read_joined, read_run, read_runs
from ciml.runs.writer import write_run
from ciml.storage import LocalStore, Store
from ciml.transforms.examples.spans import read_examples
from tests.transforms.samples import LOAD, USR

OLD = Path(__file__).parents[1] / "golden" / "stored"
DATASET = "cpu"
SOME = ["time", USR]
KINDS = ("object", "pack", "examples")
FORMATS = ("old", "new")


class Altered(LocalStore):
    """A folder in which one object has other bytes. It equals only itself, so no process knows its packs already."""

    def __init__(self, root: str, path: str, data: bytes) -> None:
        super().__init__(root)
        self.path, self.data = path, data

    def read(self, path: str) -> bytes:
        return self.data if path == self.path else super().read(path)

    def read_range(self, path: str, start: int, size: int) -> bytes:
        return self.data[start : start + size] if path == self.path else super().read_range(path, start, size)

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


@dataclass(frozen=True)
class Stored:
    """An object of a store.

    Attributes:
      root: the store's folder; path: the object's, below it.
      data: its bytes as they were written; others: those of other objects of its kind.
      read: all that can be read of it, as tables.
    """

    root: str
    path: str
    data: bytes
    others: tuple[bytes, ...]
    read: Callable[[Store], list[pa.Table]]

    def outcome(self, data: bytes) -> str:
        """What reading gives with other bytes: ``error``, ``same``, or else a line that says what is wrong."""
        try:
            found = self.read(Altered(self.root, self.path, data))
            wanted = self.read(LocalStore(self.root))
            equal = all(one.equals(other) for one, other in zip(found, wanted, strict=True))
        except IntegrityError as error:
            line = str(error)
            helps = self.path in line and "\n" not in line and "restore a backup" in line
            return "error" if helps else f"an error that does not help: {line}"
        except Exception as error:  # noqa: BLE001 any other error is a finding
            return f"{type(error).__name__}: {error!s:.80}"
        return "same" if equal else "other data"


def make(kind: str, form: str, folder: Path) -> Stored:
    """An object of a kind in a copy of `OLD`, which is made in an empty folder and written anew for ``new``."""
    shutil.copytree(OLD, folder, dirs_exist_ok=True)
    data = DataRoot.open(folder)
    if form == "new":
        _renew(data)
    if kind == "examples":
        root = data.dataset(DATASET).store
        files = example_files(data.dataset(DATASET).state())
        return _stored(root, [file.path for file in files], lambda store: _read_examples(store, files[0]))
    raw = data.raw
    if kind == "object":
        singles = [run for run in runs_of(raw) if raw.exists(run.path)]
        one = _raw_file(singles[0])
        return _stored(raw, [run.path for run in singles], lambda store: _read_runs(store, [one]))
    packed = [run for run in runs_of(raw) if not raw.exists(run.path)]
    paths = list(pack_state(raw, packed[0].folder).packs)
    return _stored(raw, paths, lambda store: _read_runs(store, [_raw_file(run) for run in packed]))


def runs_of(raw: Store) -> list[NamedRun]:
    """The runs that a raw manifest names."""
    return [run for _, delta in ManifestLog(raw).since(0) for run in named_runs(delta)]


def example_files(state: DatasetState) -> list[ExampleFile]:
    return [file for span in state.latest() for files in span.files.values() for file in files]


def _stored(store: Store, paths: list[str], read: Callable[[Store], list[pa.Table]]) -> Stored:
    first, *others = (store.read(path) for path in paths)
    return Stored(store.root, paths[0], first, tuple(others), read)


def _raw_file(run: NamedRun) -> RawFile:
    return RawFile(run.path, run.digest, run.rows, 0)


def _read_runs(store: Store, files: list[RawFile]) -> list[pa.Table]:
    """By all ways that there are: one by one, at once, some columns, joined."""
    found = [read_run(store, file) for file in files] + read_runs(store, files)
    found += read_runs(store, files, columns=SOME)
    for part in read_joined(store, files, columns=["time", LOAD]):
        found += [part.table] if isinstance(part, Joined) else [table for _, table in part]
    return found


def _read_examples(store: Store, file: ExampleFile) -> list[pa.Table]:
    return [read_examples(store, file), read_examples(store, file, ["run_id", "label", "usr"])]


def _renew(data: DataRoot) -> None:
    """Writes all objects of a data path as they are written now."""
    from ciml.transforms.examples.spans import write_examples

    raw = data.raw
    runs = [(run, read_run(raw, _raw_file(run)), raw.exists(run.path)) for run in runs_of(raw)]
    packed = [(run, table) for run, table, single in runs if not single]
    for run, table, single in runs:
        if single:
            raw.replace(run.path, write_run(table, run.path))
    (folder,) = {run.folder for run, _ in packed}
    writer = PackWriter(folder, packed[0][1].schema)
    for run, table in packed:
        writer.add(run.name, run.digest, table)
    pack, content = writer.finish()
    raw.create(pack.path, content)
    replaced = list(pack_state(raw, folder).packs)
    delta = {"time_us": 0, "packs": [pack.to_json()], "replaces": replaced, "alone": {}}
    assert pack_log(raw, folder).try_append(2, delta)
    root = data.dataset(DATASET).store
    for file in example_files(data.dataset(DATASET).state()):
        root.replace(file.path, write_examples(read_examples(root, file), file.path))
