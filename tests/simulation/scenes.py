"""What CI sends in a simulated world, and the truth about it, which no code of ciml has a part in."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from functools import lru_cache

import pyarrow as pa

from ciml.digest import telemetry_digest
from ciml.errors import RejectedInput
from ciml.events.cloudevents import QUEUED, STARTED, finished_event, run_event
from ciml.events.records import Message, OutcomeWord, RunFacts
from ciml.events.run_id import RunId
from tests.golden import make_logs
from transforms.parse.logs import Log, parse_logs

NEVER = 1 << 62
_START = make_logs.instant("2026-11-24T12:00:00Z")
_RESULTS: dict[OutcomeWord, str] = {"success": "SUCCESS", "failure": "FAILURE", "timeout": "TIMED_OUT"}
_GROUPS = ((make_logs.CPU, make_logs.LOAD), (make_logs.CPU, make_logs.LOAD, make_logs.MEMORY), (make_logs.CPU,))


@lru_cache
def log(content: int) -> bytes:
    """A telemetry log; content -1 is one that no parser takes."""
    if content < 0:
        return b"\x1f\x8b\x08 cut short"
    recorder = replace(make_logs.DSTAT, groups=_GROUPS[content % 7 % 3])
    return make_logs.record(str(content), recorder, [_START + (content + 5 * row) * 1_000_000 for row in range(4)]).data


@lru_cache
def telemetry(content: int) -> pa.Table:
    """The table of a log, by the direct computation."""
    (table,) = parse_logs([Log(log(content), *times())])
    assert not isinstance(table, RejectedInput)
    return table


@lru_cache(maxsize=4096)
def digest(run_id: str, content: int) -> str:
    """What the digest of a run's raw row has to be."""
    return telemetry_digest(run_id, telemetry(content))


def times() -> tuple[int, int]:
    """Start and end of every run, µs."""
    return _START - 2_000_000, _START + 60_000_000


@dataclass(frozen=True)
class Address:
    """A log's place: what is there, and from when on (µs after the beginning)."""

    content: int
    from_us: int = 0

    def url(self, run: str) -> str:
        return f"https://logs.example.org/{run}/{self.content}/{self.from_us}"

    @classmethod
    def parse(cls, url: str) -> Address:
        content, from_us = url.split("/")[-2:]
        return cls(int(content), int(from_us))


@dataclass(frozen=True)
class Said:
    """The truth about what one message says of one run.

    ``verdict`` is ``finished``, ``ignored`` or ``broken``, with its ``reason``. ``address`` is there for finished ones.
    """

    run_id: str
    event_key: str
    verdict: str
    reason: str = ""
    outcome: str = ""
    trusted: bool = False
    job: str = ""
    address: Address | None = None


@dataclass(frozen=True)
class Letter:
    """A message that is to be sent, after ``pause_s``, and what it says."""

    message: Message
    says: tuple[Said, ...]
    pause_s: float


@dataclass
class Scene:
    """All that is sent, in the order in which producers send it."""

    letters: list[Letter] = field(default_factory=list)


class _Writer:
    def __init__(self, rng: random.Random) -> None:
        self.random, self.scene, self.number = rng, Scene(), 0

    def send(self, value: bytes | None, headers: list[tuple[str, bytes]], says: tuple[Said, ...]) -> None:
        stamp = 1_790_000_000_000 + self.random.randrange(-3_600_000, 3_600_000)  # late, early, out of order
        message = Message(-1, value, tuple(headers), b"key", stamp)
        self.scene.letters.append(Letter(message, says, self.random.choice((0.0, 0.0, 0.2, 2.0))))

    def event(self, *runs: tuple[RunFacts, Address]) -> None:
        """An event that says of runs that they ended."""
        self.number += 1
        mentions = [mention.replace(log_url=where.url(mention.build_uuid)) for mention, where in runs]
        mode = self.random.choice(("structured", "binary", "bare"))
        value, headers = finished_event(*mentions, event_id=str(self.number), mode=mode)
        says = []
        for mention, where in runs:
            reason = {"cancellation": "cancelled", "skip": "skipped"}.get(mention.outcome or "", "")
            if mention.result == "NODE_FAILURE":
                reason = "node_lost"
            says.append(self._said(mention, "ignored" if reason else "finished", reason, where))
        self.send(value, headers, tuple(says))

    def other(self, mention: RunFacts, event_type: str) -> None:
        """An event that says that a run began, or waits."""
        self.number += 1
        begun = mention.replace(outcome=None, result="", phase="started" if event_type == STARTED else "queued")
        value, headers = run_event(event_type, begun, event_id=str(self.number))
        said = replace(self._said(begun, "ignored", "not_finished", None), outcome="")
        self.send(value, headers, (said,))

    def again(self) -> None:
        """An earlier message comes once more."""
        old = self.random.choice(self.scene.letters)
        self.scene.letters.append(replace(old, pause_s=self.random.choice((0.0, 5.0))))

    def _said(self, mention: RunFacts, verdict: str, reason: str, where: Address | None) -> Said:
        return Said(
            mention.run_id, f"zuul {self.number}", verdict, reason, mention.outcome or "",
            mention.pipeline == "gate", mention.build_name, where if verdict == "finished" else None,
        )  # fmt: skip


