"""Accounting of the demo: outcomes by (event, run) in the raw manifest's deltas, against the producer's list."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ciml.cli.demo.plan import Expected, Key
from ciml.cli.demo.result import AccountingLine, Check, made_check
from ciml.events.records import KIND_WORDS, Origin, Outcome, records_of
from ciml.manifest.coverage import RangeSet
from ciml.manifest.log import ManifestLog
from ciml.storage import Store


@dataclass(slots=True)
class Accounts:
    """Outcomes of the raw manifest up to ``version``.

    Attributes:
      final: outcomes by key that no later delta closed; exactly one is correct.
      waited: keys that were deferred at some time.
      covered: settled offsets by (topic, partition).
    """

    version: int = 0
    final: dict[Key, list[Outcome]] = field(default_factory=lambda: defaultdict(list))
    waited: set[Key] = field(default_factory=set)
    covered: dict[tuple[str, int], RangeSet] = field(default_factory=lambda: defaultdict(RangeSet))

    def catch_up(self, raw: Store) -> None:
        """Read new deltas."""
        for version, delta in ManifestLog(raw).since(self.version):
            self.apply(delta)
            self.version = version

    def apply(self, delta: Mapping[str, Any]) -> None:
        for topic, entry in delta["offsets"].items():
            for partition, ranges in entry["partitions"].items():
                for start, end in ranges:
                    self.covered[topic, int(partition)].add(start, end)
        for origin, run_id in delta["closes"]:
            self.final.pop(_key(Origin.from_json(origin), run_id), None)
        for _, record in records_of(delta):
            outcome = Outcome.from_json(record)
            key = _key(outcome.origin, outcome.run_id)
            if outcome.kind == "deferred":
                self.waited.add(key)
                self.final[key] = [earlier for earlier in self.final[key] if earlier.kind != "deferred"]
            self.final[key].append(outcome)

    def outcomes(self, kind: str = "") -> list[Outcome]:
        """Return the outcomes of a kind, or all, in the manifest's order."""
        return [out for outcomes in self.final.values() for out in outcomes if kind in ("", out.kind)]

    def unsettled(self, produced: Iterable[Expected]) -> int:
        """Return the number of acknowledged messages that are not covered yet."""
        sent = {(line.topic, line.partition, line.offset) for line in produced}
        return sum(offset not in self.covered[topic, partition] for topic, partition, offset in sent)


def _key(origin: Origin, run_id: str) -> Key:
    return origin.topic, origin.partition, origin.offset, run_id


def accounting_lines(produced: Iterable[Expected], accounts: Accounts) -> list[AccountingLine]:
    """Return expected and counted (event, run) pairs by class, reason and damage."""
    tricks = {line.key: line.trick for line in produced}
    expected = Counter((line.kind, line.reason, line.trick) for line in produced)
    pairs = [(key, outcome) for key, outcomes in accounts.final.items() for outcome in outcomes]
    counted = Counter((outcome.kind, outcome.reason, tricks.get(key, "")) for key, outcome in pairs)
    kinds = list(KIND_WORDS)
    return [
        AccountingLine(kind=row[0], reason=row[1], trick=row[2], expected=expected[row], counted=counted[row])
        for row in sorted({*expected, *counted}, key=lambda row: (kinds.index(row[0]), row))
    ]


def check_accounting(produced: Sequence[Expected], accounts: Accounts) -> Check:
    """Check that each acknowledged (event, run) has exactly its expected outcome, and no others exist."""
    wrong: list[str] = []
    for line in produced:
        outcomes = accounts.final.get(line.key, [])
        expectation = f"{line.kind} {line.reason}".strip()
        have = [f"{outcome.kind} {outcome.reason}".strip() for outcome in outcomes]
        where = f"{line.topic}[{line.partition}] {line.offset} {line.run_id}".rstrip()
        if have != [expectation]:
            wrong.append(f"{line.trick or 'an event'} at {where}: {' and '.join(have) or 'nothing'}, not {expectation}")
        elif line.event_key and outcomes[0].event_key != line.event_key:
            wrong.append(f"{where} is counted for the event {outcomes[0].event_key}, not {line.event_key}")
    sent = {line.key for line in produced}
    wrong += [f"{topic}[{part}] {offset} was never sent" for topic, part, offset, _ in accounts.final.keys() - sent]
    if len(sent) != len(produced):
        wrong.append("the producer's list names an (event, run) twice")
    return made_check("each (event, run) has the expected outcome", wrong, f"{len(produced)} of {len(produced)}")


def check_offsets(produced: Iterable[Expected], accounts: Accounts) -> Check:
    """Check that the covered offsets are exactly the acknowledged ones."""
    sent: dict[tuple[str, int], RangeSet] = defaultdict(RangeSet)
    for line in produced:
        sent[line.topic, line.partition].add(line.offset, line.offset + 1)
    wrong = [
        f"{topic}[{partition}]: sent {sent[topic, partition]}, covered {accounts.covered[topic, partition]}"
        for topic, partition in sorted({*sent, *accounts.covered})
        if sent[topic, partition] != accounts.covered[topic, partition]
    ]
    total = sum(ranges.count() for ranges in sent.values())
    return made_check("acknowledged offsets are covered, and no others", wrong, f"{total} in {len(sent)} partitions")


def check_trust(produced: Sequence[Expected], accounts: Accounts) -> Check:
    """Check that the trust of each raw row is as the producer expects."""
    trusted = {line.key: line.trusted for line in produced}
    wrong = [
        f"{outcome.run_id} was judged {outcome.trust}"
        for key, outcomes in accounts.final.items()
        for outcome in outcomes
        if outcome.kind == "run" and key in trusted and outcome.trust.trusted != trusted[key]
    ]
    untrusted = sum(line.trusted is False for line in produced)
    return made_check("runs of the pipeline check are untrusted, all others trusted", wrong, f"{untrusted} untrusted")


def check_waited(produced: Iterable[Expected], accounts: Accounts) -> Check:
    """Check that exactly the runs with late logs were deferred, and that none still is."""
    late = {line.key for line in produced if line.deferred}
    wrong = [f"{outcome.run_id} still waits: {outcome.reason}" for outcome in accounts.outcomes("deferred")]
    wrong += [f"{key[3]}: its log was unavailable, but the run was not deferred" for key in late - accounts.waited]
    wrong += [f"{key[3]}: its log was available, but the run was deferred" for key in accounts.waited - late]
    return made_check("late logs were waited for, and nothing waits any more", wrong, f"{len(late)} waited")


@dataclass(slots=True)
class Predictions:
    """The predictions of a data root, as far as they were read.

    Attributes:
      records: the predictions.
      run_ids: runs that were predicted, or found unpredictable.
    """

    store: Store
    version: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    run_ids: set[str] = field(default_factory=set)

    def catch_up(self) -> Predictions:
        """Read new deltas."""
        for version, delta in ManifestLog(self.store).since(self.version):
            self.records += delta["predictions"]
            self.run_ids.update(record["run_id"] for record in (*delta["predictions"], *delta["unpredictable"]))
            self.version = version
        return self
