"""What must become of everything that was sent: a second reckoning, from what was sent and the order of commits alone.

It knows nothing of ranges, indexes or layers: it goes through the deltas once, with a set and a dict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.scenes import NEVER, Said, digest
from tests.simulation.scheduler import Violation

Delta = Mapping[str, Any]
#: (topic id, partition, offset) of a message.
Place = tuple[str, int, int]
#: (partition, offset, run id).
Key = tuple[int, int, str]

_LISTS = {
    "runs": "run", "reclaims": "reclaim", "repeats": "repeat", "corrections": "correction", "ignored": "ignored",
    "dead_letters": "dead_letter", "deferred": "deferred",
}  # fmt: skip
_FINAL = {"cancelled", "skipped", "node_lost", "never_started"}


@dataclass
class Row:
    """A raw row as it has to be."""

    said: Said
    digest: str
    path: str
    outcome: str  # the last that counts

    @property
    def content(self) -> int:
        return self.said.address.content if self.said.address else -1


@dataclass
class Reckoning:
    """What deltas add up to, and a `Violation` for whatever should not be in them.

    Attributes:
      sent: what every message says, by its place.
      mortal: messages that retention removed from a partition before any of it was covered: these may be lost.
      gone: those of them that were.
      blind: whether nothing is checked any more.
      rows: the raw rows by run id.
      order: the same run ids, as the manifest has them.
      open: what is not settled for good: (partition, offset, run id) -> kind.
      settled: how many final records each (partition, offset, run id) has.
      covered: the offsets that are covered, by partition.
    """

    sent: Mapping[Place, tuple[Said, ...]]
    mortal: set[Place] = field(default_factory=set)
    gone: set[Place] = field(default_factory=set)
    blind: bool = False
    topic_id: str = ""
    version: int = 0
    rows: dict[str, Row] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    open: dict[Key, str] = field(default_factory=dict)
    settled: Counter[Key] = field(default_factory=Counter)
    covered: dict[int, set[int]] = field(default_factory=dict)
    events: set[tuple[str, str]] = field(default_factory=set)

    def add(self, version: int, delta: Delta) -> None:
        """The next delta."""
        if self.blind:
            return
        self._need(version == self.version + 1, f"version {version} follows {self.version}")
        self.version = version
        fresh, begun = self._cover(delta)
        closes = Counter((origin[1], origin[2], run_id) for origin, run_id in delta["closes"])
        records = [(kind, record) for name, kind in _LISTS.items() for record in delta.get(name, ())]
        again, first = [], []
        for kind, record in records:
            key = self._key(record)
            (first if key[:2] in fresh else again).append((key, kind, record))
        again.sort(key=lambda each: each[0])
        for key, kind, record in again:
            self._again(key, kind, record, closes)
        self._need(not +closes, f"version {version} closes what no record settles: {dict(closes)}")
        first.sort(key=lambda each: each[0])
        for key, kind, record in first:
            self._first(key, kind, record)
        self.order += [record["mention"]["run_id"] for record in delta["runs"]]
        for place in fresh:
            says = self.sent.get((self.topic_id, *place), ())
            times = {self.settled[*place, said.run_id] for said in says}
            if times == {0} and place[0] in begun and (self.topic_id, *place) in self.mortal:
                self.gone.add((self.topic_id, *place))
            else:
                self._need(times <= {1}, f"version {version} covers {place}, and not all of {says} is settled")

    def _cover(self, delta: Delta) -> tuple[set[tuple[int, int]], set[int]]:
        """The places that a delta covers, and the partitions that it is the first to cover anything of."""
        fresh: set[tuple[int, int]] = set()
        begun: set[int] = set()
        for entry in delta["offsets"].values():
            self.topic_id = self.topic_id or entry["id"]
            self._need(entry["id"] == self.topic_id, f"covers {entry['id']} after {self.topic_id}")
            for text, ranges in entry["partitions"].items():
                number = int(text)
                mine = self.covered.setdefault(number, set())
                if not mine:
                    begun.add(number)
                for start, end in ranges:
                    offsets = set(range(start, end))
                    self._need(not offsets & mine, f"covers {offsets & mine} of {number} again")
                    mine |= offsets
                    fresh |= {(number, offset) for offset in offsets}
        return fresh, begun

    def _key(self, record: Mapping[str, Any]) -> Key:
        return record["origin"][1], record["origin"][2], record.get("mention", {}).get("run_id", "")

    def _said(self, key: Key) -> Said:
        for said in self.sent.get((self.topic_id, *key[:2]), ()):
            if said.run_id == key[2]:
                return said
        raise Violation(f"version {self.version} has a record of {key}, of which nothing was sent")

    def _again(self, key: Key, kind: str, record: Mapping[str, Any], closes: Counter[Any]) -> None:
        said, before = self._said(key), self.open.pop(key, None)
        self._need(before is not None, f"version {self.version} settles {key} again, as {kind}")
        if kind != "deferred":
            self._need(closes[key] == 1, f"version {self.version} settles {key}, and does not close it")
            closes[key] -= 1
        self._need(before == "deferred" or kind not in ("deferred", "dead_letter"), f"{key}: {kind} after {before}")
        self.settled[key] -= 1
        self._take(key, kind, record, said, self._possible(said, known=False))

    def _first(self, key: Key, kind: str, record: Mapping[str, Any]) -> None:
        said = self._said(key)
        if said.event_key and (said.event_key, said.run_id) in self.events:
            self._need((kind, record.get("reason")) == ("repeat", "event"), f"{key}: {kind}, and its event was there")
            self.settled[key] += 1
            return
        if said.event_key:
            self.events.add((said.event_key, said.run_id))
        self._take(key, kind, record, said, self._possible(said, known=True))

    def _possible(self, said: Said, *, known: bool) -> set[tuple[str, str]]:
        """The (kind, reason) that a record may have. What a log host answered when is not known here."""
        row = self.rows.get(said.run_id)
        if said.verdict == "broken":
            return {("dead_letter", said.reason)}
        if said.verdict == "ignored" and (row is None or said.reason not in _FINAL):
            return {("ignored", said.reason)}
        reclaims = row is not None and said.trusted and not row.said.trusted
        if reclaims and said.verdict == "ignored":
            return {("ignored", said.reason)}
        if row is not None and not reclaims:
            if said.outcome != row.outcome and row.said.trusted and not said.trusted:
                return {("ignored", "less_trusted")}
            if said.outcome != row.outcome:
                return {("correction", "outcome")}
            other = said.address is not None and said.address.content != row.content
            return {("repeat", "run"), ("repeat", "other_log")} if other else {("repeat", "run")}
        address = said.address
        if address is None:
            raise Violation(f"{said} was finished without a log")
        row_kind = ("reclaim" if reclaims else "run", "")
        waits = {("deferred", "log_not_found"), ("deferred", "log_unavailable"), ("dead_letter", "log_not_found")}
        if address.content < 0:
            return {("dead_letter", "corrupt_gzip"), ("deferred", "log_unavailable")}
        if address.from_us == NEVER:
            return waits
        if address.from_us == 0:
            return {row_kind, ("deferred", "log_unavailable")}
        return (waits - {("dead_letter", "log_not_found")}) | {row_kind}

    def _take(
        self,
        key: Key,
        kind: str,
        record: Mapping[str, Any],
        said: Said,
        possible: set[tuple[str, str]],
    ) -> None:
        found = (kind, record.get("reason", ""))
        self._need(found in possible, f"{key}: {found}, want one of {sorted(possible)} for {said}")
        self.settled[key] += 1
        if kind in ("deferred", "dead_letter"):
            self.open[key] = kind
        elif kind in ("run", "reclaim"):
            self._row(key, kind, record, said)
        elif kind == "correction":
            row = self.rows[said.run_id]
            row.outcome = said.outcome
            self._need(said.trusted == row.said.trusted, f"{key}: corrects a run of another trust")

    def _row(self, key: Key, kind: str, record: Mapping[str, Any], said: Said) -> None:
        self._need((said.run_id in self.rows) == (kind == "reclaim"), f"{key}: the run {said.run_id} has a second row")
        content = said.address.content if said.address else -1
        want = (digest(said.run_id, content), said.outcome, said.trusted)
        found = (record["file"]["digest"], record["mention"]["outcome"], record["trust"]["trusted"])
        self._need(found == want, f"{key}: its row has {found}, want {want}")
        self.rows[said.run_id] = Row(said, want[0], record["file"]["path"], said.outcome)

    def finish(self, *, ends: Mapping[int, int]) -> None:
        """After all is over: nothing is missing, and what is accepted is what had a log.

        Args:
          ends: of each partition, behind its last message.
        """
        for number, end in ends.items():
            missing = set(range(end)) - self.covered.get(number, set())
            self._need(not missing, f"partition {number}: {sorted(missing)[:10]} were never covered")
        deferred = [key for key, kind in self.open.items() if kind == "deferred"]
        self._need(not deferred, f"still deferred: {deferred[:5]}")
        twice = [key for key, times in self.settled.items() if times != 1]
        self._need(not twice, f"not settled once: {twice[:5]}")
        accepted = accepted_runs(said for place, says in self.sent.items() if place not in self.gone for said in says)
        self._need(accepted == set(self.rows), f"rows of {set(self.rows) ^ accepted} too few or too many")

    def _need(self, holds: bool, what: str) -> None:
        if not holds:
            raise Violation(what)


def accepted_runs(says: Iterable[Said]) -> set[str]:
    """The runs that must have a raw row: those of which a finished event names a log that comes in time."""
    return {
        said.run_id
        for said in says
        if said.verdict == "finished" and said.address and said.address.content >= 0 and said.address.from_us < NEVER
    }
