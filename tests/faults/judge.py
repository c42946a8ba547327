"""The verdict on a raw store: the producer's acknowledged list on one side, the independent reading on the other."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tests.faults.direct import learn, row_of
from tests.faults.oracle import Ledger, check_row, describe
from tests.faults.plan import Claim, Send

MOST = 20  # lines of one kind of failure; a thousand lost rows need not be told one by one


class Delivery(NamedTuple):
    """A message that the broker acknowledged: where it is, and what it was."""

    partition: int
    offset: int
    send: Send


def deliveries(sends: Sequence[Send], acks: Iterable[tuple[int, int, int, float]]) -> list[Delivery]:
    """What was sent and acknowledged."""
    return [Delivery(partition, offset, sends[number]) for number, partition, offset, _ in acks]


def accepted(sent: Iterable[Delivery]) -> dict[str, Claim]:
    """The runs that have to be raw rows, each with the claim that says so."""
    return {claim.run_id: claim for one in sent for claim in one.send.claims if claim.kind == "run"}


def judge(topic: str, sent: Sequence[Delivery], ledger: Ledger, *, before: Sequence[Delivery] = ()) -> list[str]:
    """I1 and I2, each row's equality with the direct computation, and what of I3 is in the end.

    Args:
      topic: that was read.
      sent: all that was acknowledged.
      ledger: read to its end.
      before: deliveries of other topics that the same store holds; their runs are rows too.

    Returns:
      A line for each thing that does not hold; nothing when all does.
    """
    found = list(ledger.faults)
    found += _covered(topic, sent, ledger)
    found += _accounting(topic, sent, ledger)
    found += _rows([*before, *sent], ledger)
    return found


def _covered(topic: str, sent: Sequence[Delivery], ledger: Ledger) -> list[str]:
    lost = [(one.partition, one.offset) for one in sent if one.offset not in ledger.covered[topic, one.partition]]
    lines = [f"I2: {topic}[{partition}] {offset} was acknowledged and is not covered" for partition, offset in lost]
    return _few(lines)


def _accounting(topic: str, sent: Sequence[Delivery], ledger: Ledger) -> list[str]:
    """Exactly one record for each (delivery, run), of the kinds that the producer foresaw; and no others."""
    found: list[str] = []
    wanted: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    have: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    expected = set()
    for one in sent:
        for claim in one.send.claims:
            key = (topic, one.partition, one.offset, claim.run_id)
            expected.add(key)
            entries = ledger.entries.get(key, [])
            if not entries and one.offset in ledger.covered[topic, one.partition]:
                found.append(f"gap: {key} is covered, and there is no record of it; want {claim.kind} {claim.reason}")
            elif len(entries) != 1:
                kinds = describe(Counter((entry.kind, entry.reason) for entry in entries)) or "nothing"
                found.append(f"I2: {key}: {kinds}; want one record ({claim.kind} {claim.reason})")
            name = claim.run_id or f"{topic}[{one.partition}] {one.offset}"
            wanted[name][claim.kind, claim.reason] += 1
            reasons = claim.reason.split("|")
            for entry in entries:
                have[name][entry.kind, claim.reason if entry.reason in reasons else entry.reason] += 1
    for name, counts in wanted.items():
        if have[name] != counts:
            found.append(f"I2: {name}: {describe(have[name]) or 'nothing'}; want {describe(counts)}")
    foreign = [key for key, entries in ledger.entries.items() if entries and key[0] == topic and key not in expected]
    found += [f"I2: {key}: a record of what was never acknowledged" for key in foreign]
    return _few(found)


def _rows(sent: Sequence[Delivery], ledger: Ledger) -> list[str]:
    found: list[str] = []
    runs = accepted(sent)
    learn(runs.values())
    for run_id, claim in runs.items():
        entries = ledger.rows.get(run_id, [])
        if len(entries) != 1:
            found.append(f"I1: {run_id} has {len(entries)} raw rows")
        elif faults := check_row(ledger.raw, run_id, entries[0], row_of(claim)):
            found += faults
    found += [f"I1: {run_id} has a raw row, and should have none" for run_id in ledger.rows.keys() - runs.keys()]
    return _few(found)


def _few(lines: list[str]) -> list[str]:
    kinds: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        kinds[line.partition(":")[0]].append(line)
    return [
        line
        for kind, each in kinds.items()
        for line in (*each[:MOST], *([f"{kind}: and {len(each) - MOST} more"] if len(each) > MOST else []))
    ]
