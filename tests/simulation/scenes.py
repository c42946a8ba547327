"""The messages of CI in a simulated world, and their expected results, computed without ciml's code."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import pyarrow as pa

from ciml.digest import telemetry_digest
from ciml.errors import RejectedInput
from ciml.events.cloudevents import QUEUED, STARTED, Event, decode_message, finished_event, run_event
from ciml.events.records import Message, OutcomeWord, RunFacts
from ciml.events.run_id import RunId
from ciml.events.updates import fact_update
from ciml.transforms.parse.logs import Log, parse_logs
from tests.golden import make_logs

NEVER = 1 << 62
_START = make_logs.instant("2026-11-24T12:00:00Z")
_RESULTS: dict[OutcomeWord, str] = {"success": "SUCCESS", "failure": "FAILURE", "timeout": "TIMED_OUT"}
#: What runs may belong to.
SUBJECTS = ("a", "b", "c")
_GROUPS = ((make_logs.CPU, make_logs.LOAD), (make_logs.CPU, make_logs.LOAD, make_logs.MEMORY), (make_logs.CPU,))


@lru_cache
def log(content: int) -> bytes:
    """Return a telemetry log; no parser accepts content -1."""
    if content < 0:
        return b"\x1f\x8b\x08 cut short"
    recorder = replace(make_logs.DSTAT, groups=_GROUPS[content % 7 % 3])
    return make_logs.record(str(content), recorder, [_START + (content + 5 * row) * 1_000_000 for row in range(4)]).data


@lru_cache
def telemetry(content: int) -> pa.Table:
    """Return the table of a log, computed directly."""
    (table,) = parse_logs([Log(log(content), *times())])
    assert not isinstance(table, RejectedInput)
    return table


@lru_cache(maxsize=4096)
def digest(run_id: str, content: int) -> str:
    """Return the expected digest of a run's raw row."""
    return telemetry_digest(run_id, telemetry(content))


def times() -> tuple[int, int]:
    """Return start and end of every run, µs."""
    return _START - 2_000_000, _START + 60_000_000


@dataclass(frozen=True)
class Address:
    """The address of a log: its content, and the time from which it exists (µs after the beginning)."""

    content: int
    from_us: int = 0

    def url(self, run: str) -> str:
        return f"https://logs.example.org/{run}/{self.content}/{self.from_us}"

    @classmethod
    def parse(cls, url: str) -> Address:
        content, from_us = url.split("/")[-2:]
        return cls(int(content), int(from_us))


@dataclass(frozen=True)
class SentUpdate:
    """What a message says of a subject."""

    subject: str
    facts: Mapping[str, str]
    auth: str
    time_us: int


@dataclass(frozen=True)
class ExpectedRun:
    """The expected result of one run in one message.

    ``verdict`` is ``finished``, ``ignored``, ``broken`` or ``update``, with its ``reason``. Finished runs have an
    ``address``, updates their ``update``. The other fields are facts that updates change, or that decide about them.
    """

    run_id: str
    event_key: str
    verdict: str
    reason: str = ""
    outcome: str = ""
    job: str = ""
    address: Address | None = None
    pipeline: str = ""
    change: str = ""
    auth: str = ""
    subjects: tuple[str, ...] = ()
    update: SentUpdate | None = None


@dataclass(frozen=True)
class ScheduledMessage:
    """A message to send after ``pause_s``, and the expected results of its runs."""

    message: Message
    expected: tuple[ExpectedRun, ...]
    pause_s: float


