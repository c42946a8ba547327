"""The judge of a raw store: the producer's acknowledged list on one side, an independent reading on the other.

Deltas are read as plain JSON, rows as plain Parquet, without ciml's accounting, manifests or stores. Each row is
compared with the direct computation: one call of the parser on the log's bytes.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ciml.digest import telemetry_digest
from ciml.errors import RejectedInput
from ciml.transforms.parse.logs import Log, parse_logs
from tests.faults.plan import Claim, Send
from tests.faults.producer import Ack

LISTS = {
    "runs": "run", "reclaims": "reclaim", "repeats": "repeat", "corrections": "correction", "ignored": "ignored",
    "dead_letters": "dead_letter", "deferred": "deferred",
}  # fmt: skip
MOST = 20  # lines of one kind of failure


class Objects:
    """Objects of a folder, read by the plainest means there are."""

    def __init__(self, root: str) -> None:
        self.root = root

    def read(self, path: str) -> bytes | None:
        """Return the bytes, or None if there is no such object."""
        try:
            return Path(self.root, path).read_bytes()
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """Return the paths of all objects below a folder, sorted."""
        top = Path(self.root, folder)
        found = [os.path.join(at, name) for at, _, names in os.walk(top) for name in names]
        return sorted(os.path.relpath(path, self.root) for path in found)


class S3Objects(Objects):
    """The same in a bucket."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        import boto3

        bucket, _, prefix = root.removeprefix("s3://").partition("/")
        self._client, self._bucket, self._prefix = boto3.client("s3"), bucket, f"{prefix.rstrip('/')}/".lstrip("/")

    def read(self, path: str) -> bytes | None:
        try:
            return bytes(self._client.get_object(Bucket=self._bucket, Key=self._prefix + path)["Body"].read())
        except self._client.exceptions.NoSuchKey:
            return None

    def names(self, folder: str) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=f"{self._prefix}{folder}/" if folder else self._prefix
        )
        return sorted(item["Key"][len(self._prefix) :] for page in pages for item in page.get("Contents", ()))


def open_objects(root: str) -> Objects:
    """Return the objects below a folder or an ``s3://`` prefix."""
    return S3Objects(root) if root.startswith("s3://") else Objects(root)


class Entry(NamedTuple):
    """A record of a delta: what was said of one (delivery, run)."""

    version: int
    kind: str
    reason: str
    record: dict[str, Any]


Key = tuple[str, int, int, str]  # topic, partition, offset, run id


