"""The parts of an id index as Arrow files: named by content, memory-mapped, checked when fetched."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING

from ciml.errors import EngineError, IntegrityError
from ciml.manifest.id_index import Part, Rows
from ciml.storage import LocalStore, S3Store, Store
from ciml.storage.json_files import replace_file

if TYPE_CHECKING:
    import pyarrow as pa


class IndexFileMissingError(EngineError):
    """A part does not exist (any more): a newer checkpoint replaced it, or it was lost."""


class PartFiles:
    """Parts below ``folder`` of a store. Each is opened once, and stays open until it is released.

    A part is compared with its digest when it is opened. A local part is mapped in place. A part on S3 is fetched once
    into a cache folder that only its owner may enter, and mapped there. Parts of other stores are held in memory.

    Args:
      store: where the parts are.
      folder: their folder there.
      cache: the cache folder for S3; by default one for the store below the user's own.
    """

    def __init__(self, store: Store, folder: str, cache: Path | None = None) -> None:
        self._store = store
        self._folder = folder
        self._cache = cache
        self._open: dict[str, Rows] = {}

    def write(self, rows: Rows) -> Part:
        """Write rows as a part; equal rows give the same part."""
        data = _encode(rows)
        digest = hashlib.sha256(data).hexdigest()
        path = f"{self._folder}/{digest[:32]}.arrow"
        self._store.create(path, data)
        return Part(path, digest, len(data), len(rows), int(rows.high[0]), int(rows.high[-1]))

    def open(self, part: Part) -> Rows:
        """Return the rows of a part.

        Raises:
          IndexFileMissingError: there is no such part (any more).
          IntegrityError: it is damaged.
        """
        if (rows_of_part := self._open.get(part.path)) is not None:
            return rows_of_part
        try:
            rows = _decode(self._source(part), self._store.url(part.path))
        except FileNotFoundError:
            raise IndexFileMissingError(f"{self._store.url(part.path)} is missing; see docs/manifests.md") from None
        if len(rows) != part.rows:
            raise IntegrityError(f"{self._store.url(part.path)} has {len(rows)} rows, expected {part.rows}")
        self._open[part.path] = rows
        return rows

    def release(self, used: Container[str]) -> None:
        """Close all parts except those at the paths ``used``, and remove them from the cache."""
        for path in [path for path in self._open if path not in used]:
            self._open.pop(path, None)
        if isinstance(self._store, S3Store) and (cache := self._cache_folder()).is_dir():
            for file in cache.glob("*.arrow"):
                if f"{self._folder}/{file.name}" not in used:
                    file.unlink(missing_ok=True)  # existing mappings stay valid

    def check(self, part: Part) -> str | None:
        """Describe a fault of a part's bytes in the store; None where there is none."""
        try:
            self._bytes(part)
        except FileNotFoundError:
            return f"{self._store.url(part.path)} is missing"
        except IntegrityError as error:
            return str(error)
        return None

    def _source(self, part: Part) -> pa.NativeFile:
        import pyarrow as pa

        if isinstance(self._store, LocalStore):
            return _mapped(Path(self._store.url(part.path)), part)
        if isinstance(self._store, S3Store):
            file = self._cache_folder() / part.path.rsplit("/", 1)[1]
            try:
                return _mapped(file, part)
            except (FileNotFoundError, IntegrityError):
                self._fetch(part, file)
            return _mapped(file, part)
        return pa.BufferReader(self._bytes(part))

    def _bytes(self, part: Part) -> bytes:
        data = self._store.read(part.path)
        if len(data) != part.size or hashlib.sha256(data).hexdigest() != part.sha256:
            raise IntegrityError(f"{self._store.url(part.path)} differs from its digest; see docs/manifests.md")
        return data

    def _fetch(self, part: Part, file: Path) -> None:
        data = self._bytes(part)
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.chmod(file.parent, 0o700)
            replace_file(file, data)
        except OSError as error:
            raise EngineError(f"cannot write {file}: {error.strerror or error}") from error

    def _cache_folder(self) -> Path:
        if self._cache is None:
            from platformdirs import user_cache_path

            name = hashlib.sha256(f"{self._store.root}/{self._folder}".encode()).hexdigest()[:16]
            self._cache = user_cache_path("ciml") / "index" / name
        return self._cache


def _mapped(file: Path, part: Part) -> pa.NativeFile:
    import pyarrow as pa

    try:
        # Read, not mapped: the pages do not count as memory of this process.
        if file.stat().st_size != part.size or _digest(file) != part.sha256:
            raise IntegrityError(f"{file} differs from its digest; see docs/manifests.md")
        return pa.memory_map(str(file))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise EngineError(f"cannot read {file}: {error}") from error


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _encode(rows: Rows) -> bytes:
    import pyarrow as pa

    columns = {"high": pa.array(rows.high), "low": pa.array(rows.low), **rows.values}
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    out = pa.BufferOutputStream()
    with pa.ipc.new_file(out, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(out.getvalue().to_pybytes())


def _decode(source: pa.NativeFile, where: str) -> Rows:
    import numpy as np
    import pyarrow as pa

    try:
        with source, pa.ipc.open_file(source) as reader:
            batch = reader.get_batch(0)
        names = batch.schema.names
        high, low = (np.frombuffer(batch.column(name).buffers()[1], np.uint64, len(batch)) for name in names[:2])
    except (pa.ArrowException, ValueError, IndexError) as error:
        raise IntegrityError(f"{where} is not a part of an index: {error}") from None
    return Rows(high, low, {name: batch.column(name) for name in names[2:]})