class _Writer:
    def __init__(self, rng: random.Random, auths: tuple[str, ...]) -> None:
        self.random, self.number, self.auths = rng, 0, auths
        self.messages: list[ScheduledMessage] = []

    def send(self, value: bytes | None, headers: list[tuple[str, bytes]], expected: tuple[ExpectedRun, ...]) -> None:
        stamp = 1_790_000_000_000 + self.random.randrange(-3_600_000, 3_600_000)  # late, early, out of order
        message = Message(-1, value, tuple(headers), b"key", stamp)
        self.messages.append(ScheduledMessage(message, expected, self.random.choice((0.0, 0.0, 0.2, 2.0))))

    def event(self, *runs: tuple[RunFacts, Address]) -> None:
        """Send an event about finished runs."""
        self.number += 1
        sent = [facts.replace(log_url=where.url(facts.build_uuid)) for facts, where in runs]
        mode = self.random.choice(("structured", "binary", "bare"))
        value, headers = finished_event(*sent, event_id=str(self.number), mode=mode)
        headers = [*headers, *_proof(self._auth())]
        expected = []
        for facts, where in runs:
            reason = {"cancellation": "cancelled", "skip": "skipped"}.get(facts.outcome or "", "")
            if facts.result == "NODE_FAILURE":
                reason = "node_lost"
            expected.append(self._expected(facts, "ignored" if reason else "finished", reason, where))
        self.send(value, headers, tuple(expected))

    def other(self, facts: RunFacts, event_type: str) -> None:
        """Send an event about a started or queued run."""
        self.number += 1
        begun = facts.replace(outcome=None, result="", phase="started" if event_type == STARTED else "queued")
        value, headers = run_event(event_type, begun, event_id=str(self.number))
        headers = [*headers, *_proof(self._auth())]
        expected = replace(self._expected(begun, "ignored", "not_finished", None), outcome="")
        self.send(value, headers, (expected,))

    def again(self) -> None:
        """Send an earlier message again."""
        old = self.random.choice(self.messages)
        self.messages.append(replace(old, pause_s=self.random.choice((0.0, 5.0))))

    def _auth(self) -> str:
        """Return the proof of the present event; without updates in its world none has one."""
        return self.auths[self.number % len(self.auths)]

    def _expected(self, facts: RunFacts, verdict: str, reason: str, where: Address | None) -> ExpectedRun:
        return ExpectedRun(
            facts.run_id, f"zuul {self.number}", verdict, reason, facts.outcome or "", facts.build_name,
            where if verdict == "finished" else None, facts.pipeline, facts.change, self._auth(), facts.subjects,
        )  # fmt: skip

    def update(self, rng: random.Random, subject: str) -> None:
        """Send facts about the runs of a subject, at a random place among the messages so far."""
        self.number += 1
        facts = rng.choice((
            {"review": "approved"}, {"review": "merged"}, {"review": "dismissed"}, {"pipeline": "check"},
            {"pipeline": "gate", "change": f"c{self.number}"},
        ))  # fmt: skip
        sent = SentUpdate(subject, facts, rng.choice(("", "mqtt-user", "mqtt-user")), _START + rng.randrange(4))
        body = {"id": str(self.number), "subject": subject, "facts": facts, "time_us": sent.time_us}
        headers = ((UPDATE, b"1"), *_proof(sent.auth))
        expected = ExpectedRun("", f"zuul {self.number}", "update", auth=sent.auth, update=sent)
        message = Message(-1, json.dumps(body).encode(), headers, b"key", 1_790_000_000_000)
        for _ in range(rng.choice((1, 1, 2))):
            place = rng.randint(0, len(self.messages))
            self.messages.insert(place, ScheduledMessage(message, (expected,), rng.choice((0.0, 0.2, 2.0))))


#: Headers of a message: it is an update; how its sender was proved. The worlds have no adapter.
UPDATE, PROOF = "simulated_update", "simulated_auth"


def _proof(auth: str) -> tuple[tuple[str, bytes], ...]:
    return ((PROOF, auth.encode()),) if auth else ()


def read_event(message: Message, names: Mapping[str, str] | None = None) -> Event:
    """Decode a message as `ciml.integrations.registry.read_event` does: its proof comes from a header."""
    headers = dict(message.headers)
    auth = (headers.get(PROOF) or b"").decode()
    if UPDATE in headers:
        body = json.loads(message.value or b"")
        update = fact_update("zuul", body["subject"], body["facts"], auth, body["time_us"])
        key = f"zuul {body['id']}"
        return Event(key, "zuul", body["id"], "update", body["time_us"], (), (), {}, {}, (update,))
    event = decode_message(message, names)
    return event._replace(run_facts=tuple(facts.replace(auth=auth) for facts in event.run_facts))