class Ledger:
    """All deltas of a raw manifest, read in order and added up independently.

    Attributes:
      version: the last delta read.
      covered: the offsets of each (topic, partition) that deltas name.
      entries: what was said of each (delivery, run), but for what a later delta closed.
      rows: the run records of each run id: more than one is a run twice.
      seen: (version, monotonic time when it was first seen here).
      faults: what is wrong with the deltas themselves.
    """

    def __init__(self, raw: Objects) -> None:
        self.raw = raw
        self.version = 0
        self.covered: dict[tuple[str, int], set[int]] = defaultdict(set)
        self.entries: dict[Key, list[Entry]] = defaultdict(list)
        self.rows: dict[str, list[Entry]] = defaultdict(list)
        self.outcome: dict[str, str] = {}
        self.seen: list[tuple[int, float]] = []
        self.faults: list[str] = []
        self._open: set[Key] = set()
        self._deferred: set[Key] = set()
        self._segments: dict[int, dict[str, Any]] = {}

    def poll(self) -> None:
        """Read what is new."""
        for version, delta in self._new():
            self._take(version, delta)
            self.version = version
            self.seen.append((version, time.monotonic()))

    def deferred(self) -> int:
        """Return how many deferred runs are open."""
        return len(self._deferred)

    def waiting(self) -> set[str]:
        """Return the runs that wait for their logs."""
        return {key[3] for key in self._deferred}

    def _new(self) -> Iterator[tuple[int, dict[str, Any]]]:
        version = self.version
        while True:
            version += 1
            data = self.raw.read(f"_manifest/{version:012d}.json")
            if data is None:
                delta = self.archived(version)
                if delta is None:
                    return
            else:
                delta = json.loads(data)
            if delta.get("version") != version:
                self.faults.append(f"I4: delta {version} says that it is version {delta.get('version')}")
            yield version, delta

    def archived(self, version: int) -> dict[str, Any] | None:
        """Return a delta that was put into a segment and pruned."""
        if version not in self._segments:
            self._segments = {}
            for name in self.raw.names("_manifest/segments"):
                last = Path(name).name.split(".")[0].rsplit("-", 1)[-1]
                if last.isdigit() and int(last) >= version:
                    data = self.raw.read(name) or b""
                    text = pa.input_stream(io.BytesIO(data), compression="zstd").read()
                    for line in text.splitlines():
                        delta = json.loads(line)
                        if "version" in delta:  # not the header, not the footer
                            self._segments[delta["version"]] = delta
                    break
        return self._segments.get(version)

    def _take(self, version: int, delta: dict[str, Any]) -> None:
        for topic, entry in delta["offsets"].items():
            for partition, ranges in entry["partitions"].items():
                numbers = self.covered[topic, int(partition)]
                for start, end in ranges:
                    fresh = set(range(start, end))
                    if twice := numbers & fresh:
                        self.faults.append(f"I2: delta {version} covers {topic}[{partition}] {min(twice)} again")
                    numbers |= fresh
        for (topic, partition, offset), run_id in delta["closes"]:
            key = (topic, partition, offset, run_id)
            if key not in self._open:
                self.faults.append(f"I2: delta {version} closes {key}, which is not open")
            self._open.discard(key)
            self._deferred.discard(key)
            self.entries[key] = [one for one in self.entries[key] if one.kind not in ("deferred", "dead_letter")]
        for name, kind in LISTS.items():
            for record in delta.get(name, ()):
                self._record(version, kind, record)

    def _record(self, version: int, kind: str, record: dict[str, Any]) -> None:
        mention = record.get("mention", {})
        run_id = mention.get("run_id", "")
        key = (*record["origin"], run_id)
        entry = Entry(version, kind, record.get("reason", ""), record)
        if kind == "deferred":
            self.entries[key] = [one for one in self.entries[key] if one.kind != "deferred"]  # tried again
        self.entries[key].append(entry)
        if kind in ("deferred", "dead_letter"):
            self._open.add(key)
            if kind == "deferred":
                self._deferred.add(key)
        elif kind == "run":
            self.rows[run_id].append(entry)
        if kind in ("run", "correction"):
            self.outcome[run_id] = mention.get("outcome", "")


class Delivery(NamedTuple):
    """A message that the broker acknowledged: its position, and what was sent."""

    partition: int
    offset: int
    send: Send


def deliveries(sends: Sequence[Send], acks: Iterable[Ack]) -> list[Delivery]:
    """Return what was sent and acknowledged."""
    return [Delivery(partition, offset, sends[number]) for number, partition, offset, _ in acks]


def accepted(sent: Iterable[Delivery]) -> dict[str, Claim]:
    """Return the runs that have to be raw rows, each with the claim that says so."""
    return {claim.run_id: claim for one in sent for claim in one.send.claims if claim.kind == "run"}


def judge(topic: str, sent: Sequence[Delivery], ledger: Ledger) -> list[str]:
    """Check I1 and I2, each row's equality with the direct computation, and what of I3 is left to see in the end.

    Args:
      topic: that was read.
      sent: all that was acknowledged.
      ledger: read to its end.

    Returns:
      A line for each violation.
    """
    return few([*ledger.faults, *_accounting(topic, sent, ledger), *_rows(sent, ledger)])


