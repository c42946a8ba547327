"""A reference model of the accounting, computed from the sent messages and the order of commits alone.

It has no ranges, indexes or layers: it reads the deltas once, with a set and a dict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.scenes import NEVER, ExpectedRun, SentUpdate, digest
from tests.simulation.scheduler import Violation

Delta = Mapping[str, Any]
#: (topic id, partition, offset) of a message.
Position = tuple[str, int, int]
#: (partition, offset, run id).
Key = tuple[int, int, str]

_LISTS = {
    "runs": "run", "reclaims": "reclaim", "repeats": "repeat", "corrections": "correction", "ignored": "ignored",
    "dead_letters": "dead_letter", "deferred": "deferred", "updates": "update",
}  # fmt: skip
_FINAL = {"cancelled", "skipped", "node_lost", "never_started"}


@dataclass
class Row:
    """An expected raw row."""

    expected: ExpectedRun
    digest: str
    path: str
    outcome: str  # the last valid one
    trusted: bool
    change: str  # as known when it was stored
    lowered: bool = False

    @property
    def content(self) -> int:
        return self.expected.address.content if self.expected.address else -1

    @property
    def standing(self) -> int:
        return 2 if self.trusted else int(bool(self.expected.auth))


def facts_of(run: ExpectedRun, updates: Iterable[tuple[str, SentUpdate]]) -> dict[str, str]:
    """Return the facts of a run that updates may change, computed from all (event key, update) at once."""
    facts = {"pipeline": run.pipeline, "review": "", "change": run.change}
    mine = [(key, each) for key, each in updates if each.subject in run.subjects and (each.auth or not run.auth)]
    place = {subject: -number for number, subject in enumerate(run.subjects)}
    for name in facts:
        about = [
            (each.auth != "", place[each.subject], each.time_us, key, each.facts[name])
            for key, each in mine
            if name in each.facts
        ]
        believed = [each for each in about if each[0]] or about
        final = [each for each in believed if name == "review" and each[-1] == "merged"] or believed
        if final:
            facts[name] = max(final)[-1]
    return facts


def is_trusted(facts: Mapping[str, str]) -> bool:
    """Return what the policy for trials says of a run of Zuul."""
    return facts["pipeline"] == "gate" or facts["review"] in ("approved", "merged")


@dataclass
class ReferenceModel:
    """The expected state after deltas. It raises `Violation` for a wrong delta.

    Attributes:
      sent: expected results of every message, by its position.
      expired: messages that retention removed before their partition had a covered offset: these may be lost.
      lost: the expired messages that were lost.
      disabled: whether the checks are off.
      rows: the raw rows by run id.
      order: the same run ids, in the manifest's order.
      open: deferred runs and open dead letters: (partition, offset, run id) -> kind.
      settled: number of final records by (partition, offset, run id).
      covered: the covered offsets by partition.
      said: the updates so far, with the keys of their events.
    """

    sent: Mapping[Position, tuple[ExpectedRun, ...]]
    expired: set[Position] = field(default_factory=set)
    lost: set[Position] = field(default_factory=set)
    disabled: bool = False
    topic_id: str = ""
    version: int = 0
    rows: dict[str, Row] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    open: dict[Key, str] = field(default_factory=dict)
    settled: Counter[Key] = field(default_factory=Counter)
    covered: dict[int, set[int]] = field(default_factory=dict)
    events: set[tuple[str, str]] = field(default_factory=set)
    said: list[tuple[str, SentUpdate]] = field(default_factory=list)

    def add(self, version: int, delta: Delta) -> None:
        """Check and apply the next delta."""
        if self.disabled:
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
        new_said: list[tuple[str, SentUpdate]] = []
        again.sort(key=lambda each: each[0])
        for key, kind, record in again:
            self._again(key, kind, record, closes)
        self._need(not +closes, f"version {version} closes records that it does not settle: {dict(closes)}")
        first.sort(key=lambda each: each[0])
        for key, kind, record in first:
            self._first(key, kind, record)
            expected = self._expected(key)
            if kind == "update" and expected.update is not None:
                new_said.append((expected.event_key, expected.update))
        self._judge_again(delta, new_said)
        self.order += [record["mention"]["run_id"] for record in delta["runs"]]
        for position in fresh:
            runs = self.sent.get((self.topic_id, *position), ())
            times = {self.settled[*position, expected.run_id] for expected in runs}
            if times == {0} and position[0] in begun and (self.topic_id, *position) in self.expired:
                self.lost.add((self.topic_id, *position))
            else:
                self._need(times <= {1}, f"version {version} covers {position}, and not all of {runs} is settled")

    def _judge_again(self, delta: Delta, new_said: list[tuple[str, SentUpdate]]) -> None:
        """Apply updates, which count after all other records of their delta, and check the changes of trust."""
        self.said += new_said
        subjects = {update.subject for _, update in new_said}
        changes = {}
        for run_id, row in self.rows.items():
            trusted = is_trusted(facts_of(row.expected, self.said))
            if subjects.isdisjoint(row.expected.subjects):
                self._need(trusted == row.trusted, f"the trust of {run_id} has changed without an update")
            elif trusted != row.trusted:
                changes[run_id] = trusted
                row.lowered = not trusted
                row.trusted = trusted
        found = {each["run_id"]: each["trust"]["trusted"] for each in delta.get("trust_changes", ())}
        self._need(found == changes, f"version {self.version} changes the trust {found}, want {changes}")

    def _standing(self, expected: ExpectedRun) -> int:
        return 2 if is_trusted(facts_of(expected, self.said)) else int(bool(expected.auth))

    def _cover(self, delta: Delta) -> tuple[set[tuple[int, int]], set[int]]:
        """Return the positions that a delta covers, and the partitions whose first covered offsets it has."""
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

    def _expected(self, key: Key) -> ExpectedRun:
        for expected in self.sent.get((self.topic_id, *key[:2]), ()):
            if expected.run_id == key[2]:
                return expected
        raise Violation(f"version {self.version} has a record of {key}, which was never sent")

    def _again(self, key: Key, kind: str, record: Mapping[str, Any], closes: Counter[Any]) -> None:
        expected, before = self._expected(key), self.open.pop(key, None)
        self._need(before is not None, f"version {self.version} settles {key} again, as {kind}")
        if kind != "deferred":
            self._need(closes[key] == 1, f"version {self.version} settles {key}, and does not close it")
            closes[key] -= 1
        self._need(before == "deferred" or kind not in ("deferred", "dead_letter"), f"{key}: {kind} after {before}")
        self.settled[key] -= 1
        self._take(key, kind, record, expected, self._possible(expected, known=False))

    def _first(self, key: Key, kind: str, record: Mapping[str, Any]) -> None:
        expected = self._expected(key)
        if expected.event_key and (expected.event_key, expected.run_id) in self.events:
            self._need((kind, record.get("reason")) == ("repeat", "event"), f"{key}: {kind}, but its event is known")
            self.settled[key] += 1
            return
        if expected.event_key:
            self.events.add((expected.event_key, expected.run_id))
        self._take(key, kind, record, expected, self._possible(expected, known=True))

    def _possible(self, expected: ExpectedRun, *, known: bool) -> set[tuple[str, str]]:
        """Return the (kind, reason) that a record may have. The log host's answers are not known here."""
        row = self.rows.get(expected.run_id)
        if expected.verdict == "broken":
            return {("dead_letter", expected.reason)}
        if expected.verdict == "ignored" and (row is None or expected.reason not in _FINAL):
            return {("ignored", expected.reason)}
        standing = self._standing(expected)
        if expected.verdict == "update":
            return {("update", "")}
        reclaims = row is not None and standing > row.standing
        if reclaims and expected.verdict == "ignored":
            return {("ignored", expected.reason)}
        if row is not None and not reclaims:
            if expected.outcome != row.outcome and standing < row.standing:
                return {("ignored", "less_trusted")}
            if expected.outcome != row.outcome:
                return {("correction", "outcome")}
            other = expected.address is not None and expected.address.content != row.content
            return {("repeat", "run"), ("repeat", "other_log")} if other else {("repeat", "run")}
        address = expected.address
        if address is None:
            raise Violation(f"{expected} was finished without a log")
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
        expected: ExpectedRun,
        possible: set[tuple[str, str]],
    ) -> None:
        found = (kind, record.get("reason", ""))
        self._need(found in possible, f"{key}: {found}, want one of {sorted(possible)} for {expected}")
        self.settled[key] += 1
        if kind in ("deferred", "dead_letter"):
            self.open[key] = kind
        elif kind in ("run", "reclaim"):
            self._row(key, kind, record, expected)
        elif kind == "correction":
            row = self.rows[expected.run_id]
            row.outcome = expected.outcome
            self._need(self._standing(expected) == row.standing, f"{key}: corrects a run of another standing")
            lowered = row.lowered and not row.trusted
            self._need(record.get("lowered", False) == lowered, f"{key}: whether its run was trusted is wrong")

    def _row(self, key: Key, kind: str, record: Mapping[str, Any], expected: ExpectedRun) -> None:
        self._need((expected.run_id in self.rows) == (kind == "reclaim"), f"{key}: a second row of {expected.run_id}")
        content = expected.address.content if expected.address else -1
        facts = facts_of(expected, self.said)
        change = record.get("joined", {}).get("change", record["mention"].get("change", ""))
        want = (digest(expected.run_id, content), expected.outcome, is_trusted(facts), facts["change"])
        found = (record["file"]["digest"], record["mention"]["outcome"], record["trust"]["trusted"], change)
        self._need(found == want, f"{key}: its row has {found}, want {want}")
        self.rows[expected.run_id] = Row(expected, want[0], record["file"]["path"], expected.outcome, *want[2:])

    def finish(self, *, ends: Mapping[int, int]) -> None:
        """Check the final state: no offset is missing, and the raw rows are the runs with a log.

        Args:
          ends: the end offset of each partition.
        """
        for number, end in ends.items():
            missing = set(range(end)) - self.covered.get(number, set())
            self._need(not missing, f"partition {number}: {sorted(missing)[:10]} were never covered")
        deferred = [key for key, kind in self.open.items() if kind == "deferred"]
        self._need(not deferred, f"still deferred: {deferred[:5]}")
        twice = [key for key, times in self.settled.items() if times != 1]
        self._need(not twice, f"not settled once: {twice[:5]}")
        accepted = accepted_runs(
            run for position, runs in self.sent.items() if position not in self.lost for run in runs
        )
        self._need(accepted == set(self.rows), f"missing or superfluous rows: {set(self.rows) ^ accepted}")
        said = [
            (run.event_key, run.update)
            for position, runs in self.sent.items()
            if position not in self.lost
            for run in runs
            if run.update is not None
        ]
        for run_id, row in self.rows.items():
            trusted = is_trusted(facts_of(row.expected, said))
            self._need(row.trusted == trusted, f"the trust of {run_id} depends on the order of its updates")

    def _need(self, holds: bool, what: str) -> None:
        if not holds:
            raise Violation(what)


def accepted_runs(runs: Iterable[ExpectedRun]) -> set[str]:
    """Return the runs that must have a raw row: those with a finished event whose log becomes available."""
    return {
        run.run_id
        for run in runs
        if run.verdict == "finished" and run.address and run.address.content >= 0 and run.address.from_us < NEVER
    }