def scene(seed: int) -> Scene:
    """The scene of a seed: 3 to 11 runs, told in all the ways that CI tells of them."""
    rng = random.Random(f"scene {seed}")
    writer = _Writer(rng)
    told: list[tuple[RunFacts, Address]] = []
    trickiness = rng.choice((0.2, 0.5, 0.8))
    for number in range(rng.randint(3, 11)):
        outcome: OutcomeWord = rng.choice(("success", "success", "failure", "timeout"))
        start_us, end_us = times()
        mention = RunFacts(
            run_id=RunId("zuul", f"r{number}").encode(), build_uuid=f"r{number}", outcome=outcome,
            build_name=rng.choice(("unit", "unit", "lint")), result=_RESULTS[outcome], source="zuul",
            pipeline=rng.choice(("gate", "gate", "check")), project="p", change=str(number),
            start_us=start_us, end_us=end_us,
        )  # fmt: skip
        where = Address(rng.randrange(12))
        if rng.random() >= trickiness:
            writer.event((mention, where))
        else:
            _trick(writer, mention, where, told)
        told.append((mention, where))
        if rng.random() < trickiness:
            writer.again()
        if rng.random() < trickiness:
            _later(writer, *rng.choice(told))
    if rng.random() < 0.2:
        rng.shuffle(writer.scene.letters)
    return writer.scene


def _trick(writer: _Writer, mention: RunFacts, where: Address, told: list[tuple[RunFacts, Address]]) -> None:
    """A run whose first event is an odd one."""
    match writer.random.randrange(9):
        case 0:
            writer.other(mention, writer.random.choice((STARTED, QUEUED)))
            writer.event((mention, where))
        case 1:
            writer.event((mention, replace(where, from_us=writer.random.choice((20, 200, 2000)) * 1_000_000)))
        case 2:
            writer.event((mention, replace(where, from_us=NEVER)))
        case 3:
            writer.event((mention, Address(-1)))
        case 4:
            broken = Said("", "", "broken", writer.random.choice(("tombstone", "broken_json")))
            writer.send(None if broken.reason == "tombstone" else b"{not json", [], (broken,))
            writer.event((mention, where))
        case 5:
            writer.event((mention.replace(outcome="cancellation", result="ABORTED"), where))
        case 6:
            writer.event((mention.replace(outcome="error", result="NODE_FAILURE"), where))
        case _:
            writer.event((mention, where), *writer.random.sample(told, min(len(told), writer.random.randint(0, 3))))


def _later(writer: _Writer, mention: RunFacts, where: Address) -> None:
    """Something else is said of a run that was told of before."""
    match writer.random.randrange(6):
        case 0:
            writer.event((mention, where))
        case 1:
            writer.event((mention, Address((where.content + 1) % 12)))
        case 2:
            pipeline = writer.random.choice((mention.pipeline, "check"))
            writer.event((mention.replace(outcome="cancellation", result="ABORTED", pipeline=pipeline), where))
        case _:
            outcome: OutcomeWord = writer.random.choice(("success", "failure", "timeout"))
            pipeline = writer.random.choice((mention.pipeline, mention.pipeline, "check", "gate"))
            writer.event((mention.replace(outcome=outcome, result=_RESULTS[outcome], pipeline=pipeline), where))
