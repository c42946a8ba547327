"""An audit of a raw manifest: each (event, run) is accounted for once, counted independently of the committers.

It reads the deltas one by one and keeps only ranges of offsets, and 16 bytes for each open dead letter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from ciml.events.records import Kind, records_of
from ciml.manifest.coverage import RangeSet
from ciml.manifest.id_index import fingerprint
from ciml.manifest.log import Delta
from ciml.runs.state import RawState

_MANY = 100


class Audit:
    """Totals of deltas, and the faults found in them.

    Attributes:
      version: the last delta added.
      records: number of records.
      findings: faults, one line each, up to a limit.
      number: number of faults.
    """

    def __init__(self) -> None:
        self.version = 0
        self.records = 0
        self.runs = 0
        self.findings: list[str] = []
        self.number = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self._covered: dict[tuple[str, int], RangeSet] = {}
        self._recorded: dict[tuple[str, int], RangeSet] = {}
        self._open: dict[bytes, tuple[Kind, str]] = {}

    def _find(self, text: str) -> None:
        self.number += 1
        if len(self.findings) < _MANY:
            self.findings.append(text)

    def add(self, version: int, delta: Delta) -> None:
        """Add the next delta."""
        self.version = version
        fresh = self._cover(version, delta)
        settled = {_key(origin, run_id) for origin, run_id in delta["closes"]}
        for key in settled:
            before = self._open.pop(key, None)
            if before is None:
                self._find(f"version {version} closes a record that is not open")
            else:
                self.counts[before] -= 1
        settled_keys: set[bytes] = set()
        offsets: dict[tuple[str, int], list[int]] = {}
        for kind, record in records_of(delta):
            self._record(version, kind, record, fresh, settled, settled_keys, offsets)
        for source, numbers in offsets.items():
            recorded = self._recorded.setdefault(source, RangeSet())
            for start, end in _ranges(sorted(set(numbers))):
                recorded.add(start, end)

    def _cover(self, version: int, delta: Delta) -> dict[tuple[str, int], RangeSet]:
        fresh: dict[tuple[str, int], RangeSet] = {}
        for topic, entry in delta["offsets"].items():
            for partition, ranges in entry["partitions"].items():
                source = (topic, int(partition))
                covered = self._covered.setdefault(source, RangeSet())
                covered_now = fresh.setdefault(source, RangeSet())
                for start, end in ranges:
                    if covered.missing(start, end) != [(start, end)]:
                        self._find(f"version {version} covers {topic}[{partition}] {start} to {end} again")
                    covered.add(start, end)
                    covered_now.add(start, end)
        return fresh

    def _record(
        self,
        version: int,
        kind: Kind,
        record: Delta,
        fresh: dict[tuple[str, int], RangeSet],
        settled: set[bytes],
        seen: set[bytes],
        offsets: dict[tuple[str, int], list[int]],
    ) -> None:
        topic, partition, offset = record["origin"]
        run_id = record.get("mention", {}).get("run_id", "")
        source = (topic, partition)
        key = _key(record["origin"], run_id)
        reason = record.get("reason", "")
        label = f"version {version}: {topic}[{partition}] {offset} {run_id}".rstrip()
        self.records += 1
        if key in seen:
            self._find(f"{label} is settled twice")
        seen.add(key)
        offsets.setdefault(source, []).append(offset)
        if key in self._open:  # tried again, still unavailable
            if kind != "deferred":
                self._find(f"{label} is settled, but its open record is not closed")
            self.counts[self._open.pop(key)] -= 1
        elif key not in settled and offset not in fresh.get(source, ()) and not self._is_decoded(record, settled):
            self._find(f"{label} is settled, but this version does not cover it")
        if kind in ("deferred", "dead_letter"):
            self._open[key] = (kind, reason)
        elif kind == "run":
            self.runs += 1
        self.counts[kind, reason] += 1

    @staticmethod
    def _is_decoded(record: Delta, settled: set[bytes]) -> bool:
        """Return whether a record comes from a message that could not be decoded before, and closes it."""
        return _key(record["origin"], "") in settled

    def compare(self, state: RawState) -> None:
        """Compare the totals with a state of the version that was added last."""
        counts = Counter({key: number for key, number in self.counts.items() if number})
        for key in sorted(set(counts) | set(state.counts)):
            if counts[key] != state.counts[key]:
                self._find(f"{' '.join(key).rstrip()}: {counts[key]} recorded, but {state.counts[key]} in the state")
        if self.runs != state.index.run_count():
            self._find(f"{self.runs} runs recorded, but {state.index.run_count()} in the index")
        covered = {(topic, number): ranges for topic, number, ranges in state.partitions() if ranges}
        for topic, number in sorted(set(covered) | set(self._covered)):
            if covered.get((topic, number), RangeSet()) != self._covered.get((topic, number), RangeSet()):
                self._find(f"{topic}[{number}]: the offsets covered by the state differ from those of the deltas")
        total = sum(counts.values())
        if total != sum(state.totals().values()):
            self._find(f"{total} (event, run) recorded, but {sum(state.totals().values())} in the totals")

    def offsets(self) -> Iterator[tuple[str, int, int, int]]:
        """Yield (topic, partition, number of covered offsets, number of those with a record), in order.

        An offset without a record held no message (removed, or a transaction marker), or one without a run.
        """
        for topic, partition in sorted(self._covered):
            recorded = self._recorded.get((topic, partition), RangeSet()).count()
            yield topic, partition, self._covered[topic, partition].count(), recorded


def _key(origin: Iterable[object], run_id: str) -> bytes:
    return fingerprint("\0".join(map(str, origin)), run_id)


def _ranges(numbers: list[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for index in range(1, len(numbers) + 1):
        if index == len(numbers) or numbers[index] != numbers[index - 1] + 1:
            yield numbers[start], numbers[index - 1] + 1
            start = index
