"""The independent reader of a raw store: deltas as plain JSON, rows as plain Parquet.

Nothing here uses ciml's accounting, manifests or stores: it is what their results are judged by.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

LISTS = {
    "runs": "run", "reclaims": "reclaim", "repeats": "repeat", "corrections": "correction", "ignored": "ignored",
    "dead_letters": "dead_letter", "deferred": "deferred",
}  # fmt: skip


class Objects:
    """Objects of a folder or of an S3 prefix, read by the plainest means there are."""

    def __init__(self, root: str) -> None:
        self.root = root

    def read(self, path: str) -> bytes | None:
        """The bytes, or None where there is no such object."""
        try:
            return Path(self.root, path).read_bytes()
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """The paths of all objects below a folder, sorted."""
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
    """The objects below a folder or an ``s3://`` prefix."""
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

    def poll(self) -> int:
        """Reads what is new; returns how many deltas that was."""
        before = self.version
        for version, delta in self._new():
            self._take(version, delta)
            self.version = version
            self.seen.append((version, time.monotonic()))
        return self.version - before

    def deferred(self) -> int:
        """How many deferred runs are open."""
        return len(self._deferred)

    def waiting(self) -> set[str]:
        """The runs that wait for their logs."""
        return {key[3] for key in self._deferred}

    def _new(self) -> Iterator[tuple[int, dict[str, Any]]]:
        version = self.version
        while True:
            version += 1
            data = self.raw.read(f"_manifest/{version:012d}.json")
            if data is None:
                delta = self._archived(version)
                if delta is None:
                    return
            else:
                delta = json.loads(data)
            if delta.get("version") != version:
                self.faults.append(f"I4: delta {version} says that it is version {delta.get('version')}")
            yield version, delta

    def _archived(self, version: int) -> dict[str, Any] | None:
        """A delta that was put into a segment and pruned."""
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


class Row(NamedTuple):
    """What a raw row has to hold: any of these tables, of which there is one digest each."""

    tables: tuple[pa.Table, ...]
    digests: tuple[str, ...]


def check_row(raw: Objects, run_id: str, entry: Entry, wanted: Row | None) -> list[str]:
    """Compares a raw row with the direct computation (where ``wanted`` is given) and with its own record."""
    file = entry.record.get("file", {})
    path, where = file.get("path", ""), f"{run_id} ({file.get('path', 'no file')})"
    data = raw.read(path) if path else None
    if data is None:
        return [f"I3: {where}: the object is not there"]
    try:
        table = pq.ParquetFile(io.BytesIO(data)).read()
    except (pa.ArrowException, OSError) as error:
        return [f"I3: {where} cannot be read: {error!s:.100}"]
    if "run_id" in table.column_names:  # a file of many runs
        table = table.filter(pc.equal(table.column("run_id"), run_id)).drop_columns(["run_id"])
        if not table.num_rows:
            return [f"lost: {where}: the file does not hold the run (any more)"]
    if table.num_rows != file.get("rows"):
        return [f"I3: {where} has {table.num_rows} rows, its record says {file.get('rows')}"]
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_floating(column.type) and pc.all(pc.is_finite(column)).as_py() is False:
            return [f"finite: {where}: {name} holds what is no finite number"]
    if wanted is None:
        return []
    if file["digest"] not in wanted.digests:
        return [f"row: {where}: the digest is not that of the direct computation"]
    direct = wanted.tables[wanted.digests.index(file["digest"])]
    if table.column_names != direct.column_names:
        return [f"row: {where} has the columns {table.column_names[:6]}…, not {direct.column_names[:6]}…"]
    if not table.cast(direct.schema.remove_metadata()).equals(direct.replace_schema_metadata(None)):
        return [f"row: {where} holds other values than the direct computation"]
    return []


def describe(counts: Counter[tuple[str, str]]) -> str:
    """``run 1, repeat/event 2``."""
    return ", ".join(f"{kind}{'/' + reason if reason else ''} {n}" for (kind, reason), n in sorted(counts.items()))
