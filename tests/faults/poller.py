"""A reader that polls while everything dies: I3 (what is named is there, whole) and I4 (versions only go up).

``python -m tests.faults.poller RAW OUT`` reads until its standard input ends, once more after that, and writes ``OUT``.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import select
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ciml.digest import telemetry_digest
from tests.faults.oracle import Objects, open_objects

_PAUSE_S = 0.05
_AGAIN = 3  # of the objects seen earlier, how many are looked at again in each round


class Poller:
    """What was read so far, and what was wrong with it."""

    def __init__(self, raw: Objects) -> None:
        self._raw = raw
        self._random = random.Random(0)
        self._digests: dict[int, str] = {}
        self._named: list[tuple[str, dict[str, Any]]] = []
        self.polls = 0
        self.faults: list[str] = []

    @property
    def version(self) -> int:
        return len(self._digests)

    def poll(self) -> None:
        """Reads the deltas that are new and every object that they name; looks at some of the old ones again."""
        self.polls += 1
        while (data := self._raw.read(_path(self.version + 1))) is not None:
            version = self.version + 1
            self._digests[version] = hashlib.sha256(data).hexdigest()
            try:
                delta = json.loads(data)
            except ValueError:
                self.faults.append(f"I3: delta {version} was read and is no JSON ({len(data)} bytes)")
                continue
            if delta.get("version") != version:
                self.faults.append(f"I4: delta {version} says that it is version {delta.get('version')}")
            for record in delta["runs"]:
                run = (record["mention"]["run_id"], record["file"])
                self._named.append(run)
                self._look(*run)
        for version in self._random.sample(sorted(self._digests), min(_AGAIN, self.version)):
            self._again(version)
        for run in self._random.sample(self._named, min(_AGAIN, len(self._named))):
            self._look(*run)

    def last(self) -> None:
        """Everything once more."""
        self.poll()
        for version in self._digests:
            self._again(version)

    def _again(self, version: int) -> None:
        data = self._raw.read(_path(version))
        if data is None:
            if not self._raw.names("_manifest/segments"):
                self.faults.append(f"I4: delta {version} was there, and is gone")
        elif hashlib.sha256(data).hexdigest() != self._digests[version]:
            self.faults.append(f"I4: delta {version} has changed")

    def _look(self, run_id: str, file: dict[str, Any]) -> None:
        data = self._raw.read(file["path"])
        if data is None:
            self.faults.append(f"I3: {file['path']} is named, and is not there")
            return
        try:
            parquet = pq.ParquetFile(io.BytesIO(data))
            table = parquet.read(use_threads=False)
            if "run_id" in table.column_names:
                table = table.filter(pc.equal(table.column("run_id"), run_id)).drop_columns(["run_id"])
            digest = telemetry_digest(run_id, table)
        except (pa.ArrowException, OSError) as error:
            self.faults.append(f"I3: {file['path']} cannot be read: {error!s:.100}")
            return
        if table.num_rows != file["rows"]:
            self.faults.append(f"I3: {file['path']} has {table.num_rows} rows, not {file['rows']}")
        elif digest != file["digest"]:
            self.faults.append(f"I3: {file['path']} has another digest")


def _path(version: int) -> str:
    return f"_manifest/{version:012d}.json"


def main(root: str, out: Path) -> None:
    poller = Poller(open_objects(root))
    while not select.select([sys.stdin], [], [], _PAUSE_S)[0]:
        poller.poll()
    poller.last()
    report = {"polls": poller.polls, "versions": poller.version, "faults": poller.faults, "at": time.time()}
    out.write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    os._exit(0)  # Arrow's threads have been seen to abort an interpreter that was going down
