"""A reader that polls while everything dies: I3 (what is named is there, whole) and I4 (versions only go up)."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import traceback
from typing import Any

from ciml.digest import telemetry_digest
from tests.faults.oracle import Objects, read_row

_PAUSE_S = 0.05
_AGAIN = 3  # of the objects seen earlier, how many are read again in each round


class Poller(threading.Thread):
    """What was read so far, and what was wrong with it. As a thread, it polls until `end`."""

    def __init__(self, raw: Objects) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()
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
        """Read the deltas that are new and every object that they name, and some of the old ones again."""
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

    def run(self) -> None:
        try:
            while not self._over.wait(_PAUSE_S):
                self.poll()
        except Exception:  # noqa: BLE001  # a poller that breaks has found something
            self.faults.append(f"I3: {traceback.format_exc()[-600:]}")

    def end(self) -> None:
        """Stop polling, and read everything once more."""
        self._over.set()
        self.join(60)
        self.last()

    def last(self) -> None:
        """Read everything once more."""
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
        table = read_row(self._raw, file)
        if isinstance(table, str):
            self.faults.append(table)
        elif telemetry_digest(run_id, table) != file["digest"]:
            self.faults.append(f"I3: {file['path']} has another digest")


def _path(version: int) -> str:
    return f"_manifest/{version:012d}.json"
