"""The tables ``runs`` and ``dead_letters``, whose rows are made from the raw manifest, in parts.

A *part* has the rows of a range of versions, in one file. It ends with the segment that brings it to `PART_BYTES`; the
last part ends with the last delta. Segments are permanent, so the last part changes as the manifest grows, and another
one only if a later delta changes one of its rows. `content_in_parts` makes the parts that a table lacks.

The table of runs has a row for each stored run, with corrections, updates and reclaims applied. The table of dead
letters has a row for each one, open or closed, without payload and without secrets.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ciml.digest import sha256_hex
from ciml.limits import MAX_LABEL_COLUMNS
from ciml.manifest.log import ManifestLog
from ciml.runs.arrow import flags, numbers, text_maps, texts, times
from ciml.runs.dead_letters import DeadLetter, closed_keys, dead_letters_of, described, latest_dead_letters
from ciml.runs.known_ids import DeadLetterKey
from ciml.runs.latest_runs import StoredRun, changed_runs, latest_rows
from ciml.runs.outputs import NO_OUTPUT
from ciml.runs.state import RawState
from ciml.runs.tables.delta_log import (
    CURSOR,
    PROOF,
    DataFile,
    DeltaState,
    TableContent,
    delta_fields,
    encode_fields,
    now_ms,
)
from ciml.storage import Store

#: Compressed size of the segments of a part, bytes: about 20,000 runs.
PART_BYTES = 4 << 20
#: Time for which the files of earlier versions of a table are kept, seconds.
GRACE_S = 24 * 3600
_GROUP_ROWS = 65_536
_FORMAT: dict[str, Any] = {"compression": "zstd", "store_schema": False, "write_page_checksum": True, "version": "2.6"}
_PATH = re.compile(r"(\d{12})-(\d{12})\.[0-9a-f]{32}\.parquet")
_TIME = pa.timestamp("us", tz="UTC")
#: Text columns of the table of runs, before and after its outcome: fields of `RunFacts`.
_RUN_KEYS = ("run_id", "build_uuid", "build_name")
_RUN_FACTS = tuple("source event pipeline project branch change patchset review provider region flavour".split())
#: Text columns of the table of dead letters: entries of `described`.
_DEAD_LETTER_TEXTS = ("run_id", "build_name", "reason", "detail", "event_key", "log_url")

T = TypeVar("T")


class Part(NamedTuple):
    """The rows of deltas ``first`` to ``last``."""

    first: int
    last: int

    def path(self, digest: str) -> str:
        """Return the path of its file, whose content has the digest."""
        return f"{self.first:012d}-{self.last:012d}.{digest[:32]}.parquet"


def part_of(path: str) -> Part | None:
    """Return the part in a file; None for other files."""
    match = _PATH.fullmatch(path)
    return Part(int(match[1]), int(match[2])) if match else None


def parts_of(segments: Iterable[tuple[int, int]], version: int, part_bytes: int = PART_BYTES) -> list[Part]:
    """Return the parts of a manifest, in order.

    Args:
      segments: last version and size of each segment, in order.
      version: the last delta.
      part_bytes: a part ends with the segment that brings it to this size.

    >>> parts_of([(10, 3), (20, 3), (25, 9)], 27, 5)
    [Part(first=1, last=20), Part(first=21, last=25), Part(first=26, last=27)]
    """
    parts = []
    first = 1
    size = 0
    for last, segment_bytes in segments:
        if last > version:
            break
        size += segment_bytes
        if size >= part_bytes:
            parts.append(Part(first, last))
            first = last + 1
            size = 0
    return [*parts, Part(first, version)] if first <= version else parts


class PartPlan(NamedTuple):
    """The parts of a table, and those without a file.

    Attributes:
      parts: all parts of the manifest, in order.
      missing: parts for which the table has no file.
      since: the version that the table shows, 0 without one. The files of other parts are valid, unless a delta after
        this version changes one of their rows.
    """

    parts: Sequence[Part]
    missing: frozenset[Part]
    since: int


#: Yields the parts to write with their rows: the missing ones, and those with rows that deltas after ``since`` change.
MakeParts = Callable[[PartPlan], Iterator[tuple[Part, pa.Table]]]


def content_in_parts(
    name: str, store: Store, log: ManifestLog, version: int, schema: pa.Schema, make: MakeParts, state: DeltaState
) -> TableContent:
    """Write the files that the table lacks, and return the content that it should have.

    Args:
      name: of the table.
      store: the table's folder.
      log: the raw manifest.
      version: the version that the table is to show.
      schema: of the rows.
      make: yields the parts to write.
      state: the table's present state.
    """
    fields = encode_fields(delta_fields(schema))
    since = _since(log, version, fields, state)
    parts = parts_of(log.archive.sizes(), version)
    present = {part_of(path): path for path in state.files} if since else {}
    plan = PartPlan(parts, frozenset(parts) - present.keys(), since)
    written = {part: _write(store, part, rows) for part, rows in make(plan)}
    unchanged = [present[part] for part in parts if part in present and part not in written]
    added = {file.path: None if file.path in state.files else file for file in written.values()}
    retention = f"interval {GRACE_S // 3600} hours"
    return TableContent(name, fields, (), dict.fromkeys(unchanged) | added, version, _proof(log, version), retention)


def _write(store: Store, part: Part, rows: pa.Table) -> DataFile:
    data = _encode(rows)
    path = part.path(sha256_hex(data))
    store.create(path, data)  # an existing one has the same bytes
    return DataFile(path, len(data), now_ms(), rows.num_rows)


def _since(log: ManifestLog, version: int, fields: str, state: DeltaState) -> int:
    """Return the version of the manifest that a table shows; 0 if it shows none, or a version of another manifest."""
    since = state.transactions.get(CURSOR, 0)
    if since > version or state.metadata is None or state.metadata["schemaString"] != fields:
        return 0
    return since if since and state.transactions.get(PROOF) == _proof(log, since) else 0


def _proof(log: ManifestLog, version: int) -> int:
    """Return 63 bits of the digest of a delta. A manifest from a backup may have another delta there."""
    if not version:
        return 0
    digest = hashlib.sha256(log.read_raw(version)).digest()
    return int.from_bytes(digest[:8]) >> 1


def _encode(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(rows, sink, row_group_size=_GROUP_ROWS, **_FORMAT)
    return sink.getvalue()


def former_files(store: Store, state: DeltaState, before_s: float) -> list[str]:
    """Return the files that may be deleted once another version of the table is committed.

    Args:
      store: the table's folder.
      state: the table's state.
      before_s: only files that were removed from the table, or written and not added to it, before this time; epoch
        seconds.
    """
    return [
        entry.path
        for entry in store.entries()
        if part_of(entry.path) is not None
        and entry.path not in state.files
        and state.removed.get(entry.path, int(entry.modified_s * 1000)) < before_s * 1000
    ]


def make_runs(log: ManifestLog, state: RawState, plan: PartPlan) -> Iterator[tuple[Part, pa.Table]]:
    """Yield the parts of the table of runs, as `_make`."""
    # A reclaim replaces an earlier row of its run, which leaves the table.
    rows = (
        _Row(row.run.version, row.run.facts.run_id, row.run if row.counts else None, ends_key=not row.is_reclaim)
        for row in latest_rows(log, state)
    )
    changed = changed_runs(log, state, plan.since) if plan.since else set()
    return _make(plan, rows, changed, stored_table)


def stored_table(runs: list[StoredRun]) -> pa.Table:
    """Return `run_table` and the column ``version``, of the delta that committed the row."""
    versions = np.array([run.version for run in runs], np.int64)
    return run_table(runs).append_column("version", numbers(versions))


def run_table(runs: Sequence[StoredRun]) -> pa.Table:
    """Return a row for each run, in order.

    Returns:
      ``run_id``, ``build_uuid``, ``build_name``; ``outcome`` with corrections, and ``result``, the producer's own word
      unless the outcome was corrected; the other facts; ``start_time`` and ``end_time`` (timestamp[us, UTC], null if
      unknown), ``labels`` (map); ``trusted`` and ``rule`` of the last decision; of the telemetry ``rows``,
      ``digest`` and ``path``; of the job's output ``output_bytes`` and ``output_lines`` (null without one), and
      ``output_missing``: why there is none, ``no_output`` if none was looked for, or "".
    """
    facts = [run.facts for run in runs]
    results = [run.facts.result if run.outcome == (run.facts.outcome or "") else "" for run in runs]
    stored = [run.output if run.output and run.output.path else None for run in runs]
    columns = {
        **{name: texts(list(map(attrgetter(name), facts))) for name in _RUN_KEYS},
        "outcome": texts([run.outcome for run in runs]),
        "result": texts(results),
        **{name: texts(list(map(attrgetter(name), facts))) for name in _RUN_FACTS},
        "start_time": times([fact.start_us for fact in facts], _TIME),
        "end_time": times([fact.end_us for fact in facts], _TIME),
        "labels": text_maps([fact.labels for fact in facts]),
        "trusted": flags([run.trust.trusted for run in runs]),
        "rule": texts([run.trust.rule for run in runs]),
        "rows": numbers(np.array([run.file.rows for run in runs], np.int64)),
        "digest": texts([run.file.digest for run in runs]),
        "path": texts([run.file.path for run in runs]),
        "output_bytes": times([output.size if output else None for output in stored], pa.int64()),
        "output_lines": times([output.lines if output else None for output in stored], pa.int64()),
        "output_missing": texts([NO_OUTPUT if run.output is None else run.output.missing for run in runs]),
    }
    return pa.Table.from_arrays(list(columns.values()), names=list(columns))


def with_label_columns(runs: pa.Table, most: int = MAX_LABEL_COLUMNS) -> pa.Table:
    """Return a table of runs with a text column ``label.NAME`` for each label, sorted by name; null without the label.

    Args:
      runs: a `run_table`.
      most: maximum number of columns: senders choose the names of labels. The most frequent labels have one.
    """
    import pyarrow.compute as pc

    labels = runs["labels"].combine_chunks()
    counts = {entry["values"]: entry["counts"] for entry in labels.keys.value_counts().to_pylist()}
    frequent = sorted(counts, key=lambda name: (-counts[name], name))[:most]
    for name in sorted(frequent):
        runs = runs.append_column(f"label.{name}", pc.map_lookup(labels, name, "first"))
    return runs


def make_dead_letters(log: ManifestLog, version: int, plan: PartPlan) -> Iterator[tuple[Part, pa.Table]]:
    """Yield the parts of the table of dead letters, as `_make`."""
    # Of dead letters with the same key, only the last one up to ``since`` can have been closed after ``since``.
    rows = (
        _Row(dead_letter.version, dead_letter.key, dead_letter, ends_key=dead_letter.version <= plan.since)
        for dead_letter in latest_dead_letters(log, version)
    )
    changed = _closed_after(log, version, plan.since) if plan.since else set()
    return _make(plan, rows, changed, dead_letter_table)


def _closed_after(log: ManifestLog, version: int, since: int) -> set[DeadLetterKey]:
    """Return the dead letters of deltas up to ``since`` that deltas from there to ``version`` close."""
    closed: set[DeadLetterKey] = set()
    opened: set[DeadLetterKey] = set()  # after ``since``
    for number, delta in log.since(since):
        if number > version:
            break
        closed.update(set(closed_keys(delta)) - opened)
        opened.update(dead_letter.key for dead_letter in dead_letters_of(number, delta))
    return closed


def dead_letter_table(dead_letters: Sequence[DeadLetter]) -> pa.Table:
    """Return a row for each dead letter, in order.

    Returns:
      ``run_id`` and ``build_name``, "" if the message could not be decoded; ``reason``, ``detail``; ``event_key``,
      ``log_url``; ``topic``, ``partition`` and ``offset`` of its message; ``first_seen`` and ``time`` of its commit
      (timestamp[us, UTC]); ``version`` of the raw manifest; ``open``; ``closed_version`` (null if open) and ``became``:
      the outcomes of its event on closing, with commas between them.
    """
    values = [described(dead_letter.outcome.to_json()) for dead_letter in dead_letters]
    origins = [dead_letter.outcome.origin for dead_letter in dead_letters]
    columns = {
        **{name: texts([value.get(name, "") for value in values]) for name in _DEAD_LETTER_TEXTS},
        "topic": texts([origin.topic for origin in origins]),
        "partition": numbers(np.array([origin.partition for origin in origins], np.int32)),
        "offset": numbers(np.array([origin.offset for origin in origins], np.int64)),
        "first_seen": times([value.get("first_seen_us") for value in values], _TIME),
        "time": times([dead_letter.time_us for dead_letter in dead_letters], _TIME),
        "version": numbers(np.array([dead_letter.version for dead_letter in dead_letters], np.int64)),
        "open": flags([not dead_letter.closed for dead_letter in dead_letters]),
        "closed_version": times([dead_letter.closed or None for dead_letter in dead_letters], pa.int64()),
        "became": texts([", ".join(dead_letter.became) for dead_letter in dead_letters]),
    }
    return pa.Table.from_arrays(list(columns.values()), names=list(columns))


class _Row(NamedTuple, Generic[T]):
    """A row of the manifest.

    Attributes:
      version: the version of its delta.
      key: the key by which later deltas change it.
      value: the table's row; None if a later row of the manifest replaced it.
      ends_key: whether later deltas cannot change an earlier row of the key.
    """

    version: int
    key: Hashable
    value: T | None
    ends_key: bool


def _make(
    plan: PartPlan, rows: Iterator[_Row[T]], changed: Collection[Any], table_of: Callable[[list[T]], pa.Table]
) -> Iterator[tuple[Part, pa.Table]]:
    """Yield the parts to write and their rows, the newest part first: missing ones, and those with a changed row.

    The manifest is read backwards, part by part, until no earlier part can be one of them.

    Args:
      plan: the parts.
      rows: all rows of the manifest, the last one first.
      changed: the keys of rows that deltas after ``plan.since`` change.
      table_of: makes the table of a part; its rows are in the order of the manifest.
    """
    if not plan.missing and not changed:
        return
    unread_parts = set(plan.missing)
    unread_keys = set(changed)
    for part, part_rows in _rows_by_part(plan.parts, rows):
        is_changed = any(row.key in unread_keys for row in part_rows)
        if part in plan.missing or is_changed:
            yield part, table_of([row.value for row in reversed(part_rows) if row.value is not None])
        unread_parts.discard(part)
        unread_keys.difference_update(row.key for row in part_rows if row.ends_key)
        if not unread_parts and not unread_keys:
            return


def _rows_by_part(parts: Sequence[Part], rows: Iterator[_Row[T]]) -> Iterator[tuple[Part, list[_Row[T]]]]:
    """Yield each part with its rows, both the last one first."""
    row = next(rows, None)
    for part in reversed(parts):
        part_rows: list[_Row[T]] = []
        while row is not None and row.version >= part.first:
            part_rows.append(row)
            row = next(rows, None)
        yield part, part_rows
