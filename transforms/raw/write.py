"""The stage that stores: telemetry becomes the raw objects of runs.

A raw object is named by its content and created exclusively, before the commit that makes it known. So a worker that
is killed between the two leaves an object that the next try finds and uses, or that no manifest ever names.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq

from ciml.digest import telemetry_digest
from ciml.errors import IntegrityError
from ciml.events.records import Batch, Outcome, PendingRun, RawFile, RunFacts
from ciml.events.run_id import path_safe
from ciml.raw.seal import seal, unsealed
from ciml.storage.open import Store
from ciml.telemetry import TIME

_THREADS = 16
_ZSTD_ROWS = 3000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_SEGMENT = 150  # bytes of a job's folder; with its `job=` it has to stay within the 255 of a file name


def store(batch: Batch, raw: Store) -> Batch:
    """Write the raw objects of a batch's candidates, which thereby are settled as runs (or as whatever the
    accounting makes of them).

    Args:
      batch: its candidates hold their ``telemetry``.
      raw: the raw store, under which `RawFile.path` lies.

    Raises:
      EngineError: the store does not answer.
    """
    if not batch.pending_runs:
        return batch
    encoded = [_encode(pending) for pending in batch.pending_runs]  # holds the interpreter: threads only slow it down
    with ThreadPoolExecutor(min(_THREADS, len(encoded))) as pool:
        # An object that is there already holds the same telemetry: its name says so.
        for _ in pool.map(lambda each: raw.create(each[0].path, each[1]), encoded):
            pass
    settled = [
        Outcome(
            "run", each.origin, each.event_key, each.mention, trust=each.trust, file=file,
            attempts=each.attempts, first_seen_us=each.first_seen_us,
        )
        for each, (file, _) in zip(batch.pending_runs, encoded, strict=True)
    ]  # fmt: skip
    return Batch(batch.covers, batch.messages, [], batch.settled + settled)


def _encode(pending: PendingRun) -> tuple[RawFile, bytes]:
    facts, table = pending.mention, pending.telemetry
    if table is None:
        raise IntegrityError(f"{pending.origin} {facts.run_id}: to be stored before it was parsed")
    digest = telemetry_digest(facts.run_id, table)
    path = run_path(facts, table, digest)
    data = write_run(table, path)
    return RawFile(path, digest, table.num_rows, len(data)), data


def run_path(facts: RunFacts, table: pa.Table, digest: str) -> str:
    """``runs/job=<job>/date=<day of the start>/<run id>.<digest>.parquet``, days in UTC."""
    time_us = facts.start_us if facts.start_us is not None else facts.end_us
    if time_us is None:
        time_us = table.column(TIME)[0].value
    day = (_EPOCH + timedelta(microseconds=time_us)).date().isoformat()
    return f"runs/job={_segment(facts.build_name)}/date={day}/{facts.run_id}.{digest[:16]}.parquet"


def _segment(job: str) -> str:
    safe = path_safe(job)
    if len(safe) <= _MAX_SEGMENT:
        return safe
    return f"{safe[:_MAX_SEGMENT]}~{hashlib.sha256(safe.encode()).hexdigest()[:16]}"


def write_run(table: pa.Table, path: str = "") -> bytes:
    """A run's telemetry as Parquet. The same table and path give the same bytes, as long as the library is the same.

    Args:
      table: the telemetry.
      path: where it will be stored. Without one the file has no seal (`ciml.raw.seal`): it is read as those of older
        versions are, at the cost of a digest of all its columns.

    A run is read whole and mostly has few samples, so what describes a file is a large part of it. One row group, no
    statistics, no dictionaries, and the schema not a second time in Arrow's own form: 40 % less to store. Below some
    thousand samples lz4, which takes an eighth more than zstd and is written and read in a third of the time: zstd
    sets itself up for each column.
    """
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema.remove_metadata(),
        compression="zstd" if table.num_rows > _ZSTD_ROWS else "lz4",
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
