"""Accounting of the demo: outcomes by (event, run) in the raw manifest's deltas, against the producer's list."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ciml.cli.demo.produce import Produced
from ciml.cli.demo.report.result import AccountingLine, Check, SpoiltLine
from ciml.events.records import Origin, Outcome, records_of
from ciml.manifest.coverage import RangeSet
from ciml.manifest.log import ManifestLog
from ciml.storage import Store

#: Topic, partition, offset and run id.
Key = tuple[str, int, int, str]
#: The order in which classes are shown.
KINDS = ("run", "reclaim", "repeat", "correction", "ignored", "dead_letter", "deferred")


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
    covered: dict[tuple[str, int], RangeSet] = field(default_factory=dict)

    def catch_up(self, raw: Store) -> None:
        """Read new deltas."""
        for version, delta in ManifestLog(raw).since(self.version):
            self.apply(delta)
            self.version = version

    def apply(self, delta: Mapping[str, Any]) -> None:
        for topic, entry in delta["offsets"].items():
            for partition, ranges in entry["partitions"].items():
                for start, end in ranges:
                    self.covered.setdefault((topic, int(partition)), RangeSet()).add(start, end)
        for origin, run_id in delta["closes"]:
            self.final.pop(_key(Origin.from_json(origin), run_id), None)
        for _, record in records_of(delta):
            outcome = Outcome.from_json(record)
            key = _key(outcome.origin, outcome.run_id)
            if outcome.kind == "deferred":
                self.waited.add(key)
                self.final[key] = [one for one in self.final[key] if one.kind != "deferred"]
            self.final[key].append(outcome)

    def runs(self) -> list[Outcome]:
        """Return the raw rows in the manifest's order."""
        return [outcome for outcomes in self.final.values() for outcome in outcomes if outcome.kind == "run"]

    def paths(self) -> set[str]:
        """Return the raw objects in the manifest: of raw rows, and of further logs of the same runs."""
        return {one.file.path for outcomes in self.final.values() for one in outcomes if one.file is not None}

    def deferred(self) -> list[Outcome]:
        """Return the deferred (event, run) pairs."""
        return [outcome for outcomes in self.final.values() for outcome in outcomes if outcome.kind == "deferred"]

    def unsettled(self, produced: Iterable[Produced]) -> int:
        """Return the number of acknowledged messages that are not covered yet."""
        sent = {(line.topic, line.partition, line.offset) for line in produced}
        return sum(offset not in self.covered.get((topic, part), ()) for topic, part, offset in sent)


def _key(origin: Origin, run_id: str) -> Key:
    return origin.topic, origin.partition, origin.offset, run_id


def accounting_lines(produced: Iterable[Produced], accounts: Accounts) -> list[AccountingLine]:
    """Return expected and counted (event, run) by class and reason."""
    expected = Counter((line.kind, line.reason) for line in produced)
    counted = Counter((one.kind, one.reason) for outcomes in accounts.final.values() for one in outcomes)
    order = sorted({*expected, *counted}, key=lambda key: (KINDS.index(key[0]), -expected[key], key[1]))
    return [AccountingLine(kind=key[0], reason=key[1], expected=expected[key], counted=counted[key]) for key in order]


def spoilt_lines(produced: Iterable[Produced], accounts: Accounts) -> list[SpoiltLine]:
    """Return the outcomes of each kind of damaged event."""
    messages: dict[str, set[Key]] = defaultdict(set)
    became: dict[str, Counter[str]] = defaultdict(Counter)
    for line in produced:
        if line.trick:
            messages[line.trick].add((line.topic, line.partition, line.offset, ""))
            for one in accounts.final.get(line.key, ()):
                words = one.kind + (f": {one.reason}" if one.reason else "")
                if one.kind == "run" and not one.trust.trusted:
                    words += ", untrusted"
                if one.kind == "run" and line.key in accounts.waited:
                    words += ", after waiting"
                became[line.trick][words] += 1
    return [
        SpoiltLine(
            trick=trick,
            messages=len(messages[trick]),
            became=", ".join(f"{count} × {words}" for words, count in became[trick].most_common()),
        )
        for trick in sorted(messages)
    ]


def check_accounting(produced: list[Produced], accounts: Accounts) -> Check:
    """Check that each acknowledged (event, run) has exactly its expected outcome, and no others exist."""
    wrong: list[str] = []
    for line in produced:
        found = accounts.final.get(line.key, [])
        want = f"{line.kind} {line.reason}".strip()
        got = [f"{one.kind} {one.reason}".strip() for one in found]
        if got != [want]:
            wrong.append(f"{line.trick or 'an event'} at {_where(line)}: {' and '.join(got) or 'nothing'}, not {want}")
        elif line.event_key and found[0].event_key != line.event_key:
            wrong.append(f"{_where(line)} is counted for the event {found[0].event_key}, not {line.event_key}")
    known = {line.key for line in produced}
    wrong += [f"{key[0]}[{key[1]}] {key[2]} was never sent" for key in accounts.final if key not in known]
    if len(known) != len(produced):
        wrong.append("the producer's list names an (event, run) twice")
    return made_check("each (event, run) has the expected outcome", wrong, f"{len(produced)} of {len(produced)}")


def check_offsets(produced: list[Produced], accounts: Accounts) -> Check:
    """Check that the covered offsets are exactly the acknowledged ones."""
    sent: dict[tuple[str, int], RangeSet] = {}
    for line in produced:
        sent.setdefault((line.topic, line.partition), RangeSet()).add(line.offset, line.offset + 1)
    wrong = [
        f"{topic}[{partition}]: sent {sent.get((topic, partition))}, covered {accounts.covered.get((topic, partition))}"
        for topic, partition in sorted({*sent, *accounts.covered})
        if sent.get((topic, partition), RangeSet()) != accounts.covered.get((topic, partition), RangeSet())
    ]
    total = sum(ranges.count() for ranges in sent.values())
    return made_check("acknowledged offsets are covered, and no others", wrong, f"{total} in {len(sent)} partitions")


def check_trust(produced: list[Produced], accounts: Accounts) -> Check:
    """Check that the trust of each raw row is as the producer expects."""
    wrong = [
        f"{line.run_id} was judged {one.trust}"
        for line in produced
        for one in accounts.final.get(line.key, ())
        if one.kind == "run" and one.trust.trusted != line.trusted
    ]
    untrusted = sum(line.trusted is False for line in produced)
    return made_check("runs of the pipeline check are untrusted, all others trusted", wrong, f"{untrusted} untrusted")


def check_waited(produced: list[Produced], accounts: Accounts) -> Check:
    """Check that exactly the runs with late logs were deferred, and that none still is."""
    wrong = [f"{one.run_id} still waits: {one.reason}" for one in accounts.deferred()]
    for line in produced:
        if line.deferred and line.key not in accounts.waited:
            wrong.append(f"{line.run_id}: its log was unavailable, and the run was not deferred")
    expected = {line.key for line in produced if line.deferred}
    wrong += [f"{key[3]}: its log was available, and the run was deferred" for key in accounts.waited - expected]
    return made_check("late logs were waited for, and nothing waits any more", wrong, f"{len(expected)} waited")


def _where(line: Produced) -> str:
    return f"{line.topic}[{line.partition}] {line.offset} {line.run_id}".rstrip()


def made_check(name: str, wrong: list[str], right: str) -> Check:
    """Return a check that passed with the detail ``right``, or failed with the first findings."""
    if not wrong:
        return Check(name=name, passed=True, detail=right)
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return Check(name=name, passed=False, detail=wrong[0] + more)
