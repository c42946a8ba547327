"""The raw objects of runs: their paths, their Parquet files, and the seal by which readers detect damage.

A raw object is named by its digest and created exclusively, before the commit that refers to it. So a worker that is
killed between the two leaves an object that the next try reuses, or that no manifest ever names.

The *seal* is the last entry of the file's key-value metadata, ``ciml.sha256`` = ``ciml.sha256=<64 hex digits> <name>``.
The digest covers every other byte: page headers, page checksums and the footer too. Any program that reads Parquet
reads a sealed file. Files of older versions have no seal: readers compute the digest of their content instead. Files of
examples have the same seal.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq

from ciml.digest import telemetry_digest
from ciml.errors import IntegrityError
from ciml.events.records import Batch, PendingRun, RawFile, RunFacts
from ciml.storage import Store
from ciml.telemetry import TIME

#: The key of the seal in a file's key-value metadata.
SEAL = b"ciml.sha256"
_MARK = SEAL + b"="
_DIGITS = 64
_THREADS = 16
#: Longer tables are compressed by zstd, others by lz4.
_LZ4_ROWS = 3000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_SEGMENT = 150  # bytes of a job's folder; with `job=` it must stay within the 255 of a file name


def store(batch: Batch, raw: Store) -> Batch:
    """Write the raw objects of a batch's pending runs. This settles them as runs; the accounting may change their kind.

    Args:
      batch: its pending runs hold their ``telemetry``.
      raw: the raw store, the root of `RawFile.path`.

    Raises:
      EngineError: the store does not answer.
    """
    if not batch.pending_runs:
        return batch
    # Encoding holds the interpreter, so threads would only slow it down.
    encoded = [_encode(pending) for pending in batch.pending_runs]
    files = [file for file, _ in encoded]

    def create(file: RawFile, data: bytes) -> None:
        raw.create(file.path, data)  # an existing object holds the same telemetry: its name contains the digest

    with ThreadPoolExecutor(min(_THREADS, len(encoded))) as pool:
        list(pool.map(create, files, (data for _, data in encoded)))  # raises the first error
    settled = [pending.outcome("run", file=file) for pending, file in zip(batch.pending_runs, files, strict=True)]
    return Batch(batch.covers, batch.messages, [], batch.settled + settled)


def _encode(pending: PendingRun) -> tuple[RawFile, bytes]:
    facts = pending.mention
    table = pending.telemetry
    if table is None:
        raise IntegrityError(f"{pending.origin} {facts.run_id}: cannot store a run before it is parsed")
    digest = telemetry_digest(facts.run_id, table)
    path = run_path(facts, table, digest)
    data = write_run(table, path)
    return RawFile(path, digest, table.num_rows, len(data)), data


def run_path(facts: RunFacts, table: pa.Table, digest: str) -> str:
    """Return ``runs/job=<job>/date=<day of the start>/<run id>.<digest>.parquet``, days in UTC."""
    time_us = facts.start_us if facts.start_us is not None else facts.end_us
    if time_us is None:
        time_us = table.column(TIME)[0].value
    day = (_EPOCH + timedelta(microseconds=time_us)).date().isoformat()
    return f"runs/job={_segment(facts.build_name)}/date={day}/{facts.run_id}.{digest[:16]}.parquet"


def _segment(job: str) -> str:
    from ciml.events.run_id import path_safe  # imports the patterns of secrets, which readers do not need

    safe = path_safe(job)
    if len(safe) <= _MAX_SEGMENT:
        return safe
    return f"{safe[:_MAX_SEGMENT]}~{hashlib.sha256(safe.encode()).hexdigest()[:16]}"


def write_run(table: pa.Table, path: str = "") -> bytes:
    """Encode a run's telemetry as Parquet. Equal tables and paths give equal bytes with the same library version.

    Args:
      table: the telemetry.
      path: where it will be stored. Without it the file has no seal (`ciml.runs.writer`): readers then compute the
        digest of all its columns, as for older versions.

    A run is read as a whole and mostly has few samples, so metadata is a large part of its file. One row group, no
    statistics, no dictionaries, and no second schema in Arrow's own form save 40 % of its size. For up to 3000 samples
    lz4 takes an eighth more space than zstd and a third of its time, because zstd has setup costs per column.
    """
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema.remove_metadata(),
        compression="zstd" if table.num_rows > _LZ4_ROWS else "lz4",
        use_dictionary=False,
        column_encoding={TIME: "DELTA_BINARY_PACKED"},
        write_statistics=False,
        store_schema=False,
        write_page_checksum=True,
        version="2.6",
    ) as writer:
        writer.write_table(table.replace_schema_metadata(None), row_group_size=max(table.num_rows, 1))
        facts = dict(sorted((table.schema.metadata or {}).items())) | (unsealed(path) if path else {})
        if facts:
            writer.add_key_value_metadata(facts)
    data = bytes(sink.getvalue())
    return seal(data) if path else data


def unsealed(path: str) -> dict[bytes, bytes]:
    """Return the entry of the key-value metadata that `seal` completes. Add it last.

    Args:
      path: where the file will be stored. Its folder is ignored, because objects move.
    """
    return {SEAL: _MARK + b"0" * _DIGITS + b" " + _name(path)}


def seal(data: bytes) -> bytes:
    """Fill in the seal of a file that has the entry of `unsealed`."""
    offset = data.rindex(_MARK) + len(_MARK)
    return b"".join((data[:offset], _digest(data, offset), data[offset + _DIGITS :]))


def is_sealed(data: bytes, path: str, url: str) -> bool:
    """Return whether a file has a seal; a file of an older version has none.

    Args:
      data: the file.
      path: where it was read.
      url: its full address, for errors.

    Raises:
      IntegrityError: its name or bytes differ from the sealed ones.
    """
    mark_at = data.rfind(_MARK)
    if mark_at < 0 and SEAL not in data:
        return False
    offset = mark_at + len(_MARK)
    if mark_at < 0 or data[offset : offset + _DIGITS] != _digest(data, offset):
        raise damaged(url)
    if not data.startswith(b" " + _name(path), offset + _DIGITS):
        raise IntegrityError(f"{url} holds the seal of another file; restore a backup")
    return True


def damaged(url: str) -> IntegrityError:
    """Return the error for a stored file whose bytes differ from its digest."""
    return IntegrityError(f"{url} differs from its digest; restore a backup")


def unreadable(url: str, error: Exception) -> IntegrityError:
    """Return the error for a stored file that Parquet's reader cannot read; its own message may have several lines."""
    return IntegrityError(f"{url} cannot be read as Parquet ({' '.join(str(error).split()):.200}); restore a backup")


def _name(path: str) -> bytes:
    return path.rpartition("/")[2].encode()


def _digest(data: bytes, at: int) -> bytes:
    view = memoryview(data)
    digest = hashlib.sha256(view[:at])
    digest.update(view[at + _DIGITS :])
    return digest.hexdigest().encode()