def few(lines: Iterable[str]) -> list[str]:
    """Return at most twenty lines of each kind: not every one of a thousand lost rows is listed."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        kinds[line.partition(":")[0]].append(line)
    more = [f"{kind}: and {len(each) - MOST} more" for kind, each in kinds.items() if len(each) > MOST]
    return [line for each in kinds.values() for line in each[:MOST]] + more


def _accounting(topic: str, sent: Sequence[Delivery], ledger: Ledger) -> Iterator[str]:
    """Each (delivery, run) has exactly one record, of the kinds that the producer foresaw; and there are no others."""
    wanted: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    have: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    expected = set()
    for one in sent:
        where = f"{topic}[{one.partition}] {one.offset}"
        covered = one.offset in ledger.covered[topic, one.partition]
        if not covered:
            yield f"I2: {where} was acknowledged and is not covered"
        for claim in one.send.claims:
            key = (topic, one.partition, one.offset, claim.run_id)
            expected.add(key)
            entries = ledger.entries.get(key, [])
            if not entries and covered:
                yield f"gap: {key} is covered, and there is no record of it; want {claim.kind} {claim.reason}"
            elif len(entries) != 1:
                kinds = _describe(Counter((entry.kind, entry.reason) for entry in entries))
                yield f"I2: {key}: {kinds}; want one record ({claim.kind} {claim.reason})"
            name = claim.run_id or where
            wanted[name][claim.kind, claim.reason] += 1
            reasons = claim.reason.split("|")
            for entry in entries:
                have[name][entry.kind, claim.reason if entry.reason in reasons else entry.reason] += 1
    for name, counts in wanted.items():
        if have[name] != counts:
            yield f"I2: {name}: {_describe(have[name])}; want {_describe(counts)}"
    for key, entries in ledger.entries.items():
        if entries and key[0] == topic and key not in expected:
            yield f"I2: {key}: a record of what was never acknowledged"


def _describe(counts: Counter[tuple[str, str]]) -> str:
    """Return ``run 1, repeat/event 2``."""
    words = [f"{kind}{'/' + reason if reason else ''} {n}" for (kind, reason), n in sorted(counts.items())]
    return ", ".join(words) or "nothing"


def _rows(sent: Sequence[Delivery], ledger: Ledger) -> Iterator[str]:
    runs = accepted(sent)
    learn(runs.values())
    for run_id, claim in runs.items():
        entries = ledger.rows.get(run_id, [])
        if len(entries) == 1:
            yield from _check_row(ledger.raw, claim, entries[0].record["file"])
        else:
            yield f"I1: {run_id} has {len(entries)} raw rows"
    for run_id in ledger.rows.keys() - runs.keys():
        yield f"I1: {run_id} has a raw row, and should have none"


def read_row(raw: Objects, file: dict[str, Any]) -> pa.Table | str:
    """Return a raw row by its record, or its fault: it has to exist, to be readable, and to have its number of rows."""
    data = raw.read(file["path"])
    try:
        table = pq.ParquetFile(io.BytesIO(data or b"")).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        return f"I3: {file['path']} is named, and cannot be read: {error!s:.100}"
    if table.num_rows != file["rows"]:
        return f"I3: {file['path']} has {table.num_rows} rows, not {file['rows']}"
    return table


def _check_row(raw: Objects, claim: Claim, file: dict[str, Any]) -> Iterator[str]:
    """Compare a raw row with the direct computation and with its own record."""
    where = f"{claim.run_id} ({file['path']})"
    table = read_row(raw, file)
    if isinstance(table, str):
        yield table
        return
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_floating(column.type) and pc.all(pc.is_finite(column)).as_py() is False:
            yield f"finite: {where}: {name} holds what is no finite number"
    logs = [table_of(log, claim.start_us, claim.end_us) for log in claim.logs]
    mine = [log for log in logs if telemetry_digest(claim.run_id, log) == file["digest"]]
    if not mine:
        yield f"row: {where}: the digest is not that of the direct computation"
    elif table.column_names != mine[0].column_names:
        yield f"row: {where} has the columns {table.column_names[:6]}…, not {mine[0].column_names[:6]}…"
    elif not table.cast(mine[0].schema.remove_metadata()).equals(mine[0].replace_schema_metadata(None)):
        yield f"row: {where} holds other values than the direct computation"


_known: dict[tuple[str, int | None, int | None], pa.Table] = {}


def learn(claims: Iterable[Claim]) -> None:
    """Compute the telemetry of many logs together, which is several times as fast as one by one."""
    if len(_known) > 2000:
        _known.clear()
    keys = {(log, claim.start_us, claim.end_us) for claim in claims for log in claim.logs}
    missing = sorted(key for key in keys if key not in _known)
    logs = [Log(Path(log).read_bytes(), start, end) for log, start, end in missing]
    for key, result in zip(missing, parse_logs(logs), strict=True):
        if isinstance(result, RejectedInput):
            raise result
        sink = pa.BufferOutputStream()  # a table of its own: a slice of a batch would keep all of it
        with pa.ipc.new_stream(sink, result.schema) as writer:
            writer.write_table(result)
        _known[key] = pa.ipc.open_stream(sink.getvalue()).read_all()


def table_of(log: str, start_us: int | None, end_us: int | None) -> pa.Table:
    """Return the telemetry of a log of a run with these times. Raises `RejectedInput` where the parser does."""
    key = (log, start_us, end_us)
    if key not in _known:
        learn([Claim("", "run", logs=(log,), start_us=start_us, end_us=end_us)])
    return _known[key]