def scene(seed: int) -> list[ScheduledMessage]:
    """Return the messages of a seed, as producers send them: 3 to 11 runs, in events of every form."""
    rng, of_updates = random.Random(f"scene {seed}"), random.Random(f"update {seed}")
    has_updates = of_updates.random() < 0.5
    writer = _Writer(
        rng, of_updates.choice((("",), ("mqtt-user",), ("", "mqtt-user", "mqtt-user"))) if has_updates else ("",)
    )
    earlier: list[tuple[RunFacts, Address]] = []
    trickiness = rng.choice((0.2, 0.5, 0.8))
    for number in range(rng.randint(3, 11)):
        outcome: OutcomeWord = rng.choice(("success", "success", "failure", "timeout"))
        start_us, end_us = times()
        facts = RunFacts(
            run_id=RunId("zuul", f"r{number}").encode(), build_uuid=f"r{number}", outcome=outcome,
            build_name=rng.choice(("unit", "unit", "lint")), result=_RESULTS[outcome], source="zuul",
            pipeline=rng.choice(("gate", "gate", "check")), project="p", change=str(number),
            start_us=start_us, end_us=end_us,
            subjects=tuple(of_updates.sample(SUBJECTS, of_updates.randrange(3))) if has_updates else (),
        )  # fmt: skip
        where = Address(rng.randrange(12))
        if rng.random() >= trickiness:
            writer.event((facts, where))
        else:
            _trick(writer, facts, where, earlier)
        earlier.append((facts, where))
        if rng.random() < trickiness:
            writer.again()
        if rng.random() < trickiness:
            _later(writer, *rng.choice(earlier))
    if rng.random() < 0.2:
        rng.shuffle(writer.messages)
    if has_updates:
        for _ in range(of_updates.randint(1, 8)):
            writer.update(of_updates, of_updates.choice(SUBJECTS))
    return writer.messages


def _trick(writer: _Writer, facts: RunFacts, where: Address, earlier: list[tuple[RunFacts, Address]]) -> None:
    """Send an unusual first event of a run."""
    match writer.random.randrange(9):
        case 0:
            writer.other(facts, writer.random.choice((STARTED, QUEUED)))
            writer.event((facts, where))
        case 1:
            writer.event((facts, replace(where, from_us=writer.random.choice((20, 200, 2000)) * 1_000_000)))
        case 2:
            writer.event((facts, replace(where, from_us=NEVER)))
        case 3:
            writer.event((facts, Address(-1)))
        case 4:
            broken = ExpectedRun("", "", "broken", writer.random.choice(("tombstone", "broken_json")))
            writer.send(None if broken.reason == "tombstone" else b"{not json", [], (broken,))
            writer.event((facts, where))
        case 5:
            writer.event((facts.replace(outcome="cancellation", result="ABORTED"), where))
        case 6:
            writer.event((facts.replace(outcome="error", result="NODE_FAILURE"), where))
        case _:
            writer.event((facts, where), *writer.random.sample(earlier, min(len(earlier), writer.random.randint(0, 3))))


def _later(writer: _Writer, facts: RunFacts, where: Address) -> None:
    """Send another event about an earlier run."""
    match writer.random.randrange(6):
        case 0:
            writer.event((facts, where))
        case 1:
            writer.event((facts, Address((where.content + 1) % 12)))
        case 2:
            pipeline = writer.random.choice((facts.pipeline, "check"))
            writer.event((facts.replace(outcome="cancellation", result="ABORTED", pipeline=pipeline), where))
        case _:
            outcome: OutcomeWord = writer.random.choice(("success", "failure", "timeout"))
            pipeline = writer.random.choice((facts.pipeline, facts.pipeline, "check", "gate"))
            writer.event((facts.replace(outcome=outcome, result=_RESULTS[outcome], pipeline=pipeline), where))
